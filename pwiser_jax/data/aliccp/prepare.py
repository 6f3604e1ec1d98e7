"""`prepare aliccp`: Ali-CCP (Alibaba Click and Conversion Prediction), as published.

Four files: for train and test, rows of exposures (sample_skeleton) that refer to a line
of user features (common_features). User features are written once per line, and rows
hold the line's number. Files are streamed: memory holds one shard of rows, a few
numbers for each common line, and the vocabularies.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from pwiser_jax.data.aliccp.common import CommonFeatures
from pwiser_jax.data.aliccp.encode import LABELS, VALUES, AliccpEncoder, TrainCounts
from pwiser_jax.data.aliccp.fields import ITEM_SINGLE, USER_SINGLE
from pwiser_jax.data.aliccp.lines import in_order
from pwiser_jax.data.aliccp.spill import Columns, Pieces, Spill, array, height, select
from pwiser_jax.data.prepared import vocabulary
from pwiser_jax.data.prepared.encoder import EncodedPart, EncodedRows
from pwiser_jax.data.prepared.folder import (
    SHARD,
    DataWarning,
    allowed_leaks,
    check_output,
    new_prepared,
    refuse_empty,
    shard_name,
    write_shard,
)
from pwiser_jax.data.prepared.leaks import refuse_leaks
from pwiser_jax.data.prepared.manifest import (
    CommonTable,
    Manifest,
    SourceFile,
    Split,
    read_manifest,
    write_manifest,
)
from pwiser_jax.data.raw.archives import TARS, Files, Source, is_tar
from pwiser_jax.data.raw.flat import SPLITS, BadLabel, FlatSpec
from pwiser_jax.data.raw.joins import (
    MAX_UNMATCHED,
    check_share,
    refuse_unmatched,
)
from pwiser_jax.data.raw.labels import FIXES
from pwiser_jax.data.raw.ragged import Ragged
from pwiser_jax.data.raw.split import check_fractions
from pwiser_jax.errors import UserError
from pwiser_jax.schema import COMMON, Pool

if TYPE_CHECKING:
    from pwiser_jax.data.aliccp.raw import RawReader, SkeletonRows

HALVES = ("train", "test")
COMMON_FILE = "common.parquet"
SAMPLE = "sample_id"
NEARLY = 0.01

# Published counts: Ma et al., SIGIR 2018, and the files themselves.
PUBLISHED = {
    "train": {
        "rows": 42_300_135,
        "clicks": 1_644_256,
        "conversions": 9_032,
        "conversions_without_click": 230,
        "common_lines": 730_600,
    },
    "test": {"rows": 43_016_840, "common_lines": 884_212},
}


def prepare_aliccp(
    source: Path,
    output: Path,
    *,
    fields: Literal[18, 23] = 18,
    min_count: int = 10,
    max_values: int = 20,
    pool: Pool = "mean",
    log_counts: bool = False,
    valid_fraction: float = 0.05,
    on_bad_label: BadLabel = "error",
    max_unmatched: float = MAX_UNMATCHED,
    strict: bool = False,
    allow_leaks: tuple[str, ...] | str = (),
    overwrite: bool = False,
) -> Manifest:
    """Ali-CCP: exposures with clicks and conversions of a shop's users.

    Args:
        source: a folder with sample_skeleton_{train,test}.csv and
            common_features_{train,test}.csv, plain, gzipped or in zips, or with
            sample_train.tar.gz and sample_test.tar.gz; or one such archive of all.
        output: the new folder; it holds scratch files until it is complete.
        fields: 18: the single-valued fields; 23: also the five multi-valued fields.
        min_count: ids with fewer train rows than this are rare. Other published scripts
            keep ids seen more than 10 times, which is 11 here.
        max_values: maximum number of values of a multi-valued field; the values with
            the largest weights are kept.
        pool: how models pool a multi-valued field: the sum of its weighted vectors, or
            their mean by weight.
        log_counts: the values of fields 508, 509, 702 and 853 become numerical fields
            D508, D509, D702 and D853 beside the ids.
        valid_fraction: share of train's users held out for validation.
        on_bad_label: what to do with a conversion without a click: refuse (error),
            leave the row out (drop), set its conversion to 0 (nest) or its click to 1
            (fill). The published train file has 230.
        max_unmatched: largest share of rows that may refer to a missing common line;
            such rows are dropped and counted.
        strict: refuse unknown fields; otherwise they are ignored and counted.
        allow_leaks: features that may predict a label alone, where others are refused:
            a name, names with commas between them, or a list.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    check_share(max_unmatched)
    check_fractions({"valid": valid_fraction})
    for option, value in {"--min-count": min_count, "--max-values": max_values}.items():
        if not 1 <= value < 2**31:
            raise UserError(f"{option} is {value}; expected 1 to {2**31 - 1}")
    files = {
        (kind, half): find_source(source, kind, half)
        for kind in ("common_features", "sample_skeleton")
        for half in HALVES
    }
    with (
        new_prepared(output, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        ThreadPoolExecutor(2) as threads,
        _digests(tuple(file.path for file in files.values())) as digests,
    ):
        # Loading its compiled code takes a while; the digests are computed meanwhile.
        from pwiser_jax.data.aliccp.raw import RawReader

        reader = RawReader(
            threads, with_lists=fields == 23, width=max_values, strict=strict
        )
        common = CommonFeatures(Path(scratch), valid_fraction)
        for half in HALVES:
            common.read(half, reader, files["common_features", half])
        job = _Skeletons(reader, common, files, on_bad_label, max_unmatched, log_counts)
        counts = TrainCounts(len(common), reader.item_lists)
        spill = {name: Spill(Path(scratch), name) for name in ("train", "valid")}
        for name, piece in job.read("train"):
            spill[name].add(piece)
            if name == "train":
                counts.add(piece)
        encoder = AliccpEncoder.fit(
            counts,
            common,
            reader,
            min_count=min_count,
            pool=pool,
            with_values=log_counts,
        )
        # Beside the shards.
        vocabularies = threads.submit(encoder.save, folder)
        lines = threads.submit(
            encoder.write_common, common, folder / COMMON_FILE, Path(scratch)
        )
        pieces = chain(
            (("train", piece) for piece in spill["train"].pieces()),
            (("valid", piece) for piece in spill["valid"].pieces()),
            job.read("test"),
        )
        splits = _write(pieces, encoder, common, folder)
        counted = common.counted + job.counted
        spec = FlatSpec(
            (*USER_SINGLE, *ITEM_SINGLE),
            tuple(field.name for field in encoder.schema.numerical),
            group="101",
            min_count=min_count,
        )
        refuse_empty(spec, splits)
        lines.result()
        vocabularies.result()
        manifest = Manifest(
            dataset="aliccp",
            schema=encoder.schema,
            spec=spec,
            fill=dict.fromkeys(spec.numerical, 0.0),
            splits=splits,
            common=CommonTable(COMMON_FILE, len(common)),
            dropped={k: n for k, n in job.dropped.items() if n},
            options={
                "fields": fields,
                "min_count": min_count,
                "max_values": max_values,
                "pool": pool,
                "log_counts": log_counts,
                "valid_fraction": valid_fraction,
                "on_bad_label": on_bad_label,
                "max_unmatched": max_unmatched,
                "strict": strict,
                **allowed_leaks(allow_leaks),
                "counted": {k: n for k, n in sorted(counted.items()) if n},
            },
            sources=tuple(digest.result() for digest in digests),
            vocabulary_sha256=SourceFile.of(folder / vocabulary.FILE).sha256,
        )
        refuse_leaks(folder, manifest)
        manifest = write_manifest(folder, manifest)
    for half in HALVES:
        _compare(half, job.totals[half] | {"common_lines": common.lines[half]})
    return manifest


@contextmanager
def rows_aliccp(source: Path, folder: Path) -> Iterator[EncodedRows]:
    """The rows of raw files as a prepared folder encodes them, train before test.

    The raw columns are sample_id, click and conversion. Every row must have its common
    line, since dropped rows would shift the others.

    Args:
        source: as in `prepare_aliccp`, or with the files of only train or test.
        folder: the prepared folder.
    """
    from pwiser_jax.data.aliccp.raw import RawReader

    options = read_manifest(folder).options
    halves = [h for h in HALVES if _find(source, "sample_skeleton", h)] or HALVES[1:]
    files = {
        (kind, half): find_source(source, kind, half)
        for kind in ("common_features", "sample_skeleton")
        for half in halves
    }
    encoder = AliccpEncoder.load(folder)
    with (
        tempfile.TemporaryDirectory(prefix="pwiser-") as place,
        ThreadPoolExecutor(2) as threads,
    ):
        scratch = Path(place)
        reader = RawReader(
            threads,
            with_lists=options["fields"] == 23,
            width=options["max_values"],
            strict=options["strict"],
        )
        common = CommonFeatures(scratch, valid_fraction=0.0)
        for half in halves:
            common.read(half, reader, files["common_features", half])
        encoder.write_common(common, scratch / COMMON_FILE, scratch)
        job = _Skeletons(
            reader, common, files, "nest", 0.0, options["log_counts"], with_samples=True
        )

        def parts() -> Iterator[EncodedPart]:
            for half in halves:
                name = str(files["sample_skeleton", half])
                for _, piece in job.read(half):
                    rows = encoder.rows(piece, common.group)
                    raw = {name: array(piece, name) for name in (SAMPLE, *LABELS)}
                    yield EncodedPart(rows.lazy(), pl.LazyFrame(raw), name)

        yield EncodedRows(parts(), pl.read_parquet(scratch / COMMON_FILE, glob=False))


@contextmanager
def _digests(paths: Sequence[Path]) -> Iterator[list[Future[SourceFile]]]:
    """Hashes raw files in a thread, while they are read.

    An error cancels files that are not started.
    """
    thread = ThreadPoolExecutor(1)
    try:
        yield [thread.submit(SourceFile.of, path) for path in dict.fromkeys(paths)]
    finally:
        thread.shutdown(cancel_futures=True)


def find_source(place: Path, kind: str, half: str) -> Source:
    """The raw file of a kind and half, or a UserError."""
    source = _find(place, kind, half)
    if source is None:
        name = f"{kind}_{half}.csv"
        raise UserError(
            f"{place}: no file {name}, {name}.gz or in a zip, and no "
            f"sample_{half}{TARS[1]}"
        )
    return source


def _find(place: Path, kind: str, half: str) -> Source | None:
    """The raw file of a kind and half: plain, gzipped, in a zip or in a tar."""
    name = f"{kind}_{half}.csv"
    if place.is_file() and is_tar(place):
        return Source(place, (name,))
    source = Files(place).find(name)
    for suffix in TARS:
        path = place / f"sample_{half}{suffix}"
        if source is None and path.is_file():
            source = Source(path, (name,))
    return source


@dataclass
class _Skeletons:
    """The rows of both halves, joined with their common lines, checked and counted.

    Args:
        reader: reads the raw files.
        common: the common lines of both halves.
        files: (kind, half) -> file.
        on_bad_label: see `prepare_aliccp`.
        max_unmatched: see `prepare_aliccp`.
        log_counts: see `prepare_aliccp`.
        with_samples: keep the sample ids.
        dropped: reason -> number of rows dropped or corrected.
        counted: other irregularities by name.
        totals: half -> counts of the raw file.
    """

    reader: "RawReader"
    common: CommonFeatures
    files: Mapping[tuple[str, str], Source]
    on_bad_label: BadLabel
    max_unmatched: float
    log_counts: bool
    with_samples: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    totals: dict[str, dict[str, int]] = field(default_factory=dict)

    def read(self, half: str) -> Iterator[tuple[str, Columns]]:
        """Yields pieces of SHARD rows, each with its split, in file order."""
        source = self.files["sample_skeleton", half]
        splits = ("train", "valid") if half == "train" else ("test",)
        pieces = {name: Pieces(SHARD) for name in splits}
        total: Counter[str] = Counter()
        contents: list[np.ndarray] = []
        unmatched, first_unmatched = 0, 0
        for first, block in self.reader.skeleton(source):
            contents.append(block.content)
            line = self.common.find(half, block.index)
            bad = (block.conversion == 1) & (block.click == 0)
            total.update(
                rows=len(block),
                clicks=int(block.click.sum()),
                conversions=int(block.conversion.sum()),
                conversions_without_click=int(bad.sum()),
            )
            if bad.any() and self.on_bad_label == "error":
                raise UserError(
                    f"{source}, line {first + int(bad.argmax())}: 'conversion' is 1 "
                    "but 'click' is 0, a conversion without a click; choose "
                    "--on-bad-label drop (the row), nest (no conversion) or fill (a "
                    "click too)"
                )
            without = line < 0
            if without.any():
                first_unmatched = first_unmatched or first + int(without.argmax())
                unmatched += int(without.sum())
            self.counted["values_of_single_fields_beyond_one"] += (
                block.features.repeated
            )
            self.counted["features_of_unknown_fields"] += block.features.unknown
            kept = ~without & ~bad if self.on_bad_label == "drop" else ~without
            columns = self._columns(block, line)
            if not kept.all():
                columns = select(columns, kept)
            yield from self._pieces(half, pieces, columns)
        lines = self.files["common_features", half]
        missing = f"name a common_feature_index that {lines} lacks, first in line "
        refuse_unmatched(
            unmatched,
            total["rows"],
            self.max_unmatched,
            source,
            f"{missing}{first_unmatched}",
        )
        for name, rest in pieces.items():
            yield from ((name, piece) for piece in rest.rest())
        self.totals[half] = dict(total)
        fixed = FIXES.get(self.on_bad_label, "refused")
        self.dropped[f"conversion_without_click_{fixed}"] += total[
            "conversions_without_click"
        ]
        self.dropped["rows_without_common_line_dropped"] += unmatched
        hashes = np.sort(np.concatenate(contents))
        repeats = int(np.count_nonzero(hashes[1:] == hashes[:-1]))
        self.counted["rows_that_repeat_another"] += repeats

    def _columns(self, block: "SkeletonRows", line: np.ndarray) -> Columns:
        fill = self.on_bad_label == "fill"
        columns: dict[str, np.ndarray | Ragged] = {
            COMMON: line,
            "click": block.click | block.conversion if fill else block.click,
            "conversion": block.conversion if fill else block.conversion & block.click,
        }
        columns |= dict(zip(ITEM_SINGLE, block.features.single, strict=True))
        if self.with_samples:
            columns[SAMPLE] = block.sample
        if self.log_counts:
            weights = dict(zip(ITEM_SINGLE, block.features.weight, strict=True))
            columns |= {value: weights[name] for name, value in VALUES.items()}
        return columns | block.features.lists

    def _pieces(
        self, half: str, pieces: Mapping[str, Pieces], columns: Columns
    ) -> Iterator[tuple[str, Columns]]:
        if half == "test":
            yield from (("test", piece) for piece in pieces["test"].add(columns))
            return
        valid = self.common.valid[array(columns, COMMON)]
        for name, mask in {"train": ~valid, "valid": valid}.items():
            if mask.any():
                part = columns if mask.all() else select(columns, mask)
                yield from ((name, piece) for piece in pieces[name].add(part))


def _write(
    pieces: Iterable[tuple[str, Columns]],
    encoder: AliccpEncoder,
    common: CommonFeatures,
    folder: Path,
) -> dict[str, Split]:
    """Writes the shards of all splits while the next shards are read."""
    splits = {name: Split((), 0, dict.fromkeys(LABELS, 0)) for name in SPLITS}

    def numbered() -> Iterator[tuple[str, int, Columns]]:
        for name, piece in pieces:
            split = splits[name]
            at = len(split.files)
            splits[name] = Split(
                (*split.files, shard_name(name, at)),
                split.rows + height(piece),
                {k: n + int(array(piece, k).sum()) for k, n in split.labels.items()},
            )
            yield name, at, piece

    def write(item: tuple[str, int, Columns]) -> None:
        name, at, piece = item
        write_shard(encoder.rows(piece, common.group), folder, name, at)

    with ThreadPoolExecutor(2) as threads:
        for _ in in_order(threads, write, numbered()):
            pass
    return splits


def _compare(half: str, counts: Mapping[str, int]) -> None:
    """Warns if a file has about the published number of rows, but other counts."""
    published = PUBLISHED[half]
    if abs(counts["rows"] - published["rows"]) > NEARLY * published["rows"]:
        return
    for name, count in published.items():
        if counts.get(name, 0) != count:
            warnings.warn(
                f"{half} has {counts.get(name, 0):,} {name.replace('_', ' ')}, the "
                f"published file {count:,}",
                DataWarning,
                stacklevel=2,
            )
