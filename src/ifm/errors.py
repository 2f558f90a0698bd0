"""Errors that a user can mend: the message names the file, key or value and the mend, and stands alone."""


class UserError(Exception):
    """Shown without a traceback (set IFM_DEBUG=1 to see it)."""


LONGEST = 600


def in_a_line(error: object) -> str:
    """What an error of another library or a file's own text says, in one line of bounded length; else its kind.

    What is too long loses its middle: the start says what is wrong, and the end often how to mend it.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-(LONGEST // 2) :]}"
