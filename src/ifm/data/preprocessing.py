"""From the raw form to arrays of one size, split: decode, orient, flatten, crop, resize."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ifm.config import DataConfig
from ifm.data import raw as raw_form
from ifm.data.ahead import Workers
from ifm.data.arrays import (
    DataError,
    ProcessedMetadata,
    ProcessedSplit,
    StoredMetadata,
    count_duplicates,
    row_digests,
)
from ifm.data.decoding import WORKERS, decode, to_array
from ifm.data.needs import Counts
from ifm.data.placing import counts_of, place
from ifm.data.points import preprocess_points
from ifm.data.sound import preprocess_sound
from ifm.data.text import preprocess_text
from ifm.files import fresh_folder, new_array
from ifm.progress import progress

SHARD_BYTES = 2**30
_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class _Statistics:
    """Of one written split. histogram: int64 [C, 256]; digests: uint64 [n]."""

    histogram: np.ndarray
    sha256: str
    digests: np.ndarray


def preprocess(
    config: DataConfig,
    raw: Path,
    out: Path,
    *,
    check: Callable[[Counts], None] | None = None,
    **options: Any,
) -> StoredMetadata:
    """Makes the processed form (see ifm.data.arrays) in `out` of the raw form in `raw`, by the source's modality.

    The same input gives the same bytes. check: is told how much there is, before anything is decoded or written.
    options: of the modality's own. Raises DataError where `raw` is missing, damaged or too small; `out` stays as it was
    then.
    """
    return PREPROCESSORS[config.modality.name](config, raw, out, check=check, **options)


def preprocess_images(
    config: DataConfig,
    raw: Path,
    out: Path,
    *,
    check: Callable[[Counts], None] | None = None,
    add: Callable[[Path], None] | None = None,
) -> ProcessedMetadata:
    """Makes the processed form (see ifm.data.arrays) in `out` of the raw form in `raw`.

    The same input gives the same bytes. check: is told how much there is, before any image is decoded. add: is given
    the folder with all images in it, to add to it before it takes the place of `out`. Raises
    ValueError where `raw` is missing, damaged or too small, or its training images are all the same; `out` stays as it
    was then.
    """
    source = raw_form.read_metadata(raw)
    raw_form.check_counts(raw, source["splits"])
    placements = place(source["splits"], config)
    if check is not None:
        is_test = {split: placement.is_test for split, placement in placements.items()}
        counts = raw_form.class_counts(raw, is_test, source["classes"])
        check(Counts(counts_of(placements), source["classes"], counts))
    with fresh_folder(out) as folder:
        writers = {
            name: _SplitWriter(folder, name, count, config, labelled=source["classes"] is not None)
            for name, count in counts_of(placements).items()
        }
        total = sum(source["splits"].values())
        with (
            Workers(total, threads=WORKERS) as workers,
            progress(total=total, label="preprocess", unit="img") as bar,
        ):
            for split, placement in placements.items():
                start = 0
                count, at_once = len(placement.position), max(WORKERS, _BLOCK_BYTES // int(np.prod(_row_shape(config))))
                parts = raw_form.parts(raw, split, count, rows=at_once, classes=source["classes"])
                for images, labels in _decoded(parts, workers, config):
                    rows = slice(start, start + len(images))
                    start += len(images)
                    _spread(images, labels, placement.is_test[rows], placement.position[rows], writers)
                    bar.update(len(images))
        statistics = {name: writer.finish() for name, writer in writers.items()}
        train, test = (statistics[name].digests for name in ("train", "test"))
        if len(train) > 1 and (train == train[0]).all():
            raise DataError(
                f"{raw}: all {len(train)} training images are the same at data.image_size = {config.image_size}: there "
                "is nothing to learn and no figure to have; give images that differ"
            )
        mean, std = _moments(statistics["train"].histogram)
        metadata = ProcessedMetadata(
            source=source["source"],
            name=source["name"],
            image_size=config.image_size,
            channels=config.channels,
            classes=source["classes"],
            random_flip=config.random_flip,
            splits={name: writer.described(statistics[name], source["classes"]) for name, writer in writers.items()},
            mean=mean,
            std=std,
            test_in_train=int(np.isin(test, train, kind="sort").sum()),
        )
        metadata.write(folder)
        if add is not None:
            add(folder)
    return metadata


def _decoded(
    parts: Iterable[pa.Table], workers: Workers, config: DataConfig
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Of each part of the raw rows its images, uint8 [m, C, S, S], and labels, int64 [m] or None."""
    labels: deque[np.ndarray | None] = deque()  # of the parts that are being decoded

    def cells() -> Iterator[list[dict[str, Any]]]:
        for part in parts:
            labels.append(part.column("label").to_numpy() if "label" in part.column_names else None)
            yield part.column("image").to_pylist()

    to_row = partial(_to_row, size=config.image_size, channels=config.channels, resample=config.resample)
    row_bytes = int(np.prod(_row_shape(config)))

    def size(group: list[dict[str, Any]]) -> int:
        return sum(row_bytes + len((cell or {}).get("bytes") or b"") for cell in group)

    for _, images in workers.each(to_row, cells(), size=size, gather=np.stack):
        yield images, labels.popleft()


def _spread(
    images: np.ndarray,
    labels: np.ndarray | None,
    is_test: np.ndarray,
    position: np.ndarray,
    writers: dict[str, "_SplitWriter"],
) -> None:
    """Gives rows to the writer of their split. is_test bool [m], position int64 [m]."""
    for name, writer in writers.items():
        here = is_test == (name == "test")
        writer.write(position[here], images[here], None if labels is None else labels[here])


def _row_shape(config: DataConfig) -> tuple[int, int, int]:
    return config.channels, config.image_size, config.image_size


def _to_row(cell: dict[str, Any], *, size: int, channels: int, resample: str) -> np.ndarray:
    """One cell of the raw image column -> uint8 [C, S, S]."""
    try:
        if cell is None or cell["bytes"] is None:
            raise ValueError("no bytes")
        return to_array(decode(cell["bytes"]), size=size, channels=channels, resample=resample)
    except ValueError as error:
        cell = cell or {"path": None}
        raise DataError(f"image {cell['path']!r}: {error}; run `dvc repro fetch` again") from error


class _SplitWriter:
    """The shards and labels of one split, filled in any order. The shards are mapped: they need no memory."""

    def __init__(self, folder: Path, split: str, count: int, config: DataConfig, *, labelled: bool) -> None:
        row_shape = _row_shape(config)
        self._per_shard = max(1, SHARD_BYTES // int(np.prod(row_shape)))
        self._count = count
        starts = range(0, count, self._per_shard)
        self._names = [f"{split}-{i:05d}.npy" for i in range(len(starts))]
        self._shards = [
            new_array(folder / name, np.uint8, (min(self._per_shard, count - start), *row_shape))
            for name, start in zip(self._names, starts, strict=True)
        ]
        self._labels = np.empty(count, np.int64) if labelled else None
        self._labels_path = folder / f"{split}-labels.npy"

    def write(self, positions: np.ndarray, images: np.ndarray, labels: np.ndarray | None) -> None:
        """images uint8 [m, C, S, S] and labels int64 [m] to rows positions int64 [m]."""
        shard_of, row = np.divmod(positions, self._per_shard)
        for i in np.unique(shard_of):
            self._shards[i][row[shard_of == i]] = images[shard_of == i]
        if self._labels is not None:
            self._labels[positions] = labels

    def finish(self) -> _Statistics:
        """Writes what is left, and reads the split once for its statistics."""
        channels, *rest = self._shards[0].shape[1:]
        rows = max(1, _BLOCK_BYTES // int(np.prod([channels, *rest])))
        histogram, digest, digests = np.zeros((channels, 256), np.int64), hashlib.sha256(), []
        for shard in self._shards:
            shard.flush()
            for start in range(0, len(shard), rows):
                block = np.ascontiguousarray(shard[start : start + rows])
                digest.update(block)
                digests.append(row_digests(block))
                for c in range(channels):
                    histogram[c] += np.bincount(block[:, c].ravel(), minlength=256)
        if self._labels is not None:
            np.save(self._labels_path, self._labels, allow_pickle=False)
            digest.update(self._labels.astype("<i8"))
        return _Statistics(histogram, digest.hexdigest(), np.concatenate(digests))

    def described(self, found: _Statistics, classes: list[str] | None) -> ProcessedSplit:
        """The split's entry in metadata.json."""
        return ProcessedSplit(
            count=self._count,
            shards=self._names,
            class_counts=None if classes is None else np.bincount(self._labels, minlength=len(classes)).tolist(),
            sha256=found.sha256,
            duplicates=count_duplicates(found.digests),
        )


def _moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in [-1, 1] from counts int64 [C, 256].

    In whole numbers up to the last division, so that every machine writes the same digits.
    """
    mean, std = [], []
    for counts in histogram.tolist():
        n = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        mean.append(first / n / 127.5 - 1)
        std.append(math.sqrt((n * second - first * first) / (n * n)) / 127.5)
    return mean, std


PREPROCESSORS: dict[str, Callable] = {  # by modality
    "images": preprocess_images,
    "points": preprocess_points,
    "text": preprocess_text,
    "sound": preprocess_sound,
}
