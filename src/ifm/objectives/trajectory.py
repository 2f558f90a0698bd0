"""Objective `trajectory`: a teacher's paths, each a regression of its end point."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import losses
from ifm.conditions.base import told
from ifm.dynamics.base import NoiseSource
from ifm.hardware.devices import to_device
from ifm.model import IntegrationFlow
from ifm.objectives.base import (
    Batch,
    Comparison,
    Examples,
    Ingredients,
    Phase,
    Trajectories,
    comparing,
    time_weight,
)


def loss(
    x_0_hat: Tensor,
    *,
    x_0: Tensor,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """distance(g(x_anchor, x_t, t), end point of the trajectory through x_t), averaged over the batch: a scalar.

    weight: lambda(t) [B], 1 if None.
    """
    return losses.average(losses.measure(x_0_hat, x_0, distance=distance, c=c), weight)


def draw_stored_index(uniform: Tensor, *, stored: int, t_max_share: float) -> Tensor:
    """Which stored time each sample trains at: 0 (t_max) with probability t_max_share, else 1 .. stored - 2 evenly.

    uniform: U[0, 1) [B]. The last stored state is x_0 itself, the target; with two stored times only t_max is left.
    """
    others = stored - 2
    if not others:
        return torch.zeros_like(uniform, dtype=torch.int64)
    rest = (uniform - t_max_share) / max(1 - t_max_share, 1e-12)
    inner = 1 + (rest * others).long().clamp(0, others - 1)
    return torch.where(uniform < t_max_share, 0, inner)


def trajectory_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    trajectories: Trajectories,
    *,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    weighting: str = "none",
) -> Phase:
    """Objective `trajectory`, on a teacher's paths.

    Each sample is one stored point (x_t, t) of a path and the path's end x_0, of which it is a function: the
    regression is well posed.
    """
    stored_times = trajectories.times.float()
    comparison = Comparison(accelerator, distance, huber_c)

    def draw(rows: np.ndarray, step: int, streams: NoiseSource) -> Examples:
        k = draw_stored_index(streams.uniform(), stored=len(stored_times), t_max_share=t_max_share)  # [b]
        x_t, x_0 = trajectories.points(rows, k)
        t = to_device(stored_times[k], accelerator.device)
        return Examples(x_t, t, x_0, condition=trajectories.condition(rows))

    def step_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor, **told(at.condition))
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        how = comparison.options(x_0_hat, at.x_0)
        return x_0_hat, loss(x_0_hat, x_0=at.x_0, weight=weight, **how)

    return Phase(len(trajectories), draw, step_loss, trajectories.expect)


def phase(given: Ingredients) -> Phase:
    """The phase that params.yaml asks for."""
    config = given.config
    options = {"t_max_share": config.t_max_share, "weighting": config.time_weight, **comparing(config)}
    return trajectory_phase(given.accelerator, given.flow, given.trajectories(), **options)
