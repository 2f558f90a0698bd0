"""The files of a registered model: from the project's folder if they are there, else from DVC's cache."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ifm.errors import UserError
from ifm.files import joint_sha256, read_json
from ifm.tracking import store


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    """The folder of a registered model `name@alias` or `name/version`, checked by sha256.

    Raises UserError if the store does not know it, or if its files are not on this machine.
    """
    uri = store.without_secrets(store.tracking_uri())
    try:
        client, _ = store.connect()
        if "@" in name:
            version = client.get_model_version_by_alias(*name.split("@", 1))
        else:
            version = client.get_model_version(*name.split("/", 1))
    except Exception as error:  # whatever the store raises
        raise UserError(f"--model {name}: {uri} has no such model ({store.brief(error)})") from error
    tags = version.tags
    path, md5 = store.project_root() / tags["dvc.path"], tags.get("dvc.md5", "")
    if _holds(path, tags["sha256"]):
        yield path
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / path.name
        _check_out(md5, folder, name=name)
        if not _holds(folder, tags["sha256"]):
            raise UserError(f"--model {name}: DVC's object {md5} has not the sha256 of its weights")
        yield folder


def _holds(folder: Path, sha256: str) -> bool:
    """Whether a model's folder has the weights of the checksum."""
    weights = list(folder.glob("*.safetensors"))
    return bool(weights) and joint_sha256(weights) == sha256


def _check_out(md5: str, folder: Path, *, name: str) -> None:
    """Copies a folder out of DVC's cache."""
    words = [sys.executable, "-m", "dvc", "cache", "dir"]
    found = subprocess.run(words, cwd=store.project_root(), capture_output=True, text=True, check=False)
    objects = Path(found.stdout.strip()) / "files" / "md5"
    listing = objects / md5[:2] / md5[2:]
    if found.returncode or not md5 or not listing.is_file():
        raise UserError(
            f"--model {name}: its weights are neither in the project nor in DVC's cache; bring them by "
            "`dvc fetch --all-commits`"
        )
    folder.mkdir()
    for entry in read_json(listing):
        target = folder / entry["relpath"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(objects / entry["md5"][:2] / entry["md5"][2:], target)
