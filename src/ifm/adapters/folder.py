"""Folders of diffusers: where a model and its scheduler lie, and what is read of them. safetensors only, no code."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.adapters import INNER, MODELS, SCHEDULER, SCHEDULERS, entry_of
from ifm.adapters.fits import check_model, layer_counts
from ifm.errors import UserError, in_a_line

if TYPE_CHECKING:
    from ifm.adapters.network import AdaptedNetwork
    from ifm.conditions.base import ConditionKind

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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
    with _in_a_line(named):
        config = _object(place / CONFIG)
        entry_of(MODELS, config.get("_class_name"), what="the model")
        _check_files(place)
        told = _scheduler([scheduler] if scheduler is not None else [folder / "scheduler", folder, place])
        entry_of(SCHEDULERS, told.get("_class_name"), what="the scheduler")
    return Found(place, config, told, named)


def read(
    found: Found, *, shape: tuple[int, ...], sigma_data: float, clock: str, condition: "ConditionKind | None" = None
) -> "AdaptedNetwork":
    """The network for data of a shape, in evaluation mode. Raises UserError for what does not fit."""
    from ifm.adapters.network import AdaptedNetwork, silent

    with _in_a_line(found.named):
        entry = entry_of(MODELS, found.config["_class_name"], what="the model")
        check_model(found.config, entry, shape=shape, condition=condition)
        how = {"shape": shape, "sigma_data": sigma_data, "clock": clock, "condition": condition}
        return AdaptedNetwork(silent(_model(found)), found.scheduler, **how).eval()


def _model_folder(folder: Path) -> Path | None:
    return next((place for place in (*(folder / name for name in INNER), folder) if (place / CONFIG).is_file()), None)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON ({in_a_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} must be an object of JSON, got {type(found).__name__}")
    return found


def _scheduler(places: list[Path]) -> dict[str, Any]:
    for place in places:
        for file in (place, place / SCHEDULER, place / "scheduler" / SCHEDULER):
            if file.is_file():
                return _object(file)
    looked = "there" if len(places) == 1 else f"neither in scheduler/ nor beside {CONFIG}"
    raise ValueError(f"no {SCHEDULER} {looked}; name it with teacher.scheduler")


def _check_files(place: Path) -> None:
    """Raises ValueError where there are no weights as safetensors."""
    if (place / f"{WEIGHTS}.safetensors").is_file() or (place / f"{WEIGHTS}.safetensors.index.json").is_file():
        return
    pickles = sorted(file.name for file in place.iterdir() if file.suffix in PICKLES)
    others = sorted(file.name for file in place.glob("*.safetensors"))
    if pickles:
        raise ValueError(
            f"holds pickled weights ({pickles[0]}), which can run code; save them once with diffusers' "
            "save_pretrained, as safetensors"
        )
    held = f"; it has {', '.join(others)}" if others else ""
    raise ValueError(f"no {WEIGHTS}.safetensors in {place.name}/{held}")


def _model(found: Found) -> Any:
    """diffusers' model with the file's weights, and no others: it would fill those that are missing at random."""
    import torch

    from ifm.schema import load

    kind, place = load(entry_of(MODELS, found.config["_class_name"], what="the model").model), found.folder
    have = _numbers(place)
    counts = layer_counts(found.config)
    if any(not isinstance(count, int) or not 0 <= count <= len(have) for count in counts):
        raise ValueError(f"{CONFIG} asks for {max(counts)} layers, the weights are {len(have)} tensors")
    with torch.device("meta"):
        wanted = sum(x.numel() for x in kind.from_config(dict(found.config)).state_dict().values())
    if wanted != sum(have):
        raise ValueError(f"the weights are {sum(have):,} numbers, {CONFIG} asks for {wanted:,}")
    # diffusers renames the weights of old files (query to to_q)
    model, told = kind.from_pretrained(
        place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
    if wrong:
        raise ValueError(f"the weights do not fit {CONFIG}: {wrong[0]}")
    return model.float()


def _numbers(place: Path) -> list[int]:
    """How many numbers each tensor of the weights' files has, by the files' headers."""
    from math import prod

    from safetensors import safe_open

    whole = place / f"{WEIGHTS}.safetensors"
    files = [whole] if whole.is_file() else sorted(place.glob(f"{WEIGHTS}-*.safetensors"))
    found = []
    for file in files:
        with safe_open(file, framework="pt") as weights:
            found += [prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    return found


@contextmanager
def _in_a_line(named: str) -> Iterator[None]:
    """Turns what reading raises into one line: the libraries raise nearly any kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named}: {in_a_line(error)}") from error
