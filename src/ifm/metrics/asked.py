"""Whether samples are what was asked for: shares by class asked for, and FID within each class."""

from collections.abc import Collection
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ifm.errors import UserError, in_a_line
from ifm.metrics.distances import fid, moments

LABELS = "labels.npy"  # in a folder of samples: the class that each was asked to be, int64 [n]
MEND = "run `dvc repro --force sample@...`"
# FID within a class needs so many samples, and so many real images, for each feature. A covariance of n samples has
# rank n - 1 at most: with fewer samples than features the distance is one of directions that nobody has measured.
# Twice as many keep the least eigenvalue off zero: (1 - sqrt(d / n))^2 = 0.09 of the true one (Bai & Yin 1993).
SAMPLES_A_FEATURE = 2


def read_asked(folder: Path, *, count: int, classes: int) -> np.ndarray:
    """The labels that the samples of a folder were asked for: int64 [count]. Raises UserError."""
    path = folder / LABELS
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({in_a_line(error)}); {MEND}") from error
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise UserError(f"{path}: must be int64 [{count}], got {labels.dtype} {list(labels.shape)}; {MEND}")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{path}: labels from 0 to {classes - 1} are needed, got {labels.min()} to {labels.max()}")
    return labels


def asked_class_share(said: np.ndarray, asked: np.ndarray) -> float:
    """The share of samples whose class is the one asked for. said, asked: int [n]."""
    return float((said == asked).mean())


def shares_by_class(said: np.ndarray, asked: np.ndarray, *, classes: int) -> list[float | None]:
    """`asked_class_share` of the samples of each class asked for; None where none was. said, asked: int [n]."""
    return [asked_class_share(said[of], asked[of]) if (of := asked == k).any() else None for k in range(classes)]


def least_of_a_class(dimension: int) -> int:
    """The fewest samples, and real images, of a class that its FID is computed from."""
    return SAMPLES_A_FEATURE * dimension


def fids_by_class(
    features: np.ndarray, asked: np.ndarray, real: np.ndarray, labels: np.ndarray, *, classes: int
) -> list[float | None]:
    """FID of the samples of each class asked for against the real images of it; None where one side has too few.

    features: [n, d] of samples, asked: int [n]; real: [m, d], labels: int [m]. See `least_of_a_class`.
    """
    least = least_of_a_class(features.shape[1])
    found: list[float | None] = []
    for k in range(classes):
        drawn, have = asked == k, labels == k
        enough = min(drawn.sum(), have.sum()) >= least
        found.append(fid(moments(features[drawn]), moments(real[have])) if enough else None)
    return found


def fid_figures(by_class: list[float | None], *, absent: Collection[int] = ()) -> dict[str, Any]:
    """fids_by_class, and fid_within_classes: their mean, None where a class has none; nothing where none has one.

    The mean over classes is the intra-FID of Miyato & Koyama (2018). absent: classes without real images, which are
    never asked for and count in no mean.
    """
    there = [value for k, value in enumerate(by_class) if k not in absent]
    if not any(value is not None for value in by_class):
        return {}
    return {"fids_by_class": by_class, "fid_within_classes": None if None in there else mean(there)}
