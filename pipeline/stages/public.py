"""public: what a public teacher's files on this disk are now, in data/public.json; runs where there are any.

It is to `teacher.path` what stage `source` is to the local files of `data`. Nothing heavy is imported here.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ifm.adapters import inputs
from pipeline.runner import paths, plain


def main() -> None:
    """Notes what the files are; where they are not on this machine, what was noted before stands."""
    section = plain.section(paths.PARAMS, "teacher", keys={"kind", "path", "scheduler"})
    if section is not None:  # else `fetch` says what is wrong
        bring_up_to_date("public", section, "teacher.path", look=inputs.look, note=inputs.note)


def bring_up_to_date(
    stage: str,
    section: Mapping[str, Any],
    key: str,
    *,
    look: Callable[..., Any],
    note: Callable[[Path, Any], None],
) -> None:
    """data/{stage}.json says what the folder is that `key` names. look, note: of `ifm.adapters.inputs` or its like."""
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd())  # in an experiment's own folder: the main checkout
    file, memory = {"public": (paths.PUBLIC, paths.SEEN_PUBLIC), "encoder": (paths.ENCODER, paths.SEEN_ENCODER)}[stage]
    named = f"{key} = {section[key.partition('.')[2]]!r}"
    try:
        found = look(section, root=root, memory=root / memory)
        if found is None:
            print(f"{named}: not on this machine; what was made of it stands", file=sys.stderr)
        else:
            note(file, found)
    except OSError as error:
        sys.exit(f"{stage}: {named}: cannot be read ({error.strerror}); mend its permissions")


if __name__ == "__main__":
    main()
