"""Command lines: a parser whose errors are one sentence."""

import re
import sys
from argparse import Action
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from pwiser_jax.errors import did_you_mean, listed
from pwiser_jax.typed import mismatch, words

if TYPE_CHECKING:  # jsonargparse creates this type at run time
    PositiveInt = int
else:
    from jsonargparse.typing import PositiveInt as PositiveInt

# `train` accepts these options of the configuration without their section too.
SHORT = {"--max_steps_without_checkpoint": "--train.max_steps_without_checkpoint"}
OPTION = re.compile(r"--[a-z]\w*(?![\w.])")


class Formatter(DefaultHelpFormatter):
    """Help that names types in words."""

    def _get_type_str(self, action: Action) -> str | None:
        hint = _type(action)
        return None if hint is None else words(hint)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        return re.sub(r"(, )?default: null(?=\))", "", text).replace(" ()", "")


class Parser(ArgumentParser):
    """A parser whose errors are one sentence on stderr and exit code 2.

    Options without a dot may be written with dashes, as help shows them, or with
    underscores: `--min-count` is `--min_count`. An option that is true or false needs
    no value to be true.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # No abbreviations: a new option could change their meaning.
        kwargs = {"allow_abbrev": False, **kwargs}
        super().__init__(*args, formatter_class=Formatter, **kwargs)

    def parse(
        self, args: Sequence[str] | None = None, *, defaults: bool = True
    ) -> Namespace:
        """`parse_args` for both spellings; without `defaults`, given options only."""
        given = sys.argv[1:] if args is None else args
        flags = {
            name
            for action in self.all_actions()
            if _type(action) is bool
            for name in action.option_strings
        }
        following = [*given[1:], ""]
        spelled = [
            _spelled(text, set() if after in ("true", "false") else flags)
            for text, after in zip(given, following, strict=False)
        ]
        return self.parse_args(spelled, defaults=defaults)

    def all_actions(self) -> Iterator[Action]:
        """The options of this parser and of its commands."""
        for action in self._actions:
            yield action
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    yield from parser.all_actions()

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        return _dashed(super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(self._sentence(message), ex)
        print(f"pwiser: error: {self._sentence(message)}", file=sys.stderr)
        raise SystemExit(2)

    def _sentence(self, message: str) -> str:
        """Converts a message of jsonargparse to the sentence for the user."""
        message = " ".join(message.split())
        for pattern, rewrite in _REWRITES:
            if match := re.search(pattern, message):
                return rewrite(self, *match.groups())
        return message

    def _action(self, key: str) -> Action | None:
        """The option of a key such as "train.epochs" or "prepare.table.source"."""
        actions = list(self.all_actions())
        keys = [key.split(".", start)[-1] for start in range(key.count(".") + 1)]
        return next((a for key in keys for a in actions if a.dest == key), None)

    def _typed(self, key: str) -> str:
        """An option as a user types it, from jsonargparse's key."""
        action = self._action(key)
        if action is None:
            return key
        if not action.option_strings:
            return action.dest.upper()
        return _dashed(action.option_strings[-1])

    def _wrong_type(self, key: str, value: str) -> str:
        action = self._action(key)
        hint = None if action is None else _type(action)
        value = "null" if value == "None" else value
        if hint is None:
            return f"{self._typed(key)}: {value} does not fit"
        return mismatch(self._typed(key), value, hint)

    def _no_config(self, key: str, given: str) -> str:
        return (
            f"--{key} {given}: no such YAML file of the options of {key!r}; "
            f"a single one is given as --{key}.OPTION"
        )

    def _unknown(self, names: str) -> str:
        name = names.split(" ")[0]
        if not name.startswith("-"):
            return f"{name!r} is not expected here; options begin with --"
        option = name.partition("=")[0]
        known = [n for action in self.all_actions() for n in action.option_strings]
        known = [*map(_dashed, known)]
        # A section's option is often given without the section.
        last = {n.lstrip("-").rpartition(".")[2]: n for n in reversed(known)}
        bare = option.lstrip("-").replace("-", "_").rpartition(".")[2]
        if bare in last and last[bare] != option:
            return f"there is no option {option}; did you mean {last[bare]!r}?"
        return f"there is no option {_dashed(option)}{did_you_mean(option, known)}"

    def _choice(self, option: str, value: str, choices: str) -> str:
        known = [word.strip(" '\"") for word in choices.split(",")]
        name = self._typed(option.lstrip("-"))
        hint = did_you_mean(value, known)
        return f"{name} is {value}; expected {listed(known)}{hint}"

    def _required(self, keys: str) -> str:
        names = [self._typed(key) for key in keys.split(", ")]
        return f"{listed(names, 'and')} {'is' if len(names) == 1 else 'are'} required"

    def _no_command(self, key: str, choices: str) -> str:
        what = key.rpartition(".")[2]
        return f"name a {what}: {listed(choices.split(','))}"

    def _no_value(self, option: str) -> str:
        return f"{_dashed(option)} needs a value"

    def _no_values(self, option: str) -> str:
        return f"{_dashed(option)} takes no value"


# Messages of jsonargparse and argparse, and the method that says the same.
_REWRITES = (
    (r"^Parser key \"([\w.]+)\": Unable to load config '(.*?)' - ", Parser._no_config),
    (r"^Parser key \"([\w.]+)\":.*(?:Got|Given) value: ?(.*)$", Parser._wrong_type),
    (r"unrecognized arguments: (.*)$", Parser._unknown),
    (
        r"argument ([\w.-]+): invalid choice: '?(.*?)'? \(choose from (.*)\)$",
        Parser._choice,
    ),
    (r"the following arguments are required: (.*)$", Parser._required),
    (r"expected \"([\w.]+)\" to be one of {(.*)}, but it was not", Parser._no_command),
    (r"argument (--[\w.-]+): expected .* argument", Parser._no_value),
    (r"argument (?:-\w/)?(--[\w.-]+): ignored explicit", Parser._no_values),
)


def _type(action: Action) -> Any:
    """The type of an option's value; jsonargparse keeps it beside argparse's own."""
    hint = getattr(action, "_typehint", action.type)
    return None if hint is NoneType else hint


def _dashed(text: str) -> str:
    """Options without a section with dashes: `--min_count` becomes `--min-count`.

    The options of a configuration keep their underscores, as in YAML.
    """
    return OPTION.sub(lambda match: match[0].replace("_", "-"), text)


def _spelled(text: str, flags: set[str]) -> str:
    """An option in jsonargparse's form: with underscores, and a flag with a value."""
    if not text.startswith("--"):
        return text
    name, equals, value = text[2:].partition("=")
    option = "--" + name.replace("-", "_")
    option = SHORT.get(option, option)
    return (
        f"{option}=true" if option in flags and not equals else option + equals + value
    )
