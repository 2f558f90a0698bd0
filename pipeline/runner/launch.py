"""One process or many: hardware is environment, never part of the graph.

A stage that can split its work runs in this process, unless the machine or IFM_LAUNCH says otherwise:
- IFM_LAUNCH, e.g. "accelerate launch --num_processes 8" or "torchrun --nproc_per_node 2", is put before the stage;
- without it, all GPUs of a machine are used (IFM_LAUNCH=none keeps to one process).
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ifm.errors import UserError
from ifm.tracking import project_root
from pipeline.runner import unfinished
from pipeline.runner.parent import end_with_parent

if TYPE_CHECKING:
    import psutil

LAUNCHED = "IFM_LAUNCHED"  # set in the processes that `relaunch` starts
PATIENCE = 20.0  # seconds that they have to end


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


def relaunch(module: str, arguments: list[str], *, name: str = "stage") -> int | None:
    """Runs the stage under a launcher and returns its exit status, or None if this process must do the work.

    Only this process gets Ctrl-C. It ends the others and says in one line where `dvc repro` continues.
    """
    try:
        words = launcher()
        if words is None:
            return None
        # A launcher of one process sets no RANK: the stage it starts must not launch again.
        process = subprocess.Popen(
            [*words, "-m", module, *arguments],
            env=os.environ | {"IFM_LAUNCH": "none", LAUNCHED: "1"},
            process_group=0,  # on Ctrl-C launchers print pages of tracebacks
            preexec_fn=end_with_parent,  # the launcher ends with this process too
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
    signal.signal(signal.SIGTERM, lambda n, _: process.send_signal(n))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        folder = unfinished.worked_in(project_root() / ".ifm" / "checkpoints", name)
        with suppress(KeyboardInterrupt):  # the second Ctrl-C: at once
            _end(process, module)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"{name}: {unfinished.goes_on(folder)}", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return status if status >= 0 else 128 - status  # ended by a signal: the shell's convention


def _end(process: subprocess.Popen, module: str) -> None:
    """Ends the processes of a stage. Their launcher is paused meanwhile, because it would print much about it.

    A launcher without processes on this machine, such as a cluster's, is told to end them itself.
    """
    import psutil

    deadline = time.monotonic() + PATIENCE
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended by itself
        return
    working = [one for one in family if _runs(one, module)]
    if not working:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        return
    for pid in [process.pid, *(one.pid for one in family)]:
        with suppress(psutil.Error):
            one = psutil.Process(pid)
            one.send_signal(signal.SIGTERM if one in working else signal.SIGSTOP)
    while any(_lives(one) for one in working) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(process: "psutil.Process", module: str) -> bool:
    """Whether a command is `python -m module`, with any arguments."""
    import psutil

    with suppress(psutil.Error):
        words = process.cmdline()
        return "-m" in words and words[words.index("-m") + 1 :][:1] == [module]
    return False


def _lives(process: "psutil.Process") -> bool:
    import psutil

    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE  # a stopped parent does not collect its zombies
    return False
