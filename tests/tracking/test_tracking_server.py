"""A real tracking server on the loopback: many at once, away, stopped in the middle, started again."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ifm.errors import UserError
from ifm.tracking import PipelineState, delivery, stage_run, track_state
from ifm.tracking import store as stores
from ifm.tracking.locallog import FILE, all_logs, now, read
from ifm.tracking.sync import Synced, sync
from tests.support import warm
from tests.support.mlflow_server import PASSWORD, Server, copy_store, make_empty_store, postgres, postgres_command

ROOT = Path(__file__).parents[2]
PICTURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On SQLite; a test that stops it starts it again."""
    made = Server(tmp_path_factory.mktemp("server")).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder, and an experiment of its own."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "IFM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    stores.connect.cache_clear()
    yield tmp_path
    stores.connect.cache_clear()


@pytest.fixture
def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server


def runs() -> list[Any]:
    client, experiment = stores.connect()
    return list(client.search_runs([experiment], order_by=["attributes.start_time ASC"]))


def history(run_id: str, key: str) -> list[tuple[int, float, int]]:
    """(step, value, time) of all that the server has of a metric."""
    client, _ = stores.connect()
    return sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, key))


def points(run_id: str, key: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value, _ in history(run_id, key)]


MANY = """
import sys, threading
from pathlib import Path
from ifm.tracking import stage_run
pipeline, rows = sys.argv[1], int(sys.argv[2])
def work(stage):
    with stage_run(f"{stage}-{pipeline}", params={"of": pipeline, "stage": stage}, record=None) as run:
        for step in range(rows):
            run.log_row({"step": step, "loss": step + 0.5, "lr": 1 / (step + 1)})
        run.log_metrics({"fid": 2.5})
        run.log_artifact(Path("grid.png"), "grids")
        description = {"kind": "flow", "sha256": pipeline, "dynamics": {"name": "ve"}}
        run.log_model(f"{stage}-{pipeline}", folder=Path("models/flow/ve"), description=description)
threads = [threading.Thread(target=work, args=(stage,)) for stage in ("teacher", "flow")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def log_at_once(project: Path, pipelines: list[str], rows: int) -> None:
    """Several pipelines, each in a project and a process of its own, of two stages at once."""
    started = []
    for name in pipelines:
        folder = project / name
        folder.mkdir()
        (folder / "grid.png").write_bytes(PICTURE)
        environment = os.environ | {"DVC_ROOT": str(folder), "PYTHONPATH": os.pathsep.join([str(ROOT / "src")])}
        process = subprocess.Popen(
            [warm.python(), "-c", MANY, name, str(rows)],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(pipelines), outputs
    assert not [line for out in outputs for line in out.splitlines() if line.startswith("tracking: ")]


def check_all_there(project: Path, pipelines: list[str], rows: int) -> None:
    client, experiment = stores.connect()
    expected = {f"{stage}-{name}" for name in pipelines for stage in ("teacher", "flow")}
    found = {run.info.run_name: run for run in runs()}
    assert len(runs()) == len(expected)
    assert set(found) == expected
    for name, run in found.items():
        stage, pipeline = name.split("-")
        assert run.info.status == "FINISHED"
        assert run.data.params == {"of": pipeline, "stage": stage}
        assert points(run.info.run_id, "loss") == [(step, step + 0.5) for step in range(rows)]
        assert points(run.info.run_id, "lr") == [(step, 1 / (step + 1)) for step in range(rows)]
        assert run.data.metrics["fid"] == 2.5
        (file,) = client.list_artifacts(run.info.run_id, "grids")
        assert Path(client.download_artifacts(run.info.run_id, file.path)).read_bytes() == PICTURE
    models = client.search_logged_models([experiment])
    assert {model.name: model.source_run_id for model in models} == {n: r.info.run_id for n, r in found.items()}
    assert len(models) == len(expected)
    assert not list(project.rglob(FILE))


def test_several_pipelines_at_once_on_sqlite(use: Server, project: Path):
    log_at_once(project, ["one", "two", "three"], rows=60)
    check_all_there(project, ["one", "two", "three"], rows=60)


@pytest.mark.slow  # as the one on SQLite
def test_several_pipelines_at_once_on_postgresql(project: Path, monkeypatch: pytest.MonkeyPatch):
    if not (postgres_command("initdb") and postgres_command("postgres")):
        pytest.skip("needs PostgreSQL's initdb and postgres")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("needs psycopg2")
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to run it as another user")
    with postgres() as uri:
        server = Server(project / "server", store=uri).start()
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
            log_at_once(project, ["one", "two"], rows=40)
            check_all_there(project, ["one", "two"], rows=40)
        finally:
            server.stop()
        # The database named directly, password and all: nothing of it may be kept.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        stores.connect.cache_clear()
        with stage_run("direct", params={"source": uri}, record=project / "run.json", tags={"a": "b"}) as run:
            run.log_row({"step": 1, "loss": 2.0})
        assert points(run.run_id, "loss") == [(1, 2.0)]
        direct = stores.connect()[0].get_run(run.run_id)
        shown = json.dumps([direct.data.params, direct.data.tags]) + (project / "run.json").read_text()
        assert PASSWORD not in shown
        assert "@127" not in shown


# Away


def log_something(stage: str, folder: Path) -> dict[str, Any]:
    """A stage that logs some of everything; returns run.json."""
    (folder / "grid.png").write_bytes(PICTURE)
    with stage_run(stage, params={"a": {"b": 1}}, record=folder / f"{stage}.json", tags={"data": "d"}) as run:
        for step in (1, 2, 3):
            run.log_row({"step": step, "loss": 1 / step})
        run.log_metrics({"fid": 2.0})
        run.log_artifact(folder / "grid.png", "grids")
        described = {"kind": "flow", "sha256": "ab", "parameters": 3}
        run.log_model(stage, folder=Path("models/flow/ve"), description=described)
        (folder / "grid.png").unlink()  # as an experiment's folder goes
    return json.loads((folder / f"{stage}.json").read_text())


def check_something(run: Any, stage: str, times: tuple[int, int]) -> None:
    client, experiment = stores.connect()
    assert (run.info.run_name, run.info.status) == (stage, "FINISHED")
    assert times[0] <= run.info.start_time <= run.info.end_time <= times[1]
    assert (run.data.params, run.data.metrics["fid"], run.data.tags["data"]) == ({"a.b": "1"}, 2.0, "d")
    loss = history(run.info.run_id, "loss")
    assert [(step, value) for step, value, _ in loss] == [(step, 1 / step) for step in (1, 2, 3)]
    assert all(times[0] <= time <= times[1] for _, _, time in loss)
    (file,) = client.list_artifacts(run.info.run_id, "grids")
    assert Path(client.download_artifacts(run.info.run_id, file.path)).read_bytes() == PICTURE
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    assert (model.name, model.params, str(model.status)) == (stage, {"kind": "flow", "parameters": "3"}, "READY")
    assert (model.tags["dvc.path"], model.tags["sha256"]) == ("models/flow/ve", "ab")


def a_state(records: list[dict[str, Any]], folder: Path) -> PipelineState:
    (folder / "summary.csv").write_text("a,b\n")
    return PipelineState(
        key="s1",
        name="digits ve",
        params={"seed": 0},
        metrics={"fid/ve-flow-1nfe": 2.0},
        records=records,
        curves={},
        artifacts=[folder / "summary.csv"],
        tags={"data": "digits"},
    )


def test_a_server_that_dies_and_stays_away_gets_everything_later(
    use: Server, project: Path, capsys: pytest.CaptureFixture
):
    """It dies in the middle of one stage, is away for two more and the pipeline's state, and comes back."""
    try:
        with stage_run("fetch", params={"a": 1}, record=project / "fetch.json") as cut:
            for step in range(1, 6):
                cut.log_row({"step": step, "loss": 1 / step})
            while len(points(cut.run_id, "loss")) < 5:
                time.sleep(0.02)
            use.stop()
            for step in range(6, 11):
                cut.log_row({"step": step, "loss": 1 / step})
        times = [now()]
        records = [log_something(stage, project) for stage in ("teacher-ve", "flow-ve")]
        times.append(now())
        records.append(json.loads((project / "fetch.json").read_text()))
        untracked = track_state(a_state(records, project))
        (project / "summary.csv").unlink()
        with pytest.raises(UserError, match=r"no store at http://127\.0\.0\.1"):
            sync()
    finally:
        use.start()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking: ")]
    assert len(said) == 4
    assert all("later: `ifm track --sync`" in line for line in said)
    assert [record["run_id"] for record in records] == [None, None, cut.run_id]
    assert untracked == {"run_id": None, "tracking_uri": None, "state": "s1"}
    (left,) = runs()
    assert (left.info.run_id, left.info.status, len(points(cut.run_id, "loss"))) == (cut.run_id, "RUNNING", 5)
    logs = all_logs()
    assert 0 < read(logs[0]).delivered < len(read(logs[0]).entries)

    assert sync() == Synced(delivered=[log.name for log in logs])
    assert len(logs) == len(runs()) == 4
    found = {run.info.run_name: run for run in runs()}
    assert (found["fetch"].info.run_id, found["fetch"].info.status) == (cut.run_id, "FINISHED")
    assert points(cut.run_id, "loss") == [(step, 1 / step) for step in range(1, 11)]
    parent = found["digits ve"]
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"fid/ve-flow-1nfe": 2.0})
    assert [f.path for f in stores.connect()[0].list_artifacts(parent.info.run_id)] == ["summary.csv"]
    for stage in ("fetch", "teacher-ve", "flow-ve"):
        assert found[stage].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.data.tags[f"stage.{stage}.run_id"] == found[stage].info.run_id
    for stage in ("teacher-ve", "flow-ve"):
        check_something(found[stage], stage, tuple(times))

    before = [(run.info.run_id, run.data.tags, history(run.info.run_id, "loss")) for run in runs()]
    assert sync() == Synced()
    assert track_state(a_state(records, project))["run_id"] == parent.info.run_id
    assert [(run.info.run_id, run.data.tags, history(run.info.run_id, "loss")) for run in runs()] == before
    assert len(history(parent.info.run_id, "fid/ve-flow-1nfe")) == 1


KILLED = """
import os, signal, sys
from ifm.tracking import stage_run
with stage_run("flow-ve", params={"a": 1}, record=None) as run:
    for step in range(1, 6):
        run.log_row({"step": step, "loss": 1 / step})
    print("logged", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("there", [True, False], ids=["server there", "server away"])
def test_a_killed_stage_loses_at_most_its_last_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, there: bool
):
    """A local store, in which a server that was there has all of it already."""
    copy_store(empty_store, project)
    with monkeypatch.context() as patch:
        if not there:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout.readline() == "logged\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (log,) = all_logs()
    with open(log / FILE, "a") as file:
        file.write('{"op": "metrics", "ti')  # the line that the kill came into
    assert sync(elsewhere=True).delivered == [log.name]
    (run,) = runs()
    assert (run.info.status, points(run.info.run_id, "loss")) == ("KILLED", [(s, 1 / s) for s in range(1, 6)])
    assert sync() == Synced()


def test_a_stage_that_runs_is_left_alone(use: Server, project: Path, monkeypatch: pytest.MonkeyPatch):
    with stage_run("flow-ve", params={}, record=None) as run:
        (log,) = all_logs()
        assert sync() == Synced(running=[log.name])
        run.log_row({"step": 1, "loss": 1.0})
    assert points(run.run_id, "loss") == [(1, 1.0)]
    assert sync() == Synced()


def test_logs_of_another_server_wait_for_it(use: Server, project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_something("flow-ve", project)
    (log,) = all_logs()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", use.uri)
    stores.connect.cache_clear()
    assert sync() == Synced(elsewhere={log.name: "http://127.0.0.1:9"})
    assert runs() == []
    assert sync(elsewhere=True) == Synced(delivered=[log.name])
    assert [run.info.run_name for run in runs()] == ["flow-ve"]


class Cut(BaseException):
    """Stands for the death of the delivering process."""


@pytest.mark.parametrize("after", [0, 1, 3, 5, 8])
def test_a_sync_that_is_cut_short_anywhere_is_repeated(
    project: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, after: int
):
    """A local store; the cut comes when the store has taken an entry and before that is noted."""
    copy_store(empty_store, project)
    times = [now()]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        log_something("flow-ve", project)
        times.append(now())
    stores.connect.cache_clear()
    taken, take = [], delivery.Receiver.take

    def cut(receiver: Any, entries: list) -> None:
        take(receiver, entries)
        taken.append(entries)
        if len(taken) > after:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(delivery.Receiver, "take", cut)
        try:
            sync(elsewhere=True)
        except Cut:
            assert len(all_logs()) == 1
        else:
            assert after >= len(taken)
    sync(elsewhere=True)
    (run,) = runs()
    check_something(run, "flow-ve", tuple(times))
    assert sync(elsewhere=True) == Synced()


def test_the_command(use: Server, project: Path, monkeypatch: pytest.MonkeyPatch):
    def ifm(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [warm.python(), "-m", "ifm", *words], env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            text=True, capture_output=True, check=False, cwd=project,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://someone:s3cr3t@127.0.0.1:9/x?token=t0k3n")
        log_something("flow-ve", project)
        listed = ifm("track")
        refused = ifm("track", "--sync", status=1)
    (log,) = all_logs()
    assert "1 logs wait" in listed
    assert "for http://127.0.0.1:9/x\n" in listed
    assert refused.startswith("ifm: no store at http://127.0.0.1:9/x (")
    assert len(refused.splitlines()) == 1
    kept = (log / FILE).read_text()
    assert not [word for word in ("s3cr3t", "t0k3n", "someone") if word in listed + refused + kept]
    stores.connect.cache_clear()
    assert f"{log.name}: meant for http://127.0.0.1:9/x; set MLFLOW_TRACKING_URI" in ifm("track", "--sync")
    assert ifm("track", "--sync", "--elsewhere").startswith(f"1 logs delivered to {use.uri}\n")
    assert ifm("track", "--sync") == f"0 logs delivered to {use.uri}\n"
    assert [run.info.run_name for run in runs()] == ["flow-ve"]
