"""Power laws y = c x^p through measured points, by least squares in the logarithms of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """y = factor x^exponent; `error` is the exponent's standard error, `expected` what theory says it is."""

    factor: float
    exponent: float
    error: float
    expected: float

    @classmethod
    def fit(cls, sizes: Sequence[float], values: Sequence[float], *, expected: float) -> Self:
        """The line of ln y over ln x. Raises ValueError for fewer than three points, or one that is not above 0."""
        if len(sizes) != len(values) or len(sizes) < 3:
            raise ValueError(f"a power law is fitted to at least 3 points, got {len(sizes)} and {len(values)}")
        if min(*sizes, *values) <= 0 or len(set(sizes)) < 2:
            raise ValueError(f"sizes must differ and all be above 0, got {list(sizes)} and {list(values)}")
        x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(values, np.float64))
        away = x - x.mean()
        spread = float((away**2).sum())
        exponent = float((away * y).sum()) / spread
        at_one = float(y.mean() - exponent * x.mean())
        left = float(((y - at_one - exponent * x) ** 2).sum())
        return cls(math.exp(at_one), exponent, math.sqrt(left / (len(x) - 2) / spread), expected)

    @property
    def grows(self) -> bool:
        """Whether it should, and the exponent is above 0.1 and above 0 by two standard errors."""
        return self.expected > 0 and self.exponent > max(0.1, 2 * self.error)

    def at(self, size: float) -> float:
        """y at a size."""
        return self.factor * size**self.exponent

    def size_at(self, value: float) -> float:
        """The size at which y gets to a value; infinity where y does not grow."""
        return (value / self.factor) ** (1 / self.exponent) if self.grows else math.inf

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.error:.2f} ({self.expected:g})"
