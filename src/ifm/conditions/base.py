"""A condition, and a kind of conditions: what is asked of each sample of a batch, and how a network hears it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ifm.dynamics.base import NoiseSource
from ifm.hardware.devices import to_device

Rows = slice | Tensor | np.ndarray
C = TypeVar("C", bound="Condition")
ReadCondition = Callable[[np.ndarray], "Condition"]  # numbers of samples [b] -> their conditions, on the host
# (conditions of a batch, a stream for each) -> as the step shows them, both on the host; see `ConditionKind.vary`
VaryCondition = Callable[["Condition", NoiseSource], "Condition"]


class Labelled(Protocol):
    """A data set, as far as conditions read it."""

    labels: np.ndarray | None  # int64 [n]
    classes: list[str] | None  # their names, by label


class Condition:
    """What each sample of a batch is asked to be. A frozen dataclass whose fields are tensors [B, ...], or None."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, without those that are None."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: x for name, x in found.items() if x is not None}

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same kind of condition with every tensor changed."""
        return type(self)(**{name: change(x) for name, x in self.tensors().items()})

    def rows(self, index: Rows) -> Self:
        """The conditions of some samples of the batch."""
        at = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        return self.map(lambda x: x[at.to(x.device) if isinstance(at, Tensor) else at])

    def to(self, device: torch.device) -> Self:
        """The conditions on a device; from the host without waiting for it (`to_device`)."""
        return self.map(lambda x: to_device(x, device) if x.device.type == "cpu" else x.to(device))


def rows_of(condition: C | None, index: Rows) -> C | None:
    """`condition.rows(index)`; None of None."""
    return None if condition is None else condition.rows(index)


def told(condition: Condition | None) -> dict[str, Condition]:
    """The keyword argument `condition` where there is one: what takes none need not know the word."""
    return {} if condition is None else {"condition": condition}


def as_shown(
    rows: np.ndarray,
    *,
    read: ReadCondition | None,
    vary: VaryCondition | None,
    generator: Callable[[], NoiseSource],
    device: torch.device,
) -> "Condition | None":
    """The conditions of samples `rows` as a training step shows them, on the device; None where there are none.

    generator: makes the streams that `vary` draws from, where it is asked.
    """
    if read is None:
        return None
    condition = read(rows)
    return (condition if vary is None else vary(condition, generator())).to(device)


def varying(kind: "ConditionKind | None", *, drop: float) -> VaryCondition | None:
    """`kind.vary` with this `drop`; None where it would change nothing, and draw nothing."""
    if kind is None or not (drop or kind.scale):
        return None
    return lambda condition, generator: kind.vary(condition, drop=drop, generator=generator)


def register(kind: type[C]) -> type[C]:
    """Lets torch.export look into a Condition's dataclass: a decorator."""
    torch.export.register_dataclass(kind)
    return kind


class ConditionKind(ABC):
    """A kind of conditions as one data set has it: who has which, how they are drawn, and how a network embeds them.

    ``Kind(**options)`` is made from the data set or from a model's file; `options` must be JSON.
    """

    name: ClassVar[str]  # as in the table
    drops: bool = False  # whether networks know "no condition" too, see `none`
    scale: tuple[float, float] | None = None  # the range of the guidance scale w that networks take; None: they do not

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""

    @classmethod
    @abstractmethod
    def of_data(cls, samples: Labelled) -> Self:
        """The conditions of a data set. Raises UserError where it has none of this kind."""

    @abstractmethod
    def read(self, samples: Labelled, rows: np.ndarray) -> Condition:
        """The conditions of samples `rows` [b] of the data set, on the host."""

    @abstractmethod
    def draw(self, *, generator: NoiseSource) -> Condition:
        """Conditions by the data's own law, one for each stream of the generator, on the host."""

    @property
    def usual_scale(self) -> float | None:
        """w of samples where none is asked for: 1, or the end of the range that is nearest to it."""
        return None if self.scale is None else min(max(1.0, self.scale[0]), self.scale[1])

    def told_to(self, *, drops: bool, scale: tuple[float, float] | None) -> Self:
        """This kind as a network with other `drops` and `scale` takes it. Raises ValueError if it cannot be guided."""
        if scale is not None:
            raise ValueError(f"condition {self.name} knows no guidance")
        return self

    def none(self, count: int) -> Condition:
        """That nothing is asked of `count` samples, on the host. Raises ValueError where a kind cannot say so."""
        raise ValueError(f"condition {self.name} cannot be left out")

    def vary(self, condition: Condition, *, drop: float, generator: NoiseSource) -> Condition:
        """Conditions of training data as a step shows them: left out with probability `drop`, w drawn anew.

        One stream of the generator for each, on the host.
        """
        return condition

    def left_out(self, condition: Condition) -> Tensor:
        """Where nothing is asked: bool [B]."""
        return torch.zeros(len(condition), dtype=torch.bool, device=next(iter(condition.tensors().values())).device)

    @abstractmethod
    def embedding(self, width: int) -> nn.Module:
        """A module that takes this kind's conditions of a batch and gives [B, width], for the network to add."""

    @abstractmethod
    def of_tensors(self, tensors: Mapping[str, Tensor]) -> Condition:
        """The inverse of `Condition.tensors`, as read from a file. Raises ValueError for tensors of another kind."""

    @abstractmethod
    def matches(self, asked: Condition, have: Condition) -> Tensor:
        """Whether sample j of `have` [m] is what row i of `asked` [B] asks for: bool [B, m]."""

    def describe(self) -> dict[str, Any]:
        """What `ifm.conditions.build` makes this kind from."""
        return {"kind": self.name, **self.options}
