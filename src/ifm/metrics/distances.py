"""Distances between sets of features: Frechet's from moments, and the kernel distance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 4096  # rows of features held in float64 at a time
WHOLE_KERNEL = 4000  # samples up to which the kernel of all pairs is computed once: 128 MB


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] (denominator n - 1) in float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """The moments of features [n, d], in float64, a block of rows at a time. Raises ValueError for fewer than two."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape [n >= 2, d], got {features.shape}")
    n = len(features)
    mean = features.sum(axis=0, dtype=np.float64) / n
    return Moments(mean=mean, covariance=_scatter(features, mean) / (n - 1))


def _scatter(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Sum of (x - mean)(x - mean)^T over rows: float64 [d, d], on a GPU where there is one."""
    d, on_gpu = features.shape[1], torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", torch.cuda.current_device())
        middle = torch.from_numpy(mean).to(device)
        total = torch.zeros(d, d, dtype=torch.float64, device=device)
    scatter = np.zeros((d, d))
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        if on_gpu:
            centred = torch.from_numpy(np.array(block)).to(device).double() - middle
            total.addmm_(centred.T, centred)
        else:
            centred = block.astype(np.float64) - mean
            scatter += centred.T @ centred
    return total.cpu().numpy() if on_gpu else scatter


def fid(a: Moments, b: Moments) -> float:
    """The Frechet distance |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2) (Heusel et al. 2017).

    With S = L L^T, S_a S_b has the eigenvalues of (L_a^T L_b)(L_a^T L_b)^T, so the last trace is the sum of the
    singular values of L_a^T L_b. That is several times faster than the square root of a general matrix, which
    clean-fid takes, and exact to rounding for singular covariances too, where that root is not.
    Raises ValueError where the two differ in dimension or a moment is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the moments have {a.mean.size} and {b.mean.size} features")
    if not all(np.isfinite(x).all() for x in (a.mean, b.mean, a.covariance, b.covariance)):
        raise ValueError("moments hold NaN or infinity")
    cross = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    squares = float(((a.mean - b.mean) ** 2).sum())
    return squares + float(np.trace(a.covariance) + np.trace(b.covariance)) - 2 * float(cross)


def _factor(covariance: np.ndarray) -> Tensor:
    """L with L L^T = covariance: float64 [d, d], by Cholesky, or by eigenvalues where some are not above 0."""
    matrix = torch.from_numpy(np.asarray(covariance, np.float64))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt()


def kid(a: np.ndarray, b: np.ndarray, *, subsets: int, subset_size: int, seed: int) -> float:
    """The kernel distance (cubic polynomial MMD^2, unbiased) over random subsets (Binkowski et al. 2018, eq. 3 and 4).

    a, b: features [n, d], [m, d]. The subsets and the result are clean-fid's under numpy's seed `seed`. clean-fid
    computes each subset's kernels anew, and cubes them by a general power. That took more than half of an evaluation.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    rng = np.random.RandomState(seed % 2**32)
    size = min(len(a), len(b), subset_size)
    draws = [[rng.choice(len(x), size, replace=False) for x in (b, a)] for _ in range(subsets)]
    if max(len(a), len(b)) <= WHOLE_KERNEL:
        of_b, of_a = (_members(rows, len(x)) for rows, x in zip(zip(*draws, strict=True), (b, a), strict=True))
        sums = _sums(_cubic(b, b), of_b, of_b), _sums(_cubic(a, a), of_a, of_a), _sums(_cubic(b, a), of_b, of_a)
        own = of_b @ _cubic_norms(b), of_a @ _cubic_norms(a)
    else:
        kernels = ((_cubic(b[j], b[j]), _cubic(a[i], a[i]), _cubic(b[j], a[i])) for j, i in draws)
        sums = np.transpose([[kernel.sum() for kernel in each] for each in kernels])
        own = np.transpose([[_cubic_norms(b[j]).sum(), _cubic_norms(a[i]).sum()] for j, i in draws])
    within = (sums[0] - own[0] + sums[1] - own[1]) / (size - 1)
    return float(np.mean(within - 2 * sums[2] / size) / size)


def _members(subsets: Sequence[np.ndarray], n: int) -> np.ndarray:
    """1 where a row is in a subset, else 0: float64 [subsets, n]."""
    found = np.zeros((len(subsets), n))
    for row, members in zip(found, subsets, strict=True):
        row[members] = 1
    return found


def _sums(kernel: np.ndarray, of_rows: np.ndarray, of_columns: np.ndarray) -> np.ndarray:
    """Of each subset of rows with its subset of columns the kernel's sum: float64 [subsets]."""
    return (of_rows @ kernel * of_columns).sum(axis=1)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y^T / d + 1)^3 of all pairs: float64 [n, m]."""
    kernel = x @ y.T / x.shape[1] + 1
    return kernel * kernel * kernel


def _cubic_norms(x: np.ndarray) -> np.ndarray:
    """The diagonal of `_cubic(x, x)`: float64 [n]."""
    return ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
