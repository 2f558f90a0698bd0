"""Runs in a real store: what is logged, how a run ends, and that no store ever stops the work."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ifm import tracking
from ifm.tracking import PipelineState, delivery, digest, flatten, naming, stage_run, states, track_state
from ifm.tracking import store as stores
from ifm.tracking.locallog import all_logs, read
from ifm.tracking.runs import _record
from ifm.tracking.sync import Synced, sync
from tests.support import warm
from tests.support.mlflow_server import copy_store, make_empty_store

ROOT = Path(__file__).parents[2]
VARIABLES = (
    *("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE", "RANK", "IFM_TRACKING"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither DVC nor MLflow around the tests; what MLflow itself puts into the environment goes again."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # makes monkeypatch restore a variable that was not there
        monkeypatch.delenv(name)
    stores.connect.cache_clear()
    yield
    stores.connect.cache_clear()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_store(tmp_path_factory.mktemp("store"))


def use_store(root: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root.mkdir(exist_ok=True)
    copy_store(empty_store, root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stores.connect.cache_clear()
    return root


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a project with an empty store."""
    return use_store(tmp_path / "project", empty_store, monkeypatch)


def runs(query: str = "") -> list:
    client, experiment = stores.connect()
    return client.search_runs([experiment], query)


def only_run(query: str = "") -> Any:
    found = runs(query)
    assert len(found) == 1
    return found[0]


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def curve(run_id: str, key: str) -> list[tuple[int, float]]:
    client, _ = stores.connect()
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


INPUTS = [
    {
        "name": "digits/processed",
        "digest": "ab" * 16,
        "source": tracking.cache_uri("ab" * 16 + ".dir"),
        "profile": {"splits": {"train": 8}},
        "context": "training",
    }
]


# Small functions


def test_flatten_and_digest():
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [1, 2]}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest(nested)) == 16


def test_the_store_is_the_main_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path / 'main' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert tracking.tracking_uri() == "http://localhost:5000"


# One stage


def test_a_run_from_start_to_end(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-ship")
    record = tmp_path / "runs" / "teacher-ve.json"
    artifact = tmp_path / "grid.txt"
    artifact.write_text("picture")
    params = {"teacher": {"lr": 1e-3, "steps": 7}, "seed": 0, "long": "x" * 7000}
    tags = {"input.data": "abc"}
    with stage_run("teacher-ve", params=params, record=record, tags=tags, inputs=INPUTS) as run:
        assert only_run().info.status == "RUNNING"
        run.log_row({"step": 50, "loss": 0.5, "lr": 1e-3})
        run.log_row({"step": 100, "loss": 0.25, "lr": 5e-4})
        run.log_metrics({"fid": 12.5, "count": 3})
        run.log_artifact(artifact, "grids")
        run.timings["train_seconds"] = 1.5
        run.extra["note"] = "m-1"
    found = only_run()
    assert found.info.run_id == run.run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", "teacher-ve")
    assert found.data.params == {"teacher.lr": "0.001", "teacher.steps": "7", "seed": "0", "long": "x" * 6000}
    assert curve(run.run_id, "loss") == [(50, 0.5), (100, 0.25)]
    assert curve(run.run_id, "lr") == [(50, 1e-3), (100, 5e-4)]
    metrics = found.data.metrics
    assert (metrics["fid"], metrics["count"], metrics["train_seconds"]) == (12.5, 3.0, 1.5)
    assert metrics["stage_seconds"] == run.timings["stage_seconds"] >= 0
    tags = found.data.tags
    assert {k: tags[k] for k in ("ifm.kind", "ifm.stage", "input.data", "dvc.exp_name", "ifm.host", "ifm.pid")} == {
        "ifm.kind": "stage",
        "ifm.stage": "teacher-ve",
        "input.data": "abc",
        "dvc.exp_name": "brave-ship",
        "ifm.host": socket.gethostname(),
        "ifm.pid": str(os.getpid()),
    }
    assert tags["mlflow.source.name"] == "dvc repro teacher-ve"
    client, _ = stores.connect()
    assert [file.path for file in client.list_artifacts(run.run_id, "grids")] == ["grids/grid.txt"]
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source_type) == ("digits/processed", "ab" * 16, "dvc")
    assert json.loads(used.dataset.source) == {"uri": INPUTS[0]["source"]}
    assert json.loads(used.dataset.profile) == {"splits": {"train": 8}}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert not all_logs()  # the store has everything
    written = json.loads(record.read_text())
    assert written.pop("started") == pytest.approx(found.info.start_time / 1000, abs=30)
    memory = written.pop("memory")
    assert 50 < memory["peak_memory_mb"] == metrics["peak_memory_mb"]
    assert written.pop("log") == tags["ifm.log"]
    assert written == {
        "version": 1,
        "stage": "teacher-ve",
        "run_id": run.run_id,
        "tracking_uri": "sqlite:///mlflow.db",
        "timings": {"train_seconds": 1.5, "stage_seconds": run.timings["stage_seconds"]},
        "params": {"teacher.lr": 1e-3, "teacher.steps": 7, "seed": 0, "long": "x" * 7000},
        "metrics": {"fid": 12.5, "count": 3.0},
        "tags": {"input.data": "abc"},
        "inputs": INPUTS,
        "note": "m-1",
    }


def test_a_models_bytes_stay_outside_the_store(store: Path):
    with stage_run("flow-ve", params={}, record=None) as run:
        run.log_model("flow-ve", folder=Path("models/flow/ve"), description={"kind": "flow", "sha256": "ab", "n": 3})
    client, experiment = stores.connect()
    (model,) = client.search_logged_models([experiment])
    assert (model.source_run_id, str(model.status)) == (run.run_id, "READY")
    assert run.extra["model"]["name"] == model.name == "flow-ve"
    assert (model.tags["dvc.path"], model.tags["sha256"]) == ("models/flow/ve", "ab")
    assert model.params == {"kind": "flow", "n": "3"}


def test_more_values_than_one_batch_takes(store: Path):
    params, metrics = {f"p{i}": i for i in range(230)}, {f"m{i}": float(i) for i in range(1200)}
    with stage_run("wide", params=params, record=None) as run:
        run.log_metrics(metrics)
    found = only_run()
    assert found.data.params == {k: str(v) for k, v in params.items()}
    assert found.data.metrics.items() >= metrics.items()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("nan in loss"), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_a_run_that_does_not_end_well(store: Path, tmp_path: Path, error: BaseException, status: str):
    record = tmp_path / "run.json"
    with pytest.raises(type(error)) as caught, stage_run("x", params={}, record=record):
        raise error
    assert caught.value is error
    found = only_run()
    assert found.info.status == status
    assert found.data.tags["ifm.error"] == repr(error)
    assert found.info.end_time is not None
    assert not record.exists()


def test_a_record_that_cannot_be_written_fails_the_run(store: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), stage_run("x", params={}, record=tmp_path / "file" / "run.json"):
        pass
    assert only_run().info.status == "FAILED"


def test_figures_that_are_not_finite_are_left_out(store: Path, tmp_path: Path):
    values = {"a": float("nan"), "b": float("inf"), "c": None, "d": 2}
    with stage_run("x", params={}, record=tmp_path / "run.json") as run:
        run.log_metrics(values)
    logged = {name for name in only_run().data.metrics if not name.startswith("system/")}
    assert logged == {"d", "stage_seconds", "peak_memory_mb"}
    assert json.loads((tmp_path / "run.json").read_text())["metrics"] == {"d": 2.0}


def test_what_the_machine_does_is_sampled(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 0.3)
    with stage_run("busy", params={}, record=None) as run:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            pass
    cpu = curve(run.run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in cpu] == list(range(len(cpu)))
    assert len(cpu) >= 2
    assert all(0 < value <= 100 for _, value in cpu)
    memory = [value for _, value in curve(run.run_id, "system/process_memory_usage_megabytes")]
    assert all(20 < value < only_run().data.metrics["peak_memory_mb"] * 1.05 for value in memory)


def test_runs_of_dead_processes_are_closed_at_the_next_start(store: Path):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    client, experiment = stores.connect()
    here = socket.gethostname()

    def left_running(host: str, pid: int | str) -> str:
        tags = {"ifm.host": host, "ifm.pid": str(pid)}
        return client.create_run(experiment, tags=tags).info.run_id

    dead, alive = left_running(here, gone.pid), left_running(here, os.getppid())
    elsewhere, unknown = left_running(f"not-{here}", gone.pid), left_running(here, "?")
    with stage_run("next", params={}, record=None) as run:
        status = {i: client.get_run(i).info.status for i in (dead, alive, elsewhere, unknown, run.run_id)}
    assert status == {dead: "KILLED", alive: "RUNNING", elsewhere: "RUNNING", unknown: "RUNNING", run.run_id: "RUNNING"}


# Without a store


def work_untracked(tmp_path: Path) -> dict[str, Any]:
    """Everything a stage may call; returns run.json."""
    with stage_run("x", params={"a": {"b": 1}}, record=tmp_path / "run.json", tags={"data": "d"}) as run:
        run.log_row({"step": 1, "loss": 2.0})
        run.log_metrics({"fid": 1})
        run.log_artifact(Path(__file__))
        run.log_model("m", folder=tmp_path, description={"kind": "flow", "sha256": "x"})
        run.timings["train_seconds"] = 1.0
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["run_id"], record["tracking_uri"]) == (None, None)
    assert (record["params"], record["metrics"], record["tags"]) == ({"a.b": 1}, {"fid": 1.0}, {"data": "d"})
    assert set(record["timings"]) == {"train_seconds", "stage_seconds"}
    return record


def empty_state(**changes: Any) -> PipelineState:
    values = {"key": "k", "name": "n", "params": {}, "metrics": {}, "records": [], "curves": {}, "artifacts": []}
    return PipelineState(**(values | {"tags": {}} | changes))


UNTRACKED = {"run_id": None, "tracking_uri": None, "state": "k"}


@pytest.mark.parametrize("word", ["off", "OFF", "0", "false", "no"])
def test_tracking_switched_off_needs_no_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, word: str
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("IFM_TRACKING", word)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import would raise
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    work_untracked(tmp_path)
    assert track_state(empty_state()) == UNTRACKED
    assert capsys.readouterr().err == "tracking: off (IFM_TRACKING)\n" * 2
    assert not (tmp_path / "mlflow.db").exists()


def test_without_mlflow_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else find_spec(name, *a))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    work_untracked(tmp_path)
    assert track_state(empty_state()) == UNTRACKED
    assert capsys.readouterr().err == "tracking: off (mlflow is not installed)\n" * 2


@pytest.mark.parametrize("kind", ["no database", "no folder", "unknown scheme"])
def test_a_store_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kind: str
):
    (tmp_path / "file").write_text("this is no database, however long it may be")
    uri = {
        "no database": f"sqlite:///{tmp_path / 'file'}",
        "no folder": f"sqlite:///{tmp_path / 'file' / 'x.db'}",
        "unknown scheme": "carrier-pigeon://coop",
    }[kind]
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    work_untracked(tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking: ")]
    assert len(said) == 1
    assert said[0].startswith(f"tracking: x: the store at {uri} failed (")
    (log,) = all_logs()
    assert said[0].endswith(f"); goes on, with its log in .ifm/tracking/{log.name}; later: `ifm track --sync`")
    assert [e["op"] for e in read(log).entries] == [
        *("start", "params", "metrics", "metrics", "artifact", "model", "metrics", "end")
    ]
    assert track_state(empty_state()) == UNTRACKED
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking: ")]
    assert len(said) == 1
    assert said[0].startswith(f"tracking: the store at {uri} failed (")
    assert said[0].endswith(f"); kept in .ifm/tracking/{all_logs()[-1].name}; later: `ifm track --sync`")


def test_a_deleted_experiment_is_named(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    client, experiment = stores.connect()
    client.delete_experiment(experiment)
    stores.connect.cache_clear()
    work_untracked(tmp_path)
    assert "experiment 'ifm' is deleted; restore it or set MLFLOW_EXPERIMENT_NAME" in capsys.readouterr().err


def test_another_experiment_name(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with stage_run("x", params={}, record=None):
        pass
    client, _ = stores.connect()
    assert client.get_experiment(only_run().info.experiment_id).name == "mine"


def test_a_store_that_fails_midway_is_reported_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from mlflow import MlflowClient

    calls = []

    def full_disk(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise OSError("disk full\n[SQL: a long statement]")

    monkeypatch.setattr(delivery, "RETRY_SECONDS", math.inf)
    with stage_run("x", params={"a": 1}, record=tmp_path / "run.json") as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", full_disk)
            for step in (1, 2, 3, 4):
                run.log_row({"step": step, "loss": 1.0})
            run.log_metrics({"fid": 1.0})
            wait_until(lambda: calls)
        run.log_row({"step": 5, "loss": 1.0})  # not before RETRY_SECONDS
    assert len(calls) == 1
    (log,) = all_logs()
    failed = f"tracking: x: the store at sqlite:///{store / 'mlflow.db'} failed (OSError: disk full); "
    assert capsys.readouterr().err == (
        f"{failed}goes on, with its log in .ifm/tracking/{log.name}; later: `ifm track --sync`\n"
    )
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["run_id"], record["metrics"]) == (run.run_id, {"fid": 1.0})
    assert (only_run().info.status, curve(run.run_id, "loss")) == ("RUNNING", [])

    assert sync().delivered == [log.name]
    assert only_run().info.run_id == run.run_id
    assert (only_run().info.status, only_run().data.metrics["fid"]) == ("FINISHED", 1.0)
    assert curve(run.run_id, "loss") == [(step, 1.0) for step in (1, 2, 3, 4, 5)]
    assert sync() == Synced()


def test_a_store_that_comes_back_gets_the_rest_while_the_stage_runs(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from mlflow import MlflowClient

    def away(*_: Any, **__: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.2)
    with stage_run("x", params={}, record=None) as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            run.log_row({"step": 1, "loss": 1.0})
            wait_until(lambda: "away" in capsys.readouterr().err)
        wait_until(lambda: curve(run.run_id, "loss") == [(1, 1.0)])
        wait_until(lambda: capsys.readouterr().err == "tracking: x: the store is back, and has everything\n")
    assert not all_logs()
    assert only_run().info.status == "FINISHED"


# The pipeline's state


def stage_record(name: str, tmp_path: Path) -> dict[str, Any]:
    """The run.json of a stage that ran here, with a curve."""
    path = tmp_path / f"{name}.json"
    with stage_run(name, params={"of": name, "n": 3}, record=path, tags={"input.data": "abc"}) as run:
        run.log_row({"step": 50, "loss": 0.5})
        run.log_metrics({"fid": 2.5})
    return json.loads(path.read_text())


def state(records: list[dict[str, Any]], key: str = "s1", **changes: Any) -> PipelineState:
    values = {
        "key": key,
        "name": f"state {key}",
        "params": {"seed": 0, "teacher": {"lr": 1e-3}, "wide": {f"p{i}": i for i in range(150)}},
        "metrics": {"ve.one_step.fid": 4.5, "reference.accuracy": 1},
        "records": records,
        "curves": {"teacher-ve": [{"step": s, "loss": 1 / s, "lr": 0.5} for s in range(1, 601)]},
        "tags": {"data": "digits"},
    }
    return empty_state(**(values | changes))


def test_a_short_stage_leaves_its_run_to_the_next_track(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """IFM_TRACKING_AFTER: no store is opened; `track` brings the run with its times, below the state's row."""
    monkeypatch.setenv("IFM_TRACKING_AFTER", "600")
    monkeypatch.setattr(stores, "connect", None)
    before = time.time()
    record = stage_record("teacher-ve", tmp_path)
    assert record["run_id"] is None
    assert len(all_logs()) == 1
    monkeypatch.undo()
    monkeypatch.setenv("DVC_ROOT", str(store))
    made = track_state(state([record]))
    assert all_logs() == []
    run = only_run("tags.`ifm.kind` = 'stage'")
    assert run.info.run_id == made["children"]["teacher-ve"]
    assert run.info.status == "FINISHED"
    assert before - 1 <= run.info.start_time / 1000 <= run.info.end_time / 1000 <= time.time()


def test_a_long_stage_is_in_the_store_while_it_runs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IFM_TRACKING_AFTER", "0.2")
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 0.05)
    with stage_run("teacher-ve", params={}, record=None):
        wait_until(lambda: runs())
    assert only_run().info.status == "FINISHED"
    assert all_logs() == []


def test_the_parent_holds_all_params_and_metrics_and_its_children(store: Path, tmp_path: Path):
    records = [stage_record("fetch", tmp_path), stage_record("teacher-ve", tmp_path)]
    (tmp_path / "summary.csv").write_text("a,b\n")
    made = track_state(state(records, artifacts=[tmp_path / "summary.csv"]))
    children = {r["stage"]: r["run_id"] for r in records}
    assert made == {
        "run_id": made["run_id"],
        "tracking_uri": "sqlite:///mlflow.db",
        "state": "s1",
        "children": children,
        "versions": {},
    }
    parent = only_run("tags.`ifm.kind` = 'pipeline'")
    assert (parent.info.run_id, parent.info.status, parent.info.run_name) == (made["run_id"], "FINISHED", "state s1")
    params = {"seed": "0", "teacher.lr": "0.001"} | {f"wide.p{i}": str(i) for i in range(150)}
    assert parent.data.params == params
    assert parent.data.metrics == {"ve.one_step.fid": 4.5, "reference.accuracy": 1.0}
    assert parent.data.tags["data"] == "digits"
    client, _ = stores.connect()
    for stage, run_id in children.items():
        assert parent.data.tags[f"stage.{stage}.run_id"] == run_id
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == made["run_id"]
    assert [file.path for file in client.list_artifacts(made["run_id"])] == ["summary.csv"]
    assert len(runs()) == 3


def test_a_row_takes_as_long_as_its_stages(store: Path, tmp_path: Path):
    """They may be days apart: the row ends with the last and is as long as all together."""
    took = [("fetch", 1_000.0, 5.0), ("teacher-ve", 90_000.0, 60.0), ("flow-ve", 90_010.0, 20.0)]
    records = [stage_record(s, tmp_path) | {"started": at, "timings": {"stage_seconds": n}} for s, at, n in took]
    track_state(state(records))
    track_state(state(records))
    info = only_run("tags.`ifm.kind` = 'pipeline'").info
    assert (info.start_time, info.end_time) == (89_975_000, 90_060_000)


def names() -> list[str]:
    return sorted(run.info.run_name for run in runs("tags.`ifm.kind` = 'pipeline'"))


def test_rows_are_named_by_what_differs_from_the_others(store: Path):
    """Of a preset with many params only the swept ones are in the names; each new row names the others anew."""
    shared = {"data": {"source": "points", "label_column": None}, "network": {"kind": "mlp"}, "seed": 0}

    def tracked(key: str, *, name: str = "points rf", tags: dict[str, str] | None = None, **params: Any) -> str:
        values = {"params": shared | params, "name": name, "tags": tags or {}, "metrics": {}}
        return track_state(empty_state(key=key, **values))["run_id"]

    first = tracked("a", flow={"lr": 1e-3, "steps": 100})
    assert names() == ["points rf"]
    tracked("b", flow={"lr": 2e-3, "steps": 100})
    assert names() == ["points rf, lr=0.001", "points rf, lr=0.002"]
    tracked("c", flow={"lr": 4e-3, "steps": 200}, tags={"dvc.exp_name": "bold-fox"})
    tracked("d", name="digits ve", flow={"lr": 8e-3, "steps": 100})
    known = [
        "digits ve",
        "points rf, lr=0.001, steps=100",
        "points rf, lr=0.002, steps=100",
        "points rf, lr=0.004, steps=200 [bold-fox]",
    ]
    assert names() == known
    client, _ = stores.connect()
    client.update_run(first, name="mine")
    tracked("e", flow={"lr": 1e-3, "steps": 100}, seed=1)
    assert names() == [
        "digits ve", "mine", "points rf, lr=0.001, steps=100, seed=1",
        "points rf, lr=0.002, steps=100, seed=0",
        "points rf, lr=0.004, steps=200, seed=0 [bold-fox]",
    ]  # fmt: skip


def test_names_are_short_and_tell_commits_apart():
    many = {f"p{i}": "1" for i in range(6)}
    rows = [
        naming.Row("a", "points rf", many | {"q": "1"}, commit="1" * 40),
        naming.Row("b", "points rf", many | {"q": "1"}, commit="2" * 40),
        naming.Row("c", "points rf", dict.fromkeys(many, "2") | {"q": "3"}),
        naming.Row("d", "points rf", many | {"q": "2"}),
    ]
    assert naming.names(rows) == {
        "a": "points rf, q=1, p0=1, p1=1 and 4 more @1111111",
        "b": "points rf, q=1, p0=1, p1=1 and 4 more @2222222",
        "c": "points rf, q=3, p0=2, p1=2 and 4 more",
        "d": "points rf, q=2, p0=1, p1=1 and 4 more",
    }
    alike = [naming.Row(x, "points rf", {"flow.lr": x, "teacher.lr": "1" + x, "flow.steps": x}) for x in "12"]
    assert naming.names(alike)["2"] == "points rf, flow.lr=2, steps=2, teacher.lr=12"


def test_one_parent_a_state_and_children_keep_their_first(store: Path, tmp_path: Path):
    records = [stage_record("fetch", tmp_path)]
    first = track_state(state(records))
    assert track_state(state(records)) == first
    assert len(runs()) == 2
    second = track_state(state(records, key="s2"))
    assert second["run_id"] != first["run_id"]
    assert second["children"] == first["children"]
    assert len(runs()) == 3
    client, _ = stores.connect()
    child = client.get_run(records[0]["run_id"])
    assert child.data.tags["mlflow.parentRunId"] == first["run_id"]
    assert client.get_run(second["run_id"]).data.tags["stage.fetch.run_id"] == child.info.run_id


def test_a_parent_that_was_cut_short_is_completed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records = [stage_record("fetch", tmp_path)]

    def killed(*_: Any) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(states, "log_params", killed)
        with pytest.raises(SystemExit):
            track_state(state(records))
    assert only_run("tags.`ifm.kind` = 'pipeline'").data.params == {}
    made = track_state(state(records))
    parent = only_run("tags.`ifm.kind` = 'pipeline'")
    assert (parent.info.run_id, parent.info.status) == (made["run_id"], "FINISHED")
    assert parent.data.params["seed"] == "0"


def test_children_are_recreated_once_in_an_empty_store(
    store: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
):
    tracked = stage_record("teacher-ve", tmp_path)
    monkeypatch.setenv("IFM_TRACKING", "off")
    never_tracked = stage_record("fetch", tmp_path)
    monkeypatch.delenv("IFM_TRACKING")
    assert never_tracked["run_id"] is None
    records = [tracked, never_tracked]

    use_store(tmp_path / "clone", empty_store, monkeypatch)
    assert runs() == []
    made = track_state(state(records))
    assert track_state(state(records)) == made
    other = track_state(state(records, key="s2"))
    assert other["children"] == made["children"]
    assert len(runs()) == 4  # two parents, two children
    assert tracked["run_id"] not in made["children"].values()

    client, _ = stores.connect()
    for record in records:
        child = client.get_run(made["children"][record["stage"]])
        assert (child.info.status, child.info.run_name) == ("FINISHED", record["stage"])
        assert child.data.params == {"of": record["stage"], "n": "3"}
        assert child.data.metrics["fid"] == 2.5
        assert child.data.metrics["stage_seconds"] == record["timings"]["stage_seconds"]
        assert child.info.start_time == int(record["started"] * 1000)
        assert child.info.end_time == child.info.start_time + int(record["timings"]["stage_seconds"] * 1000)
        tags = child.data.tags
        assert (tags["mlflow.parentRunId"], tags["input.data"]) == (made["run_id"], "abc")
        assert tags["ifm.recreated_from"] == (record["run_id"] or digest(record))
    teacher = made["children"]["teacher-ve"]
    assert curve(teacher, "loss") == [(s, 1 / s) for s in range(1, 601)]  # with lr more than one batch
    assert len(curve(teacher, "lr")) == 600


def test_a_deleted_child_is_made_again(store: Path, tmp_path: Path):
    record = stage_record("fetch", tmp_path)
    client, _ = stores.connect()
    client.delete_run(record["run_id"])
    made = track_state(state([record]))
    assert made["children"]["fetch"] != record["run_id"]
    assert track_state(state([record])) == made


# Processes


def start(code: str, root: Path, cwd: Path) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": path}
    return subprocess.Popen(
        [warm.python(), "-c", code],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_four_processes_open_a_fresh_store_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        "from ifm.tracking import stage_run\n"
        "with stage_run('x', params={'a': 1}, record=None) as run:\n"
        "    run.log_row({'step': 1, 'loss': 2.0})\n"
        "print(run.run_id)"
    )
    started = [start(code, tmp_path, tmp_path) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert not [err for _, err in outputs if "tracking: " in err]
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert {run.info.run_id for run in runs("attributes.status = 'FINISHED'")} == {out.strip() for out, _ in outputs}
    client, _ = stores.connect()
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "ifm"]
    assert len(runs()) == 4


def test_sigterm_closes_the_stages_run(store: Path, tmp_path: Path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    code = (
        "import sys, time\n"
        "from pipeline.runner.stage import main\n"
        "def work(stage):\n"
        "    'Sleeps.'\n"
        "    print(stage.run.run_id, flush=True)\n"
        "    time.sleep(60)\n"
        "sys.argv = ['fetch']\n"
        "main(work, module='fetch', params=lambda stage: stage.sections('data'))"
    )
    process = start(code, store, tmp_path)
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    run = only_run()
    assert (run.info.run_id, run.info.status) == (run_id, "KILLED")
    assert run.data.tags["ifm.error"] == "SystemExit(143)"
    assert run.data.params["data.source"] == "digits"
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@host:5000/x", "https://host:5000/x"),
        ("postgresql://user:p%40ss@host/db", "postgresql://host/db"),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_password_is_recorded(uri: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """run.json goes to everybody who pulls the cache."""
    assert tracking.without_secrets(uri) == shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = tracking.StageRun("x", run_id="1")
    assert _record(run, 0.0, {})["tracking_uri"] == shown


def test_planted_secrets_are_nowhere(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not in params, tags, errors, records, nor in the log that waits for a server."""
    planted = ("hunter2", "t0k3n", "p4ss", "keeper")
    source = "https://keeper:hunter2@host/data?token=t0k3n"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p4ss")

    def work() -> None:
        record = tmp_path / "run.json"
        with stage_run("x", params={"data": {"path": source}}, record=record) as run:
            run.log_model("flow-ve", folder=tmp_path, description={"kind": "flow", "sha256": "ab"})
        with pytest.raises(ValueError, match="hunter2"), stage_run("y", params={}, record=None):
            raise ValueError(f"cannot read {source} with p4ss")
        track_state(state([json.loads(record.read_text())], params={"data": {"path": source}}))

    work()
    client, experiment = stores.connect()
    logged = [run.to_dictionary() for run in client.search_runs([experiment])]
    assert len(logged) == 3
    assert "https://host/data?token=..." in json.dumps(logged)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://keeper:hunter2@127.0.0.1:9")
    stores.connect.cache_clear()
    work()
    kept = [json.dumps(read(log).entries) for log in all_logs()]
    assert len(kept) == 3
    seen = json.dumps(logged) + "".join(kept) + (tmp_path / "run.json").read_text()
    assert not [word for word in planted if word in seen]
