"""Teacher and IntegrationFlow: a network inside its preconditioning."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ifm.conditions.base import Condition, ConditionKind, told
from ifm.dynamics.base import Dynamics, expand

if TYPE_CHECKING:
    from ifm.latents.autoencoder import Autoencoder
    from ifm.recorded import Way


class Teacher(nn.Module):
    """The denoiser D(x_t, t), an estimate of E[x_0 | x_t] (EDM eq. 7), or of E[x_0 | x_t, condition]."""

    def __init__(self, network: nn.Module, dynamics: Dynamics) -> None:
        super().__init__()
        self.network, self.dynamics = network, dynamics
        self.decoder: Autoencoder | None = None  # of a model of latents: what makes images of its samples
        self.of_data: Mapping[str, Any] = {}  # of its samples beside their shape; see ifm.modalities.recorded

    @property
    def condition_kind(self) -> ConditionKind | None:
        """The conditions that the network takes."""
        return getattr(self.network, "condition_kind", None)

    def forward(self, x_t: Tensor, t: Tensor, *, condition: Condition | None = None) -> Tensor:
        """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, condition): [B, C, H, W]. t: [B]."""
        c = self.dynamics.teacher_preconditioning(t)
        F_x = self.network(expand(c.c_in, x_t) * x_t, c.c_noise, **told(condition))
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
        self.samplers: Mapping[int, Way] = {}  # what measured best, by number of evaluations; see ifm.recorded
        self.decoder: Autoencoder | None = None  # as a Teacher's
        self.of_data: Mapping[str, Any] = {}  # of its samples beside their shape; see ifm.modalities.recorded
        self.guidance: dict[str, Any] | None = None  # what it has inside: kind, scale, interval; see ifm.guidance

    @property
    def condition_kind(self) -> ConditionKind | None:
        """The conditions that the network takes."""
        return getattr(self.network, "condition_kind", None)

    def forward(self, x_t: Tensor, t: Tensor, *, x_anchor: Tensor | None, condition: Condition | None = None) -> Tensor:
        """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, x_anchor, condition): [B, C, H, W]. t: [B].

        Raises ValueError if an anchor or a condition is missing where the network takes one, or the reverse.
        """
        c = self.dynamics.flow_preconditioning(t, scheme=self.scheme)
        F_x = self._evaluate(expand(c.c_in, x_t) * x_t, c.c_noise, x_anchor, **told(condition))
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_x.to(x_t.dtype)

    def _evaluate(self, inputs: Tensor, c_noise: Tensor, x_anchor: Tensor | None, **told: Any) -> Tensor:
        """F of the scaled inputs, with the anchor where the network takes it: [B, C, H, W]."""
        if self.takes_anchor != (x_anchor is not None):
            raise ValueError("this flow takes an anchor" if self.takes_anchor else "this flow takes no anchor")
        if x_anchor is None:
            return self.network(inputs, c_noise, **told)
        if self.anchor_input == "cross_attention":
            return self.network(inputs, c_noise, x_anchor.to(inputs.dtype), **told)
        return self.network(torch.cat([inputs, x_anchor.to(inputs.dtype)], dim=1), c_noise, **told)  # [B, 2 C, H, W]


class IntervalFlow(IntegrationFlow):
    """The path from t to any earlier s: g(x_anchor, x_t, t, s) = x_s_hat, and with s = t_min the integration flow.

    In the angle theta (`Dynamics.angle`) and y = x_t / lambda(t), about of unit variance, the integral over [s, t] is
    (theta_t - theta_s) times the mean velocity

        u(y, theta_s, theta_t) = (y_t - y_s) / (theta_t - theta_s).

    The network F is given both angles, and y_s = cos(delta) y_t + sin(delta) F, delta = theta_t - theta_s: at
    delta = pi/2, from noise to data, it has nothing of the noise to reproduce, and at delta = 0 -F is the velocity.
    """

    differentiated = True  # in training, by theta; float32 weights are for this

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
        condition: Condition | None = None,
        s: Tensor | None = None,
        mean_velocity: bool = False,
    ) -> Tensor:
        """x_s_hat, or u over [s, t] if `mean_velocity`: [B, C, H, W]. t, s: [B], s <= t; t_min where s is None.

        Raises ValueError if an anchor or a condition is missing where the network takes one, or the reverse.
        """
        if s is None:
            s = torch.full_like(t, self.dynamics.t_min)
        c, theta_s = self.dynamics.interval_preconditioning(t, s), self.dynamics.angle(s)
        y = expand(c.c_in, x_t) * x_t
        if mean_velocity:
            return self.mean_velocity(y, c.c_noise, theta_s=theta_s, x_anchor=x_anchor, condition=condition)
        F_y = self._evaluate(y, c.c_noise, x_anchor, c_end=theta_s, **told(condition))
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_y.to(x_t.dtype)

    def mean_velocity(
        self,
        y: Tensor,
        theta: Tensor,
        *,
        theta_s: Tensor,
        x_anchor: Tensor | None,
        condition: Condition | None = None,
    ) -> Tensor:
        """u(y, theta_s, theta_t) = (y - y_s) / delta, written so that delta = 0 gives -F: [B, C, H, W].

        (1 - cos(delta)) / delta = sin(delta/2) sinc(delta/2), with sinc(x) = sin(x) / x.
        """
        F_y = self._evaluate(y, theta, x_anchor, c_end=theta_s, **told(condition)).to(y.dtype)
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
