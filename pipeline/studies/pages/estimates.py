"""Figures over seeds: means and standard deviations, never the best one, and whether two are told apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ifm.metrics import catalogue
from ifm.report.rounding import mean_and_deviation

HOLDS, CONTRADICTED, UNDECIDED, UNMEASURED = "agrees", "contradicts", "not told apart", "no spread to judge by"


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float | None  # None with one seed
    seeds: int
    by_seed: Mapping[int, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return " ".join(mean_and_deviation(self.mean, self.deviation)).rstrip()


def summarised(values: pd.Series) -> Estimate | None:
    """Of figures with their seeds as index."""
    finite = values.astype(float)
    finite = finite[np.isfinite(finite)]
    if finite.empty:
        return None
    deviation = float(finite.std()) if len(finite) > 1 else None
    return Estimate(float(finite.mean()), deviation, len(finite), by_seed=dict(finite.items()))


def mean_ratio(first: Estimate, second: Estimate) -> float | None:
    """The mean of first / second over the seeds that both have, not the ratio of their means; None without a seed."""
    both = [seed for seed in first.by_seed if second.by_seed.get(seed, 0) > 0]
    return sum(first.by_seed[seed] / second.by_seed[seed] for seed in both) / len(both) if both else None


def verdict(first: Estimate, second: Estimate) -> str:
    """Whether `first` is lower: told apart by more than twice the standard error of the difference of the means."""
    if first.deviation is None or second.deviation is None:
        return UNMEASURED
    error = math.sqrt(first.deviation**2 / first.seeds + second.deviation**2 / second.seeds)
    difference = first.mean - second.mean
    if abs(difference) <= 2 * error:
        return UNDECIDED
    return HOLDS if difference < 0 else CONTRADICTED


def judged_by(table: pd.DataFrame) -> str:
    """The first figure that the table has of those that pages judge by: FID, or for points the sliced distance."""
    keys = [metric.key for metric in catalogue.judges() if metric.key in table]
    return next((key for key in keys if table[key].notna().any()), keys[-1])
