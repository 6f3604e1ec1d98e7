"""A study on a Ray cluster equals itself without Ray, whatever is killed meanwhile.

The long tests start a cluster of two nodes on 127.0.0.1, and `pwiser sweep` as a user
does, in a process of its own.
"""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pwiser_jax
from pwiser_jax.atomic import locked
from pwiser_jax.cli import main
from pwiser_jax.errors import UserError
from pwiser_jax.training.cluster.connect import compare
from pwiser_jax.training.cluster.study import slots_of
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.study import PLAN
from tests.inference.small import TINY, prepare, rows
from tests.training.clusters import WAIT, add_node, run, start, started, wait_for

# Ray's own warnings, in the process that starts the cluster.
pytestmark = pytest.mark.filterwarnings("ignore")

OVER = ("--over", "loss.lambdas=0.1,0.3", "--seeds=2", "--part-size=2")
LONG = ("--train.epochs=80", "--train.patience=80", "--train.checkpoint_every=5")


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command(tmp_path, tmp_path / "runs", "local")) == 2
    assert "pip install 'pwiser-jax[cluster]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--part-size=0", "--part-size is 0; expected 1 or more"),
        ("--gpus-per-part=-1", "--gpus-per-part is -1; expected 0 or more"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(tmp_path, tmp_path / "runs", "local"), option]) == 2
    assert said in capsys.readouterr().err


def test_a_node_with_another_version_or_other_data_is_refused() -> None:
    ours = {"versions": {"pwiser-jax": "2.0"}, "data": {"/data": "abc"}}
    compare("node", ours, ours)
    with pytest.raises(UserError, match=r"node has pwiser-jax 1\.0.* has 2\.0: "):
        compare("node", ours, {**ours, "versions": {"pwiser-jax": "1.0"}})
    with pytest.raises(UserError, match=r"other data \(def\) in /data.* has abc: "):
        compare("node", ours, {**ours, "data": {"/data": "def"}})
    with pytest.raises(UserError, match="no data in /data"):
        compare("node", ours, {**ours, "data": {"/data": None}})


def test_parts_that_fit_no_node_are_refused() -> None:
    nodes = [{"Resources": {"CPU": 4.0, "GPU": 2.0}}, {"Resources": {"CPU": 7.0}}]
    assert slots_of(nodes, 2, 0) == 5
    assert slots_of(nodes, 1, 1) == 2
    with pytest.raises(UserError, match=r"needs 8 CPUs .* at most 7 CPUs and 2 GPUs"):
        slots_of(nodes, 8, 0)


def test_no_cluster_at_the_address_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:  # bound, but nothing listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert main(command(tmp_path, tmp_path / "runs", f"127.0.0.1:{port}")) == 2
    assert "there is no cluster" in capsys.readouterr().err
    assert main(command(tmp_path, tmp_path / "runs", "ray://head:1")) == 2
    assert "expected auto, local or the HOST:PORT" in capsys.readouterr().err


@pytest.mark.long
def test_what_does_not_answer_as_a_cluster_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, printed = run(command(tmp_path, tmp_path / "runs", address), tmp_path)
    assert code == 2
    # Ray's own warnings come before.
    assert printed.splitlines()[-1] == (
        f"pwiser: error: --cluster {address}: there is no cluster (no answer in 20 s; "
        "one that asks for a token needs RAY_AUTH_MODE=token and its ~/.ray/auth_token "
        "here)"
    )


def command(data: Path, output: Path, cluster: str | None, *options: str) -> list[str]:
    where = [] if cluster is None else [f"--cluster={cluster}"]
    given = ["--loss.ranking=pwiser", *TINY, *OVER, *options]
    return ["sweep", f"--data.path={data}", f"--output={output}", *where, *given]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"), rows())


@pytest.fixture
def cluster() -> Iterator[Any]:
    with started() as cluster:
        yield cluster


def training(output: Path) -> list[int]:
    """The processes of parts that have a checkpoint, one a part."""
    processes = set()
    for plan in output.glob(".sweeps/*/checkpoints/last/*/../../../sweep.json"):
        del plan
        processes |= {
            int(lock.read_text().split()[1])
            for lock in output.glob("*/.lock")
            if lock.exists() and lock.read_text().strip()
        }
    return sorted(processes)


def results(output: Path) -> dict[str, int]:
    """When each finished run was finished: once only."""
    files = output.glob("*/result.json")
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


def assert_equal_without_ray(data: Path, output: Path, *options: str) -> None:
    """The runs are those of the same plan, trained one part after the other."""
    alone = output.with_name("alone")
    alone.mkdir()
    shutil.copyfile(output / PLAN, alone / PLAN)
    assert main(command(data, alone, None, *options)) == 0
    runs = sorted(path.name for path in alone.iterdir() if path.name[0] != ".")
    assert len(runs) == 4
    for name in runs:
        for file in ("config.yaml", "result.json", "evaluation_valid.json"):
            ours, theirs = (folder / name / file for folder in (output, alone))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)
        assert read_metrics(output / name) == read_metrics(alone / name)


def test_a_study_on_this_machine_equals_itself_without_ray(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    words = command(data, tmp_path / "runs", "local", "--part-size=4")
    code, printed = run(words, tmp_path)
    assert code == 0, printed
    assert "4 of 4 runs done, 0 running, 0 failed" in printed
    assert_equal_without_ray(data, tmp_path / "runs")


@pytest.mark.long
def test_a_study_on_two_nodes_equals_itself_without_ray(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    add_node(cluster)
    words = command(data, tmp_path / "runs", cluster.address)
    code, printed = run(words, tmp_path)
    assert code == 0, printed
    assert "4 of 4 runs done, 0 running, 0 failed" in printed
    assert_equal_without_ray(data, tmp_path / "runs")
    # The same command again trains nothing and prints the same table.
    code, again = run(words, tmp_path)
    assert code == 0
    assert again.splitlines()[-3:] == printed.splitlines()[-3:]


@pytest.mark.long
@pytest.mark.parametrize("lost", ["worker", "node"])
def test_a_lost_process_or_node_loses_no_run(
    lost: str, data: Path, cluster: Any, tmp_path: Path
) -> None:
    node = add_node(cluster)
    output = tmp_path / "runs"
    driver = start(command(data, output, cluster.address, *LONG), tmp_path)
    processes = wait_for(lambda: training(output), driver)
    if lost == "worker":
        os.kill(processes[0], signal.SIGKILL)
    else:
        cluster.remove_node(node, allow_graceful=False)
    assert driver.wait(WAIT) == 0, (tmp_path / "printed.txt").read_text()
    assert_equal_without_ray(data, output, *LONG)


SITE = """
import os, resource, sys, time
if any("default_worker" in word for word in sys.orig_argv):
    if os.environ["SHARED"] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    else:
        at_once = os.rename
        os.rename = lambda *names, **more: time.sleep(0.3) or at_once(*names, **more)
"""


@pytest.mark.long
def test_a_full_and_a_slow_folder_lose_no_run(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    path = f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}"
    output, options = tmp_path / "runs", [*LONG, "--model.expert=[512]"]
    words = command(data, output, cluster.address, *options)
    # One part's node cannot write its checkpoint: that part fails.
    node = add_node(cluster, env_vars={"PYTHONPATH": path, "SHARED": "full"})
    code, printed = run(words, tmp_path)
    assert code == 2, printed
    assert "2 of 4 runs failed, the others are finished" in printed
    assert "cannot be written: File too large" in printed
    finished = results(output)
    assert len(finished) == 2
    cluster.remove_node(node)
    # The part that failed trains on the slow node: the head has one CPU.
    add_node(cluster, cpus=2, env_vars={"PYTHONPATH": path, "SHARED": "slow"})
    code, printed = run([*words, "--cpus-per-part=2"], tmp_path)
    assert code == 0, printed
    assert results(output).items() >= finished.items()
    assert_equal_without_ray(data, output, *options)


@pytest.mark.long
def test_a_lost_head_is_a_sentence_and_a_new_cluster_goes_on(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    options = [*LONG, "--part-size=1"]
    with started() as cluster:
        add_node(cluster)
        address = cluster.address
        driver = start(command(data, output, address, *options), tmp_path)
        wait_for(lambda: results(output), driver)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        assert driver.wait(WAIT) == 1
        printed = (tmp_path / "printed.txt").read_text()
        assert f"the head of the cluster, {address}, was lost" in printed
    finished = results(output)
    assert 1 <= len(finished) < 4
    with started() as cluster:
        add_node(cluster)
        code, printed = run(command(data, output, cluster.address, *options), tmp_path)
    assert code == 0, printed
    assert results(output).items() >= finished.items()
    assert_equal_without_ray(data, output, *options)


@pytest.mark.long
def test_ctrl_c_stops_all_with_checkpoints_and_the_command_goes_on(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    add_node(cluster)
    output = tmp_path / "runs"
    words = command(data, output, cluster.address, *LONG)
    driver = start(words, tmp_path)
    wait_for(lambda: training(output), driver)
    # Another command with the same output is refused.
    (tmp_path / "second").mkdir()
    code, printed = run(words, tmp_path / "second")
    assert code == 2
    assert f"{output} is in use: process {driver.pid} on" in printed
    driver.send_signal(signal.SIGINT)
    assert driver.wait(WAIT) == 130
    printed = (tmp_path / "printed.txt").read_text()
    assert "stopped with checkpoints, " in printed.splitlines()[-1], printed
    assert "4 of 4 runs done" not in printed
    code, printed = run(words, tmp_path)
    assert code == 0, printed
    assert_equal_without_ray(data, output, *LONG)


@pytest.mark.long
def test_a_run_that_fails_is_named_and_the_others_finish(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    options = ["--over", "optimizer.learning_rate=1e-3,1e30", "--model.dropout=0"]
    words = command(data, tmp_path / "runs", cluster.address, *options)
    code, printed = run(words, tmp_path)
    assert code == 2
    assert "2 of 4 runs failed, the others are finished" in printed
    assert "2 of 4 runs done, 0 running, 2 failed" in printed
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2


@pytest.mark.long
def test_a_cluster_that_does_not_fit_is_one_sentence(
    data: Path, cluster: Any, tmp_path: Path
) -> None:
    address, output = cluster.address, tmp_path / "runs"
    output.mkdir()

    def refused(words: list[str]) -> str:
        code, printed = run(words, tmp_path)
        assert code == 2, printed
        assert len(printed.splitlines()) == 1
        return printed

    said = refused([*command(data, output, address), "--cpus-per-part=2"])
    assert "a part needs 2 CPUs and 0 GPUs on one node" in said
    # Each process has its own /proc/self: a path that nodes do not share.
    said = refused(command(data, Path("/proc/self/cwd/runs"), address))
    assert "is not the same folder on the cluster's node" in said
    # Another command has the same output.
    with locked(output, "running a sweep"):
        said = refused(command(data, output, address))
    assert f"{output} is in use: process {os.getpid()} on" in said
    # A node with another version of the package.
    package = Path(pwiser_jax.__file__).parent
    shutil.copytree(package, tmp_path / "old" / "pwiser_jax")
    (tmp_path / "old/pwiser_jax/version.py").write_text('__version__ = "0.0.1"\n')
    add_node(cluster, env_vars={"PYTHONPATH": str(tmp_path / "old")})
    said = refused(command(data, output, address))
    assert f"has pwiser-jax 0.0.1, this machine has {pwiser_jax.__version__}" in said
