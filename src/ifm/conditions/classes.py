"""Class labels as the condition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ifm.conditions.asking import numbers_of
from ifm.conditions.base import Condition, ConditionKind, Labelled, register
from ifm.dynamics.base import NoiseSource
from ifm.errors import UserError


@register
@dataclass(frozen=True)
class ClassLabels(Condition):
    """The class of each sample."""

    labels: Tensor  # int64 [B], from 0


class Classes(ConditionKind):
    """The classes of a data set (of points: the law's modes), drawn in the shares that its training part has."""

    name = "classes"

    def __init__(self, *, classes: list[str], shares: list[float]) -> None:
        """classes: their names, by label; shares: of the training data."""
        if len(classes) != len(shares) or not classes:
            raise ValueError(f"need a share for each class, got {len(classes)} classes and {len(shares)} shares")
        self.classes, self.shares = list(classes), list(shares)

    @property
    def options(self) -> dict[str, Any]:
        return {"classes": self.classes, "shares": self.shares}

    @classmethod
    def of_data(cls, samples: Labelled) -> Self:
        if samples.labels is None or not samples.classes:
            raise UserError(
                "condition.kind: classes needs labels, and the data set has none; set data.label_column, or "
                "condition.kind to none"
            )
        counts = np.bincount(samples.labels, minlength=len(samples.classes))
        return cls(classes=list(samples.classes), shares=(counts / counts.sum()).tolist())

    def read(self, samples: Labelled, rows: np.ndarray) -> ClassLabels:
        return ClassLabels(torch.from_numpy(samples.labels[rows]))

    def draw(self, *, generator: NoiseSource) -> ClassLabels:
        """Labels by their shares, from one uniform number each."""
        ends = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        u = generator.uniform().double() * ends[-1]
        return ClassLabels(torch.searchsorted(ends, u, right=True).clamp_max(len(ends) - 1))

    def index(self, asked: int | str | Iterable[int | str]) -> list[int]:
        """Class numbers of numbers, names, "all", "0-9", "3,5". Raises UserError (`ifm.conditions.asking`)."""
        return numbers_of(asked, self.classes)

    def embedding(self, width: int) -> nn.Module:
        return ClassEmbedding(len(self.classes), width)

    def of_tensors(self, tensors: Mapping[str, Tensor]) -> ClassLabels:
        labels = tensors.get("labels")
        if len(tensors) != 1 or labels is None or labels.dtype != torch.int64 or labels.ndim != 1:
            found = ", ".join(f"{name}: {x.dtype} {list(x.shape)}" for name, x in tensors.items())
            raise ValueError(f"class labels must be int64 [n] under the name labels, got {found or 'nothing'}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(f"labels must be from 0 to {len(self.classes) - 1}, got {labels.min()} to {labels.max()}")
        return ClassLabels(labels)

    def matches(self, asked: ClassLabels, have: ClassLabels) -> Tensor:
        return asked.labels[:, None] == have.labels[None, :]


class ClassEmbedding(nn.Module):
    """A trained vector for each class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, width)

    def forward(self, condition: ClassLabels) -> Tensor:
        """[B, width]."""
        return self.table(condition.labels)
