"""The project's own files agree with each other."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_are_those_of_the_extra_train():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line.split("#")[0].strip() for line in lines]
    assert [line for line in listed if line] == project()["optional-dependencies"][
        "train"
    ]


def test_the_lock_holds_each_package_that_is_asked_for():
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    extras = project()["optional-dependencies"]
    asked = [*project()["dependencies"], *extras["train"], *extras["test"]]
    asked += extras["cluster"]
    names = {re.split(r"[\[>=<]", line)[0].lower() for line in asked}
    assert names <= locked


def test_the_citation_names_the_version_of_the_package():
    version: dict = {}
    exec((ROOT / "pwiser_jax" / "version.py").read_text(), version)
    assert f"version: {version['__version__']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_notebook_is_its_text_form():
    text = (ROOT / "docs" / "tutorial.md").read_text()
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert all(source in text for source in sources)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == text.count("```{code-cell}")
    assert not any(cell["outputs"] for cell in code)
