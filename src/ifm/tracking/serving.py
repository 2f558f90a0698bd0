"""The model inside an MLflow model: rows of a request in, images out. MLflow runs this file to load it."""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model

from ifm import pretrained
from ifm.sampling import SELECTED, draw_samples, flow_sampler
from ifm.use.asked import check_guidance, class_numbers, condition_of

BATCH = 256
LIMITS = {"n": (1, 10_000), "seed": (0, 2**63 - 1), "steps": (1, 64)}
DEFAULTS = {"n": 1, "seed": 0, "steps": 1}
CLASS = "class"  # a number, a name, or several in turn, as text: "3", "cat", "0-9", "all"
GUIDANCE = "guidance"  # the scale w, a number


class FlowModel(mlflow.pyfunc.PythonModel):
    """Draws the same images as stage `sample`: image i of a seed depends only on (seed, i)."""

    def load_context(self, context: Any) -> None:
        """Reads the flow, onto a GPU if there is one."""
        folder = Path(context.artifacts["flow"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.flow = pretrained.load_flow(folder).to(self.device, memory_format=torch.channels_last)
        self.shape = pretrained.state_shape(pretrained.describe(folder))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """The images of all rows, one after the other: uint8 [sum of n, C, H, W]; points float32 [sum of n, d].

        model_input: rows of n, seed, steps, class and guidance (MLflow makes a table of a dict or a list of them).
        Missing values are taken from params. More than one step refines the estimate in the way that measured best, as
        the flow records. class, guidance: as of `ifm sample`; where a class is missing, drawn by the data's shares.
        All rows are checked before the first is drawn.
        """
        rows = rows_of(model_input, params or {})
        for row in rows:
            check_guidance(self.flow, row[GUIDANCE])
            row["classes"] = class_numbers(self.flow, row.pop(CLASS))
        return np.concatenate([self._draw(**row) for row in rows])

    def _draw(self, *, n: int, seed: int, steps: int, classes: list[int] | None, guidance: float | None) -> np.ndarray:
        sampler = flow_sampler(self.flow, kind=SELECTED, steps=steps)
        asked = condition_of(self.flow, n, classes=classes, guidance=guidance, seed=seed)
        drawn = draw_samples(
            sampler,
            dynamics=self.flow.dynamics,
            shape=self.shape,
            count=n,
            batch_size=min(n, BATCH),
            seed=seed,
            device=self.device,
            condition=self.flow.condition_kind if asked is None else asked,
            modality=self.flow.of_data.get("modality"),
        )
        return drawn.images


def rows_of(table: pd.DataFrame, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The request: a dict of what `DEFAULTS`, CLASS and GUIDANCE name for each row. Raises ValueError."""
    rows = table.to_dict(orient="records") or [{}]
    return [
        {name: _whole(name, row.get(name), params.get(name)) for name in DEFAULTS}
        | {name: _given(row.get(name), params.get(name)) for name in (CLASS, GUIDANCE)}
        for row in rows
    ]


def _given(*values: Any) -> Any:
    """The first value that is there; None where none is. A table's missing values are None, NaN or empty."""
    return next((v for v in values if v is not None and v == v and v != ""), None)


def _whole(name: str, *values: Any) -> int:
    """The first given value, else the default."""
    given = next((v for v in values if v is not None), DEFAULTS[name])
    low, high = LIMITS[name]
    if isinstance(given, bool) or int(given) != given or not low <= given <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {given}")
    return int(given)


if __name__ != "ifm.tracking.serving":  # MLflow runs this file; importing it (in tests) sets nothing
    set_model(FlowModel())
