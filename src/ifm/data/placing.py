"""Which rows of the raw splits go to train and to test, and in which order."""

from dataclasses import dataclass

import numpy as np

from ifm.config import DataConfig
from ifm.data.arrays import DataError
from ifm.random import stream


@dataclass(frozen=True)
class Placement:
    """Where the rows of one raw split go: row i to `position[i]` of test or train."""

    is_test: np.ndarray  # bool [n]
    position: np.ndarray  # int64 [n]


def place(splits: dict[str, int], config: DataConfig) -> dict[str, Placement]:
    """The source's own test split where it has one, else the first part of a seeded shuffle."""
    if "test" in splits:
        return {name: Placement(np.full(n, name == "test"), np.arange(n)) for name, n in splits.items()}
    n = splits["train"]
    if n < 2:
        raise DataError(f"a train and a test split need at least 2 images, the data set has {n}")
    tests = min(max(round(config.test_fraction * n), 1), n - 1)
    order = stream(config.split_seed, "split").permutation(n)
    is_test, position = np.zeros(n, bool), np.empty(n, np.int64)
    is_test[order[:tests]] = True
    position[order[:tests]] = np.arange(tests)
    position[order[tests:]] = np.arange(n - tests)
    return {"train": Placement(is_test, position)}


def counts_of(placements: dict[str, Placement]) -> dict[str, int]:
    tests = sum(int(p.is_test.sum()) for p in placements.values())
    return {"train": sum(len(p.is_test) for p in placements.values()) - tests, "test": tests}
