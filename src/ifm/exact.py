"""Closed forms: the exact teacher of a finite data set, and the flow map of Gaussian data.

The exact teacher is E[x_0 | x_t] without a network. It tests solver, trajectories and objectives without the error
of a trained network. Its paths end on data points, so its samples are copies of the data.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ifm.dynamics import Dynamics, PFGMPlusPlus, expand

TINY = 1e-280  # stands for b^2 = 0: the limit t -> 0 without 0 / 0
CHUNK_BYTES = 2**26  # of one piece of the data in float64
FlowMap = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t [B]) -> x_0 [B, ...], the end point of x_t's path


class ExactTeacher(nn.Module):
    """D(x_t, t) = E[x_0 | x_t] for x_0 uniform on finitely many points: sum_i w_i x_i, w a softmax over the data.

    ve, rf: log w_i = -|x_t - a x_i|^2 / 2 b^2 + const. pfgmpp: -(N + D)/2 log(|x_t - x_i|^2 + t^2 D) + const.
    At t -> 0 it is the nearest point for ve and rf; for pfgmpp, whose kernel has polynomial tails, that holds at the
    data points alone. At t = 1 of rf it is the data's mean.
    """

    def __init__(self, data: Tensor, dynamics: Dynamics) -> None:
        """data: [n, *shape], uint8 (0..255 for -1..1) or floating."""
        super().__init__()
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data must have shape [n, ...] with n > 0, got {tuple(data.shape)}")
        self.dynamics, self.shape = dynamics, tuple(data.shape[1:])
        self.register_buffer("data", data.reshape(len(data), -1).contiguous())  # [n, N]

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]: [B, *shape], in x_t's dtype. t: [B] or [1].

        The weights are computed in float64 for any x_t, because at small t they compare distances to a millionth. The
        data are processed in pieces with a running maximum, so that memory is bounded by one piece.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ValueError(f"x_t must have shape [B, {', '.join(map(str, self.shape))}], got {tuple(x_t.shape)}")
        x = x_t.double().flatten(1)  # [B, N]
        at = self.dynamics.coefficients(t.double().expand(len(x_t)))
        a, b = expand(at.a, x), expand(at.b, x)  # [B, 1], [B, 1]
        top = x.new_full((len(x), 1), -torch.inf)  # the largest log w so far
        total, weighted = torch.zeros_like(top), torch.zeros_like(x)
        for x_i in self._pieces():  # [m, N]
            log_w = self._log_weights(x, x_i, a=a, b=b)  # [B, m]
            higher = torch.maximum(top, log_w.detach().amax(dim=1, keepdim=True))
            shrink, w = (top - higher).exp(), (log_w - higher).exp()
            total, weighted, top = shrink * total + w.sum(dim=1, keepdim=True), shrink * weighted + w @ x_i, higher
        return (weighted / total).to(x_t.dtype).reshape(x_t.shape)

    def _log_weights(self, x: Tensor, x_i: Tensor, *, a: Tensor, b: Tensor) -> Tensor:
        """log w, up to a constant in each row: [B, m]. x: [B, N]; x_i: [m, N]."""
        inner, squares = x @ x_i.T, x_i.square().sum(dim=1)  # [B, m], [m]
        variance = b.square().clamp_min(TINY)
        if isinstance(self.dynamics, PFGMPlusPlus):
            D, N = self.dynamics.augmented_dimensions, x.shape[1]
            distance = (x.square().sum(dim=1, keepdim=True) - 2 * inner + squares).clamp_min(0)
            return -(N + D) / 2 * torch.log1p(distance / (variance * D))
        return (a * inner - a**2 * squares / 2) / variance

    def _pieces(self):
        rows = max(1, CHUNK_BYTES // (8 * self.data.shape[1]))
        for piece in self.data.split(rows):
            yield piece.double() / 127.5 - 1 if piece.dtype == torch.uint8 else piece.double()


def gaussian_flow_map(dynamics: Dynamics, x_t: Tensor, t: Tensor, *, mu: Tensor, s: Tensor) -> Tensor:
    """The end point of the path through x_t for data N(mu, diag(s^2)) under ve or rf: [B, *shape].

    x_0 = mu + s (x_t - a mu) / sqrt(a^2 s^2 + b^2): each coordinate keeps its quantile. mu, s: [*shape].
    """
    if isinstance(dynamics, PFGMPlusPlus):
        raise ValueError("Gaussian data have no closed-form flow map under pfgmpp")
    at = dynamics.coefficients(t)
    a, b = expand(at.a, x_t), expand(at.b, x_t)
    return mu + s * (x_t - a * mu) / torch.sqrt(a**2 * s**2 + b**2)


def flow_map_of(dynamics: Dynamics, gaussian: tuple[np.ndarray, np.ndarray] | None, *, device=None) -> FlowMap | None:
    """The exact flow map of data N(mu, diag(s^2)), gaussian = (mu, s), in float64; None where no closed form is known.

    That is: for data of another law (None), and under pfgmpp.
    """
    if gaussian is None or isinstance(dynamics, PFGMPlusPlus):
        return None
    mu, s = (torch.from_numpy(moment).double().to(device) for moment in gaussian)
    return lambda x_t, t: gaussian_flow_map(dynamics, x_t.double(), t.double(), mu=mu, s=s)
