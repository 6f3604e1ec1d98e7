"""A report as one HTML file: it opens anywhere, without a network and without a script.

A section says what was asked, the answer in a sentence with its number and interval,
the tables and pictures it rests on, and how to make it again: the command, the
configuration and the versions.
"""

import base64
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from pwiser_jax.atomic import write_whole
from pwiser_jax.reports.plots import to_svg
from pwiser_jax.reports.tables import UNDEFINED, is_numeric
from pwiser_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "polars")

CSS = """
:root { color-scheme: light dark; --text: #1b1b1b; --faint: #595959; --page: #ffffff;
  --card: #f4f5f7; --line: #d3d6da; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --faint: #a9adb3;
  --page: #16181b; --card: #22252a; --line: #3c4046; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--text);
  background: var(--page); font: 1rem/1.55 system-ui, "Segoe UI", "DejaVu Sans",
  sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { max-width: 45rem; margin: .6rem 0; }
a { color: var(--mark); }
.asked { color: var(--faint); }
.answer { font-size: 1.08rem; border-left: .25rem solid var(--mark);
  padding-left: .9rem; }
.scroll { overflow-x: auto; margin: 1.25rem 0; }
.scroll:focus-visible { outline: 2px solid var(--mark); }
table { border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .4rem; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--faint); }
tbody tr.block > * { border-top: 2px solid var(--line); }
.number { text-align: right; }
figure { margin: 1.5rem 0; }
figure .scroll { margin: 0; background: #fff; border: 1px solid var(--line);
  border-radius: .3rem; padding: .5rem; }
figure img { display: block; width: 100%; min-width: 38rem; height: auto; }
figcaption { color: var(--faint); font-size: .92rem; margin-top: .4rem;
  max-width: 45rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card);
  border-radius: .3rem; padding: .7rem .9rem;
  font: .88rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--mark); }
"""


@dataclass(frozen=True)
class TableBlock:
    """A table: texts as they are, numbers to 4 digits; `folded` hides long ones."""

    table: pl.DataFrame
    caption: str
    folded: bool = False

    def html(self) -> str:
        names = self.table.columns
        kinds = [' class="number"' if is_numeric(self.table[n]) else "" for n in names]
        head = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>'
            for name, kind in zip(names, kinds, strict=True)
        )
        first = self.table.to_series(0)
        blocks = first.n_unique() < len(first)
        body, before = [], None
        for row in self.table.rows():
            cells = "".join(
                f"<td{kind}>{escape(_cell(value))}</td>"
                for value, kind in zip(row, kinds, strict=True)
            )
            # A stronger line where the first column, a model or dataset, changes.
            block = blocks and bool(body) and before != row[0]
            body.append(
                f'<tr class="block">{cells}</tr>' if block else f"<tr>{cells}</tr>"
            )
            before = row[0]
        caption = escape(self.caption)
        # A region that scrolls must be reachable from the keyboard, and named.
        text = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n"
            f"<tbody>{chr(10).join(body)}</tbody></table></div>"
        )
        return _folded(self.caption, text) if self.folded else text


@dataclass(frozen=True)
class Picture:
    """A figure; `alt` says in words what it shows, for those who do not see it."""

    figure: Figure
    alt: str
    caption: str = ""

    def html(self) -> str:
        data = base64.b64encode(to_svg(self.figure).encode()).decode()
        alt, caption = escape(self.alt), escape(self.caption)
        return (
            f'<figure><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{alt}"><img alt="{alt}" '
            f'src="data:image/svg+xml;base64,{data}"></div>'
            + (f"<figcaption>{caption}</figcaption>" if caption else "")
            + "</figure>"
        )


@dataclass(frozen=True)
class Section:
    """One question with its answer.

    Args:
        title: of the section.
        asked: the question, in words.
        answer: one sentence with its number and interval, whatever its sign.
        blocks: tables and pictures, in order.
        command: what makes this section again.
        configuration: the text of the configuration file that was run.
    """

    title: str
    asked: str
    answer: str
    blocks: Sequence[TableBlock | Picture] = ()
    command: str = ""
    configuration: str = ""

    def html(self, anchor: str) -> str:
        parts = [
            f'<section id="{anchor}"><h2>{escape(self.title)}</h2>',
            f'<p class="asked">{escape(self.asked)}</p>',
            f'<p class="answer">{escape(self.answer)}</p>',
            *(block.html() for block in self.blocks),
        ]
        if self.command:
            command = textwrap.dedent(self.command).strip()
            parts.append(f"<p>Made by:</p><pre><code>{escape(command)}</code></pre>")
        if self.configuration:
            code = f"<pre><code>{escape(self.configuration)}</code></pre>"
            parts.append(_folded("Configuration", code))
        return "\n".join([*parts, "</section>"])


@dataclass
class Report:
    """Title, introduction, sections, and the versions that made them."""

    title: str
    introduction: str = ""
    sections: list[Section] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def html(self) -> str:
        """The whole page."""
        title = escape(self.title)
        anchors = [f"section-{k + 1}" for k in range(len(self.sections))]
        links = "".join(
            f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
            for anchor, section in zip(anchors, self.sections, strict=True)
        )
        made = pl.DataFrame(
            list(self.versions.items()), schema=["Software", "Version"], orient="row"
        )
        parts = [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{CSS}</style></head><body><main>",
            f"<h1>{title}</h1>",
            f"<p>{escape(self.introduction)}</p>" if self.introduction else "",
            f"<nav><ul>{links}</ul></nav>" if len(self.sections) > 1 else "",
            *map(Section.html, self.sections, anchors),
            '<section id="versions"><h2>Versions</h2>',
            TableBlock(made, "What made these numbers").html(),
            "</section></main></body></html>\n",
        ]
        return "\n".join(part for part in parts if part)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        write_whole(path, self.html())


def versions() -> dict[str, str]:
    """Versions of this package, Python and what the numbers depend on."""
    found = {"pwiser_jax": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in PACKAGES}


def _cell(value: Any) -> str:
    if value is None:
        return UNDEFINED
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{text}</details>"
