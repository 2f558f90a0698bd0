"""An autoencoder's files on this disk as an input of the graph, as `ifm.adapters.inputs` has a teacher's. Light."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ifm import watched
from ifm.files import located
from ifm.latents import INNER

READ = (".json", ".safetensors")  # all that is read of its folder


@dataclass(frozen=True)
class Inputs:
    """data/encoder.json. encoder: what lies on this disk, for dvc.yaml: the encoder, or nothing."""

    encoder: list[str] = field(default_factory=list)
    files: int | None = None
    sha256: str | None = None  # of their names and contents, not of times or the place where they lie


def note(file: Path, found: Inputs) -> None:
    """Writes the file unless it says so already; where there is none, nothing needs none."""
    if file.exists() or found.encoder:
        watched.note(file, asdict(found))


def look(data: Mapping[str, Any], *, root: Path, memory: Path | None = None) -> Inputs | None:
    """What section `data` of params.yaml reads of an encoder on this disk; None where its folder is not there.

    root: the folder that relative paths begin in. memory: see `ifm.watched.digest`.
    """
    if not isinstance(data["encoder"], str):
        return Inputs()
    place = located(data["encoder"], root)
    if not place.is_dir():
        return None
    files = [file for folder in (place, place / INNER) for file in folder.glob("*") if file.is_file()]
    named = sorted((os.fsencode(file.relative_to(place)), file) for file in files if file.suffix in READ)
    return Inputs(["encoder"], len(named), watched.digest(named, memory))
