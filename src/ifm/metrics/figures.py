"""From features to figures: one set of samples against the real data, and the mean over several sets."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np

from ifm.metrics import catalogue
from ifm.metrics.comparison import (
    Comparison,
    Found,
    Measures,
    Real,
    least_samples,
    without_neighbours,
)
from ifm.metrics.distances import fid, moments
from ifm.metrics.metric import IMAGES, SPREAD

__all__ = [
    "Comparison", "Found", "Measures", "Real", "fid_trend", "figures_of", "image_figures", "least_samples",
    "over_sets", "without_neighbours",
]  # fmt: skip


def figures_of(compared: Comparison, kind: str) -> dict[str, float | None]:
    """{key: figure} of the catalogue's metrics that are computed from one set of samples of a kind of data.

    None: the set has the metric, but it cannot be computed. Raises ValueError for fewer than two samples.
    """
    return {m.key: m.compute(compared) for m in catalogue.computed(kind) if m.where(compared)}


def image_figures(found: Found, real: Real) -> dict[str, float | None]:
    """`figures_of` features of images."""
    return figures_of(Comparison(found, real), IMAGES)


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
            found[key + SPREAD] = stdev(values)
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
