"""The network of autoguidance's weaker teacher, by what sets it apart from the teacher's. Light: params are checked."""

from collections.abc import Mapping
from typing import Any


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the section `network` with some of them replaced, at any depth, e.g. {"mlp": {"width": 64}}."""
    return dict(values) | {
        key: with_changes(values[key], new)
        if isinstance(new, Mapping) and isinstance(values.get(key), Mapping)
        else new
        for key, new in changes.items()
    }
