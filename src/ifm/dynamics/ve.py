"""Variance exploding diffusion in EDM's parametrisation (Karras et al. 2022), sigma(t) = t."""

import torch
from torch import Tensor

from ifm.dynamics.base import Coefficients, Dynamics, NoiseSource, Preconditioning, power_grid


class VarianceExploding(Dynamics):
    """x_t = x_0 + t z, z ~ N(0, I), t in [t_min, t_max] (0.002 .. 80)."""

    name = "ve"

    def __init__(
        self,
        *,
        t_min: float = 0.002,
        t_max: float = 80.0,
        rho: float = 7.0,
        log_time_mean: float = -1.2,
        log_time_std: float = 1.2,
        sigma_data: float = 0.5,
    ) -> None:
        if not 0 < t_min < t_max:
            raise ValueError(f"need 0 < t_min < t_max, got t_min = {t_min}, t_max = {t_max}")
        self.t_min, self.t_max, self.rho, self.sigma_data = t_min, t_max, rho, sigma_data
        self.log_time_mean, self.log_time_std = log_time_mean, log_time_std

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(a=torch.ones_like(t), b=t)

    def draw_noise(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """z ~ N(0, I): [B, *shape]."""
        return generator.normal(shape)

    def draw_time(self, *, generator: NoiseSource) -> Tensor:
        """ln t ~ N(log_time_mean, log_time_std^2), EDM's training law, clamped to [t_min, t_max]: [B]."""
        log_t = self.log_time_mean + self.log_time_std * generator.normal(())
        return log_t.exp().clamp(self.t_min, self.t_max)

    def solver_times(self, steps: int, *, rho: float | None = None) -> Tensor:
        """EDM eq. 5: even in t^(1/rho) from t_max to t_min, then 0: float64 [steps + 1]."""
        return power_grid(steps, t_min=self.t_min, t_max=self.t_max, rho=rho or self.rho)

    def teacher_preconditioning(self, t: Tensor) -> Preconditioning:
        """EDM table 1: s_d^2 / (t^2 + s_d^2), t s_d / sqrt(t^2 + s_d^2), 1 / sqrt(t^2 + s_d^2), ln(t) / 4."""
        s_d = self.sigma_data
        total = t**2 + s_d**2
        return Preconditioning(
            c_skip=s_d**2 / total, c_out=t * s_d * total.rsqrt(), c_in=total.rsqrt(), c_noise=t.log() / 4
        )

    def error_scale(self, t: Tensor) -> Tensor:
        """c_out: EDM's weight 1 / c_out^2."""
        return self.teacher_preconditioning(t).c_out

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

    def time_at(self, angle: Tensor) -> Tensor:
        """t = s_d tan(theta)."""
        return (self.sigma_data * angle.tan()).clamp(self.t_min, self.t_max)
