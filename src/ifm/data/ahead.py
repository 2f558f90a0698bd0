"""The same work on many items that come in groups: by threads, or by processes where there are many.

A decoder works outside of Python's lock, but of a small image's time most is Python's own (150 µs for a JPEG of 32x32,
of which the decoder takes 25), and there threads are no faster than one.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from ifm.data.decoding import WORKERS

Item = TypeVar("Item")
MANY = 10_000  # items that are worth the start of processes, half a second
PROCESSES = min(16, os.cpu_count() or 1)
AHEAD_BYTES = 2**28  # of groups that are with the processes at once


class Workers:
    """Threads or processes for `count` items, a context manager. Ctrl-C and the end of this process end them."""

    def __init__(self, count: int, *, threads: int = WORKERS) -> None:
        self._apart = count >= MANY and PROCESSES > 1
        self._pool: Executor = (
            ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"), initializer=_follow_parent)
            if self._apart
            else ThreadPoolExecutor(threads)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(
        self,
        work: Callable[[Item], Any],
        groups: Iterable[list[Item]],
        *,
        size: Callable[[list[Item]], int],
        gather: Callable[[list], Any] = list,
    ) -> Iterator[tuple[list[Item], Any]]:
        """(group, gather of work(item) for its items), in order. Raises what `work` raises.

        With processes some groups are worked on ahead, AHEAD_BYTES of them by `size` at most; `work` and `gather` are
        then found by name.
        """
        if not self._apart:
            for group in groups:
                yield group, gather(list(self._pool.map(work, group)))
            return
        waiting: deque[tuple[list[Item], int, Future]] = deque()
        held = 0
        for group in groups:
            taken = size(group)
            while waiting and (len(waiting) >= 2 * PROCESSES or held + taken > AHEAD_BYTES):
                done, freed, result = waiting.popleft()
                held -= freed
                yield done, result.result()
            waiting.append((group, taken, self._pool.submit(_all_of, work, group, gather)))
            held += taken
        for group, _, result in waiting:
            yield group, result.result()


def _all_of(work: Callable[[Item], Any], group: list[Item], gather: Callable[[list], Any]) -> Any:
    return gather([work(item) for item in group])


def _follow_parent() -> None:
    """In each process: Ctrl-C is the parent's to answer, and its end, in any way, is this one's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
