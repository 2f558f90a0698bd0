"""Samples of a trained model, from the same keyed draws as the stage `sample`.

Sample i of seed s starts from noise that depends on (s, i) alone, so it is the stage's sample i: to the byte with the
stage's batch size, on the same kind of machine; with another one the network's sums round differently in the last bit,
which now and then moves a pixel by one of 256 levels.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ifm import modalities
from ifm.conditions.base import Condition
from ifm.exact import ExactTeacher
from ifm.hardware.parallel import shared_batches
from ifm.latents.autoencoder import outside
from ifm.modalities import Modality
from ifm.model import IntegrationFlow
from ifm.progress import progress
from ifm.sampling import SELECTED, Draws, Sampler, flow_sampler, teacher_sampler
from ifm.steps import several_steps, way_of
from ifm.use.asked import led
from ifm.use.loading import Model

if TYPE_CHECKING:
    from accelerate import Accelerator


def choose(
    model: Model, *, steps: int = 1, sampler: str | None = None, nfe: int = 35, guidance: float | None = None
) -> Sampler:
    """How to sample: a flow in `steps` evaluations, a teacher in `nfe` of Heun's (odd).

    sampler: a name, or None: what the flow records for so many steps, or else what it can do (`ifm.steps.way_of`).
    guidance: of a teacher; a flow hears it by its condition (`ifm.use.asked`). Raises ValueError for what the model
    cannot do.
    """
    if not isinstance(model, IntegrationFlow):
        return teacher_sampler(led(model, guidance), nfe=nfe)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if sampler in (None, SELECTED):
        way = way_of(model, steps)
        return flow_sampler(model, kind=way.sampler, steps=steps, times=way.times)
    if steps > 1 and sampler == "one_step":
        others = ", ".join(several_steps(model))
        raise ValueError(f"sampler one_step takes one step, not {steps}; for several this flow has {others}")
    if steps > 1 and sampler == "anchor" and not model.takes_anchor:
        raise ValueError("this flow takes no anchor, so sampler anchor would repeat its first step; use renoise")
    return flow_sampler(model, kind=sampler, steps=steps)


def sample_shape(model: Model) -> tuple[int, ...]:
    """Of one sample as it leaves the model: (C, H, W) of images, (d,) of points."""
    return outside(model, data_shape(model))


def data_shape(model: Model) -> tuple[int, ...]:
    """Of one of the model's states: as `sample_shape`, but for models of latents, (c, h, w)."""
    return model.shape if isinstance(model, ExactTeacher) else model.network.data_shape


def modality(model: Model) -> Modality:
    """What its samples are."""
    return modalities.of(data_shape(model), model.of_data.get("modality"))


def batches(
    model: Model,
    sampler: Sampler,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 200,
    accelerator: "Accelerator | None" = None,
    condition: Condition | None = None,
) -> Iterator[tuple[range, np.ndarray]]:
    """(members, samples) for 0 .. count - 1 of the seed, on the model's device, every process having all of them.

    condition: of the `count` samples; None: drawn by the data's law where the model takes one. Raises ValueError for
    samples that are not finite.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"need at least one sample and a batch of one, got {count} and {batch_size}")
    shape, device = data_shape(model), next(iter(model.state_dict().values())).device
    if condition is not None and len(condition) != count:
        raise ValueError(f"need a condition for each of {count} samples, got {len(condition)}")
    asked = model.condition_kind if condition is None else condition

    @torch.inference_mode()
    def work(members: range) -> np.ndarray:
        draws = Draws.of(model.dynamics, shape, members, seed=seed, device=device, condition=asked)
        return modality(model).to_rest(sampler.run(draws))

    was_training = model.training
    model.eval()
    try:
        with progress(total=count, label=sampler.title, unit="sample") as bar:
            for members, drawn in shared_batches(work, count=count, batch_size=batch_size, accelerator=accelerator):
                yield members, drawn
                bar.update(len(members))
    finally:
        model.train(was_training)


def draw(model: Model, sampler: Sampler, count: int, **how: Any) -> np.ndarray:
    """Samples 0 .. count - 1 of the seed: uint8 [n, C, H, W], points float32 [n, d]. how: see `batches`."""
    return np.concatenate([drawn for _, drawn in batches(model, sampler, count, **how)])


def draw_own(model: Model, sampler: Sampler, count: int, **how: Any) -> np.ndarray:
    """`draw` in the form that the model's data had: images as they are, points in their units, texts as strings [n]."""
    return modality(model).own(draw(model, sampler, count, **how), model.of_data)
