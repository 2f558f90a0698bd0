"""What is asked of samples, classes and a guidance scale, as the condition that a model takes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ifm.conditions.classes import Classes, ClassLabels
from ifm.errors import UserError

if TYPE_CHECKING:
    from ifm.conditions.base import Condition
    from ifm.use.loading import Model

Asked = int | str | Iterable[int | str]


def class_numbers(model: "Model", classes: Asked | None) -> list[int] | None:
    """The classes asked for, by number; None of None. Raises UserError in one line, which names the known ones."""
    if classes is None:
        return None
    kind = model.condition_kind
    if kind is None:
        raise UserError("the model takes no class: it was trained with condition.kind none")
    if not isinstance(kind, Classes):
        raise UserError(f"the model takes no class: its condition is {kind.name}")
    return kind.index(classes)


def condition_of(model: "Model", n: int, *, classes: Asked | None = None) -> "Condition | None":
    """The condition of samples 0 .. n - 1: the classes in turn. None: drawn by the data's shares.

    The samples' noise does not depend on it. Raises UserError for what the model does not take.
    """
    numbers = class_numbers(model, classes)
    return None if numbers is None else ClassLabels(torch.tensor(numbers)[torch.arange(n) % len(numbers)])
