"""What a data source has found, before anything is written. Light: see ifm.data.sources.base."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DataSection = Any  # the section `data` of params.yaml, as ifm.config has it


@dataclass(frozen=True)
class Encoded:
    """One image file. data: its bytes, None where they cannot be read. path: a name for it, not absolute."""

    data: bytes | None
    path: str | None


@dataclass(frozen=True)
class Split:
    """One split of images. images: the encoded images of given rows, int64 [m] and ascending."""

    count: int
    labels: list[Any] | None  # [count], as the source has them
    images: "Callable[[np.ndarray], Iterable[Encoded]]"


@dataclass(frozen=True)
class Images:
    """Images as found. names: class names where the source states them.

    passed_over: other files by suffix or kind. unused: splits, folders or files of the source that were not read.
    commit: what data.revision stands for.
    """

    splits: dict[str, Split]  # "train", and "test" where the source has its own
    names: list[str] | None = None
    passed_over: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    commit: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Texts:
    """Text as found: the documents of each split, as bytes. commit: what data.revision stands for."""

    splits: dict[str, list[bytes]]
    commit: str | None = None


@dataclass(frozen=True)
class Points:
    """Points as found: float [n, d]. labels: int64 [n] in 0..k-1, classes: their k names; both None without classes.

    columns: names of the d columns of numbers that are in units of their own, and so are standardised; else None.
    """

    points: "np.ndarray"
    labels: "np.ndarray | None" = None
    classes: list[str] | None = None
    columns: list[str] | None = None
