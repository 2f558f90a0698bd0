"""params.yaml as text: any valid form is read, and one form is written, with the comments that were there.

The form: block mappings, and every value on its key's line. ruamel's round trip, by which DVC rewrites the file, keeps
comments and blank lines with the value before them, and writes what is no YAML where that value is then replaced.
"""

import copy
import functools
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ifm.config import ConfigError, read_mapping, read_yaml, yaml_node
from ifm.errors import UserError

Path = tuple[str, ...]  # of a value: the keys that lead to it
INDENT = "  "


def rewritten(text: str, values: Mapping[str, Any], *, spelt: Mapping[Path, str] | None = None) -> str:
    """`text` with other values of the same keys, its comments kept.

    spelt: how values are written, by path; without, one that stays keeps its spelling.
    Raises ConfigError where `text` is no YAML mapping.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    text = _plain_lines(text)
    node = yaml_node(text, source="params.yaml")
    was = _spelling(text, node)
    words = {path: _word(value, (spelt or {}).get(path), was.get(path)) for path, value in _leaves(values)}
    written = _written(values, words, _remarks(text, node))
    if not _same(_read(written), values):  # a comment that was taken for something else
        written = _written(values, words, _Remarks())
    return written.replace("\n", newline)


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """`text` with some values changed, by dotted name. Raises UserError for a key that does not exist."""
    values = copy.deepcopy(read_mapping(text, source="params.yaml"))
    for dotted, value in changes.items():
        set_value(values, dotted, value)
    return rewritten(text, values)


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a value of params.yaml by dotted name; a list of one may stand without its brackets.

    Raises UserError for a key that does not exist.
    """
    *sections, key = dotted.split(".")
    at: Any = values
    for section in sections:
        at = at.get(section) if isinstance(at, dict) else None
    if not isinstance(at, dict) or key not in at:
        raise UserError(f"params.yaml has no {dotted}")
    at[key] = [value] if isinstance(at[key], list) and isinstance(value, str | int | float) else value


def spelling(text: str, *, source: str = "params.yaml") -> dict[Path, str]:
    """How the values that are no mappings are written: 2.0e-3 stays 2.0e-3."""
    text = _plain_lines(text)
    return _spelling(text, yaml_node(text, source=source))


def _spelling(text: str, node: Any) -> dict[Path, str]:
    return {entry.path: _raw(text, entry.value) for entry in _entries(node, text)}


def _plain_lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


# --- values -----------------------------------------------------------------------------------------------------------


def _leaves(values: Mapping[str, Any], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _word(value: Any, *spelt: str | None) -> str:
    """A value as it is written on one line, in the first of these spellings that means it."""
    return next((raw for raw in spelt if raw and _means(raw, value)), None) or _format(value)


def _format(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_format, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _means(value, value) else _quoted(value)


def _quoted(text: str) -> str:
    """In double quotes, with escapes that every reader of YAML knows."""
    escaped = (f"\\U{ord(c):08x}" if not c.isprintable() else f"\\{c}" if c in '\\"' else c for c in text)
    return f'"{"".join(escaped)}"'


def _means(raw: str, value: Any) -> bool:
    """Whether a spelling is read as the value, wherever it stands on a line."""
    if "\n" in raw or re.search(r"\s#|:\s|:$|^\s|\s$", raw):
        return False
    return _same(_listed(raw), [value])


@functools.lru_cache(maxsize=4096)
def _listed(raw: str) -> Any:
    return _read(f"[{raw}]")


def _read(text: str) -> Any:
    try:
        return read_yaml(text, source="")
    except ConfigError:
        return None


def _same(one: Any, other: Any) -> bool:
    """Also in type: 1 is neither true nor 1.0."""
    return repr(one) == repr(other)


# --- what stands where ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A key and its value in the text."""

    path: Path
    start: int  # of the key
    end: int  # of the value
    value: Any  # ruamel's node
    section: bool  # whether the value is a mapping


def _entries(node: Any, text: str, at: Path = ()) -> Iterator[_Entry]:
    """In the order of the text. What an alias or a merge key (<<) brings stands where its anchor is."""
    for key, value in node.value if node is not None else ():
        path = at if key.tag.endswith(":merge") else (*at, str(key.value))
        here = value.start_mark.index >= key.end_mark.index
        section = value.id == "mapping"
        yield _Entry(path, key.start_mark.index, _end(value, text) if here else key.end_mark.index, value, section)
        if here and section:
            yield from _entries(value, text, path)


def _end(node: Any, text: str) -> int:
    """Where a value's last sign is; block collections and block scalars end for ruamel where the next key begins."""
    if isinstance(node.value, str) or node.flow_style:
        start = node.start_mark.index
        return start + len(text[start : node.end_mark.index].rstrip())
    inner = [part for one in node.value for part in (one if isinstance(one, tuple) else (one,))]
    return max((_end(one, text) for one in inner), default=node.end_mark.index)


def _raw(text: str, node: Any) -> str:
    """A value as the text has it, lists in brackets; without anchors and tags."""
    if node.id == "mapping":
        return ""
    if node.id == "sequence":
        return f"[{', '.join(_raw(text, one) for one in node.value)}]"
    return re.sub(r"^(?:[&!]\S*\s*)+", "", text[node.start_mark.index : node.end_mark.index]).strip()


@dataclass
class _Remarks:
    """The comments and blank lines of a file."""

    above: dict[Path, list[str]] = field(default_factory=dict)  # whole lines before the key
    beside: dict[Path, str] = field(default_factory=dict)  # behind the value
    last: list[str] = field(default_factory=list)


def _remarks(text: str, node: Any) -> _Remarks:
    entries, found = list(_entries(node, text)), _Remarks()
    starts = [entry.start for entry in entries]
    lines = [text.count("\n", 0, start) for start in starts]
    parted: set[int] = set()  # entries with a blank line inside

    def before(i: int, line: str) -> None:
        (found.above.setdefault(entries[i].path, []) if i < len(entries) else found.last).append(line)

    for position, comment in _comments(text, entries):
        number, begin = text.count("\n", 0, position), text.rfind("\n", 0, position) + 1
        until = bisect_right(starts, position)
        indent, last = text[begin:position], until - 1
        if indent.strip():
            i = _beside(entries[:until], [i for i in range(until) if lines[i] == number], position)
            if i is None or entries[i].path in found.beside:  # behind an item, the --- of a document, a merge key
                before(max(last, 0), _indented(entries[max(last, 0)], comment))
            else:
                found.beside[entries[i].path] = comment
        elif last < 0 or entries[last].section or entries[last].end <= position:
            before(until, indent.expandtabs(2) + comment if comment else "")
        elif not comment or last in parted:  # where DVC puts what came after a list
            parted.add(last)
            before(until, comment)
        else:
            before(last, _indented(entries[last], comment))
    return found


def _beside(entries: Sequence[_Entry], here: Sequence[int], position: int) -> int | None:
    """Which of the keys on its line a comment is about: the outermost that is whole, else the innermost."""
    whole = [i for i in here if entries[i].end <= position]
    return (whole[0] if whole else here[-1]) if here else None


def _indented(entry: _Entry, comment: str) -> str:
    return INDENT * (len(entry.path) - 1) + comment


def _comments(text: str, entries: Sequence[_Entry]) -> Iterator[tuple[int, str]]:
    """(position, comment from its # on) in the order of the text; a blank line is an empty comment."""
    spans = sorted(span for entry in entries for span in _scalars(entry.value, text))
    firsts = [first for first, _ in spans]

    def in_a_value(position: int) -> bool:
        i = bisect_right(firsts, position) - 1
        return i >= 0 and position < spans[i][1]

    for line in re.finditer(r"[^\n]*\n|[^\n]+$", text):
        if not line.group().strip():
            if not in_a_value(line.start()):
                yield line.start(), ""
            continue
        signs = (sign.start() for sign in re.finditer(r"(?<!\S)#", line.group()))
        position = next((at for sign in signs if not in_a_value(at := line.start() + sign)), None)
        if position is not None:
            yield position, text[position : line.end()].rstrip()


def _scalars(node: Any, text: str) -> Iterator[tuple[int, int]]:
    """Where the text of a value's scalars stands: a # in it is no comment."""
    if node.id == "sequence":
        for one in node.value:
            yield from _scalars(one, text)
    elif node.id == "scalar":
        start, end = node.start_mark.index, _end(node, text)
        block = text[start:end].startswith(("|", ">"))
        yield (text.index("\n", start, end) if block and "\n" in text[start:end] else start), end


# --- writing ----------------------------------------------------------------------------------------------------------


def _written(values: Mapping[str, Any], words: Mapping[Path, str], remarks: _Remarks) -> str:
    lines: list[str] = []

    def put(section: Mapping[str, Any], at: Path) -> None:
        for key, value in section.items():
            path = (*at, key)
            parts = [f"{INDENT * len(at)}{key}:", words.get(path), remarks.beside.get(path, "")]
            lines.extend(remarks.above.get(path, []))
            lines.append(" ".join(filter(None, parts[:2])) + (f"  {parts[2]}" if parts[2] else ""))
            if isinstance(value, Mapping):
                put(value, path)

    put(values, ())
    return "\n".join([*lines, *remarks.last, ""])
