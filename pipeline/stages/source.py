"""source: what the local files of `data` are now, in data/source.json; runs where there are any, at every `dvc repro`.

DVC has no other way to look at files outside the project that not everyone has. Nothing heavy is imported here.
"""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ifm.data import inputs
from ifm.data.sources import SOURCES
from ifm.errors import UserError
from pipeline.runner import paths

NULL = ("", "~", "null", "Null", "NULL")


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Every scalar as its text: the file is YAML 1.2, where `no` is a word, and PyYAML knows 1.1."""

    yaml_implicit_resolvers: ClassVar[dict] = {}


def main() -> None:
    """Notes what the files are; where they are not on this machine, what was noted before stands."""
    section = _data(paths.PARAMS)
    if section is None:
        return  # `fetch` says what is wrong
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd())  # in an experiment's own folder: the main checkout
    try:
        found = inputs.look(section, root=root, memory=root / paths.SEEN)
        if found is None:
            print(f"{_named(section)}: not on this machine; what was made of it stands", file=sys.stderr)
        else:
            inputs.note(paths.SOURCE, found)
    except UserError as error:
        sys.exit(f"source: {error}")
    except OSError as error:
        sys.exit(f"source: {_named(section)}: cannot be read ({error.strerror}); mend its permissions")


def _data(params: Path) -> dict[str, Any] | None:
    """Section `data`, values as text, null as None; None where it is not as it should be."""
    try:
        found = yaml.load(params.read_text(encoding="utf-8"), Loader=_Plain)["data"]
        section = {key: None if value in NULL else value for key, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return section if {"source", "path", "name", "train_split", "test_split"} <= section.keys() else None


def _named(section: dict[str, Any]) -> str:
    key = SOURCES[section["source"]].watched
    return f"data.{key} = {section[key]!r}"


if __name__ == "__main__":
    main()
