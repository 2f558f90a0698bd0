"""One convention for every dynamics.

t = 0 is data, t = t_max is noise. x_0: data in [-1, 1]; z: noise; x_t: a point on a path; x_T: the prior draw;
v: velocity dx/dt; x_0_hat: an estimate of the end point. Times have shape [B], images [B, C, H, W].

All dynamics are x_t = a(t) x_0 + b(t) z. Along a pair's path v = (x_t - x_0) / t, and the marginal ODE is
dx/dt = (x - E[x_0 | x_t = x]) / t: one velocity rule, one solver and one prior rule serve all of them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """What the laws of z and t draw from; `ifm.random.Streams` is one."""

    def __len__(self) -> int: ...
    def normal(self, shape: tuple[int, ...]) -> Tensor: ...
    def uniform(self) -> Tensor: ...
    def chi_square(self, degrees: float) -> Tensor: ...


@dataclass(frozen=True)
class Coefficients:
    """x_t = a x_0 + b z."""

    a: Tensor  # [B]
    b: Tensor  # [B]


@dataclass(frozen=True)
class Preconditioning:
    """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise)."""

    c_skip: Tensor  # [B]
    c_out: Tensor  # [B]
    c_in: Tensor  # [B]
    c_noise: Tensor  # [B]


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Gives c [B] the trailing axes of x, so that it multiplies sample by sample: [B, 1, 1, 1] for images."""
    if c.ndim != 1 or (c.shape[0] != x.shape[0] and c.shape[0] != 1):  # len() would fix B when a graph is exported
        raise ValueError(f"t and the coefficients must have shape [{len(x)}], got {tuple(c.shape)}")
    return c.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def power_grid(steps: int, *, t_min: float, t_max: float, rho: float) -> Tensor:
    """EDM eq. 5: even in t^(1/rho) from t_max to t_min, then 0: float64 [steps + 1]."""
    if steps < 1:
        raise ValueError(f"a solver needs at least one step, got {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)  # [0] for one step
    high, low = t_max ** (1 / rho), t_min ** (1 / rho)
    times = (high + ramp * (low - high)) ** rho
    times[0] = t_max  # the power and its root need not cancel to the last bit
    return torch.cat([times, times.new_zeros(1)])


class Dynamics(ABC):
    """A path from data to noise: coefficients, the law of z, the training law of t, preconditioning."""

    name: ClassVar[str]
    schemes: ClassVar[tuple[str, ...]] = ("paper", "edm")
    t_min: float
    t_max: float
    sigma_data: float

    @property
    def options(self) -> dict[str, float]:
        """The constructor's arguments: ``build(d.name, **d.options)`` is d again."""
        return dict(vars(self))

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """a(t) and b(t): [B], [B]."""

    @abstractmethod
    def draw_noise(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """The law of z: [B, *shape], one row per stream of the generator."""

    @abstractmethod
    def draw_time(self, *, generator: NoiseSource) -> Tensor:
        """The training law of t: [B], within [t_min, t_max]."""

    @abstractmethod
    def solver_times(self, steps: int, *, rho: float | None = None) -> Tensor:
        """The solver's grid from t_max down to 0: float64 [steps + 1].

        rho: `power_grid`'s exponent in place of the dynamics' own grid. Raises ValueError for steps < 1.
        """

    @abstractmethod
    def teacher_preconditioning(self, t: Tensor) -> Preconditioning:
        """The denoiser's: x_0_hat = c_skip x_t + c_out F_x, with F_x of unit scale."""

    @abstractmethod
    def error_scale(self, t: Tensor) -> Tensor:
        """The teacher's error x_0_hat - x_0 is measured in units of this: [B]."""

    @abstractmethod
    def flow_preconditioning(self, t: Tensor, *, scheme: str) -> Preconditioning:
        """The integration flow's, with c_skip = 1 and c_out = 0 exactly at t_min, so that g(., x, t_min) = x."""

    def perturb(self, x_0: Tensor, *, z: Tensor, t: Tensor) -> Tensor:
        """The point at time t on the path from x_0 to z: a(t) x_0 + b(t) z."""
        at = self.coefficients(t)
        return expand(at.a, x_0) * x_0 + expand(at.b, x_0) * z  # [B, C, H, W]

    def velocity(self, x_t: Tensor, *, x_0: Tensor, t: Tensor) -> Tensor:
        """dx/dt = (x_t - x_0) / t, for a pair's path and, with x_0 = E[x_0 | x_t], for the marginal ODE."""
        return (x_t - x_0) / expand(t, x_t)  # [B, C, H, W]

    def prior(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """x_T = b(t_max) z, already scaled: [B, *shape]."""
        z = self.draw_noise(shape, generator=generator)
        return self.coefficients(torch.full((len(z),), self.t_max, dtype=z.dtype)).b[0] * z

    # --- the angle: every dynamics as a rotation from data to noise --------------------------------------------

    def scale(self, t: Tensor) -> Tensor:
        """lambda(t) = sqrt(a^2 s_d^2 + b^2), the standard deviation of x_t: [B]."""
        at = self.coefficients(t)
        return (at.a**2 * self.sigma_data**2 + at.b**2).sqrt()

    def angle(self, t: Tensor) -> Tensor:
        """theta = arctan(b / (a s_d)), from 0 at the data to at most pi/2 at the noise: [B].

        y = x_t / lambda(t) = cos(theta) x_0 / s_d + sin(theta) z has unit variance, and along a pair's path
        dy/dtheta = cos(theta) z - sin(theta) x_0 / s_d has it too, for every dynamics (TrigFlow, Lu & Song 2024,
        has s_d z for z). See docs/interval.md.
        """
        at = self.coefficients(t)
        return torch.atan2(at.b, at.a * self.sigma_data)

    def angular_velocity(self, x_0: Tensor, *, z: Tensor, theta: Tensor) -> Tensor:
        """dy/dtheta = cos(theta) z - sin(theta) x_0 / s_d of a pair's path: [B, C, H, W]. theta: [B]."""
        return expand(theta.cos(), x_0) * z - expand(theta.sin(), x_0) * x_0 / self.sigma_data

    @abstractmethod
    def time_at(self, angle: Tensor) -> Tensor:
        """The inverse of `angle`, clamped to [t_min, t_max]: [B]."""

    def interval_preconditioning(self, t: Tensor, s: Tensor) -> Preconditioning:
        """x_s_hat = c_skip x_t + c_out F(c_in x_t, ...): y turned by delta = theta_t - theta_s, with F = -dy/dtheta.

        With lambda as in `scale`: c_skip = lambda_s / lambda_t cos(delta), c_out = lambda_s sin(delta),
        c_in = 1 / lambda_t. At s = t they are exactly 1 and 0; at s = 0 they are EDM's, the teacher's. c_noise is the
        angle.
        """
        theta, here, there = self.angle(t), self.scale(t), self.scale(s)
        delta = theta - self.angle(s)
        return Preconditioning(
            c_skip=there / here * delta.cos(), c_out=there * delta.sin(), c_in=1 / here, c_noise=theta
        )

    def check_scheme(self, scheme: str) -> None:
        if scheme not in self.schemes:
            raise ValueError(f"unknown scheme {scheme!r}; {self.name} has {', '.join(self.schemes)}")
