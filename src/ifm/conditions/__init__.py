"""What a sample can be asked to be: one entry a kind of condition. `build` makes one from what a model's file says.

The table names classes and does not import them, so that params.yaml can be checked without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ifm.schema import load

if TYPE_CHECKING:
    from ifm.conditions.base import ConditionKind, Labelled

NONE = "none"
CONDITIONS: dict[str, Any] = {"class": "ifm.conditions.classes:Classes"}
OLD_NAMES = {"classes": "class"}  # as files of before say


def of_data(kind: str, samples: "Labelled") -> "ConditionKind | None":
    """The conditions that a data set has; None for kind `none`. Raises UserError where it has none of that kind."""
    return None if kind == NONE else load(CONDITIONS[kind]).of_data(samples)


def build(described: Mapping[str, Any] | None) -> "ConditionKind | None":
    """The kind that `ConditionKind.describe` told of; None for None. Raises ValueError."""
    if described is None:
        return None
    options = dict(described)
    kind = options.pop("kind", None)
    kind = OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in CONDITIONS:
        raise ValueError(f"unknown condition {kind!r}; known: {', '.join(CONDITIONS)}")
    return load(CONDITIONS[kind])(**options)
