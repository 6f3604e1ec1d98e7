"""Any command line and configuration gives a result or a one-sentence error.

No traceback, exit code 0 or 2, and nothing half-written.
"""

import contextlib
import io
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwiser_jax.cli import COMMANDS, main
from pwiser_jax.cli import parser as cli_parser
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError

VALUES = (
    *("", "null", "nan", "inf", "-1", "0", "1", "1e30", "1.5", "true", "[]", "{}"),
    *("99999999999999999999", "[1]", "{a: 1}", "{a: [", "a b", "x[1]", "[/red]"),
    *("%s", "é", "$x", "nowhere", ".", "broken", "empty", "file.csv", "--", "-"),
)
TREES = (
    *(None, True, -1, 0, 1, 0.5, 1e30, float("nan"), float("inf"), 10**400, 2**31),
    *("", "a", "1e-3", "none", [], [1], [[1]], {}, {"a": None}, {"a": 1}, {1: 2}),
)
# Without their sources these end before any work; `synthetic` has none.
STARTS = (
    *([name] for name in COMMANDS),
    *(["prepare", name] for name in ("table", "kuairand", "aliexpress", "aliccp")),
)
QUICK = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LONG = settings(QUICK, max_examples=2_000)


def spellings(start: list[str]) -> list[str]:
    """The options of a command as help writes them, and misspelt ones."""
    known = [
        name
        for action in cli_parser(start).all_actions()
        for name in action.option_strings
        if name.startswith("--") and name != "--version"
    ]
    return [
        *known,
        *(name.replace("_", "-") for name in known),
        *(n[:-1] for n in known),
    ]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    start = draw(st.sampled_from(STARTS))
    names = st.sampled_from(spellings(start))
    words = list(start)
    for _ in range(draw(st.integers(0, 5))):
        name, value = draw(names), draw(st.sampled_from(VALUES))
        words += draw(
            st.sampled_from([[f"{name}={value}"], [name, value], [name], [value]])
        )
    return words


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a broken run, an empty folder and a small table."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("model: [")
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    (tmp_path / "file.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_command_line(place: Path, words: list[str]) -> None:
    before = sorted(place.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    text = err.getvalue().strip()
    assert code in (0, 2), (words, code, text)
    if code == 2:
        assert text.startswith("pwiser: error: "), (words, text)
        assert len(text.splitlines()) == 1, (words, text)
    assert not re.search(r"Traceback|typing\.|<class '", text), (words, text)
    new = set(place.rglob("*")) - set(before)
    if code == 0 and words[0] == "schema":  # from the small table into any name
        for path in new:
            path.unlink()
    assert sorted(place.rglob("*")) == before, words


def check_tree(path: tuple[str, ...], value: Any) -> None:
    tree: Any = value
    for name in reversed(path):
        tree = {name: tree}
    try:
        config = Config.from_dict(tree)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert Config.from_dict(config.to_dict()) == config
    assert not re.search(r"typing\.|<class '", message), (tree, message)


def options(kind: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every section and option of the configuration."""
    found = []
    for field in fields(kind):
        here = (*path, field.name)
        found.append(here)
        default = getattr(kind() if isinstance(kind, type) else kind, field.name)
        if is_dataclass(default):
            found += options(default, here)
    return found


@QUICK
@given(words=command_lines())
def test_any_command_line(place: Path, words: list[str]) -> None:
    check_command_line(place, words)


@pytest.mark.long
@LONG
@given(words=command_lines())
def test_any_command_line_many_times(place: Path, words: list[str]) -> None:
    check_command_line(place, words)


@pytest.mark.parametrize("path", options(Config), ids=".".join)
def test_any_value_of_any_option(path: tuple[str, ...]) -> None:
    for value in TREES:
        check_tree(path, value)


PAIRS = st.lists(
    st.tuples(st.sampled_from(options(Config)), st.sampled_from(TREES)), max_size=4
)


@pytest.mark.long
@LONG
@given(pairs=PAIRS)
def test_any_values_of_several_options(
    pairs: list[tuple[tuple[str, ...], Any]],
) -> None:
    tree: dict[str, Any] = {}
    for (section, *rest), value in pairs:
        if rest and isinstance(tree.setdefault(section, {}), dict):
            tree[section][rest[0]] = value
        else:
            tree[section] = value
    check_tree((), tree)
