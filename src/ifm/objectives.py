"""What x_0_hat is held to: pure functions of tensors, with every random draw passed in.

| objective | x_t comes from | target |
|---|---|---|
| `denoising` (teacher) | a data point, fresh z and t | that data point |
| `trajectory` (flow) | a stored teacher trajectory | its end point |
"""

import math

from torch import Tensor

from ifm.dynamics import expand

HUBER_C_PER_ROOT_DIMENSION = 0.00054  # Song & Dhariwal 2023, sec. 3.3: c = 0.00054 sqrt(N)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 over the whole sample's vector: [B, ...] -> [B]."""
    return x.flatten(1).square().sum(dim=1)


def pseudo_huber(x_0_hat: Tensor, target: Tensor, *, c: float | None = None) -> Tensor:
    """sqrt(|d|^2 + c^2) - c over the whole sample's vector of N numbers: [B]. c = 0.00054 sqrt(N) if None."""
    d = x_0_hat - target
    if c is None:
        c = HUBER_C_PER_ROOT_DIMENSION * math.sqrt(d[0].numel())
    return (squared_norm(d) + c**2).sqrt() - c


def squared_l2(x_0_hat: Tensor, target: Tensor) -> Tensor:
    """|d|^2 / N, the mean square over the sample: [B]."""
    d = x_0_hat - target
    return squared_norm(d) / d[0].numel()


DISTANCES = {"pseudo_huber": pseudo_huber, "l2": squared_l2}


def denoising(x_0_hat: Tensor, *, x_0: Tensor, scale: Tensor) -> Tensor:
    """|x_0_hat - x_0|^2 / (N scale(t)^2), averaged over the batch: a scalar. scale: [B], `dynamics.error_scale(t)`.

    With scale = c_out this is EDM's weight lambda(t) = 1 / c_out^2 (EDM, sec. 5). With scale = t it is velocity
    matching: (x_0 - x_0_hat) / t is v_hat - v, since v = (x_t - x_0) / t.
    """
    return squared_l2(x_0_hat / expand(scale, x_0), x_0 / expand(scale, x_0)).mean()


def trajectory(x_0_hat: Tensor, *, x_0: Tensor, distance: str = "pseudo_huber", c: float | None = None) -> Tensor:
    """distance(g(x_anchor, x_t, t), end point of the trajectory through x_t), averaged over the batch: a scalar."""
    if distance == "pseudo_huber":
        return pseudo_huber(x_0_hat, x_0, c=c).mean()
    return DISTANCES[distance](x_0_hat, x_0).mean()
