"""One process or many: hardware is environment, never part of the graph.

A stage that can share its work runs in this process, unless the machine or IFM_LAUNCH says otherwise:
- IFM_LAUNCH, e.g. "accelerate launch --num_processes 8" or "torchrun --nproc_per_node 2", is put before the stage;
- without it, a machine with several GPUs is used whole (IFM_LAUNCH=none keeps to one process).
"""

import os
import shlex
import signal
import subprocess
import sys

from ifm.errors import UserError
from pipeline import unfinished


def launcher() -> list[str] | None:
    """The words to put before "-m module", or None to stay in this process."""
    if "LOCAL_RANK" in os.environ or "RANK" in os.environ:
        return None  # already launched
    asked = os.environ.get("IFM_LAUNCH", "").strip()
    if asked:
        return None if asked == "none" else _words(asked)
    gpus = _gpu_count()
    if gpus > 1:
        return [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(gpus),
        ]
    return None


def _words(asked: str) -> list[str]:
    try:
        return shlex.split(asked)
    except ValueError as error:
        raise UserError(f"IFM_LAUNCH = {asked!r} cannot be split into words: {error}") from error


def _gpu_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and len([d for d in visible.split(",") if d.strip()]) < 2:
        return 0
    import torch

    return torch.cuda.device_count()


def relaunch(module: str, arguments: list[str]) -> int | None:
    """Runs the stage under a launcher and returns its exit status, or None where this process is to do the work."""
    try:
        words = launcher()
        if words is None:
            return None
        # A launcher of one process sets no RANK: the stage it starts must not launch again.
        process = subprocess.Popen(
            [*words, "-m", module, *arguments],
            env=os.environ | {"IFM_LAUNCH": "none"},
            preexec_fn=unfinished.end_with_parent,  # the launcher too ends with this process
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except FileNotFoundError:
        print(f"IFM_LAUNCH: no such command {words[0]!r}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"IFM_LAUNCH: {words[0]!r} cannot be run ({error.strerror})", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: process.send_signal(n))
    status = process.wait()
    return status if status >= 0 else 128 - status  # ended by a signal: as a shell counts it
