"""Trained models from a folder or from the Hugging Face Hub."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ifm import pretrained
from ifm.errors import UserError, in_a_line
from ifm.exact import ExactTeacher
from ifm.model import IntegrationFlow, Teacher

Model = Teacher | ExactTeacher | IntegrationFlow

DOWNLOADED = ("*.json", "*.safetensors", "README.md")  # no code, no pickle
EXPORTED = "unet"  # where `ifm export --format diffusers` puts the model's folder


def find(model: str | Path, *, revision: str | None = None) -> Path:
    """The model's folder: the one that is named, or where the Hub's files lie once they are downloaded.

    A name is looked for on this disk first; `revision` (branch, tag or commit) is the Hub's. Raises UserError.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{model}: is a folder on this disk; a revision ({revision}) is for the Hub's models")
    elif folder.exists():
        raise UserError(f"{model}: is a file; name the folder that holds ifm.json")
    else:
        folder = _downloaded(str(model), revision)
    inner = folder / EXPORTED
    folder = inner if (inner / pretrained.DESCRIPTION).is_file() else folder
    if not (folder / pretrained.DESCRIPTION).is_file():
        raise UserError(f"{model}: holds no {pretrained.DESCRIPTION}, so no model of ifm")
    return folder


def load_any(folder: Path, *, named: str | Path | None = None) -> Model:
    """A teacher or a flow, whichever is there, laid out as training had it. Raises UserError that names it."""
    named = named or folder
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


def _downloaded(name: str, revision: str | None) -> Path:
    """The Hub's files in its cache. Raises UserError, with what was wrong, and where it was asked."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise UserError(f"{name}: there is no such folder (nor is it a Hub id, owner/name)")
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{name}: no such folder, and the Hub ({constants.ENDPOINT})"
    try:
        with quiet_hub():
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED)))
    except errors.GatedRepoError as error:
        raise UserError(f"{where} gives it only to those it let in; ask there, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{where} has no model of that name, or a private one: then `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{where} has no revision {revision!r} of it") from error
    except errors.HFValidationError as error:
        raise UserError(f"{name}: there is no such folder (nor is it a Hub id: {in_a_line(error)})") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{where} cannot be reached, nor is it in the Hub's cache ({constants.HF_HUB_CACHE})"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{where} did not give it: {in_a_line(error)}") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without huggingface_hub's bars where nobody looks at them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
