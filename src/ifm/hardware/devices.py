"""What makes use of a device: data on its way there, the layout of weights, compiled networks."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ifm.errors import UserError

RESIDENT_BYTES = 2**30  # arrays up to this size are held on the device whole, and on a GPU up to a part of its memory
RESIDENT_PART = 1 / 8  # of what is free there, each array; processes of a host share it
PIECE_BYTES = 2**28  # of a larger array that the host holds on its way there


class Rows(Protocol):
    """Anything that gives rows by index: a memory-mapped set, an array."""

    nbytes: int

    def __len__(self) -> int: ...
    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. To a GPU by pinned memory, without waiting for it: what the host draws for the next step must
    not wait until the last one is done.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class RowReader:
    """Rows of an array by index [n], on the device, in the array's dtype.

    Small arrays are read once and kept on the device. Of larger ones each call reads its rows from the memory map;
    those that were announced by `expect` have been read meanwhile, by a thread.
    """

    def __init__(self, array: Rows, device: torch.device) -> None:
        self._array, self._device = array, device
        self.resident = array.nbytes <= _room(device)
        self._thread: ThreadPoolExecutor | None = None
        self._expected: tuple[np.ndarray, Future[Tensor]] | None = None

    @functools.cached_property
    def _whole(self) -> Tensor:
        rows = np.arange(len(self._array))
        if self._array.nbytes <= RESIDENT_BYTES:
            return torch.from_numpy(self._array[rows]).to(self._device)
        pieces = np.array_split(rows, -(-self._array.nbytes // PIECE_BYTES))
        first = torch.from_numpy(self._array[pieces[0]])
        whole = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype, device=self._device)
        for piece in pieces:
            whole[piece[0] : piece[-1] + 1] = torch.from_numpy(self._array[piece])
        return whole

    def __call__(self, rows: np.ndarray) -> Tensor:
        if self.resident:
            return self._whole[to_device(torch.from_numpy(rows), self._device)]
        expected, self._expected = self._expected, None
        known = expected is not None and np.array_equal(expected[0], rows)
        return to_device(expected[1].result() if known else self._read(rows), self._device)

    def expect(self, rows: np.ndarray) -> None:
        """Says which rows the next call will ask for."""
        if self.resident:
            return
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._expected = rows, self._thread.submit(self._read, rows)

    def _read(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self._array[rows])


def _room(device: torch.device) -> float:
    """Bytes of an array that the device may hold whole."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on GPUs of their own, or on this one
    return max(RESIDENT_BYTES, RESIDENT_PART * torch.cuda.mem_get_info(device)[0] / processes)


MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}  # of mallopt(3), and what sets them from outside


def keep_freed_memory() -> bool:
    """Has the C library keep the memory that tensors on the host free; whether it was told so.

    Without, glibc gives activations back to the system in every step and takes them anew, page by page: a training
    step takes 4 to 5 % longer on digits and 8 to 13 % at 32x32, and its peak is the same (docs/benchmarks.md). What
    MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ ask for stays. Other C libraries than glibc have no mallopt.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in MALLOPT):
        return False
    return all([mallopt(option, 2**31 - 1) == 1 for option in MALLOPT.values()])


def memory_format(device: torch.device) -> torch.memory_format:
    """How a network's weights lie in training: channels_last on GPUs, whose convolutions are faster so.

    On CPUs a training step with it takes 4 to 5 % longer (docs/benchmarks.md); sampling is faster on both.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class Compiled:
    """A forward pass by torch.compile. If its first call fails, the plain one from then on, and a notice.

    cuda_graphs: on a GPU replay a recorded graph of kernels (mode "reduce-overhead"): for small batches, where
    launching kernels takes longer than they do. Its outputs are copied, since the next call writes over them.
    """

    def __init__(self, forward: Callable[..., Tensor], *, cuda_graphs: bool = False) -> None:
        self._plain, self._cuda_graphs = forward, cuda_graphs and torch.cuda.is_available()
        self._run: Any = torch.compile(forward, mode="reduce-overhead" if self._cuda_graphs else None)
        self._tried = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._tried:
            return self._call(*args, **kwargs)
        self._tried = True
        try:
            return self._call(*args, **kwargs)
        except Exception as error:  # whatever a compiler raises; what is wrong with the call itself comes again
            reason = " ".join(str(error).split("\n")[:2])[:200]
            print(f"torch.compile failed ({type(error).__name__}: {reason}): goes on without", flush=True)
            self._run, self._cuda_graphs = self._plain, False
            return self._plain(*args, **kwargs)

    def _call(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self._cuda_graphs:
            return self._run(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        return self._run(*args, **kwargs).clone()


def compiles() -> bool:
    """Whether networks are to be compiled: IFM_COMPILE=on.

    A matter of hardware, like the number of processes: the order of floating-point sums changes, nothing else. It
    pays in long runs; compiling takes a minute or more. Raises UserError at a word other than on and off.
    """
    return switched_on("IFM_COMPILE", default=False)


def switched_on(name: str, *, default: bool) -> bool:
    """What an environment variable says, on or off. Raises UserError at another word."""
    asked = os.environ.get(name, "").strip().lower()
    if asked not in ("on", "off", ""):
        raise UserError(f"{name} = {asked!r} is not allowed; allowed: on, off")
    return asked == "on" if asked else default


def is_sharded(model: object) -> bool:
    """Whether a model's weights are split over processes (FSDP2): each of its calls is then a call of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)
