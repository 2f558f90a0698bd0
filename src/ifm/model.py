"""Teacher and IntegrationFlow: a network inside its preconditioning."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ifm.dynamics import Dynamics, expand


def _use(module: str) -> Any:
    """A module of ifm.use, by name: it stands above this one, and no stage of the graph depends on it."""
    return import_module(f"ifm.use.{module}")


class Teacher(nn.Module):
    """The denoiser D(x_t, t), an estimate of E[x_0 | x_t] (EDM eq. 7; rectified flow with F_x the velocity)."""

    def __init__(self, network: nn.Module, dynamics: Dynamics) -> None:
        super().__init__()
        self.network, self.dynamics = network, dynamics

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """The trained model of a folder or a Hub id: see `ifm.use.loading`. Raises UserError."""
        return _use("loading").load(cls, model, revision=revision)

    def sample(self, n: int, *, nfe: int = 35, seed: int = 0, batch_size: int = 200) -> np.ndarray:
        """uint8 [n, C, H, W], or points float32 [n, d], by Heun with `nfe` evaluations (odd): see `ifm.use.drawing`."""
        drawing = _use("drawing")
        return drawing.draw(self, drawing.choose(self, nfe=nfe), n, seed=seed, batch_size=batch_size)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise): [B, C, H, W]. t: [B]."""
        c = self.dynamics.teacher_preconditioning(t)
        F_x = self.network(expand(c.c_in, x_t) * x_t, c.c_noise)
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_x.to(x_t.dtype)


class IntegrationFlow(nn.Module):
    """g(x_anchor, x_t, t), the end point x_0 of the path through x_t (paper, eq. for x_0 = x_t - G(x_0, x_t, t)).

    The anchor enters at the scale of data: as extra input channels, or as a third argument of the network
    (``anchor_input="cross_attention"``). With ``takes_anchor=False`` (policy `none`) the network has neither.
    """

    def __init__(
        self,
        network: nn.Module,
        dynamics: Dynamics,
        *,
        scheme: str,
        takes_anchor: bool,
        anchor_input: str = "channels",
    ) -> None:
        super().__init__()
        dynamics.check_scheme(scheme)
        self.network, self.dynamics = network, dynamics
        self.scheme, self.takes_anchor, self.anchor_input = scheme, takes_anchor, anchor_input

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """The trained model of a folder or a Hub id: see `ifm.use.loading`. Raises UserError."""
        return _use("loading").load(cls, model, revision=revision)

    def sample(
        self, n: int, *, steps: int = 1, seed: int = 0, sampler: str | None = None, batch_size: int = 200
    ) -> np.ndarray:
        """uint8 [n, C, H, W], or points float32 [n, d], in `steps` evaluations: see `ifm.use.drawing`.

        sampler: one_step, anchor, renoise or chain; None: what `ifm.use.drawing.choose` takes for so many steps.
        """
        drawing = _use("drawing")
        how = drawing.choose(self, steps=steps, sampler=sampler)
        return drawing.draw(self, how, n, seed=seed, batch_size=batch_size)

    def forward(self, x_t: Tensor, t: Tensor, *, x_anchor: Tensor | None) -> Tensor:
        """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, x_anchor): [B, C, H, W]. t: [B].

        Raises ValueError if an anchor is missing where the network takes one, or the reverse.
        """
        c = self.dynamics.flow_preconditioning(t, scheme=self.scheme)
        F_x = self._evaluate(expand(c.c_in, x_t) * x_t, c.c_noise, x_anchor)
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_x.to(x_t.dtype)

    def _evaluate(self, inputs: Tensor, c_noise: Tensor, x_anchor: Tensor | None, **ends: Tensor) -> Tensor:
        """F of the scaled inputs, with the anchor where the network takes it: [B, C, H, W]."""
        if self.takes_anchor != (x_anchor is not None):
            raise ValueError("this flow takes an anchor" if self.takes_anchor else "this flow takes no anchor")
        if x_anchor is None:
            return self.network(inputs, c_noise, **ends)
        if self.anchor_input == "cross_attention":
            return self.network(inputs, c_noise, x_anchor.to(inputs.dtype), **ends)
        return self.network(torch.cat([inputs, x_anchor.to(inputs.dtype)], dim=1), c_noise, **ends)  # [B, 2 C, H, W]


class IntervalFlow(IntegrationFlow):
    """The path from t to any earlier s: g(x_anchor, x_t, t, s) = x_s_hat, and with s = t_min the integration flow.

    In the angle theta (`Dynamics.angle`) and y = x_t / lambda(t), of unit variance, the integral over [s, t] is
    (theta_t - theta_s) times the mean velocity

        u(y, theta_s, theta_t) = (y_t - y_s) / (theta_t - theta_s).

    The network F is given both angles, and y_s = cos(delta) y_t + sin(delta) F, delta = theta_t - theta_s: at
    delta = pi/2, from noise to data, it has nothing of the noise to reproduce, and at delta = 0 -F is the velocity.
    """

    def __init__(
        self, network: nn.Module, dynamics: Dynamics, *, takes_anchor: bool, anchor_input: str = "channels"
    ) -> None:
        super().__init__(network, dynamics, scheme="edm", takes_anchor=takes_anchor, anchor_input=anchor_input)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_anchor: Tensor | None,
        s: Tensor | None = None,
        mean_velocity: bool = False,
    ) -> Tensor:
        """x_s_hat, or u over [s, t] if `mean_velocity`: [B, C, H, W]. t, s: [B], s <= t; t_min where s is None.

        Raises ValueError if an anchor is missing where the network takes one, or the reverse.
        """
        if s is None:
            s = torch.full_like(t, self.dynamics.t_min)
        c, theta_s = self.dynamics.interval_preconditioning(t, s), self.dynamics.angle(s)
        y = expand(c.c_in, x_t) * x_t
        if mean_velocity:
            return self.mean_velocity(y, c.c_noise, theta_s=theta_s, x_anchor=x_anchor)
        F_y = self._evaluate(y, c.c_noise, x_anchor, c_end=theta_s)
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_y.to(x_t.dtype)

    def mean_velocity(self, y: Tensor, theta: Tensor, *, theta_s: Tensor, x_anchor: Tensor | None) -> Tensor:
        """u(y, theta_s, theta_t) = (y - y_s) / delta, written so that delta = 0 gives -F: [B, C, H, W].

        (1 - cos(delta)) / delta = sin(delta/2) sinc(delta/2), with sinc(x) = sin(x) / x.
        """
        F_y = self._evaluate(y, theta, x_anchor, c_end=theta_s).to(y.dtype)
        half = (theta - theta_s) / 2
        skip = half.sin() * torch.sinc(half / math.pi)
        return expand(skip, y) * y - expand(torch.sinc(2 * half / math.pi), y) * F_y


def build_flow(
    network: nn.Module, dynamics: Dynamics, *, scheme: str, two_times: bool = False, **anchor: Any
) -> IntegrationFlow:
    """An IntegrationFlow, or an IntervalFlow for a network of two times (scheme edm alone)."""
    if not two_times:
        return IntegrationFlow(network, dynamics, scheme=scheme, **anchor)
    if scheme != "edm":
        raise ValueError(f"a flow of two times has scheme edm, got {scheme}")
    return IntervalFlow(network, dynamics, **anchor)
