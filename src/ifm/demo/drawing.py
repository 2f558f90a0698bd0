"""Samples of a flow and its teacher from the same noise, and between two seeds, as pictures with the time they took."""

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ifm import modalities
from ifm.conditions.base import Condition
from ifm.demo.models import Pair, is_exact
from ifm.dynamics.base import NoiseSource
from ifm.modalities.pictures import grid_png
from ifm.sampling import Draws, Sampler
from ifm.use import drawing
from ifm.use.loading import Model
from ifm.use.models import usable

SIDE = 512  # pixels of a picture of points
REACH = 1.2  # its edge, in units of the data


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
    """samples [n, ...] at rest, and the seconds that they took all together."""

    samples: np.ndarray
    seconds: float
    nfe: int

    @property
    def time(self) -> str:
        """In words."""
        evaluations = "1 evaluation" if self.nfe == 1 else f"{self.nfe} evaluations"
        return f"{len(self.samples)} in {1000 * self.seconds:.0f} ms, {evaluations}"


def takes_guidance(pair: Pair) -> bool:
    """Whether the flow's `sample` has guidance, and it was trained with classes."""
    return bool(pair.classes) and "guidance" in inspect.signature(type(usable(pair.flow)).sample).parameters


def flow(pair: Pair, asked: Asked) -> Answer:
    """The flow's samples in `asked.steps` evaluations."""
    return _answer(pair.flow, asked, nfe=asked.steps, how={"steps": asked.steps})


def teacher(pair: Pair, asked: Asked) -> Answer | None:
    """The teacher's from the same x_T and for the same classes; None where there is none."""
    return None if pair.teacher is None else _answer(pair.teacher, asked, nfe=asked.nfe, how={"nfe": asked.nfe})


def _answer(model: Model, asked: Asked, *, nfe: int, how: dict[str, int]) -> Answer:
    common: dict[str, Any] = {"seed": asked.seed, "condition": condition(model, asked.label, asked.count)}
    began = time.perf_counter()
    if asked.guidance is not None and not is_exact(model):
        samples = usable(model).sample(asked.count, **how, **common, guidance=asked.guidance)
    else:
        samples = drawing.draw(model, drawing.choose(model, **how), asked.count, **common)
    return Answer(samples, time.perf_counter() - began, nfe)


def condition(model: Model, label: int | None, count: int) -> Condition | None:
    """One class for all samples; None where there is none to choose: they are then drawn in their shares."""
    kind = model.condition_kind
    if label is None or kind is None:
        return None
    return kind.of_tensors({"labels": torch.full((count,), label, dtype=torch.int64)})


def between(pair: Pair, first: int, last: int, *, frames: int = 8, steps: int = 1, label: int | None = None) -> Answer:
    """Samples of the flow on the way from the first one of seed `first` to that of seed `last`: [frames, ...].

    x_T and anchor turn from one to the other at an even angle. The ends are the samples of the two seeds.
    """
    model = pair.flow
    sampler: Sampler = drawing.choose(model, steps=steps)
    device = next(iter(model.state_dict().values())).device
    asked = condition(model, 0 if label is None and pair.classes else label, 1)
    a, b = (
        Draws.of(model.dynamics, pair.shape, range(1), seed=s, device=device, condition=asked) for s in (first, last)
    )
    share = torch.linspace(0, 1, frames, device=device)
    draws = replace(
        a,
        x_T=turned(a.x_T, b.x_T, share),
        x_anchor=turned(a.x_anchor, b.x_anchor, share),
        renoise=Turned(a.renoise, b.renoise, share.cpu()),
        condition=condition(model, 0 if label is None and pair.classes else label, frames),
    )
    if draws.condition is not None:
        draws = replace(draws, condition=draws.condition.to(device))
    began = time.perf_counter()
    with torch.inference_mode():
        samples = modalities.at_rest(sampler.run(draws))
    return Answer(samples, time.perf_counter() - began, steps)


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


def picture(samples: np.ndarray, *, columns: int = 4) -> Image.Image:
    """A grid of images, or points in the plane of their first two coordinates."""
    modality = modalities.of(samples.shape[1:])
    if modality.preview == "scatter":
        return scatter(samples)
    if modality.preview != "grids":
        raise ValueError(f"{modality.noun} have no picture in the demo yet")
    import io

    return Image.open(io.BytesIO(grid_png(samples, columns=columns, scale=max(1, 96 // samples.shape[-1]))))


def scatter(points: np.ndarray) -> Image.Image:
    """float32 [n, d] as dots of a square of 2 * REACH."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(canvas)
    for x, y in _plane(points):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#3949ab")
    return canvas


def _plane(points: np.ndarray) -> Iterator[tuple[float, float]]:
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    for x, y in zip(points[:, 0], second, strict=True):
        yield SIDE * (0.5 + float(x) / (2 * REACH)), SIDE * (0.5 - float(y) / (2 * REACH))
