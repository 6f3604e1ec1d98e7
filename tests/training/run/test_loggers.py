"""`--logger`: the scalars of metrics.jsonl go to MLflow or Weights & Biases."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pwiser_jax.cli import main
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.loggers import LoggerWarning
from pwiser_jax.training.run.metrics import read_metrics
from tests.training.helpers import small_config

WRITES = """
import sys
from pathlib import Path
from pwiser_jax.training.run.loggers import TensorBoard

board = TensorBoard(Path(sys.argv[1]), 0)
board.log(1, {"train/loss": 0.5})
board.close(True)
print("torch" in sys.modules)
import torch
print(torch.Tensor)
"""


def test_tensorboard_does_not_load_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("Tensor = 'a tensor'")
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["False", "a tensor"]
    assert list((tmp_path / "tensorboard").iterdir())


class Server:
    """What a tracking server would hold: of each run its options, scalars and ends."""

    def __init__(self) -> None:
        self.options: dict[str, dict[str, Any]] = {}
        self.scalars: dict[str, dict[tuple[str, int], float]] = {}
        self.ends: list[tuple[str, Any]] = []
        self.down = False

    def start(self, run: str | None, options: dict[str, Any]) -> str:
        self.refuse()
        run = run or f"run{len(self.options)}"
        self.options.setdefault(run, options)
        self.scalars.setdefault(run, {})
        return run

    def log(self, run: str, step: int, values: dict[str, float]) -> None:
        self.refuse()
        self.scalars[run] |= {(tag, step): value for tag, value in values.items()}

    def refuse(self) -> None:
        if self.down:
            raise RuntimeError("no answer\nfrom the server")


def fake_mlflow(server: Server, modules: dict[str, Any]) -> None:
    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return name

        def create_run(self, experiment: str, run_name: str) -> Any:
            assert (experiment, run_name) == ("pwiser_jax", "run")
            return SimpleNamespace(info=SimpleNamespace(run_id=server.start(None, {})))

        def update_run(self, run: str, status: str) -> None:
            server.start(run, {})

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            server.options[run] |= dict(params)
            for tag, value, _, step in metrics:
                server.log(run, step, {tag: value})

        def set_terminated(self, run: str, status: str) -> None:
            server.ends.append((run, status == "FINISHED"))

    def tuple_of(*values: Any) -> tuple[Any, ...]:
        return values

    modules["mlflow"] = ModuleType("mlflow")
    entities, tracking = ModuleType("mlflow.entities"), ModuleType("mlflow.tracking")
    vars(entities).update(Metric=tuple_of, Param=tuple_of)
    vars(tracking).update(MlflowClient=Client)
    modules["mlflow.entities"], modules["mlflow.tracking"] = entities, tracking


def fake_wandb(server: Server, modules: dict[str, Any]) -> None:
    class Run:
        def __init__(self, **given: Any) -> None:
            assert (given["project"], given["name"]) == ("pwiser_jax", "run")
            self.id = server.start(given["id"], given["config"])

        def log(self, values: dict[str, float], step: int) -> None:
            server.log(self.id, step, values)

        def finish(self, exit_code: int) -> None:
            server.ends.append((self.id, exit_code == 0))

    modules["wandb"] = ModuleType("wandb")
    vars(modules["wandb"]).update(init=Run, Settings=dict)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=6_000, seed=3)
    return folder


@pytest.fixture(params=[fake_mlflow, fake_wandb], ids=["mlflow", "wandb"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    held, modules = Server(), {}
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    request.param(held, modules)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return held


def logger_name() -> str:
    """The one whose package the fixture `server` stands in for."""
    return "wandb" if "wandb" in sys.modules else "mlflow"


def expected(run: Path) -> dict[tuple[str, int], float]:
    """The scalars of metrics.jsonl by tag and step."""
    tags = {}
    for line in read_metrics(run, timing=True):
        kind, step = line.pop("kind"), line.pop("step")
        for name, value in line.items():
            for key, number in (
                value.items() if isinstance(value, dict) else [("", value)]
            ):
                if isinstance(number, int | float):
                    tag = "/".join(part for part in (kind, name, key) if part)
                    tags[tag, step] = number
    return tags


def test_a_resumed_run_goes_on_with_the_same_scalars(
    data: Path, tmp_path: Path, server: Server
) -> None:
    name, config, run = logger_name(), small_config(data), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, run, stop_after=7, logger=name)
    train(config, run, logger=name)
    assert server.ends == [("run0", False), ("run0", True)]
    (scalars,) = server.scalars.values()
    written = expected(run)
    if name == "mlflow":  # which allows no ">"
        written = {(t.replace(">", "_over_"), s): v for (t, s), v in written.items()}
    assert len(written) > 20
    # A call times its own steps, so the timings of the first may be written again.
    assert scalars.keys() >= written.keys()
    assert {k: scalars[k] for k in written} == written
    assert str(server.options["run0"]["loss.ranking"]) == config.loss.ranking
    assert not (run / "tensorboard").exists()


def test_a_server_that_fails_costs_its_scalars_only(
    data: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, config, run = logger_name(), small_config(data), tmp_path / "run"
    server.down = True
    with pytest.raises(UserError, match=f"^--logger {name}: no answer$"):
        train(config, run, logger=name)
    server.down = False
    monkeypatch.setattr(Server, "log", lambda *_: 1 / 0)
    with pytest.warns(LoggerWarning, match="division by zero; .* goes on") as warned:
        result = train(config, run, logger=name)
    assert len(warned) == 1
    assert result.stopped == "epochs"
    assert read_metrics(run)[-1]["kind"] == "valid"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_one_sentence(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    given = [f"--logger={name}", f"--output={tmp_path / 'run'}", "--data.path=nowhere"]
    assert main(["train", *given]) == 2
    assert capsys.readouterr().err == (
        f"pwiser: error: --logger {name} needs {name}, which is not installed: "
        f"pip install 'pwiser-jax[{name}]'\n"
    )
    assert not (tmp_path / "run").exists()
