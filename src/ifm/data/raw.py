"""The raw form of images: parquet files of encoded images, each known to be readable, and labels.

A folder holds:
    {train,test}-{00000}.parquet   image: struct<bytes, path>, label: int64 (absent without labels)
    metadata.json                  where it came from, counts, class names, a digest
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ifm.data.arrays import METADATA, DataError
from ifm.data.decoding import decode, deep_maximum, flatten, has_more_frames
from ifm.data.found import Encoded
from ifm.errors import in_a_line
from ifm.files import read_json

ROWS_PER_FILE = 50_000
RAW_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # a cell of the image column


# Writing


@dataclass(frozen=True)
class Checked:
    """What a look at an image or a recording found. fault: why it cannot be used.

    deepest: the highest value of 16-bit grey. seconds, rate: of a recording, its silent ends cut where that is asked.
    """

    fault: str | None = None
    several_frames: bool = False
    deepest: int | None = None
    seconds: float | None = None
    rate: int | None = None


def checked(image: Encoded) -> Checked:
    """Decodes an image to see whether it can be used."""
    if image.data is None:
        return Checked("no bytes")
    try:
        decoded = decode(image.data)
        flatten(decoded)
    except ValueError as error:
        return Checked(str(error))
    return Checked(None, has_more_frames(decoded), deep_maximum(decoded))


class Writer:
    """Parquet files of at most about ROWS_PER_FILE rows, one row group for each chunk."""

    def __init__(self, folder: Path) -> None:
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self.several_frames = 0
        self.deep: list[int] = []  # the highest value of each 16-bit image
        self.seconds: list[float] = []  # of each recording
        self.rates: Counter[int] = Counter()
        self.digest = hashlib.sha256()
        self._folder = folder
        self._files: dict[str, int] = {}
        self._open: pq.ParquetWriter | None = None
        self._open_rows = 0

    def write(
        self,
        split: str,
        rows: np.ndarray,
        chunk: list[Encoded],
        labels: np.ndarray | None,
        checked: list[Checked],
    ) -> None:
        """Appends the images of a chunk that have no fault and notes the others. rows, labels: int64 [m]."""
        self.counts.setdefault(split, 0)
        good = [i for i, one in enumerate(checked) if one.fault is None]
        for image, row, one in zip(chunk, rows, checked, strict=True):
            if one.fault is not None:
                self.faults.append(f"{image.path or f'{split} row {row}'} ({one.fault})")
        self.several_frames += sum(one.several_frames for one in checked)
        self.deep += [one.deepest for one in checked if one.deepest is not None]
        self.seconds += [one.seconds for one in checked if one.seconds is not None]
        self.rates.update(one.rate for one in checked if one.rate is not None)
        if not good:
            return
        for i in good:
            self.digest.update(len(chunk[i].data).to_bytes(8, "little") + chunk[i].data)
            self.digest.update(b"" if labels is None else int(labels[i]).to_bytes(8, "little"))
        cells = [{"bytes": chunk[i].data, "path": chunk[i].path} for i in good]
        columns = {"image": pa.array(cells, RAW_IMAGE)}
        if labels is not None:
            columns["label"] = pa.array(labels[good], pa.int64())
        self._append(split, pa.table(columns))
        self.counts[split] += len(good)

    def _append(self, split: str, table: pa.Table) -> None:
        if self._open is None or self._open_rows >= ROWS_PER_FILE:
            self.close()
            number = self._files.get(split, 0)
            self._files[split] = number + 1
            path = self._folder / f"{split}-{number:05d}.parquet"
            # The images are compressed already.
            self._open = pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        self._open.write_table(table)
        self._open_rows += len(table)

    def close(self) -> None:
        """Finishes the open file; the next rows begin another."""
        if self._open is not None:
            self._open.close()
        self._open, self._open_rows = None, 0


# Reading


def read_metadata(raw: Path) -> dict[str, Any]:
    try:
        found = read_json(raw / METADATA)
    except FileNotFoundError as error:
        raise DataError(f"{raw / METADATA}: is missing; run `dvc repro fetch`") from error
    if not _describes_images(found):
        raise DataError(f"{raw / METADATA}: does not describe raw images; run `dvc repro fetch` again")
    return found


def _describes_images(found: Any) -> bool:
    if not isinstance(found, dict) or not {"source", "name", "classes", "splits"} <= found.keys():
        return False
    classes, splits = found["classes"], found["splits"]
    return (
        isinstance(found["source"], str)
        and isinstance(found["name"], str | None)
        and (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes)))
        and isinstance(splits, dict)
        and splits.keys() in ({"train"}, {"train", "test"})
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in splits.values())
    )


def class_counts(raw: Path, is_test: dict[str, np.ndarray], classes: list[str] | None) -> list[int] | None:
    """Training images of each class, from the labels alone. is_test: bool [n] by raw split."""
    if classes is None:
        return None
    counts = np.zeros(len(classes), np.int64)
    for split, held_out in is_test.items():
        start = 0
        for path in sorted(raw.glob(f"{split}-*.parquet")):
            with _undamaged(path), pq.ParquetFile(path) as file:
                if "label" not in file.schema_arrow.names:
                    return None  # what is wrong with the rows is said where they are read
                labels = file.read(columns=["label"]).column("label").to_numpy()
            here = labels[~held_out[start : start + len(labels)]]
            start += len(labels)
            if len(here) and (here.dtype != np.int64 or here.min() < 0 or here.max() >= len(classes)):
                return None
            counts += np.bincount(here.astype(np.int64), minlength=len(classes))
    return counts.tolist()


def check_counts(raw: Path, splits: dict[str, int]) -> None:
    """Raises DataError where the files hold other numbers of rows, before memory is taken for them."""
    for split, count in splits.items():
        seen = 0
        for path in sorted(raw.glob(f"{split}-*.parquet")):
            with _undamaged(path), pq.ParquetFile(path) as file:
                seen += file.metadata.num_rows
        if seen != count:
            raise DataError(
                f"{raw / METADATA}: counts {count} {split} images, the files hold {seen}; run `dvc repro fetch` again"
            )


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: is damaged ({in_a_line(error)}); run `dvc repro fetch` again") from error


def _check_columns(path: Path, part: pa.Table, classes: list[str] | None) -> None:
    """Raises DataError where rows are not as `fetch` writes them: image {bytes, path}, label 0..classes-1."""
    fault = None
    if "image" not in part.column_names or part.column("image").type != RAW_IMAGE:
        fault = f"has no column image of {RAW_IMAGE}"
    elif classes is not None:
        if "label" not in part.column_names or part.column("label").type != pa.int64():
            fault = "has no column label of int64"
        else:
            labels = part.column("label")
            ends = (pc.min(labels).as_py(), pc.max(labels).as_py())
            if labels.null_count or (len(part) and (ends[0] < 0 or ends[1] >= len(classes))):
                missing = f" ({labels.null_count} missing)" if labels.null_count else ""
                fault = f"has labels {ends[0]}..{ends[1]}{missing}, not 0..{len(classes) - 1}"
    if fault:
        raise DataError(f"{path}: {fault}; run `dvc repro fetch` again")


def parts(raw: Path, split: str, count: int, *, rows: int, classes: list[str] | None) -> Iterator[pa.Table]:
    """The raw rows of a split in order, at most `rows` at a time: `fetch` keeps the row groups small."""
    seen = 0
    for path in sorted(raw.glob(f"{split}-*.parquet")):
        with _undamaged(path), pq.ParquetFile(path) as file:
            for i in range(file.num_row_groups):
                group = file.read_row_group(i)
                _check_columns(path, group, classes)
                seen += len(group)
                if seen <= count:
                    yield from (group.slice(start, rows) for start in range(0, len(group), rows))
    if seen != count:
        raise DataError(
            f"{raw / METADATA}: counts {count} {split} images, the files hold {seen}; run `dvc repro fetch` again"
        )
