"""The path's angle from what a dynamics tells its network of the time (c_noise), by `Dynamics.clock`."""

from collections.abc import Callable

import torch
from torch import Tensor


def _angle(c_noise: Tensor, sigma_data: float) -> Tensor:
    return c_noise


def _quarter_log(c_noise: Tensor, sigma_data: float) -> Tensor:
    """c_noise = ln(sigma) / 4 (EDM, table 1)."""
    return torch.atan((4 * c_noise).exp() / sigma_data)


def _time(c_noise: Tensor, sigma_data: float) -> Tensor:
    """c_noise = t of (1 - t) x_0 + t z."""
    return torch.atan2(c_noise, (1 - c_noise) * sigma_data)


CLOCKS: dict[str, Callable[[Tensor, float], Tensor]] = {"angle": _angle, "quarter_log": _quarter_log, "time": _time}
