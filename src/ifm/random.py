"""Random numbers keyed by their purpose, not by the process that draws them.

Every draw belongs to (seed, purpose, step, index): the counter of a Philox generator (Salmon et al. 2011, numpy's
version) starts at (step, index) under the key (seed, purpose). So any number of processes draws the same global batch,
a resumed run draws the same numbers as an undisturbed one, and a laptop draws the same prior as a GPU node.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes a second to import, and stages that draw by `stream` alone need none
    import torch
    from torch import Tensor

# The numbers are part of every result: add, never renumber.
PURPOSES = {
    "split": 0,
    "order": 1,
    "noise": 2,
    "time": 3,
    "anchor": 4,
    "trajectory": 5,
    "prior": 6,
    "choice": 7,
    "bank": 8,
    "dropout": 9,
    "condition": 10,
    "drop": 11,
    "posterior": 12,
}
_KEY_RANGE = 2**63
THREADS = min(8, os.cpu_count() or 1)  # that share the draws of a large batch
NUMBERS_A_THREAD = 2**17  # a millisecond's work
AHEAD = "cuda"  # the kind of device that leaves the host time to draw ahead
_Call = tuple[str, tuple[Any, ...]]  # a draw: the method of Streams, its arguments


def stream(seed: int, purpose: str, *, step: int = 0, index: int = 0) -> np.random.Generator:
    """The generator of one (seed, purpose, step, index). Streams never overlap: each has 2^128 numbers."""
    if not 0 <= seed < _KEY_RANGE:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return np.random.Generator(np.random.Philox(key=[seed, PURPOSES[purpose]], counter=[0, 0, index, step]))


class Streams:
    """One independent stream for each sample: row i of every draw depends only on (seed, purpose, step, indices[i]).

    Draws from the same object continue its streams, so two calls give different numbers. All draws are in float32 on
    the host; move them with ``.to(device)``.
    """

    def __init__(self, seed: int, purpose: str, indices: Iterable[int], *, step: int = 0) -> None:
        self._streams = _generators(seed, purpose, step, indices)

    def __del__(self) -> None:
        _idle.extend(getattr(self, "_streams", ()))

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, shape: tuple[int, ...]) -> "Tensor":
        """N(0, 1): [B, *shape]."""
        import torch

        out = np.empty((len(self), math.prod(shape)), np.float32)

        def fill(start: int, stop: int) -> None:
            for row, s in zip(out[start:stop], self._streams[start:stop], strict=True):
                s.standard_normal(dtype=np.float32, out=row)

        threads = min(THREADS, out.size // NUMBERS_A_THREAD)
        if threads < 2:
            fill(0, len(self))
        else:  # numpy draws outside of Python's lock
            ends = [len(self) * i // threads for i in range(threads + 1)]
            list(_pool().map(fill, ends, ends[1:]))
        return torch.from_numpy(out).reshape(len(self), *shape)

    def uniform(self) -> "Tensor":
        """U[0, 1): [B]."""
        import torch

        drawn = torch.tensor([s.random() for s in self._streams], dtype=torch.float32)
        return drawn.clamp_max_(1 - 2**-24)  # rounding from float64 would make 1 of the largest

    def chi_square(self, degrees: float) -> "Tensor":
        """chi-square with `degrees` degrees of freedom: [B]."""
        import torch

        return torch.tensor([s.chisquare(degrees) for s in self._streams], dtype=torch.float32)


class StepStreams:
    """`Streams` of the same samples in every step of a training; on a GPU a thread draws the next step's meanwhile.

    It draws what the last step asked for. The numbers are the same in any case: where a step asks for something else,
    its streams begin anew.
    """

    def __init__(self, seed: int, purpose: str, indices: Iterable[int], *, device: "torch.device") -> None:
        members = list(indices)
        self._make, self._count = functools.partial(Streams, seed, purpose, members), len(members)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead") if device.type == AHEAD else None
        self._step, self._next, self._calls = -1, None, []

    def at(self, step: int) -> "Streams | _Drawn":
        """The streams of a step."""
        if self._thread is None:
            return self._make(step=step)
        drawn = self._next.result() if self._next is not None and self._step == step else []
        calls, self._calls = self._calls, []
        self._step, self._next = step + 1, self._thread.submit(self._draw, step + 1, calls)
        return _Drawn(functools.partial(self._make, step=step), self._count, drawn, self._calls)

    def _draw(self, step: int, calls: list["_Call"]) -> list[tuple["_Call", "Tensor"]]:
        streams = self._make(step=step)
        return [((name, given), getattr(streams, name)(*given)) for name, given in calls]


class _Drawn:
    """Streams whose first draws have been made. made: the draws in order; calls: gets what is asked for."""

    def __init__(
        self, streams: Callable[[], Streams], count: int, made: list[tuple["_Call", "Tensor"]], calls: list["_Call"]
    ) -> None:
        self._fresh, self._count, self._made, self._calls = streams, count, made, calls
        self._streams: Streams | None = None

    def __len__(self) -> int:
        return self._count

    def _own(self) -> Streams:
        """The streams, as far as they have been drawn from."""
        if self._streams is None:
            self._streams = self._fresh()
            for name, given in self._calls:
                getattr(self._streams, name)(*given)
        return self._streams

    def _drawn(self, name: str, *given: Any) -> "Tensor":
        i, call = len(self._calls), (name, given)
        if self._streams is None and i < len(self._made) and self._made[i][0] == call:
            result = self._made[i][1]
        else:
            result = getattr(self._own(), name)(*given)
        self._calls.append(call)
        return result

    def normal(self, shape: tuple[int, ...]) -> "Tensor":
        """As `Streams.normal`."""
        return self._drawn("normal", tuple(shape))

    def uniform(self) -> "Tensor":
        """As `Streams.uniform`."""
        return self._drawn("uniform")

    def chi_square(self, degrees: float) -> "Tensor":
        """As `Streams.chi_square`."""
        return self._drawn("chi_square", degrees)


_idle: list[np.random.Generator] = []  # generators of streams that are gone: setting one takes a tenth of making it


def _generators(seed: int, purpose: str, step: int, indices: Iterable[int]) -> list[np.random.Generator]:
    """`stream` of each index."""
    found = []
    start = stream(seed, purpose, step=step).bit_generator.state
    counter = start["state"]["counter"]
    for i in indices:
        counter[2] = int(i)
        try:
            generator = _idle.pop()
        except IndexError:
            generator = np.random.Generator(np.random.Philox(key=0))
        generator.bit_generator.state = start
        found.append(generator)
    return found


def posterior(seed: int, rows: Iterable[int], *, step: int) -> "Callable[[tuple[int, ...]], Tensor]":
    """shape -> N(0, 1) [n, *shape], by which a step draws the latents of images `rows` from their posteriors.

    An image that a step asks for twice has the same: its pair, and the mean over data that holds it.
    """
    return lambda shape: Streams(seed, "posterior", rows, step=step).normal(shape)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="draws")


class EndlessShuffle:
    """Sample indices of step k's global batch: [k B, (k + 1) B) of a stream of reshuffled epochs.

    It is a pure function of (seed, step), so it needs no state in a checkpoint and no agreement between processes.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int) -> None:
        if size < 1:
            raise ValueError("cannot draw batches from an empty set")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = stream(self.seed, "order", step=epoch).permutation(self.size)
            self._epoch = epoch
        return self._order

    def batch(self, step: int) -> np.ndarray:
        """Indices of the global batch: int64 [B]."""
        parts, start, stop = [], step * self.batch_size, (step + 1) * self.batch_size
        while start < stop:
            epoch, offset = divmod(start, self.size)
            part = self._permutation(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def visits(self, step: int) -> np.ndarray:
        """Which visit to its sample each entry of `batch(step)` is, counted from 1: int64 [B].

        Every epoch holds every sample once, so this is the number of the epoch. It needs no counters.
        """
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size) // self.size + 1
