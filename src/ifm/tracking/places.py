"""The places of the project's own store and its artifacts, also after the folder was renamed, moved or copied."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ifm import checkout

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
MLFLOWS = "mlruns"  # artifacts of MLflow's own experiment
OWN = f"sqlite:///{STORE}"  # the project's own store, as logs and records name it: they travel with the project
_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
SECONDS = 20.0  # for a database that another process writes to
# Table, key, column, and what stands behind the folder of artifacts in it.
PLACES = (
    ("experiments", "experiment_id", "artifact_location", ""),
    ("runs", "run_uuid", "artifact_uri", "/{key}/artifacts"),
    ("logged_models", "model_id", "artifact_location", "/models/{key}/artifacts"),
)


def project_root() -> Path:
    """The main checkout, which DVC names in DVC_ROOT (in experiments too); else the one around the current folder.

    Outside of any checkout: the current folder.
    """
    return Path(os.environ.get("DVC_ROOT") or checkout.find() or Path.cwd())


def in_project() -> bool:
    """Whether the current folder is in a project. If not, nothing may be created in it."""
    return bool(os.environ.get("DVC_ROOT")) or checkout.find() is not None


def address(file: Path) -> str:
    """SQLAlchemy's address of a SQLite file, for a path of any characters.

    `%` and `?` have a meaning in an address, which differs between versions, and MLflow makes folders from the literal
    text. A path with one of them is therefore written relative to the current folder, where it rarely has one.
    """
    path = str(file)
    if re.search("[%?]", path):
        path = os.path.relpath(file)
    return "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLAlchemy address; None if it is not that of a SQLite file."""
    if not re.match(r"sqlite(\+\w+)?:", uri):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return None if not name or name == ":memory:" or name.startswith("file:") else Path(name)


@contextmanager
def defaults(root: Path) -> Iterator[None]:
    """Makes MLflow record the folder of its own experiment as an address: it puts a path into SQL without escaping."""
    os.environ[_ROOT] = (root / MLFLOWS).as_uri()
    try:
        yield
    finally:
        os.environ.pop(_ROOT, None)


def check(file: Path) -> None:
    """Raises OSError or sqlite3.Error at once if a file cannot be opened. MLflow would try for 100 seconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=SECONDS)) as connection:
        connection.execute("select count(*) from sqlite_master").fetchone()


def strays(connection: sqlite3.Connection, root: Path) -> Iterator[tuple[str, str, str, Path]]:
    """(table, key, rest, folder) of all rows whose artifacts are in the folder `mlartifacts` of another project.

    rest: the path below that folder. Artifacts that a user put elsewhere are left out.
    """
    here = (root / ARTIFACTS).as_uri()
    for table, key, column, behind in PLACES:
        # By SQLite, as there may be a hundred thousand runs and no stray.
        elsewhere = f"{column} like 'file:/%' and substr({column}, 1, ?) not in (?, ?)"
        query = f"select {key}, {column} from {table} where {elsewhere}"
        for name, location in connection.execute(query, (len(here) + 1, here, f"{here}/")).fetchall():
            rest = behind.format(key=name)
            base = location.removesuffix(rest)
            if location.endswith(rest) and base != here and base.endswith(f"/{ARTIFACTS}"):
                yield table, name, rest, Path(url2pathname(urlsplit(base).path))


def take_along(file: Path, root: Path) -> list[str]:
    """Makes a project's own store keep its artifacts in the project's folder. Reports what it found elsewhere.

    A run whose artifacts are still only in the old folder keeps pointing there.
    """
    said: dict[Path, int] = {}
    here = (root / ARTIFACTS).as_uri()
    columns = {table: (key, column) for table, key, column, _ in PLACES}
    with closing(sqlite3.connect(file, timeout=SECONDS)) as connection, connection:
        found = list(strays(connection, root))
        for folder in dict.fromkeys(folder for table, _, _, folder in found if table == "experiments"):
            said[folder] = 0
            _defaults(connection, folder.parent, root)
        for table, name, rest, folder in found:
            if rest and (folder / rest[1:]).is_dir() and not (root / ARTIFACTS / rest[1:]).is_dir():
                if folder in said:
                    said[folder] += 1
                continue
            key, column = columns[table]
            connection.execute(f"update {table} set {column} = ? where {key} = ?", (here + rest, name))
    lines = []
    for folder, count in said.items():
        left = f"; those of {count} earlier runs are still there: copy them to {root / ARTIFACTS}" if count else ""
        lines.append(f"the store kept its artifacts in {folder}, and keeps them in this project now{left}")
    return lines


def _defaults(connection: sqlite3.Connection, old: Path, root: Path) -> None:
    """The same for MLflow's own experiment, `Default`."""
    query = "update experiments set artifact_location = ? where artifact_location in (?, ?)"
    before = old / MLFLOWS / "0"
    connection.execute(query, ((root / MLFLOWS / "0").as_uri(), str(before), before.as_uri()))
