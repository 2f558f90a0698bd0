"""The files that every page holds inside: the shared style sheet, and the script that sorts a table."""

from importlib.resources import files

from markupsafe import Markup


def asset(name: str) -> Markup:
    """A text file of this package, as it is: style.css, sort.js (sorts the table with id `rows`)."""
    return Markup(files("ifm.report").joinpath(name).read_text(encoding="utf-8"))
