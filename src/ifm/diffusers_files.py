"""Folders of diffusers' models: config.json, weights as safetensors alone, no code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ifm.errors import UserError, in_a_line

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_object(file: Path) -> dict[str, Any]:
    """Raises ValueError where the file is no object of JSON."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON ({in_a_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} must be an object of JSON, got {type(found).__name__}")
    return found


def check_files(place: Path) -> None:
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


def load_model(kind: Any, place: Path, config: Mapping[str, Any], *, counts: Sequence[Any]) -> Any:
    """A model of diffusers' class `kind` with the file's weights, and no others: it would fill what is missing.

    counts: how many layers the config asks for, place by place: no more than there are tensors. Raises ValueError.
    """
    import torch

    have = _numbers(place)
    if any(not isinstance(count, int) or not 0 <= count <= len(have) for count in counts):
        raise ValueError(f"{CONFIG} asks for {max(counts)} layers, the weights are {len(have)} tensors")
    with torch.device("meta"):
        wanted = sum(x.numel() for x in kind.from_config(dict(config)).state_dict().values())
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
def in_one_line(named: str) -> Iterator[None]:
    """Turns what reading raises into one line: the libraries raise nearly any kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named}: {in_a_line(error)}") from error
