"""A public teacher's files on this disk as an input of the graph, as `ifm.data.inputs` has those of the data.

Light on purpose: stage `public` asks at the beginning of every `dvc repro`.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ifm import watched
from ifm.adapters import INNER, SCHEDULER
from ifm.files import located

READ = (".json", ".safetensors")  # all that is read of a model's folder


@dataclass(frozen=True)
class Inputs:
    """data/public.json. public: what lies on this disk, for dvc.yaml: the teacher, or nothing."""

    public: list[str] = field(default_factory=list)
    files: int | None = None
    sha256: str | None = None  # of their names and contents, not of times or the place where they lie


def note(file: Path, found: Inputs) -> None:
    """Writes the file unless it says so already; where there is none, nothing needs none."""
    if file.exists() or found.public:
        watched.note(file, asdict(found))


def look(teacher: Mapping[str, Any], *, root: Path, memory: Path | None = None) -> Inputs | None:
    """What section `teacher` of params.yaml reads from this machine's disk; None where its folder is not there.

    root: the folder that relative paths begin in. memory: see `ifm.watched.digest`.
    """
    if teacher["kind"] != "pretrained" or not isinstance(teacher["path"], str):
        return Inputs()
    place = located(teacher["path"], root)
    if not place.is_dir():
        return None
    named = sorted(_files(place))
    if isinstance(teacher["scheduler"], str):
        at = located(teacher["scheduler"], root)
        files = [file for file in (at, at / SCHEDULER, at / "scheduler" / SCHEDULER) if file.is_file()]
        named += [(b"/scheduler", file) for file in files[:1]]
    return Inputs(["teacher"], len(named), watched.digest(named, memory))


def _files(place: Path) -> Iterator[tuple[bytes, Path]]:
    for folder in (place, *(place / name for name in (*INNER, "scheduler"))):
        for file in folder.glob("*"):
            if file.suffix in READ and file.is_file():
                yield os.fsencode(file.relative_to(place)), file
