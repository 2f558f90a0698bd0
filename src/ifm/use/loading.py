"""Trained models from a folder, from the package or from the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import torch

from ifm import pretrained
from ifm.adapters import foreign
from ifm.errors import UserError, in_a_line
from ifm.exact import ExactTeacher
from ifm.hub import downloaded
from ifm.model import IntegrationFlow, Teacher
from ifm.use import shipped

Model = Teacher | ExactTeacher | IntegrationFlow

EXPORTED = "unet"  # where `ifm export --format diffusers` puts the model's folder


def find(model: str | Path, *, revision: str | None = None) -> Path:
    """The model's folder: the one that is named, a shipped one, or where the Hub's files lie once they are downloaded.

    A name is looked for on this disk first, then among the models that come with the package; `revision` (branch, tag
    or commit) is the Hub's. Raises UserError.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{model}: is a folder on this disk; a revision ({revision}) is for the Hub's models")
    elif folder.exists():
        raise UserError(f"{model}: is a file; name the folder that holds ifm.json")
    elif revision is None and (own := shipped.folder(str(model))) is not None:
        folder = own
    else:
        folder = downloaded(str(model), revision)
    inner = folder / EXPORTED
    folder = inner if (inner / pretrained.DESCRIPTION).is_file() else folder
    if not (folder / pretrained.DESCRIPTION).is_file() and not foreign.is_model(folder):
        raise UserError(f"{model}: holds no {pretrained.DESCRIPTION}, so no model of ifm, nor one of diffusers")
    return folder


def load_any(folder: Path, *, named: str | Path | None = None) -> Model:
    """A teacher or a flow, whichever is there, laid out as training had it. Raises UserError that names it.

    A folder of diffusers without ifm.json is a teacher as it is: see `ifm.adapters.foreign.teacher`.
    """
    named = named or folder
    if not (folder / pretrained.DESCRIPTION).is_file() and foreign.is_model(folder):
        return foreign.teacher(folder, named=str(named)).to(memory_format=torch.channels_last)
    kind = describe(folder, named=named).get("kind")
    if kind not in ("teacher", "flow"):
        raise UserError(f"{named}: {pretrained.DESCRIPTION} says kind {kind!r}; known: teacher, flow")
    try:
        found = (pretrained.load_flow if kind == "flow" else pretrained.load_teacher)(folder)
    except pretrained.ModelError as error:
        raise UserError(f"{named}: cannot be loaded: {in_a_line(error)}") from error
    return found.to(memory_format=torch.channels_last)


def describe(folder: Path, *, named: str | Path | None = None) -> dict[str, Any]:
    """What ifm.json says. Raises UserError where it is not an object of JSON."""
    try:
        return pretrained.describe(folder)
    except pretrained.ModelError as error:
        raise UserError(f"{named or folder}: {in_a_line(error)}") from error
