"""Objective `interval`: mean velocities over any part of the path (MeanFlow, Geng et al. 2025; docs/interval.md)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifm import losses
from ifm.anchors import evenly_chosen
from ifm.conditions.base import Condition, rows_of, told
from ifm.dynamics.base import NoiseSource, expand
from ifm.guidance import Guidance, combined, only, scale_of, within
from ifm.hardware.devices import RowReader, Rows, to_device
from ifm.hardware.processes import LaunchError, local_positions
from ifm.hardware.sharded import method_of, shards
from ifm.model import IntervalFlow
from ifm.objectives.base import Batch, Examples, Ingredients, Mean, Phase
from ifm.objectives.pairs import EVEN_SHARE, averaged, draw_pairs, draw_time

MeanVelocity = Callable[[Tensor, Tensor], Tensor]  # (y [B, ...], theta_t [B]) -> u(y, theta_s, theta_t) [B, ...]
STEP = 0.003  # of `central_difference`, in the angle; docs/interval.md has the errors of others


def forward_derivative(u: MeanVelocity, y: Tensor, *, velocity: Tensor, theta: Tensor) -> Tensor:
    """du/dtheta along (velocity, 1) by forward-mode differentiation: [B, ...]."""
    _, du = torch.func.jvp(u, (y, theta), (velocity, torch.ones_like(theta)))
    return du


def central_difference(u: MeanVelocity, y: Tensor, *, velocity: Tensor, theta: Tensor, step: float = STEP) -> Tensor:
    """du/dtheta along (velocity, 1) from u a step before and after, an angle of `step` each: [B, ...].

    Two plain forward passes. y and velocity have about unit variance, so one step fits all data and dynamics. A step
    may lead out of [0, theta of t_max]: the formulas of u and the network go on there.
    """
    after = u(y + step * velocity, theta + step)
    return (after - u(y - step * velocity, theta - step)) / (2 * step)


def mean_velocity_target(
    u: MeanVelocity,
    y: Tensor,
    *,
    velocity: Tensor,
    theta: Tensor,
    theta_s: Tensor,
    derivative: Callable[..., Tensor] = forward_derivative,
) -> Tensor:
    """dy/dtheta - (theta_t - theta_s) du/dtheta, without gradient: [B, ...] (MeanFlow, Geng et al. 2025, eq. 6 to 8).

    (theta_t - theta_s) u = y_t - y_s. Along the path y_s stands still, and the derivative by theta_t is
    u + (theta_t - theta_s) du/dtheta = dy/dtheta, with du/dtheta the total derivative: along (velocity, 1). velocity: a
    pair's dy/dtheta, whose mean given y is the marginal one; the target is linear in it.
    """
    with torch.no_grad():
        du = derivative(u, y, velocity=velocity, theta=theta)
    return velocity - expand(theta - theta_s, y) * du


def loss(u_hat: Tensor, *, target: Tensor, power: float, floor: float = 1e-3) -> Tensor:
    """w |u_hat - u_target|^2 / N with w = 1 / (|u_hat - u_target|^2 / N + floor)^power, averaged: a scalar.

    w without gradient (MeanFlow, sec. 4.3, with the mean square in place of the sum). power 0 is the plain square,
    whose minimum is the mean; with a power the minimum moves towards the target's mode where its spread is large.
    """
    error = losses.squared_l2(u_hat, target)  # [B]
    return ((error.detach() + floor) ** -power * error).mean()


def interval_phase(
    accelerator: Accelerator,
    flow: IntervalFlow,
    images: Rows,
    *,
    batch_size: int,
    same_share: float,
    whole_share: float,
    power: float,
    derivative: str = "forward",
    mean: Mean | None = None,
    guidance: Guidance | None = None,
    **pairs: Any,
) -> Phase:
    """Mean velocities over [s, t] in the path's angle (MeanFlow, Geng et al. 2025; docs/interval.md).

    A share `same_share` of a batch has s = t, where the target is the pair's own velocity. Of the others a share
    `whole_share` has s = t_min, and the rest two draws of the time law in order; their target takes a derivative
    of the flow: "forward" or "difference". mean: see `averaged`. guidance: of the pairs' velocities, see
    `guided_velocity`; without it, `mean` is led itself where anything is. images, pairs: as in `data_phase`.
    Raises LaunchError under FSDP for "forward", which asks the bare network, between the gathers of a split one.
    """
    splits = shards(accelerator)
    if splits and derivative == "forward":
        raise LaunchError(
            "objective interval cannot train a model split by FSDP with flow.interval.derivative: forward; set it to "
            "difference, or use distributed_type: MULTI_GPU"
        )
    differentiate, ready = WAYS[derivative]
    # torch's forward mode uses its own deprecated compiler on the first call, and says so.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    dynamics, read = flow.dynamics, RowReader(images, accelerator.device)
    positions = torch.from_numpy(local_positions(accelerator, batch_size))
    apart = ~evenly_chosen(positions, same_share)  # [b]
    # Which of the others go the whole way: by their number among all of the batch's others.
    number = positions - (positions.double() * same_share).floor().long()
    whole = apart & evenly_chosen(number, whole_share)
    apart, whole = apart.to(accelerator.device), whole.to(accelerator.device)
    draw_pair = draw_pairs(accelerator, dynamics, read, batch_size=batch_size, even_share=EVEN_SHARE, **pairs)

    def draw(rows: np.ndarray, step: int, streams: NoiseSource) -> Examples:
        at = draw_pair(rows, step, streams)
        other = to_device(draw_time(dynamics, streams, streams, even_share=EVEN_SHARE), at.t.device)  # [b]
        other = torch.where(whole, torch.full_like(other, dynamics.t_min), other)
        t = torch.where(apart, torch.maximum(at.t, other), at.t)
        s = torch.where(apart, torch.minimum(at.t, other), at.t)
        return replace(at, x_t=dynamics.perturb(at.x_0, z=at.z, t=t), t=t, s=s)

    def step_loss(model: nn.Module, batch: Batch) -> tuple[None, Tensor]:
        at, x_anchor = batch.at, batch.x_anchor
        theta, theta_s = dynamics.angle(at.t), dynamics.angle(at.s)
        target = dynamics.angular_velocity(at.x_0, z=at.z, theta=theta)
        ask = method_of(model, "mean_velocity") if splits else flow.mean_velocity
        if guidance is not None:
            target = guided_velocity(flow, at, velocity=target, x_anchor=x_anchor, guidance=guidance, ask=ask)
        rows_apart = to_device((~evenly_chosen(batch.positions, same_share)).nonzero().squeeze(1), target.device)
        if splits and not len(rows_apart):  # all processes call a split model equally often; at s = t the target stays
            rows_apart = torch.zeros(1, dtype=torch.long, device=target.device)
        if len(rows_apart):
            y = at.x_t / expand(dynamics.scale(at.t), at.x_t)
            given = {"theta_s": theta_s[rows_apart], "x_anchor": None if x_anchor is None else x_anchor[rows_apart]}
            given |= told(rows_of(at.condition, rows_apart))
            with ready(flow):
                target[rows_apart] = mean_velocity_target(
                    lambda y, theta: ask(y, theta, **given),
                    y[rows_apart],
                    velocity=target[rows_apart],
                    theta=theta[rows_apart],
                    theta_s=theta_s[rows_apart],
                    derivative=differentiate,
                )
        u_hat = model(at.x_t, at.t, x_anchor=x_anchor, s=at.s, mean_velocity=True, **told(at.condition))
        return None, loss(u_hat, target=target, power=power)

    return Phase(len(images), averaged(draw, dynamics, mean), step_loss, read.expect)


@torch.no_grad()
def guided_velocity(
    flow: IntervalFlow,
    at: Examples,
    *,
    velocity: Tensor,
    x_anchor: Tensor | None,
    guidance: Guidance,
    ask: Callable[..., Tensor] | None = None,
) -> Tensor:
    """v_0 + w (v - v_0), v a pair's dy/dtheta and v_0 the flow's own velocity without a condition: [B, ...].

    MeanFlow's guided target (Geng et al. 2025, eq. 19), one evaluation more. ask: the flow's `mean_velocity`, or what
    stands for it. Where the condition is left out it is v itself, by which the flow learns v_0.
    """
    dynamics, kind = flow.dynamics, flow.condition_kind
    none = _with_scale(kind.none(len(velocity)).to(velocity.device), at.condition)
    y, theta = at.x_t / expand(dynamics.scale(at.t), at.x_t), dynamics.angle(at.t)
    v_0 = (ask or flow.mean_velocity)(y, theta, theta_s=theta, x_anchor=x_anchor, condition=none)
    inside = within(dynamics, at.t, guidance.interval) & ~kind.left_out(at.condition)
    w = scale_of(None if guidance.range else guidance.scale, at.condition, velocity)
    return combined(v_0, velocity, only(inside, w))


def _with_scale(none: Condition, asked: Condition) -> Condition:
    """No condition, at the guidance scales that were asked for."""
    w = asked.tensors().get("w")
    return none if w is None else replace(none, w=w)


@contextmanager
def differentiable_forward(model: nn.Module) -> Iterator[None]:
    """A network's evaluations as forward-mode differentiation takes them: in float32, by attention's plain formula.

    The derivative has no rules for autocast's casts of weights on CPUs and for the fast attention kernels. That of
    GroupNorm wants a contiguous tangent up to torch 2.11, and diffusers' attention takes a view of what it is given; a
    convolution's tangent can be channels_last, on some processors also where the value is not.
    """
    device = next(model.parameters()).device.type
    viewing = [module for module in model.modules() if isinstance(module, nn.GroupNorm) or _is_attention(module)]
    hooks = [module.register_forward_pre_hook(_contiguous) for module in viewing]
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A network's evaluations as differences take them: without autocast, and on GPUs without TF32.

    A difference divides rounding by its step: bf16 (8 bits) and TF32 (11 bits) would leave nothing of it.
    """
    device, cudnn, matmul = next(model.parameters()).device.type, torch.backends.cudnn, torch.backends.cuda.matmul
    stood = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = stood


def _is_attention(module: nn.Module) -> bool:
    """diffusers' block, known by its name: networks without images need no diffusers."""
    return type(module).__name__ == "Attention"


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first input's value and tangent contiguous: `contiguous` itself looks at the value alone."""
    first, *others = inputs
    return first.clone(memory_format=torch.contiguous_format), *others


# How flow.interval.derivative is found, and within what.
WAYS: dict[str, tuple[Callable[..., Tensor], Callable[[nn.Module], AbstractContextManager[None]]]] = {
    "forward": (forward_derivative, differentiable_forward),
    "difference": (central_difference, in_float32),
}


def phase(given: Ingredients) -> Phase:
    """The phase that params.yaml asks for."""
    # Without a teacher to ask, it is led by its own velocity without a class.
    own = given.guidance if given.config.velocity != "teacher" else None
    options = given.config.interval.model_dump() | {"mean": given.mean(led=own is None), "guidance": own}
    return interval_phase(given.accelerator, given.flow, given.images(), **options, **given.pairs(drop=own is not None))
