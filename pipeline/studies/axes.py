"""What a sweep varies: the words behind -S, and the configurations that they make."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifm.config import ConfigError
from ifm.errors import UserError
from pipeline.studies.experiments import override_text
from pipeline.tools import preset

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Range:
    """Numbers to search in, both ends included."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


Values = tuple[Any, ...] | Range


def asked_at(base: Mapping[str, Any], key: str, value: Any) -> str:
    """The key that a value of an axis is set by: a scale inside the range that the flow takes trains nothing anew.

    `guidance.scale` of [1, 4] in params.yaml is what the flow is trained for; each w in it is `sample.guidance`.
    """
    scale = base.get("guidance", {}).get("scale")
    if key != "guidance.scale" or not isinstance(scale, list) or not isinstance(value, int | float):
        return key
    return "sample.guidance" if scale[0] <= value <= scale[1] else key


def read_axes(words: Sequence[str]) -> dict[str, Values]:
    """What -S asks for, by dotted name: values in YAML, parted by commas, or a range LOW..HIGH or LOW..HIGH:log.

    Raises UserError that names the word.
    """
    axes: dict[str, Values] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text:
            raise UserError(f"-S {word}: must be key=value,value,..., e.g. flow.lr=1e-4,3e-4")
        if key in axes:
            raise UserError(f"-S {word}: {key} is there twice; put all its values behind one -S")
        if key == "seed":
            raise UserError(f"-S {word}: seeds are an axis of their own; use --seeds {text}")
        axes[key] = _range(word, text) or _values(word, text)
    return axes


def _range(word: str, text: str) -> Range | None:
    found = re.fullmatch(rf"({NUMBER})\.\.({NUMBER})(:log)?", text)
    if not found:
        return None
    low, high = (preset.parse_yaml(end) for end in found.groups()[:2])
    if not low < high:
        raise UserError(f"-S {word}: a range goes from a lower number to a higher one")
    if found[3] and low <= 0:
        raise UserError(f"-S {word}: a logarithmic range is above 0")
    return Range(low, high, bool(found[3]))


def _values(word: str, text: str) -> tuple[Any, ...]:
    try:
        found = preset.parse_yaml(f"[{text}]")
    except ConfigError as error:
        raise UserError(f"-S {word}: {text!r} is no YAML") from error
    if not isinstance(found, list):
        raise UserError(f"-S {word}: {text!r} is no YAML")
    if not found or text.rstrip().endswith(","):
        raise UserError(f"-S {word}: a value is missing at the end")
    if len({repr(value) for value in found}) < len(found):
        raise UserError(f"-S {word}: a value is there twice")
    return tuple(found)


def grid(axes: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def corners(axes: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every value and end once, the other axes at their first: what is checked before a search begins."""
    ends = {key: values.ends if isinstance(values, Range) else values for key, values in axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    yield from (first | {key: value} for key, values in ends.items() for value in values[1:])


def column(axis: str) -> str:
    """What an axis is called in the tables, where `dynamics` is each row's own."""
    return axis if "." in axis else f"params.{axis}"


def words(values: Mapping[str, Any]) -> str:
    """flow.lr=0.0001 anchor.policy=none"""
    return " ".join(f"{key}={override_text(value)}" for key, value in values.items())


def slug(values: Mapping[str, Any]) -> str:
    """Part of a ref's name: what is varied, in brief."""
    texts = (f"{key.rpartition('.')[2]}-{override_text(value)}" for key, value in values.items())
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(texts)).replace("..", ".")[:60].strip("-.")
