"""Errors that a user can correct, and hints for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One sentence that names the file, row, column or option and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """ "; did you mean 'mmoe'?" for a misspelt name, or "" if nothing is close."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[object], word: str = "or") -> str:
    """ "a, b or c"."""
    *first, last = map(str, names)
    return f"{', '.join(first)} {word} {last}" if first else last


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
