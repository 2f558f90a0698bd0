"""Commands of the pipeline, which are in the project's checkout and not in this package: `ifm` passes them on."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ifm.errors import UserError

COMMANDS = {
    "repro": "The pipeline, its branches side by side; in a checkout.",
    "sweep": "params.yaml over a grid or a search, ranked; in a checkout.",
}
MODULES = {"repro": "pipeline.runner.repro", "sweep": "pipeline.studies.sweep"}


def find(start: Path | None = None) -> Path | None:
    """The checkout that a folder (the current one) is in."""
    at = (start or Path.cwd()).resolve()
    return next((one for one in (at, *at.parents) if all((one / name).is_file() for name in FILES)), None)


def missing_identity(root: Path) -> list[str]:
    """What Git does not know of who commits: DVC's experiments are commits, and end in "unexpected error" without."""

    def known(key: str) -> bool:
        words = ["git", "-C", str(root), "config", key]
        return bool(subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip())

    return [key for key in ("user.name", "user.email") if not known(key)]


FILES = ("dvc.yaml", "params.yaml", "pipeline/runner/stage.py")


def run(command: str, words: Sequence[str]) -> NoReturn:
    """Becomes the command's module in the checkout. Raises UserError where there is none."""
    root = find()
    if root is None:
        raise UserError(f"{command} runs the pipeline of a checkout, and this folder is in none; clone the repository")
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", MODULES[command], *words])
