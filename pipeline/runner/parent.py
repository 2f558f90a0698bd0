"""A process ends with the one that started it, in whatever way that one ends (Linux). Light: imported first of all."""

import ctypes
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
STARTER = "IFM_STARTER"  # the process of `ifm repro` that runs DVC for a stage
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None  # loaded here: not between fork and exec


def end_with_parent() -> None:
    """Makes Linux send this process a SIGTERM when its parent ends, in any way.

    Otherwise a stage whose `dvc repro` was killed would go on, and might overwrite the outputs of the next run.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def end_with_dvc() -> None:
    """Makes a stage end when the DVC that started it ends: at once where it has ended already.

    DVC starts a stage by a shell. bash becomes the stage; dash stays between the two, and would outlive DVC.
    """
    end_with_parent()
    if _LIBC is None or not (starter := _dvc()):
        return
    try:
        watched = os.pidfd_open(starter)
    except ProcessLookupError:
        os._exit(128 + signal.SIGTERM)
    except (AttributeError, OSError):  # Linux before 5.3
        return
    threading.Thread(target=_wait_for_the_end, args=(watched,), daemon=True).start()


def _dvc() -> int:
    """The process of DVC that started this one; 0 where it cannot be known."""
    if starter := os.environ.get(STARTER, ""):
        return int(starter)
    with suppress(OSError, ValueError, IndexError):
        parent = Path("/proc", str(os.getppid()))
        if (parent / "comm").read_text().strip() in ("sh", "dash", "ash", "bash", "zsh", "ksh", "fish"):
            above = int((parent / "stat").read_text().rpartition(")")[2].split()[1])
            return above if above > 1 else 0
    return 0


def _wait_for_the_end(process: int) -> None:
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    waiting.poll()
    os.kill(os.getpid(), signal.SIGTERM)
