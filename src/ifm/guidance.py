"""Guidance: a denoiser led towards its condition, and beyond.

    D_w = D_0 + w (D_c - D_0)

D_c is E[x_0 | x_t, condition]. D_0 is the denoiser without a condition (`cfg`, Ho & Salimans 2022), or a weaker one
with the same condition (`autoguidance`, Karras et al. 2024). w = 0 is D_0 and w = 1 is D_c, to the bit. Outside an
interval of noise levels b / a w is 1 (Kynkäänniemi et al. 2024).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ifm.conditions.base import Condition, ConditionKind
from ifm.dynamics.base import Dynamics, expand
from ifm.errors import UserError

KINDS = ("cfg", "autoguidance")
Interval = tuple[float, float]  # of the noise level b / a


@dataclass(frozen=True)
class Guidance:
    """The section `guidance` of params.yaml where it asks for any; what ifm.json keeps of a flow."""

    kind: str  # one of KINDS
    scale: float | tuple[float, float]  # w, or the range of it that the flow takes as an input
    interval: Interval | None = None

    @classmethod
    def of(cls, config: Any) -> Self | None:
        """config: the section, or a mapping with its keys; None for kind none, and of None."""
        if config is None:
            return None
        found = config if isinstance(config, Mapping) else config.model_dump()
        if found["kind"] == "none":
            return None
        scale, interval = found["scale"], found["interval"]
        if found["kind"] not in KINDS:
            raise ValueError(f"unknown guidance {found['kind']!r}; known: {', '.join(KINDS)}")
        scale = tuple(map(float, scale)) if isinstance(scale, list | tuple) else float(scale)
        return cls(found["kind"], scale, None if interval is None else tuple(map(float, interval)))

    @property
    def range(self) -> tuple[float, float] | None:
        """The range of w that the flow takes; None for a fixed w."""
        return self.scale if isinstance(self.scale, tuple) else None

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON, which `of` reads."""
        scale, interval = self.scale, self.interval
        return {
            "kind": self.kind,
            "scale": list(scale) if isinstance(scale, tuple) else scale,
            "interval": None if interval is None else list(interval),
        }

    def around(self, teacher: Any, kind: ConditionKind, *, weaker: Any = None) -> "Guided":
        """A denoiser led by this guidance. weaker: of autoguidance."""
        if (weaker is None) == (self.kind == "autoguidance"):
            raise ValueError("autoguidance, and it alone, needs a weaker teacher")
        w = None if self.range else self.scale
        return Guided(teacher, kind, w=w, interval=self.interval, weaker=weaker)


class Guided(nn.Module):
    """D_w of a teacher, called like one: (x_t, t, condition=...) -> D_w.

    Two evaluations where w counts, else one; always two where t is on a GPU and the caller does not say (`counts`).
    """

    def __init__(
        self,
        teacher: nn.Module,
        condition_kind: ConditionKind,
        *,
        w: float | None,
        interval: Interval | None = None,
        weaker: nn.Module | None = None,
    ) -> None:
        """w: of every sample; None: each condition brings its own. weaker: what gives D_0; None: no condition."""
        super().__init__()
        own = getattr(teacher, "condition_kind", condition_kind)
        if weaker is None and hasattr(teacher, "network") and not own.drops:
            raise UserError(
                "the teacher knows no class alone: guidance.kind: cfg needs one that was trained with "
                "condition.drop_probability above 0"
            )
        self.teacher, self.weaker, self.condition_kind = teacher, weaker, condition_kind
        self.w, self.interval = w, interval

    def at(self, w: float) -> "Guided":
        """The same denoisers at another scale."""
        return Guided(self.teacher, self.condition_kind, w=w, interval=self.interval, weaker=self.weaker)

    @property
    def dynamics(self) -> Dynamics:
        return self.teacher.dynamics

    @property
    def decoder(self) -> Any:
        """Of latents: what makes images of the samples."""
        return self.teacher.decoder

    @property
    def asked(self) -> list[nn.Module]:
        """The models that it asks."""
        return [self.teacher] if self.weaker is None else [self.teacher, self.weaker]

    def forward(self, x_t: Tensor, t: Tensor, *, condition: Condition, counts: bool | None = None) -> Tensor:
        """D_w: [B, ...]. t: [B] or [1]. counts: `counts_at` of all t, from those who know t on the host.

        Raises ValueError where w is neither given nor brought.
        """
        D_c = self.teacher(x_t, t, condition=condition)
        w = self.scales(x_t, t, condition=condition, counts=counts)
        return D_c if w is None else combined(self.without(x_t, t, condition=condition), D_c, w)

    def counts_at(self, t: Tensor) -> bool:
        """Whether w counts at any of the times t, which lie on the host."""
        return self.w != 1 and bool(within(self.dynamics, t, self.interval).any())

    def scales(self, x_t: Tensor, t: Tensor, *, condition: Condition, counts: bool | None = None) -> Tensor | None:
        """w of each sample, 1 where it does not count: [B]; None where it is known, without asking a GPU, to be 1."""
        if counts is None and t.device.type == "cpu":
            counts = self.counts_at(t)
        if self.w == 1 or counts is False:
            return None
        return only(within(self.dynamics, t, self.interval), scale_of(self.w, condition, x_t))

    def without(self, x_t: Tensor, t: Tensor, *, condition: Condition) -> Tensor:
        """D_0: [B, ...]."""
        if self.weaker is not None:
            return self.weaker(x_t, t, condition=condition)
        return self.teacher(x_t, t, condition=self.condition_kind.none(len(x_t)).to(x_t.device))


class GuidedMean(nn.Module):
    """D_w of a mean over data, D_c + (w - 1) (D_c' - D_0'): the mean is D_c, and a teacher's D_c' - D_0' leads it.

    The mean over a reference that holds the pair's own x_0 (`ifm.objectives.pairs`) has the right expectation for D_c
    alone. For D_0 it has not: the own x_0 is always of class c, and at low noise it has all the weight. Such a D_0 is
    D_c there, and leads nowhere (docs/classes.md).
    """

    def __init__(self, mean: Callable[..., Tensor], guide: Guided) -> None:
        """mean: (x_t, t, condition=...) -> D_c."""
        super().__init__()
        self.mean, self.guide = mean, guide

    def forward(self, x_t: Tensor, t: Tensor, *, condition: Condition) -> Tensor:
        """D_w: [B, ...]. t: [B] or [1]. The teacher is asked twice where w counts, and not at
        all elsewhere, if the host knows t."""
        D_c, w = self.mean(x_t, t, condition=condition), self.guide.scales(x_t, t, condition=condition)
        if w is None:
            return D_c
        way = self.guide.teacher(x_t, t, condition=condition) - self.guide.without(x_t, t, condition=condition)
        return D_c + expand(w - 1, way) * way


def combined(D_0: Tensor, D_c: Tensor, w: Tensor) -> Tensor:
    """D_0 + w (D_c - D_0): [B, ...]. w: [B]. At w = 0 and 1 it is D_0 and D_c, to the bit."""
    return torch.lerp(D_0, D_c, expand(w, D_c).to(D_c.dtype))


def only(inside: Tensor, w: Tensor) -> Tensor:
    """w [B] where `inside`, 1 elsewhere."""
    return torch.where(inside, w, torch.ones_like(w))


def scale_of(w: float | None, condition: Condition, x: Tensor) -> Tensor:
    """w of each sample, in x's dtype: [B]. Raises ValueError where it is neither fixed nor brought by the condition."""
    if w is not None:
        return x.new_full((len(x),), w)
    brought = getattr(condition, "w", None)
    if brought is None:
        raise ValueError("guidance for a range of w needs the condition's own w")
    return brought.to(x.device, x.dtype)


def within(dynamics: Dynamics, t: Tensor, interval: Interval | None) -> Tensor:
    """Whether the noise level b / a at t lies in the interval, whose ends belong to it: bool, t's shape."""
    if interval is None:
        return torch.ones_like(t, dtype=torch.bool)
    at = dynamics.coefficients(t.double())
    level = torch.where(at.a > 0, at.b / at.a.clamp_min(1e-300), math.inf)
    return (level >= interval[0]) & (level <= interval[1])


def solver_evaluations(dynamics: Dynamics, times: Tensor, guidance: Guidance | None) -> int:
    """What a path over `times` [S + 1] by Heun (a last Euler step to 0) costs, D_0's evaluations included."""
    asked = torch.cat([times[:1], times[1:-1].repeat_interleave(2)])
    if guidance is None or guidance.scale == 1.0:
        return len(asked)
    return len(asked) + int(within(dynamics, asked, guidance.interval).sum())
