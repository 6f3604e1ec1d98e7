"""The command `pwiser`, also as `python -m pwiser_jax`.

An install for the losses only lacks the commands' dependencies: print an error before
they are imported.
"""

import sys


def main() -> int:
    """Runs the command line; returns its exit code."""
    try:
        from pwiser_jax import cli

        return cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "pwiser_jax").partition(".")[0] == "pwiser_jax":
            raise
        print(
            f"pwiser: error: this command needs {error.name}, which is not installed: "
            "pip install 'pwiser-jax[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # while modules are imported
        print("pwiser: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
