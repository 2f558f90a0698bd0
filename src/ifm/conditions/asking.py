"""Classes as people ask for them: numbers, names, ranges, "all"."""

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ifm.errors import UserError

ALL = "all"
SHOWN = 20  # classes in a message


def numbers_of(asked: int | str | Iterable[int | str], classes: Sequence[str]) -> list[int]:
    """Which classes are asked for, by number.

    asked: a number, a name, "all", a range of numbers "0-9", several of these with commas between ("3,5", "cat,dog"),
    or a sequence of numbers and texts. A text that is a class's name means that class, even where it is "3" or holds
    a comma. Raises UserError.
    """
    asked = asked.tolist() if hasattr(asked, "tolist") else asked  # numpy's and torch's
    if isinstance(asked, str):
        found = _of_text(asked, classes)
    elif isinstance(asked, Iterable):
        found = [i for one in asked for i in numbers_of(one, classes)]
    else:
        found = [_in_range(_whole(asked), classes)]
    if not found:
        raise UserError(f"no class is asked for; {known(classes)}")
    return found


def known(classes: Sequence[str]) -> str:
    """The classes in a phrase, e.g. "known: 0 cat, 1 dog"; the first ones of many."""
    shown = [name if name == str(i) else f"{i} {name}" for i, name in enumerate(classes[:SHOWN])]
    more = f", ... ({len(classes)} classes)" if len(classes) > SHOWN else ""
    return f"known: {', '.join(shown)}{more}"


def in_words(numbers: Sequence[int], classes: Sequence[str]) -> str:
    """What was asked for, e.g. "class cat", "classes cat, dog", "10 classes"."""
    names = list(dict.fromkeys(classes[i] for i in numbers))
    if len(names) > SHOWN // 2:
        return f"{len(names)} classes"
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(names)}"


def _of_text(text: str, classes: Sequence[str]) -> list[int]:
    if text in classes:
        return [_named(text, classes)]
    if text.strip() == ALL:
        return list(range(len(classes)))
    return [i for part in text.split(",") if part.strip() for i in _of_part(part.strip(), classes)]


def _of_part(text: str, classes: Sequence[str]) -> Sequence[int]:
    """Of one name, number or range."""
    if text in classes:
        return [_named(text, classes)]
    if re.fullmatch(r"[+-]?\d+", text):
        return [_in_range(int(text), classes)]
    if ends := re.fullmatch(r"(\d+)\s*-\s*(\d+)", text):
        first, last = (_in_range(int(end), classes) for end in ends.groups())
        if first > last:
            raise UserError(f"classes {text}: a range goes up; write {last}-{first}")
        return range(first, last + 1)
    alike = [name for name in classes if name.casefold() == text.casefold()]
    if alike:
        if len(set(alike)) > 1:
            _ambiguous(text, alike, classes)
        return [_named(alike[0], classes)]
    near = difflib.get_close_matches(text, classes, n=3) if len(classes) > SHOWN else []
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    raise UserError(f"unknown class {text!r}{nearest}; {known(classes)}")


def _named(name: str, classes: Sequence[str]) -> int:
    if list(classes).count(name) > 1:
        _ambiguous(name, [name], classes)
    return classes.index(name)


def _ambiguous(text: str, names: Sequence[str], classes: Sequence[str]) -> NoReturn:
    """Raises UserError: a name that several classes have."""
    numbers = " and ".join(str(i) for i, name in enumerate(classes) if name in names)
    raise UserError(f"class {text!r} is the name of {numbers}; ask by number")


def _whole(number: object) -> int:
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError as error:
        raise UserError(f"a class is a whole number or a name, got {number!r}") from error


def _in_range(number: int, classes: Sequence[str]) -> int:
    if not 0 <= number < len(classes):
        raise UserError(f"class {number} is out of range 0 to {len(classes) - 1}; {known(classes)}")
    return number
