"""What x_0_hat is held to: pure functions of tensors, with every random draw passed in.

| objective | x_t comes from | target |
|---|---|---|
| `denoising` (teacher) | a data point, fresh z and t | that data point |
| `trajectory` (flow) | a stored teacher trajectory | its end point |
| `data` (flow, the paper's) | a data point, fresh z and t | that data point, and its anchor x_0^(n) if mixed |
| `consistency` (flow) | a data point, fresh z and t | the flow's own x_0_hat at the same pair's x_r, r < t |
| `interval` (two-time flow) | a data point, fresh z and t, s <= t | the mean velocity's identity over [s, t] |
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ifm.dynamics import expand

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


def trajectory(
    x_0_hat: Tensor,
    *,
    x_0: Tensor,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """distance(g(x_anchor, x_t, t), end point of the trajectory through x_t), averaged over the batch: a scalar.

    weight: lambda(t) [B], 1 if None.
    """
    return _average(measure(x_0_hat, x_0, distance=distance, c=c), weight)


def data(
    x_0_hat: Tensor,
    *,
    x_0: Tensor,
    x_anchor: Tensor | None = None,
    n: Tensor | None = None,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The paper's loss for x_0_hat = g(x_0^(n), x_t, t), averaged over the batch: a scalar.

    Data only (n None): lambda(t) d(x_0_hat, x_0).
    Mixed: lambda(t) [1/n d(x_0_hat, x_0) + (1 - 1/n) d(x_0_hat, x_0^(n))], with x_anchor = x_0^(n) the sample's
    anchor at its n-th visit, n [B] from 1: all weight on the data at first, on the anchor in the end. The second term
    is smallest where g copies its anchor (METHOD, section 5).

    x_0 is no function of (x_t, t): over all data the best g is the conditional mean (L2) or the geometric median
    (pseudo-Huber, c -> 0) of x_0 given (x_t, t, x_anchor). weight: lambda(t) [B], 1 if None.
    """
    to_data = measure(x_0_hat, x_0, distance=distance, c=c)  # [B]
    if n is None:
        return _average(to_data, weight)
    if x_anchor is None:
        raise ValueError("the mixed schedule needs the anchors x_0^(n)")
    share = mixed_share(n).to(to_data.device, to_data.dtype)  # [B]
    to_anchor = measure(x_0_hat, x_anchor, distance=distance, c=c)  # [B]
    return _average(share * to_data + (1 - share) * to_anchor, weight)


def mixed_share(n: Tensor) -> Tensor:
    """1/n, the weight of the data at a sample's n-th visit: float64, n's shape. Raises ValueError below n = 1."""
    if bool((n < 1).any()):
        raise ValueError(f"visits count from 1, got {int(n.min())}")
    return 1 / n.double()


def consistency(
    x_0_hat: Tensor,
    *,
    target: Tensor,
    interval: Tensor,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
) -> Tensor:
    """d(g(x_anchor, x_t, t), g(x_anchor, x_r, r)) / (theta_t - theta_r), averaged over the batch: a scalar.

    target: g at x_r, the same pair's point at the earlier r, without gradient; x_0 itself where r = 0. Both in units of
    the error to be expected at t, `dynamics.error_scale(t)`: in x_0's, times near the data would hardly count.
    interval: theta_t - theta_r [B] in units of its longest, so that short last steps near the data count as much.
    The weight 1 / (t - r) and the pseudo-Huber distance are iCT's (Song & Dhariwal 2023, sec. 3.3 and 3.4).
    """
    return _average(measure(x_0_hat, target, distance=distance, c=c), 1 / interval)


MeanVelocity = Callable[[Tensor, Tensor], Tensor]  # (y [B, ...], theta_t [B]) -> u(y, theta_s, theta_t) [B, ...]


def mean_velocity_target(u: MeanVelocity, y: Tensor, *, velocity: Tensor, theta: Tensor, theta_s: Tensor) -> Tensor:
    """dy/dtheta - (theta_t - theta_s) du/dtheta, without gradient: [B, ...] (MeanFlow, Geng et al. 2025, eq. 6 to 8).

    (theta_t - theta_s) u = y_t - y_s. Along the path y_s stands still, and the derivative by theta_t is
    u + (theta_t - theta_s) du/dtheta = dy/dtheta, with du/dtheta the total derivative: along (velocity, 1), by
    forward-mode differentiation. velocity: a pair's dy/dtheta, whose mean given y is the marginal one; the target is
    linear in it.
    """
    with torch.no_grad():
        _, du = torch.func.jvp(u, (y, theta), (velocity, torch.ones_like(theta)))
    return velocity - expand(theta - theta_s, y) * du


def interval(u_hat: Tensor, *, target: Tensor, power: float, floor: float = 1e-3) -> Tensor:
    """w |u_hat - u_target|^2 / N with w = 1 / (|u_hat - u_target|^2 / N + floor)^power, averaged: a scalar.

    w without gradient (MeanFlow, sec. 4.3, with the mean square in place of the sum). power 0 is the plain square,
    whose minimum is the mean; with a power the minimum moves towards the target's mode where its spread is large.
    """
    error = squared_l2(u_hat, target)  # [B]
    return ((error.detach() + floor) ** -power * error).mean()


def _average(distances: Tensor, weight: Tensor | None) -> Tensor:
    return distances.mean() if weight is None else (weight * distances).mean()
