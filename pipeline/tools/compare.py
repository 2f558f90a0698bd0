"""`make compare A=... B=...`: two states of the pipeline side by side, from the files that Git keeps of each.

A state is anything Git can name (a commit, HEAD~3, a branch, a tag), the name of a DVC experiment, or the word
`workspace` for the files as they lie here. Nothing is checked out and nothing is run.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import yaml

from ifm.errors import UserError
from ifm.files import write_text
from pipeline.runner import paths
from pipeline.tools import compare_grids
from pipeline.tools.compare_page import render
from pipeline.tools.comparison import REQUIRED, TEXT_KEYS, Side, paired
from pipeline.tools.fairness import warnings
from pipeline.tools.preset import parse_yaml

WORKSPACE = "workspace"
PAGE = paths.REPORTS / "compare.html"
SUMMARY, LOCK, VERSIONS = paths.REPORTS / "summary.csv", Path("dvc.lock"), Path("constraints.txt")
FILES = (paths.PARAMS, SUMMARY, LOCK, VERSIONS)
FOLDERS = {"metrics": paths.METRICS, "diagnostics": paths.REPORTS / "diagnostics", "curves": paths.CURVES}


def read_side(label: str) -> Side:
    """A state as the page shows it.

    Raises UserError for an unknown name, and for a state without a summary that can be read.
    """
    _check_checkout()
    commit, kind = ("HEAD", WORKSPACE) if label == WORKSPACE else resolve(label)
    about = _git("log", "-1", "--format=%H%n%cd%n%s", "--date=format:%Y-%m-%d %H:%M", commit, "--")
    commit, date, subject = about.decode(errors="replace").split("\n")[:3]
    if kind == WORKSPACE:
        files = _of_the_workspace()
        if _git("status", "--porcelain", "--untracked-files=no", "--", "."):
            kind += " with uncommitted changes"
    else:
        files = _of_a_commit(commit)
    where = label if label in (WORKSPACE, commit) else f"{label} ({commit[:10]})"
    if SUMMARY.as_posix() not in files:
        raise UserError(f"{where}: there is no {SUMMARY}; `dvc repro` makes it (for a revision: there, then commit it)")
    read = _Reader(files)
    lock = read.one(LOCK, _lock)
    dynamics = [file.name for file in sorted(paths.samples("*").parent.glob("*"))]
    return Side(
        label=label,
        commit=commit,
        date=date,
        subject=subject,
        kind=kind,
        summary=_summary(files[SUMMARY.as_posix()], where=f"{where}: {SUMMARY}"),
        params=read.one(paths.PARAMS, _mapping),
        metrics=read.folder("metrics", _json),
        diagnostics=read.folder("diagnostics", _json),
        curves=read.folder("curves", _curve),
        lock=lock,
        versions=read.one(VERSIONS, _versions),
        grids=compare_grids.here(dynamics) if label == WORKSPACE else compare_grids.of_lock(lock),
        missing=tuple(read.missing),
    )


def resolve(name: str) -> tuple[str, str]:
    """(commit, "revision" or "experiment"): as Git reads the name, else the DVC experiment called so.

    Raises UserError where neither knows it.
    """
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
        return commit, "experiment" if name.startswith("refs/exps/") else "revision"
    except UserError:
        return _experiment(name), "experiment"


def _experiment(name: str) -> str:
    """The commit of a DVC experiment. Imports DVC, which takes longer than the page: Git is asked before."""
    from dvc.repo.experiments.utils import AmbiguousExpRefInfo, resolve_name
    from dvc.scm import SCM

    root = _git("rev-parse", "--show-toplevel").decode().rstrip("\n")
    try:
        with SCM(root) as scm:
            found = None if name.startswith("refs/") else resolve_name(scm, name)[name]
            if found:
                return scm.get_ref(str(found))
    except AmbiguousExpRefInfo as error:
        raise UserError(f"several experiments are called {name!r}; give one's commit (`dvc exp show -A`)") from error
    raise UserError(
        f"there is no revision or experiment {name!r}; `git log --oneline`, `git branch -a` and `dvc exp list -A` "
        "show what there is"
    )


def _check_checkout() -> None:
    try:
        _git("rev-parse", "--verify", "--quiet", "HEAD")
    except UserError as error:
        if "not installed" in str(error):
            raise
        raise UserError("this folder is not a Git checkout with a commit; clone the repository") from error


# --- files ----------------------------------------------------------------------------------------------------------


def _git(*words: str) -> bytes:
    try:
        done = subprocess.run(["git", *words], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UserError("git is not installed; revisions and experiments are Git's") from error
    if done.returncode:
        raise UserError(f"git {words[0]}: {done.stderr.decode(errors='replace').strip() or 'failed'}")
    return done.stdout


def _of_a_commit(commit: str) -> dict[str, bytes]:
    """The files wanted, by path from this folder, which may lie below the repository's."""
    wanted = [path.as_posix() for path in (*FILES, *FOLDERS.values())]
    listed = _git("ls-tree", "-r", "-z", commit, "--", *wanted).decode().split("\0")
    entries = [entry.partition("\t") for entry in listed if entry]
    return {path: _git("cat-file", "blob", about.split()[2]) for about, _, path in entries}


def _of_the_workspace() -> dict[str, bytes]:
    found = [*FILES, *(file for folder in FOLDERS.values() for file in sorted(folder.glob("*")))]
    return {path.as_posix(): path.read_bytes() for path in found if path.is_file()}


@dataclass
class _Reader:
    """Reads what is there, and keeps a line for what is not."""

    files: Mapping[str, bytes]
    missing: list[str] = field(default_factory=list)

    def one(self, path: Path, read: Any) -> dict[str, Any]:
        """A file's content; empty where it is not there or cannot be read."""
        content = self.files.get(path.as_posix())
        if content is None:
            self.missing.append(f"{path}: not there")
            return {}
        return self._read(path.as_posix(), content, read) or {}

    def folder(self, name: str, read: Any) -> dict[str, Any]:
        """The content of a folder's files, by their names without suffix."""
        folder = FOLDERS[name]
        suffix = ".csv" if name == "curves" else ".json"
        mine = {PurePosixPath(path): path for path in sorted(self.files)}
        mine = {p.stem: path for p, path in mine.items() if p.parent == PurePosixPath(folder) and p.suffix == suffix}
        if not mine:
            self.missing.append(f"{folder}/*{suffix}: not there")
        contents = {stem: self._read(path, self.files[path], read) for stem, path in mine.items()}
        return {stem: content for stem, content in contents.items() if content is not None}

    def _read(self, path: str, content: bytes, read: Any) -> Any:
        try:
            return read(content.decode("utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self.missing.append(f"{path}: cannot be read ({first})")
            return None


def _summary(content: bytes, *, where: str) -> pd.DataFrame:
    """summary.csv with its keys as text and whole numbers, "" where a text is missing. Raises UserError."""
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(TEXT_KEYS, str))
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{where} cannot be read ({str(error).strip()}); `dvc repro` makes it anew") from error
    lacking = [column for column in REQUIRED if column not in table]
    if lacking or table.empty:
        fault = f"lacks the column {lacking[0]}" if lacking else "has no rows"
        raise UserError(f"{where} {fault}; `dvc repro` makes it anew")
    if "extractor" not in table:
        table["extractor"] = ""
    table[list(TEXT_KEYS)] = table[list(TEXT_KEYS)].fillna("")
    try:
        return table.astype({"nfe": int, "seed": int})
    except ValueError as error:
        raise UserError(f"{where}: nfe and seed must be whole numbers ({error})") from error


def _mapping(text: str) -> dict[str, Any]:
    values = parse_yaml(text)
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return values


class _Lock(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """libyaml, quick enough for the lock, with the words of YAML 1.2, which DVC writes: `no` and 1e-05."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name for it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Lock.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), ["t", "f"])
_Lock.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[\d.]+[eE][-+]?\d+$"), list("-+.0123456789"))


def _lock(text: str) -> dict[str, Any]:
    return dict(yaml.load(text, _Lock)["stages"])


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _curve(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))[["step", "loss"]].astype(float)


def _versions(text: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip().partition("==") for line in text.splitlines()]
    return {name: version for name, _, version in lines if version}


# --- the command ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Writes reports/compare.html; what makes the comparison unfair is printed, too."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tools.compare",
        description="Compares two states of the pipeline: results, params, curves, stages. Nothing is run.",
        epilog="Each of A and B: a Git revision (HEAD~3, a branch, a tag, a commit), the name of a DVC experiment "
        "(`dvc exp list -A`), or `workspace` for the files as they lie here. "
        f"The page is {PAGE}: one file, no external resources.",
    )
    parser.add_argument("a", nargs="?", default="HEAD", metavar="A", help="default: HEAD")
    parser.add_argument("b", nargs="?", default=WORKSPACE, metavar="B", help=f"default: {WORKSPACE}")
    arguments = parser.parse_args()
    try:
        a, b = read_side(arguments.a), read_side(arguments.b)
        rows = paired(a.summary, b.summary)
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_text(PAGE, render(a, b, rows, created=created))
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename or PAGE}: {error.strerror or error}")
    for text in warnings(a, b, rows):
        print(f"not a fair comparison: {text}")
    print(f"page: {PAGE}")


if __name__ == "__main__":
    main()
