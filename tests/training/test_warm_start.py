"""Warm starts on newer rows: old ids keep what they learned, new ones begin afresh."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
import yaml

from pwiser_jax.cli import main
from pwiser_jax.config import Config, OptimizerConfig
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import SourceFile, read_manifest, write_manifest
from pwiser_jax.inference.load import load_best
from pwiser_jax.inference.predict import predict
from pwiser_jax.models.layout import layout
from pwiser_jax.schema import CategoricalField, MultiValuedField, NumericalField, Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.stacked import Stacked
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.run.folder import run_config
from pwiser_jax.training.state import new_state
from pwiser_jax.training.step import TrainState, state_shapes, step_spec
from pwiser_jax.training.warm_start import carried, warm_started
from tests.inference import small
from tests.training.helpers import SMALL

ROOT = Path(__file__).resolve().parents[2]


def day(seed: int, first_item: int) -> pl.DataFrame:
    """A day's rows; items are `first_item` to `first_item + 19`."""
    item = pl.col("item").str.strip_prefix("item ").cast(pl.Int64) + first_item
    frame = small.rows(600, seed)
    return frame.with_columns(pl.format("item {}", item), price=pl.col("price") + seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/day1 and runs/day1, and the rows of the next day."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "data").mkdir()
    small.prepare(folder, day(0, 0), name="data/day1")
    (folder / "schema.yaml").rename(folder / "clicks.yaml")
    small.train(folder / "data/day1", folder / "runs/day1")
    day(1, 5).write_csv(folder / "day2.csv")
    return folder


def nightly() -> list[list[str]]:
    """The two commands of docs/running.md."""
    lines = (ROOT / "docs" / "running.md").read_text().splitlines()
    own = [line for line in lines if line.startswith("    pwiser")]
    words = [shlex.split(line)[1:] for line in own]
    return [each for each in words if {"--extend", "--warm-start"} & {*each}]


def test_a_nightly_update_is_two_commands(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    prepare, train = nightly()
    assert main(prepare) == 0
    old, new = Prepared(Path("runs/day1/data")), Prepared(Path("data/day2"))
    for field, grown in zip(
        old.schema.categorical, new.schema.categorical, strict=True
    ):
        known, values = (p.encoder.values[field.name] for p in (old, new))
        assert values[: field.size].to_list() == known[: field.size].to_list()
        assert grown.size == field.size + (5 if field.name == "item" else 0)
    assert new.schema.numerical == old.schema.numerical
    assert new.manifest.fill == old.manifest.fill
    assert new.manifest.options["extend"] == "day1"
    assert main(train) == 0
    assert predict("runs/day2", "day2.csv").height == 600


def test_ali_ccp_cannot_extend(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "aliccp", "--source=raw", "--output=out", "--extend=run"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said == "pwiser: error: there is no option --extend\n"


def test_a_run_with_lazy_sharded_tables_starts_warm(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    options = (
        "--optimizer.embedding=lazy_adam",
        "--optimizer.shard_tables=true",
        "--model.small_rows=0",
    )
    data, before = runs / "data/day1", tmp_path / "before"
    small.train(data, before, *options)
    small.train(data, tmp_path / "warm", *options, f"--warm-start={before}")
    config = run_config(tmp_path / "warm")
    assert config.warm_start == str(before)
    spec = step_spec(config, Prepared(data).schema, objective_of(config))
    fresh = jax.device_get(new_state(spec, 5))
    best = load_best(before, run_config(before), Prepared(data).schema)
    same(warm_started(config, fresh), best._replace(step=np.zeros((), np.int32)))
    last = load_best(tmp_path / "warm", config, Prepared(data).schema)
    count = adam_count(best)
    assert adam_count(last) == count + int(last.step) > int(last.step)


def objective_of(config: Config) -> objectives.Objective:
    labels = ("click", "conversion")
    return objectives.build(config.loss, labels, config.model.cvr_space)[0]


def adam_count(state: TrainState) -> int:
    return next(
        int(leaf)
        for path, leaf in jax.tree.leaves_with_path(state.optimizer)
        if jax.tree_util.keystr(path).endswith(".count")
    )


def same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def permuted(folder: Path, output: Path) -> None:
    """The prepared folder with the ids of each field in another order."""
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("cache"))
    manifest, rng = read_manifest(folder), np.random.default_rng(0)
    table = pl.read_parquet(folder / "vocabulary.parquet")
    parts = []
    for field in manifest.schema.categorical:
        order = rng.permutation(field.size)  # new id -> old id
        new = np.concatenate([np.argsort(order), np.arange(field.size, field.rows)])
        part = table.filter(field=field.name)
        ids = pl.Series("id", new[part["id"]], pl.Int32)
        parts.append(part.with_columns(ids).sort("id"))
        for name in manifest.files_named:
            rows = pl.read_parquet(output / name)
            moved = pl.Series(field.name, new[rows[field.name]], pl.Int32)
            rows.with_columns(moved).write_parquet(output / name)
    pl.concat(parts).write_parquet(output / "vocabulary.parquet")
    digest = SourceFile.of(output / "vocabulary.parquet").sha256
    write_manifest(output, replace(manifest, vocabulary_sha256=digest))


def test_permuted_ids_get_the_same_predictions(runs: Path, tmp_path: Path) -> None:
    run, other = runs / "runs/day1", tmp_path / "permuted"
    permuted(runs / "data/day1", other)
    before, schema = run_config(run), Prepared(other).schema
    config = replace(
        before, data=replace(before.data, path=str(other)), warm_start=str(run)
    )
    spec = step_spec(config, schema, objective_of(config))
    state = warm_started(config, jax.device_get(new_state(spec, 7)))
    best = load_best(run, before, Prepared(runs / "data/day1").schema)
    rows, same_rows = (
        Prepared(folder).load("test") for folder in (other, runs / "data/day1")
    )
    assert (np.asarray(rows.categorical) != np.asarray(same_rows.categorical)).any()
    same(
        predict_logits(config, schema, state, rows),
        predict_logits(before, schema, best, same_rows),
    )


def test_the_runs_of_a_sweep_start_warm(runs: Path) -> None:
    run, data = runs / "runs/day1", Prepared(runs / "data/day1")
    config = replace(run_config(run), warm_start=str(run))
    configs = [config, replace(config, train=replace(config.train, seed=1))]
    built = [
        objectives.build(each.loss, data.schema.labels, each.model.cvr_space)
        for each in configs
    ]
    union, weights = objectives.union(built)
    rows = data.load("train")
    states = Stacked(configs, data.schema, union, weights, rows, 3).initial()
    best = load_best(run, run_config(run), data.schema)
    best = best._replace(step=np.zeros((), np.int32))
    for at in range(2):
        same(jax.tree.map(lambda leaf, at=at: leaf[at], states), best)


FIELDS = Schema(
    (CategoricalField("user", 6), CategoricalField("item", 12)),
    (NumericalField("price"),),
    multi_valued=(MultiValuedField("tags", 8, width=2),),
)


@pytest.mark.parametrize("embedding", ["adam", "lazy_adam", "rowwise_adagrad"])
@pytest.mark.parametrize("name", ["shared_bottom", "single_task"])
def test_rows_are_carried_by_field_and_new_rows_are_fresh(
    embedding: Any, name: str
) -> None:
    """ "user" stays in the small table, "item" moves from there into the large one."""
    model = replace(SMALL, name=name, small_rows=16, wide=True)
    grown = replace(
        FIELDS,
        categorical=(CategoricalField("user", 9), CategoricalField("item", 15)),
        multi_valued=(MultiValuedField("tags", 10, width=3),),
    )
    config = Config(model=model, optimizer=OptimizerConfig(embedding=embedding))
    specs = [
        step_spec(config, schema, objective_of(config)) for schema in (FIELDS, grown)
    ]
    rng = np.random.default_rng(1)

    def drawn_as(leaf: Any) -> np.ndarray:
        return np.asarray(9 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    def zeros(leaf: Any) -> np.ndarray:
        return np.zeros(leaf.shape, leaf.dtype)

    old, fresh = (jax.tree.map(drawn_as, state_shapes(spec)) for spec in specs)
    fresh = fresh._replace(optimizer=jax.tree.map(zeros, fresh.optimizer))
    rows = {}
    for field, new in zip(FIELDS.embedded, grown.embedded, strict=True):
        ids = rng.permutation([*range(field.size), *[-1] * (new.size - field.size)])
        rows[field.name] = np.array([*ids, *range(field.size, field.rows)])
    tables = [layout(model, schema) for schema in (FIELDS, grown)]
    assert tables[0].is_small(FIELDS.categorical[1])
    assert not tables[1].is_small(grown.categorical[1])
    state = carried(old, tables[0], fresh, tables[1], rows)

    same(state.batch_stats, old.batch_stats)
    assert (int(state.step), adam_count(state)) == (0, adam_count(old))
    embeddings = [n for n, tree in fresh.params.items() if "large" in tree]
    assert len(embeddings) == (3 if name == "single_task" else 2)
    for n, tree in old.params.items():
        if n not in embeddings:
            same(state.params[n], tree)
    for n in embeddings:
        same(state.params[n]["numerical"], old.params[n]["numerical"])
        for at, field in enumerate(FIELDS.embedded):
            then, drawn, now = (
                of_field(s.params[n], table, field.name)
                for s, table in (
                    (old, tables[0]),
                    (fresh, tables[1]),
                    (state, tables[1]),
                )
            )
            source = rows[field.name]
            same(now[source >= 0], then[source[source >= 0]])
            same(now[source < 0], drawn[source < 0])
            assert len(now) == grown.embedded[at].rows
        if embedding != "adam":
            moments = state.optimizer.tables[n][0]
            before = old.optimizer.tables[n][0]
            source = rows["tags"]
            now = moments[tables[1].places["tags"] :]
            then = before[tables[0].places["tags"] :]
            same(now[source >= 0], then[source[source >= 0]])
            assert not now[source < 0].any()
            # Of "item", whose moments the other optimizer had.
            assert not moments[: tables[1].places["tags"]].any()
        else:
            moments, before = state.optimizer[1].nu[n], old.optimizer[1].nu[n]
            source = rows["item"]
            now = of_field(moments, tables[1], "item")
            then = of_field(before, tables[0], "item")
            same(now[source >= 0], then[source[source >= 0]])
            assert not now[source < 0].any()


def of_field(params: Any, tables: Any, name: str) -> np.ndarray:
    """The rows of a field in an embedding's tables."""
    field = next(f for f in tables.schema.embedded if f.name == name)
    table = params["small" if tables.is_small(field) else "large"]
    start = tables.places[name]
    return table[start : start + field.rows]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--warm-start=nowhere"], "nowhere: no such folder"),
        (["--warm-start=data"], "data holds no run: config.yaml is missing"),
        (["--model.expert=[4]"], "has model.expert"),
        (["--optimizer.embedding=lazy_adam"], "has optimizer.embedding adam"),
        (["--data.path=data/anew"], "--extend runs/day1"),
        (["--data.path=data/fewer"], "another list of fields"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_a_folder_is_made(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(runs)
    schema = yaml.safe_load(Path("clicks.yaml").read_text())
    for name in ("anew", "fewer"):
        if name == "fewer":
            schema["categorical"] = ["user"]
        Path("fewer.yaml").write_text(yaml.safe_dump(schema))
        if not Path("data", name).exists():
            prepare = ["prepare", "table", "--source=day2.csv", "--schema=fewer.yaml"]
            assert main([*prepare, f"--output=data/{name}"]) == 0
    capsys.readouterr()
    command = ["train", "--config=runs/day1/config.yaml", "--data.path=data/day1"]
    command += ["--warm-start=runs/day1", "--output=runs/refused", *options]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize(
    ("schema", "run", "said"),
    [
        ({"numerical": []}, "runs/day1", "with numerical ('price',), not ()"),
        ({}, "data/day1", "data/day1 holds no run: data/manifest.json is missing"),
    ],
)
def test_rows_with_other_columns_do_not_extend_a_run(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    schema: dict[str, Any],
    run: str,
    said: str,
) -> None:
    monkeypatch.chdir(runs)
    Path("other.yaml").write_text(yaml.safe_dump({**small.SCHEMA, **schema}))
    command = ["prepare", "table", "--source=day2.csv", "--schema=other.yaml"]
    assert main([*command, "--output=data/other", f"--extend={run}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("data/other").exists()


def test_the_same_folder_is_refused_for_another_start(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    command = ["train", "--config=runs/day1/config.yaml", "--output=runs/day1"]
    assert main([*command, "--warm-start=runs/day1"]) == 2
    assert "holds a run with warm_start None, not runs/day1" in capsys.readouterr().err
    assert "warm_start" in json.dumps(run_config(Path("runs/day1")).to_dict())
