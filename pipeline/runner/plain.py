"""Sections of params.yaml as plain texts, for stages that begin every `dvc repro`: nothing heavy is imported here."""

from pathlib import Path
from typing import Any, ClassVar

import yaml

NULL = ("", "~", "null", "Null", "NULL")


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Every scalar as its text: the file is YAML 1.2, where `no` is a word, and PyYAML knows 1.1."""

    yaml_implicit_resolvers: ClassVar[dict] = {}


def section(params: Path, name: str, *, keys: set[str]) -> dict[str, Any] | None:
    """A section, values as text, null as None; None where it is not as it should be, or one of `keys` is missing."""
    try:
        found = yaml.load(params.read_text(encoding="utf-8"), Loader=_Plain)[name]
        values = {key: None if value in NULL else value for key, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return values if keys <= values.keys() else None
