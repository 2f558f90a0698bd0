"""Whether a public model's config fits the data, and its weights the config: light, before anything is loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ifm.adapters import Model

if TYPE_CHECKING:
    from ifm.conditions.base import ConditionKind


def check_shape(config: Mapping[str, Any], *, shape: tuple[int, ...], takes_anchor: bool = False) -> None:
    """Raises ValueError where a model's channels or size are not those of the data."""
    channels, size = shape[0], config.get("sample_size")
    if config["in_channels"] != channels * (2 if takes_anchor else 1):
        raise ValueError(f"takes {config['in_channels']} channels, the data have {channels}; see data.channels")
    out = config.get("out_channels") or config["in_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(f"gives {out} channels for data of {channels}; a prediction and perhaps its variance are read")
    size = [size, size] if isinstance(size, int) else size
    if size is not None and list(size) != list(shape[1:]):
        theirs, ours = (" x ".join(map(str, each)) for each in (size, shape[1:]))
        raise ValueError(f"is for {theirs} pixels, the data have {ours}; see data.image_size")


def check_model(
    config: Mapping[str, Any],
    entry: Model,
    *,
    shape: tuple[int, ...],
    condition: "ConditionKind | None",
    takes_anchor: bool = False,
) -> None:
    """Raises ValueError where a model does not fit the data: channels, size, classes."""
    check_shape(config, shape=shape, takes_anchor=takes_anchor)
    counted = None if condition is None else len(condition.options["classes"])
    check_classes(config, entry, counted, drops=condition is not None and condition.options["drops"])


def check_classes(config: Mapping[str, Any], entry: Model, classes: int | None, *, drops: bool) -> None:
    """Raises ValueError where a model does not take the data's classes. classes: how many; None: without a condition.

    drops: whether "no class" is asked for too.
    """
    theirs = config.get(entry.classes)
    if config.get("class_embed_type") is not None:
        raise ValueError(f"embeds a condition by {config['class_embed_type']}; numbers of classes are read")
    if classes is None and theirs is not None and not entry.null_class:
        raise ValueError(f"wants one of {theirs} classes for each image; set condition.kind: class")
    if classes is not None and theirs != classes + (drops and not entry.null_class):
        told = f"has {theirs} classes" if theirs else "has no classes"
        and_none = ", and one more stands for none (condition.drop_probability)" if drops else ""
        raise ValueError(f"{told}, the data have {classes}{and_none}; see condition.kind")


def layer_counts(config: Mapping[str, Any]) -> list[Any]:
    """How many layers a config asks for, place by place, for `check_weights`."""
    found = [config.get(key, 1) for key in ("layers_per_block", "num_layers")]
    return [count for each in found for count in (each if isinstance(each, list | tuple) else [each])]
