"""Pairs (x_0, z) perturbed to a time, and the mean pair: what objectives without a teacher's paths train on."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ifm.conditions.base import ConditionKind, ReadCondition, VaryCondition, as_shown, told
from ifm.dynamics.base import Dynamics, NoiseSource, expand
from ifm.exact import ExactTeacher
from ifm.hardware.devices import RowReader, Rows, to_device
from ifm.hardware.processes import local_positions
from ifm.modalities import mirrored, shown, state_shape
from ifm.objectives.base import Draw, Examples, Mean
from ifm.random import EndlessShuffle, StepStreams, Streams, posterior

# Of the times of `consistency` and `interval`, this share is even in the angle. The rest is by the teacher's law, which
# hardly ever comes near t_max: ve's is above a quarter of t_max = 20 once in a hundred times.
EVEN_SHARE = 0.5


def draw_time(
    dynamics: Dynamics, law: NoiseSource, choice: NoiseSource, *, t_max_share: float = 0.0, even_share: float = 0.0
) -> Tensor:
    """t_max with probability t_max_share; of the others a share even in the angle, the rest by the training law: [b].

    law, choice: what the training law and the choice draw from.
    """
    t = dynamics.draw_time(generator=law)
    if even_share:
        even = choice.uniform() / even_share
        widest = dynamics.angle(torch.tensor([dynamics.t_max]))
        t = torch.where(even < 1, dynamics.time_at(even * widest), t)
    return torch.where(choice.uniform() < t_max_share, dynamics.t_max, t)


def draw_pairs(
    accelerator: Accelerator,
    dynamics: Dynamics,
    read: RowReader,
    *,
    random_flip: bool,
    batch_size: int,
    seed: int,
    t_max_share: float = 0.0,
    even_share: float = 0.0,
    read_condition: ReadCondition | None = None,
    vary: VaryCondition | None = None,
    modality: str | None = None,
) -> Draw:
    """Images or points x_0 [b, ...], perturbed by fresh z to a fresh t; all draws depend on (seed, step) alone.

    t_max_share, even_share: see `draw_time`. read_condition: the conditions of data by their numbers; vary: how a step
    shows them (left out, with a guidance scale). modality: of the data, where it is recorded.
    """
    positions, device = local_positions(accelerator, batch_size), accelerator.device
    own = StepStreams(seed, "noise", positions, device=device)

    def draw(rows: np.ndarray, step: int, streams: NoiseSource) -> Examples:
        at_rest = read(rows)
        noise = own.at(step)
        t = draw_time(dynamics, noise, streams, t_max_share=t_max_share, even_share=even_share)  # [b]
        t, z = to_device(t, device), dynamics.draw_noise(state_shape(at_rest), generator=noise)
        z, flips = to_device(z, device), None  # [b, C, H, W]
        if random_flip:
            flips = to_device(noise.uniform(), device) < 0.5
            at_rest = torch.where(expand(flips, at_rest).bool(), mirrored(at_rest), at_rest)
        x_0 = shown(at_rest, posterior(seed, rows, step=step), modality)  # [b, C, H, W]
        drops = partial(Streams, seed, "drop", positions, step=step)
        condition = as_shown(rows, read=read_condition, vary=vary, generator=drops, device=device)
        return Examples(dynamics.perturb(x_0, z=z, t=t), t, x_0, z, mirrored=flips, condition=condition)

    return draw


def averaged(draw: Draw, dynamics: Dynamics, mean: Mean | None) -> Draw:
    """`draw` with the mean pair in place of each: x_0 becomes E[x_0 | x_t], and z what makes x_t of it.

    Every velocity of consistency and interval is linear in (x_0, z) given x_t: its mean stays and its spread goes. With
    a teacher as `mean` it is distillation; with a guided one the pair is guided (`ifm.guidance`). None: `draw` itself.
    """
    if mean is None:
        return draw

    def draw_averaged(rows: np.ndarray, step: int, streams: NoiseSource) -> Examples:
        at = draw(rows, step, streams)
        denoiser = mean(step)
        with torch.no_grad():
            x_0 = denoiser(at.x_t, at.t, **told(at.condition))
        return replace(at, x_0=x_0, z=noise_of(dynamics, at, x_0), denoiser=denoiser)

    return draw_averaged


def noise_of(dynamics: Dynamics, at: Examples, x_0: Tensor) -> Tensor:
    """z such that x_t = a x_0 + b z, found in float64: [b, C, H, W]."""
    return dynamics.noise_of(at.x_t.double(), x_0=x_0.double(), t=at.t.double()).to(x_0.dtype)


def earlier(dynamics: Dynamics, at: Examples, r: Tensor) -> Tensor:
    """x_r: the pair's, or for the mean pair the ODE's, with the mean of E[x_0 | x] at both ends (second order)."""
    x_r = dynamics.perturb(at.x_0, z=at.z, t=r)
    if at.denoiser is None:
        return x_r
    x_0 = (at.x_0 + at.denoiser(x_r, r, **told(at.condition))) / 2
    return dynamics.perturb(x_0, z=noise_of(dynamics, at, x_0), t=r)


def mean_over_reference(
    accelerator: Accelerator,
    dynamics: Dynamics,
    images: Rows,
    *,
    size: int,
    random_flip: bool,
    batch_size: int,
    seed: int,
    kind: ConditionKind | None = None,
    read_condition: ReadCondition | None = None,
    modality: str | None = None,
) -> Mean:
    """E[x_0 | x_t] for x_0 uniform on `size` data, in closed form: a stable target (Xu, Tong & Jaakkola 2023).

    The reference is a step's global batch and those that come after it, whole, so it is the same in every process and
    holds the pair's own x_0; at most all data, once. Given it, each of its data is the one that made x_t with the
    probability that weighs it: the average over pairs stays what it was. kind, read_condition: the data's conditions;
    the mean is then over those of the reference that have the pair's own.
    """
    read, order = RowReader(images, accelerator.device), EndlessShuffle(len(images), batch_size, seed=seed)

    def rows_of(step: int) -> np.ndarray:
        if size >= len(images):
            return np.arange(len(images))
        return np.unique(np.concatenate([order.batch(step + i) for i in range(math.ceil(size / batch_size))]))

    def denoiser(step: int) -> ExactTeacher:
        rows = rows_of(step)
        at_rest, seen = read(rows), rows
        if not read.resident:
            read.expect(rows_of(step + 1))
        have = None if read_condition is None else read_condition(rows).to(at_rest.device)
        if random_flip:
            at_rest, seen = torch.cat([at_rest, mirrored(at_rest)]), np.concatenate([rows, rows])
            have = None if have is None else have.map(lambda x: torch.cat([x, x]))
        data = shown(at_rest, posterior(seed, seen, step=step), modality)
        return ExactTeacher(data, dynamics, kind=kind, have=have)

    return denoiser
