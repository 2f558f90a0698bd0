"""From features to figures: one set of samples against the real data, and the mean over several sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

import numpy as np

from ifm.metrics.classes import inception_score
from ifm.metrics.distances import Moments, fid, kid, moments
from ifm.metrics.neighbours import Manifold, chosen, copies, nearest, precision_recall
from ifm.metrics.points import energy_distance, mean_distance, sliced_wasserstein

OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Measures:
    """How figures are computed; `evaluate` in params.yaml."""

    kid_subsets: int
    kid_subset_size: int
    neighbours: int  # k of precision, recall, density, coverage
    neighbour_samples: int  # the most of each side that takes part in those
    sliced_projections: int
    seed: int  # of KID's subsets


@dataclass(frozen=True)
class Found:
    """What an extractor makes of some images."""

    features: np.ndarray  # float32 [n, d]
    probabilities: np.ndarray | None = None  # float32 [n, K], of the extractor's own classes

    def __len__(self) -> int:
        return len(self.features)

    def part(self, rows: slice) -> "Found":
        """Some of the images."""
        return Found(self.features[rows], None if self.probabilities is None else self.probabilities[rows])


@dataclass(frozen=True)
class Real:
    """Features of real images, and what every set of samples is compared with, computed once."""

    features: np.ndarray  # [m, d], of the reference split
    measures: Measures
    train: np.ndarray | None = None  # [n, d], what a model may have memorised; None: not known
    unseen: np.ndarray | None = None  # [k, d], held-out images; None: not known

    @cached_property
    def moments(self) -> Moments:
        return moments(self.features)

    @cached_property
    def manifold(self) -> Manifold:
        return _manifold(self.features, self.measures)

    @cached_property
    def unseen_distances(self) -> np.ndarray | None:
        """How far held-out images are from the training images: [k]."""
        if self.train is None or self.unseen is None or not len(self.unseen):
            return None
        return nearest(self.unseen, self.train)[0]


def image_figures(found: Found, real: Real) -> dict[str, float | None]:
    """fid, kid, precision, recall, density, coverage; inception_score and copies of training data where they can be.

    The four of neighbours are None where either side has no more than `neighbours` images (`without_neighbours`).
    Raises ValueError for fewer than two.
    """
    how = real.measures
    figures = {
        "fid": fid(moments(found.features), real.moments),
        "kid": kid(
            found.features, real.features, subsets=how.kid_subsets, subset_size=how.kid_subset_size, seed=how.seed
        ),
    }
    if found.probabilities is not None:
        figures["inception_score"] = inception_score(found.probabilities)
    if without_neighbours(len(found), real):
        figures |= dict.fromkeys(OF_NEIGHBOURS)
    else:
        figures |= precision_recall(_manifold(found.features, how), real.manifold)
    if real.unseen_distances is not None:
        figures |= copies(nearest(found.features, real.train)[0], real.unseen_distances)
    return figures


def without_neighbours(count: int, real: Real) -> str | None:
    """Why `count` samples have no precision, recall, density and coverage, in a sentence; None where they have."""
    k, reference = real.measures.neighbours, len(real.features)
    if min(count, reference) > k:
        return None
    return (
        f"Precision, recall, density and coverage are not computed: evaluate.neighbours = {k} needs {k + 1} images of "
        f"each side, there are {count} of one and {reference} of the reference."
    )


def point_figures(points: np.ndarray, real: np.ndarray, *, projections: int, within_real: float) -> dict[str, float]:
    """sliced_wasserstein and energy_distance of points [n, d] to real ones [m, d]; within_real: see `point_spread`."""
    return {
        "sliced_wasserstein": sliced_wasserstein(points, real, projections=projections),
        "energy_distance": energy_distance(points, real, within_b=within_real),
    }


def point_spread(real: np.ndarray) -> float:
    """The mean distance within the real points, which every energy distance to them needs."""
    return mean_distance(real, real)


def over_sets(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each figure over sets of samples, and beside it, from two sets on, its standard deviation (_sd).

    A figure that a set has not (None) has no mean.
    """
    found: dict[str, float | None] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if None in values:
            found[key] = None
            continue
        found[key] = mean(values)
        if len(values) > 1:
            found[f"{key}_sd"] = stdev(values)
    return found


def fid_trend(sets: Sequence[Found], real: Real) -> dict[str, float]:
    """fid_pooled, of all sets together, and fid_extrapolated, to infinitely many samples (Chong & Forsyth 2020).

    FID at n samples is too large by about c/n. With S sets of n, F(n) their mean and F(Sn) the pooled one, the limit is
    (S F(Sn) - F(n)) / (S - 1). A single set is cut into two halves. The reference keeps its size.
    """
    if len(sets) == 1:
        whole, half = sets[0], len(sets[0]) // 2
        if half < 2:
            return {}
        sets = [whole.part(slice(0, half)), whole.part(slice(half, 2 * half))]
    pooled = fid(moments(np.concatenate([s.features for s in sets])), real.moments)
    apart = mean(fid(moments(s.features), real.moments) for s in sets)
    count = len(sets)
    return {"fid_pooled": pooled, "fid_extrapolated": (count * pooled - apart) / (count - 1)}


def least_samples(measures: Measures) -> int:
    """The fewest samples that every figure can be computed from."""
    return max(2, measures.neighbours + 1)


def _manifold(features: np.ndarray, how: Measures) -> Manifold:
    return Manifold.of(chosen(features, most=how.neighbour_samples), k=how.neighbours)
