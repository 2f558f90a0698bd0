"""Samples of a flow and its teacher from the same noise, and between two seeds, with the time they took."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifm import modalities
from ifm.conditions.base import Condition
from ifm.demo.models import Pair
from ifm.dynamics.base import NoiseSource
from ifm.modalities import Modality
from ifm.sampling import Draws, Sampler, teacher_sampler
from ifm.use import drawing
from ifm.use.asked import condition_of
from ifm.use.loading import Model


@dataclass(frozen=True)
class Asked:
    """What the page asks for. Sample i of a seed starts from the same noise, whatever the rest is."""

    seed: int = 0
    count: int = 16
    steps: int = 1
    nfe: int = 17  # of the teacher, odd
    label: int | None = None  # a class; None: all of them, in their shares
    guidance: float | None = None


@dataclass(frozen=True)
class Answer:
    """samples [n, ...] at rest, and the seconds that they took all together.

    of_data: what the model records of its data beside their shape; it turns samples into sounds and texts.
    """

    samples: np.ndarray
    seconds: float
    nfe: int
    of_data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """What the samples are."""
        return modalities.of(self.samples.shape[1:], self.of_data.get("modality"))

    @property
    def time(self) -> str:
        """In words."""
        evaluations = "1 evaluation" if self.nfe == 1 else f"{self.nfe} evaluations"
        return f"{len(self.samples)} in {1000 * self.seconds:.0f} ms, {evaluations}"


def scale_of(pair: Pair) -> tuple[float, float] | None:
    """The guidance scales that the flow takes; None where it takes none."""
    kind = pair.flow.condition_kind
    return None if kind is None else kind.scale


def usual_count(pair: Pair) -> int:
    """How many samples the page shows at first: one image says more than one point, and sounds take their time."""
    kind = drawing.modality(pair.flow)
    return 256 if kind.preview == "scatter" else 8 if kind.audible else 16


def flow(pair: Pair, asked: Asked) -> Answer:
    """The flow's samples in `asked.steps` evaluations."""
    return _answer(pair.flow, drawing.choose(pair.flow, steps=asked.steps), asked)


def teacher(pair: Pair, asked: Asked) -> Answer | None:
    """The teacher's from the same x_T, for the same classes and with the flow's guidance; None where there is none."""
    model = pair.teacher
    if model is None:
        return None
    if pair.led is not None:
        usual = pair.flow.condition_kind.usual_scale if pair.led.w is None else pair.led.w
        led = pair.led.at(usual if asked.guidance is None else asked.guidance)
        return _answer(model, teacher_sampler(led, nfe=asked.nfe), asked)
    return _answer(model, drawing.choose(model, nfe=asked.nfe), asked)


def _answer(model: Model, sampler: Sampler, asked: Asked) -> Answer:
    told = condition(model, asked)
    began = time.perf_counter()
    samples = drawing.draw(model, sampler, asked.count, seed=asked.seed, condition=told)
    return Answer(samples, time.perf_counter() - began, sampler.nfe, model.of_data)


def condition(model: Model, asked: Asked) -> Condition | None:
    """Of each sample, on the CPU; None where nothing is asked for: classes are then drawn in their shares."""
    kind = model.condition_kind
    if kind is None:
        return None
    guidance = None if kind.scale is None else asked.guidance
    return condition_of(model, asked.count, classes=asked.label, guidance=guidance, seed=asked.seed)


def between(pair: Pair, asked: Asked, last: int, *, frames: int = 8) -> Answer:
    """Samples of the flow on the way from the first one of seed `asked.seed` to that of `last`: [frames, ...].

    x_T and anchor turn from one to the other at an even angle. The ends are the samples of the two seeds. All are of
    one class: the first where none is asked for.
    """
    model = pair.flow
    sampler = drawing.choose(model, steps=asked.steps)
    device = next(iter(model.state_dict().values())).device
    label = next(iter(pair.classes.values()), None) if asked.label is None else asked.label
    told = condition(model, replace(asked, count=frames, label=label))
    a, b = (
        Draws.of(model.dynamics, pair.shape, range(1), seed=seed, device=device, condition=told)
        for seed in (asked.seed, last)
    )
    share = torch.linspace(0, 1, frames, device=device)
    draws = Draws(
        x_T=turned(a.x_T, b.x_T, share),
        x_anchor=turned(a.x_anchor, b.x_anchor, share),
        renoise=Turned(a.renoise, b.renoise, share.cpu()),
        condition=None if told is None else told.to(device),
    )
    began = time.perf_counter()
    with torch.inference_mode():
        samples = drawing.modality(model).to_rest(sampler.run(draws))
    return Answer(samples, time.perf_counter() - began, asked.steps, model.of_data)


def turned(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The great circle from a to b, [1, ...] each, at shares of its angle [F]: [F, ...]. Norms go evenly."""
    share = share.view(-1, *[1] * (a.ndim - 1))
    norms = a.norm(), b.norm()
    u, v = a / norms[0], b / norms[1]
    angle = (u * v).sum().clamp(-1, 1).acos()
    if angle < 1e-4:
        return a + share * (b - a)
    unit = (((1 - share) * angle).sin() * u + (share * angle).sin() * v) / angle.sin()
    return ((1 - share) * norms[0] + share * norms[1]) * unit


class Turned:
    """A source of noise that turns from one source of one sample to another, as `turned` does."""

    def __init__(self, a: NoiseSource, b: NoiseSource, share: Tensor) -> None:
        self._a, self._b, self._share = a, b, share

    def __len__(self) -> int:
        return len(self._share)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return turned(self._a.normal(shape), self._b.normal(shape), self._share)

    def uniform(self) -> Tensor:
        return self._even(self._a.uniform(), self._b.uniform())

    def chi_square(self, degrees: float) -> Tensor:
        return self._even(self._a.chi_square(degrees), self._b.chi_square(degrees))

    def _even(self, a: Tensor, b: Tensor) -> Tensor:
        return a + self._share * (b - a)
