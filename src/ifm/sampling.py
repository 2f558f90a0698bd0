"""From x_T to x_0: the flow in one or a few evaluations, the teacher by Heun or Euler, and stored trajectories."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from accelerate import Accelerator

RENOISE_RHO = 7.0
Denoiser = Callable[..., Tensor]  # (x_t [B, ...], t [B]) -> E[x_0 | x_t] [B, ...]; condition=... where there is one


def solver_nfe(steps: int, *, method: str = "heun") -> int:
    """Network evaluations of a solve: 2 steps - 1 for Heun (its last step is Euler's), steps for Euler."""
    return 2 * steps - 1 if method == "heun" else steps


def heun_steps(nfe: int) -> int:
    """The number of Heun steps that costs `nfe` evaluations. Raises ValueError for an even number."""
    if nfe < 1 or nfe % 2 == 0:
        raise ValueError(f"Heun with a last Euler step takes an odd number of evaluations, got {nfe}")
    return (nfe + 1) // 2


@torch.no_grad()
def solve_states(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    dynamics: Dynamics,
    times: Tensor,
    method: str = "heun",
    condition: Condition | None = None,
) -> Iterator[Tensor]:
    """The solver's states at `times` [S + 1], x_T [B, ...] first, by Heun (EDM algorithm 1) or Euler.

    dx/dt is `Dynamics.velocity` at D(x, t, condition). A step that ends at t = 0 lands on D(x, t): the velocity has no
    value there. On a straight path that is Euler's step.
    """
    asked = denoiser if condition is None else partial(denoiser, condition=condition)
    if method not in ("heun", "euler"):
        raise ValueError(f"unknown solver {method!r}; known: heun, euler")
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or float(times[-1]) < 0:
        raise ValueError(f"times must fall strictly and end at or above 0, got {times.tolist()}")

    def velocity(x: Tensor, t: float, *, x_0: Tensor | None = None) -> Tensor:
        t_batch = _batch(x, t)
        return dynamics.velocity(x, x_0=asked(x, t_batch) if x_0 is None else x_0, t=t_batch)

    x = x_T
    yield x
    for t, s in pairwise(times.tolist()):
        x_0_hat = asked(x, _batch(x, t))
        if s == 0:
            yield x_0_hat
            return
        v = velocity(x, t, x_0=x_0_hat)
        x_s = x + (s - t) * v
        if method == "heun":
            x_s = x + (s - t) * (v + velocity(x_s, s)) / 2
        x = x_s
        yield x


def solve_ode(denoiser: Denoiser, x_T: Tensor, **how: Any) -> Tensor:
    """The end point of the ODE from x_T: [B, ...]. how: see `solve_states`."""
    x = x_T
    for x in solve_states(denoiser, x_T, **how):  # noqa: B007 - the last state is wanted
        pass
    return x


def stored_indices(steps: int, count: int) -> list[int]:
    """`count` grid indices spread evenly over 0..steps, both ends included."""
    if not 2 <= count <= steps + 1:
        raise ValueError(f"can store 2 to {steps + 1} times of a {steps}-step solve, got {count}")
    return [round(i * steps / (count - 1)) for i in range(count)]


def solve_trajectory(denoiser: Denoiser, x_T: Tensor, *, keep: list[int], **how: Any) -> Tensor:
    """The Heun path from x_T at the grid indices `keep`: [B, K, ...]. how: see `solve_states`."""
    wanted = set(keep)
    states = solve_states(denoiser, x_T, **how)
    return torch.stack([x for i, x in enumerate(states) if i in wanted], dim=1)


def _batch(x: Tensor, t: float) -> Tensor:
    """One time for all of a batch: [B]."""
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)


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
        x_0_hat = flow(x_T, _batch(x_T, flow.dynamics.t_max), x_anchor=x_anchor, **told(condition))
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
            x_t = dynamics.perturb(x_0_hat, z=z, t=_batch(z, t))
        x_0_hat = flow(x_t, _batch(x_t, t), x_anchor=x_anchor, **told(condition))
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
        x = flow(x, _batch(x, t), x_anchor=x_anchor, s=_batch(x, s), **told(condition))
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
