"""Text between two marks of a page, which a command writes anew."""

from pathlib import Path

from ifm.errors import UserError
from ifm.files import write_text


def between(text: str, mark: str, made: str, *, name: str) -> str:
    """The page `name` with `made` between its two marks. Raises UserError where it has not two."""
    if (found := text.count(mark)) != 2:
        raise UserError(f"{name}: must have the line {mark} twice, it has it {found} times")
    before, _, after = text.split(mark)
    return f"{before}{mark}\n{made}\n{mark}{after}"


def write_between(file: Path, mark: str, made: str) -> None:
    """The same in a file."""
    write_text(file, between(file.read_text(encoding="utf-8"), mark, made, name=str(file)))
