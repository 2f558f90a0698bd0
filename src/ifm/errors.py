"""Errors that a user can mend: the message names the file, key or value and the mend, and stands alone."""


class UserError(Exception):
    """Shown without a traceback (set IFM_DEBUG=1 to see it)."""


def in_a_line(error: object) -> str:
    """What an error of another library or a file's own text says, in one line of bounded length; else its kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
