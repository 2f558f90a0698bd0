"""The dynamics by name: one entry each; `build` makes the one that params.yaml names.

The table names classes and does not import them, so that params.yaml can be checked without torch.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from ifm.schema import Positive, Section, load

if TYPE_CHECKING:
    from ifm.dynamics.base import Dynamics


class NoiseLevelOptions(Section):
    """A range of times, the exponent of the solver's grid, and the training law of the noise level."""

    t_min: Positive
    t_max: Positive
    rho: Positive
    log_time_mean: float
    log_time_std: Positive

    @model_validator(mode="after")
    def _range(self) -> "NoiseLevelOptions":
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min must be below t_max, got {self.t_min} and {self.t_max}")
        return self

    @property
    def levels(self) -> tuple[float, float] | None:
        """The noise levels b / a from t_min to t_max; None: not known without the dynamics."""
        return self.t_min, self.t_max


class RectifiedFlowOptions(Section):
    """The training law of t."""

    logit_time_mean: float
    logit_time_std: Positive

    @property
    def levels(self) -> tuple[float, float] | None:
        """As `NoiseLevelOptions.levels`: all there are."""
        return 0.0, math.inf


class PFGMPlusPlusOptions(NoiseLevelOptions):
    """D, and what ve has."""

    augmented_dimensions: Positive


class VariancePreservingOptions(NoiseLevelOptions):
    """The schedule of the noise, and what ve has."""

    schedule: Literal["linear", "cosine"]
    beta_min: Positive
    beta_max: Positive

    @model_validator(mode="after")
    def _schedule(self) -> "VariancePreservingOptions":
        end = {"linear": 1.0, "cosine": 0.9999}[self.schedule]
        if self.t_max > end:
            raise ValueError(f"t_max must be at most {end} with schedule: {self.schedule}, got {self.t_max}")
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min must be at most beta_max, got {self.beta_min} and {self.beta_max}")
        return self

    @property
    def levels(self) -> tuple[float, float] | None:
        """As `NoiseLevelOptions.levels`: not known without the schedule's code."""
        return None


class TrigonometricOptions(NoiseLevelOptions):
    """What ve has, for t below pi/2."""

    @model_validator(mode="after")
    def _below_a_right_angle(self) -> "TrigonometricOptions":
        if self.t_max > 1.57:
            raise ValueError(f"t_max must be at most 1.57, below pi/2, got {self.t_max}")
        return self

    @property
    def levels(self) -> tuple[float, float] | None:
        """As `NoiseLevelOptions.levels`: tan t."""
        return math.tan(self.t_min), math.tan(self.t_max)


@dataclass(frozen=True)
class Entry:
    """A dynamics: its class (or "module:class"), the keys of its section `ode.<name>`, its title, its colour."""

    dynamics: Any
    options: type[Section]
    title: str
    colour: str  # of the Okabe-Ito set, distinguishable with any colour vision
    paper: bool = False  # whether the paper gives it a scheme of c_skip and c_out
    gaussian: bool = True  # as the class's: whether z ~ N(0, I)


DYNAMICS: dict[str, Entry] = {
    "ve": Entry("ifm.dynamics.ve:VarianceExploding", NoiseLevelOptions, "VE diffusion", "#0072B2", paper=True),
    "rf": Entry("ifm.dynamics.rectified:RectifiedFlow", RectifiedFlowOptions, "Rectified flow", "#D55E00", paper=True),
    "pfgmpp": Entry(
        "ifm.dynamics.pfgmpp:PFGMPlusPlus", PFGMPlusPlusOptions, "PFGM++", "#009E73", paper=True, gaussian=False
    ),
    "vp": Entry("ifm.dynamics.vp:VariancePreserving", VariancePreservingOptions, "VP diffusion", "#CC79A7"),
    "trig": Entry("ifm.dynamics.trig:Trigonometric", TrigonometricOptions, "TrigFlow", "#E69F00"),
}
PAPER = tuple(name for name, entry in DYNAMICS.items() if entry.paper)  # the paper's own


def of_params(name: str, ode: Any, *, data: Any = None) -> "Dynamics":
    """The dynamics called `name` as params.yaml's section `ode` has it. data: gives sigma_data where that is null."""
    given = data.sigma_data if ode.sigma_data is None and data is not None else ode.sigma_data
    return build(name, **getattr(ode, name).model_dump(), sigma_data=given)


def build(name: str, **options: Any) -> "Dynamics":
    """The dynamics called `name`, e.g. ``build("pfgmpp", augmented_dimensions=128)``. Raises ValueError."""
    if name not in DYNAMICS:
        raise ValueError(f"unknown dynamics {name!r}; known: {', '.join(DYNAMICS)}")
    return load(DYNAMICS[name].dynamics)(**options)
