"""`train --cluster --hosts` equals one process, whatever is killed meanwhile."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwiser_jax.cli import main
from pwiser_jax.training.cluster.hosts import _missing
from pwiser_jax.training.run.metrics import read_metrics
from tests.inference.small import TINY, prepare, rows
from tests.training.clusters import WAIT, add_node, run, start, started, wait_for

# Ray's own warnings, in the process that starts the cluster.
pytestmark = pytest.mark.filterwarnings("ignore")

LONG = ("--train.epochs=20", "--train.patience=20", "--train.checkpoint_every=5")


def command(data: Path, output: Path, *options: str) -> list[str]:
    given = ["--loss.ranking=pwiser", *TINY, "--train.log_every=1", *options]
    return ["train", f"--data.path={data}", f"--output={output}", *given]


def test_fewer_hosts_or_devices_than_asked_for_are_a_sentence() -> None:
    nodes = [{"Resources": {"CPU": 4.0, "GPU": 2.0}}, {"Resources": {"CPU": 7.0}}]
    assert _missing(nodes, 2, 4, 0) is None
    assert _missing(nodes, 1, 4, 2) is None
    said = _missing(nodes, 3, 4, 0)
    assert said is not None
    assert "--hosts is 3, each with 4 CPUs and 0 GPUs; 2 of the cluster's" in said
    said = _missing(nodes, 2, 1, 1)
    assert said is not None
    assert "--hosts is 2, each with 1 CPUs and 1 GPUs; 1 of the cluster's" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hosts=2"], "--hosts needs --cluster"),
        (["--cluster=auto", "--hosts=0"], "--hosts is 0; expected 1 or more"),
        (["--cluster=auto", "--gpus-per-host=-1"], "--gpus-per-host is -1; expected 0"),
        (["--cluster=auto", "--distributed=true"], "leave out --distributed"),
        (["--cluster=head"], "expected auto, local or the HOST:PORT"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, tmp_path / "run", *options)) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"), rows())


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and a node with one CPU each."""
    with started() as cluster:
        cluster.second = add_node(cluster)
        yield cluster


def on_hosts(cluster: Any, hosts: int) -> tuple[str, ...]:
    return f"--cluster={cluster.address}", f"--hosts={hosts}", *LONG


def begun(output: Path, driver: subprocess.Popen[str]) -> int:
    """The process that writes the run, when it has a checkpoint."""
    checkpoints = output / "checkpoints" / "last"
    wait_for(lambda: checkpoints.is_dir() and any(checkpoints.iterdir()), driver)
    return int((output / ".lock").read_text().split()[1])


def assert_equal_to_one_process(data: Path, output: Path) -> None:
    """As far as the rounding of sums over other numbers of devices goes."""
    alone = output.with_name("alone")
    assert main(command(data, alone, *LONG)) == 0
    ours, theirs = read_metrics(output), read_metrics(alone)
    losses = [
        [x["loss"] for x in run if x["kind"] == "train"] for run in (ours, theirs)
    ]
    assert len(losses[0]) == len(losses[1]) == 60
    np.testing.assert_allclose(losses[0][:20], losses[1][:20], rtol=1e-4)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
    aucs = [[x["auc"] for x in run if x["kind"] == "valid"] for run in (ours, theirs)]
    for got, expected in zip(*aucs, strict=True):
        assert got == pytest.approx(expected, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["process", "node"])
def test_all_go_on_from_the_checkpoint_where_one_is_lost(
    lost: str, data: Path, cluster: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = command(data, output, *on_hosts(cluster, 2))
    driver = start(words, tmp_path)
    process = begun(output, driver)
    if lost == "process":
        os.kill(process, signal.SIGKILL)
    else:
        cluster.remove_node(cluster.second, allow_graceful=False)
        add_node(cluster)
    assert driver.wait(WAIT) == 0, (tmp_path / "printed.txt").read_text()
    printed = (tmp_path / "printed.txt").read_text()
    assert printed.count("all go on from the last checkpoint") == 1, printed
    assert "best epoch" in printed
    assert_equal_to_one_process(data, output)


@pytest.mark.long
def test_ctrl_c_stops_with_a_checkpoint_and_the_command_goes_on(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = command(data, output, *on_hosts(cluster, 2))
    driver = start(words, tmp_path)
    begun(output, driver)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(WAIT) == 130
    printed = (tmp_path / "printed.txt").read_text()
    assert "with a checkpoint; run the same command" in printed.splitlines()[-1]
    code, printed = run(words, tmp_path)
    assert code == 0, printed
    assert_equal_to_one_process(data, output)


@pytest.mark.long
def test_what_cannot_train_is_one_sentence(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    def refused(hosts: int, *options: str) -> str:
        words = command(data, tmp_path / "run", *on_hosts(cluster, hosts), *options)
        code, printed = run(words, tmp_path)
        assert code == 2, printed
        return printed.splitlines()[-1]

    assert "--hosts is 3, each with 1 CPUs" in refused(3)
    assert "data.batch_size 127 cannot be shared" in refused(2, "--data.batch_size=127")
