"""Generated raw files of Ali-CCP: their format, and a model trained on them."""

from pathlib import Path

import pytest

from experiments.bench.raw.make_raw import main as make_raw
from pwiser_jax.config import load_config
from pwiser_jax.data.aliccp.prepare import prepare_aliccp
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    options = ["--rows=12000", "--lines=300", "--test-rows=4000"]
    assert make_raw(["aliccp", f"--output={folder}", *options]) == 0
    return folder


def test_generated_files_are_as_published(raw: Path, tmp_path: Path) -> None:
    """Every line is read under --strict; rates and counts are near the published."""
    manifest = prepare_aliccp(
        raw, tmp_path / "out", fields=23, strict=True, on_bad_label="nest"
    )
    train, valid, test = (manifest.splits[k] for k in ("train", "valid", "test"))
    assert train.rows + valid.rows == 12_000
    assert test.rows == 4_000
    assert 0.03 < train.labels["click"] / train.rows < 0.05
    lines = (raw / "common_features_train.csv").read_bytes().splitlines()
    triples = [line.count(b"\x01") + 1 for line in lines]
    assert 400 < sum(triples) / len(triples) < 650
    assert max(triples) < 3_000
    rows = (raw / "sample_skeleton_train.csv").read_bytes().splitlines()
    assert 11 < sum(line.count(b"\x01") + 1 for line in rows) / len(rows) < 15
    again = tmp_path / "again"
    options = ["--rows=12000", "--lines=300", "--test-rows=4000"]
    make_raw(["aliccp", f"--output={again}", *options])
    for path in raw.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_the_smoke_config_trains_on_all_fields(raw: Path, tmp_path: Path) -> None:
    prepare_aliccp(
        raw,
        tmp_path / "data",
        fields=23,
        log_counts=True,
        max_values=5,
        valid_fraction=0.3,
        on_bad_label="nest",
    )
    config = load_config(
        CONFIGS / "aliccp" / "smoke.yaml", (f"--data.path={tmp_path / 'data'}",)
    )
    train(config, tmp_path / "run", Silent())
    report = evaluate_run(tmp_path / "run", "test").to_dict()
    assert report["ctr"]["auc"]["value"] > 0.4
