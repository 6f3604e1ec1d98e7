"""`prepare kuairand`: the public KuaiRand-Pure files (Gao et al., CIKM 2022).

Rows are the exposures of the standard-policy logs. Events after the exposure (play
time, stay times, comments, follows, profile visits) are not features, and the video
statistics file is not read, because its averages include the test days.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from pwiser_jax.data.datasets.history import history
from pwiser_jax.data.prepared.encoder import EncodedRows, Encoder
from pwiser_jax.data.prepared.folder import check_output, write
from pwiser_jax.data.prepared.manifest import Manifest, read_manifest
from pwiser_jax.data.raw.archives import Files, Source, unpack
from pwiser_jax.data.raw.columns import Reading, number, refuse_bad
from pwiser_jax.data.raw.flat import FlatSpec, FlatTable
from pwiser_jax.data.raw.hashing import hash_integers
from pwiser_jax.data.raw.joins import (
    MAX_UNMATCHED,
    check_share,
    refuse_unmatched,
)
from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.data.raw.sources import refuse_repeats, scan_csv
from pwiser_jax.data.raw.split import split_by_time
from pwiser_jax.errors import UserError

EARLIER_LOG = "log_standard_4_08_to_4_21_pure.csv"
LOG = "log_standard_4_22_to_5_08_pure.csv"
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"

LOG_COLUMNS = (
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    "is_click",
    "is_like",
    "long_view",
    "duration_ms",
    "tab",
)
COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
USER_CATEGORIES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{k}" for k in range(18)),
)
VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_type")
SIZES = ("server_width", "server_height")

OUTCOMES = {"click": "is_click", "like": "is_like", "long_view": "long_view"}
FIRST_DAY = {"click": 0.4, "like": 0.01, "long_view": 0.3}
HISTORIES = {
    "user": ("user_id",),
    "video": ("video_id",),
    "user_tab": ("user_id", "tab"),
    "user_tag": ("user_id", "tag"),
}
CATEGORICAL = (
    "user_id",
    "video_id",
    "tab",
    "hour",
    *USER_CATEGORIES,
    *VIDEO_CATEGORIES,
    "tag",
    "second_tag",
    "duration_bucket",
)
NUMERICAL = (
    "log_duration",
    "age_days",
    "aspect_ratio",
    *(f"log_{name}" for name in COUNTS),
    *(
        f"{name}_{feature}"
        for name in HISTORIES
        for feature in ("exposures", *(f"{outcome}_rate" for outcome in OUTCOMES))
    ),
)


def prepare_kuairand(
    source: Path,
    output: Path,
    *,
    conversion: Literal["like", "long_view"] = "like",
    train_until: str = "2022-05-03",
    valid_until: str = "2022-05-05",
    min_count: int = 20,
    train_rows: int | None = None,
    allow_leaks: tuple[str, ...] | str = (),
    max_unmatched: float = MAX_UNMATCHED,
    extend: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """KuaiRand-Pure: exposures of short videos with clicks, likes and long views.

    Args:
        source: a folder or zip with log_standard_4_22_to_5_08_pure.csv,
            user_features_pure.csv and video_features_basic_pure.csv, plain or gzipped;
            log_standard_4_08_to_4_21_pure.csv, if present, adds earlier days of the
            same log.
        output: the new folder.
        conversion: a click with a like (rare) or a click with a long view (common).
        train_until: the last day of train, as YYYY-MM-DD.
        valid_until: the last day of validation; the days after it are test.
        min_count: categorical values with fewer train rows than this are rare.
        train_rows: keep only so many rows of train, drawn at random, the same ones each
            time; fewer rows are a part of more. Histories are counted before, from all
            rows; validation and test are whole. Unset: all rows.
        allow_leaks: features that may predict a label alone, where others are refused:
            a name, names with commas between them, or a list.
        max_unmatched: largest share of the log's rows whose user or video may be
            missing in the other files; such rows are counted.
        extend: a run's folder: rows get the ids and the scales of its data, and values
            that are new to it further ids; for `train --warm-start`.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    check_share(max_unmatched)
    if not 1 <= min_count < 2**31:
        raise UserError(f"--min-count is {min_count}; expected 1 to {2**31 - 1}")
    train_end = _day("--train-until", train_until)
    valid_end = _day("--valid-until", valid_until)
    raw = _read(source, max_unmatched)
    splits = split_by_time(
        raw.rows.lazy(), "day", train_until=train_end, valid_until=valid_end
    )
    sampled = {}
    if train_rows is not None:
        splits["train"] = _sampled(splits["train"], train_rows)
        sampled["train_rows"] = train_rows
    spec = FlatSpec(
        CATEGORICAL,
        NUMERICAL,
        labels={"click": "is_click", "conversion": OUTCOMES[conversion]},
        group="user_id",
        time="day",
        min_count=min_count,
    )
    flat = FlatTable(
        dataset="kuairand",
        spec=spec,
        splits=splits,
        sources=raw.sources,
        dropped={"conversion_without_click_nested": raw.nested[conversion]},
        options={
            "conversion": conversion,
            "train_until": train_end,
            "valid_until": valid_end,
            "min_count": min_count,
            "max_unmatched": max_unmatched,
            "counted": raw.unmatched,
            "rows_that_repeat_user_video_and_time": _repeated(raw.rows),
            **sampled,
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
def rows_kuairand(source: Path, folder: Path) -> Iterator[EncodedRows]:
    """The exposures of raw files as a prepared folder encodes them.

    Histories are computed from the log, which must reach back as far as the training
        log.

    Args:
        source: as in `prepare_kuairand`.
        folder: the prepared folder.
    """
    options = read_manifest(folder).options
    raw = _read(source, options.get("max_unmatched", MAX_UNMATCHED))
    yield EncodedRows([Encoder.load(folder).encode(raw.rows.lazy(), str(source))])


class _Raw(NamedTuple):
    """Exposures with their features.

    Args:
        rows: in the order of the log.
        sources: the raw files.
        nested: outcome -> rows whose outcome lacked a click.
        unmatched: rows that the user or video file does not describe, by reason.
    """

    rows: pl.DataFrame
    sources: tuple[Path, ...]
    nested: dict[str, int]
    unmatched: dict[str, int]


def _read(source: Path, max_unmatched: float) -> _Raw:
    files = Files(source)
    earlier = files.find(EARLIER_LOG)
    logs = [earlier, files.require(LOG)] if earlier else [files.require(LOG)]
    users, videos = files.require(USERS), files.require(VIDEOS)
    with tempfile.TemporaryDirectory(prefix="pwiser-") as place:
        folder = Path(place)
        parts = [_read_log(log, folder) for log in logs]
        rows = pl.concat([part for part, _ in parts])
        nested = {
            outcome: sum(counts[outcome] for _, counts in parts)
            for outcome in ("like", "long_view")
        }
        tables = {
            "user": (users, _read_users(users, folder)),
            "video": (videos, _read_videos(videos, folder)),
        }
        without: dict[str, int] = {}
        for what, (file, features) in tables.items():
            key = f"{what}_id"
            unmatched = rows.join(features, on=key, how="anti").height
            missing = f"name a {what} that {file} lacks"
            refuse_unmatched(unmatched, rows.height, max_unmatched, logs[-1], missing)
            if unmatched:
                without[f"rows_without_{what}_features"] = unmatched
            rows = rows.join(features, on=key, how="left", maintain_order="left")
    sources = tuple(file.path for file in (*logs, users, videos))
    return _Raw(_with_features(rows), sources, nested, without)


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} is {text!r}; expected a day such as 2022-05-03"
        ) from None


def _sampled(train: pl.LazyFrame, count: int) -> pl.LazyFrame:
    """`count` rows in their order: those whose numbers have the smallest hashes."""
    rows = train.collect()
    if not 1 <= count <= rows.height:
        raise UserError(
            f"--train-rows is {count}; expected 1 to {rows.height}, the rows up to "
            "--train-until"
        )
    kept = np.argsort(hash_integers(np.arange(rows.height)), kind="stable")[:count]
    return rows[np.sort(kept)].lazy()


def _repeated(rows: pl.DataFrame) -> int:
    """Rows beyond the first of each user, video and time; they are kept."""
    return rows.height - rows.select("user_id", "video_id", "time_ms").n_unique()


def _read_log(log: Source, folder: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """The log's rows with nested labels, and how many of each label lacked a click."""
    frame = _scan(log, folder, LOG_COLUMNS, LOG_COLUMNS)
    day = pl.col("date").cast(pl.String).str.to_date("%Y%m%d", strict=False)
    hour = pl.col("hourmin") // 100
    readings = (
        Reading("date", day, day.is_null(), "a day such as 20220503"),
        Reading("hourmin", hour, ~hour.is_between(0, 23), "a time from 0 to 2359"),
    )
    refuse_bad(frame, readings, _lines(log))
    nested = {}
    for outcome in ("like", "long_view"):
        ladder = {"click": "is_click", outcome: OUTCOMES[outcome]}
        frame, counts = check_labels(frame, ladder, "nest", _lines(log))
        nested[outcome] = sum(counts.values())
    return frame.with_columns(day.alias("day"), hour.alias("hour")).collect(), nested


def _read_users(users: Source, folder: Path) -> pl.DataFrame:
    frame = _scan(users, folder, ("user_id", *COUNTS), ["user_id"], USER_CATEGORIES)
    rows = frame.collect()
    refuse_repeats(rows["user_id"], _lines(users))
    return rows


def _read_videos(videos: Source, folder: Path) -> pl.DataFrame:
    texts = (*VIDEO_CATEGORIES, *SIZES, "upload_dt", "tag")
    frame = _scan(videos, folder, ["video_id"], ["video_id"], texts)
    day = pl.col("upload_dt").str.to_date("%Y-%m-%d", strict=False)
    wrong = day.is_null() & (pl.col("upload_dt") != "")
    readings = [Reading("upload_dt", day, wrong, "a day such as 2022-04-10")]
    readings += [number(name, pl.String()) for name in SIZES]
    refuse_bad(frame, readings, _lines(videos))
    tags = pl.col("tag").str.split(",")
    frame = frame.with_columns(
        *(reading.value.alias(reading.column) for reading in readings),
        tags.list.get(0, null_on_oob=True).alias("tag"),
        tags.list.get(1, null_on_oob=True).alias("second_tag"),
    )
    rows = frame.collect()
    refuse_repeats(rows["video_id"], _lines(videos))
    return rows


def _scan(
    source: Source,
    folder: Path,
    integers: Sequence[str],
    required: Sequence[str],
    texts: Sequence[str] = (),
) -> pl.LazyFrame:
    dtypes = dict.fromkeys(integers, pl.Int64()) | dict.fromkeys(texts, pl.String())
    path = unpack(source, folder)
    frame = scan_csv(path, dtypes=dtypes, required=required, name=str(source))
    return frame.select(list(dtypes))


def _lines(source: Source) -> Callable[[int], str]:
    """From a 1-based row below the header to its place in the file."""
    return lambda row: f"{source}, line {row + 1}"


def _with_features(rows: pl.DataFrame) -> pl.DataFrame:
    duration = pl.col("duration_ms").clip(1).log()
    age = pl.col("day") - pl.col("upload_dt")
    width, height = SIZES
    rows = rows.with_columns(
        (2 * duration).floor().cast(pl.Int32).alias("duration_bucket"),
        duration.alias("log_duration"),
        age.dt.total_days().alias("age_days"),
        pl.when(pl.col(height) > 0)
        .then(pl.col(width) / pl.col(height))
        .alias("aspect_ratio"),
        *(pl.col(name).clip(0).log1p().alias(f"log_{name}") for name in COUNTS),
    )
    columns = [
        history(rows, name, key, day="day", outcomes=OUTCOMES, first_day=FIRST_DAY)
        for name, key in HISTORIES.items()
    ]
    return pl.concat([rows, *columns], how="horizontal")
