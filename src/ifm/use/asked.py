"""What is asked of samples, classes and a guidance scale, as the condition that a model takes."""

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

import torch

from ifm.conditions.classes import Classes
from ifm.errors import UserError
from ifm.guidance import Guided
from ifm.model import IntegrationFlow
from ifm.sampling import asked_of

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


def check_guidance(model: "Model", guidance: float | None) -> None:
    """Raises UserError in one line for a guidance scale that the model does not take.

    A flow takes those of the range that it was trained for, or the one that it has inside; a teacher any, if it knows
    "no class" too.
    """
    if guidance is None:
        return
    kind = model.condition_kind
    if not isinstance(kind, Classes):
        raise UserError("the model takes no guidance: it was trained with condition.kind none")
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not 0 <= guidance < math.inf:
        raise UserError(f"a guidance scale is a number from 0 on, got {guidance!r}")
    if not isinstance(model, IntegrationFlow):
        if not kind.drops and guidance != 1:
            raise UserError("the teacher takes no guidance: it was trained with condition.drop_probability 0")
    elif kind.scale is not None:
        low, high = kind.scale
        if not low <= guidance <= high:
            raise UserError(f"guidance {guidance:g} is outside the range {low:g} to {high:g} that the flow takes")
    elif guidance != (fixed := 1.0 if model.guidance is None else model.guidance["scale"]):
        inside = "no guidance" if model.guidance is None else f"guidance {fixed:g}"
        raise UserError(f"the flow has {inside} inside and takes no other; train it with guidance.scale: [low, high]")


def condition_of(
    model: "Model", n: int, *, classes: Asked | None = None, guidance: float | None = None, seed: int = 0
) -> "Condition | None":
    """The condition of samples 0 .. n - 1 of the seed: the classes in turn, and the guidance scale where the flow
    takes one. None where neither is asked for: drawn by the data's shares then.

    The samples' noise does not depend on it. Raises UserError for what the model does not take.
    """
    numbers, kind = class_numbers(model, classes), model.condition_kind
    check_guidance(model, guidance)
    if numbers is None and guidance is None:
        return None
    drawn = asked_of(kind, range(n), seed=seed, w=None if guidance is None else float(guidance))
    return drawn if numbers is None else replace(drawn, labels=torch.tensor(numbers)[torch.arange(n) % len(numbers)])


def led(model: "Model", guidance: float | None) -> "Model | Guided":
    """A teacher as it is sampled with guidance, at two evaluations in place of one; any other model itself."""
    if guidance is None or guidance == 1 or isinstance(model, IntegrationFlow):
        return model
    return Guided(model, model.condition_kind, w=float(guidance))
