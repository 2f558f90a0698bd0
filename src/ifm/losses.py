"""Distances between an estimate of x_0 and its target, and the teacher's loss: pure functions of tensors."""

import math

import torch
from torch import Tensor

from ifm.dynamics.base import expand

HUBER_C_PER_ROOT_DIMENSION = 0.00054  # Song & Dhariwal 2023, sec. 3.3: c = 0.00054 sqrt(N)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 over the whole sample's vector: [B, ...] -> [B]."""
    return x.flatten(1).square().sum(dim=1)


def huber_c_by_dimension(x: Tensor) -> float:
    """c = 0.00054 sqrt(N), N the numbers of one sample of x [B, ...]."""
    return HUBER_C_PER_ROOT_DIMENSION * math.sqrt(x[0].numel())


def pseudo_huber(x_0_hat: Tensor, target: Tensor, *, c: float | Tensor | None = None) -> Tensor:
    """sqrt(|d|^2 + c^2) - c over the whole sample's vector of N numbers: [B]. c = 0.00054 sqrt(N) if None."""
    d = x_0_hat - target
    if c is None:
        c = huber_c_by_dimension(d)
    return (squared_norm(d) + c**2).sqrt() - c


@torch.no_grad()
def adaptive_huber_c(x_0_hat: Tensor, target: Tensor) -> Tensor:
    """The batch's mean error |d|, without gradient: a scalar, at least the c by dimension.

    Errors above the mean count linearly and those below quadratically, at every stage of training. The rule is
    our choice: the paper leaves it open. The floor keeps the root differentiable at d = 0.
    """
    d = x_0_hat - target
    return squared_norm(d).sqrt().mean().clamp_min(huber_c_by_dimension(d))


def squared_l2(x_0_hat: Tensor, target: Tensor) -> Tensor:
    """|d|^2 / N, the mean square over the sample: [B]."""
    d = x_0_hat - target
    return squared_norm(d) / d[0].numel()


DISTANCES = ("pseudo_huber", "adaptive_huber", "l2")


def measure(x_0_hat: Tensor, target: Tensor, *, distance: str, c: float | Tensor | None = None) -> Tensor:
    """The distance called `distance` ("pseudo_huber", "adaptive_huber", "l2"), sample by sample: [B].

    c: pseudo-Huber's; for `adaptive_huber` None stands for `adaptive_huber_c` of this very batch.
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; known: {', '.join(DISTANCES)}")
    if distance == "l2":
        return squared_l2(x_0_hat, target)
    if distance == "adaptive_huber" and c is None:
        c = adaptive_huber_c(x_0_hat, target)
    return pseudo_huber(x_0_hat, target, c=c)


def denoising(x_0_hat: Tensor, *, x_0: Tensor, scale: Tensor) -> Tensor:
    """|x_0_hat - x_0|^2 / (N scale(t)^2), averaged over the batch: a scalar. scale: [B], `dynamics.error_scale(t)`.

    With scale = c_out this is EDM's weight lambda(t) = 1 / c_out^2 (EDM, sec. 5). With scale = t it is velocity
    matching: (x_0 - x_0_hat) / t is v_hat - v, since v = (x_t - x_0) / t.
    """
    return squared_l2(x_0_hat / expand(scale, x_0), x_0 / expand(scale, x_0)).mean()


def average(distances: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of distances [B], each with its weight [B], 1 if None: a scalar."""
    return distances.mean() if weight is None else (weight * distances).mean()
