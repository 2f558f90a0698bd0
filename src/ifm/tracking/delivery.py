"""From the local log to the store: at once in a separate thread, or later by `ifm track --sync` and the stage `track`.

An entry may be delivered twice but counts once. Runs, models and versions are looked up by their log's name (tag
`ifm.log`) before they are made. Metrics carry the time at which they were logged, and MLflow keeps equal rows once.
Params, tags, data sets, artifacts and ends can be written twice without effect.
"""

import itertools
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ifm.tracking import locallog, store
from ifm.tracking.lineage import SystemMonitor
from ifm.tracking.locallog import Entry, LocalLog

RETRY_SECONDS = 30.0  # between attempts, while a store is away
SAMPLE_SECONDS = 10.0  # between system metrics, as MLflow has it
AFTER = "IFM_TRACKING_AFTER"  # seconds before the first delivery: opening a store takes longer than many a stage's work
CLOSING_SECONDS = 300.0  # the longest wait for a slow store at a run's end
_PARAMS, _METRICS = 100, 1000  # the most that MLflow takes at a time


class Receiver:
    """One run in one store."""

    def __init__(self, client: Any, experiment: str, log: str, folder: Path) -> None:
        """log: its name; folder: where its artifacts are."""
        self._client, self._experiment, self._log, self._folder = client, experiment, log, folder
        self.run_id: str | None = store.find_run(client, experiment, f"tags.`ifm.log` = '{log}'")
        self.model_id: str | None = None

    def take(self, entries: list[Entry]) -> None:
        """Delivers entries of one kind: see `batches`."""
        getattr(self, f"_{entries[0]['op']}")(*entries)

    def _start(self, entry: Entry) -> None:
        if self.run_id is None:
            tags = entry["tags"] | {"ifm.log": self._log}
            run = self._client.create_run(self._experiment, start_time=entry["time"], run_name=entry["name"], tags=tags)
            self.run_id = run.info.run_id

    def _params(self, entry: Entry) -> None:
        log_params(self._client, self.run_id, entry["values"])

    def _metrics(self, *entries: Entry) -> None:
        log_metrics(
            self._client, self.run_id, [(k, v, e["time"], e["step"]) for e in entries for k, v in e["values"].items()]
        )

    def _tags(self, entry: Entry) -> None:
        log_tags(self._client, self.run_id, entry["values"])

    def _inputs(self, entry: Entry) -> None:
        log_inputs(self._client, self.run_id, entry["values"])

    def _artifact(self, entry: Entry) -> None:
        self._client.log_artifact(self.run_id, str(self._folder / entry["file"]), entry["folder"])

    def _model(self, entry: Entry) -> None:
        tags = entry["tags"] | {"ifm.log": self._log}
        self.model_id = log_external_model(
            self._client,
            self._experiment,
            self.run_id,
            name=entry["name"],
            tags=tags,
            params=entry["params"],
            kind=entry["kind"],
        )

    def _end(self, entry: Entry) -> None:
        self._client.set_terminated(self.run_id, entry["status"], end_time=entry["time"])


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Groups neighbouring metrics; everything else comes one by one."""
    metrics: list[Entry] = []
    for entry in entries:
        if entry["op"] == "metrics":
            metrics.append(entry)
            continue
        if metrics:
            yield metrics
        metrics = []
        yield [entry]
    if metrics:
        yield metrics


def log_params(client: Any, run_id: str, values: dict[str, Any]) -> None:
    from mlflow.entities import Param

    rows = [Param(k, str(v)[:6000]) for k, v in values.items()]
    for i in range(0, len(rows), _PARAMS):
        client.log_batch(run_id, params=rows[i : i + _PARAMS])


def log_metrics(client: Any, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    """rows: (name, value, milliseconds since the epoch, step)."""
    from mlflow.entities import Metric

    metrics = [Metric(k, float(v), t, step) for k, v, t, step in rows]
    for i in range(0, len(metrics), _METRICS):
        client.log_batch(run_id, metrics=metrics[i : i + _METRICS])


def log_tags(client: Any, run_id: str, values: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    rows = [RunTag(k, str(v)) for k, v in values.items()]
    for i in range(0, len(rows), _PARAMS):
        client.log_batch(run_id, tags=rows[i : i + _PARAMS])


def log_inputs(client: Any, run_id: str, values: list[dict[str, Any]]) -> None:
    """values: {name, digest, source, profile, context} of each data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                Dataset(
                    name=value["name"],
                    digest=value["digest"],
                    source_type="dvc",
                    source=json.dumps({"uri": value["source"]}),
                    profile=json.dumps(value["profile"]) if value["profile"] else None,
                ),
                tags=[InputTag("mlflow.data.context", value["context"])],
            )
            for value in values
        ],
    )


def log_outputs(client: Any, run_id: str, model_ids: Iterable[str]) -> None:
    """Adds to a run the models that it made and that are not yet recorded."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    have = {output.model_id for output in outputs.model_outputs} if outputs else set()
    new = [LoggedModelOutput(model_id, step=0) for model_id in model_ids if model_id not in have]
    if new:
        client.log_outputs(run_id, new)


def log_external_model(
    client: Any, experiment: str, run_id: str, *, name: str, tags: dict[str, str], params: dict[str, str], kind: str
) -> str:
    """Finds or makes the LoggedModel of a run whose files stay in DVC; returns its id.

    mlflow.create_external_model makes the same, but cannot find what an interrupted call left.
    """
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import get_external_mlflow_model_spec

    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' and name = '{name}'", max_results=1)
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment,
            name=name,
            source_run_id=run_id,
            tags=tags | {"mlflow.model.isExternal": "true"},
            params=params,
            model_type=kind,
        )
    )
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as temporary:
            get_external_mlflow_model_spec(model).save(str(Path(temporary) / MLMODEL_FILE_NAME))
            client.log_model_artifacts(model.model_id, temporary)
        client.finalize_logged_model(model.model_id, "READY")
    log_outputs(client, run_id, [model.model_id])
    return model.model_id


class Courier:
    """Writes entries to the local log and brings them to the store in the background.

    `put` never waits for the store. If the store fails, delivery is tried again now and then. Undelivered entries stay
    in the log at the end.
    """

    def __init__(self, log: LocalLog, *, name: str) -> None:
        self.log, self._name = log, name
        self.receiver: Receiver | None = None
        self._entries: deque[Entry] = deque()  # written, not delivered
        self._delivered = 0
        self._writing = threading.Lock()
        self._began = self._retry_at = self._sample_at = 0.0
        self._samples, self._failing, self._lost = 0, False, False
        self._wake, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._monitor = SystemMonitor()

    def start(self, *entries: Entry) -> str | None:
        """Writes the first entries and tries to deliver them at once. Returns the run's id, or None without a store."""
        for entry in entries:
            self.put(entry)
        self._began = time.monotonic()
        self._retry_at = self._began + float(os.environ.get(AFTER) or 0)
        self._deliver()
        self._sample_at = self._began + SAMPLE_SECONDS
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()
        return self.receiver.run_id if self.receiver else None

    def put(self, entry: Entry) -> None:
        with self._writing:
            try:
                self.log.append(entry)
            except OSError as error:
                if not self._lost:
                    why = error.strerror or error
                    store.notice(f"{self._name}: {locallog.shown(self.log.folder)} cannot be written ({why})")
                self._lost = True
            self._entries.append(entry)
        self._wake.set()

    def finish(self, entry: Entry) -> None:
        """Writes the last entry, delivers what it can, and closes the log."""
        if time.monotonic() - self._began > 1:
            self._sample()
        self.put(entry)
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            store.notice(f"{self._name}: the store is slow; the rest is kept, later: `ifm track --sync`")
            return  # the log is still in the thread's hands, and is whole on disk
        if self._entries:
            if self._delivered:
                self.log.mark(self._delivered)
            self.log.close()
        else:
            self.log.remove()

    def _work(self) -> None:
        while not self._closing:
            until = min(self._sample_at, self._retry_at) if self._failing else self._sample_at
            self._wake.wait(max(0.0, until - time.monotonic()))
            self._wake.clear()
            if time.monotonic() >= self._sample_at:
                self._sample()
                self._sample_at = time.monotonic() + SAMPLE_SECONDS
            self._deliver()
        self._deliver()

    def _sample(self) -> None:
        try:
            values = self._monitor.sample()
        except Exception as error:  # of a driver: not worth a run's log
            values = {}
            store.notice(f"{self._name}: no system metrics ({store.brief(error)})")
        if values:
            self.put({"op": "metrics", "time": locallog.now(), "step": self._samples, "values": values})
            self._samples += 1

    def _deliver(self) -> None:
        """Delivers everything written so far, unless the store failed a moment ago."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self.receiver is None:
                client, experiment = store.connect()
                store.close_stale(client, experiment)
                self.receiver = Receiver(client, experiment, self.log.id, self.log.folder)
            while self._entries:
                with self._writing:
                    waiting = list(itertools.islice(self._entries, 200))
                batch = next(batches(waiting))
                self.receiver.take(batch)
                for _ in batch:
                    self._entries.popleft()
                self._delivered += len(batch)
        except Exception as error:  # whatever the store raises: the work goes on
            if not self._failing:
                uri, later = store.without_secrets(store.tracking_uri()), "later: `ifm track --sync`"
                kept = f"goes on, with its log in {locallog.shown(self.log.folder)}; {later}"
                store.notice(f"{self._name}: the store at {uri} failed ({store.brief(error)}); {kept}")
            self._failing, self._retry_at = True, time.monotonic() + RETRY_SECONDS
        else:
            if self._failing:
                store.notice(f"{self._name}: the store is back, and has everything")
            self._failing = False
