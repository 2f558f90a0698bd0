"""Folders of diffusers: where a model and its scheduler lie, and what is read of them. safetensors only, no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.adapters import INNER, MODELS, SCHEDULER, SCHEDULERS, Model, entry_of
from ifm.adapters.fits import check_model, layer_counts
from ifm.diffusers_files import CONFIG, check_files, in_one_line, load_model, read_object
from ifm.errors import UserError

if TYPE_CHECKING:
    from ifm.adapters.network import AdaptedNetwork
    from ifm.conditions.base import ConditionKind


@dataclass(frozen=True)
class Found:
    """A public model as it lies on disk. config, scheduler: the content of the two files."""

    folder: Path  # of the model
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    named: str  # how messages call it

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) that the model is for. Raises UserError where its config names no size."""
        size = self.config.get("sample_size")
        if size is None:
            raise UserError(f"{self.named}: {CONFIG} has no sample_size, so the size of its images is not known")
        height, width = (size, size) if isinstance(size, int) else size
        return self.config["in_channels"], height, width


def is_model(folder: Path) -> bool:
    """Whether a folder looks like diffusers': a config.json, itself or in unet/ or transformer/, and a scheduler."""
    there = any((place / SCHEDULER).is_file() for place in (folder, folder / "scheduler"))
    return there and _model_folder(folder) is not None


def find(folder: Path, *, named: str, scheduler: Path | None = None) -> Found:
    """What a folder holds: unet/ or transformer/ beside scheduler/, or a bare model whose scheduler is there or named.

    scheduler: a scheduler_config.json, or a folder with one (itself or in scheduler/). Raises UserError.
    """
    place = _model_folder(folder)
    if place is None:
        raise UserError(f"{named}: holds no {CONFIG} of diffusers, neither itself nor in {' or '.join(INNER)}")
    with in_one_line(named):
        config = read_object(place / CONFIG)
        entry_of(MODELS, config.get("_class_name"), what="the model")
        check_files(place)
        told = _scheduler([scheduler] if scheduler is not None else [folder / "scheduler", folder, place])
        entry_of(SCHEDULERS, told.get("_class_name"), what="the scheduler")
    return Found(place, config, told, named)


def read(
    found: Found, *, shape: tuple[int, ...], sigma_data: float, clock: str, condition: "ConditionKind | None" = None
) -> "AdaptedNetwork":
    """The network for data of a shape, in evaluation mode. Raises UserError for what does not fit."""
    from ifm.adapters.network import AdaptedNetwork, silent

    with in_one_line(found.named):
        entry = entry_of(MODELS, found.config["_class_name"], what="the model")
        check_model(found.config, entry, shape=shape, condition=condition)
        how = {"shape": shape, "sigma_data": sigma_data, "clock": clock, "condition": condition}
        return AdaptedNetwork(silent(_model(found, entry)), found.scheduler, **how).eval()


def _model_folder(folder: Path) -> Path | None:
    return next((place for place in (*(folder / name for name in INNER), folder) if (place / CONFIG).is_file()), None)


def _scheduler(places: list[Path]) -> dict[str, Any]:
    for place in places:
        for file in (place, place / SCHEDULER, place / "scheduler" / SCHEDULER):
            if file.is_file():
                return read_object(file)
    looked = "there" if len(places) == 1 else f"neither in scheduler/ nor beside {CONFIG}"
    raise ValueError(f"no {SCHEDULER} {looked}; name it with teacher.scheduler")


def _model(found: Found, entry: Model) -> Any:
    from ifm.schema import load

    return load_model(load(entry.model), found.folder, found.config, counts=layer_counts(found.config))
