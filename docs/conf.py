"""Sphinx: `make docs` builds docs/ into build/docs, without a network."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pwiser_jax.version import __version__  # noqa: E402

project = "pwiser_jax"
author = "the pwiser_jax authors"
copyright = "2026, the pwiser_jax authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["tutorial.md"]  # the notebook's text form
html_theme = "furo"
html_title = "pwiser_jax"
# Formulas are code blocks, as in the docstrings: pages need no network to be read.
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # docstrings name types and shapes
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True


def setup(app):
    """Reads our docstrings: indented blocks are literal, bars are absolute values."""

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    def prepare(app, what, name, subject, options, lines):
        result, paragraph, literal = [], "", None
        for before, line in zip(["", *lines], lines, strict=False):
            if line.strip():
                if literal is not None and indent(line) <= literal:
                    literal = None
                new = not before.strip()
                fields = paragraph.lstrip().startswith((":", "..", "*", "-", ">>>"))
                deeper = bool(paragraph) and indent(line) > indent(paragraph)
                if literal is None and new and deeper and not fields:
                    literal = indent(paragraph)
                    result += [" " * literal + "::", ""]
                if new and literal is None:
                    paragraph = line
                if literal is None and not line.lstrip().startswith(">>>"):
                    line = line.replace("|", r"\|")
            result.append(line)
        lines[:] = result

    app.connect("autodoc-process-docstring", prepare)
