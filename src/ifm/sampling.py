"""Named ways from prior draws to samples, and the drawing of many: what the stage `sample` and its users share."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ifm import modalities
from ifm.conditions.base import Condition, ConditionKind
from ifm.dynamics.base import Dynamics, NoiseSource
from ifm.hardware.parallel import shared_batches
from ifm.latents.autoencoder import Autoencoder, decoded
from ifm.modalities import at_rest
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.random import Streams
from ifm.recorded import KINDS, Way, check_times
from ifm.solver import heun_steps, solve_ode
from ifm.steps import sample, sample_chained, sample_renoised, way_of

if TYPE_CHECKING:
    from accelerate import Accelerator

SELECTED = "selected"  # the sampler that a flow records for the number of steps
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

        condition: a kind, by whose law they are drawn (`asked_of`), or the conditions of samples 0, 1, ... themselves.
        """
        if isinstance(condition, ConditionKind):
            condition = asked_of(condition, members, seed=seed)
        elif condition is not None:
            condition = condition.rows(slice(members.start, members.stop))
        return cls(
            condition=None if condition is None else condition.to(device),
            x_T=dynamics.prior(shape, generator=Streams(seed, "prior", members)).to(device),
            x_anchor=Streams(seed, "anchor", members, step=_SAMPLING).normal(shape).to(device),
            renoise=Streams(seed, "noise", members, step=_SAMPLING),
        )


def asked_of(kind: ConditionKind, members: range, *, seed: int, w: float | None = None) -> Condition:
    """What samples `members` are asked to be, drawn by the kind's law, on the host: of (seed, i) alone.

    w: the guidance scale of all, where the kind has a range of it; None: the usual one.
    """
    drawn = kind.draw(generator=Streams(seed, "condition", members, step=_SAMPLING))
    if kind.scale is None:
        return drawn
    return replace(drawn, w=torch.full((len(drawn),), kind.usual_scale if w is None else w))


@dataclass(frozen=True)
class Sampler:
    """A named way from x_T to x_0_hat. run: the draws of a batch -> x_0_hat [B, C, H, W], of latents decoded."""

    model: str  # "teacher" | "flow"
    sampler: str  # "heun" | "one_step" | "anchor" | "renoise" | "chain" | "selected"
    nfe: int
    run: Callable[[Draws], Tensor]
    way: Way | None = None  # of a flow
    decoder: Autoencoder | None = None  # of latents

    def outside(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample, of a model whose states have `shape`."""
        return tuple(shape) if self.decoder is None else self.decoder.image_shape(shape)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.sampler}-nfe{self.nfe:03d}"

    @property
    def title(self) -> str:
        evaluations = "1 evaluation" if self.nfe == 1 else f"{self.nfe} evaluations"
        return f"{self.model}, {evaluations}"

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON; of `selected` also how: the sampler that it stands for, and the times of `renoise`."""
        found = {"name": self.name, "model": self.model, "sampler": self.sampler, "nfe": self.nfe}
        if self.way is None:
            return found
        times = {} if self.way.times is None else {"times": list(self.way.times)}
        return found | ({"how": self.way.sampler} if self.sampler == SELECTED else {}) | times


@dataclass(frozen=True)
class Drawn:
    """images: uint8 [n, C, H, W], or points float32 [n, d]."""

    images: np.ndarray
    seconds_per_image: float  # at the batch size it was drawn with; NaN in a process that no batch came to


def teacher_sampler(teacher: Teacher, *, nfe: int) -> Sampler:
    """Heun on the dynamics' grid with `nfe` evaluations (odd)."""
    how = {"dynamics": teacher.dynamics, "times": teacher.dynamics.solver_times(heun_steps(nfe))}

    def run(draws: Draws) -> Tensor:
        return decoded(teacher, solve_ode(teacher, draws.x_T, condition=draws.condition, **how))

    return Sampler("teacher", "heun", nfe, run, decoder=getattr(teacher, "decoder", None))


def flow_sampler(flow: IntegrationFlow, *, kind: str, steps: int, times: Sequence[float] | None = None) -> Sampler:
    """`one_step`; `anchor`: the estimate fed back as anchor; `renoise`: re-noised and mapped again; `chain`: through
    sub-intervals, for flows of two times; `selected`: whichever of them the flow records for so many steps.

    times: of `renoise`, one for each step, t_max first; None: those of `renoising_times`. Raises ValueError.
    """
    if kind not in (*KINDS, SELECTED):
        raise ValueError(f"unknown sampler {kind!r}; known: {', '.join((*KINDS, SELECTED))}")
    if times is not None:
        check_times(tuple(times), t_min=flow.dynamics.t_min, t_max=flow.dynamics.t_max)
        if kind != "renoise" or len(times) != steps:
            raise ValueError(f"{len(times)} times are for {len(times)} steps of sampler renoise, not {steps} of {kind}")
    way = way_of(flow, steps) if kind == SELECTED else Way(kind, None if times is None else tuple(times))
    if way.sampler == "chain" and not isinstance(flow, IntervalFlow):
        others = "anchor and renoise" if flow.takes_anchor else "renoise"
        raise ValueError(f"sampler chain needs a flow trained by objective interval; for several steps use {others}")

    def run(draws: Draws) -> Tensor:
        return decoded(flow, states(draws))

    def states(draws: Draws) -> Tensor:
        how = {"x_anchor": draws.x_anchor if flow.takes_anchor else None, "condition": draws.condition}
        if way.sampler == "chain":
            return sample_chained(flow, draws.x_T, steps=steps, **how)
        if way.sampler == "renoise":
            return sample_renoised(flow, draws.x_T, steps=steps, generator=draws.renoise, times=way.times, **how)
        return sample(flow, draws.x_T, steps=steps, **how)

    return Sampler("flow", kind, steps, run, way, flow.decoder)


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
    first: int = 0,
    modality: str | None = None,
    accelerator: "Accelerator | None" = None,
) -> Drawn:
    """`count` images (the last ones short of a batch too), timed without the first call's warm-up.

    shape: of a state; the images of latents are decoded. condition: see `Draws.of`. out: where to put them, e.g. a
    memory map; None: a new array. first: the number of the first draw. modality: of the samples, where it is recorded.
    Processes share the batches; each has all images.

    seconds_per_image is the median over batches, which other work on the machine moves less than the mean. The clock
    covers networks, solvers and decoder, and the noise that `renoise` draws as it goes; not the first draws, nor the
    rounding of images to uint8.
    """
    outside = sampler.outside(shape)
    images = np.empty((count, *outside), sample_dtype(outside, modality)) if out is None else out
    seconds: list[float] = []
    common = {"seed": seed, "device": device, "condition": condition}
    sampler.run(Draws.of(dynamics, shape, range(first, first + min(batch_size, count)), **common))

    def draw(members: range) -> np.ndarray:
        draws = Draws.of(dynamics, shape, range(first + members.start, first + members.stop), **common)
        x_0_hat, taken = _timed(sampler, draws, device)
        seconds.append(taken / len(members))
        return at_rest(x_0_hat, modality)

    for members, drawn in shared_batches(draw, count=count, batch_size=batch_size, accelerator=accelerator):
        images[members.start : members.stop] = drawn
    return Drawn(images, statistics.median(seconds) if seconds else math.nan)


def sample_dtype(shape: tuple[int, ...], modality: str | None = None) -> np.dtype:
    """Of samples at rest: uint8 for images, float32 for points."""
    return np.dtype(modalities.of(shape, modality).dtype)


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
