"""The data path: random rows of memory-mapped shards, and the anchor bank."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import Result
from benchmarks.subjects import Options
from benchmarks.timing import interleave, timed
from ifm.anchors import AnchorBank, Visit
from ifm.data.arrays import ShardedArray

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
SHARDS, BATCH, CALLS = 4, 512, 20


def shards(options: Options) -> Iterator[Result]:
    """Random rows from several memory-mapped files against the same rows from one array in memory."""
    count = 2_000 if options.quick else 20_000
    rng = np.random.default_rng(0)
    resident = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.npy" for i in range(SHARDS)]
        for path, part in zip(paths, np.array_split(resident, SHARDS), strict=True):
            np.save(path, part)
        mapped = ShardedArray(paths, stage="preprocess")
        rows = rng.integers(0, count, BATCH)
        contestants = {
            "mapped": timed(partial(mapped.__getitem__, rows), device=CPU, calls=CALLS),
            "resident": timed(partial(resident.__getitem__, rows), device=CPU, calls=CALLS),
        }
        seconds = interleave(contestants, rounds=options.rounds)
    yield Result.rate(
        f"random rows of {SHARDS} mapped shards",
        "rows/s",
        amount=BATCH,
        seconds=seconds["mapped"],
        peer="one array in memory",
        peers=seconds["resident"],
        note=f"batches of {BATCH}, uint8 3x32x32, files in the page cache",
    )


def bank(options: Options) -> Iterator[Result]:
    """Anchors read and written by batch, against a plain array's gather and scatter; first visits; its size."""
    count = 2_000 if options.quick else 20_000
    bank, rng = AnchorBank(count, SHAPE, seed=0), np.random.default_rng(0)
    positions, rows = np.arange(BATCH), rng.permutation(count)[:BATCH]
    first, again = (Visit(rows, np.full(BATCH, n)) for n in (1, 2))
    values = torch.randn(BATCH, *SHAPE).half()
    plain = np.zeros((count, *SHAPE), np.float16)

    def ours() -> None:
        bank.read(again, positions)
        bank.write(again, values)

    def simple() -> None:
        plain[rows]
        plain[rows] = values.numpy()

    contestants = {
        "bank": timed(ours, device=CPU, calls=CALLS),
        "plain": timed(simple, device=CPU, calls=CALLS),
        "first": timed(partial(bank.read, first, positions), device=CPU),
    }
    seconds = interleave(contestants, rounds=options.rounds)
    yield Result.rate(
        "anchor bank, read and write",
        "rows/s",
        amount=BATCH,
        seconds=seconds["bank"],
        peer="array, gather and scatter",
        peers=seconds["plain"],
        note=f"one process, batches of {BATCH}, float16 3x32x32",
    )
    yield Result.rate(
        "anchor bank, first visit",
        "rows/s",
        amount=BATCH,
        seconds=seconds["first"],
        note="drawn from (seed, index)",
    )
    size = AnchorBank(50_000, SHAPE, seed=0).nbytes  # its pages of zeros are never touched
    yield Result.of("anchor bank, CIFAR-10", size / 1e6, "MB", note="50,000 samples, over all processes together")
