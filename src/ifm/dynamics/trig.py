"""TrigFlow (Lu & Song 2024): the path is a rotation from data to noise."""

from typing import Any

import torch
from torch import Tensor

from ifm.dynamics.base import Coefficients, NoiseLevelDynamics


class Trigonometric(NoiseLevelDynamics):
    """x_t = cos(t) x_0 + sin(t) z, z ~ N(0, I), t in [t_min, t_max], below pi/2.

    Lu & Song scale the noise by s_d, so that t is also the angle of `Dynamics.angle`. Here z has unit variance as in
    every dynamics, and s_d tan(theta) = tan(t).
    """

    name = "trig"

    def __init__(self, *, t_min: float = 0.002, t_max: float = 1.5583, **law: Any) -> None:
        """law: rho, log_time_mean, log_time_std, sigma_data. By default tan(t_max) = 80, EDM's largest noise level."""
        if t_max > 1.57:
            raise ValueError(f"t_max must be at most 1.57, below pi/2, got {t_max}")
        super().__init__(t_min=t_min, t_max=t_max, **law)

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(a=t.cos(), b=t.sin(), d_a=-t.sin(), d_b=t.cos())

    def time_of_level(self, level: Tensor) -> Tensor:
        return torch.atan(level)
