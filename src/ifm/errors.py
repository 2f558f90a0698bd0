"""Errors that a user can mend. The message names the file, key or value and how to mend it, and needs no traceback."""

from collections.abc import Sequence


class UserError(Exception):
    """Shown without a traceback (set IFM_DEBUG=1 to see it)."""


LONGEST = 600


def in_a_line(error: object) -> str:
    """The text of an error (or of a file) in one line of bounded length; the kind of the error if it has no text.

    A long text loses its middle, because the start says what is wrong and the end often how to mend it.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-(LONGEST // 2) :]}"


def either(names: Sequence[str]) -> str:
    """The names as a choice: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
