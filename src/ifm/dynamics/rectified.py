"""Rectified flow (Liu et al. 2022): straight pairs, x_t = (1 - t) x_0 + t z."""

import torch
from torch import Tensor

from ifm.dynamics.base import Coefficients, Dynamics, NoiseSource, Preconditioning, power_grid

PATH_T_MIN = 0.002  # the last time above 0 of a grid with rho: ve's t_min


class RectifiedFlow(Dynamics):
    """x_t = (1 - t) x_0 + t z, z ~ N(0, I), t in [0, 1]."""

    name = "rf"
    clock = "time"
    schemes = ("paper", "edm")
    t_min = 0.0
    t_max = 1.0

    def __init__(self, *, logit_time_mean: float = 0.0, logit_time_std: float = 1.0, sigma_data: float = 0.5) -> None:
        self.logit_time_mean, self.logit_time_std, self.sigma_data = (
            logit_time_mean,
            logit_time_std,
            sigma_data,
        )

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(a=1 - t, b=t, d_a=-one, d_b=one)

    def draw_time(self, *, generator: NoiseSource) -> Tensor:
        """logit t ~ N(logit_time_mean, logit_time_std^2) (Esser et al. 2024): [B].

        Kept off 0 and 1 by a thousandth, where the velocity of a float32 pair, (x_t - x_0) / t, loses its digits.
        """
        logit_t = self.logit_time_mean + self.logit_time_std * generator.normal(())
        return logit_t.sigmoid().clamp(1e-3, 1 - 1e-3)

    def solver_times(self, steps: int, *, rho: float | None = None) -> Tensor:
        """Even from 1 to 0, which suits few steps; with rho, EDM eq. 5 from 1 to 0.002, then 0: float64 [steps + 1].

        The even grid's last step is an Euler step from t = 1 / steps, onto E[x_0 | x_t] at a noise level that is
        still visible; a grid with rho closes in on 0.
        """
        if rho is not None:
            return power_grid(steps, t_min=PATH_T_MIN, t_max=self.t_max, rho=rho)
        if steps < 1:
            raise ValueError(f"a solver needs at least one step, got {steps}")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def teacher_preconditioning(self, t: Tensor) -> Preconditioning:
        """EDM's derivation (appendix B.6) for this path, with V(t) = (1 - t)^2 s_d^2 + t^2, the variance of x_t.

        c_skip = (1 - t) s_d^2 / V, c_out = t s_d / sqrt(V), c_in = 1 / sqrt(V). At t = 1 the network gives
        x_0 / s_d. The usual F_x = v has to reproduce x_T there to the last digit, only for it to be subtracted,
        and what it misses of the noise stays in the image.
        """
        s_d = self.sigma_data
        variance = (1 - t) ** 2 * s_d**2 + t**2
        # At t = 0 the ratio is of equal floats: exactly 1, as the flow's boundary asks.
        return Preconditioning(
            c_skip=(1 - t) * torch.full_like(t, s_d**2) / variance,
            c_out=t * s_d * variance.rsqrt(),
            c_in=variance.rsqrt(),
            c_noise=t,
        )

    def error_scale(self, t: Tensor) -> Tensor:
        """t: velocity matching, |v_hat - v|^2."""
        return t

    def flow_preconditioning(self, t: Tensor, *, scheme: str) -> Preconditioning:
        """`edm`: the teacher's. `paper`: 1, -t, 1, so that F_x is the mean velocity over [0, t]."""
        self.check_scheme(scheme)
        if scheme == "edm":
            return self.teacher_preconditioning(t)
        ones = torch.ones_like(t)
        return Preconditioning(c_skip=ones, c_out=-t, c_in=ones, c_noise=t)

    def time_at(self, angle: Tensor) -> Tensor:
        """t = s_d sin(theta) / (cos(theta) + s_d sin(theta)), from t / (1 - t) = s_d tan(theta)."""
        noise = self.sigma_data * angle.sin()
        return (noise / (angle.cos() + noise)).clamp(self.t_min, self.t_max)
