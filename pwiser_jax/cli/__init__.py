"""The command line, `pwiser COMMAND`; each command is a module of this package.

A command's module has a docstring whose first line is its help, `add_options(parser)`
and `run(options)`, which returns the exit code; with a `--config` option `run` also
gets the options that were given, without defaults. `COMPILES = True` enables the
compilation cache. Commands import their dependencies when they run, so that help and
errors are fast and `prepare` does not load jax.

Exit codes: 0 success; 2 a user error, in one sentence; 130 or 143 if SIGINT (Ctrl-C) or
SIGTERM stopped a run before its end.
"""

import atexit
import gc
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from pwiser_jax.errors import UserError, first_line
from pwiser_jax.options import Parser
from pwiser_jax.version import __version__

COMMANDS = (
    "schema",
    "prepare",
    "inspect",
    "train",
    "sweep",
    "evaluate",
    "predict",
    "export",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    if argv is None:  # this process runs one command only
        # Imported modules are not garbage. Collections would take a third of the time
        # of small commands.
        gc.set_threshold(100_000)
        atexit.register(gc.freeze)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning(warnings.showwarning)
            given = list(sys.argv[1:] if argv is None else argv)
            parsing = parser(given)
            options = parsing.parse(given)
            chosen = options[options.command]
            command = _command(options.command)
            if getattr(command, "COMPILES", False):
                from pwiser_jax.host import use_compilation_cache

                use_compilation_cache()
            if "config" in chosen:  # a YAML file, over which only given options go
                explicit = parsing.parse(given, defaults=False)[options.command]
                return command.run(chosen, explicit)
            return command.run(chosen)
    except UserError as error:
        print(f"pwiser: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"pwiser: error: not enough memory: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pwiser: interrupted", file=sys.stderr)
        return 130


def _command(name: str) -> ModuleType:
    return import_module(f"pwiser_jax.cli.{name}")


def parser(argv: Sequence[str]) -> Parser:
    """All commands; only the one that `argv` names has its options."""
    named = next((word for word in argv if not word.startswith("-")), "")
    top = Parser(
        prog="pwiser",
        description="PWiseR: pairwise ranking for multi-task recommenders.",
        version=__version__,
    )
    commands = top.add_subcommands(required=True, dest="command")
    for name in COMMANDS:
        module = _command(name)
        about = (module.__doc__ or "").partition("\n")[0]
        command = Parser(description=about)
        commands.add_subcommand(name, command, help=about)
        if name == named:
            module.add_options(command, argv)
    return top


def _show_warning(default: Callable[..., None]) -> Callable[..., None]:
    """Warnings of this package as one line; those of libraries as Python shows them."""

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category.__module__.startswith("pwiser_jax."):
            print(f"pwiser: warning: {message}", file=sys.stderr)
        else:
            default(message, category, *rest, **more)

    return show
