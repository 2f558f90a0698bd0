"""Groups of processes: one DVC, its stage, and what the stage started."""

import os
import signal
import time

POLL = 0.05  # seconds


def lives(group: int) -> bool:
    """Whether a process of the group is at work. One that has ended counts as gone, though nobody has asked for it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    import psutil

    for one in psutil.process_iter(["status"]):
        try:
            if os.getpgid(one.pid) == group and one.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return True
        except ProcessLookupError:
            continue
    return False


def end(group: int, number: int, *, patience: float) -> None:
    """Sends signal `number` to a group, and SIGKILL to what lives of it after `patience` seconds."""
    if not tell(group, number):
        return
    deadline = time.monotonic() + patience
    while lives(group) and time.monotonic() < deadline:
        time.sleep(POLL)
    tell(group, signal.SIGKILL)


def tell(group: int, number: int) -> bool:
    """Sends a signal; whether there was somebody to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
