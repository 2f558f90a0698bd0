"""Averages of the weights over steps (EMA): the one that training goes by, further ones, and an earlier state."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ifm.hardware.sharded import like


def ema_decay(step: int, decay: float) -> float:
    """The average's decay at step `step` (from 0): min((1 + step) / (10 + step), decay), and 0 at the first step.

    This is the warm-up of diffusers' EMAModel. It makes the average forget the initial weights.
    """
    return min((1 + step) / (10 + step), decay) if step else 0.0


def update(mean: list[Tensor], parameters: list[Tensor], *, step: int, decay: float) -> None:
    """Moves an average towards the weights of a step, in place."""
    get_ema_multi_avg_fn(ema_decay(step, decay))(mean, parameters, None)


class FurtherAverages:
    """Averages with other decays, which training only keeps. Each has the parameters' form and place."""

    def __init__(self, decays: Sequence[float], mean: list[Tensor]) -> None:
        """mean: the first average, whose start they share."""
        self.decays = tuple(decays)
        self._means = [[x.detach().clone() for x in mean] for _ in decays]

    def __iter__(self) -> Iterator[tuple[float, list[Tensor]]]:
        return zip(self.decays, self._means, strict=True)

    def update(self, parameters: list[Tensor], *, step: int) -> None:
        """Takes the weights of a step."""
        for decay, mean in self:
            update(mean, parameters, step=step, decay=decay)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; split ones stay split."""
        return {f"average.{k}.{i}": x for k, mean in enumerate(self._means) for i, x in enumerate(mean)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores the result of `state`, from whole tensors."""
        for name, x in self.state().items():
            x.copy_(like(tensors[name], x))


class EarlierAverage:
    """The first average as it was after some steps. Nothing, and no memory, where none is asked for."""

    def __init__(self, after: int | None, mean: list[Tensor]) -> None:
        self._after = after
        self.mean = None if after is None else [x.detach().clone() for x in mean]

    @torch.no_grad()
    def update(self, mean: list[Tensor], *, step: int) -> None:
        """Takes the average if step `step` (from 0) is the one asked for."""
        if self.mean is not None and step + 1 == self._after:
            for kept, x in zip(self.mean, mean, strict=True):
                kept.copy_(x)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; split ones stay split."""
        return {} if self.mean is None else {f"earlier.{i}": x for i, x in enumerate(self.mean)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores the result of `state`, from whole tensors."""
        for name, x in self.state().items():
            x.copy_(like(tensors[name], x))
