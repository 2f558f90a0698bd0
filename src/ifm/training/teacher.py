"""Training the teacher: a denoiser for the marginal ODE, by EDM's weight, or velocity matching for rf."""

from collections.abc import Iterator
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import losses
from ifm.conditions.base import ReadCondition, VaryCondition, as_shown, rows_of, told
from ifm.dynamics.base import expand
from ifm.hardware.devices import RowReader, Rows, to_device
from ifm.hardware.processes import local_positions, parts_of
from ifm.modalities import mirrored, shown, state_shape
from ifm.model import Teacher
from ifm.random import EndlessShuffle, StepStreams, Streams, posterior
from ifm.training.checkpoint import Checkpoints
from ifm.training.loop import FitResult, OnLog, TrainSettings, fit


def train_teacher(
    accelerator: Accelerator,
    teacher: Teacher,
    images: Rows,
    *,
    settings: TrainSettings,
    random_flip: bool,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
    read_condition: ReadCondition | None = None,
    vary: VaryCondition | None = None,
    keep_after: int | None = None,
    modality: str | None = None,
    label: str = "teacher",
) -> FitResult:
    """Fits the teacher to images (uint8 [n, C, H, W]) or points (float32 [n, d]) in place.

    read_condition: the condition of some of the images by their numbers; None: the teacher takes none. vary: leaves
    some of them out. keep_after: see `fit`. modality: of the data, where it is recorded. label: what progress calls it.

    It ends with its averaged weights. The global batch of a step, its times, its noise and the conditions that are left
    out depend on (seed, step) alone, and so do the latents that are drawn from their posteriors.
    """
    dynamics = teacher.dynamics
    positions = local_positions(accelerator, settings.batch_size)
    order = EndlessShuffle(len(images), settings.batch_size, seed=seed)
    read, device = RowReader(images, accelerator.device), accelerator.device
    noise = StepStreams(seed, "noise", positions, device=device)

    def loss(model: nn.Module, step: int) -> Iterator[Tensor]:
        rows = order.batch(step)[positions]
        at_rest = read(rows)
        drops = partial(Streams, seed, "drop", positions, step=step)
        condition = as_shown(rows, read=read_condition, vary=vary, generator=drops, device=device)
        read.expect(order.batch(step + 1)[positions])
        draws = noise.at(step)
        t = to_device(dynamics.draw_time(generator=draws), device)  # [b]
        z = to_device(dynamics.draw_noise(state_shape(at_rest), generator=draws), device)  # [b, C, H, W]
        if random_flip:
            flips = to_device(draws.uniform(), device) < 0.5
            at_rest = torch.where(expand(flips, at_rest).bool(), mirrored(at_rest), at_rest)
        x_0 = shown(at_rest, posterior(seed, rows, step=step), modality)  # [b, C, H, W] or [b, d]
        x_t = dynamics.perturb(x_0, z=z, t=t)
        for part, share in parts_of(len(t), settings.gradient_accumulation):
            x_0_hat = model(x_t[part], t[part], **told(rows_of(condition, part)))
            yield share * losses.denoising(x_0_hat, x_0=x_0[part], scale=dynamics.error_scale(t[part]))

    return fit(
        accelerator,
        teacher,
        loss=loss,
        settings=settings,
        checkpoints=checkpoints,
        on_log=on_log,
        keep_after=keep_after,
        label=f"{label} {dynamics.name}",
        seed=seed,
    )
