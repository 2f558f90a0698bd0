"""The three dynamics of the paper behind one interface; `build` makes the one that params.yaml names."""

from typing import Any

from ifm.dynamics.base import Coefficients, Dynamics, Preconditioning, expand
from ifm.dynamics.pfgmpp import PFGMPlusPlus
from ifm.dynamics.rectified import RectifiedFlow
from ifm.dynamics.ve import VarianceExploding

DYNAMICS: dict[str, type[Dynamics]] = {"ve": VarianceExploding, "rf": RectifiedFlow, "pfgmpp": PFGMPlusPlus}


def build(name: str, **options: Any) -> Dynamics:
    """The dynamics called `name` ("ve", "rf", "pfgmpp"), e.g. ``build("pfgmpp", augmented_dimensions=128)``."""
    if name not in DYNAMICS:
        raise ValueError(f"unknown dynamics {name!r}; known: {', '.join(DYNAMICS)}")
    return DYNAMICS[name](**options)


__all__ = [
    "DYNAMICS",
    "Coefficients",
    "Dynamics",
    "PFGMPlusPlus",
    "Preconditioning",
    "RectifiedFlow",
    "VarianceExploding",
    "build",
    "expand",
]
