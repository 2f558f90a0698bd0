"""Distances between sets of points: sliced Wasserstein by POT, energy distance by its pairwise formula."""

import math

import numpy as np

# The same directions for every figure, so that samplers, dynamics and seeds are compared along the same lines.
PROJECTION_SEED = 0
_BLOCK = 1024
MOST_PRODUCTS = 2**37  # of numbers in the distances of all pairs: minutes


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, projections: int) -> float:
    """Sliced 2-Wasserstein distance: root of the mean of W_2^2 over random directions, by POT. a [n, d], b [m, d]."""
    from ot.sliced import sliced_wasserstein_distance

    a, b = _checked(a, b)
    found = sliced_wasserstein_distance(a, b, n_projections=projections, p=2, seed=PROJECTION_SEED)
    return float(found)


def energy_distance(a: np.ndarray, b: np.ndarray, *, within_b: float | None = None) -> float:
    """sqrt(2 E|x - y| - E|x - x'| - E|y - y'|), in 1-D scipy.stats.energy_distance; 0 for equal samples.

    a: [n, d], b: [m, d]. within_b: E|y - y'|, `mean_distance(b, b)`, where it is known already.
    """
    a, b = map(fewer, _checked(a, b))
    within_b = mean_distance(b, b) if within_b is None else within_b
    return math.sqrt(max(0.0, 2 * mean_distance(a, b) - mean_distance(a, a) - within_b))


def fewer(points: np.ndarray) -> np.ndarray:
    """Rows of [n, d], evenly chosen and as many as bound n^2 d by MOST_PRODUCTS: all pairs are compared."""
    n, d = points.shape
    most = int((MOST_PRODUCTS / max(d, 1)) ** 0.5)
    return points if n <= most else points[np.linspace(0, n - 1, most).round().astype(int)]


def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of |x - y| over all pairs of a [n, d] and b [m, d], a block at a time."""
    from scipy.spatial.distance import cdist

    a, b = _checked(a, b)
    sums = [cdist(a[i : i + _BLOCK], b).sum() for i in range(0, len(a), _BLOCK)]
    return math.fsum(sums) / (len(a) * len(b))


def nearest_centres(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre of [k, d] that each of the points [n, d] lies nearest to: int64 [n]."""
    from scipy.spatial.distance import cdist

    return cdist(*_checked(points, centres)).argmin(axis=1)


def nearest_shares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The share of points [n, d] that lie nearest to each of the centres [k, d]: [k]."""
    return np.bincount(nearest_centres(points, centres), minlength=len(centres)) / len(points)


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"need points [n, d] and [m, d], got {a.shape} and {b.shape}")
    return a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)
