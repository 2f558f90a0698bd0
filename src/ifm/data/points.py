"""Points of known laws: float32 [n, d] at rest, by the same folders and checksums as images.

Every law is written at the scale of the data, so that nothing is normalised afterwards and closed forms hold:

| law | what | root mean square of a coordinate |
|---|---|---|
| `eight_gaussians` | N(c_k, 0.07^2 I), centres on a circle of radius 0.7; N(0, 0.5^2) in further dimensions | 0.5 |
| `two_moons` | two half circles of radius 0.7, one turned over, noise 0.035 | 0.5 |
| `checkerboard` | uniform on the dark squares of a 4 x 4 board of side sqrt(3) | 0.5 |
| `spiral` | one arm of two turns out to radius 1, uniform over the disc's area, noise 0.02 | 0.5 |
| `gaussian` | N(mu, diag(s^2)), mu = 0.2, -0.2, 0.2, ..., s from 0.6 down to 0.3 | about 0.5 |

The raw form is a folder of points.npy, labels.npy (where the law has modes) and metadata.json; the processed form is
that of ifm.data.arrays, with shards of float32 [n, d].
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
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
    row_digests,
)
from ifm.data.needs import Counts
from ifm.errors import in_a_line
from ifm.files import file_sha256, fresh_folder, read_json, write_json
from ifm.random import stream

POINTS, LABELS = "points.npy", "labels.npy"
RADIUS, MODE_SD, REST_SD = 0.7, 0.07, 0.5
SHARD_ROWS = 2**22
CLASSES = [str(i) for i in range(8)]  # the modes of `eight_gaussians`


@dataclass(frozen=True)
class Drawn:
    """points: float64 [n, d]; labels: the mode of each, int64 [n], where the law has modes."""

    points: np.ndarray
    labels: np.ndarray | None = None


def mode_centres(dimensions: int = 2) -> np.ndarray:
    """The centres of `eight_gaussians`: float64 [8, d], on a circle in the first two dimensions, 0 in the others."""
    angle = np.arange(8) * math.pi / 4
    centres = np.zeros((8, dimensions))
    centres[:, :2] = RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres


def gaussian_moments(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """mu and s of `gaussian`, the law whose flow map is known: float64 [d], [d]."""
    return 0.2 * (-1.0) ** np.arange(dimensions), np.linspace(0.6, 0.3, dimensions)


def _eight_gaussians(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    mode = rng.integers(8, size=n)
    spread = np.full(dimensions, REST_SD)
    spread[:2] = MODE_SD
    return Drawn(mode_centres(dimensions)[mode] + spread * rng.standard_normal((n, dimensions)), mode)


def _two_moons(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """(cos a, sin a) or (1 - cos a, 1/2 - sin a), a in [0, pi], about their mean (1/2, 1/4), times 0.7."""
    angle, lower = rng.uniform(0, math.pi, n), rng.random(n) < 0.5
    x = np.where(lower, 1 - np.cos(angle), np.cos(angle)) - 0.5
    y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle)) - 0.25
    return Drawn(0.7 * np.stack([x, y], axis=1) + 0.035 * rng.standard_normal((n, 2)))


def _checkerboard(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """Column i in 0..3, a row of the other parity half of the time: each of the 8 dark squares has share 1/8."""
    column, row = rng.integers(4, size=n), 2 * rng.integers(2, size=n)
    row += column % 2
    unit = (np.stack([column, row], axis=1) + rng.random((n, 2))) / 4  # [0, 1)^2
    return Drawn(math.sqrt(3) * (unit - 0.5))


def _spiral(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """Angle 4 pi r at radius r, r^2 uniform in [0, 1]."""
    r = np.sqrt(rng.random(n))
    arm = r[:, None] * np.stack([np.cos(4 * math.pi * r), np.sin(4 * math.pi * r)], axis=1)
    return Drawn(arm + 0.02 * rng.standard_normal((n, 2)))


def _gaussian(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    mu, s = gaussian_moments(dimensions)
    return Drawn(mu + s * rng.standard_normal((n, dimensions)))


LAWS: dict[str, Callable[[int, int, np.random.Generator], Drawn]] = {
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
    "gaussian": _gaussian,
}


def draw_points(law: str, *, count: int, dimensions: int, seed: int) -> Drawn:
    """`count` independent points of a law; depends on the arguments alone."""
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}; known: {', '.join(LAWS)}")
    # index 0 of the purpose places the test split, index 1 takes subsets of images.
    return LAWS[law](count, dimensions, stream(seed, "split", index=2))


def fetch_points(config: DataConfig, out: Path) -> dict[str, int]:
    """Draws `data.points.count` points, seeded by data.split_seed, to the raw form in `out`: count by split."""
    law = config.points
    drawn = draw_points(law.law, count=law.count, dimensions=law.dimensions, seed=config.split_seed)
    with fresh_folder(out) as folder:
        np.save(folder / POINTS, drawn.points.astype(np.float32), allow_pickle=False)
        if drawn.labels is not None:
            np.save(folder / LABELS, drawn.labels, allow_pickle=False)
        classes = None if drawn.labels is None else CLASSES
        described = {"source": "points", "name": law.law, "splits": {"train": law.count}, "classes": classes}
        write_json(folder / METADATA, described | {"sha256": file_sha256(folder / POINTS)})
    return {"train": law.count}


@dataclass(frozen=True)
class PointMetadata(StoredMetadata):
    """metadata.json of processed points. mean, std: one per coordinate, of the train split."""

    source: str
    name: str
    shape: list[int]  # [d]
    classes: list[str] | None
    splits: dict[str, ProcessedSplit]
    mean: list[float]
    std: list[float]
    test_in_train: int | None = None

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
    described = _raw(raw)
    points = _load(raw / POINTS, np.float32)  # [n, d]
    labels = None if described["classes"] is None else _load(raw / LABELS, np.int64)  # [n]
    n = len(points) if points.ndim == 2 else 0
    if n < 2 or not points.shape[1] or not np.isfinite(points).all():
        shape = list(points.shape)
        raise DataError(
            f"{raw / POINTS}: must be finite numbers of shape [n >= 2, d], got {shape}; run `dvc repro fetch` again"
        )
    if labels is not None and (labels.shape != (n,) or labels.min() < 0 or labels.max() >= len(CLASSES)):
        raise DataError(f"{raw / LABELS}: must be {n} numbers in 0..{len(CLASSES) - 1}; run `dvc repro fetch` again")
    tests = min(max(round(config.test_fraction * n), 1), n - 1)
    order = stream(config.split_seed, "split").permutation(n)
    rows = {"train": order[tests:], "test": order[:tests]}
    if check is not None:
        modes = None if labels is None else np.bincount(labels[rows["train"]], minlength=len(CLASSES)).tolist()
        check(Counts({name: len(here) for name, here in rows.items()}, described["classes"], modes))
    digests = {name: row_digests(points[here]) for name, here in rows.items()}
    with fresh_folder(out) as folder:
        splits = {
            name: _write_split(
                folder,
                name,
                points[here],
                None if labels is None else labels[here],
                duplicates=count_duplicates(digests[name]),
            )
            for name, here in rows.items()
        }
        train = points[rows["train"]].astype(np.float64)
        metadata = PointMetadata(
            source="points",
            name=described["name"],
            shape=[points.shape[1]],
            classes=described["classes"],
            splits=splits,
            mean=train.mean(axis=0).tolist(),
            std=train.std(axis=0).tolist(),
            test_in_train=int(np.isin(digests["test"], digests["train"], kind="sort").sum()),
        )
        metadata.write(folder)
    return metadata


def _raw(raw: Path) -> dict[str, Any]:
    try:
        described = read_json(raw / METADATA)
    except FileNotFoundError as error:
        raise DataError(f"{raw / METADATA}: is missing; run `dvc repro fetch`") from error
    keys = {"source", "name", "classes"}
    if not isinstance(described, dict) or not keys <= described.keys() or not isinstance(described["name"], str):
        raise DataError(f"{raw / METADATA}: does not describe raw points; run `dvc repro fetch` again")
    if described["source"] != "points":
        raise DataError(f"{raw}: holds {in_a_line(described['source'])}, not points; run `dvc repro fetch` again")
    if described["classes"] not in (None, CLASSES):
        raise DataError(f"{raw / METADATA}: classes must be null or {CLASSES}; run `dvc repro fetch` again")
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
    folder: Path, name: str, points: np.ndarray, labels: np.ndarray | None, *, duplicates: int
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
        counts = np.bincount(labels, minlength=8).tolist()
    return ProcessedSplit(
        count=len(points), shards=shards, class_counts=counts, sha256=digest.hexdigest(), duplicates=duplicates
    )


class PointSet(SampleSet):
    """Points: float32 [n, d]."""

    Metadata, dtype, noun = PointMetadata, np.float32, "points"

    @property
    def gaussian(self) -> tuple[np.ndarray, np.ndarray] | None:
        """mu and s where the law is N(mu, diag(s^2)): float64 [d], [d]; None for the other laws."""
        return gaussian_moments(*self.shape) if self.metadata.name == "gaussian" else None
