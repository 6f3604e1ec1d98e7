"""`sweep`: runs over values and seeds, and their table paired by seed."""

import re
import sys
from pathlib import Path

import pytest

from pwiser_jax.cli import main
from pwiser_jax.cli.sweep import axis, comparison, folder_name, varied
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError
from tests.inference.small import TINY, prepare, rows

SIGN = r"[+\N{MINUS SIGN}]"


def test_runs_are_made_and_compared(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without --cluster nothing of Ray is imported: here an import of it fails.
    for name in ("ray", "pwiser_jax.training.cluster"):
        monkeypatch.setitem(sys.modules, name, None)
    data = prepare(tmp_path, rows())
    command = ["sweep", f"--data.path={data}", f"--output={tmp_path / 'runs'}", *TINY]
    command += ["--loss.ranking=pwiser", "--over", "loss.lambdas=0,0.3", "--seeds=2"]
    assert main(command) == 0
    names = {path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != "."}
    assert names == {
        f"loss.lambdas={value},seed={seed}" for value in ("0", "0.3") for seed in (0, 1)
    }
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0].split()[:4] == ["loss.lambdas", "CTR", "CTCVR", "CVR"]
    assert lines[1].split()[0] == "0"
    assert re.search(rf"^0\.3 .*{SIGN}0\.\d{{4}} \[{SIGN}\d\.\d{{4}}, ", lines[2])
    # The same command again trains nothing and prints the same; a damaged evaluation is
    # made again.
    damaged = tmp_path / "runs" / "loss.lambdas=0.3,seed=1" / "evaluation_valid.json"
    damaged.write_text(damaged.read_text()[:40])
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == lines


def test_values_are_yaml_and_seeds_go_on_from_the_configs() -> None:
    assert axis("loss.lambdas=0,0.03") == ("loss.lambdas", [0, 0.03])
    assert axis("loss.lambdas={ctr: 0, ctcvr: 1},2")[1] == [{"ctr": 0, "ctcvr": 1}, 2]
    cell = (("optimizer.l2", "1e-3"), ("model.name", "ple"))
    config = varied(Config(), cell, 7)
    assert (config.optimizer.l2, config.model.name, config.train.seed) == (
        1e-3,
        "ple",
        7,
    )
    assert folder_name(cell, 7) == "optimizer.l2=1e-3,model.name=ple,seed=7"


@pytest.mark.parametrize(
    "text", ["loss.lambdas", "loss.lambdas=", "a=[", "a=1,1", "train.seed=1,2"]
)
def test_a_wrong_axis_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="--over"):
        axis(text)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("loss.lamdas", "did you mean"),
        ("los.x", "no option los"),
        ("data.path.x", "no"),
    ],
)
def test_an_unknown_option_is_one_sentence(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        varied(Config(), ((path, 1),), 0)


def test_the_table_is_paired_by_seed() -> None:
    base = [{"CTR": 0.7, "CVR": None}, {"CTR": 0.8, "CVR": 0.5}]
    better = [{"CTR": 0.71, "CVR": 0.6}, {"CTR": 0.81, "CVR": 0.6}]
    text = comparison({(("l", 0),): base, (("l", 1),): better})
    assert text.splitlines()[1].split() == ["0", "0.7500", "-"]
    # Both seeds gain 0.01, so that the interval has no width.
    assert "+0.0100 [+0.0100, +0.0100]" in text.splitlines()[2]
    assert text.splitlines()[2].split()[:3] == ["1", "0.7600", "0.6000"]


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    base, level = [{"CTR": 0.7}], [{"CTR": 0.699999}]
    text = comparison({(("l", 0),): base, (("l", 1),): level})
    assert text.splitlines()[2].split() == ["1", "0.7000", "0.0000"]
