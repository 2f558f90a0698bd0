"""Where `teacher.path` leads: a folder on this disk, or a snapshot in the Hub's cache."""

import re
from pathlib import Path

from ifm.adapters import MODELS
from ifm.adapters.fits import check_classes, check_shape
from ifm.adapters.folder import Found, find
from ifm.errors import UserError
from ifm.files import located
from ifm.hub import downloaded


def look_up(path: str, *, revision: str | None, scheduler: str | None, root: Path) -> tuple[Found, dict[str, str]]:
    """What lies there, and where it is from: {} of a folder, {"hub", "commit"} of the Hub. Raises UserError.

    root: the folder that relative paths begin in.
    """
    named, folder, origin = f"teacher.path = {path!r}", located(path, root), {}
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"{named}: is a folder; teacher.revision = {revision!r} is for the Hub's models: set it to null"
            )
    elif folder.exists():
        raise UserError(f"{named}: is a file; name the folder that holds it")
    else:
        try:
            folder = downloaded(path, revision)
        except UserError as error:
            raise UserError(f"teacher.path = {error}") from error
        origin = {"hub": path} | ({"commit": folder.name} if re.fullmatch("[0-9a-f]{40}", folder.name) else {})
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
