"""The run of one stage."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifm.files import write_json
from ifm.tracking import locallog, store
from ifm.tracking.delivery import Courier
from ifm.tracking.lineage import flatten, lineage_tags, peak_memory

RUN_RECORD_VERSION = 1


@dataclass
class StageRun:
    """The run of one stage. Every method returns at once and is safe to call without a store."""

    stage: str
    run_id: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _courier: Courier | None = None

    def _put(self, op: str, **entry: Any) -> None:
        if self._courier is not None:
            self._courier.put({"op": op, "time": locallog.now(), **entry})

    def log_row(self, row: Mapping[str, float]) -> None:
        """One line of a curve: `step` and its values. Values that are not finite (all steps skipped) are left out."""
        values = {k: float(v) for k, v in row.items() if k != "step" and math.isfinite(float(v))}
        self._put("metrics", step=int(row["step"]), values=values)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Final figures; also kept in run.json. NaN and infinity are left out."""
        clean = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(float(v))}
        self.metrics |= clean
        self._put("metrics", step=0, values=clean)

    def log_tags(self, values: Mapping[str, str]) -> None:
        """Tags that are known only from the work itself; also kept in run.json."""
        self.tags |= values
        self._put("tags", values=dict(values))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A small file (grids, reports), copied at once. Models and arrays belong into DVC's cache."""
        if self._courier is None:
            return
        try:
            kept = self._courier.log.keep(path)
        except OSError as error:
            store.notice(f"{self.stage}: {path} is not logged ({error.strerror or error})")
            return
        self._put("artifact", file=kept, folder=folder)

    def log_model(self, name: str, *, folder: Path, description: Mapping[str, Any]) -> None:
        """Records a model whose files stay in DVC: a LoggedModel with the checksum and the place of the weights."""
        facts = {k: str(v) for k, v in flatten(description).items() if k != "sha256"}
        tags = {"dvc.path": str(folder), "sha256": str(description["sha256"])}
        model = {"name": name, "kind": str(description["kind"]), "tags": tags, "params": facts}
        self.extra["model"] = model  # in run.json: a clone's store gets it too
        self._put("model", **model)


@contextmanager
def stage_run(
    stage: str,
    *,
    params: Mapping[str, Any],
    record: Path | None,
    tags: Mapping[str, str] | None = None,
    inputs: list[dict[str, Any]] | None = None,
) -> Iterator[StageRun]:
    """A run from start to end: FINISHED, FAILED on an error, KILLED on a signal; `record` (run.json) at success.

    inputs: the data sets that it reads, as {name, digest, source, profile, context}.
    """
    run = StageRun(stage, params=store.scrubbed_values(flatten(params)), inputs=inputs or [])
    started = time.time()
    reason = store.unavailable()
    if reason:
        store.notice(reason)
    else:
        _open(run, dict(tags or {}))
    try:
        yield run
        run.timings["stage_seconds"] = time.time() - started
        run.extra["memory"] = peak_memory()
        if record:
            write_json(record, _record(run, started, tags or {}))
    except BaseException as error:
        killed, reason = isinstance(error, KeyboardInterrupt | SystemExit), store.scrubbed(repr(error))[:500]
        run._put("tags", values={"ifm.error": reason})
        _close(run, "KILLED" if killed else "FAILED")
        raise
    run.log_metrics(run.timings | run.extra["memory"])
    _close(run, "FINISHED")


def _open(run: StageRun, tags: dict[str, str]) -> None:
    """Starts the local log and, if there is a store, the run."""
    try:
        log = locallog.LocalLog(locallog.logs_folder() / locallog.new_id(run.stage))
    except OSError as error:
        store.notice(f"off ({locallog.logs_folder()}: {error.strerror or error})")
        return
    run._courier = Courier(log, name=run.stage)
    run.extra["log"] = log.id
    source = {"mlflow.source.name": f"dvc repro {run.stage}", "mlflow.source.type": "PROJECT"}
    start = {
        "op": "start",
        "time": locallog.now(),
        "uri": store.name_in_records(),
        "experiment": store.experiment_name(),
        "name": run.stage,
        "tags": lineage_tags() | source | {"ifm.kind": "stage", "ifm.stage": run.stage} | tags,
    }
    entries = [start, {"op": "params", "values": {k: str(v)[:6000] for k, v in run.params.items()}}]
    if run.inputs:
        entries.append({"op": "inputs", "values": run.inputs})
    run.run_id = run._courier.start(*entries)


def _close(run: StageRun, status: str) -> None:
    if run._courier is not None:
        run._courier.finish({"op": "end", "time": locallog.now(), "status": status})


def _record(run: StageRun, started: float, tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "version": RUN_RECORD_VERSION,
        "stage": run.stage,
        "run_id": run.run_id,
        "tracking_uri": store.name_in_records() if run.run_id else None,
        "started": started,
        "timings": run.timings,
        "params": run.params,
        "metrics": run.metrics,
        "tags": {**tags, **run.tags},
        "inputs": run.inputs,
        **run.extra,
    }
