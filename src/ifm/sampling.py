"""From x_T to x_0: the flow in one or a few evaluations, the teacher by Heun."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ifm import modalities
from ifm.conditions.base import Condition, ConditionKind, told
from ifm.dynamics.base import Dynamics, NoiseSource
from ifm.hardware.parallel import shared_batches
from ifm.modalities import at_rest
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.random import Streams
from ifm.solver import at_time, heun_steps, solve_ode

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    condition: Condition | None = None,
) -> Tensor:
    """Map to x_0_hat, re-noise it to the next smaller time, map again (consistency models, algorithm 1).

    The times are those of `renoising_times`. The estimate is also the next anchor.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    dynamics = flow.dynamics
    x_t = x_0_hat = x_T
    shape = tuple(x_T.shape[1:])
    for i, t in enumerate(renoising_times(dynamics, steps)):
        if i:
            z = dynamics.draw_noise(shape, generator=generator).to(x_T.device, x_T.dtype)
            x_t = dynamics.perturb(x_0_hat, z=z, t=at_time(z, t))
        x_0_hat = flow(x_t, at_time(x_t, t), x_anchor=x_anchor, **told(condition))
        if x_anchor is not None:
            x_anchor = x_0_hat
    return x_0_hat


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


_SAMPLING = 2**63  # a step that training never reaches


@dataclass(frozen=True)
class Draws:
    """What one batch of samples starts from, made before the clock runs."""

    x_T: Tensor  # [B, C, H, W]
    x_anchor: Tensor  # [B, C, H, W]
    renoise: NoiseSource  # the noise of `renoise`, drawn as it is needed
    condition: Condition | None = None  # of each sample

    @classmethod
    def of(
        cls,
        dynamics: Dynamics,
        shape: tuple[int, ...],
        members: range,
        *,
        seed: int,
        device,
        condition: ConditionKind | Condition | None = None,
    ) -> "Draws":
        """Sample i's draws depend on (seed, i) alone.

        condition: a kind, by whose law they are drawn, or the conditions of samples 0, 1, 2, ... themselves.
        """
        if isinstance(condition, ConditionKind):
            condition = condition.draw(generator=Streams(seed, "condition", members, step=_SAMPLING))
        elif condition is not None:
            condition = condition.rows(slice(members.start, members.stop))
        return cls(
            condition=None if condition is None else condition.to(device),
            x_T=dynamics.prior(shape, generator=Streams(seed, "prior", members)).to(device),
            x_anchor=Streams(seed, "anchor", members, step=_SAMPLING).normal(shape).to(device),
            renoise=Streams(seed, "noise", members, step=_SAMPLING),
        )


@dataclass(frozen=True)
class Sampler:
    """A named way from x_T to x_0_hat. run: the draws of a batch -> x_0_hat [B, C, H, W]."""

    model: str  # "teacher" | "flow"
    sampler: str  # "heun" | "one_step" | "anchor" | "renoise" | "chain"
    nfe: int
    run: Callable[[Draws], Tensor]

    @property
    def name(self) -> str:
        return f"{self.model}-{self.sampler}-nfe{self.nfe:03d}"

    @property
    def title(self) -> str:
        evaluations = "1 evaluation" if self.nfe == 1 else f"{self.nfe} evaluations"
        return f"{self.model}, {evaluations}"

    def describe(self) -> dict[str, str | int]:
        return {"name": self.name, "model": self.model, "sampler": self.sampler, "nfe": self.nfe}


@dataclass(frozen=True)
class Drawn:
    """images: uint8 [n, C, H, W], or points float32 [n, d]."""

    images: np.ndarray
    seconds_per_image: float  # at the batch size it was drawn with; NaN in a process that no batch came to


def teacher_sampler(teacher: Teacher, *, nfe: int) -> Sampler:
    """Heun on the dynamics' grid with `nfe` evaluations (odd)."""
    how = {"dynamics": teacher.dynamics, "times": teacher.dynamics.solver_times(heun_steps(nfe))}
    return Sampler(
        "teacher", "heun", nfe, lambda draws: solve_ode(teacher, draws.x_T, condition=draws.condition, **how)
    )


def flow_sampler(flow: IntegrationFlow, *, kind: str, steps: int) -> Sampler:
    """`one_step`; `anchor`: the estimate fed back as anchor; `renoise`: re-noised and mapped again; `chain`: through
    sub-intervals, for flows of two times.
    """

    def run(draws: Draws) -> Tensor:
        how = {"x_anchor": draws.x_anchor if flow.takes_anchor else None, "condition": draws.condition}
        if kind == "chain":
            return sample_chained(flow, draws.x_T, steps=steps, **how)
        if kind == "renoise":
            return sample_renoised(flow, draws.x_T, steps=steps, generator=draws.renoise, **how)
        return sample(flow, draws.x_T, steps=steps, **how)

    if kind not in ("one_step", "anchor", "renoise", "chain"):
        raise ValueError(f"unknown sampler {kind!r}; known: one_step, anchor, renoise, chain")
    if kind == "chain" and not isinstance(flow, IntervalFlow):
        others = "anchor and renoise" if flow.takes_anchor else "renoise"
        raise ValueError(f"sampler chain needs a flow trained by objective interval; for several steps use {others}")
    return Sampler("flow", kind, steps, run)


@torch.inference_mode()
def draw_samples(
    sampler: Sampler,
    *,
    dynamics: Dynamics,
    shape: tuple[int, ...],
    count: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    condition: ConditionKind | Condition | None = None,
    out: np.ndarray | None = None,
    accelerator: "Accelerator | None" = None,
) -> Drawn:
    """`count` images (the last ones short of a batch too), timed without the first call's warm-up.

    condition: see `Draws.of`. out: where to put them, e.g. a memory map; None: a new array. Processes share the
    batches; each has all images.

    seconds_per_image is the median over batches, which other work on the machine moves less than the mean. The clock
    covers networks and solvers, and the noise that `renoise` draws as it goes; not the first draws, nor the rounding
    of images to uint8.
    """
    images = np.empty((count, *shape), sample_dtype(shape)) if out is None else out
    seconds: list[float] = []
    common = {"seed": seed, "device": device, "condition": condition}
    sampler.run(Draws.of(dynamics, shape, range(min(batch_size, count)), **common))

    def draw(members: range) -> np.ndarray:
        draws = Draws.of(dynamics, shape, members, **common)
        x_0_hat, taken = _timed(sampler, draws, device)
        seconds.append(taken / len(members))
        return at_rest(x_0_hat)

    for members, drawn in shared_batches(draw, count=count, batch_size=batch_size, accelerator=accelerator):
        images[members.start : members.stop] = drawn
    return Drawn(images, statistics.median(seconds) if seconds else math.nan)


def sample_dtype(shape: tuple[int, ...]) -> np.dtype:
    """Of samples at rest: uint8 for images, float32 for points."""
    return np.dtype(modalities.of(shape).dtype)


@torch.inference_mode()
def seconds_per_image(
    sampler: Sampler,
    *,
    dynamics: Dynamics,
    shape: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    condition: ConditionKind | None = None,
    repeats: int = 5,
) -> float:
    """The median time of `repeats` batches, over their size, after one that is not counted."""
    draws = Draws.of(dynamics, shape, range(batch_size), seed=0, device=device, condition=condition)
    seconds = [_timed(sampler, draws, device)[1] for _ in range(repeats + 1)]
    return statistics.median(seconds[1:]) / batch_size


def _timed(sampler: Sampler, draws: Draws, device: torch.device) -> tuple[Tensor, float]:
    """What the sampler makes of the draws, and the seconds it took, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    x_0_hat = sampler.run(draws)
    _wait(device)
    return x_0_hat, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
