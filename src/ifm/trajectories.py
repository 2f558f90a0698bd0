"""The teacher's trajectories: K states each, from x_T at times[0] = t_max to x_0 at times[K - 1] = 0.

On disk they are shards of float16 [n, K - 1, C, H, W], the states after x_T, computed by any number of processes.
x_T = b(t_max) z of trajectory i depends on (seed, i) alone: it is drawn again where it is needed, which saves its part
of the disk and its rounding. A trajectory is solved in a batch of fixed members, so one, two or eight processes make
the same files, byte for byte on CPU.
"""

import functools
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ifm import conditions
from ifm.conditions.base import Condition, ConditionKind
from ifm.data.arrays import ShardedArray
from ifm.data.trajectories import CONDITIONS, FIRST, TrajectoryMetadata
from ifm.dynamics.base import Dynamics
from ifm.errors import UserError
from ifm.files import atomic_path, warn_of_space
from ifm.hardware.devices import RowReader, Rows, to_device
from ifm.networks.asking import prepare
from ifm.progress import progress
from ifm.random import Streams
from ifm.solver import Denoiser, solve_trajectory, stored_indices

FLOAT16_MAX = float(np.finfo(np.float16).max)
FIRST_ROWS, FIRST_BYTES = 2000, 2**23
DRAWN_AT_ONCE = 4096  # each has a generator of its own, of a kilobyte


class TrajectoryError(UserError, FloatingPointError):
    """A path left the range of its storage."""


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.npy"


def shard_ranges(count: int, shard_size: int) -> list[range]:
    """The trajectory numbers of each shard."""
    return [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]


def generate(
    accelerator: Accelerator,
    denoiser: Denoiser,
    dynamics: Dynamics,
    *,
    shape: tuple[int, ...],
    count: int,
    stored_times: int,
    solver_steps: int,
    rho: float | None,
    batch_size: int,
    shard_size: int,
    seed: int,
    work: Path,
    kind: ConditionKind | None = None,
) -> list[Path]:
    """Solves `count` paths by Heun and writes the shards that `work` does not hold yet; returns them.

    shape: (C, H, W), or (d,) for points. kind: by whose law each path has a condition, see `conditions_of`. The grid of
    the solver is `dynamics.solver_times(solver_steps, rho=rho)`. A batch is on disk before the next one is solved. A
    killed run goes on with its first missing shard.
    """
    times = dynamics.solver_times(solver_steps, rho=rho)
    keep = stored_indices(solver_steps, stored_times)
    shards = shard_ranges(count, shard_size)
    paths = [work / shard_name(i) for i in range(len(shards))]
    mine = range(accelerator.process_index, len(shards), accelerator.num_processes)
    if accelerator.is_main_process:
        missing = sum(len(shard) for shard, path in zip(shards, paths, strict=True) if not path.is_file())
        warn_of_space(work, stored_bytes(missing, stored_times, shape), what=f"trajectories {dynamics.name}")

    bar = progress(label=f"trajectories {dynamics.name}", unit="path", total=sum(len(shards[i]) for i in mine))
    for i in mine:
        if not paths[i].is_file():
            rows = (len(shards[i]), stored_times - 1, *shape)
            size = stored_bytes(len(shards[i]), stored_times, shape)
            with atomic_path(paths[i], size=size) as temporary, open(temporary, "wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": rows}
                np.lib.format.write_array_header_1_0(file, header)
                for members in _batches(shards[i], batch_size):
                    condition = conditions_of(kind, members, seed=seed)
                    states = _solve_batch(
                        denoiser, dynamics, members, shape, times, keep, seed, accelerator.device, condition
                    )
                    file.write(states.tobytes())
                    bar.update(len(members))
        else:
            bar.update(len(shards[i]))
    bar.close()
    accelerator.wait_for_everyone()
    return paths


def _batches(members: range, batch_size: int) -> list[range]:
    return [members[i : i + batch_size] for i in range(0, len(members), batch_size)]


def starts(dynamics: Dynamics, shape: tuple[int, ...], members: Iterable[int], *, seed: int) -> Tensor:
    """x_T of trajectories `members`: float32 [n, *shape], on the host."""
    return dynamics.prior(shape, generator=Streams(seed, "trajectory", members))


def conditions_of(kind: ConditionKind | None, members: Iterable[int], *, seed: int) -> Condition | None:
    """The conditions of trajectories `members`, drawn by the data's law, on the host; None where there are none."""
    return None if kind is None else kind.draw(generator=Streams(seed, "condition", members))


def stored_bytes(count: int, stored_times: int, shape: tuple[int, ...]) -> int:
    """What `count` trajectories of so many times take on disk: two bytes a value, without x_T."""
    return 2 * count * (stored_times - 1) * math.prod(shape)


def _solve_batch(denoiser, dynamics, members, shape, times, keep, seed, device, condition) -> np.ndarray:
    """The states after x_T: float16 [n, K - 1, C, H, W], little-endian. TrajectoryError where one does not fit."""
    x_T = to_device(starts(dynamics, shape, members, seed=seed), device)
    condition = None if condition is None else condition.to(device)
    states = solve_trajectory(denoiser, x_T, dynamics=dynamics, times=times, keep=keep, condition=condition)[:, 1:]
    if not bool((states.abs() <= FLOAT16_MAX).all()):
        raise TrajectoryError(
            f"trajectories {members.start} to {members.stop - 1} leave float16's range or are not finite: "
            "the teacher has diverged, or t_max (or the tail of a small augmented_dimensions) is too large"
        )
    return states.half().cpu().numpy().astype("<f2", copy=False)


def stored_times(dynamics: Dynamics, settings: Mapping[str, Any]) -> Tensor:
    """The times of the states: float64 [K]. settings: solver_steps, stored_times (K) and rho, as in params.yaml."""
    times = dynamics.solver_times(settings["solver_steps"], rho=settings["rho"])
    return times[stored_indices(settings["solver_steps"], settings["stored_times"])]


class StoredTrajectories:
    """Trajectories on disk, read as they are needed."""

    def __init__(
        self,
        states: Rows,
        dynamics: Dynamics,
        *,
        times: Tensor,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
        conditions: Condition | None = None,
    ) -> None:
        """states: float16 [n, K - 1, *shape], without x_T; times: float64 [K]; seed: that x_T is drawn from.

        conditions: of each path, [n].
        """
        self.times, self._states, self._read = times, states, RowReader(states, device)
        self._conditions = conditions
        self._draw = partial(starts, dynamics, shape, seed=seed)
        self._device = device

    def __len__(self) -> int:
        return len(self._states)

    @functools.cached_property
    def _all_starts(self) -> Tensor:
        members = _batches(range(len(self)), DRAWN_AT_ONCE)
        return to_device(torch.cat([self._draw(some) for some in members]), self._device)

    def expect(self, rows: np.ndarray) -> None:
        """Says which rows [b] will be asked for next."""
        self._read.expect(rows)

    def condition(self, rows: np.ndarray) -> Condition | None:
        """The conditions of trajectories `rows` [b]."""
        return None if self._conditions is None else self._conditions.rows(rows).to(self._device)

    def points(self, rows: np.ndarray, k: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, x_0) of trajectories `rows` [b]: the state at times[k], k < K - 1 [b] on the host, and the end."""
        states = self._read(rows)  # [b, K - 1, C, H, W]
        here = torch.arange(len(k), device=states.device)
        x_t = states[here, to_device((k - 1).clamp_min(0), self._device)].float()
        at_start = np.flatnonzero(k.numpy() == 0)
        if len(at_start):
            x_t[to_device(torch.from_numpy(at_start), self._device)] = self._starts(rows[at_start])
        return x_t, states[:, -1].float()

    def _starts(self, rows: np.ndarray) -> Tensor:
        """x_T: drawn once where the states are resident too."""
        if self._read.resident:
            return self._all_starts[to_device(torch.from_numpy(rows), self._device)]
        return to_device(self._draw(rows), self._device)

    def whole(self, rows: np.ndarray) -> Tensor:
        """All states of trajectories `rows` [b], x_T first: float32 [b, K, *shape]."""
        states = to_device(torch.from_numpy(self._states[rows]).float(), self._device)
        return torch.cat([to_device(self._draw(rows), self._device)[:, None], states], dim=1)


class SolvedTrajectories:
    """Trajectories solved as they are needed (`trajectories.store: none`): no disk, the teacher's NFE in every step."""

    def __init__(
        self,
        denoiser: Denoiser,
        dynamics: Dynamics,
        *,
        shape: tuple[int, ...],
        count: int,
        stored_times: int,
        solver_steps: int,
        rho: float | None,
        seed: int,
        device: torch.device,
        kind: ConditionKind | None = None,
    ) -> None:
        self._dynamics, self._kind, self._seed = dynamics, kind, seed
        self._grid = dynamics.solver_times(solver_steps, rho=rho)
        self._keep = stored_indices(solver_steps, stored_times)
        self.times, self._count, self._device = self._grid[self._keep], count, device
        self._denoiser, self._draw = denoiser, partial(starts, dynamics, shape, seed=seed)

    def __len__(self) -> int:
        return self._count

    def expect(self, rows: np.ndarray) -> None:
        """There is nothing to read."""

    def condition(self, rows: np.ndarray) -> Condition | None:
        """As `StoredTrajectories.condition`."""
        drawn = conditions_of(self._kind, rows, seed=self._seed)
        return None if drawn is None else drawn.to(self._device)

    def points(self, rows: np.ndarray, k: Tensor) -> tuple[Tensor, Tensor]:
        """As `StoredTrajectories.points`, in float32 throughout."""
        states = self.whole(rows)
        here = torch.arange(len(k), device=states.device)
        return states[here, to_device(k, self._device)], states[:, -1]

    def whole(self, rows: np.ndarray) -> Tensor:
        """As `StoredTrajectories.whole`."""
        x_T = to_device(self._draw(rows), self._device)
        with torch.autocast(self._device.type, enabled=False):
            how = {"dynamics": self._dynamics, "times": self._grid, "condition": self.condition(rows)}
            return solve_trajectory(self._denoiser, x_T, keep=self._keep, **how)


def open_trajectories(
    folder: Path,
    metadata: TrajectoryMetadata,
    dynamics: Dynamics,
    *,
    load_teacher: Callable[[], Denoiser],
    device: torch.device,
    conditions_in: Path | None = None,
    recorded: bool = False,
) -> StoredTrajectories | SolvedTrajectories:
    """What metadata.json tells of: shards in `folder`, or, where there are none, the teacher's paths to be solved.

    conditions_in: where the paths' conditions lie; None: in `folder` too. recorded: see `prepare`, of the teacher.
    """
    common = {"shape": tuple(metadata.image_shape), "seed": metadata.seed, "device": device}
    kind = conditions.build(metadata.condition)
    if metadata.shards:
        stored = None if kind is None else kind.of_tensors(load_file((conditions_in or folder) / CONDITIONS))
        states = ShardedArray(metadata.paths(folder), stage=f"trajectories@{metadata.dynamics}")
        times = torch.tensor(metadata.times, dtype=torch.float64)
        return StoredTrajectories(states, dynamics, times=times, conditions=stored, **common)
    grid = {"solver_steps": metadata.solver_steps, "stored_times": len(metadata.times), "rho": metadata.rho}
    return SolvedTrajectories(
        prepare(load_teacher(), metadata.precision, recorded=recorded),
        dynamics,
        count=metadata.count,
        kind=kind,
        **grid,
        **common,
    )


def save_first(trajectories: StoredTrajectories | SolvedTrajectories, folder: Path) -> None:
    """Writes the first trajectories whole, float32 [m, K, *shape], m <= 2000 and at most 8 MB, into first.npy."""
    size = trajectories.whole(np.arange(1)).nbytes
    rows = np.arange(max(1, min(len(trajectories), FIRST_ROWS, FIRST_BYTES // size)))
    np.save(folder / FIRST, trajectories.whole(rows).cpu().numpy(), allow_pickle=False)


def save_conditions(kind: ConditionKind | None, count: int, folder: Path, *, seed: int) -> None:
    """Writes the conditions of all paths, one row each, where they have any."""
    if kind is not None:
        save_file(conditions_of(kind, range(count), seed=seed).tensors(), folder / CONDITIONS)


def move_shards(shards: list[Path], folder: Path) -> None:
    """Moves finished shards into the output folder."""
    for shard in shards:
        shutil.move(shard, folder / shard.name)
