"""Public diffusion models as teachers: which of diffusers' classes are read, and how; one entry each.

The tables name classes and do not import them. docs/teachers.md has the formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INNER = ("unet", "transformer")  # of a pipeline's folder
SCHEDULER = "scheduler_config.json"


@dataclass(frozen=True)
class Model:
    """A network of diffusers: its class, its first layer's weight, the config's key for classes."""

    model: str
    first_layer: str  # the weight [C_out, C_in, ...] that grows where an anchor's channels are added
    classes: str  # the config's number of classes, or null
    null_class: bool = False  # whether the number after the last class stands for no class


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers: what its noise levels are ("module:class" of a `Schedule`)."""

    schedule: str
    predictions: tuple[str, ...] | None = None  # what `prediction_type` may be; None: has no such key, `flow`


_UNET = Model("diffusers:UNet2DModel", "conv_in.weight", "num_class_embeds")
_DIT = Model("diffusers:DiTTransformer2DModel", "pos_embed.proj.weight", "num_embeds_ada_norm", null_class=True)
MODELS: dict[str, Model] = {
    "UNet2DModel": _UNET,
    "DiTTransformer2DModel": _DIT,
    "Transformer2DModel": _DIT,  # what DiT's published files say
}

_STEPS = Scheduler("ifm.adapters.schedules:Steps", ("epsilon", "sample", "v_prediction"))
_EDM = Scheduler("ifm.adapters.schedules:EDM", ("epsilon", "v_prediction"))
_FLOW = Scheduler("ifm.adapters.schedules:FlowMatching")
SCHEDULERS: dict[str, Scheduler] = {
    **dict.fromkeys(
        (
            "DDPMScheduler",
            "DDPMParallelScheduler",
            "DDIMScheduler",
            "DDIMParallelScheduler",
            "PNDMScheduler",
            "LMSDiscreteScheduler",
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
        ),
        _STEPS,
    ),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
}


def entry_of(table: Mapping[str, Any], found: Any, *, what: str) -> Any:
    """The entry of a class that a config.json names. Raises ValueError: code of other places is never run."""
    if not isinstance(found, str) or found not in table:
        raise ValueError(f"{what} is of class {found}; known: {', '.join(table)}")
    return table[found]
