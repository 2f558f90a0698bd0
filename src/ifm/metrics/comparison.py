"""One set of samples beside the real data: what the catalogue's metrics are computed from, each part once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ifm.metrics.asked import asked_class_share
from ifm.metrics.classes import PARTS, inception_score, inception_score_of_parts
from ifm.metrics.distances import Moments, fid, kid, moments
from ifm.metrics.language import Language, Texts
from ifm.metrics.neighbours import Manifold, chosen, copies, nearest, precision_recall
from ifm.metrics.points import energy_distance, fewer, mean_distance, sliced_wasserstein

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
    """What an extractor makes of some samples; points are their own features."""

    features: np.ndarray  # float32 [n, d]
    probabilities: np.ndarray | None = None  # float32 [n, K], of the extractor's own classes

    def __len__(self) -> int:
        return len(self.features)

    def part(self, rows: slice) -> "Found":
        """Some of the samples."""
        return Found(self.features[rows], None if self.probabilities is None else self.probabilities[rows])


@dataclass(frozen=True)
class Real:
    """Features of real data, and what every set of samples is compared with, computed once."""

    features: np.ndarray  # [m, d], of the reference split
    measures: Measures
    train: np.ndarray | None = None  # [n, d], what a model may have memorised; None: not known
    unseen: np.ndarray | None = None  # [k, d], held-out samples; None: not known
    language: Language | None = None  # of texts

    @cached_property
    def moments(self) -> Moments:
        return moments(self.features)

    @cached_property
    def manifold(self) -> Manifold:
        return _manifold(self.features, self.measures)

    @cached_property
    def spread(self) -> float:
        """The mean distance within the real points, which every energy distance to them needs."""
        return mean_distance(fewer(self.features), fewer(self.features))

    @cached_property
    def unseen_distances(self) -> np.ndarray | None:
        """How far held-out samples are from the training data: [k]."""
        if self.train is None or self.unseen is None or not len(self.unseen):
            return None
        return nearest(self.unseen, self.train)[0]


@dataclass(frozen=True)
class Comparison:
    """A set of samples and the real data. Raises ValueError in most figures for fewer than two samples."""

    found: Found
    real: Real
    samples: np.ndarray | None = None  # as they are: uint8 [n, C, H, W] or float32 [n, d]; None: not at hand
    said: np.ndarray | None = None  # the class of each, int64 [n], by the data's own classifier; None: there is none
    asked: np.ndarray | None = None  # the class that each was asked to be, int64 [n]; None: none was asked for

    @cached_property
    def fid(self) -> float:
        return fid(moments(self.found.features), self.real.moments)

    @cached_property
    def kid(self) -> float:
        how = self.real.measures
        return kid(
            self.found.features,
            self.real.features,
            subsets=how.kid_subsets,
            subset_size=how.kid_subset_size,
            seed=how.seed,
        )

    @cached_property
    def inception_score(self) -> float:
        return inception_score(self.found.probabilities)

    @property
    def has_parts(self) -> bool:
        """Whether there are class probabilities of enough samples for an inception score over parts."""
        return self.found.probabilities is not None and len(self.found) >= PARTS

    @cached_property
    def inception_score_of_parts(self) -> tuple[float, float]:
        """The mean over ten parts, and the standard deviation over them."""
        return inception_score_of_parts(self.found.probabilities)

    @cached_property
    def neighbours(self) -> Mapping[str, float | None]:
        """precision, recall, density, coverage; None where a side has too few (`without_neighbours`)."""
        if without_neighbours(len(self.found), self.real):
            return dict.fromkeys(OF_NEIGHBOURS)
        return precision_recall(_manifold(self.found.features, self.real.measures), self.real.manifold)

    @cached_property
    def copies(self) -> Mapping[str, float] | None:
        """What `copies` of neighbours.py finds; None where training or unseen data are not known."""
        if self.real.unseen_distances is None:
            return None
        return copies(nearest(self.found.features, self.real.train)[0], self.real.unseen_distances)

    @property
    def asked_class_share(self) -> float | None:
        """None where no class was asked for, or nothing says which class a sample is of."""
        return None if self.said is None or self.asked is None else asked_class_share(self.said, self.asked)

    @cached_property
    def texts(self) -> Texts:
        """The samples as symbols, beside real text."""
        return Texts(np.asarray(self.found.features).astype(np.int32), self.real.language)

    @cached_property
    def sliced_wasserstein(self) -> float:
        projections = self.real.measures.sliced_projections
        return sliced_wasserstein(self.found.features, self.real.features, projections=projections)

    @cached_property
    def energy_distance(self) -> float:
        return energy_distance(self.found.features, self.real.features, within_b=self.real.spread)


def without_neighbours(count: int, real: Real) -> str | None:
    """Why `count` samples have no precision, recall, density and coverage, in a sentence; None where they have."""
    k, reference = real.measures.neighbours, len(real.features)
    if min(count, reference) > k:
        return None
    return (
        f"Precision, recall, density and coverage are not computed: evaluate.neighbours = {k} needs {k + 1} images of "
        f"each side, there are {count} of one and {reference} of the reference."
    )


def least_samples(measures: Measures) -> int:
    """The fewest samples that every figure can be computed from."""
    return max(2, measures.neighbours + 1)


def _manifold(features: np.ndarray, how: Measures) -> Manifold:
    return Manifold.of(chosen(features, most=how.neighbour_samples), k=how.neighbours)
