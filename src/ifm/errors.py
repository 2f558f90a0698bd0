"""Errors that a user can mend: the message names the file, key or value and the mend, and stands alone."""


class UserError(Exception):
    """Shown without a traceback (set IFM_DEBUG=1 to see it)."""
