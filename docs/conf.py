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

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True


def setup(app):
    """Bars in docstrings are absolute values, not substitutions."""

    def escape(app, what, name, subject, options, lines):
        for index, line in enumerate(lines):
            if not line.lstrip().startswith(">>>"):
                lines[index] = line.replace("|", r"\|")

    app.connect("autodoc-process-docstring", escape)
