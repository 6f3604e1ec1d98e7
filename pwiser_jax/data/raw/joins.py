"""Limits the share of rows without a match in a join."""

from pwiser_jax.errors import UserError

MAX_UNMATCHED = 0.01
"""Default maximum share of rows without a match."""


def check_share(max_unmatched: float) -> None:
    """Raises a UserError unless --max-unmatched is between 0 and 1."""
    if not 0 <= max_unmatched <= 1:
        raise UserError(f"--max-unmatched is {max_unmatched}; expected 0 to 1")


def refuse_unmatched(
    unmatched: int, rows: int, max_unmatched: float, rows_of: object, missing: str
) -> None:
    """Raises a UserError if too many rows of a join have no match.

    Args:
        unmatched: number of rows without a match.
        rows: number of all rows.
        max_unmatched: maximum share of rows without a match.
        rows_of: name of the file of the rows.
        missing: the problem of these rows, such as "name a user that users.csv lacks".
    """
    if unmatched > max_unmatched * rows:
        raise UserError(
            f"{rows_of}: {unmatched:,} of {rows:,} rows {missing}; up to "
            f"{100 * max_unmatched:.4g}% may (--max-unmatched): do the files belong "
            "together?"
        )
