"""Work side by side: each part's share of the cores, or a GPU of its own."""

import functools
import os
import subprocess
import sys
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of NVIDIA and AMD
COUNT = "import torch; print(torch.cuda.device_count())"


def slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment of each worker. jobs: how many; None: one for each GPU, one without."""
    gpus = [] if jobs == 1 else visible_gpus()
    count = jobs or len(gpus) or 1
    if count == 1:
        return [{}]  # everything there is
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], "IFM_LAUNCH": "none"} for i in range(count)]
    if "OMP_NUM_THREADS" in os.environ:
        return [{}] * count
    return [{"OMP_NUM_THREADS": str(max(1, cores() // count))}] * count


def has_launcher() -> bool:
    """Whether the user's own launcher starts the stages (IFM_LAUNCH)."""
    return os.environ.get("IFM_LAUNCH", "").strip() not in ("", "none")


def default_jobs(branches: int) -> int:
    """How many at a time: a branch for each core, or GPU; one where the user's own launcher uses them all."""
    if branches < 2 or has_launcher():
        return 1
    return max(1, min(branches, len(visible_gpus()) or cores()))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name of this machine's GPUs."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name.strip() for name in asked.split(",") if name.strip() not in ("", "-1")]
    if not any(Path(driver).exists() for driver in DRIVERS):
        return []
    return [str(i) for i in range(_counted())]


@functools.cache
def _counted() -> int:
    """The machine's GPUs, by another process: it imports torch, which takes seconds."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=False)
    return int(done.stdout or 0) if done.returncode == 0 else 0
