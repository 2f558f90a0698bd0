"""What the subcommands of `ifm` share: numbers, places to write to, hardware."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ifm.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text!r}")
        return int(text)

    return parse


def number(text: str) -> float:
    """A parser of numbers from 0 on."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text!r}")
    return found


def local_path(text: str) -> Path:
    """A path from the command line: a shell leaves the ~ of --out=~/x as it is."""
    return Path(os.path.expanduser(text))


def check_writable(option: str, path: Path) -> None:
    """Raises UserError where `path` could not be written in the end."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{option} {path}: {there} is no folder that can be written to; name another")


def hardware(name: str | None) -> "tuple[torch.device, Accelerator | None]":
    """The device, and where a launcher started several processes what they share their work by."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {name}: is no device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs for it; use cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, None
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu")
    return accelerator.device, accelerator
