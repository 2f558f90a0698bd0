"""Where the anchor state x_anchor comes from in training (`anchor.policy`) and how sampling starts it."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ifm.dynamics.base import NoiseSource
from ifm.model import IntegrationFlow


def evenly_chosen(positions: Tensor, probability: float) -> Tensor:
    """Picks the share `probability` of the positions in a global batch, evenly spread: bool, same shape.

    Batches are shuffled, so a choice by position is a random choice of samples; known on the host, the same for any
    number of processes, and balanced between them.
    """
    p = positions.double()
    return torch.floor((p + 1) * probability) > torch.floor(p * probability)


class AnchorPolicy(ABC):
    """Gives the anchors of a training batch."""

    takes_anchor: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, flow: IntegrationFlow, x_t: Tensor, t: Tensor, *, generator: NoiseSource, positions: Tensor
    ) -> Tensor | None:
        """x_anchor [B, C, H, W] for the points x_t [B, C, H, W] at t [B], standing at `positions` [B] of the batch."""


class NoAnchor(AnchorPolicy):
    """The ablation: the network has no anchor input."""

    takes_anchor = False

    def __call__(self, flow, x_t, t, *, generator, positions):
        return None


class NoiseAnchor(AnchorPolicy):
    """x_anchor ~ N(0, I), as in the first step of sampling."""

    def __call__(self, flow, x_t, t, *, generator, positions):
        return initial_anchor(x_t, generator=generator)


class SelfAnchor(AnchorPolicy):
    """With probability p the flow's own estimate from a noise anchor, without gradient; a noise anchor otherwise."""

    def __init__(self, probability: float) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"anchor.self_probability must be in (0, 1], got {probability}")
        self.probability = probability

    def __call__(self, flow, x_t, t, *, generator, positions):
        x_anchor = initial_anchor(x_t, generator=generator)
        rows = evenly_chosen(positions, self.probability).nonzero().squeeze(1).to(x_t.device)
        if len(rows):
            with torch.no_grad():
                x_anchor[rows] = flow(x_t[rows], t[rows], x_anchor=x_anchor[rows]).to(x_anchor.dtype)
        return x_anchor


def initial_anchor(x: Tensor, *, generator: NoiseSource) -> Tensor:
    """N(0, I) in the shape, dtype and place of x: [B, C, H, W]."""
    return generator.normal(tuple(x.shape[1:])).to(x.device, x.dtype)


def build(policy: str, *, self_probability: float) -> AnchorPolicy:
    """The policy that `anchor.policy` names: "none", "noise" or "self"."""
    if policy == "self":
        return SelfAnchor(self_probability)
    if policy not in POLICIES:
        raise ValueError(f"unknown anchor policy {policy!r}; known: none, noise, self")
    return POLICIES[policy]()


POLICIES: dict[str, type[AnchorPolicy]] = {"none": NoAnchor, "noise": NoiseAnchor, "self": SelfAnchor}
