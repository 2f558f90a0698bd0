"""One convention for every dynamics.

t = 0 is data, t = t_max is noise. x_0: data in [-1, 1]; z: noise; x_t: a point on a path; x_T: the prior draw;
v: velocity dx/dt; x_0_hat: an estimate of the end point. Times have shape [B], images [B, C, H, W].

All dynamics are x_t = a(t) x_0 + b(t) z. With derivatives d_a and d_b, the velocity of a pair's path is

    v = d_a x_0 + d_b z = (d_b / b) x_t + (d_a - a d_b / b) x_0,

and the marginal ODE has E[x_0 | x_t] for x_0. One velocity rule, one solver and one prior rule serve all dynamics. For
ve, rf and pfgmpp, whose paths are straight, v = (x_t - x_0) / t.
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
    """x_t = a x_0 + b z, and the derivatives of a and b by t."""

    a: Tensor  # [B]
    b: Tensor  # [B]
    d_a: Tensor  # [B]
    d_b: Tensor  # [B]


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
    schemes: ClassVar[tuple[str, ...]] = ("edm",)
    gaussian: ClassVar[bool] = True  # whether z ~ N(0, I)
    clock: ClassVar[str] = "angle"  # what c_noise of `teacher_preconditioning` is
    t_min: float
    t_max: float
    sigma_data: float

    @property
    def options(self) -> dict[str, float]:
        """The constructor's arguments: ``build(d.name, **d.options)`` is d again."""
        return dict(vars(self))

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """a(t), b(t) and their derivatives: [B] each. The derivatives may be infinite at t = 0."""

    def draw_noise(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """The law of z, here N(0, I): [B, *shape], one row per stream of the generator."""
        return generator.normal(shape)

    def log_density(self, squared_norm: Tensor, *, dimensions: int) -> Tensor:
        """The log density of z, up to a constant, by |z|^2: in its shape. dimensions: numbers of one sample."""
        return -squared_norm / 2

    @abstractmethod
    def draw_time(self, *, generator: NoiseSource) -> Tensor:
        """The training law of t: [B], within [t_min, t_max]."""

    @abstractmethod
    def solver_times(self, steps: int, *, rho: float | None = None) -> Tensor:
        """The solver's grid from t_max down to 0: float64 [steps + 1].

        rho: `power_grid`'s exponent in place of the dynamics' own grid. Raises ValueError for steps < 1.
        """

    def teacher_preconditioning(self, t: Tensor) -> Preconditioning:
        """The denoiser's: x_0_hat = c_skip x_t + c_out F_x, with F_x of unit scale.

        EDM's derivation (appendix B.6): c_skip = a s_d^2 / lambda^2, c_out = b s_d / lambda, c_in = 1 / lambda, with
        lambda as in `scale`. c_noise is the angle.
        """
        at, s_d, scale = self.coefficients(t), self.sigma_data, self.scale(t)
        return Preconditioning(
            c_skip=at.a * s_d**2 / scale**2, c_out=at.b * s_d / scale, c_in=1 / scale, c_noise=self.angle(t)
        )

    def error_scale(self, t: Tensor) -> Tensor:
        """The teacher's error x_0_hat - x_0 is measured in units of this: [B]. c_out: EDM's weight 1 / c_out^2."""
        return self.teacher_preconditioning(t).c_out

    def flow_preconditioning(self, t: Tensor, *, scheme: str) -> Preconditioning:
        """The integration flow's, with c_skip = 1 and c_out = 0 exactly at t_min, so that g(., x, t_min) = x."""
        self.check_scheme(scheme)
        return self.interval_preconditioning(t, torch.full_like(t, self.t_min))

    def perturb(self, x_0: Tensor, *, z: Tensor, t: Tensor) -> Tensor:
        """The point at time t on the path from x_0 to z: a(t) x_0 + b(t) z."""
        at = self.coefficients(t)
        return expand(at.a, x_0) * x_0 + expand(at.b, x_0) * z  # [B, C, H, W]

    def noise_of(self, x_t: Tensor, *, x_0: Tensor, t: Tensor) -> Tensor:
        """z such that x_t = a x_0 + b z, for b > 0: [B, C, H, W]."""
        at = self.coefficients(t)
        return (x_t - expand(at.a, x_t) * x_0) / expand(at.b, x_t)

    def velocity(self, x_t: Tensor, *, x_0: Tensor, t: Tensor) -> Tensor:
        """dx/dt = d_a x_0 + d_b z, for a pair's path and, with x_0 = E[x_0 | x_t], for the marginal ODE; for b > 0."""
        at, z = self.coefficients(t), self.noise_of(x_t, x_0=x_0, t=t)
        return expand(at.d_a, x_t) * x_0 + expand(at.d_b, x_t) * z  # [B, C, H, W]

    def slope(self, x_t: Tensor, *, x_0: Tensor, t: Tensor) -> Tensor:
        """What the solver averages over a step, here the velocity: [B, C, H, W]."""
        return self.velocity(x_t, x_0=x_0, t=t)

    def step(self, x: Tensor, slope: Tensor, *, t: float, s: float) -> Tensor:
        """The solver's step from t to s along a slope, here x + (s - t) dx/dt: [B, C, H, W]."""
        return x + (s - t) * slope

    def prior(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """x_T = b(t_max) z, already scaled: [B, *shape]."""
        z = self.draw_noise(shape, generator=generator)
        return self.coefficients(torch.full((len(z),), self.t_max, dtype=z.dtype)).b[0] * z

    # --- the angle: every dynamics as a rotation from data to noise --------------------------------------------

    def scale(self, t: Tensor) -> Tensor:
        """lambda(t) = sqrt(a^2 s_d^2 + b^2), the standard deviation of x_t for Gaussian z: [B].

        PFGM++'s z has the variance D / (D - 2): 1.6 % above 1 at D = 128.
        """
        at = self.coefficients(t)
        return (at.a**2 * self.sigma_data**2 + at.b**2).sqrt()

    def angle(self, t: Tensor) -> Tensor:
        """theta = arctan(b / (a s_d)), from 0 at the data to at most pi/2 at the noise: [B].

        y = x_t / lambda(t) = cos(theta) x_0 / s_d + sin(theta) z has unit variance where z has it, and along a pair's
        path dy/dtheta = cos(theta) z - sin(theta) x_0 / s_d has it too (TrigFlow, Lu & Song 2024, has s_d z for z).
        PFGM++'s is a little larger, see `scale`. See docs/interval.md.
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
        """Raises ValueError for a scheme of c_skip and c_out that this dynamics does not have."""
        if scheme not in self.schemes:
            raise ValueError(f"unknown scheme {scheme!r}; {self.name} has {', '.join(self.schemes)}")


class NoiseLevelDynamics(Dynamics):
    """A dynamics whose solver's grid and training law are EDM's in the noise level sigma = b / a.

    Equal noise levels are equal tasks: b / a fixes E[x_0 | x_t] up to the scale of x_t. A subclass gives `coefficients`
    and `time_of_level`, and has t_min, t_max, rho, log_time_mean and log_time_std.
    """

    def __init__(
        self,
        *,
        t_min: float,
        t_max: float,
        rho: float = 7.0,
        log_time_mean: float = -1.2,
        log_time_std: float = 1.2,
        sigma_data: float = 0.5,
    ) -> None:
        if not 0 < t_min < t_max:
            raise ValueError(f"need 0 < t_min < t_max, got t_min = {t_min}, t_max = {t_max}")
        self.t_min, self.t_max, self.rho, self.sigma_data = t_min, t_max, rho, sigma_data
        self.log_time_mean, self.log_time_std = log_time_mean, log_time_std

    @abstractmethod
    def time_of_level(self, level: Tensor) -> Tensor:
        """The time at which b / a is `level`: in its shape."""

    def level(self, t: Tensor) -> Tensor:
        """sigma = b / a: [B]."""
        at = self.coefficients(t)
        return at.b / at.a

    def slope(self, x_t: Tensor, *, x_0: Tensor, t: Tensor) -> Tensor:
        """z = d(x / a) / d sigma: [B, C, H, W].

        In x / a and sigma every such dynamics has ve's ODE, whose paths bend least (EDM, sec. 3). In t, large steps of
        `vp` leave the path.
        """
        return self.noise_of(x_t, x_0=x_0, t=t)

    def step(self, x: Tensor, slope: Tensor, *, t: float, s: float) -> Tensor:
        """a_s (x / a_t + (sigma_s - sigma_t) z): [B, C, H, W]. With z of the start it is DDIM's step."""
        ends = self.coefficients(torch.tensor([t, s], dtype=torch.float64))
        (a_t, a_s), (here, there) = ends.a.tolist(), (ends.b / ends.a).tolist()
        return a_s * (x / a_t + (there - here) * slope)

    def draw_time(self, *, generator: NoiseSource) -> Tensor:
        """ln sigma ~ N(log_time_mean, log_time_std^2), EDM's training law, clamped to [t_min, t_max]: [B]."""
        level = (self.log_time_mean + self.log_time_std * generator.normal(())).exp()
        return self.time_of_level(level).clamp(self.t_min, self.t_max)

    def solver_times(self, steps: int, *, rho: float | None = None) -> Tensor:
        """EDM eq. 5 in the noise level, from t_max to t_min, then 0: float64 [steps + 1]."""
        low, high = self.level(torch.tensor([self.t_min, self.t_max], dtype=torch.float64)).tolist()
        levels = power_grid(steps, t_min=low, t_max=high, rho=rho or self.rho)
        times = self.time_of_level(levels)
        times[0] = self.t_max
        return times

    def time_at(self, angle: Tensor) -> Tensor:
        """The time at which b / a = s_d tan(theta)."""
        return self.time_of_level(self.sigma_data * angle.tan()).clamp(self.t_min, self.t_max)
