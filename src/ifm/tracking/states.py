"""The parent run of a state of the pipeline: one row to compare, with its stages' runs below it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ifm.tracking import naming, registry, store
from ifm.tracking.delivery import log_external_model, log_inputs, log_metrics, log_outputs, log_params, log_tags
from ifm.tracking.lineage import digest, flatten
from ifm.tracking.locallog import Entry, LocalLog, now

# MLflow's table asks for the registered models of those rows alone that have this tag, and else shows "-" under Models.
HISTORY = "mlflow.log-model.history"


@dataclass(frozen=True)
class ModelRecord:
    """A trained model of a state, for the registry."""

    registered: str  # e.g. ifm-flow-ve
    stage: str  # whose run.json describes it, e.g. flow-ve
    prefix: str  # of its figures after the slash, e.g. ve-flow-
    md5: str | None  # of its folder in DVC's cache


@dataclass(frozen=True)
class PipelineState:
    """The content of a parent run: one configuration and its results."""

    key: str  # equal for equal parameters and results
    name: str  # data and dynamics: what the row's name begins with
    params: dict[str, Any]
    metrics: dict[str, float]
    records: list[dict[str, Any]]  # every stage's run.json
    curves: dict[str, list[dict[str, float]]]  # stage -> rows with `step`
    artifacts: list[Path]
    tags: dict[str, str]
    inputs: list[dict[str, Any]] = field(default_factory=list)  # data sets: {name, digest, source, profile, context}
    models: list[ModelRecord] = field(default_factory=list)


def to_entry(state: PipelineState, log: LocalLog) -> Entry:
    """A state as an entry of the local log, with its artifacts copied."""
    kept = [log.keep(path) for path in state.artifacts]
    return {
        "op": "state",
        "time": now(),
        "uri": store.name_in_records(),
        "experiment": store.experiment_name(),
        "state": asdict(replace(state, artifacts=[])) | {"artifacts": kept},
    }


def from_entry(entry: Entry, folder: Path) -> PipelineState:
    """The state of an entry in the log `folder`."""
    values = dict(entry["state"])
    models = [ModelRecord(**model) for model in values.pop("models")]
    artifacts = [folder / path for path in values.pop("artifacts")]
    return PipelineState(**values, models=models, artifacts=artifacts)


def track(client: Any, experiment: str, state: PipelineState) -> dict[str, Any]:
    """Makes, finds or completes the parent run and everything below it. Returns {run_id, children, ...}.

    A stage from DVC's run cache, or with a run in another store, has no run here. One is made from its record.
    """
    parent = store.find_run(client, experiment, f"tags.`ifm.kind` = 'pipeline' and tags.`ifm.state` = '{state.key}'")
    started, ended = _span(state.records)
    if parent is None:
        tags = {"ifm.kind": "pipeline", "ifm.state": state.key, naming.TITLE: state.name} | state.tags
        parent = client.create_run(experiment, run_name=state.name, start_time=started, tags=tags).info.run_id
    log_params(client, parent, flatten(state.params))
    children, models = {}, {}
    for record in state.records:
        stage = record["stage"]
        children[stage] = _child(client, experiment, record, state.curves.get(stage, []), parent)
        if "model" in record:
            models[stage] = log_external_model(client, experiment, children[stage], **_model(record))
    if state.inputs:
        log_inputs(client, parent, state.inputs)
    log_outputs(client, parent, models.values())
    _log_figures(client, parent, state, models)
    log_tags(client, parent, {f"stage.{stage}.run_id": run_id for stage, run_id in children.items()})
    for path in state.artifacts:
        client.log_artifact(parent, str(path))
    versions, name = {}, naming.rename(client, experiment, parent)
    for model in state.models:
        if model.stage in models:
            version = registry.add_version(
                client,
                model.registered,
                state=state.key,
                run_id=parent,
                model_id=models[model.stage],
                md5=model.md5,
                description=name,
                tags=_version_tags(state, model),
            )
            versions[model.registered] = version
    if versions:
        client.set_tag(parent, HISTORY, "[]")
    if client.get_run(parent).info.status != "FINISHED":  # tracked again, it keeps its end
        client.set_terminated(parent, "FINISHED", end_time=ended)
    uri = store.name_in_records()
    return {"run_id": parent, "tracking_uri": uri, "state": state.key, "children": children, "versions": versions}


def _span(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Start and end of a state, milliseconds since the epoch: its last stage's end, and before it what all stages took.

    Stages may be days apart, where some came from the cache, or run side by side: the row shows what was spent.
    """
    taken = [float(record["timings"].get("stage_seconds", 0)) for record in records]
    ends = [record["started"] + seconds for record, seconds in zip(records, taken, strict=True)]
    end = max(ends, default=now() / 1000)
    return int(1000 * max(end - sum(taken), 0)), int(1000 * end)


def _log_figures(client: Any, parent: str, state: PipelineState, models: Mapping[str, str]) -> None:
    """Logs the final figures that the parent lacks. Figures of a model are attached to the model."""
    from mlflow.entities import Metric

    have = client.get_run(parent).data.metrics
    of = {model.prefix: models[model.stage] for model in state.models if model.stage in models}
    time, rows = now(), []
    for name, value in state.metrics.items():
        if have.get(name) != float(value):
            about = name.rpartition("/")[2]
            model_id = next((i for prefix, i in of.items() if about.startswith(prefix)), None)
            rows.append(Metric(name, float(value), time, 0, model_id=model_id))
    for i in range(0, len(rows), 1000):
        client.log_batch(parent, metrics=rows[i : i + 1000])


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    model = record["model"]
    log = {"ifm.log": record["log"]} if record.get("log") else {}
    return {"name": model["name"], "kind": model["kind"], "tags": model["tags"] | log, "params": model["params"]}


def _version_tags(state: PipelineState, model: ModelRecord) -> dict[str, str]:
    record = next(record for record in state.records if record["stage"] == model.stage)
    shared = ("data", "protocol", "warnings", "mlflow.source.git.commit", "git.uncommitted", "dvc.exp_name")
    found = {name.removeprefix("mlflow.source."): state.tags[name] for name in shared if name in state.tags}
    return found | record["model"]["tags"]


def _child(client: Any, experiment: str, record: dict[str, Any], curve: list[dict[str, float]], parent: str) -> str:
    """The stage's run in this store: its own, one made earlier from the same record, or a new one."""
    run = _existing(client, record["run_id"])
    if run is None and record.get("log"):
        run = _existing(client, store.find_run(client, experiment, f"tags.`ifm.log` = '{record['log']}'"))
    run = run or _recreated(client, experiment, record, curve)
    if "mlflow.parentRunId" not in run.data.tags:
        client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    return run.info.run_id


def _existing(client: Any, run_id: str | None) -> Any:
    """The run with that id, if it exists and is not deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise  # a store that fails has not said that the run is gone
        return None
    return None if run.info.lifecycle_stage == "deleted" else run


def _recreated(client: Any, experiment: str, record: dict[str, Any], curve: list[dict[str, float]]) -> Any:
    """A run made once from a stage's record; an incomplete one is completed."""
    origin = record["run_id"] or record.get("log") or digest(record)
    started = int(record["started"] * 1000)
    ended = started + int(record["timings"].get("stage_seconds", 0) * 1000)
    run_id = store.find_run(client, experiment, f"tags.`ifm.recreated_from` = '{origin}'")
    if run_id is None:
        tags = {"ifm.kind": "stage", "ifm.stage": record["stage"], "ifm.recreated_from": origin} | record["tags"]
        run_id = client.create_run(experiment, start_time=started, run_name=record["stage"], tags=tags).info.run_id
    run = client.get_run(run_id)
    if run.info.status == "FINISHED":
        return run
    rows = [(k, v, started, int(row["step"])) for row in curve for k, v in row.items() if k != "step"]
    final = record["metrics"] | record["timings"] | record.get("memory", {})
    log_params(client, run_id, record["params"])
    log_metrics(client, run_id, rows + [(k, v, ended, 0) for k, v in final.items()])
    if record.get("inputs"):
        log_inputs(client, run_id, record["inputs"])
    client.set_terminated(run_id, "FINISHED", end_time=ended)
    return client.get_run(run_id)
