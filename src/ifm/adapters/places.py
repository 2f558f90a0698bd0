"""Where `teacher.path` leads: a folder on this disk, or a snapshot in the Hub's cache."""

from pathlib import Path

from ifm.adapters import MODELS
from ifm.adapters.fits import check_classes, check_shape
from ifm.adapters.folder import Found, find
from ifm.errors import UserError
from ifm.files import located
from ifm.hub import folder_of


def look_up(path: str, *, revision: str | None, scheduler: str | None, root: Path) -> tuple[Found, dict[str, str]]:
    """What lies there, and where it is from: {} of a folder, {"hub", "commit"} of the Hub. Raises UserError.

    root: the folder that relative paths begin in.
    """
    named = f"teacher.path = {path!r}"
    folder, origin = folder_of(path, revision=revision, root=root, keys=("teacher.path", "teacher.revision"))
    if scheduler is not None and not located(scheduler, root).exists():
        raise UserError(f"teacher.scheduler = {scheduler!r}: no such file or folder")
    return find(folder, named=named, scheduler=None if scheduler is None else located(scheduler, root)), origin


def check(
    path: str, *, scheduler: str | None, root: Path, shape: tuple[int, ...], classes: int | None, drops: bool
) -> None:
    """Raises UserError where a folder on this disk is no model for data of a shape with so many classes to ask for.

    classes, drops: as of `fits.check_classes`. The Hub is not asked.
    """
    if not located(path, root).is_dir():
        return
    found, _ = look_up(path, revision=None, scheduler=scheduler, root=root)
    try:
        check_shape(found.config, shape=shape)
        check_classes(found.config, MODELS[found.config["_class_name"]], classes, drops=drops)
    except (ValueError, LookupError) as error:
        raise UserError(f"{found.named}: {error}") from error
