"""Checkpoints of a training run: one safetensors file, written whole or not at all, without pickle."""

import json
import os
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ifm.files import atomic_path
from ifm.hardware.sharded import like

_PREFIX = "step-"


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint: tensors by name and a JSON-able record."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Checkpoints:
    """The last two checkpoints, in a folder of their own, newest first. An unreadable one is skipped."""

    keep = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*.safetensors"), reverse=True)

    def save(self, step: int, snapshot: Snapshot) -> Path:
        """Writes step-{step}.safetensors atomically, then removes all but the newest two."""
        path = self.folder / f"{_PREFIX}{step:09d}.safetensors"
        # Contiguous: channels_last weights are stored in the standard order.
        tensors = {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
        size = sum(t.nbytes for t in tensors.values())
        with atomic_path(path, size=size) as temporary:
            try:
                save_file(tensors, temporary, metadata={"record": json.dumps(snapshot.record)})
            except SafetensorError as error:
                raise as_os_error(error) from error
        for old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> Snapshot | None:
        """The newest readable checkpoint, or None."""
        for path in self._files():
            try:
                with safe_open(path, framework="pt") as f:
                    record = json.loads(f.metadata()["record"])
                    return Snapshot({name: f.get_tensor(name) for name in f.keys()}, record)  # noqa: SIM118
            except (SafetensorError, OSError, KeyError, TypeError, ValueError, struct.error) as error:
                warnings.warn(f"{path}: unreadable checkpoint passed over ({error})", stacklevel=2)
        return None

    def newest(self) -> Path | None:
        """The file of the newest checkpoint, readable or not."""
        return next(iter(self._files()), None)


def as_os_error(error: SafetensorError) -> Exception:
    """The system's error inside one of safetensors: "I/O error: No space left on device (os error 28)"."""
    number = re.search(r"(?:os error |code: )(\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def pack(model: nn.Module, ema: list[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, averaged weights and optimizer state as one flat table of tensors; split tensors stay split."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"ema.{i}": t for i, t in enumerate(ema)}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


@torch.no_grad()
def unpack(tensors: dict[str, Tensor], model: nn.Module, ema: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `pack`, in place, from whole tensors."""
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    own = model.state_dict()
    model.load_state_dict({name: like(t, own[name]) if name in own else t for name, t in weights.items()})
    for i, average in enumerate(ema):
        average.copy_(like(tensors[f"ema.{i}"], average))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            parameter = parameters[int(i)]
            # A moment must lie in memory as its parameter does (channels_last): the fused kernel walks by address.
            state.setdefault(int(i), {})[key] = (
                torch.empty_like(parameter).copy_(like(t, parameter)) if t.shape == parameter.shape else t
            )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
