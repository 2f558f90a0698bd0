"""The models as people use them: those of `ifm.model` that can be loaded by name and asked for samples.

`from ifm import IntegrationFlow, Teacher` gives these.
"""

from pathlib import Path
from typing import Self

import numpy as np

from ifm import model as bare
from ifm.conditions.base import Condition
from ifm.errors import UserError
from ifm.exact import ExactTeacher
from ifm.use import drawing, loading
from ifm.use.asked import Asked, check_guidance, condition_of


class _Loads:
    """Models that are read from a folder or from the Hub."""

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """The trained model of a folder, of a name that is shipped ("digits") or of a Hub id: see `ifm.use.loading`.

        It is in evaluation mode, on the CPU. Raises UserError, also where it is of another kind.
        """
        found = usable(loading.load_any(loading.find(model, revision=revision), named=model))
        if not isinstance(found, cls):
            raise UserError(f"{model}: holds {_called(found)}, so {cls.__name__}.from_pretrained cannot read it")
        return found


class Teacher(_Loads, bare.Teacher):
    """`ifm.model.Teacher`, which can be loaded and sampled."""

    def sample(
        self,
        n: int,
        *,
        nfe: int = 35,
        seed: int = 0,
        batch_size: int = 200,
        classes: Asked | None = None,
        guidance: float | None = None,
        condition: Condition | None = None,
    ) -> np.ndarray:
        """uint8 [n, C, H, W], points float [n, d] or texts [n], by Heun with `nfe` evaluations (odd).

        classes, condition: as of `IntegrationFlow.sample`. guidance: D_0 + w (D_c - D_0) in place of D_c, by twice the
        evaluations.
        """
        check_guidance(self, guidance)
        how = drawing.choose(self, nfe=nfe, guidance=guidance)
        condition = _one_of(condition, condition_of(self, n, classes=classes, guidance=guidance, seed=seed))
        return drawing.draw_own(self, how, n, seed=seed, batch_size=batch_size, condition=condition)


class IntegrationFlow(_Loads, bare.IntegrationFlow):
    """`ifm.model.IntegrationFlow`, which can be loaded and sampled."""

    def sample(
        self,
        n: int,
        *,
        steps: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        batch_size: int = 200,
        classes: Asked | None = None,
        guidance: float | None = None,
        condition: Condition | None = None,
    ) -> np.ndarray:
        """uint8 [n, C, H, W], points float [n, d] or texts [n], in `steps` evaluations: see `ifm.use.drawing`.

        sampler: one_step, anchor, renoise or chain; None: the one that measured best for so many steps, which the
        model records (`ifm.steps.way_of`).
        classes: numbers or names, in turn where they are fewer than n, e.g. 3, "cat", "0-9", "all", [3, 5]; None: drawn
        by the data's shares where the model takes classes. Sample i starts from the same noise whichever it is.
        guidance: the scale w of a flow that takes a range of it; None: 1, or the end of the range nearest to it.
        condition: both as an object, of each of the n samples. Raises UserError for what the flow does not take.
        """
        how = drawing.choose(self, steps=steps, sampler=sampler)
        condition = _one_of(condition, condition_of(self, n, classes=classes, guidance=guidance, seed=seed))
        return drawing.draw_own(self, how, n, seed=seed, batch_size=batch_size, condition=condition)


class IntervalFlow(IntegrationFlow, bare.IntervalFlow):
    """`ifm.model.IntervalFlow`, which can be loaded and sampled."""


def usable(model: loading.Model) -> Teacher | IntegrationFlow | ExactTeacher:
    """A model of `ifm.model` as one of this module's, around the same network. An exact teacher stays what it is."""
    if isinstance(model, ExactTeacher | _Loads):
        return model
    if isinstance(model, bare.Teacher):
        made = Teacher(model.network, model.dynamics)
        made.of_data, made.decoder = model.of_data, model.decoder
        return made.train(model.training)
    anchor = {"takes_anchor": model.takes_anchor, "anchor_input": model.anchor_input}
    if isinstance(model, bare.IntervalFlow):
        made = IntervalFlow(model.network, model.dynamics, **anchor)
    else:
        made = IntegrationFlow(model.network, model.dynamics, scheme=model.scheme, **anchor)
    made.samplers, made.guidance = model.samplers, model.guidance
    made.of_data, made.decoder = model.of_data, model.decoder
    return made.train(model.training)


def _one_of(condition: Condition | None, asked: Condition | None) -> Condition | None:
    if condition is not None and asked is not None:
        raise ValueError("condition says what classes and guidance say; give the one or the others")
    return asked if condition is None else condition


def _called(model: loading.Model) -> str:
    """What a model is, in a phrase."""
    if isinstance(model, ExactTeacher):
        return "an exact teacher (its training images; `ifm sample` draws from it)"
    return "a teacher" if isinstance(model, bare.Teacher) else "a flow"
