"""Models that come with the package, by name: folders of src/ifm/shipped, which `python -m pipeline.tools.ship` makes.

Weights are stored in float16 and computed with in float32. SHA256SUMS, which `sha256sum --check` reads, covers every
other file of a folder.
"""

import shutil
from pathlib import Path

from ifm.errors import UserError
from ifm.files import file_sha256, inside, write_text

FOLDER = Path(__file__).parents[1] / "shipped"
FIRST = "digits"  # what a demo shows where nothing was trained
SUMS = "SHA256SUMS"
MEND = "install the package again"


def names() -> list[str]:
    """What there is."""
    return sorted(file.parent.name for file in FOLDER.glob(f"*/{SUMS}"))


def folder(name: str) -> Path | None:
    """The folder of a shipped model, its files checked; None where there is none of that name. Raises UserError."""
    if name not in names():
        return None
    check(FOLDER / name)
    return FOLDER / name


def copy_code(folder: Path) -> Path:
    """A copy of this package in `folder`, without these models; where it is."""
    left_out = shutil.ignore_patterns("__pycache__", FOLDER.name)
    return Path(shutil.copytree(FOLDER.parent, folder / FOLDER.parent.name, ignore=left_out))


def check(folder: Path) -> None:
    """Raises UserError, which names the file, where one is missing or not as it was shipped."""
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        try:
            found = file_sha256(inside(folder, name))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder.name}: {name!r} of the shipped model cannot be read; {MEND}") from error
        if found != digest:
            raise UserError(f"{folder.name}: {name} of the shipped model is not as it was shipped (sha256); {MEND}")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of a folder's files."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    write_text(folder / SUMS, "".join(f"{file_sha256(file)}  {file.name}\n" for file in files))
