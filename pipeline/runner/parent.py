"""A process ends with the one that started it, in whatever way that one ends (Linux). Light: imported first of all."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
STARTER = "IFM_STARTER"  # the process of `ifm repro` that runs DVC for a stage
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None  # loaded here: not between fork and exec


def end_with_parent() -> None:
    """Makes Linux send this process a SIGTERM when its parent ends, in any way.

    Otherwise a stage whose `dvc repro` was killed would go on, and might overwrite the outputs of the next run.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def end_if_orphaned() -> None:
    """Ends this process where `ifm repro` had ended before `end_with_parent` was called."""
    starter = os.environ.get(STARTER, "")
    if not starter:
        return
    try:
        os.kill(int(starter), 0)
    except ProcessLookupError:
        os._exit(128 + signal.SIGTERM)
