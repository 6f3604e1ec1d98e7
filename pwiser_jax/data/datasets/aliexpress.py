"""`prepare aliexpress`: AliExpress Search, as published or as MTReclib's CSV.

Both hold the same rows. The publisher's user and item files have no header and are
joined by search id within a split; MTReclib's train.csv and test.csv are that join.
Search ids restart in test: an id there is another search than in train.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pwiser_jax.atomic import scratch_folder
from pwiser_jax.data.prepared.encoder import EncodedPart, EncodedRows, Encoder
from pwiser_jax.data.prepared.folder import check_output, write
from pwiser_jax.data.prepared.manifest import Manifest, read_manifest
from pwiser_jax.data.raw.archives import Files, Source, unpack
from pwiser_jax.data.raw.columns import Reading, number, refuse_bad
from pwiser_jax.data.raw.flat import BadLabel, FlatSpec, FlatTable
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.data.raw.joins import (
    MAX_UNMATCHED,
    check_share,
    refuse_unmatched,
)
from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.data.raw.sources import DataType, refuse_repeats, scan_csv
from pwiser_jax.data.raw.split import split_by_group
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

RAW_INTEGERS = (*RAW_CATEGORICAL, LEVEL)
KNOWN = "known"
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
    allow_leaks: tuple[str, ...] | str = (),
    max_unmatched: float = MAX_UNMATCHED,
    extend: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """AliExpress Search of one country: exposures with clicks and purchases.

    Args:
        source: a folder or zip with MTReclib's train.csv and test.csv, or else with the
            raw files such as nl_user_train.csv, nl_item_train.csv, nl_user_test.csv and
            nl_item_test.csv; plain, gzipped, or in zips as published.
        output: the new folder; unpacked files are beside it during the command.
        country: read the raw files of this country, such as nl; needed only if there
            are several.
        valid_fraction: share of train's searches held out for validation.
        on_bad_label: what to do with a conversion without a click: refuse (error),
            leave the row out (drop), set its conversion to 0 (nest) or its click to 1
            (fill).
        allow_leaks: features that may predict a label alone, where others are refused:
            a name, names with commas between them, or a list.
        max_unmatched: largest share of item rows whose search may be missing in the
            user file; such rows are dropped and counted.
        extend: a run's folder: rows get the ids and the scales of its data, and values
            that are new to it further ids; for `train --warm-start`.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    check_share(max_unmatched)
    files = Files(source)
    code = _country(files, country)
    dropped: Counter[str] = Counter()
    read_files: list[Path] = []
    splits: dict[str, pl.LazyFrame] = {}
    with scratch_folder(output) as folder:
        for split in ("train", "test"):
            sources = _sources(files, code, split)
            if code is None:
                stored = _joined_rows(sources[0], folder)
                line = _lines(sources[0], header=True)
                frame, counts = check_labels(stored, LABELS, on_bad_label, line)
            else:
                every, unmatched = _raw_rows(
                    sources[0], sources[1], folder, max_unmatched
                )
                frame = every.filter(KNOWN).drop(KNOWN)
                counts = (
                    {"items_without_user_row_dropped": unmatched} if unmatched else {}
                )
            # A search of test is not the search of train with the same id.
            search = 2 * pl.col(SEARCH) + int(split == "test")
            splits[split] = frame.with_columns(search.alias(SEARCH))
            dropped.update(counts)
            read_files += [file.path for file in sources]
        cut = {"valid": valid_fraction}
        flat = FlatTable(
            dataset="aliexpress",
            spec=SPEC,
            splits=splits | split_by_group(splits["train"], SEARCH, fractions=cut),
            sources=tuple(dict.fromkeys(read_files)),
            dropped=dropped,
            options={
                "country": code,
                "valid_fraction": valid_fraction,
                "on_bad_label": on_bad_label,
                "max_unmatched": max_unmatched,
            },
        )
        return write(
            flat,
            output,
            overwrite=overwrite,
            allow_leaks=allow_leaks,
            extend=extend,
        )


@contextmanager
def rows_aliexpress(source: Path, folder: Path) -> Iterator[EncodedRows]:
    """The rows of raw files as a prepared folder encodes them, train before test.

    Rows without a user row are kept, with missing user features.

    Args:
        source: as in `prepare_aliexpress`, or with the files of only train or test.
        folder: the prepared folder.
    """
    options, encoder = read_manifest(folder).options, Encoder.load(folder)
    most = options.get("max_unmatched", MAX_UNMATCHED)
    files = Files(source)
    halves, country = ("train", "test"), options.get("country")
    same = any(f"{country}_item_{half}.csv" in files.names for half in halves)
    code = _country(files, country if same else None, halves)

    def parts(place: Path) -> Iterator[EncodedPart]:
        for split in halves:
            name = f"{split}.csv" if code is None else f"{code}_item_{split}.csv"
            if files.find(name) is None:
                continue
            sources = _sources(files, code, split)
            if code is None:
                frame = _joined_rows(sources[0], place)
            else:
                frame, _ = _raw_rows(sources[0], sources[1], place, most)
            yield encoder.encode(frame, str(sources[-1]))

    with tempfile.TemporaryDirectory(prefix="pwiser-") as place:
        yield EncodedRows(parts(Path(place)))


def _sources(files: Files, code: str | None, split: str) -> tuple[Source, ...]:
    """The files of a split: MTReclib's one, or the publisher's users and items."""
    if code is None:
        return (files.require(f"{split}.csv"),)
    return tuple(
        files.require(f"{code}_{what}_{split}.csv") for what in ("user", "item")
    )


def _country(
    files: Files, wanted: str | None, splits: Sequence[str] = ("train",)
) -> str | None:
    """The country whose raw files are read; None for MTReclib's CSV.

    Args:
        files: the files of the source.
        wanted: the requested country.
        splits: splits whose files are required.
    """
    if wanted is not None:
        return wanted.lower()
    if any(f"{split}.csv" in files.names for split in splits):
        return None
    form = rf"([a-z]{{2}})_item_({'|'.join(splits)})\.csv"
    matches = [re.fullmatch(form, name) for name in files.names]
    codes = sorted({match[1] for match in matches if match})
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


def _lines(source: Source, *, header: bool) -> Callable[[int], str]:
    """From a 1-based row to its place in the file."""
    return lambda row: f"{source}, line {row + header}"


def _joined_rows(table: Source, folder: Path) -> pl.LazyFrame:
    """MTReclib's CSV: a header, and all columns in the row of each exposure."""
    dtypes: dict[str, DataType] = {
        "search_id": pl.Int64(),
        **dict.fromkeys(CATEGORICAL, pl.Int32()),
        **dict.fromkeys(NUMERICAL, pl.Float32()),
        **dict.fromkeys(LABELS.values(), pl.Int32()),
    }
    with _unpacked(table, folder) as path:
        frame = scan_csv(path, dtypes=dtypes, required=dtypes, name=str(table))
        columns = frame.select(*dtypes).rename({"search_id": SEARCH})
        stored = _stored(columns, folder / f"{table.name}.parquet")
    readings = [number(name, pl.Float32()) for name in NUMERICAL]
    refuse_bad(stored, readings, _lines(table, header=True))
    return stored


def _raw_rows(
    users: Source, items: Source, folder: Path, max_unmatched: float
) -> tuple[pl.LazyFrame, int]:
    """The publisher's two files, joined by search id in the order of the items.

    Returns:
        The rows, with KNOWN null if there is no user row, and the number of such rows.
    """
    with _unpacked(users, folder) as user_path, _unpacked(items, folder) as item_path:
        searches = _scan_raw(user_path, USER_COLUMNS, users)
        keys = searches.select(USER_ID).collect()[USER_ID]
        refuse_repeats(keys, _lines(users, header=False))
        joined = _scan_raw(item_path, ITEM_COLUMNS, items).join(
            searches.with_columns(pl.lit(True).alias(KNOWN)),
            left_on=ITEM_ID,
            right_on=USER_ID,
            how="left",
            maintain_order="left",
        )
        stored = _stored(joined, folder / f"{items.name}.parquet")
    level = pl.col(LEVEL)
    readings = [Reading(LEVEL, level, ~level.is_between(0, 2), "0, 1 or 2")]
    readings += [number(name, pl.Float32()) for name in RAW_NUMERICAL]
    refuse_bad(stored, readings, _lines(items, header=False))
    counted = stored.select(pl.len(), pl.col(KNOWN).null_count()).collect()
    total, unmatched = counted.row(0)
    missing = f"have a search that {users} lacks"
    refuse_unmatched(unmatched, total, max_unmatched, items, missing)
    frame = stored.select(
        pl.col(ITEM_ID).alias(SEARCH),
        *(pl.col(raw).alias(name) for raw, name in RAW_NAMES.items()),
        (level >= 1).cast(pl.Int8).alias(LABELS["click"]),
        (level == 2).cast(pl.Int8).alias(LABELS["conversion"]),
        KNOWN,
    )
    return frame, unmatched


def _scan_raw(path: Path, columns: Sequence[str], source: Source) -> pl.LazyFrame:
    dtypes: dict[str, DataType] = {
        columns[0]: pl.Int64(),
        **{
            name: pl.Int32() if name in RAW_INTEGERS else pl.Float32()
            for name in columns[1:]
        },
    }
    return scan_csv(
        path,
        columns=columns,
        dtypes=dtypes,
        required=columns,
        name=str(source),
        quoted=False,
    )


def _stored(frame: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Stores the rows as Parquet: they are read several times; CSV is slow to parse."""
    try:
        frame.sink_parquet(path, compression="lz4", maintain_order=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        # The raw files have been parsed in full before: only writing can still fail.
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path.parent}: rows cannot be written: {reason}") from error
    return scan_parquet(path)


@contextmanager
def _unpacked(source: Source, folder: Path) -> Iterator[Path]:
    """The source as a plain file, deleted afterwards: these files are large."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield unpack(source, Path(place))
