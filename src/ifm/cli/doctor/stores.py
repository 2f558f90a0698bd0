"""Where results are kept: Git, DVC and its remotes, MLflow's store or server."""

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sqlite3
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ifm import checkout
from ifm.cli.doctor.findings import OK, PROBLEM, SECONDS, WARNING, Finding

EXTRAS = ("s3", "ssh")  # of this package, for DVC's remotes


def dvc(root: Path) -> Iterator[Finding]:
    """Git, DVC's folder, and every remote."""
    if not shutil.which("git"):
        yield Finding("Git", PROBLEM, "not installed; DVC's experiments are commits", "install git")
    else:
        head = ["git", "-C", str(root), "rev-parse", "--verify", "-q", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        if commit:
            yield Finding("Git", OK, f"commit {commit[:10]}")
            if missing := checkout.missing_identity(root):
                text = f"does not know your {' and '.join(missing)}: dvc exp run and sweeps end in an unexpected error"
                yield Finding("Git", WARNING, text, "; ".join(f"git config --global {key} ..." for key in missing))
        else:
            yield Finding("Git", PROBLEM, "this folder is no checkout with a commit", "git clone the project")
    if importlib.util.find_spec("dvc") is None:
        mend = "make setup; single stages work without: python -m pipeline.stages.NAME"
        yield Finding("DVC", WARNING, "not installed: no dvc repro, no sweeps, no sharing", mend)
        return
    if not (root / ".dvc" / "config").is_file():
        yield Finding("DVC", PROBLEM, "this folder has no .dvc/config", "git checkout .dvc, or dvc init")
        return
    yield Finding("DVC", OK, importlib.metadata.version("dvc"))
    yield from remotes(root)


def remotes(root: Path) -> Iterator[Finding]:
    """Whether each remote of DVC's answers."""
    from dvc.config import Config

    config = Config(dvc_dir=str(root / ".dvc"))
    default = config["core"].get("remote")
    if not config["remote"]:
        yield Finding("remote", OK, "none: results stay here (docs/sharing.md)")
    for name, options in config["remote"].items():
        title = f"{name}{' (default)' if name == default else ''}, {plain_url(options['url'])}"
        found: list[Finding] = []
        thread = threading.Thread(target=lambda n=name, t=title, f=found: f.append(_reach(root, n, t)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        yield from found or [
            Finding("remote", PROBLEM, f"{title}: no answer in {SECONDS} s", "check address, network and port")
        ]
    if config["remote"] and default is None:
        yield Finding("remote", WARNING, "none of them is the default", "dvc remote default NAME")


def _reach(root: Path, name: str, title: str) -> Finding:
    """Asks a remote whether its folder is there."""
    from dvc.repo import Repo

    secrets = f"see docs/sharing.md; keys and passwords: dvc remote modify --local {name} ..."
    try:
        with Repo(str(root)) as repo:
            remote = repo.cloud.get_remote(name)
            fs, path = remote.fs, remote.path
            there = fs.exists(path)
            if fs.protocol == "local":
                above = next(p for p in (Path(path), *Path(path).parents) if p.exists())
                if not os.access(above, os.W_OK):
                    return Finding("remote", PROBLEM, f"{title}: cannot be written to", f"check the rights of {above}")
            elif not there and fs.protocol == "s3" and not fs.exists(path.partition("/")[0]):
                return Finding("remote", PROBLEM, f"{title}: no such bucket, or no right to see it", secrets)
            elif not there and fs.protocol in ("http", "https"):  # which takes no answer for a file that is not there
                with suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(title.rpartition(", ")[2], timeout=SECONDS).close()
    except Exception as error:  # each kind of remote has its own
        kind = type(error).__name__
        if kind == "RemoteMissingDepsError" or isinstance(error, ImportError):
            kind = title.rpartition(", ")[2].partition("://")[0]
            mend = f"pip install -e '.[{kind}]' -c constraints.txt" if kind in EXTRAS else f"pip install 'dvc[{kind}]'"
            return Finding("remote", PROBLEM, f"{title}: its package is missing", mend)
        return Finding("remote", PROBLEM, f"{title}: cannot be reached ({kind})", secrets)
    return Finding("remote", OK, f"{title}: answers" + ("" if there else "; nothing was pushed yet"))


def plain_url(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def tracking(root: Path) -> Iterator[Finding]:
    """Whether MLflow's store opens or its server answers."""
    from ifm.tracking import unavailable

    reason = unavailable()
    if reason:
        yield Finding("tracking", WARNING, reason, "the pipeline runs all the same, and logs no runs")
        return
    from ifm.tracking import places, store

    with _in(root):
        uri = store.tracking_uri()
        own = not os.environ.get("MLFLOW_TRACKING_URI")
        file = root / places.STORE if own else places.sqlite_file(uri)
    if file is not None:
        yield from _sqlite(file.absolute() if file.is_absolute() else (root / file).resolve(), root)
    elif uri.partition(":")[0] in ("http", "https"):
        yield _server(plain_url(uri))
    else:
        found: list[Finding] = []
        thread = threading.Thread(target=lambda: found.append(_other_store(uri)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        mend = "check address, network and port, or unset MLFLOW_TRACKING_URI"
        yield from found or [Finding("tracking", PROBLEM, f"{plain_url(uri)}: no answer in {SECONDS} s", mend)]


@contextmanager
def _in(root: Path) -> Iterator[None]:
    """The current folder, for a moment: addresses may be relative to it."""
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def _sqlite(file: Path, root: Path) -> Iterator[Finding]:
    from ifm.tracking import places

    shown = file.relative_to(root) if file.is_relative_to(root) else file
    with _in(root):
        meant = places.sqlite_file(places.address(file))
        if meant is None or meant.resolve() != file.resolve():
            mend = "rename the folder, or set MLFLOW_TRACKING_URI to a store elsewhere"
            yield Finding("tracking", PROBLEM, f"{shown}: its path has characters that an address cannot hold", mend)
            return
    if not file.is_file():
        above = next(folder for folder in file.parents if folder.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield Finding("tracking", PROBLEM, f"{shown}: cannot be made, {above} takes no writes", "check its rights")
        else:
            yield Finding("tracking", OK, f"{shown}: made by the first run")
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            runs = connection.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
            own = file.resolve() == (root / places.STORE).resolve()
            elsewhere = list(places.strays(connection, root)) if own else []
    except sqlite3.Error as error:
        yield Finding("tracking", PROBLEM, f"{shown}: no store of MLflow's ({error})", "move it away, then make track")
        return
    yield Finding("tracking", OK, f"{shown}: {runs} runs")
    for folder in dict.fromkeys(folder for *_, folder in elsewhere):
        left = sum(bool(rest) and (folder / rest[1:]).is_dir() for *_, rest, where in elsewhere if where == folder)
        text = f"this project was at {folder.parent}, or is a copy of it; {left} runs have their artifacts there"
        mend = f"cp -rn {shlex.quote(str(folder))} . brings them; the next run does the rest"
        yield Finding("tracking", WARNING, text, mend if left else "the next run has the store point here")


def _other_store(uri: str) -> Finding:
    """Asks a store of another kind."""
    from ifm.tracking import store

    shown = store.without_secrets(uri)
    try:
        store.ask(uri)
    except Exception as error:  # each kind of store has its own
        return Finding("tracking", PROBLEM, f"{shown}: {store.brief(error)}", "or unset MLFLOW_TRACKING_URI")
    return Finding("tracking", OK, f"{shown}: answers")


def _server(url: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SECONDS):
            return Finding("tracking", OK, f"{url}: answers")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return Finding("tracking", WARNING, f"{url}: wants credentials (status {error.code})", mend)
        return Finding("tracking", PROBLEM, f"{url}: answers with status {error.code}", "is this MLflow's address?")
    except (OSError, ValueError) as error:
        reason = type(getattr(error, "reason", error)).__name__
        mend = "start the server (make ui), or unset MLFLOW_TRACKING_URI"
        return Finding("tracking", PROBLEM, f"{url}: no answer ({reason})", mend)
