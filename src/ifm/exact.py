"""Closed forms: the exact teacher of a finite data set, and the flow map of Gaussian data.

The exact teacher is E[x_0 | x_t] without a network. It tests solver, trajectories and objectives without the error
of a trained network. Its paths end on data points, so its samples are copies of the data.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ifm.conditions.base import Condition, ConditionKind
from ifm.dynamics.base import Dynamics, expand

if TYPE_CHECKING:
    from ifm.latents.autoencoder import Autoencoder

TINY = 1e-280  # stands for b^2 = 0: the limit t -> 0 without 0 / 0
LEAST_LOG = -1e300  # in place of the log weight -inf of data without the condition asked for
CHUNK_BYTES = 2**26  # of one piece of the data in float64
FlowMap = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t [B]) -> x_0 [B, ...], the end point of x_t's path


class ExactTeacher(nn.Module):
    """D(x_t, t) = E[x_0 | x_t] for x_0 uniform on finitely many points: sum_i w_i x_i, w a softmax over the data.

    log w_i is the log density of z_i = (x_t - a x_i) / b: -|z_i|^2 / 2 for Gaussian noise, for pfgmpp
    -(N + D)/2 log(1 + |z_i|^2 / D). At t -> 0 it is the nearest point for Gaussian noise; for pfgmpp, whose kernel has
    polynomial tails, that holds at the data points alone. Where a = 0, as at t = 1 of rf, it is the data's mean.
    """

    def __init__(
        self,
        data: Tensor,
        dynamics: Dynamics,
        *,
        kind: ConditionKind | None = None,
        have: Condition | None = None,
    ) -> None:
        """data: [n, *shape], uint8 (0..255 for -1..1) or floating; have: the condition of each, of the kind `kind`."""
        super().__init__()
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data must have shape [n, ...] with n > 0, got {tuple(data.shape)}")
        self.dynamics, self.shape = dynamics, tuple(data.shape[1:])
        self.register_buffer("data", data.reshape(len(data), -1).contiguous())  # [n, N]
        if have is not None and len(have) != len(data):
            raise ValueError(f"need a condition for each of {len(data)} data, got {len(have)}")
        self.condition_kind, self.have = kind, have
        self.decoder: Autoencoder | None = None  # of latents: what makes images of its samples
        self.of_data: Mapping[str, Any] = {}  # of its samples beside their shape; see ifm.modalities.recorded

    def forward(self, x_t: Tensor, t: Tensor, *, condition: Condition | None = None) -> Tensor:
        """E[x_0 | x_t], over the data that have the condition asked for: [B, *shape], in x_t's dtype. t: [B] or [1].

        The weights are computed in float64 for any x_t, because at small t they compare distances to a millionth. The
        data are processed in pieces with a running maximum, so that memory is bounded by one piece.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ValueError(f"x_t must have shape [B, {', '.join(map(str, self.shape))}], got {tuple(x_t.shape)}")
        x = x_t.double().flatten(1)  # [B, N]
        at = self.dynamics.coefficients(t.double().expand(len(x_t)))
        a, b = expand(at.a, x), expand(at.b, x)  # [B, 1], [B, 1]
        top = x.new_full((len(x), 1), -torch.inf)  # the largest log w so far
        total, weighted, seen = torch.zeros_like(top), torch.zeros_like(x), 0
        for x_i in self._pieces():  # [m, N]
            log_w = self._log_weights(x, x_i, a=a, b=b)  # [B, m]
            if condition is not None:
                here = self.have.rows(slice(seen, seen + len(x_i))).to(x.device)
                log_w = torch.where(self.condition_kind.matches(condition, here), log_w, -torch.inf)
            seen += len(x_i)
            higher = torch.maximum(top, log_w.detach().amax(dim=1, keepdim=True)).clamp_min(LEAST_LOG)
            shrink, w = (top - higher).exp(), (log_w - higher).exp()
            total, weighted, top = shrink * total + w.sum(dim=1, keepdim=True), shrink * weighted + w @ x_i, higher
        return (weighted / total).to(x_t.dtype).reshape(x_t.shape)

    def _log_weights(self, x: Tensor, x_i: Tensor, *, a: Tensor, b: Tensor) -> Tensor:
        """log w, up to a constant in each row: [B, m]. x: [B, N]; x_i: [m, N]."""
        inner, squares = x @ x_i.T, x_i.square().sum(dim=1)  # [B, m], [m]
        variance = b.square().clamp_min(TINY)
        if self.dynamics.gaussian:  # |x|^2, which all weights share, is left out
            return (a * inner - a**2 * squares / 2) / variance
        distance = (x.square().sum(dim=1, keepdim=True) - 2 * a * inner + a**2 * squares).clamp_min(0)
        return self.dynamics.log_density(distance / variance, dimensions=x.shape[1])

    def _pieces(self):
        rows = max(1, CHUNK_BYTES // (8 * self.data.shape[1]))
        for piece in self.data.split(rows):
            yield piece.double() / 127.5 - 1 if piece.dtype == torch.uint8 else piece.double()


def gaussian_flow_map(dynamics: Dynamics, x_t: Tensor, t: Tensor, *, mu: Tensor, s: Tensor) -> Tensor:
    """The end point of the path through x_t for data N(mu, diag(s^2)) and Gaussian noise: [B, *shape].

    x_0 = mu + s (x_t - a mu) / sqrt(a^2 s^2 + b^2): each coordinate keeps its quantile. mu, s: [*shape].
    """
    if not dynamics.gaussian:
        raise ValueError(f"Gaussian data have no closed-form flow map under {dynamics.name}")
    at = dynamics.coefficients(t)
    a, b = expand(at.a, x_t), expand(at.b, x_t)
    return mu + s * (x_t - a * mu) / torch.sqrt(a**2 * s**2 + b**2)


def flow_map_of(dynamics: Dynamics, gaussian: tuple[np.ndarray, np.ndarray] | None, *, device=None) -> FlowMap | None:
    """The exact flow map of data N(mu, diag(s^2)), gaussian = (mu, s), in float64; None where no closed form is known.

    That is: for data of another law (None), and under noise that is not Gaussian.
    """
    if gaussian is None or not dynamics.gaussian:
        return None
    mu, s = (torch.from_numpy(moment).double().to(device) for moment in gaussian)
    return lambda x_t, t: gaussian_flow_map(dynamics, x_t.double(), t.double(), mu=mu, s=s)
