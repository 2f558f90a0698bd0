"""Folders of any name, projects that were moved or copied, commands from any folder of a project: the same store."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from ifm.cli import tracking as commands
from ifm.cli.main import main
from ifm.tracking import locallog, places, stage_run
from ifm.tracking import store as stores
from ifm.tracking.locallog import LocalLog, all_logs
from ifm.tracking.sync import sync
from tests.support.mlflow_server import copy_store, make_empty_store

ROOT = Path(__file__).parents[2]
NAMES = ["plain", "a b", "50%20off", "what?", "a#b", 'it\'s "5$"', "ü&é", "[x](y);z", "a:b@c", "%"]
ODD = "it's 5%20 off? #1 (ü&é)"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in a folder with an odd name: MLflow's migrations and its own experiment too have to get along with it."""
    return make_empty_store(tmp_path_factory.mktemp(ODD))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "IFM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    stores.connect.cache_clear()
    yield
    stores.connect.cache_clear()


def checkout(folder: Path) -> Path:
    """What makes a folder a project."""
    for name in ("dvc.yaml", "params.yaml", "pipeline/runner/stage.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "docs").mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a store, a run in it and that run's artifact; the current folder."""
    made = checkout(tmp_path / "here" / "project")
    copy_store(empty_store, made)
    monkeypatch.chdir(made)
    log_run("first")
    return made


def log_run(name: str) -> str:
    """A run with an artifact; its id."""
    Path("note.txt").write_text(name)
    with stage_run(name, params={}, record=Path("run.json")) as run:
        run.log_artifact(Path("note.txt"))
        run.log_model("flow-ve", folder=Path("models/flow/ve"), description={"kind": "flow", "sha256": "ab"})
    assert run.run_id is not None
    return run.run_id


def go_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process there would start."""
    monkeypatch.chdir(folder)
    stores.connect.cache_clear()


def notes() -> dict[str, tuple[Path, str]]:
    """Where each run's artifact lies, as MLflow's client finds it, and what is in it, by the run's name."""
    client, experiment = stores.connect()
    found = {}
    for run in client.search_runs([experiment]):
        assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["note.txt"]
        folder = Path(url2pathname(urlsplit(run.info.artifact_uri).path))
        assert (folder / "note.txt").is_file()
        found[run.info.run_name] = (
            folder.parents[1],
            Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text(),
        )
    return found


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_address_leads_to_its_file(name, tmp_path, monkeypatch):
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite
    from sqlalchemy import create_engine

    project = tmp_path / name
    project.mkdir()
    monkeypatch.chdir(project)
    address = places.address(project / "mlflow.db")
    _make_parent_dirs_if_sqlite(address)  # of the text as it stands
    create_engine(address).connect().close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (project / "mlflow.db").is_file()
    assert places.sqlite_file(address).resolve() == project / "mlflow.db"
    assert stores.is_own(address)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "file:///x", "sqlite://", "sqlite:///:memory:", "postgresql://h/d"]
)
def test_other_addresses_are_of_no_file(uri):
    assert places.sqlite_file(uri) is None


def test_a_run_and_its_artifacts_in_a_folder_of_an_odd_name(tmp_path, empty_store, monkeypatch):
    assert "'" in str(empty_store)
    project = checkout(tmp_path / ODD)
    copy_store(empty_store, project)
    go_to(project / "docs", monkeypatch)
    log_run("odd")
    assert notes() == {"odd": (project / "mlartifacts", "odd")}
    assert [p.name for p in tmp_path.iterdir()] == [ODD]
    assert sorted(p.name for p in (project / "docs").iterdir()) == ["note.txt", "run.json"]
    assert all_logs() == []


def test_a_relative_store_is_the_projects(project, monkeypatch):
    """And not one in whatever folder a command, or a DVC experiment, happens to run in."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    go_to(project / "docs", monkeypatch)
    assert places.sqlite_file(stores.tracking_uri()) == project / "mlflow.db"
    assert stores.name_in_records() == "sqlite:///mlflow.db"


@pytest.mark.parametrize("content", [b"no database, and long enough to tell " * 100, None])
def test_what_cannot_be_opened_is_said_at_once(content, tmp_path, monkeypatch, capsys):
    """MLflow would try ten times, for 100 seconds."""
    monkeypatch.chdir(checkout(tmp_path / "p"))
    if content is None:
        (tmp_path / "p/mlflow.db").mkdir()
    else:
        (tmp_path / "p/mlflow.db").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(sqlite3.Error):
        stores.connect()
    assert time.monotonic() - began < 30


def test_the_whole_remedy_is_said_of_a_store_that_mlflow_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(checkout(tmp_path / "p"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with stage_run("x", params={}, record=None):
        pass
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking: ")]
    assert "sqlite:///mlflow.db" in line
    assert "MLFLOW_ALLOW_FILE_STORE=true" in line
    assert line.endswith("later: `ifm track --sync`")


# --- a project that was moved or copied -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["there", ODD])
def test_a_moved_project_takes_its_artifacts_along(name, project, tmp_path, monkeypatch, capsys):
    moved = tmp_path / name
    monkeypatch.chdir(tmp_path)
    shutil.move(project, moved)
    go_to(moved, monkeypatch)
    log_run("second")
    said = capsys.readouterr().err
    assert (
        said == f"tracking: the store kept its artifacts in {project}/mlartifacts, and keeps them in this project now\n"
    )
    assert notes() == {"first": (moved / "mlartifacts", "first"), "second": (moved / "mlartifacts", "second")}
    assert not project.exists()
    with sqlite3.connect(moved / "mlflow.db") as connection:
        stored = "\n".join(line for line in connection.iterdump() if "ifm.root" not in line)
    connection.close()
    assert str(project.parent) not in stored
    stores.connect.cache_clear()
    stores.connect()
    assert capsys.readouterr().err == ""


def test_a_copy_has_artifacts_of_its_own(project, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    go_to(copy, monkeypatch)
    log_run("second")
    assert notes() == {"first": (copy / "mlartifacts", "first"), "second": (copy / "mlartifacts", "second")}
    go_to(project, monkeypatch)
    assert notes() == {"first": (project / "mlartifacts", "first")}


def test_artifacts_that_stayed_behind_are_told_and_found(project, tmp_path, monkeypatch, capsys):
    copy = checkout(tmp_path / "copy")
    shutil.copy(project / "mlflow.db", copy)
    go_to(copy, monkeypatch)
    log_run("second")
    # The run's, and those of its model.
    assert f"those of 2 earlier runs are still there: copy them to {copy}/mlartifacts" in capsys.readouterr().err
    assert notes() == {"first": (project / "mlartifacts", "first"), "second": (copy / "mlartifacts", "second")}
    shutil.copytree(project / "mlartifacts", copy / "mlartifacts", dirs_exist_ok=True)
    go_to(copy, monkeypatch)
    assert {place for place, _ in notes().values()} == {copy / "mlartifacts"}


def test_artifacts_in_a_place_of_choice_and_other_stores_are_left_alone(project, tmp_path, monkeypatch, capsys):
    client, _ = stores.connect()
    chosen = (tmp_path / "big disk" / "artifacts").as_uri()
    client.create_experiment("mine", artifact_location=chosen)
    moved = tmp_path / "moved"
    monkeypatch.chdir(tmp_path)
    shutil.move(project, moved)
    go_to(moved, monkeypatch)
    stores.connect()
    assert client.get_experiment_by_name("mine").artifact_location == chosen
    shared, before = tmp_path / "shared.db", (moved / "mlartifacts").as_uri()
    shutil.copy(moved / "mlflow.db", shared)
    go_to(checkout(tmp_path / "other"), monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", places.address(shared))
    client, experiment = stores.connect()
    assert client.get_experiment(experiment).artifact_location == before


@pytest.mark.parametrize("by_path", [False, True], ids=["now", "earlier logs"])
def test_logs_that_wait_go_to_the_moved_projects_store(by_path, project, tmp_path, monkeypatch):
    log = LocalLog(locallog.logs_folder() / locallog.new_id("late"))
    uri = f"sqlite:///{project}/mlflow.db" if by_path else stores.name_in_records()
    tags = {"ifm.root": str(project)}
    log.append({"op": "start", "time": 1, "uri": uri, "experiment": "ifm", "name": "late", "tags": tags})
    log.append({"op": "end", "time": 2, "status": "FINISHED"})
    log.close()
    moved = tmp_path / "moved"
    monkeypatch.chdir(tmp_path)
    shutil.move(project, moved)
    go_to(moved, monkeypatch)
    done = sync()
    assert (done.delivered, done.elsewhere, done.failed) == ([log.id], {}, {})
    client, experiment = stores.connect()
    assert "late" in [run.info.run_name for run in client.search_runs([experiment])]


def test_no_path_of_this_machine_travels(project, monkeypatch):
    """Records go with DVC's cache, and logs with the folder; `ifm.root` says where a run was, and nothing reads it."""
    record = json.loads(Path("run.json").read_text())
    assert record["tracking_uri"] == "sqlite:///mlflow.db"
    assert str(project) not in json.dumps(record)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "connect", lambda *_: 1 / 0)
        with stage_run("y", params={}, record=Path("run.json")):
            pass
    (log,) = all_logs()
    lines = (log / locallog.FILE).read_text().replace(f'"ifm.root": "{project}"', "")
    assert str(project) not in lines


def test_an_environment_of_another_folder_is_made_anew(tmp_path):
    """`make` in a folder with a space, with its own environment, with one that came along, and with a shared one."""
    folder = tmp_path / "a b"
    (folder / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    stamp = folder / ".venv" / ".installed"

    def planned() -> str:
        os.utime(stamp, (time.time() + 3600,) * 2)
        words = ["make", "-n", "--no-print-directory", "setup"]  # `make test` itself is a make around this one
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout

    stamp.write_text(f"{folder}\n")
    assert "venv" not in planned()
    stamp.write_text("/somewhere else\n")
    assert planned().splitlines()[0].endswith("rm -rf .venv")
    stamp.write_text("")  # made before this was written down
    assert "venv" not in planned()
    stamp.write_text("/somewhere else\n")
    (folder / ".venv").rename(tmp_path / "shared")
    (folder / ".venv").symlink_to(tmp_path / "shared")
    assert "venv" not in planned()


@pytest.mark.parametrize("name", ["a$HOME", "a:b"])
def test_a_folder_that_no_environment_can_be_in_is_named_at_once(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, folder / file)
    done = subprocess.run(["make", "setup"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        f"the path of this folder has {name[1]} in it, with which Python environments do not work; rename the folder"
    )
    assert not (folder / ".venv").exists()


# --- commands ---------------------------------------------------------------------------------------------------------


def said_by(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line of a command that refuses."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    line = str(ended.value.code)
    assert "\n" not in line
    assert line.startswith("ifm: ")
    assert capsys.readouterr().out == ""
    return line


PROMOTE, PACKAGE = ["promote", "--metric", "fid"], ["mlflow-model", "--model", "ifm-flow-ve@best", "--out", "served"]


@pytest.mark.parametrize("words", [["track"], ["track", "--sync"], PROMOTE, PACKAGE, ["ui"]], ids=" ".join)
def test_outside_of_a_project_a_command_says_so_and_makes_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "works on a project, and this folder is in none" in said_by(words, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [PROMOTE, PACKAGE], ids=" ".join)
def test_a_store_that_is_only_read_is_not_made(words, tmp_path, monkeypatch, capsys):
    project = checkout(tmp_path / "p")
    monkeypatch.chdir(project / "docs")
    before = sorted(project.rglob("*"))
    assert said_by(words, capsys).startswith(f"ifm: {project}/mlflow.db: there is no store yet")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert said_by(words, capsys).startswith(f"ifm: {tmp_path}/other.db: there is no store yet")
    assert sorted(project.rglob("*")) == before


def test_a_subfolder_is_the_same_project(project, monkeypatch, capsys):
    log = LocalLog(locallog.logs_folder() / locallog.new_id("waits"))
    head = {"op": "start", "time": 1, "uri": places.OWN, "experiment": "ifm", "name": "waits", "tags": {}}
    log.append(head)
    log.close()
    go_to(project / "docs", monkeypatch)
    main(["track"])
    said = capsys.readouterr().out
    assert said.startswith(f"1 logs wait in {project}/.ifm/tracking; deliver: ifm track --sync\n")
    assert "no model ifm-flow-*" in said_by(PROMOTE, capsys)
    assert "has no such model" in said_by(PACKAGE, capsys)
    main(["track", "--sync"])
    assert capsys.readouterr().out.startswith("1 logs delivered")
    assert list((project / "docs").iterdir()) == []


def test_ui_serves_the_projects_store_from_any_folder_of_it(project, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(commands.os, "execv", lambda program, words: started.append(words))
    moved = tmp_path / ODD
    monkeypatch.chdir(tmp_path)
    shutil.move(project, moved)
    go_to(moved / "docs", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    main(["ui", "--port", "5001"])
    ((_, *words),) = started
    assert " ".join(words[:-1]) == "-m mlflow ui --host 127.0.0.1 --port 5001 --workers 1 --backend-store-uri"
    assert Path.cwd() == moved
    assert places.sqlite_file(words[-1]).resolve() == moved / "mlflow.db"
    said = capsys.readouterr()
    assert said.out == "runs: http://127.0.0.1:5001/#/experiments?workflowType=machine_learning\n"
    assert f"{project}/mlartifacts" in said.err  # and the pages show its artifacts


def test_a_broken_store_is_not_served(project, capsys):
    (project / "mlflow.db").write_bytes(b"no database, and long enough to tell " * 100)
    stores.connect.cache_clear()
    assert said_by(["ui"], capsys).startswith("ifm: mlflow.db: DatabaseError: file is not a database")
