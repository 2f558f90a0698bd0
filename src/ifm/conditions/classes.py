"""Class labels as the condition, with the guidance scale w where a network takes it as an input."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ifm.conditions.asking import numbers_of
from ifm.conditions.base import Condition, ConditionKind, Labelled, register
from ifm.dynamics.base import NoiseSource
from ifm.errors import UserError

WAVES = 4  # frequencies that w is embedded by


@register
@dataclass(frozen=True)
class ClassLabels(Condition):
    """The class of each sample, and the guidance scale where it is asked for."""

    labels: Tensor  # int64 [B], from 0; the number of classes stands for "no class"
    w: Tensor | None = None  # float32 [B]


class Classes(ConditionKind):
    """The classes of a data set (of points: the law's modes), drawn in the shares that its training part has."""

    name = "class"

    def __init__(
        self,
        *,
        classes: list[str],
        shares: list[float],
        drops: bool = False,
        scale: Sequence[float] | None = None,
    ) -> None:
        """classes: their names, by label; shares: of the training data; drops, scale: see `ConditionKind`."""
        if len(classes) != len(shares) or not classes:
            raise ValueError(f"need a share for each class, got {len(classes)} classes and {len(shares)} shares")
        if scale is not None and (len(scale) != 2 or not 0 <= scale[0] < scale[1] < math.inf):
            raise ValueError(f"scale must be a range [low, high] of guidance scales, got {list(scale)}")
        self.classes, self.shares = list(classes), list(shares)
        self.drops, self.scale = bool(drops), None if scale is None else (float(scale[0]), float(scale[1]))

    @property
    def options(self) -> dict[str, Any]:
        scale = None if self.scale is None else list(self.scale)
        return {"classes": self.classes, "shares": self.shares, "drops": self.drops, "scale": scale}

    @classmethod
    def of_data(cls, samples: Labelled) -> Self:
        if samples.labels is None or not samples.classes:
            raise UserError(
                "condition.kind: class needs labels, and the data set has none; set data.label_column, or "
                "condition.kind to none"
            )
        counts = np.bincount(samples.labels, minlength=len(samples.classes))
        return cls(classes=list(samples.classes), shares=(counts / counts.sum()).tolist())

    def told_to(self, *, drops: bool, scale: Sequence[float] | None) -> Self:
        return type(self)(**self.options | {"drops": drops, "scale": scale})

    def read(self, samples: Labelled, rows: np.ndarray) -> ClassLabels:
        return ClassLabels(torch.from_numpy(samples.labels[rows]))

    def draw(self, *, generator: NoiseSource) -> ClassLabels:
        """Labels by their shares, from one uniform number each; then w, from one more."""
        ends = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        u = generator.uniform().double() * ends[-1]
        labels = torch.searchsorted(ends, u, right=True).clamp_max(len(ends) - 1)
        return ClassLabels(labels, self._drawn_scale(generator))

    def none(self, count: int) -> ClassLabels:
        return ClassLabels(torch.full((count,), len(self.classes)))

    def left_out(self, condition: ClassLabels) -> Tensor:
        return condition.labels == len(self.classes)

    def vary(self, condition: ClassLabels, *, drop: float, generator: NoiseSource) -> ClassLabels:
        """One uniform number each says whether the label is left out; w is one more."""
        if drop and not self.drops:
            raise ValueError("labels cannot be left out for a network that does not know no class")
        dropped = generator.uniform() < drop
        labels = torch.where(dropped, len(self.classes), condition.labels) if drop else condition.labels
        return replace(condition, labels=labels, w=self._drawn_scale(generator))

    def _drawn_scale(self, generator: NoiseSource) -> Tensor | None:
        if self.scale is None:
            return None
        return scales_between(*self.scale, generator.uniform())

    def index(self, asked: int | str | Iterable[int | str]) -> list[int]:
        """Class numbers of numbers, names, "all", "0-9", "3,5". Raises UserError (`ifm.conditions.asking`).

        A class without training data is no answer to "all", and is refused where it is named.
        """
        found = numbers_of(asked, self.classes)
        learnt = [i for i in found if self.shares[i] > 0]
        if len(learnt) < len(found) and not (isinstance(asked, str) and asked == "all"):
            missing = next(i for i in found if self.shares[i] == 0)
            raise UserError(f"class {self.classes[missing]}: the training data have none of it, so no model learnt it")
        return learnt

    def embedding(self, width: int) -> nn.Module:
        return ClassEmbedding(len(self.classes) + self.drops, width, scale=self.scale)

    def of_tensors(self, tensors: Mapping[str, Tensor]) -> ClassLabels:
        labels, w = tensors.get("labels"), tensors.get("w")
        names = {"labels"} if self.scale is None else {"labels", "w"}
        if tensors.keys() != names or labels.dtype != torch.int64 or labels.ndim != 1:
            found = ", ".join(f"{name}: {x.dtype} {list(x.shape)}" for name, x in tensors.items())
            beside = "" if self.scale is None else ", and guidance scales float32 [n] under w"
            raise ValueError(f"class labels must be int64 [n] under the name labels{beside}, got {found or 'nothing'}")
        last = len(self.classes) - 1 + self.drops
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise ValueError(f"labels must be from 0 to {last}, got {labels.min()} to {labels.max()}")
        if w is not None and (w.dtype != torch.float32 or w.shape != labels.shape):
            raise ValueError(f"w must be float32 {list(labels.shape)}, got {w.dtype} {list(w.shape)}")
        return ClassLabels(labels, w)

    def matches(self, asked: ClassLabels, have: ClassLabels) -> Tensor:
        """No class asks for nothing: every sample is what it asks for."""
        anything = asked.labels[:, None] == len(self.classes)
        return anything | (asked.labels[:, None] == have.labels[None, :])


def scales_between(low: float, high: float, u: Tensor) -> Tensor:
    """Guidance scales w in [low, high] of uniform numbers u in [0, 1]: p(w) ~ min(1, 1 / w), float32 as u.

    Above 1 this is the power law of improved MeanFlow (Geng et al. 2025, arXiv 2512.02012, appendix A; beta = 1 there):
    most models are best at a small w, and w = 1 is an end of most ranges, next to which even draws would rarely come.
    """

    def share(w: float) -> float:
        """The integral of min(1, 1 / w) from 0 to w."""
        return w if w < 1 else 1 + math.log(w)

    drawn = share(low) + (share(high) - share(low)) * u
    return torch.where(drawn < 1, drawn, (drawn - 1).exp()).clamp(low, high)


class ClassEmbedding(nn.Module):
    """A trained vector for each class, and one of w that is zero at first, where there is a range of w."""

    def __init__(self, classes: int, width: int, *, scale: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, width)
        self.scale = None if scale is None else ScaleEmbedding(*scale, width)

    def forward(self, condition: ClassLabels) -> Tensor:
        """[B, width]. A network without a range of w reads the labels alone. Raises ValueError where w is missing."""
        found = self.table(condition.labels)
        if self.scale is None:
            return found
        if condition.w is None:
            raise ValueError("this network needs the guidance scale w of each sample")
        return found + self.scale(condition.w)


class ScaleEmbedding(nn.Module):
    """The guidance scale as a vector: u = (w - low) / (high - low) and its waves through two layers, the last zero."""

    def __init__(self, low: float, high: float, width: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.first, self.last = nn.Linear(1 + 2 * WAVES, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, w: Tensor) -> Tensor:
        """w: [B] -> [B, width]."""
        u = ((w.float() - self.low) / (self.high - self.low))[:, None]
        phase = math.pi / 2 * u * 2.0 ** torch.arange(WAVES, device=u.device)  # [B, WAVES]
        features = torch.cat([u, phase.sin(), phase.cos()], dim=1).to(self.first.weight.dtype)
        return self.last(nn.functional.silu(self.first(features)))
