"""Ctrl-C while a training runs: the step is ended, so that a checkpoint can be written, and then it is over."""

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Note:
    """`asked` tells whether there was a Ctrl-C while `during` was gone through. The second one interrupts at once.

    when: False for work that has to be interrupted at once. So is it where Ctrl-C would not raise KeyboardInterrupt
    anyway: in another thread, or with a handler of somebody else's.
    """

    def __init__(self, *, when: bool = True) -> None:
        self.asked, self._when = False, when

    def during(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the handler is put back at their end, and where the loop over them is left."""
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
