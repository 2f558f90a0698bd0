"""Teacher and IntegrationFlow: a network inside its preconditioning."""

import torch
from torch import Tensor, nn

from ifm.dynamics import Dynamics, expand


class Teacher(nn.Module):
    """The denoiser D(x_t, t), an estimate of E[x_0 | x_t] (EDM eq. 7; rectified flow with F_x the velocity)."""

    def __init__(self, network: nn.Module, dynamics: Dynamics) -> None:
        super().__init__()
        self.network, self.dynamics = network, dynamics

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

    def forward(self, x_t: Tensor, t: Tensor, *, x_anchor: Tensor | None) -> Tensor:
        """x_0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, x_anchor): [B, C, H, W]. t: [B].

        Raises ValueError if an anchor is missing where the network takes one, or the reverse.
        """
        if self.takes_anchor != (x_anchor is not None):
            raise ValueError("this flow takes an anchor" if self.takes_anchor else "this flow takes no anchor")
        c = self.dynamics.flow_preconditioning(t, scheme=self.scheme)
        inputs = expand(c.c_in, x_t) * x_t
        if x_anchor is None:
            F_x = self.network(inputs, c.c_noise)
        elif self.anchor_input == "cross_attention":
            F_x = self.network(inputs, c.c_noise, x_anchor.to(inputs.dtype))
        else:
            F_x = self.network(torch.cat([inputs, x_anchor.to(inputs.dtype)], dim=1), c.c_noise)  # [B, 2 C, H, W]
        return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * F_x.to(x_t.dtype)
