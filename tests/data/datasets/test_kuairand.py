"""KuaiRand: what is read, what is a feature, and that no label reaches its features."""

import csv
import gzip
import math
import random
import re
import zipfile
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.datasets.kuairand import (
    CATEGORICAL,
    EARLIER_LOG,
    FIRST_DAY,
    HISTORIES,
    LOG,
    NUMERICAL,
    OUTCOMES,
    USERS,
    VIDEOS,
    prepare_kuairand,
)
from pwiser_jax.data.prepared.folder import DataWarning, Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.metrics.auc import auc

DAYS = [date(2022, 4, 28) + timedelta(days=k) for k in range(9)]  # to 2022-05-06
AFTER = (
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "play_time_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
)
Line = dict[str, Any]


def raw_files(rows: int = 700) -> dict[str, list[Line]]:
    """Small files of the public layout; some likes lack a click, some rows repeat."""
    dice = random.Random(5)
    videos = [
        {
            "video_id": k,
            "author_id": k // 2,
            "video_type": "NORMAL",
            "upload_dt": "2022-04-10",
            "upload_type": dice.choice(["Web", "LongImport"]),
            "visible_status": 0.0,
            "video_duration": 1000.0 * k,
            "server_width": dice.choice([720.0, ""]),
            "server_height": 1280.0,
            "music_id": k,
            "music_type": dice.choice([9.0, ""]),
            "tag": dice.choice(["1", "3", "39,68", "2,1,4", ""]),
        }
        for k in range(12)
    ]
    users = [
        {
            "user_id": k,
            "user_active_degree": dice.choice(["full_active", "low_active"]),
            "is_lowactive_period": 0,
            "is_live_streamer": -124,
            "is_video_author": 1,
            "follow_user_num": k,
            "follow_user_num_range": "(0,10]",
            "fans_user_num": 2 * k,
            "fans_user_num_range": "[10,100)",
            "friend_user_num": 0,
            "friend_user_num_range": "0",
            "register_days": 100 + k,
            "register_days_range": "61-90",
            **{f"onehot_feat{j}": dice.choice([0, 1, ""]) for j in range(18)},
        }
        for k in range(20)
    ]
    log = []
    for k in range(rows):
        day = DAYS[k * len(DAYS) // rows]
        click = int(dice.random() < 0.5)
        log.append(
            {
                "user_id": dice.randrange(20),
                "video_id": dice.randrange(12),
                "date": f"{day:%Y%m%d}",
                "hourmin": 100 * dice.randrange(24),
                "time_ms": 1_651_000_000_000 + k,
                "is_click": click,
                "is_like": int(dice.random() < (0.4 if click else 0.1)),
                "long_view": int(dice.random() < (0.7 if click else 0.1)),
                "duration_ms": dice.randrange(0, 60_000),
                "is_rand": 0,
                "tab": dice.randrange(3),
                **{name: dice.randrange(100) for name in AFTER},
            }
        )
    log[40:42] = [dict(log[39]), dict(log[39])]
    return {LOG: log, USERS: users, VIDEOS: videos}


def write_files(folder: Path, files: dict[str, list[Line]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    return folder


def prepare(files: dict[str, list[Line]], folder: Path, **options: Any) -> Prepared:
    source = write_files(folder / "raw", files)
    options = {"min_count": 1} | options
    prepare_kuairand(source, folder / "out", **options, overwrite=True)
    return Prepared(folder / "out")


def all_rows(prepared: Prepared) -> Rows:
    """All splits, which a log in the order of its days keeps in order."""
    parts = [prepared.load(split) for split in ("train", "valid", "test")]
    return Rows(
        inputs={
            name: np.concatenate([part.inputs[name] for part in parts])
            for name in ("categorical", "numerical")
        },
        labels=np.concatenate([part.labels for part in parts]),
        group=np.concatenate([part.group for part in parts]),
    )


def raw_numericals(prepared: Prepared, rows: Rows) -> dict[str, np.ndarray]:
    """Numerical columns as they were before scaling."""
    return {
        field.name: rows.numerical[:, at].astype(np.float64) * field.scale + field.mean
        for at, field in enumerate(prepared.schema.numerical)
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[dict[str, list[Line]], Prepared]:
    files = raw_files()
    return files, prepare(files, tmp_path_factory.mktemp("kuairand"))


def test_rows_labels_and_splits(small):
    """Splits are days; rows keep the log's order; a like counts after a click only."""
    files, prepared = small
    limits = {"train": ("0", "20220503"), "valid": ("20220503", "20220505")}
    for split, (low, high) in (limits | {"test": ("20220505", "9")}).items():
        lines = [line for line in files[LOG] if low < line["date"] <= high]
        rows = prepared.load(split)
        labels = [[k["is_click"], k["is_click"] * k["is_like"]] for k in lines]
        assert rows.labels.tolist() == labels
        days = [date(1970, 1, 1) + timedelta(days=int(day)) for day in rows.time]
        assert [f"{day:%Y%m%d}" for day in days] == [line["date"] for line in lines]
        pairs = set(zip(rows.group, (line["user_id"] for line in lines), strict=True))
        assert len(pairs) == len({pair[0] for pair in pairs})


def test_what_was_put_right_is_counted(small):
    files, prepared = small
    unclicked = sum(line["is_like"] > line["is_click"] for line in files[LOG])
    manifest = prepared.manifest
    assert unclicked > 0
    assert manifest.dropped == {"conversion_without_click_nested": unclicked}
    assert manifest.options["rows_that_repeat_user_video_and_time"] == 2
    assert [source.name for source in manifest.sources] == [LOG, USERS, VIDEOS]


def test_a_long_view_can_be_the_conversion(tmp_path):
    files = raw_files(300)
    rows = all_rows(prepare(files, tmp_path, conversion="long_view"))
    nested = [line["is_click"] * line["long_view"] for line in files[LOG]]
    assert rows.labels[:, 1].tolist() == nested


def test_joined_fields(small):
    """Ids of a categorical field stand for the values of the right user and video."""
    files, prepared = small
    rows = all_rows(prepared)
    users = {line["user_id"]: line for line in files[USERS]}
    videos = {line["video_id"]: line for line in files[VIDEOS]}
    expected: dict[str, list[Any]] = {
        "user_active_degree": [
            users[line["user_id"]]["user_active_degree"] for line in files[LOG]
        ],
        "onehot_feat3": [users[line["user_id"]]["onehot_feat3"] for line in files[LOG]],
        "author_id": [videos[line["video_id"]]["author_id"] for line in files[LOG]],
        "music_type": [videos[line["video_id"]]["music_type"] for line in files[LOG]],
        "hour": [line["hourmin"] // 100 for line in files[LOG]],
        "tab": [line["tab"] for line in files[LOG]],
    }
    tags = [videos[line["video_id"]]["tag"].split(",") for line in files[LOG]]
    expected["tag"] = [tag[0] for tag in tags]
    expected["second_tag"] = [tag[1] if len(tag) > 1 else "" for tag in tags]
    for at, field in enumerate(prepared.schema.categorical):
        if field.name in expected:
            pairs = set(
                zip(rows.categorical[:, at].tolist(), expected[field.name], strict=True)
            )
            ids, values = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
            assert len(pairs) == len(ids) == len(values), field.name
            assert {value for i, value in pairs if i == field.missing} <= {""}
            assert ("" in values) == (field.missing in ids)
    numbers = raw_numericals(prepared, rows)
    fans = [math.log1p(users[line["user_id"]]["fans_user_num"]) for line in files[LOG]]
    np.testing.assert_allclose(numbers["log_fans_user_num"], fans, atol=1e-5)
    age = [(d.day - 10) + 30 * (d.month - 4) for d in DAYS]
    assert set(numbers["age_days"].round(4)) == set(age)


def recount(lines: list[Line], videos: dict[int, Line]) -> dict[str, list[float]]:
    """History features, row by row, from their definition."""
    features: dict[str, list[float]] = defaultdict(list)
    described = [
        line | {"tag": videos[line["video_id"]]["tag"].split(",")[0]} for line in lines
    ]
    hit = {
        outcome: [line["is_click"] * line[column] for line in lines]
        for outcome, column in OUTCOMES.items()
    }
    for name, columns in HISTORIES.items():
        keys = [tuple(line[column] for column in columns) for line in described]
        for line, key in zip(lines, keys, strict=True):
            earlier = [k for k, o in enumerate(lines) if o["date"] < line["date"]]
            own = [k for k in earlier if keys[k] == key]
            features[f"{name}_exposures"].append(math.log(1 + len(own)))
            for outcome, hits in hit.items():
                prior = FIRST_DAY[outcome]
                if earlier:
                    prior = sum(hits[k] for k in earlier) / len(earlier)
                rate = (sum(hits[k] for k in own) + 10 * prior) / (len(own) + 10)
                features[f"{name}_{outcome}_rate"].append(rate)
    return features


def test_history_equals_a_slow_recount(small):
    files, prepared = small
    videos = {line["video_id"]: line for line in files[VIDEOS]}
    numbers = raw_numericals(prepared, all_rows(prepared))
    features = recount(files[LOG], videos)
    assert set(features) == set(NUMERICAL[7:])
    for name, values in features.items():
        np.testing.assert_allclose(numbers[name], values, atol=2e-6, err_msg=name)


def test_labels_of_a_day_change_features_of_later_days_only(small, tmp_path):
    files, prepared = small
    before = raw_numericals(prepared, all_rows(prepared))
    for changed in (DAYS[3], DAYS[7]):
        day = f"{changed:%Y%m%d}"
        other = files | {
            LOG: [
                line
                if line["date"] != day
                else line | {"is_click": 1, "is_like": 1, "long_view": 0}
                for line in files[LOG]
            ]
        }
        altered = prepare(other, tmp_path)
        after = raw_numericals(altered, all_rows(altered))
        days = np.array([line["date"] for line in files[LOG]])
        for name in NUMERICAL:
            same = np.isclose(before[name], after[name], atol=1e-5)
            assert same[days <= day].all(), name
            if name.endswith("_rate"):
                assert not same[days > day].all(), name
        rows, others = all_rows(prepared), all_rows(altered)
        np.testing.assert_array_equal(rows.categorical, others.categorical)


def test_what_follows_an_exposure_is_no_feature(small, tmp_path):
    """Other values in those columns give the same bytes."""
    files, prepared = small
    other = files | {
        LOG: [line | dict.fromkeys(AFTER, 7) for line in files[LOG]],
    }
    altered = prepare(other, tmp_path)
    for path in prepared.folder.glob("*.parquet"):
        assert path.read_bytes() == (altered.folder / path.name).read_bytes()
    assert not {*CATEGORICAL, *NUMERICAL} & {*AFTER, "is_like", "long_view", "is_click"}


def test_packed_files_give_the_same_bytes(small, tmp_path):
    files, prepared = small
    source = write_files(tmp_path / "raw", files)
    with zipfile.ZipFile(tmp_path / "KuaiRand-Pure.zip", "w") as archive:
        for path in source.iterdir():
            archive.write(path, f"KuaiRand-Pure/data/{path.name}")
    for path in list(source.iterdir()):
        (source / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for place in (source, tmp_path / "KuaiRand-Pure.zip"):
        prepare_kuairand(place, tmp_path / "out", min_count=1, overwrite=True)
        for path in prepared.folder.glob("*.parquet"):
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_the_earlier_log_is_read_where_it_is_there(small, tmp_path):
    """Cutting the log in two files changes nothing."""
    files, prepared = small
    parts = files | {EARLIER_LOG: files[LOG][:300], LOG: files[LOG][300:]}
    cut = prepare(parts, tmp_path)
    for path in prepared.folder.glob("*.parquet"):
        assert path.read_bytes() == (cut.folder / path.name).read_bytes()
    assert cut.manifest.sources[0].name == EARLIER_LOG


def test_an_empty_test_split_is_a_warning(tmp_path):
    with pytest.warns(DataWarning, match="the test split is empty"):
        prepared = prepare(raw_files(), tmp_path, valid_until="2022-05-06")
    assert not (prepared.folder / "test-00000.parquet").exists()


def edit(line: int, column: str, value: Any, file: str = LOG):
    def change(files: dict[str, list[Line]]) -> None:
        files[file][line - 2] = files[file][line - 2] | {column: value}

    return change


def drop_column(file: str, column: str):
    def change(files: dict[str, list[Line]]) -> None:
        files[file] = [
            {name: value for name, value in line.items() if name != column}
            for line in files[file]
        ]

    return change


BAD_VALUES = {
    "log line 7, column 'is_click': expected a whole number": edit(7, "is_click", "a"),
    "log line 8: column 'is_click' holds 2; expected 0 or 1": edit(8, "is_click", 2),
    "log line 9: column 'long_view' holds -1": edit(9, "long_view", -1),
    "log line 4, column 'user_id': expected a whole number": edit(4, "user_id", ""),
    "log line 5: column 'date' holds 20220431; expected a day": edit(
        5, "date", 20220431
    ),
    "log line 6: column 'hourmin' holds 2400": edit(6, "hourmin", 2400),
    "users line 3, column 'register_days': expected": edit(
        3, "register_days", "x", USERS
    ),
    "users line 5: user_id 1 has an earlier row": edit(5, "user_id", 1, USERS),
    "videos line 4: column 'upload_dt' holds '10.4.'": edit(
        4, "upload_dt", "10.4.", VIDEOS
    ),
    "videos line 6: column 'server_width' holds 'w'": edit(
        6, "server_width", "w", VIDEOS
    ),
    "videos line 1: there is no column 'tag'": drop_column(VIDEOS, "tag"),
    "log line 1: there is no column 'tab'": drop_column(LOG, "tab"),
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_bad_values_are_refused_with_file_line_and_column(tmp_path, message):
    files = raw_files(60)
    BAD_VALUES[message](files)
    source = write_files(tmp_path / "raw", files)
    name, _, rest = message.partition(" ")
    path = source / {"log": LOG, "users": USERS, "videos": VIDEOS}[name]
    with pytest.raises(UserError, match=re.escape(f"{path}, {rest}")) as error:
        prepare_kuairand(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_broken_and_missing_files_are_refused(tmp_path):
    source = write_files(tmp_path / "raw", raw_files(60))
    log = source / LOG
    good = log.read_bytes()
    broken = {
        "the file is empty": b"",
        "line 61: expected 19 columns, found 13": good[:-20],
        "line 31: this is not UTF-8": b"\n".join(
            [*good.split(b"\n")[:30], b"\xff" + good.split(b"\n")[30], b""]
        ),
    }
    for message, data in broken.items():
        log.write_bytes(data)
        with pytest.raises(UserError, match=f"{LOG}, {message}|{LOG}: {message}"):
            prepare_kuairand(source, tmp_path / "out")
    log.unlink()
    with pytest.raises(UserError, match=f"no file {re.escape(LOG)}"):
        prepare_kuairand(source, tmp_path / "out")
    (source / f"{LOG}.gz").write_bytes(gzip.compress(good)[:-100])
    with pytest.raises(UserError, match=r"\.gz: broken or cut short"):
        prepare_kuairand(source, tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare_kuairand(tmp_path / "nowhere", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("text", ["2022-13-01", "May 3", ""])
def test_a_date_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=f"--train-until is '{text}'; expected a day"):
        prepare_kuairand(tmp_path, tmp_path / "out", train_until=text)
    with pytest.raises(UserError, match=f"--valid-until is '{text}'; expected a day"):
        prepare_kuairand(tmp_path, tmp_path / "out", valid_until=text)


def test_a_sample_of_train_rows_leaves_their_histories_and_other_splits(
    small, tmp_path
):
    files, whole = small
    rows = {}
    for count in (20, 50):
        place = tmp_path / str(count)
        place.mkdir()
        part = prepare(files, place, train_rows=count)
        assert part.manifest.options["train_rows"] == count
        for split in ("valid", "test"):
            labels = part.load(split).labels
            np.testing.assert_array_equal(labels, whole.load(split).labels)
        train = part.load("train")
        assert len(train) == count
        columns = raw_numericals(part, train).values()
        rows[count] = [tuple(row) for row in np.stack([*columns], axis=1).round(3)]
    columns = raw_numericals(whole, whole.load("train")).values()
    every = [tuple(row) for row in np.stack([*columns], axis=1).round(3)]
    # Both are in the order of the log, and the smaller one is a part of the larger.
    for part, larger in ((rows[20], rows[50]), (rows[50], every)):
        rest = iter(larger)
        assert all(row in rest for row in part)


@pytest.mark.parametrize("count", [0, 10_000])
def test_a_sample_of_no_rows_or_of_too_many_is_refused(small, tmp_path, count):
    with pytest.raises(UserError, match=f"--train-rows is {count}; expected 1 to"):
        prepare(small[0], tmp_path, train_rows=count)


@pytest.fixture(scope="module")
def real(real_rows: Path, tmp_path_factory) -> Prepared:
    output = tmp_path_factory.mktemp("kuairand") / "out"
    with pytest.warns(DataWarning, match="the test split is empty"):
        prepare_kuairand(real_rows / "kuairand_pure", output)
    return Prepared(output)


def test_real_rows_are_counted_as_published(real):
    splits = real.manifest.splits
    total = {
        name: sum(split.labels[name] for split in splits.values())
        for name in ("click", "conversion")
    }
    assert sum(split.rows for split in splits.values()) == 185_061
    assert total == {"click": 81_878, "conversion": 2_618}
    assert real.manifest.dropped == {"conversion_without_click_nested": 566}
    assert real.manifest.options["rows_that_repeat_user_video_and_time"] == 5_039


def test_history_of_real_users_and_videos(real, real_rows):
    """A few users and videos recounted from the raw log, line by line."""
    with gzip.open(real_rows / "kuairand_pure" / f"{LOG}.gz", "rt") as file:
        lines = list(csv.DictReader(file))
    users = {line["user_id"] for line in lines[:: len(lines) // 20]}
    parts = [real.load(split) for split in ("train", "valid")]
    order = [k for k, line in enumerate(lines) if line["date"] <= "20220503"]
    order += [k for k, line in enumerate(lines) if line["date"] > "20220503"]
    at = [field.name for field in real.schema.numerical].index("user_exposures")
    field = real.schema.numerical[at]
    scaled = np.concatenate([part.numerical[:, at] for part in parts])
    found = dict(zip(order, scaled * field.scale + field.mean, strict=True))
    for user in users:
        own = [k for k, line in enumerate(lines) if line["user_id"] == user]
        for k in own:
            seen = sum(lines[j]["date"] < lines[k]["date"] for j in own)
            assert math.isclose(found[k], math.log1p(seen), abs_tol=1e-5)


def test_history_helps_on_later_days(real):
    """Earlier rates alone order the valid days' clicks and likes."""
    valid = real.load("valid")
    numbers = raw_numericals(real, valid)
    rates = numbers["user_click_rate"] + numbers["video_click_rate"]
    assert auc(valid.labels[:, 0], rates) > 0.7
    assert auc(valid.labels[:, 1], numbers["user_like_rate"]) > 0.74


def test_frame_without_rows_of_a_user_keeps_the_row(tmp_path):
    """A user or video that is not described has missing fields, not a missing row."""
    files = raw_files(200)
    files[USERS] = files[USERS][:10]
    prepared = prepare(files, tmp_path, max_unmatched=0.9)
    rows = all_rows(prepared)
    assert len(rows) == 200
    at = [f.name for f in prepared.schema.categorical].index("user_active_degree")
    field = prepared.schema.categorical[at]
    described = np.array([line["user_id"] < 10 for line in files[LOG]])
    np.testing.assert_array_equal(rows.categorical[:, at] != field.missing, described)
    counted = prepared.manifest.options["counted"]
    assert counted == {"rows_without_user_features": int((~described).sum())}


@pytest.mark.parametrize(("name", "key"), [(USERS, "user"), (VIDEOS, "video")])
def test_features_that_match_nothing_are_refused(tmp_path, name, key):
    files = raw_files(200)
    files[name] = [
        line | {f"{key}_id": line[f"{key}_id"] + 999} for line in files[name]
    ]
    with pytest.raises(
        UserError, match=f"200 of 200 rows name a {key} that .*{name} lacks; up to 1%"
    ):
        prepare(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("min_count", [0, -1, 10**20])
def test_a_count_out_of_range_is_refused(tmp_path: Path, min_count: int) -> None:
    with pytest.raises(UserError, match=rf"--min-count is {min_count}; expected 1 to"):
        prepare_kuairand(tmp_path, tmp_path / "out", min_count=min_count)
