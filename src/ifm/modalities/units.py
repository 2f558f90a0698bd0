"""Columns of numbers in their own units: standardised for a model by recorded means and deviations, and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

KEY = "points"  # in metadata.json and ifm.json, beside modality: points; see ifm.modalities.recorded


@dataclass(frozen=True)
class Units:
    """Of each of d columns its name, and mean and standard deviation over the train split."""

    columns: list[str]
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, values: np.ndarray, columns: list[str]) -> Self:
        """Those of values [n, d]. Raises ValueError that names a column without spread, or with one beyond float64."""
        values = values.astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = values.mean(axis=0), values.std(axis=0)
        for name, low, high, spread in zip(columns, values.min(axis=0), values.max(axis=0), std, strict=True):
            if low == high:
                raise ValueError(f"column {name} is constant ({low:g}): there is nothing to learn of it; leave it out")
            if not 0 < spread < np.inf:
                raise ValueError(
                    f"column {name} has values from {low:g} to {high:g}, whose deviation float64 cannot hold; scale it"
                )
        return cls(list(columns), mean.tolist(), std.tolist())

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> Self | None:
        """What metadata.json or ifm.json records; None where the numbers are as the model has them."""
        found = described.get(KEY)
        return None if found is None else cls(**found)

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """(x - mean) / std: float [n, d] -> float32 [n, d]."""
        return ((values - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def original(self, x: np.ndarray) -> np.ndarray:
        """mean + std x: float [n, d] -> float64 [n, d]."""
        return np.array(self.mean) + np.array(self.std) * x.astype(np.float64)

    def described(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
