"""Teachers without a network: closed forms to judge solver, trajectories and objectives by, on the device of x_t."""

import torch
from torch import Tensor, nn

from ifm.diagnostics import gaussian_gain
from ifm.dynamics.base import Dynamics, expand


class GaussianDenoiser:
    """E[x_0 | x_t] for data N(mu, diag(s^2)) under ve or rf."""

    def __init__(self, dynamics: Dynamics, *, mu: Tensor, s: Tensor) -> None:
        self.dynamics, self.mu, self.s = dynamics, mu, s

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        at = self.dynamics.coefficients(t)
        a, b = expand(at.a, x_t), expand(at.b, x_t)
        mu, s = self.mu.to(x_t.device), self.s.to(x_t.device)
        gain = a * s**2 / (a**2 * s**2 + b**2)
        return mu + gain * (x_t - a * mu)

    def flow_map(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The end point of the ODE through x_t: x_0 = mu + s (x_t - a mu) / sqrt(a^2 s^2 + b^2)."""
        at = self.dynamics.coefficients(t)
        a, b = expand(at.a, x_t), expand(at.b, x_t)
        mu, s = self.mu.to(x_t.device), self.s.to(x_t.device)
        return mu + s * (x_t - a * mu) / torch.sqrt(a**2 * s**2 + b**2)


class PointsDenoiser:
    """E[x_0 | x_t] for a finite data set [n, N] (METHOD, section 6)."""

    def __init__(self, dynamics: Dynamics, points: Tensor) -> None:
        self.dynamics, self.points = dynamics, points

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        at = self.dynamics.coefficients(t)
        points = self.points.to(x_t.device)
        distance = (x_t[:, None] - at.a[:, None, None] * points).square().sum(-1)  # [B, n]
        b = at.b[:, None]
        if self.dynamics.name == "pfgmpp":
            D, N = self.dynamics.augmented_dimensions, points.shape[1]
            log_w = -(N + D) / 2 * torch.log(distance + b**2 * D)
        else:
            log_w = -distance / (2 * b**2)
        return log_w.softmax(dim=1) @ points


class LinearFlow(nn.Module):
    """x_0_hat = s_d / sqrt(a^2 s_d^2 + b^2) x_t, the exact flow map of N(0, s_d^2), plus a share of the anchor."""

    takes_anchor, of_data = True, {}

    def __init__(self, d, anchor=0.0):
        super().__init__()
        self.dynamics, self.anchor = d, anchor

    def forward(self, x_t, t, *, x_anchor):
        gain = gaussian_gain(self.dynamics, t.double()).to(x_t.dtype)
        return gain.reshape(-1, *[1] * (x_t.ndim - 1)) * x_t + self.anchor * x_anchor
