"""The teacher's trajectories on disk: shards of float16 [n, K, C, H, W], computed by any number of processes.

Trajectory i starts from noise that depends on (seed, i) alone and is solved in a batch of fixed members, so one, two
or eight processes make the same files, byte for byte on CPU.
"""

import shutil
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from ifm.dynamics import Dynamics
from ifm.errors import UserError
from ifm.files import atomic_path
from ifm.progress import progress
from ifm.random import Streams
from ifm.sampling import Denoiser, solve_trajectory, stored_indices

FLOAT16_MAX = float(np.finfo(np.float16).max)


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
) -> tuple[list[Path], Tensor]:
    """Solves `count` paths by Heun and writes the shards that `work` does not hold yet; returns them and the times.

    shape: (C, H, W), or (d,) for points. times: float64 [K], falling from t_max to 0, of the grid
    `dynamics.solver_times(solver_steps, rho=rho)`. A killed run goes on with its first missing shard.
    """
    times = dynamics.solver_times(solver_steps, rho=rho)
    keep = stored_indices(solver_steps, stored_times)
    shards = shard_ranges(count, shard_size)
    paths = [work / shard_name(i) for i in range(len(shards))]
    mine = range(accelerator.process_index, len(shards), accelerator.num_processes)

    bar = progress(label=f"trajectories {dynamics.name}", unit="path", total=sum(len(shards[i]) for i in mine))
    for i in mine:
        if not paths[i].is_file():
            states = [
                _solve_batch(denoiser, dynamics, members, shape, times, keep, seed, accelerator.device, bar)
                for members in _batches(shards[i], batch_size)
            ]
            with atomic_path(paths[i]) as temporary, open(temporary, "wb") as file:
                np.save(file, np.concatenate(states), allow_pickle=False)
        else:
            bar.update(len(shards[i]))
    bar.close()
    accelerator.wait_for_everyone()
    return paths, times[keep]


def _batches(members: range, batch_size: int) -> list[range]:
    return [members[i : i + batch_size] for i in range(0, len(members), batch_size)]


def _solve_batch(denoiser, dynamics, members, shape, times, keep, seed, device, bar) -> np.ndarray:
    """float16 [n, K, C, H, W]. Raises TrajectoryError where a state does not fit."""
    x_T = dynamics.prior(shape, generator=Streams(seed, "trajectory", members)).to(device)
    states = solve_trajectory(denoiser, x_T, times=times, keep=keep)
    if not bool((states.abs() <= FLOAT16_MAX).all()):
        raise TrajectoryError(
            f"trajectories {members.start} to {members.stop - 1} leave float16's range or are not finite: "
            "the teacher has diverged, or t_max (or the tail of a small augmented_dimensions) is too large"
        )
    bar.update(len(members))
    return states.half().cpu().numpy()


def move_shards(shards: list[Path], folder: Path) -> None:
    """Moves finished shards into the output folder."""
    for shard in shards:
        shutil.move(shard, folder / shard.name)
