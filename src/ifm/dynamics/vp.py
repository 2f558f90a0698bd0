"""Variance preserving diffusion: DDPM's schedules (Ho et al. 2020; Nichol & Dhariwal 2021) in continuous time."""

import math
from typing import Any

import torch
from torch import Tensor

from ifm.dynamics.base import Coefficients, NoiseLevelDynamics

SCHEDULES = {"linear": 1.0, "cosine": 0.99}  # and their t_max
COSINE_OFFSET = 0.008  # s of the cosine schedule (Nichol & Dhariwal 2021, eq. 17)


class VariancePreserving(NoiseLevelDynamics):
    """x_t = a(t) x_0 + sqrt(1 - a(t)^2) z, z ~ N(0, I), t in [t_min, t_max], at most 1.

    `linear`: a = exp(-beta_min t / 2 - (beta_max - beta_min) t^2 / 4) (Song et al. 2021, eq. 33; beta from 0.1 to 20).
    `cosine`: a = cos(u) / cos(u_0), u = (pi/2) (t + s) / (1 + s), u_0 its value at t = 0, s = 0.008.
    """

    name = "vp"

    def __init__(
        self,
        *,
        schedule: str = "linear",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        t_min: float = 1e-4,
        t_max: float | None = None,
        **law: Any,
    ) -> None:
        """t_max: None is 1 for `linear` and 0.99 for `cosine`, whose a is 0 at 1. law: as for `ve`."""
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
        self.schedule, self.beta_min, self.beta_max = schedule, beta_min, beta_max
        super().__init__(t_min=t_min, t_max=t_max or SCHEDULES[schedule], **law)

    def coefficients(self, t: Tensor) -> Coefficients:
        """b is written without 1 - a^2, which has no digits left near t = 0. d_b = -a d_a / b."""
        if self.schedule == "linear":
            slope = self.beta_max - self.beta_min
            log_a = -self.beta_min / 2 * t - slope / 4 * t**2
            a, b = log_a.exp(), (-torch.expm1(2 * log_a)).sqrt()
            d_a = -(self.beta_min + slope * t) / 2 * a
        else:
            turn, u_0 = _cosine_turn(), _cosine_start()
            u = u_0 + turn * t
            a, b = u.cos() / math.cos(u_0), ((turn * t).sin() * (u + u_0).sin()).sqrt() / math.cos(u_0)
            d_a = -turn * u.sin() / math.cos(u_0)
        return Coefficients(a=a, b=b, d_a=d_a, d_b=-a * d_a / b)

    def time_of_level(self, level: Tensor) -> Tensor:
        """The inverse of b / a, with a^2 = 1 / (1 + level^2)."""
        if self.schedule == "linear":
            slope, half = self.beta_max - self.beta_min, torch.log1p(level**2) / 2  # half: -log a
            return 2 * half / (self.beta_min / 2 + (self.beta_min**2 / 4 + slope * half).sqrt())
        u_0 = _cosine_start()
        u = torch.atan2((level**2 + math.sin(u_0) ** 2).sqrt(), torch.full_like(level, math.cos(u_0)))
        return (u - u_0) / _cosine_turn()


def _cosine_turn() -> float:
    """du/dt."""
    return math.pi / 2 / (1 + COSINE_OFFSET)


def _cosine_start() -> float:
    """u at t = 0."""
    return _cosine_turn() * COSINE_OFFSET
