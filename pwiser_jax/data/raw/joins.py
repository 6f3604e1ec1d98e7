"""Counts the rows that a join leaves without a partner, and refuses too many."""

from pwiser_jax.errors import UserError

MAX_UNMATCHED = 0.01
"""The default share of rows that may have no partner."""


def check_share(max_unmatched: float) -> None:
    """Raises a UserError unless --max-unmatched is between 0 and 1."""
    if not 0 <= max_unmatched <= 1:
        raise UserError(f"--max-unmatched is {max_unmatched}; expected 0 to 1")


def refuse_unmatched(
    unmatched: int, rows: int, max_unmatched: float, rows_of: object, missing: str
) -> None:
    """Raises a UserError where too many rows of a join have no partner.

    Args:
        unmatched: the rows without a partner.
        rows: all rows.
        max_unmatched: the share of rows that may be without one.
        rows_of: the file of the rows.
        missing: what the other file lacks, such as "name a user that users.csv lacks".
    """
    if unmatched > max_unmatched * rows:
        raise UserError(
            f"{rows_of}: {unmatched:,} of {rows:,} rows {missing}; up to "
            f"{100 * max_unmatched:.4g}% may (--max-unmatched): do the files belong "
            "together?"
        )
