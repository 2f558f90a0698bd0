"""Figures from nearest neighbours in feature space: precision, recall, density, coverage, copies of training data."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64  # rows of the distance matrix held at a time: blocks that fit in the cache are twice as fast as large ones
_GPU_BLOCK_BYTES = 2**29  # of the distance matrix, on a GPU


@dataclass(frozen=True)
class Manifold:
    """Balls around features [n, d], each as wide as the distance to its point's k-th nearest other point."""

    features: Tensor  # float64 [n, d]
    radii: Tensor  # [n]
    k: int

    @classmethod
    def of(cls, features: np.ndarray, *, k: int) -> "Manifold":
        """Raises ValueError where there are not more than k points."""
        if len(features) <= k:
            raise ValueError(f"{len(features)} samples have no {k} nearest others each; use at least {k + 1}")
        wide = _float64(features, device=place_for(features))
        radii = torch.empty(len(wide), dtype=torch.float64, device=wide.device)
        for rows, distances in _distances(wide, wide):
            radii[rows] = distances.kthvalue(k + 1, dim=1).values  # itself is at distance 0
        return cls(wide, radii, k)


def precision_recall(fake: Manifold, real: Manifold) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision: the share of fakes inside a real ball; recall: of real ones inside a fake ball; density: real balls
    around a fake, over k; coverage: the share of real balls that hold a fake.
    """
    device = real.features.device
    precise, balls = torch.zeros(2, dtype=torch.int64, device=device)
    recalled = torch.zeros(len(real.radii), dtype=torch.bool, device=device)
    nearest = torch.full((len(real.radii),), torch.inf, dtype=torch.float64, device=device)
    fakes, of_fakes = fake.features.to(device), fake.radii.to(device)
    for rows, distances in _distances(fakes, real.features):
        inside = distances <= real.radii
        precise += inside.any(dim=1).sum()
        balls += inside.sum()
        recalled |= (distances <= of_fakes[rows, None]).any(dim=0)
        torch.minimum(nearest, distances.amin(dim=0), out=nearest)
    n = len(fake.radii)
    return {
        "precision": int(precise) / n,
        "recall": float(recalled.double().mean()),
        "density": int(balls) / (real.k * n),
        "coverage": float((nearest <= real.radii).double().mean()),
    }


def nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a [n, d] its distance to the nearest row of b [m, d], and which that is: float64 [n], int64 [n].

    A distance is exact to about 1e-8 of the rows' norms: equal rows are that far apart at most.
    """
    device = place_for(a, b)
    least = torch.empty(len(a), dtype=torch.float64, device=device)
    which = torch.empty(len(a), dtype=torch.int64, device=device)
    for rows, distances in _distances(_float64(a, device=device), _float64(b, device=device)):
        least[rows], which[rows] = distances.min(dim=1)
    return least.cpu().numpy(), which.cpu().numpy()


def copies(samples: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Whether samples lie nearer to training data than unseen data do, from both sides' nearest distances [n], [m].

    train_distance_auc: the probability that a sample is farther from the training set than an unseen image is, 0.5 for
    a law that has not memorised (the rank test of Meehan et al. 2020); near_copies: the share of samples nearer to the
    training set than all but the nearest 5 % of unseen images, 0.05 to be expected; train_distance, unseen_distance:
    the medians of both sides.
    """
    from scipy.stats import mannwhitneyu

    farther = mannwhitneyu(samples, unseen).statistic / (len(samples) * len(unseen))
    return {
        "train_distance_auc": float(farther),
        "near_copies": float((samples < np.quantile(unseen, 0.05)).mean()),
        "train_distance": float(np.median(samples)),
        "unseen_distance": float(np.median(unseen)),
    }


def chosen(features: np.ndarray, *, most: int) -> np.ndarray:
    """At most `most` rows, drawn without replacement, always the same ones: images of a folder come in order."""
    if len(features) <= most:
        return np.asarray(features)
    rows = np.random.default_rng(0).choice(len(features), most, replace=False)
    return np.asarray(features[np.sort(rows)])


def place_for(*features: np.ndarray) -> torch.device:
    """This process's GPU where there is one with room for these in float64 several times over, else the CPU."""
    needed = 2 * sum(8 * x.size for x in features) + 4 * _GPU_BLOCK_BYTES
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _float64(features: np.ndarray, *, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(features)).to(device).double()


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows of a, their distances to all of b [rows, m]), a block at a time, in float64.

    What is kept of a block belongs into an array made before: small results between blocks take the gaps that these
    leave in the heap, and the next block does not fit.
    """
    squares = b.square().sum(dim=1)
    size = _BLOCK if a.device.type == "cpu" else max(_BLOCK, _GPU_BLOCK_BYTES // (8 * len(b)))
    for start in range(0, len(a), size):
        block = a[start : start + size]
        squared = block.square().sum(dim=1, keepdim=True) + squares
        squared.sub_(block @ b.T, alpha=2)
        yield slice(start, start + size), squared.clamp_min_(0).sqrt_()
