"""Processes and devices: the accelerator, this process's part of a global batch, rows of an array on the device."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ifm.errors import UserError

RESIDENT_BYTES = 2**30  # arrays up to this size are held on the device whole


class LaunchError(UserError, ValueError):
    """The work does not fit the processes it was launched with."""


class Rows(Protocol):
    """Anything that gives rows by index: a memory-mapped set, an array."""

    nbytes: int

    def __len__(self) -> int: ...
    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


def make_accelerator(precision: str, *, seed: int) -> Accelerator:
    """An Accelerator for the hardware at hand; a precision that it lacks falls back to float32 with a notice.

    Seeds torch's global generator too: initial weights (the same in every process) and dropout draw from it.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        print("fp16 needs a GPU: training in float32", flush=True)
        precision = "no"
    # Without being told, accelerate leaves processes on CPUs strangers to each other: each would do all the work.
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    set_seed(seed % 2**32)
    return accelerator


def local_positions(accelerator: Accelerator, batch_size: int) -> np.ndarray:
    """This process's positions in a global batch: int64 [batch_size / processes].

    Raises LaunchError where the processes cannot share it evenly (their gradients would be weighted unevenly).
    """
    processes = accelerator.num_processes
    if batch_size % processes:
        raise LaunchError(
            f"batch_size = {batch_size} cannot be shared by {processes} processes; use a multiple of {processes}"
        )
    each = batch_size // processes
    return np.arange(each) + accelerator.process_index * each


class ProcessExchange:
    """The collectives that a sharded anchor bank asks for (`ifm.anchors.Exchange`), over an accelerator's processes.

    Tensors pass through the device, where its collectives need them, and come back to the host.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process

    def gather(self, x: Tensor) -> Tensor:
        """[b, ...] of each process, in the order of ranks: [processes b, ...]."""
        return self._accelerator.gather(x.to(self._accelerator.device)).cpu()

    def total(self, x: Tensor) -> Tensor:
        """The sum over the processes, elementwise."""
        return self._accelerator.reduce(x.to(self._accelerator.device), reduction="sum").cpu()


def row_reader(array: Rows, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """A function from row indices [n] to those rows on the device, in the array's dtype.

    Small arrays are read once and kept on the device; of larger ones each call reads its rows from the memory map.
    """
    if array.nbytes <= RESIDENT_BYTES:
        resident = torch.from_numpy(array[np.arange(len(array))]).to(device)
        return lambda rows: resident[torch.from_numpy(rows).to(device)]
    return lambda rows: torch.from_numpy(array[rows]).to(device)
