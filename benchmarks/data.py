"""The data path: random rows of memory-mapped shards, what training waits for them, and the anchor bank."""

import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO
from unittest import mock

import numpy as np
import torch

from benchmarks.results import Result, Target, short
from benchmarks.subjects import Options, Subject, preset, subjects
from benchmarks.timing import Spread, fresh_process, interleave, timed
from benchmarks.training import STORED_TIMES, clocked, flow_training, random_paths
from ifm.anchors import AnchorBank, Visit
from ifm.data.arrays import ShardedArray
from ifm.hardware import devices
from ifm.hardware.memory import peak_resident
from ifm.trajectories import stored_bytes

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
SHARDS, BATCH, CALLS = 4, 512, 20
BLOCK = 1000  # rows that are written together, again and again
RESIDENT = "ifm.hardware.devices.RESIDENT_BYTES"


def shards(options: Options) -> Iterator[Result]:
    """Random rows from several memory-mapped files against the same rows from one array in memory."""
    count = 2_000 if options.quick else 20_000
    rng = np.random.default_rng(0)
    resident = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.npy" for i in range(SHARDS)]
        for path, part in zip(paths, np.array_split(resident, SHARDS), strict=True):
            np.save(path, part, allow_pickle=False)
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


def write_rows(paths: list[Path], block: np.ndarray, *, blocks: int) -> None:
    """.npy files that hold a block of rows `blocks` times each, written without holding more than one."""
    for path in paths:
        with open(path, "wb") as file:
            _write_header(file, block.dtype, (blocks * len(block), *block.shape[1:]))
            for _ in range(blocks):
                file.write(block.tobytes())


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def waiting(options: Options) -> Iterator[Result]:
    """The flow's step on paths too large to be held on the device, against the same paths held there all the same."""
    for subject in subjects(options):
        with tempfile.TemporaryDirectory() as folder:
            yield from _waiting(subject, options, [Path(folder) / f"{i}.npy" for i in range(SHARDS)])


def _waiting(subject: Subject, options: Options, files: list[Path]) -> Iterator[Result]:
    block = random_paths(subject, BLOCK)
    limit = 2**20 if options.quick else devices.RESIDENT_BYTES
    write_rows(files, block, blocks=limit // block.nbytes // SHARDS + 1)
    paths = ShardedArray(files, stage="trajectories")
    contestants = {}
    for name, most in (("mapped", limit), ("resident", paths.nbytes)):
        with mock.patch(RESIDENT, most):
            flow, train = flow_training(subject, options, states=paths)
        contestants[name] = clocked(flow, train, steps=subject.steps, device=options.device)
    with mock.patch(RESIDENT, limit):
        read = devices.RowReader(paths, options.device)
    rng = np.random.default_rng(0)

    def fetch() -> None:
        read(rng.integers(0, len(paths), subject.batch_size))

    contestants["read"] = timed(fetch, device=options.device, calls=CALLS)
    seconds = interleave(contestants, rounds=options.rounds)
    alone, step = (Spread.of(seconds[name]).median for name in ("read", "mapped"))
    yield Result.rate(
        f"training step on mapped paths: {subject.name}",
        "images/s",
        amount=subject.batch_size,
        seconds=seconds["mapped"],
        peer="paths held on the device",
        peers=seconds["resident"],
        target=Target("ratio", ">=", 0.95),
        note=f"{len(paths):,} paths, {short(paths.nbytes / 1e9)} GB in the page cache; a batch of {subject.batch_size} "
        f"is waited for {short(1e3 * alone)} ms, {short(100 * alone / step)} % of the step",
    )


MANY, STEPS_ON_MANY = 300_000, 40


def many(options: Options) -> Iterator[Result]:
    """The memory of a process that trains on more paths than it could hold, at CIFAR-10's size."""
    count, steps = (4_000, 2) if options.quick else (MANY, STEPS_ON_MANY)
    name = f"peak memory of training on {count:,} mapped paths"
    with fresh_process() as pool:
        megabytes = pool.submit(_train_on_many, count, steps, options).result()
    if megabytes is None:
        yield Result.skipped(name, "this system does not tell it")
        return
    yield Result.of(
        name,
        megabytes,
        "MB",
        target=Target("value", "<=", 2000.0),
        note=f"resident at most, libraries and mapped files included; {steps} steps of 64 in random order over "
        f"{short(_gigabytes(count))} GB, 3x32x32, {STORED_TIMES} stored times; 1,000,000 paths are "
        f"{short(_gigabytes(1_000_000))} GB",
    )


def _gigabytes(paths: int) -> float:
    return stored_bytes(paths, STORED_TIMES, SHAPE) / 1e9


def _train_on_many(count: int, steps: int, options: Options) -> float | None:
    config = preset("digits").model_copy(update={"data": preset("cifar10").data})
    subject = Subject("cifar-sized digits", config, 64, steps=1)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.npy" for i in range(SHARDS)]
        for path in files:
            sparse_rows(path, (count // SHARDS, STORED_TIMES - 1, *SHAPE))
        paths = ShardedArray(files, stage="trajectories")
        with mock.patch(RESIDENT, 0):
            _, train = flow_training(subject, options, states=paths)
        train(steps)
        return peak_resident()


def sparse_rows(path: Path, shape: tuple[int, ...]) -> None:
    """A .npy file of float16 zeros that takes no room on the disk, and as much memory as any other when read."""
    with open(path, "wb") as file:
        _write_header(file, np.dtype("<f2"), shape)
        file.truncate(file.tell() + 2 * math.prod(shape))


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
