"""Progress: a bar with rate and time left in a terminal; elsewhere (nohup, Slurm, CI) a plain line now and then.

Only the main process shows it, on stderr. No output depends on it. Where several stages run side by side, each also
keeps its newest line in a file, IFM_PROGRESS, from which `ifm repro` shows all of them.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

EVERY = 30.0  # seconds between lines at first, ...
SHARE = 0.02  # ... then this part of the time that has passed: a day's work has some hundred lines, ...
RAREST = 600.0  # ... and never longer than this
BESIDE = "IFM_PROGRESS"  # the file of the newest line, ...
NEWEST = 1.0  # ... seconds old at most while there are steps
# What `is_line` knows one by.
LINE = re.compile(r": \w+ \d+( of \d+)?(, .*)?, ([\d.,]+ \w+/s|[\d.]+ (s|min|h) each)(, |$)|: at work for ")

_last = 0.0  # when a line was said


def progress(iterable: Iterable | None = None, *, label: str, unit: str = "it", **options: Any):
    """tqdm through accelerate's wrapper in a terminal; else `Lines`, which has the part of tqdm that is used here."""
    if not sys.stderr.isatty():
        return Lines(iterable, label=label, unit=unit, **options)
    from accelerate.utils import tqdm

    return tqdm(iterable, desc=label, unit=unit, dynamic_ncols=True, **options)


def is_line(text: str) -> bool:
    """Whether a line of a log shows progress."""
    return LINE.search(text) is not None


class Lines:
    """A line about every 30 seconds, e.g. "teacher ve: step 1200 of 20000, loss 0.123, 48 step/s, 6 min left"."""

    def __init__(
        self,
        iterable: Iterable | None = None,
        *,
        label: str,
        unit: str = "it",
        total: int | None = None,
        initial: int = 0,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._iterable, self._label, self._unit = iterable, label, unit
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self._n = self._initial = initial
        self._postfix = ""
        self._every, self._clock, self._say = every, clock, say or tell
        self._began = self._said = self._noted = clock()
        beside = os.environ.get(BESIDE)
        self._beside = Path(beside) if beside and _is_main() else None

    def __iter__(self) -> Iterator:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n(self) -> int:
        return self._n

    @n.setter
    def n(self, count: int) -> None:
        self._n = count
        self._look()

    def update(self, count: int = 1) -> None:
        self.n = self._n + count

    def set_postfix(self, **values: Any) -> None:
        self._postfix = ", ".join(f"{name} {value}" for name, value in values.items())

    def set_postfix_str(self, text: str) -> None:
        self._postfix = text

    def close(self) -> None:
        """Does nothing: there is nothing open to close."""

    def _look(self) -> None:
        now = self._clock()
        if now - self._said >= gap(now - self._began, every=self._every):
            self._said = now
            self._say(self._line(now - self._began))
        if self._beside and now - self._noted >= NEWEST:
            self._noted = now
            with suppress(OSError):
                self._beside.write_text(self._line(now - self._began), encoding="utf-8")

    def _line(self, seconds: float) -> str:
        done = self._n - self._initial
        of = f" of {self.total}" if self.total is not None else ""
        parts = [f"{self._label}: {self._unit} {self._n}{of}", self._postfix]
        if done > 0 and seconds > 0:
            rate = done / seconds
            shown = f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}"
            parts.append(f"{shown} {self._unit}/s" if rate >= 0.5 else f"{in_words(1 / rate)} each")
            if self.total is not None and self.total > self._n:
                parts.append(f"{in_words((self.total - self._n) / rate)} left")
        return ", ".join(filter(None, parts))


def gap(passed: float, *, every: float = EVERY) -> float:
    """Seconds until the next line, when `passed` seconds have passed since the beginning."""
    return min(max(every, SHARE * passed), max(every, RAREST))


def in_words(seconds: float) -> str:
    """A time in readable units: 12 s, 3 min, 2.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def tell(text: str) -> None:
    """Writes a line on stderr, in the main process only."""
    global _last
    if _is_main():
        with suppress(OSError):  # a terminal that was closed
            print(text, file=sys.stderr, flush=True)
    _last = time.monotonic()


@contextmanager
def at_work(name: str, *, every: float = EVERY, say: Callable[[str], None] = tell) -> Iterator[None]:
    """Says how long the work took; outside a terminal also that it runs, if nothing else was printed for long."""
    began, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        said = began
        while not ended.wait(every / 2):
            now, said = time.monotonic(), max(said, _last)
            if now - said >= gap(now - began, every=every):
                said = now
                say(f"{name}: at work for {in_words(now - began)}")

    if _is_main() and not sys.stderr.isatty():
        threading.Thread(target=watch, name="progress", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    say(f"{name}: done in {in_words(time.monotonic() - began)}")


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
