"""Points: float32 [n, d] at rest, by the same folders and checksums as images.

The raw form is a folder of points.npy, labels.npy (where there are classes) and metadata.json; the processed form is
that of ifm.data.arrays, with shards of float32 [n, d]. Columns in units of their own (source: array) are float64 in the
raw form, and standardised in the processed one (ifm.modalities.units).
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifm.config import DataConfig
from ifm.data.arrays import (
    METADATA,
    DataError,
    ProcessedSplit,
    SampleSet,
    StoredMetadata,
    count_duplicates,
    raw_description,
    row_digests,
)
from ifm.data.found import Points
from ifm.data.laws import gaussian_moments
from ifm.data.needs import Counts
from ifm.errors import in_a_line
from ifm.files import file_sha256, fresh_folder, write_json
from ifm.modalities.units import KEY, Units
from ifm.random import stream

POINTS, LABELS = "points.npy", "labels.npy"
SHARD_ROWS = 2**22


def write_raw(out: Path, found: Points, *, source: str, name: str) -> None:
    """Writes the raw form in `out`. source: as in data.source; name: what the data set is called."""
    splits = {"train": len(found.points)}
    with fresh_folder(out) as folder:
        dtype = np.float32 if found.columns is None else np.float64
        np.save(folder / POINTS, found.points.astype(dtype), allow_pickle=False)
        if found.labels is not None:
            np.save(folder / LABELS, found.labels, allow_pickle=False)
        described = {"source": source, "name": name, "splits": splits, "classes": found.classes}
        described |= {} if found.columns is None else {"columns": found.columns}
        write_json(folder / METADATA, described | {"sha256": file_sha256(folder / POINTS)})


@dataclass(frozen=True)
class PointMetadata(StoredMetadata):
    """metadata.json of processed points. mean, std: one per coordinate, of the train split.

    points: `Units.described` of columns that have been standardised, beside modality: points; without such columns
    there are no such keys.
    """

    source: str
    name: str
    shape: list[int]  # [d]
    classes: list[str] | None
    splits: dict[str, ProcessedSplit]
    mean: list[float]
    std: list[float]
    test_in_train: int | None = None
    modality: str | None = None
    points: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Writes metadata.json."""
        named = ("modality", KEY)
        kept = {key: value for key, value in asdict(self).items() if key not in named or value is not None}
        write_json(folder / METADATA, kept)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(d,)."""
        return tuple(self.shape)


def preprocess_points(
    config: DataConfig, raw: Path, out: Path, *, check: Callable[[Counts], None] | None = None
) -> PointMetadata:
    """Splits the raw points by data.test_fraction and data.split_seed into the processed form in `out`.

    The same input gives the same bytes. check: is told how much there is, before anything is written. Raises DataError
    where `raw` is missing, damaged or of another source.
    """
    described = _raw(raw, source=config.source)
    k = len(described["classes"] or ())
    columns = described.get("columns")
    points = _load(raw / POINTS, np.float32 if columns is None else np.float64)  # [n, d]
    labels = None if described["classes"] is None else _load(raw / LABELS, np.int64)  # [n]
    n = len(points) if points.ndim == 2 else 0
    if n < 2 or not points.shape[1] or not np.isfinite(points).all():
        shape = list(points.shape)
        raise DataError(
            f"{raw / POINTS}: must be finite numbers of shape [n >= 2, d], got {shape}; run `dvc repro fetch` again"
        )
    if labels is not None and (labels.shape != (n,) or labels.min() < 0 or labels.max() >= k):
        raise DataError(f"{raw / LABELS}: must be {n} numbers in 0..{k - 1}; run `dvc repro fetch` again")
    tests = min(max(round(config.test_fraction * n), 1), n - 1)
    order = stream(config.split_seed, "split").permutation(n)
    rows = {"train": order[tests:], "test": order[:tests]}
    if check is not None:
        modes = None if labels is None else np.bincount(labels[rows["train"]], minlength=k).tolist()
        check(Counts({name: len(here) for name, here in rows.items()}, described["classes"], modes))
    units = None
    if columns is not None:
        units = _units(points[rows["train"]], columns, raw)
        with np.errstate(over="ignore"):
            points = units.standardised(points)
        if not np.isfinite(points).all():
            name = columns[int(np.flatnonzero(~np.isfinite(points).all(axis=0))[0])]
            raise DataError(
                f"{raw}: column {name} has test values so far from the train split's that float32 cannot hold them in "
                "its deviations; leave out those rows, or the column"
            )
    digests = {name: row_digests(points[here]) for name, here in rows.items()}
    with fresh_folder(out) as folder:
        splits = {
            name: _write_split(
                folder,
                name,
                points[here],
                None if labels is None else labels[here],
                classes=k,
                duplicates=count_duplicates(digests[name]),
            )
            for name, here in rows.items()
        }
        train = points[rows["train"]].astype(np.float64)
        metadata = PointMetadata(
            source=described["source"],
            name=described["name"],
            shape=[points.shape[1]],
            classes=described["classes"],
            splits=splits,
            mean=train.mean(axis=0).tolist(),
            std=train.std(axis=0).tolist(),
            test_in_train=int(np.isin(digests["test"], digests["train"], kind="sort").sum()),
            **({} if units is None else {"modality": KEY, KEY: units.described()}),
        )
        metadata.write(folder)
    return metadata


def _units(train: np.ndarray, columns: list[str], raw: Path) -> Units:
    """Of the train split, by which all is standardised."""
    if len(columns) != train.shape[1]:
        raise DataError(
            f"{raw / METADATA}: names {len(columns)} columns of {train.shape[1]}; run `dvc repro fetch` again"
        )
    try:
        return Units.of(train, columns)
    except ValueError as error:
        raise DataError(f"{raw / POINTS}: in the train split {error}") from error


def _raw(raw: Path, *, source: str) -> dict[str, Any]:
    described = raw_description(raw, source=source, keys={"source", "name", "classes"}, noun="points")
    classes = described["classes"]
    named = isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    if classes is not None and not named:
        raise DataError(f"{raw / METADATA}: classes must be null or a list of names; run `dvc repro fetch` again")
    return described


def _load(path: Path, dtype: type) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # see ifm.data.arrays: NumPy answers damaged headers with nearly any kind
        raise DataError(f"{path}: cannot be read ({in_a_line(error)}); run `dvc repro fetch` again") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays, not an array; run `dvc repro fetch` again")
    if array.dtype != dtype:
        raise DataError(f"{path}: holds {array.dtype}, not {np.dtype(dtype)}; run `dvc repro fetch` again")
    return array


def _write_split(
    folder: Path, name: str, points: np.ndarray, labels: np.ndarray | None, *, classes: int, duplicates: int
) -> ProcessedSplit:
    """Shards and labels of one split. The digest is over the points' bytes, then the labels' as little-endian."""
    digest, shards = hashlib.sha256(), []
    for start in range(0, len(points), SHARD_ROWS):
        block = np.ascontiguousarray(points[start : start + SHARD_ROWS], "<f4")
        shards.append(f"{name}-{len(shards):05d}.npy")
        np.save(folder / shards[-1], block, allow_pickle=False)
        digest.update(block)
    counts = None
    if labels is not None:
        np.save(folder / f"{name}-labels.npy", labels, allow_pickle=False)
        digest.update(labels.astype("<i8"))
        counts = np.bincount(labels, minlength=classes).tolist()
    return ProcessedSplit(
        count=len(points), shards=shards, class_counts=counts, sha256=digest.hexdigest(), duplicates=duplicates
    )


class PointSet(SampleSet):
    """Points: float32 [n, d]."""

    Metadata, dtype, noun = PointMetadata, np.float32, "points"

    @property
    def gaussian(self) -> tuple[np.ndarray, np.ndarray] | None:
        """mu and s where the law is N(mu, diag(s^2)): float64 [d], [d]; None for the other laws."""
        known = (self.metadata.source, self.metadata.name) == ("points", "gaussian")
        return gaussian_moments(*self.shape) if known else None
