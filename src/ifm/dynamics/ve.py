"""Variance exploding diffusion in EDM's parametrisation (Karras et al. 2022), sigma(t) = t."""

from typing import Any

import torch
from torch import Tensor

from ifm.dynamics.base import Coefficients, NoiseLevelDynamics, Preconditioning


class VarianceExploding(NoiseLevelDynamics):
    """x_t = x_0 + t z, z ~ N(0, I), t in [t_min, t_max] (0.002 .. 80)."""

    name = "ve"
    clock = "quarter_log"
    schemes = ("paper", "edm")

    def __init__(self, *, t_min: float = 0.002, t_max: float = 80.0, **law: Any) -> None:
        """law: rho, log_time_mean, log_time_std, sigma_data."""
        super().__init__(t_min=t_min, t_max=t_max, **law)

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(a=one, b=t, d_a=torch.zeros_like(t), d_b=one)

    def time_of_level(self, level: Tensor) -> Tensor:
        return level

    def teacher_preconditioning(self, t: Tensor) -> Preconditioning:
        """EDM table 1: s_d^2 / (t^2 + s_d^2), t s_d / sqrt(t^2 + s_d^2), 1 / sqrt(t^2 + s_d^2), ln(t) / 4."""
        s_d = self.sigma_data
        total = t**2 + s_d**2
        return Preconditioning(
            c_skip=s_d**2 / total, c_out=t * s_d * total.rsqrt(), c_in=total.rsqrt(), c_noise=t.log() / 4
        )

    def flow_preconditioning(self, t: Tensor, *, scheme: str) -> Preconditioning:
        """`paper`: t_min / t and 1 - t_min / t. `edm`: the teacher's, moved so that the boundary is at t_min."""
        self.check_scheme(scheme)
        s_d, total = self.sigma_data, t**2 + self.sigma_data**2
        if scheme == "paper":
            # Tensor / tensor: `t_min / t` would multiply by a rounded 1 / t, which is not exactly 1 at t_min.
            c_skip = torch.full_like(t, self.t_min) / t
            c_out = 1 - c_skip
        else:
            since = t - self.t_min
            skip_total = since**2 + s_d**2
            c_skip = torch.full_like(t, s_d**2) / skip_total
            c_out = s_d * since * total.rsqrt()
        return Preconditioning(c_skip=c_skip, c_out=c_out, c_in=total.rsqrt(), c_noise=t.log() / 4)
