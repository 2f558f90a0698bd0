"""Reads all of DVC's cache and compares each file with the checksum that is its name.

DVC takes a read-only file in its cache for sound without reading it: one that is truncated or was written over is
checked out as it is, and `dvc status` finds nothing. `make check-cache` names such files; MEND=1 removes them, and the
copies of them in the workspace, so that `dvc pull` brings them from the remote or `dvc repro` makes them again.
"""

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ifm.progress import progress
from pipeline.runner import paths
from pipeline.runner.stage import of_dvc, outputs


@dataclass(frozen=True)
class Damaged:
    """A file of the cache whose bytes are not those of its name."""

    path: Path
    expected: str  # md5, from the name
    found: str


def file_md5(path: Path) -> str:
    """md5 of a file's bytes, as DVC names it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def damaged(cache: Path) -> list[Damaged]:
    """The files under <cache>/files/md5/<2>/<30>, directories' lists (.dir) among them, that are not what they say."""
    files = sorted(p for p in (cache / "files" / "md5").glob("[0-9a-f][0-9a-f]/*") if len(p.stem) == 30)
    found = []
    for path in progress(files, label="cache", unit="file"):
        expected, md5 = path.parent.name + path.stem, file_md5(path)
        if md5 != expected:
            found.append(Damaged(path, expected, md5))
    return found


def copies(folder: Path, bad: Iterable[Damaged]) -> list[Path]:
    """The files among the outputs of folder/dvc.lock that were checked out from a damaged file: the same bytes."""
    lock = folder / "dvc.lock"
    sums = {one.found for one in bad if one.path.suffix != ".dir"}
    if not sums or not lock.is_file():
        return []
    tops = {folder / out for out in outputs(of_dvc(lock.read_text(encoding="utf-8")).get("stages") or {})}
    files = sorted(p for top in tops for p in ([top] if top.is_file() else top.rglob("*")) if p.is_file())
    return [path for path in files if file_md5(path) in sums]


def main() -> None:
    """Runs from the command line; the status is 1 where something is damaged and was left."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tools.check_cache", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--mend", action="store_true", help="remove what is damaged")
    arguments = parser.parse_args()
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip() or "dvc cache dir failed")
    cache = Path(done.stdout.strip().splitlines()[-1])
    bad = damaged(cache)
    if not bad:
        print(f"{cache}: every file has the checksum of its name")
        return
    copied = copies(paths.PARAMS.parent, bad)
    for one in bad:
        print(f"{one.path}: damaged (its md5 is {one.found})")
    for path in copied:
        print(f"{path}: a copy of a damaged file")
    if not arguments.mend:
        sys.exit("`make check-cache MEND=1` removes them; then `dvc pull` or `dvc repro`")
    for path in [*(one.path for one in bad), *copied]:
        path.unlink(missing_ok=True)
    print("removed; `dvc pull` brings them from the remote, `dvc repro` makes them again")


if __name__ == "__main__":
    main()
