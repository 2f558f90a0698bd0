"""Distances between sets of features: clean-fid's own functions, called with moments and seeds of ours."""

import warnings
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] (denominator n - 1) in float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """The moments of features [n, d]. Raises ValueError for fewer than two samples."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape [n >= 2, d], got {features.shape}")
    wide = features.astype(np.float64)
    return Moments(mean=wide.mean(axis=0), covariance=np.atleast_2d(np.cov(wide, rowvar=False)))


def fid(a: Moments, b: Moments) -> float:
    """The Frechet distance |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), by clean-fid."""
    from cleanfid.fid import frechet_distance

    with warnings.catch_warnings():
        # scipy on an argument that clean-fid passes, and on singular covariances, which clean-fid itself sees to.
        warnings.simplefilter("ignore")
        return float(frechet_distance(a.mean, a.covariance, b.mean, b.covariance))


def kid(a: np.ndarray, b: np.ndarray, *, subsets: int, subset_size: int, seed: int) -> float:
    """The kernel distance (cubic polynomial MMD^2, unbiased) over random subsets, by clean-fid.

    a, b: features [n, d], [m, d]. clean-fid draws from numpy's global generator: it is seeded here and put back.
    """
    from cleanfid.fid import kernel_distance

    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        return float(
            kernel_distance(
                a.astype(np.float64), b.astype(np.float64), num_subsets=subsets, max_subset_size=subset_size
            )
        )
    finally:
        np.random.set_state(state)
