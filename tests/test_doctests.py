"""The doctests of all modules pass."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pwiser_jax

ROOT = Path(pwiser_jax.__file__).parent


def _examples(path):
    """How many example lines a file has."""
    return len(re.findall(r"^ *>>> ", path.read_text(), re.MULTILINE))


def _modules():
    """Names of the package's modules, with their files."""
    prefix = pwiser_jax.__name__ + "."
    for module in pkgutil.walk_packages([str(ROOT)], prefix):
        path = ROOT.joinpath(*module.name.split(".")[1:])
        yield module.name, path / "__init__.py" if module.ispkg else f"{path}.py"


MODULES = {name: Path(path) for name, path in _modules()}
WITH_EXAMPLES = [name for name, path in MODULES.items() if _examples(path)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_every_example_of_a_module(name):
    """doctest skips what it does not take for a function; the count shows it."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted == _examples(MODULES[name])


def test_no_file_with_examples_is_missing():
    files = {path for path in ROOT.rglob("*.py") if _examples(path)}
    assert files == {MODULES[name] for name in WITH_EXAMPLES}
    assert len(files) >= 9
