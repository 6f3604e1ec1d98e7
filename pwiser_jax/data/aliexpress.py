"""`prepare aliexpress`: AliExpress Search, as published or as MTReclib's CSV.

Both hold the same rows. The publisher's user and item files have no header and are
joined by search id within a split; MTReclib's train.csv and test.csv are that join. A
search of test is never one of train, although the ids restart there.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pwiser_jax.data.archives import Files, Source, unpack
from pwiser_jax.data.columns import Reading, refuse_bad
from pwiser_jax.data.flat import BadLabel, FlatSpec, FlatTable
from pwiser_jax.data.labels import check_labels
from pwiser_jax.data.manifest import Manifest
from pwiser_jax.data.prepared import check_output, write
from pwiser_jax.data.sources import DataType, refuse_repeats, scan_csv
from pwiser_jax.data.split import split_by_group
from pwiser_jax.errors import UserError

FIELD_SIZES = (11, 4, 7, 2, 33, 7, 50, 8, 8, 2, 2, 2, 2, 2, 2, 2)
CATEGORICAL = tuple(f"categorical_{k}" for k in range(1, 17))
NUMERICAL = tuple(f"numerical_{k}" for k in range(1, 64))
LABELS = {"click": "click", "conversion": "conversion"}

USER_COLUMNS = tuple(f"user_{k}" for k in range(1, 34))
ITEM_COLUMNS = tuple(f"item_{k}" for k in range(1, 50))
USER_ID, ITEM_ID, LEVEL = USER_COLUMNS[0], ITEM_COLUMNS[0], ITEM_COLUMNS[-1]
CATEGORICAL_ITEM_COLUMNS = tuple(f"item_{k}" for k in (19, 34, 35, 36, 40, 41, 42))
RAW_CATEGORICAL = (
    *(f"user_{k}" for k in (*range(2, 9), 32, 33)),
    *CATEGORICAL_ITEM_COLUMNS,
)
RAW_NUMERICAL = (
    *(f"user_{k}" for k in range(9, 32)),
    *(name for name in ITEM_COLUMNS[1:-1] if name not in CATEGORICAL_ITEM_COLUMNS),
)
RAW_NAMES = dict(
    zip((*RAW_CATEGORICAL, *RAW_NUMERICAL), (*CATEGORICAL, *NUMERICAL), strict=True)
)

SEARCH = "search"
SPEC = FlatSpec(
    CATEGORICAL,
    NUMERICAL,
    labels=LABELS,
    group=SEARCH,
    sizes=dict(zip(CATEGORICAL, FIELD_SIZES, strict=True)),
    standardize=False,
)


def prepare_aliexpress(
    source: Path,
    output: Path,
    *,
    country: str | None = None,
    valid_fraction: float = 0.05,
    on_bad_label: BadLabel = "error",
    overwrite: bool = False,
) -> Manifest:
    """AliExpress Search of one country: exposures with clicks and purchases.

    Args:
        source: a folder or zip with MTReclib's train.csv and test.csv, or else with the
            raw files such as nl_user_train.csv, nl_item_train.csv, nl_user_test.csv and
            nl_item_test.csv; plain, gzipped, or in zips as published.
        output: the new folder; unpacked files lie beside it while this runs.
        country: reads the raw files of this country, such as nl; needed only if there
            are several.
        valid_fraction: share of train's searches that are kept for validation.
        on_bad_label: what to do with a conversion without a click: refuse, drop the
            row, or set its conversion to 0.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    files = Files(source)
    code = _country(files, country)
    dropped: Counter[str] = Counter()
    read_files: list[Path] = []
    with _scratch(output) as folder:
        splits: dict[str, pl.LazyFrame] = {}
        for split in ("train", "test"):
            with tempfile.TemporaryDirectory(dir=folder) as unpacked:
                if code is None:
                    rows = _joined_rows(
                        files.require(f"{split}.csv"), Path(unpacked), on_bad_label
                    )
                else:
                    rows = _raw_rows(
                        files.require(f"{code}_user_{split}.csv"),
                        files.require(f"{code}_item_{split}.csv"),
                        Path(unpacked),
                    )
                splits[split] = _stored(rows.frame, split, folder)
            dropped.update(rows.dropped)
            read_files += rows.sources
        parts = split_by_group(
            splits["train"], SEARCH, fractions={"valid": valid_fraction}
        )
        flat = FlatTable(
            dataset="aliexpress",
            spec=SPEC,
            splits=splits | parts,
            sources=tuple(dict.fromkeys(read_files)),
            dropped=dropped,
            options={
                "country": code,
                "valid_fraction": valid_fraction,
                "on_bad_label": on_bad_label,
            },
        )
        return write(flat, output, overwrite=overwrite)


def _country(files: Files, wanted: str | None) -> str | None:
    """The country whose raw files are read; None: MTReclib's CSV is."""
    if wanted is not None:
        return wanted.lower()
    if "train.csv" in files.names:
        return None
    found = [re.fullmatch(r"([a-z]{2})_item_train\.csv", name) for name in files.names]
    codes = [match[1] for match in found if match]
    if len(codes) == 1:
        return codes[0]
    if codes:
        listed = ", ".join(codes)
        raise UserError(
            f"{files.place} holds several countries ({listed}): choose one by --country"
        )
    raise UserError(
        f"{files.place} holds neither train.csv nor raw files such as "
        "nl_item_train.csv, plain, gzipped or in a zip"
    )


@dataclass(frozen=True)
class _Rows:
    """A split as it was read: prepared names, labels, `SEARCH` holding the search id."""

    frame: pl.LazyFrame
    dropped: Mapping[str, int]
    sources: tuple[Path, ...]


def _joined_rows(table: Source, folder: Path, on_bad_label: BadLabel) -> _Rows:
    """MTReclib's CSV: a header, and a row with all columns for each exposure."""
    dtypes = {
        "search_id": pl.Int64(),
        **dict.fromkeys(CATEGORICAL, pl.Int32()),
        **dict.fromkeys(NUMERICAL, pl.Float32()),
        **dict.fromkeys(LABELS.values(), pl.Int32()),
    }
    frame = scan_csv(
        unpack(table, folder), dtypes=dtypes, required=dtypes, name=str(table)
    )
    frame, dropped = check_labels(
        frame, LABELS, on_bad_label, lambda row: f"{table}, line {row + 1}"
    )
    frame = frame.select(*dtypes).rename({"search_id": SEARCH})
    return _Rows(frame, dropped, (table.path,))


def _raw_rows(users: Source, items: Source, folder: Path) -> _Rows:
    """The publisher's two files, joined by search id in the order of the items."""
    item_frame = _scan_raw(items, ITEM_COLUMNS, folder)
    level = pl.col(LEVEL)
    reading = Reading(LEVEL, level, ~level.is_between(0, 2), "0, 1 or 2")
    refuse_bad(item_frame, [reading], lambda row: f"{items}, line {row}")
    user_frame = _scan_raw(users, USER_COLUMNS, folder)
    searches = user_frame.select(USER_ID).collect().to_series()
    refuse_repeats(searches, lambda row: f"{users}, line {row}")
    known = pl.col(ITEM_ID).is_in(searches.implode())
    lost = item_frame.select((~known).sum()).collect(engine="streaming").item()
    joined = item_frame.join(
        user_frame,
        left_on=ITEM_ID,
        right_on=USER_ID,
        how="inner",
        maintain_order="left",
    )
    frame = joined.select(
        pl.col(ITEM_ID).alias(SEARCH),
        *(pl.col(raw).alias(name) for raw, name in RAW_NAMES.items()),
        (level >= 1).cast(pl.Int8).alias(LABELS["click"]),
        (level == 2).cast(pl.Int8).alias(LABELS["conversion"]),
    )
    dropped = {"item_without_user_row_dropped": lost} if lost else {}
    return _Rows(frame, dropped, (users.path, items.path))


def _scan_raw(source: Source, columns: Sequence[str], folder: Path) -> pl.LazyFrame:
    integers = (*RAW_CATEGORICAL, LEVEL)
    dtypes: dict[str, DataType] = {
        name: pl.Int32() if name in integers else pl.Float32() for name in columns
    }
    dtypes[columns[0]] = pl.Int64()
    path = unpack(source, folder)
    return scan_csv(
        path,
        columns=columns,
        dtypes=dtypes,
        required=columns,
        name=str(source),
        quoted=False,
    )


def _stored(frame: pl.LazyFrame, split: str, folder: Path) -> pl.LazyFrame:
    """The split as Parquet, which is read several times, at a fraction of the cost."""
    path = folder / f"{split}.parquet"
    search = 2 * pl.col(SEARCH) + int(split == "test")
    frame.with_columns(search).sink_parquet(
        path, compression="lz4", maintain_order=True
    )
    return pl.scan_parquet(path)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A hidden folder beside the output, on the same disk, removed at the end."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{output.name}.raw-", dir=output.parent
        ) as folder:
            yield Path(folder)
    except (OSError, pl.exceptions.PolarsError) as error:
        # The input has been read in full by now: only the disk is left.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{output}: no rows can be written beside it: {reason}"
        ) from error
