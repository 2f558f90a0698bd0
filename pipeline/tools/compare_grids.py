"""The sample grids of one state: of the files here, or from DVC's cache by what dvc.lock says. Nothing is run."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runner import paths

SAMPLER = "flow-one_step-nfe001"
BY_CLASS = "classes"  # where the flow takes classes: a row for each


def here(dynamics: list[str]) -> dict[str, bytes]:
    """{dynamics: PNG} of the workspace."""
    found = {d: [paths.samples(d) / "grids" / f"{name}.png" for name in (BY_CLASS, SAMPLER)] for d in dynamics}
    return {d: file.read_bytes() for d, files in found.items() if (file := _first(files)) is not None}


def of_lock(lock: Mapping[str, Any], *, cache: Path | None = None) -> dict[str, bytes]:
    """{dynamics: PNG} of the samples that a state's dvc.lock names, as far as DVC's cache has them."""
    found, cache = {}, cache or cache_folder()
    for stage, entry in lock.items():
        name, _, dynamics = stage.partition("@")
        outs = entry.get("outs") or [] if isinstance(entry, Mapping) else []
        mine = [out for out in outs if isinstance(out, Mapping) and str(out.get("path")).startswith("data/samples/")]
        if name == "sample" and dynamics and mine:
            png = _of_folder(cache, str(mine[0].get("md5", "")))
            found |= {} if png is None else {dynamics: png}
    return found


def _of_folder(cache: Path, md5: str) -> bytes | None:
    """The grid among the files of a cached folder, `<md5>.dir`: a list of their checksums and paths."""
    try:
        listed = json.loads(_cached(cache, md5).read_bytes())
        by_path = {entry["relpath"]: entry["md5"] for entry in listed}
        names = [f"grids/{name}.png" for name in (BY_CLASS, SAMPLER)]
        return _cached(cache, next(by_path[name] for name in names if name in by_path)).read_bytes()
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _cached(cache: Path, md5: str) -> Path:
    """Raises ValueError for what is no checksum."""
    if len(md5.removesuffix(".dir")) != 32 or not md5.removesuffix(".dir").isalnum():
        raise ValueError(f"{md5!r} is no md5")
    return cache / "files/md5" / md5[:2] / md5[2:]


def cache_folder() -> Path:
    """DVC's cache: where its configuration says, else .dvc/cache. DVC itself takes longer to import than the page."""
    for name in ("config.local", "config"):
        words = ["git", "config", "--file", f".dvc/{name}", "cache.dir"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return Path(".dvc") / done.stdout.strip()
    return Path(".dvc/cache")


def _first(files: list[Path]) -> Path | None:
    return next((file for file in files if file.is_file()), None)
