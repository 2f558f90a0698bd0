"""`python -m benchmarks.leg --data FOLDER --minutes 9 --out FOLDER`: from images to figures within a given time."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ifm.errors import UserError


def main(words: list[str] | None = None) -> None:
    """Runs a leg."""
    arguments = parse(words)
    from benchmarks.leg.run import Leg

    work = arguments.work or Path(tempfile.mkdtemp(prefix="ifm-leg-"))
    try:
        done = Leg(arguments, work.resolve()).run()
    except UserError as error:
        sys.exit(f"leg: {error}")
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if done else 1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leg", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with train*.parquet, test*.parquet")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, this command's start included")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets the results as they come")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FOLDER", help="the --out of a leg to go on from")
    parser.add_argument("--dynamics", default="ve", help="one of params.yaml's; default: ve")
    parser.add_argument("--preset", default="cifar10-jpeg")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of params.yaml, after all else")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keeps what the stages make; default: thrown away")
    return parser.parse_args(words)


def settings(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE by dotted name. Raises UserError."""
    from pipeline.tools.preset import parse_yaml

    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set {word}: write KEY=VALUE, e.g. teacher.lr=2.0e-3")
        found[key] = parse_yaml(value)
    return found


if __name__ == "__main__":
    main()
