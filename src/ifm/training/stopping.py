"""Ctrl-C while a training runs: the step ends and a checkpoint is written before the training stops."""

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Note:
    """`asked` tells whether Ctrl-C was pressed during the loop over `during`. A second Ctrl-C interrupts at once.

    when: False for work that must be interrupted at once. Without effect where Ctrl-C would not raise KeyboardInterrupt
    anyway: in another thread, or with a foreign handler.
    """

    def __init__(self, *, when: bool = True) -> None:
        self.asked, self._when = False, when

    def during(self, items: Iterable[T]) -> Iterator[T]:
        """The same items. The handler is put back when the loop over them ends or is left."""
        main = threading.current_thread() is threading.main_thread()
        if not (self._when and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
            yield from items
            return
        signal.signal(signal.SIGINT, self._note)
        try:
            yield from items
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
