"""Errors that a user can mend: the message names the file, key or value and the mend, and stands alone."""


class UserError(Exception):
    """Shown without a traceback (set IFM_DEBUG=1 to see it)."""


def in_a_line(error: BaseException) -> str:
    """What another library's error says, in one line of bounded length; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
