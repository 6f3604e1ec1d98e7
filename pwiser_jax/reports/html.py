"""A report as one HTML file that needs no network and no script.

It opens with its verdict. Each section has a question, its answer in one sentence, the
tables and pictures for it, and how to reproduce it: command, configuration and
versions. The page itself is `templates/report.html.j2`.
"""

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from pwiser_jax.atomic import write_whole
from pwiser_jax.reports.plots import to_svg
from pwiser_jax.reports.tables import as_texts, is_numeric
from pwiser_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "polars")
PAGES = Environment(
    loader=PackageLoader("pwiser_jax.reports"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


@dataclass(frozen=True)
class TableBlock:
    """A table, its numbers written by `tables.as_texts`; `folded` hides a long one."""

    table: pl.DataFrame
    caption: str
    folded: bool = False
    kind = "table"

    @property
    def names(self) -> list[str]:
        return self.table.columns

    @cached_property
    def numeric(self) -> list[bool]:
        return [is_numeric(column) for column in self.table]

    @cached_property
    def rows(self) -> list[tuple[str, ...]]:
        return as_texts(self.table).rows()

    def begins(self, row: int) -> bool:
        """Whether a group of rows begins here, as the first column changes."""
        firsts = [cells[0] for cells in self.rows]
        grouped = len(set(firsts)) < len(firsts)
        return grouped and row > 0 and firsts[row] != firsts[row - 1]


@dataclass(frozen=True)
class Picture:
    """A figure; `alt` describes it for readers who cannot see it."""

    figure: Figure
    alt: str
    caption: str = ""
    kind = "picture"

    @cached_property
    def base64(self) -> str:
        """The figure as SVG in base64."""
        return base64.b64encode(to_svg(self.figure).encode()).decode()


@dataclass(frozen=True)
class Verdict:
    """The start of the page: the answer in three sentences, its picture, and tables."""

    sentences: Sequence[str]
    pictures: Sequence[Picture] = ()
    tables: Sequence[TableBlock] = ()


@dataclass(frozen=True)
class Section:
    """One question with its answer.

    Args:
        title: title of the section.
        asked: the question.
        answer: one sentence with its number and interval, whatever its sign.
        blocks: tables and pictures, in order.
        command: the command that reproduces the section.
        configuration: the text of the configuration files.
    """

    title: str
    asked: str
    answer: str
    blocks: Sequence[TableBlock | Picture] = ()
    command: str = ""
    configuration: str = ""


@dataclass
class Report:
    """Title, verdict, introduction, sections, and the versions that made them."""

    title: str
    introduction: str = ""
    sections: list[Section] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    verdict: Verdict | None = None

    def html(self) -> str:
        """The whole page."""
        names = ["Software", "Version"]
        table = pl.DataFrame(list(self.versions.items()), schema=names, orient="row")
        return PAGES.get_template("report.html.j2").render(
            report=self, versions=TableBlock(table, "What made these numbers")
        )

    def write(self, path: Path) -> None:
        """Writes the page atomically."""
        write_whole(path, self.html())


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that affect the numbers."""
    this = {"pwiser_jax": __version__, "python": platform.python_version()}
    return this | {name: metadata.version(name) for name in PACKAGES}
