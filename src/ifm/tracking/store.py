"""The MLflow store: its address, how it is opened, and how its secrets are kept out of messages."""

import functools
import importlib.util
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ifm.errors import in_a_line
from ifm.tracking import places
from ifm.tracking.places import project_root

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the UI opens on runs, not on traces
    "mlflow.note.content": (
        "One row for each state of the pipeline (tag `ifm.kind = pipeline`): all its parameters and final figures. "
        "Below it, one run for each stage, with curves, system metrics, grids and data. A search for "
        "`tags.\"ifm.kind\" = 'pipeline'` leaves the states alone."
    ),
}
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the project's folder. A relative SQLite file is relative to that folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or places.OWN
    relative = re.fullmatch(r"sqlite:///(?!/|file:|:memory:)([^?]+)", given)
    return places.address(project_root() / unquote(relative[1])) if relative else given


def is_own(uri: str) -> bool:
    """Whether an address is that of the project's own store."""
    file = places.sqlite_file(uri)
    return file is not None and file.resolve() == (project_root() / places.STORE).resolve()


def name_in_records() -> str:
    """The store's name in logs and records, which move with the project and reach everyone who pulls its cache."""
    uri = tracking_uri()
    return places.OWN if is_own(uri) else without_secrets(uri)


def without_secrets(uri: str) -> str:
    """A URI without user, password and query, fit to be shared: run.json is in DVC's cache."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def scrubbed(text: str) -> str:
    """A text without users and passwords of URIs, and without the store's password or token."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    text = re.sub(r"(?i)\b(password|passwd|token|secret|api_key|sig)=[^&\s'\"]+", r"\1=...", text)
    known = [os.environ.get(name) for name in _SECRET_VARIABLES] + [urlsplit(tracking_uri()).password]
    for secret in filter(None, known):
        text = text.replace(secret, "...")
    return text


def scrubbed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, with texts `scrubbed`."""
    return {name: scrubbed(value) if isinstance(value, str) else value for name, value in values.items()}


def brief(error: Exception) -> str:
    """The first line of a store's error, with MLflow's advice at its end: SQLAlchemy appends a statement."""
    return f"{type(error).__name__}: {in_a_line(scrubbed((str(error).splitlines() or [''])[0]))}"


def notice(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr, flush=True)


def unavailable() -> str | None:
    """Why nothing is tracked, or None if MLflow is available."""
    if os.environ.get("IFM_TRACKING", "on").lower() in ("off", "0", "false", "no"):
        return "off (IFM_TRACKING)"
    if importlib.util.find_spec("mlflow") is None:
        return "off (mlflow is not installed)"
    return None


@contextmanager
def locked() -> Iterator[None]:
    """Admits one process of this project at a time. Outside of a project, with a server, there is nothing to lock."""
    from filelock import FileLock

    if not places.in_project() and not is_own(tracking_uri()):
        yield
        return
    lock = project_root() / ".ifm" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ifm"


def quiet() -> None:
    """Sets up MLflow, unless the environment says otherwise: no telemetry, no long waits, few messages.

    Call it before mlflow is imported.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # MLflow tries seven times over minutes: too long to wait for a server that is not there. What it misses is kept.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)


@functools.cache
def connect(name: str | None = None) -> tuple[Any, str]:
    """The client and the id of the experiment (default: `experiment_name()`), which is made if it is missing.

    This holds a file lock: processes that open a fresh SQLite store at the same time break its migrations for good.
    """
    quiet()
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    root, uri, name = project_root(), tracking_uri(), name or experiment_name()
    file = places.sqlite_file(uri)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    # MLflow has written the address there, which may be a relative one.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if given is not None:
        os.environ["MLFLOW_TRACKING_URI"] = given
    with locked():
        if file is not None:
            places.check(file)
        with places.defaults(root) if file is not None else nullcontext():
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(name)
        if is_own(uri):
            for line in places.take_along(file, root):
                notice(line)
        if experiment is None:
            location = (root / places.ARTIFACTS).as_uri() if file is not None else None
            try:
                return client, client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
            except MlflowException:  # another machine was quicker
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment {name!r} is deleted; restore it or set MLFLOW_EXPERIMENT_NAME")
    return client, experiment.experiment_id


def ask(uri: str) -> None:
    """Asks the store for an answer without making anything. Raises the error of the database or of MLflow."""
    quiet()
    if uri.partition(":")[0].partition("+")[0] in ("postgresql", "mysql", "mssql"):
        import sqlalchemy

        sqlalchemy.create_engine(uri).connect().close()
    else:
        import mlflow

        mlflow.MlflowClient(uri).search_experiments(max_results=1)


def find_run(client: Any, experiment: str, query: str) -> str | None:
    """The id of the newest run that matches a query."""
    found = client.search_runs([experiment], query, max_results=1)
    return found[0].info.run_id if found else None


def close_stale(client: Any, experiment: str) -> None:
    """Ends runs that a killed process of this host left RUNNING."""
    host = socket.gethostname()
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`ifm.host` = '{host}'"):
        pid = run.data.tags.get("ifm.pid", "")
        if pid.isdigit() and not _alive(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
