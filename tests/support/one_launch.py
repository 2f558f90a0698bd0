"""Several workers one after the other in one launch, which pays its processes' imports once: MODULE ARGUMENT... --"""

import importlib
import sys
from itertools import groupby
from pathlib import Path


def main(words: list[str]) -> None:
    """Runs each group of words up to `--` as a worker of tests.support and its arguments, all of them paths."""
    for separator, group in groupby(words, lambda word: word == "--"):
        if not separator:
            name, *arguments = group
            importlib.import_module(name).main(*map(Path, arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1:])
