"""Every command in README and docs: its options exist, and the quick start runs."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pwiser_jax import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
]
# Options that stand for a value of the reader's.
STAND_INS = {"HOST:PORT": "host:1234", "N": "1"}


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's code blocks, without their comments."""
    lines = re.findall(
        r"^(?: {4,}|`)?(pwiser [^`\n]+|python -m [^`\n]+)",
        page.read_text(),
        re.MULTILINE,
    )
    lines += re.findall(r"`((?:pwiser|python -m) [^`\n]+)`", page.read_text())
    split = [shlex.split(line, comments=True) for line in lines]
    return [[STAND_INS.get(word, word) for word in words] for words in split]


ALL = [(page, words) for page in PAGES for words in commands(page)]
PWISER = [(p, w[1:]) for p, w in ALL if w[0] == "pwiser"]
MODULES = [(p, w[2:]) for p, w in ALL if w[:2] == ["python", "-m"]]


def name(case: object) -> str:
    return case.name if isinstance(case, Path) else " ".join(map(str, case))[:60]


def test_there_are_commands():
    assert len(PWISER) >= 15
    assert len(MODULES) >= 5


@pytest.mark.parametrize(("page", "words"), PWISER, ids=name)
def test_a_command_of_ours_has_its_options(
    page: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The words parse; a command that is only mentioned has none."""
    monkeypatch.chdir(ROOT)
    given = cli.COMMANDS.__contains__
    assert words[0].startswith("-") or given(words[0]) or words[0].isupper()
    whole = any(word.startswith("--") for word in words)
    shown = {"--help", "--version"} & set(words)
    upper = [word for word in words if word == "CONFIG"]
    if not whole or shown or upper:
        return
    parser = cli.parser(words)
    try:
        parser.parse(words)
    except SystemExit:
        pytest.fail(f"{page.name}: pwiser {' '.join(words)}")


@pytest.mark.parametrize(("page", "words"), MODULES, ids=name)
def test_a_module_has_its_options(page: Path, words: list[str]):
    del page
    module, *rest = words
    assert importlib.util.find_spec(module) is not None
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    if not options:
        return
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if rest and not rest[0].startswith("-"):  # a subcommand
        shown = subprocess.run(
            [sys.executable, "-m", module, rest[0], "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    shown = shown.replace("_", "-")
    assert [o for o in options if o.replace("_", "-") not in shown] == []


@pytest.mark.long
def test_the_quick_start_runs(tmp_path: Path):
    """The commands of docs/quickstart.md, in their order, in a folder of its own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in commands(ROOT / "docs" / "quickstart.md"):
        if words[0] != "pwiser" or not any(w.startswith("--") for w in words):
            continue
        done = subprocess.run(
            [sys.executable, "-m", "pwiser_jax", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "predictions.csv").exists()
