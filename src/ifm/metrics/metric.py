"""What a metric is: the descriptor that `ifm.metrics.catalogue` has one of for every number."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ifm.metrics.comparison import Comparison

IMAGES, POINTS, TEXT = "images", "points", "text"
PLAIN = (POINTS, TEXT)  # kinds whose figures are of the samples themselves, not of an extractor's features
SPREAD = "_sd"  # <key>_sd is the standard deviation over sampling seeds
FLOOR = "floor_"  # floor_<key> of the reference's record is the figure of real data


class Better(StrEnum):
    """Which way is better."""

    LOWER = "lower"
    HIGHER = "higher"


class Role(StrEnum):
    """What a number is for; this decides where it stands."""

    MERIT = "merit"  # judges samples: drawn, ranked by sweeps, on the model card, in MLflow's run of a state
    SIDE = "side"  # says more about the samples: in tables and in the run of a state
    DETAIL = "detail"  # in tables, and in the run of stage `evaluate` alone
    COST = "cost"  # what sampling and training took; measured by other stages


@dataclass(frozen=True)
class Aligned:
    """One number of decimals for a column: the smallest value shows `digits` significant digits."""

    scale: float = 1
    digits: int = 2
    least: int = 0  # decimals
    most: int = 5  # decimals


@dataclass(frozen=True)
class Sized:
    """Each value with `digits` significant digits of its own; "<" below `least`."""

    scale: float = 1
    digits: int = 3
    least: float = 0


@dataclass(frozen=True)
class Count:
    """A whole number."""

    scale: float = 1


@dataclass(frozen=True)
class Probability:
    """Three decimals; "< 0.001" below that."""

    scale: float = 1


@dataclass(frozen=True)
class Plot:
    """How a figure of merit is drawn against the number of network evaluations."""

    log: bool = False
    linear_within: float | None = None  # both signs: logarithmic beyond this, linear within
    real: bool = False  # a line at the figure of real data: only where it does not depend on their number
    caption: str = ""  # "": title and tooltip


Compute = Callable[["Comparison"], float | None]


@dataclass(frozen=True)
class Metric:
    """A number: how it is computed, and how it is shown."""

    key: str  # in files, params and MLflow
    title: str  # of a column or an axis; {sample} is "image", "point" or "text"
    better: Better | None  # None: neither way
    tooltip: str = ""  # what it says, in a sentence
    ideal: float | None = None  # of samples that follow the real law, where that is known
    kinds: tuple[str, ...] = (IMAGES,)  # of data that have it
    # From one set of samples; None as a result: it cannot be computed. Without a function, other code measures it.
    compute: Compute | None = None
    where: Callable[["Comparison"], bool] = lambda of: True  # whether a set has it at all
    role: Role = Role.MERIT
    format: Aligned | Sized | Count | Probability = field(default=Aligned(digits=3))
    plot: Plot = field(default=Plot())
    spread: bool = True  # has a standard deviation over sampling seeds beside it
    judges: bool = False  # the one figure that a page of such data is judged by
    studied: bool = False  # has columns in the tables of `make ablation` and `make objectives`
    headline: bool = False  # among the few that `dvc exp show` lists, besides the judging one
    last: int = 0  # above 0: behind the costs in a table of all numbers, in this order
    floor: bool = False  # real data's figure is in the reference's record

    @property
    def columns(self) -> tuple[str, ...]:
        """Of summary.csv: the figure, and its standard deviation where there is one."""
        return (self.key, self.key + SPREAD) if self.spread else (self.key,)

    @property
    def name(self) -> str:
        """The title inside a sentence: FID, inception score, sliced 2-Wasserstein."""
        first = self.title.split(" ")[0].rstrip(",")
        return self.title if first.isupper() else self.title[:1].lower() + self.title[1:]

    @property
    def caption(self) -> str:
        """Under its plot."""
        return self.plot.caption or ": ".join(text for text in (self.title, self.tooltip) if text)

    @property
    def hint(self) -> str:
        """What it says and which way is better, for a tooltip."""
        way = f"{self.better.capitalize()} is better." if self.better else ""
        ideal = "" if self.ideal is None else f"The real law has {self.ideal:g}."
        said = self.tooltip[:1].upper() + self.tooltip[1:]
        return " ".join(text for text in (said, way, ideal) if text)
