"""Integration Flow (arXiv 2504.20179): learn the integral of an ODE path, so that noise becomes an image at once."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_MODELS = ("IntegrationFlow", "Teacher")  # of ifm.use.models


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODELS])


def __getattr__(name: str) -> Any:
    """`from ifm import IntegrationFlow`: the models once they are asked for, since they bring torch with them."""
    if name in _MODELS:
        return getattr(import_module("ifm.use.models"), name)
    raise AttributeError(f"module 'ifm' has no attribute {name!r}")
