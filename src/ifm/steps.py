"""From x_T to x_0 by the flow, in one evaluation or in a few: the paper's sampler, re-noising, sub-intervals."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ifm.conditions.base import Condition, told
from ifm.dynamics.base import Dynamics, NoiseSource
from ifm.hardware.devices import to_device
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.recorded import Way
from ifm.solver import at_time

RENOISE_RHO = 7.0


@torch.no_grad()
def sample(
    flow: IntegrationFlow,
    x_T: Tensor,
    *,
    x_anchor: Tensor | None,
    steps: int = 1,
    condition: Condition | None = None,
) -> Tensor:
    """The paper's sampler: x_0_hat = g(x_anchor, x_T, t_max), fed back as the anchor, x_T fixed: [B, C, H, W].

    One step costs one evaluation; `steps` of them cost `steps`. Without an anchor further steps change nothing.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    x_0_hat = x_T
    for _ in range(steps):
        x_0_hat = flow(x_T, at_time(x_T, flow.dynamics.t_max), x_anchor=x_anchor, **told(condition))
        if x_anchor is not None:
            x_anchor = x_0_hat
    return x_0_hat


@torch.no_grad()
def sample_renoised(
    flow: IntegrationFlow,
    x_T: Tensor,
    *,
    x_anchor: Tensor | None,
    steps: int,
    generator: NoiseSource,
    times: Sequence[float] | None = None,
    condition: Condition | None = None,
) -> Tensor:
    """Map to x_0_hat, re-noise it to the next smaller time, map again (consistency models, algorithm 1).

    times: of the `steps` evaluations, t_max first; None: those of `renoising_times`. The estimate is also the next
    anchor.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    dynamics = flow.dynamics
    x_0_hat = sample(flow, x_T, x_anchor=x_anchor, condition=condition)
    for t in (times or renoising_times(dynamics, steps))[1:]:
        z = to_device(dynamics.draw_noise(tuple(x_T.shape[1:]), generator=generator), x_T.device).to(x_T.dtype)
        x_0_hat = map_again(flow, x_0_hat, z=z, t=t, condition=condition)
    return x_0_hat


@torch.no_grad()
def map_again(
    flow: IntegrationFlow, x_0_hat: Tensor, *, z: Tensor, t: float, condition: Condition | None = None
) -> Tensor:
    """The estimate noised to time t by z and mapped again, itself the anchor: [B, C, H, W]."""
    x_t = flow.dynamics.perturb(x_0_hat, z=z, t=at_time(z, t))
    x_anchor = x_0_hat if flow.takes_anchor else None
    return flow(x_t, at_time(x_t, t), x_anchor=x_anchor, **told(condition))


@torch.no_grad()
def sample_chained(
    flow: IntervalFlow,
    x_T: Tensor,
    *,
    x_anchor: Tensor | None,
    steps: int,
    condition: Condition | None = None,
) -> Tensor:
    """x_T through `steps` sub-intervals, even in the path's angle, down to t_min: [B, C, H, W].

    Each costs one evaluation and ends where the next one starts, without fresh noise: any number of steps follows
    the same path.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    dynamics, x = flow.dynamics, x_T
    widest = dynamics.angle(torch.tensor([dynamics.t_max], dtype=torch.float64))
    times = dynamics.time_at(torch.linspace(1, 0, steps + 1, dtype=torch.float64) * widest).tolist()
    for t, s in pairwise([dynamics.t_max, *times[1:]]):
        x = flow(x, at_time(x, t), x_anchor=x_anchor, s=at_time(x, s), **told(condition))
    return x


def renoising_times(dynamics: Dynamics, steps: int) -> list[float]:
    """t_max and the times after it on EDM's grid of steps + 1 points above 0, the last of them left out.

    EDM's rho for rf too: the flow is trained at times of the paths' grid, not of rf's even one.
    """
    return dynamics.solver_times(steps + 1, rho=RENOISE_RHO)[:steps].tolist() if steps > 1 else [dynamics.t_max]


# --- which way, where none is named -----------------------------------------------------------------------------------


def way_of(flow: IntegrationFlow, steps: int) -> Way:
    """How a flow samples in `steps` evaluations: as it records that this measured best (`ifm.recorded`).

    Of a number that was not measured: the first `steps` times of the next larger record that re-noises; else the
    largest smaller record, whose times go on down to the last time of the paths' grid, geometric in the noise level,
    or whose refining or chaining has more steps. Without a record: chain, anchor or renoise, the first that the flow
    can do.
    """
    known = flow.samplers
    if steps in known:
        return known[steps]
    if steps == 1:
        return Way("one_step")
    larger = min((n for n in known if n > steps), default=None)
    if larger is not None and known[larger].times:
        return Way("renoise", known[larger].times[:steps])
    smaller = max((n for n in known if 1 < n < steps), default=None)
    if smaller is None:
        return Way(several_steps(flow)[0])
    if known[smaller].times is None:
        return Way(known[smaller].sampler)
    times, least = known[smaller].times, least_time(flow.dynamics)
    more = steps - smaller
    further = times_between(flow.dynamics, max(times[-1], least), least, count=more + 1)[1:]
    return Way("renoise", (*times, *further))


def several_steps(flow: IntegrationFlow) -> list[str]:
    """The samplers of several steps that a flow can do; the first is the default of a flow without a record."""
    can = {"chain": isinstance(flow, IntervalFlow), "anchor": flow.takes_anchor, "renoise": True}
    return [name for name, is_able in can.items() if is_able]


def least_time(dynamics: Dynamics) -> float:
    """The last time above 0 of the paths' grid, where the flow's map is nearly the identity."""
    return float(dynamics.solver_times(2, rho=RENOISE_RHO)[1])


def level_at(dynamics: Dynamics, t: float) -> float:
    """The noise level b / a in units of sigma_data, the tangent of the angle."""
    return math.tan(float(dynamics.angle(torch.tensor([t], dtype=torch.float64))))


def time_at_level(dynamics: Dynamics, level: float) -> float:
    """The inverse of `level_at`, within [t_min, t_max]."""
    return float(dynamics.time_at(torch.tensor([math.atan(level)], dtype=torch.float64)))


def times_between(dynamics: Dynamics, first: float, last: float, *, count: int) -> list[float]:
    """`count` times from `first` to `last`, geometric in the noise level."""
    high, low = level_at(dynamics, first), level_at(dynamics, last)
    inner = [time_at_level(dynamics, high * (low / high) ** (i / (count - 1))) for i in range(1, count - 1)]
    return [first, *inner, last][:count]
