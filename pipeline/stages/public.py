"""public: what a public teacher's files on this disk are now, in data/public.json; runs where there are any.

It is to `teacher.path` what stage `source` is to the local files of `data`. Nothing heavy is imported here.
"""

import os
import sys
from pathlib import Path

from ifm.adapters import inputs
from pipeline.runner import paths, plain


def main() -> None:
    """Notes what the files are; where they are not on this machine, what was noted before stands."""
    section = plain.section(paths.PARAMS, "teacher", keys={"kind", "path", "scheduler"})
    if section is None:
        return  # `fetch` says what is wrong
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd())  # in an experiment's own folder: the main checkout
    named = f"teacher.path = {section['path']!r}"
    try:
        found = inputs.look(section, root=root, memory=root / paths.SEEN_PUBLIC)
        if found is None:
            print(f"{named}: not on this machine; what was made of it stands", file=sys.stderr)
        else:
            inputs.note(paths.PUBLIC, found)
    except OSError as error:
        sys.exit(f"public: {named}: cannot be read ({error.strerror}); mend its permissions")


if __name__ == "__main__":
    main()
