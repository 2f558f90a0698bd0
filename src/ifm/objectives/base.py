"""What a flow's objective is made of: a batch's examples, a loss, and what a step gives to it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import losses
from ifm.conditions.base import Condition
from ifm.dynamics.base import Dynamics, NoiseSource
from ifm.guidance import Guidance
from ifm.hardware.devices import Rows
from ifm.model import IntegrationFlow

Denoiser = Callable[..., Tensor]  # (x_t [b, C, H, W], t [b]) -> E[x_0 | x_t]; condition=... where there is one


@dataclass(frozen=True)
class Examples:
    """This process's part of a batch: points, and the end that the flow is to find."""

    x_t: Tensor  # [b, C, H, W]
    t: Tensor  # [b]
    x_0: Tensor  # [b, C, H, W]
    z: Tensor | None = None  # [b, C, H, W], the noise of a pair's path
    s: Tensor | None = None  # [b], where an interval ends
    mirrored: Tensor | None = None  # [b], which images are shown left-right mirrored
    denoiser: Denoiser | None = None  # where x_0 and z are the mean pair: what x_0 was asked from
    condition: Condition | None = None  # of each

    def part(self, rows: slice) -> "Examples":
        """Some of them."""
        return replace(self, **_rows_of(self, rows))


@dataclass(frozen=True)
class Batch:
    """Everything a loss may need of one step, besides the model."""

    step: int  # of the phase
    steps: int  # the phase has
    at: Examples
    x_anchor: Tensor | None  # [b, C, H, W]
    positions: Tensor  # where its examples stand in the global batch: int64 [b], on the host
    visits: Tensor | None  # n of each anchor, from 1: int64 [b], on the host; bank alone

    def part(self, rows: slice) -> "Batch":
        """Some of its examples."""
        return replace(self, at=self.at.part(rows), **_rows_of(self, rows))


def _rows_of(holder: Any, rows: slice) -> dict[str, Any]:
    """A dataclass's tensors and conditions, all of which have a row for each example, cut down to some rows."""
    values = {f.name: getattr(holder, f.name) for f in fields(holder)}
    cut = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return cut | {name: value.rows(rows) for name, value in values.items() if isinstance(value, Condition)}


# (rows [b], the step, its anchor streams) -> examples
Draw = Callable[[np.ndarray, int, NoiseSource], Examples]
# (model, batch) -> x_0_hat [b, C, H, W] for the anchor policy (None where the loss makes none), loss (scalar)
FlowLoss = Callable[[nn.Module, Batch], tuple[Tensor | None, Tensor]]
Mean = Callable[[int], Denoiser]  # of a step


@dataclass(frozen=True)
class Comparison:
    """How far apart two estimates of x_0 are: params.yaml's flow.distance and flow.huber_c."""

    accelerator: Accelerator
    distance: str
    huber_c: float | None

    def options(self, x_0_hat: Tensor, target: Tensor) -> dict[str, Any]:
        """`distance` and `c` for this batch; an adaptive c is the mean over all processes."""
        c = self.huber_c
        if self.distance == "adaptive_huber":
            c = self.accelerator.reduce(losses.adaptive_huber_c(x_0_hat, target), reduction="mean")
        return {"distance": self.distance, "c": c}


def time_weight(dynamics: Dynamics, t: Tensor, *, kind: str) -> Tensor | None:
    """lambda(t) [B]: "none" is 1 (given as None), "inverse_scale" is 1 / error_scale(t).

    error_scale is the error to be expected at t: EDM's c_out for ve and pfgmpp (t for small t), t for rf.
    """
    if kind not in TIME_WEIGHTS:
        raise ValueError(f"unknown time weight {kind!r}; known: {', '.join(TIME_WEIGHTS)}")
    return None if kind == "none" else 1 / dynamics.error_scale(t)


class Trajectories(Protocol):
    """A teacher's paths, stored or solved as they are needed: `ifm.trajectories` has both."""

    times: Tensor  # float64 [K], falling from t_max to 0

    def __len__(self) -> int: ...
    def expect(self, rows: np.ndarray) -> None: ...
    def points(self, rows: np.ndarray, k: Tensor) -> tuple[Tensor, Tensor]: ...
    def condition(self, rows: np.ndarray) -> Condition | None: ...


TIME_WEIGHTS = ("none", "inverse_scale")


@dataclass(frozen=True)
class Phase:
    """An objective on its data: how many samples there are, a batch's examples, and the loss."""

    size: int
    draw: Draw
    loss: FlowLoss
    expect: Callable[[np.ndarray], None]  # says which rows [b] the next draw will ask for
    average: IntegrationFlow | None = None  # what the loss asks for targets; training keeps it the averaged flow


class Ingredients(Protocol):
    """What the stage `flow` has for an objective to make its phase from. Each is opened when it is asked for."""

    accelerator: Accelerator
    flow: IntegrationFlow
    seed: int
    config: Any  # the section `flow` of params.yaml
    guidance: Guidance | None  # what the flow is to have inside

    def trajectories(self) -> Trajectories:
        """The teacher's paths."""

    def images(self) -> Rows:
        """The training data: uint8 [n, C, H, W] or float32 [n, d]."""

    def pairs(self, *, drop: bool = False) -> dict[str, Any]:
        """The arguments of `ifm.objectives.pairs.draw_pairs` that the data and params.yaml fix.

        drop: leave conditions out as the teacher's training does, for a flow that is led by its own estimate.
        """

    def mean(self, *, led: bool = True) -> "Mean | None":
        """What velocities are averaged over (flow.velocity): see `ifm.objectives.pairs.averaged`. led: guided."""


def comparing(config: Any) -> dict[str, Any]:
    """The arguments of `Comparison` in the section `flow`."""
    return {"distance": config.distance, "huber_c": config.huber_c}
