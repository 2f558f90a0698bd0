"""source: what the local files of `data` are now, in data/source.json; runs where there are any, at every `dvc repro`.

DVC has no other way to look at files outside the project that not everyone has. Nothing heavy is imported here.
"""

import os
import sys
from pathlib import Path
from typing import Any

from ifm.data import inputs
from ifm.data.sources import SOURCES
from ifm.errors import UserError
from pipeline.runner import paths, plain


def main() -> None:
    """Notes what the files are; where they are not on this machine, what was noted before stands."""
    section = plain.section(paths.PARAMS, "data", keys={"source", "path", "name", "train_split", "test_split"})
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


def _named(section: dict[str, Any]) -> str:
    key = SOURCES[section["source"]].watched
    return f"data.{key} = {section[key]!r}"


if __name__ == "__main__":
    main()
