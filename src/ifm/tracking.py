"""Runs in MLflow: one for every stage that executes, one parent for every state of the pipeline.

The only module that imports mlflow, and only when a run starts. Where mlflow is not installed, or IFM_TRACKING=off,
everything here does nothing, with a notice. Tracking never stops the work: a failing store is reported once.
"""

import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ifm.files import write_json

RUN_RECORD_VERSION = 1
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs, not on traces


def project_root() -> Path:
    """The main checkout: DVC names it in DVC_ROOT (in experiments too); otherwise the current folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """A URI without user and password, as it may be shared: run.json travels with DVC's cache."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def notice(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr, flush=True)


def unavailable() -> str | None:
    """Why nothing is tracked, or None where MLflow is at hand."""
    if os.environ.get("IFM_TRACKING", "on").lower() in ("off", "0", "false", "no"):
        return "off (IFM_TRACKING)"
    if importlib.util.find_spec("mlflow") is None:
        return "off (mlflow is not installed)"
    return None


@contextmanager
def _locked() -> Iterator[None]:
    """One process of this project at a time."""
    from filelock import FileLock

    lock = project_root() / ".ifm" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def _brief(error: Exception) -> str:
    """The first line of what a store says: SQLAlchemy appends the statement and a link."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@functools.cache
def _connect() -> tuple[Any, str]:
    """The client and the experiment's id.

    Under a file lock: processes that touch a fresh SQLite store together break its migrations for good.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # MLflow tries seven times over minutes: too long for every stage to wait for a server that is not there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow
    from mlflow import MlflowClient

    root, uri = project_root(), tracking_uri()
    mlflow.set_tracking_uri(uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ifm")
    with _locked():
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            local = uri.startswith("sqlite:")
            location = (root / "mlartifacts").as_uri() if local else None
            return client, client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
    if experiment.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment {name!r} is deleted; restore it or set MLFLOW_EXPERIMENT_NAME")
    return client, experiment.experiment_id


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def digest(value: Any) -> str:
    """A short content hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def lineage_tags() -> dict[str, str]:
    """Where a run comes from: Git commit, DVC experiment, host and process."""
    tags = {
        "ifm.root": str(project_root()),
        "ifm.host": socket.gethostname(),
        "ifm.pid": str(os.getpid()),
        "ifm.python": platform.python_version(),
    }
    named = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV", "dvc.stage": "DVC_STAGE"}
    tags |= {tag: os.environ[variable] for tag, variable in named.items() if os.environ.get(variable)}
    commit = git_commit()
    return tags | ({"mlflow.source.git.commit": commit.split()[0]} if commit else {})


def peak_memory() -> dict[str, float]:
    """The most memory this process has held, in MB: `peak_memory_mb`, and with a GPU in use `peak_gpu_memory_mb`."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    found = {"peak_memory_mb": most / (1e6 if sys.platform == "darwin" else 1e6 / 1024)}
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_initialized():
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def git_commit() -> str | None:
    """The checked-out commit, with " + uncommitted changes" where that is so; None outside Git."""
    import subprocess

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        # Outputs that Git holds (dvc.lock, metrics) change while the pipeline runs: they are no change of the source.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (commit + (" + uncommitted changes" if changed else "")) if commit else None


@dataclass
class StageRun:
    """The run of one stage. Every method is safe to call whether or not a store is behind it."""

    stage: str
    run_id: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _client: Any = None
    _experiment: str | None = None

    def _safely(self, action: Callable[[], Any]) -> Any:
        if self._client is None:
            return None
        try:
            return action()
        except Exception as error:  # whatever the store raises: the work goes on
            notice(f"{self.stage}: the store failed ({_brief(error)}); not tracking further")
            self._client = None
            return None

    def log_row(self, row: Mapping[str, float]) -> None:
        """One line of a curve: `step` and the values at it."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(row["step"])
        rows = [Metric(k, float(v), now, step) for k, v in row.items() if k != "step"]
        self._safely(lambda: self._client.log_batch(self.run_id, metrics=rows))

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Final figures; also kept in run.json, which holds no NaN or infinity: those are left out."""
        clean = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(float(v))}
        self.metrics |= clean
        if self._client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            rows = [Metric(k, v, now, 0) for k, v in clean.items()]
            self._safely(lambda: _log_metrics(self._client, self.run_id, rows))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A small file (grids, reports); models and arrays belong to DVC's cache."""
        self._safely(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def log_model(self, name: str, *, folder: Path, description: Mapping[str, Any]) -> None:
        """Records a model whose bytes stay in DVC: a LoggedModel with the checksum and where the weights are."""

        def action() -> None:
            import mlflow

            tags = {"dvc.path": str(folder), "sha256": str(description["sha256"])}
            params = {k: str(v) for k, v in flatten(description).items() if k != "sha256"}
            model = mlflow.create_external_model(
                name=name,
                source_run_id=self.run_id,
                tags=tags,
                params=params,
                model_type=description["kind"],
                experiment_id=self._experiment,
            )
            self.extra["model_id"] = model.model_id

        self._safely(action)


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, Any], record: Path | None, tags: Mapping[str, str] | None = None
) -> Iterator[StageRun]:
    """A run from start to end: FINISHED, FAILED on an error, KILLED on a signal; `record` (run.json) at success."""
    run = StageRun(stage, params=flatten(params))
    started = time.time()
    reason = unavailable()
    if reason:
        notice(reason)
    else:
        try:
            _open(run, dict(tags or {}))
        except Exception as error:
            notice(f"no store at {without_secrets(tracking_uri())} ({_brief(error)}); goes on without")
            run._client = run.run_id = None
    try:
        yield run
        run.timings["stage_seconds"] = time.time() - started
        run.extra["memory"] = peak_memory()
        if record:
            write_json(record, _record(run, started, tags or {}))
    except BaseException as error:
        killed, reason = isinstance(error, KeyboardInterrupt | SystemExit), repr(error)[:500]
        run._safely(lambda: run._client.set_tag(run.run_id, "ifm.error", reason))
        run._safely(lambda: run._client.set_terminated(run.run_id, "KILLED" if killed else "FAILED"))
        raise
    if run._client is not None:
        run.log_metrics(run.timings | run.extra["memory"])
        run._safely(lambda: run._client.set_terminated(run.run_id, "FINISHED"))


def _open(run: StageRun, tags: dict[str, str]) -> None:
    run._client, run._experiment = _connect()
    _close_stale(run._client, run._experiment)
    source = {"mlflow.source.name": f"dvc repro {run.stage}", "mlflow.source.type": "PROJECT"}
    all_tags = lineage_tags() | source | {"ifm.kind": "stage", "ifm.stage": run.stage} | tags
    created = run._client.create_run(run._experiment, run_name=run.stage, tags=all_tags)
    run.run_id = created.info.run_id
    _log_params(run._client, run.run_id, run.params)


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    rows = [Param(k, str(v)[:6000]) for k, v in params.items()]
    for i in range(0, len(rows), 100):  # MLflow takes a hundred at a time
        client.log_batch(run_id, params=rows[i : i + 100])


def _log_metrics(client: Any, run_id: str, rows: list) -> None:
    for i in range(0, len(rows), 1000):  # MLflow takes a thousand at a time
        client.log_batch(run_id, metrics=rows[i : i + 1000])


def _close_stale(client: Any, experiment: str) -> None:
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


def _record(run: StageRun, started: float, tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "version": RUN_RECORD_VERSION,
        "stage": run.stage,
        "run_id": run.run_id,
        "tracking_uri": without_secrets(tracking_uri()) if run.run_id else None,
        "started": started,
        "timings": run.timings,
        "params": run.params,
        "metrics": run.metrics,
        "tags": dict(tags),
        **run.extra,
    }


@dataclass(frozen=True)
class PipelineState:
    """What a parent run shows: one configuration and its results."""

    key: str  # equal for equal parameters and results
    name: str
    params: dict[str, Any]
    metrics: dict[str, float]
    records: list[dict[str, Any]]  # every stage's run.json
    curves: dict[str, list[dict[str, float]]]  # stage -> rows with `step`
    artifacts: list[Path]
    tags: dict[str, str]


def track_state(state: PipelineState) -> dict[str, Any]:
    """Makes (or finds) the parent run of a state and ties the stages' runs to it; returns {run_id, tracking_uri, ...}.

    A stage that came from DVC's run cache, or whose run lives in another store, has no run here: one is made from its
    record. Does nothing but say so where there is no store.
    """
    reason = unavailable()
    if reason:
        notice(reason)
    else:
        try:
            client, experiment = _connect()
            with _locked():  # experiments that run side by side share stages: each is recreated once
                return _track(client, experiment, state)
        except Exception as error:
            uri = without_secrets(tracking_uri())
            notice(f"the store at {uri} failed ({_brief(error)}); later: `dvc repro --force track`")
    return {"run_id": None, "tracking_uri": None, "state": state.key}


def _track(client: Any, experiment: str, state: PipelineState) -> dict[str, Any]:
    from mlflow.entities import Metric, RunTag

    parent = _find(client, experiment, f"tags.`ifm.kind` = 'pipeline' and tags.`ifm.state` = '{state.key}'")
    if parent is None:
        tags = lineage_tags() | {"ifm.kind": "pipeline", "ifm.state": state.key} | state.tags
        parent = client.create_run(experiment, run_name=state.name, tags=tags).info.run_id
    _log_params(client, parent, flatten(state.params))  # the same again for a parent that was there: no change
    children = {
        r["stage"]: _child(client, experiment, r, state.curves.get(r["stage"], []), parent) for r in state.records
    }
    now = int(time.time() * 1000)
    _log_metrics(client, parent, [Metric(k, float(v), now, 0) for k, v in state.metrics.items()])
    client.log_batch(parent, tags=[RunTag(f"stage.{stage}.run_id", run_id) for stage, run_id in children.items()])
    for path in state.artifacts:
        client.log_artifact(parent, str(path))
    client.set_terminated(parent, "FINISHED")
    return {"run_id": parent, "tracking_uri": without_secrets(tracking_uri()), "state": state.key, "children": children}


def _find(client: Any, experiment: str, query: str) -> str | None:
    found = client.search_runs([experiment], query, max_results=1)
    return found[0].info.run_id if found else None


def _child(client: Any, experiment: str, record: dict[str, Any], curve: list[dict[str, float]], parent: str) -> str:
    """The stage's run in this store: its own, the one made from the same record before, or a new one."""
    from mlflow.exceptions import MlflowException

    run_id = record["run_id"]
    try:
        if not run_id:
            raise MlflowException("never tracked")
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise MlflowException("deleted")
    except MlflowException:
        origin = run_id or digest(record)
        run_id = _find(client, experiment, f"tags.`ifm.recreated_from` = '{origin}'")
        if run_id is None:
            run_id = _recreate(client, experiment, record, curve, origin)
        run = client.get_run(run_id)
    if "mlflow.parentRunId" not in run.data.tags:
        client.set_tag(run_id, "mlflow.parentRunId", parent)
    return run_id


def _recreate(client: Any, experiment: str, record: dict[str, Any], curve: list[dict[str, float]], origin: str) -> str:
    from mlflow.entities import Metric

    started = int(record["started"] * 1000)
    ended = started + int(record["timings"].get("stage_seconds", 0) * 1000)
    tags = {"ifm.kind": "stage", "ifm.stage": record["stage"], "ifm.recreated_from": origin} | record["tags"]
    run_id = client.create_run(experiment, start_time=started, run_name=record["stage"], tags=tags).info.run_id
    rows = [Metric(k, float(v), started, int(row["step"])) for row in curve for k, v in row.items() if k != "step"] + [
        Metric(k, float(v), ended, 0) for k, v in (record["metrics"] | record["timings"]).items()
    ]
    _log_params(client, run_id, record["params"])
    _log_metrics(client, run_id, rows)
    client.set_terminated(run_id, "FINISHED", end_time=ended)
    return run_id
