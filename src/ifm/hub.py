"""Models of the Hugging Face Hub: their files in its cache, no code and no pickle."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ifm.errors import UserError, in_a_line
from ifm.files import located

DOWNLOADED = ("*.json", "*.safetensors", "README.md")


def folder_of(
    path: str, *, revision: str | None, root: Path, keys: tuple[str, str], files: Sequence[str] = DOWNLOADED
) -> tuple[Path, dict[str, str]]:
    """A folder on this disk, or the Hub's in its cache, and where it is from: {} of a folder, {"hub", "commit"}.

    root: the folder that relative paths begin in. keys: what params.yaml calls path and revision. Raises UserError.
    """
    named, folder = f"{keys[0]} = {path!r}", located(path, root)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{named}: is a folder; {keys[1]} = {revision!r} is for the Hub's models: set it to null")
        return folder, {}
    if folder.exists():
        raise UserError(f"{named}: is a file; name the folder that holds it")
    try:
        folder = downloaded(path, revision, files)
    except UserError as error:
        raise UserError(f"{keys[0]} = {error}") from error
    return folder, {"hub": path} | ({"commit": folder.name} if re.fullmatch("[0-9a-f]{40}", folder.name) else {})


def downloaded(name: str, revision: str | None, files: Sequence[str] = DOWNLOADED) -> Path:
    """The Hub's files in its cache. Raises UserError, with what was wrong, and where it was asked."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise UserError(f"{name}: there is no such folder (nor is it a Hub id, owner/name)")
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{name}: no such folder, and the Hub ({constants.ENDPOINT})"
    try:
        with quiet_hub():
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
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
