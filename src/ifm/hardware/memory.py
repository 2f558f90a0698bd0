"""The memory that a piece of work takes."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """megabytes: the most that was held at once; None where the system does not tell."""

    megabytes: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Yields a Peak that is filled at the end: of a GPU's memory all that torch held, of the host's what was added.

    The host's peak is Linux's VmHWM, which a process may set back for itself, over the resident size at the start.
    What was freed before goes back to the system first: work that took it again would seem to need no memory.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.megabytes = torch.cuda.max_memory_allocated(device) / 1e6
        return
    _give_back()
    try:
        with open(_RESET, "w") as reset:
            reset.write("5")
        before = _status("VmRSS")
    except OSError:  # not Linux, or not allowed
        yield peak
        return
    yield peak
    peak.megabytes = max(0.0, _status("VmHWM") - before)


def _give_back() -> None:
    """Hands the memory that glibc keeps after free() to the system; nothing where there is no glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def peak_resident() -> float | None:
    """The most that this process has held since its start, code and mapped files included, in MB; None: not told."""
    try:
        return _status("VmHWM")
    except OSError:
        return None


def _status(key: str) -> float:
    """A size of this process, in MB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{os.fspath(_STATUS)} has no {key}")
