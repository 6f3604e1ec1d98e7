"""Command lines: a parser whose errors are one sentence."""

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:  # what jsonargparse makes as it runs is no type to a checker
    PositiveInt = int
else:
    from jsonargparse.typing import PositiveInt as PositiveInt

FLAGS = (
    "--overwrite",
    "--strict",
    "--log_counts",
    "--profile",
    "--quick",
    "--full",
    "--distributed",
)
# What jsonargparse says of `--data FOLDER`, where `data.path` was meant.
GROUP = re.compile(r'Parser key "([\w.]+)": Unable to load config \'(.*?)\' - ')
SHORT = {"--max_steps_without_checkpoint": "--train.max_steps_without_checkpoint"}


class Parser(ArgumentParser):
    """A parser whose errors are one sentence on stderr and exit code 2.

    Options may be written with dashes, `--min-count`, as well as with underscores, and
    a flag needs no value.
    """

    def parse(self, args: Sequence[str] | None = None) -> Namespace:
        """`parse_args`, of these spellings too."""
        given = sys.argv[1:] if args is None else args
        return self.parse_args([_spelled(text) for text in given])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        group = GROUP.match(message)
        if group:
            name, given = group.groups()
            message = (
                f"--{name} {given}: no such YAML file of the options of {name!r}; "
                f"a single one is given as --{name}.OPTION"
            )
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def _spelled(text: str) -> str:
    """As jsonargparse wants it: underscores and all of an option's name, a value for a
    flag."""
    if not text.startswith("--"):
        return text
    name, equals, value = text[2:].partition("=")
    option = "--" + name.replace("-", "_")
    option = SHORT.get(option, option)
    return (
        f"{option}=true" if option in FLAGS and not equals else option + equals + value
    )
