"""`ifm doctor`: what it finds is so, on machines and folders that are made to be so."""

import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ifm.cli.doctor import machine, stores, work
from ifm.cli.doctor.findings import OK, PROBLEM, WARNING
from ifm.cli.main import main
from ifm.config import load
from ifm.errors import UserError
from ifm.files import file_sha256
from tests.support.core_alone import BLOCKER
from tests.support.project import edit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml, DVC and a commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("MLFLOW_TRACKING_URI", "IFM_TRACKING", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    made = tmp_path / "ifm"
    (made / ".dvc").mkdir(parents=True)
    (made / "pipeline/runner").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", ".dvc/config", ".dvc/.gitignore", "pipeline/runner/stage.py"):
        shutil.copy(ROOT / name, made / name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    who = (["config", "user.name", "t"], ["config", "user.email", "t@example.org"])
    for words in (["init", "-q"], *who, ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *words], cwd=made, check=True)
    return made


def of(findings) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings]


def ifm_doctor(folder: Path, *, without: str = "", **env: str) -> subprocess.CompletedProcess:
    code = without + "\nimport sys; sys.argv = ['ifm', 'doctor']; from ifm.cli.main import main; main()"
    around = os.environ | {"PYTHONPATH": str(ROOT / "src")} | env
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=around, capture_output=True, text=True, check=False
    )


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_sound_checkout_is_ok_and_a_broken_one_is_not(checkout, monkeypatch, capsys):
    (checkout / "docs").mkdir()
    monkeypatch.chdir(checkout / "docs")  # from any folder in it
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0 problems, 0 warnings"
    names = [line[9:21].strip() for line in lines[:-2]]
    assert [n for n in names if n != "torch"] == [
        "Python", "cores", "params.yaml", "disk", "Git", "DVC", "remote", "tracking", "weights",
    ]  # fmt: skip
    edit(checkout / "params.yaml", {"flow.lr": -1.0})
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "problem  params.yaml  params.yaml: flow.lr = -1.0: input should be greater than 0" in said
    assert "1 problems, 0 warnings" in said


def test_outside_a_checkout_and_without_dvc_and_mlflow(checkout, tmp_path, monkeypatch, capsys):
    done = ifm_doctor(checkout, without=BLOCKER)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning  DVC          not installed" in done.stdout
    assert "warning  tracking     off (mlflow is not installed)" in done.stdout
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    assert "warning  checkout     this folder is in none" in capsys.readouterr().out


# --- the machine ------------------------------------------------------------------------------------------------------


def test_python_and_threads(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert of(machine.python())[0] == (PROBLEM, "3.10.4; 3.11 or newer is needed")
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    ((level, text),) = of(machine.cores())
    assert level == WARNING
    assert "asks for 4096 threads" in text


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo /usr", "python on PATH is {python}, and not this environment's"),
        ("exit 1", "python on PATH is {python}, and not this environment's"),
        (None, "there is no python on PATH"),
        (f"echo '{sys.prefix}'", None),
    ],
    ids=["another", "broken", "none", "this one by another name"],
)
def test_python_on_the_path_is_this_environments(script, said, tmp_path, monkeypatch):
    """DVC's stages call `python`, whatever that is."""
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [(PROBLEM, said.format(python=python))] if said else []
    assert of(machine.python())[1:] == found


def test_an_environment_that_came_along_from_another_folder(checkout):
    assert list(machine.package(checkout)) == []  # without sources there is nothing to compare
    (checkout / "src/ifm").mkdir(parents=True)
    ((level, text),) = of(machine.package(checkout))
    assert (level, text) == (WARNING, f"`ifm` is {ROOT}/src/ifm, and not this checkout's")
    assert list(machine.package(ROOT)) == []


def test_a_device_that_computes_wrongly_is_a_problem(monkeypatch):
    import torch

    assert machine.works_on("cpu")
    found = of(machine.torch_devices())
    assert found[0] == (OK, f"{torch.__version__} on the CPU")
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    assert of(machine.torch_devices())[0][0] == PROBLEM

    def broken(name):
        raise RuntimeError("no kernel image is available\nCompile with ...")

    monkeypatch.setattr(machine, "works_on", broken)
    level, text = of(machine.torch_devices())[0]
    assert (level, text.endswith("on the CPU: no kernel image is available")) == (PROBLEM, True)


def test_what_a_gpu_is_asked(checkout, monkeypatch):
    """By stand-ins on the CPU: bfloat16, a small compiled block, and the rate of the configured network."""
    import torch

    assert not list(machine.gpu_abilities()) or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    made = []
    monkeypatch.setattr(torch, "compile", lambda block: made.append(block) or (lambda x: block(x)))
    asked = machine.compiler
    monkeypatch.setattr(machine, "compiler", lambda device: asked("cpu"))
    levels = [(finding.level, finding.text.split(",")[0]) for finding in machine.gpu_abilities()]
    assert levels == [(WARNING, "has no bfloat16"), (OK, "torch.compile works")]
    assert len(made) == 1
    monkeypatch.setattr(torch, "compile", lambda block: lambda x: block(x) + 1)
    assert "computes wrongly, by 1" in asked("cpu").text

    def fails(block):
        raise RuntimeError("no C compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", fails)
    assert asked("cpu").text == "torch.compile fails: no C compiler"

    monkeypatch.setattr(work, "training_rate", lambda config, device: 2.0 * config.flow.batch_size)
    steps = work._config(checkout).flow.steps
    assert of(work.speed(checkout))[0] == (
        OK, f"at least {2 * work._config(checkout).flow.batch_size:,} images/s in training on one a GPU, "
        f"flow.steps in {steps / 120:,.1f} min at most",
    )  # fmt: skip


def test_the_disk_against_a_need_worked_out_by_hand(checkout, monkeypatch):
    edit(
        checkout / "params.yaml",
        {
            "dynamics": ["ve", "rf"], "trajectories.count": 1000, "trajectories.stored_times": 4, "sample.seeds": 2,
            "sample.count": 500, "sample.flow_steps": [1, 2], "evaluate.teacher_nfe": [1, 35],
        },
    )  # fmt: skip
    # Digits: 1,797 of 64 bytes, raw and processed; 4 samplers: 2 teachers, 2 flows. Paths: the 3 states after
    # x_T, of 64 values of 2 bytes.
    samples = 4 * 2 * 500 * 64
    each = samples + 1000 * 3 * 64 * 2
    need = 2 * (2 * 1797 * 64 + 2 * each) + work.MODELS
    assert work.needed_bytes(load(checkout / "params.yaml")) == need
    for free, level in ((need - 1, PROBLEM), (2 * need - 1, WARNING), (2 * need, OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        ((found, text),) = of(work.disk(checkout))
        assert found == level
        assert text.endswith(f"free, a run takes about {need / 1e9:.1f} GB")
    edit(checkout / "params.yaml", {"trajectories.store": "none"})
    assert work.needed_bytes(load(checkout / "params.yaml")) == 2 * (2 * 1797 * 64 + 2 * samples) + work.MODELS


# --- DVC --------------------------------------------------------------------------------------------------------------


def test_a_folder_without_commits_or_dvc(checkout):
    shutil.rmtree(checkout / ".git")
    shutil.rmtree(checkout / ".dvc")
    assert of(stores.dvc(checkout)) == [
        (PROBLEM, "this folder is no checkout with a commit"), (PROBLEM, "this folder has no .dvc/config"),
    ]  # fmt: skip


def remote(checkout: Path, name: str, url: str, **options: str) -> None:
    lines = [f"['remote \"{name}\"']", f"    url = {url}", *(f"    {k} = {v}" for k, v in options.items())]
    with open(checkout / ".dvc/config.local", "a") as file:
        file.write("\n".join(lines) + "\n")


def test_remotes_that_answer_and_others(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SECONDS", 10)
    assert of(stores.remotes(checkout)) == [(OK, "none: results stay here (docs/sharing.md)")]
    (tmp_path / "store").mkdir()
    remote(checkout, "there", str(tmp_path / "store"))
    remote(checkout, "new", str(tmp_path / "new"))
    remote(checkout, "web", "http://127.0.0.1:9/store?token=hunter2", user="me", password="hunter3")
    assert of(stores.remotes(checkout)) == [
        (OK, f"there, {tmp_path / 'store'}: answers"),
        (OK, f"new, {tmp_path / 'new'}: answers; nothing was pushed yet"),
        (PROBLEM, "web, http://127.0.0.1:9/store: cannot be reached (URLError)"),
        (WARNING, "none of them is the default"),
    ]


def test_a_remote_whose_package_is_missing_names_the_extra(checkout):
    remote(checkout, "far", "gs://bucket/ifm")
    finding = next(stores.remotes(checkout))
    if finding.level == OK:
        pytest.skip("dvc-gs is installed")
    assert (finding.level, finding.text) == (PROBLEM, "far, gs://bucket/ifm: its package is missing")
    assert finding.mend == "pip install 'dvc[gs]'"


def test_a_remote_that_does_not_answer_is_not_waited_for(checkout, monkeypatch):
    remote(checkout, "slow", "/nowhere")
    asked = threading.Event()
    monkeypatch.setattr(stores, "_reach", lambda *_: asked.wait(60))
    monkeypatch.setattr(stores, "SECONDS", 0.05)
    assert of(stores.remotes(checkout))[0] == (PROBLEM, "slow, /nowhere: no answer in 0.05 s")
    asked.set()


def test_addresses_are_shown_without_secrets():
    assert stores.plain_url("https://me:pw@host:8/a/b?key=1#x") == "https://host:8/a/b"
    assert stores.plain_url("s3://bucket/ifm") == "s3://bucket/ifm"
    assert stores.plain_url("/some/folder") == "/some/folder"


@pytest.mark.parametrize("missing", [["user.name"], ["user.email"], ["user.name", "user.email"]], ids=" ".join)
def test_git_has_to_know_who_commits(missing, checkout, monkeypatch):
    from pipeline.studies import study

    assert WARNING not in [level for level, _ in of(stores.dvc(checkout))]
    for key in missing:
        subprocess.run(["git", "config", "--unset", key], cwd=checkout, check=True)
    warnings = [text for level, text in of(stores.dvc(checkout)) if level == WARNING]
    assert warnings == [
        f"does not know your {' and '.join(missing)}: dvc exp run and sweeps end in an unexpected error"
    ]
    monkeypatch.chdir(checkout)
    with pytest.raises(UserError, match=f"does not know your {' and '.join(missing)}"):
        study.check_checkout()


# --- tracking ---------------------------------------------------------------------------------------------------------


def test_the_store_of_this_folder(checkout, monkeypatch):
    assert of(stores.tracking(checkout)) == [(OK, "mlflow.db: made by the first run")]
    file = checkout / "mlflow.db"
    file.write_text("this is no database, and long enough for SQLite to see it" * 20)
    assert of(stores.tracking(checkout)) == [(PROBLEM, "mlflow.db: no store of MLflow's (file is not a database)")]
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("create table runs (run_uuid text, lifecycle_stage text, artifact_uri text)")
        connection.execute("create table experiments (experiment_id integer, artifact_location text)")
        connection.execute("create table logged_models (model_id text, artifact_location text)")
        states = [("a", "active"), ("b", "active"), ("c", "deleted")]
        connection.executemany("insert into runs values (?, ?, null)", states)
    connection.close()
    before = file.read_bytes()
    assert of(stores.tracking(checkout)) == [(OK, "mlflow.db: 2 runs")]
    assert file.read_bytes() == before
    monkeypatch.setenv("IFM_TRACKING", "off")
    assert of(stores.tracking(checkout)) == [(WARNING, "off (IFM_TRACKING)")]


@pytest.mark.parametrize("name", ["100%20 sure", "what? #1", "it's"])
def test_a_store_in_a_folder_of_an_odd_name(name, checkout, tmp_path, monkeypatch):
    """The address that the store is opened by is tried, and not the path alone."""
    from ifm.tracking import places

    odd = checkout.rename(tmp_path / name)
    with sqlite3.connect(odd / "mlflow.db") as connection:
        connection.execute("create table runs (run_uuid text, lifecycle_stage text, artifact_uri text)")
        connection.execute("create table experiments (experiment_id integer, artifact_location text)")
        connection.execute("create table logged_models (model_id text, artifact_location text)")
        connection.execute("insert into runs values ('a', 'active', ?)", ((odd / "mlartifacts/a/artifacts").as_uri(),))
    connection.close()
    monkeypatch.chdir(tmp_path)
    assert of(stores.tracking(odd)) == [(OK, "mlflow.db: 1 runs")]
    monkeypatch.setattr(places, "address", lambda file: f"sqlite:///{file}")
    spoilt = name != "it's"
    level, text = of(stores.tracking(odd))[0]
    assert (level == PROBLEM, "characters that an address cannot hold" in text) == (spoilt, spoilt)


def test_a_store_that_was_moved_along(checkout, tmp_path):
    old = tmp_path / "old place"
    with sqlite3.connect(checkout / "mlflow.db") as connection:
        connection.execute("create table runs (run_uuid text, lifecycle_stage text, artifact_uri text)")
        connection.execute("create table experiments (experiment_id integer, artifact_location text)")
        connection.execute("create table logged_models (model_id text, artifact_location text)")
        connection.execute("insert into experiments values (1, ?)", ((old / "mlartifacts").as_uri(),))
        uri = (old / "mlartifacts/a/artifacts").as_uri()
        connection.executemany(
            "insert into runs values (?, 'active', ?)", [("a", uri), ("b", uri.replace("/a/", "/b/"))]
        )
    connection.close()
    before = (checkout / "mlflow.db").read_bytes()
    said = f"this project was at {old}, or is a copy of it; {{}} runs have their artifacts there"
    assert of(stores.tracking(checkout)) == [(OK, "mlflow.db: 2 runs"), (WARNING, said.format(0))]
    (old / "mlartifacts/a/artifacts").mkdir(parents=True)
    assert of(stores.tracking(checkout))[1] == (WARNING, said.format(1))
    assert (checkout / "mlflow.db").read_bytes() == before


def test_a_store_that_mlflow_refuses_is_tried(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    ((level, text),) = of(stores.tracking(checkout))
    assert (level, "MLFLOW_ALLOW_FILE_STORE=true" in text) == (PROBLEM, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@127.0.0.1:9/runs")
    ((level, text),) = of(stores.tracking(checkout))
    assert (level, text.startswith("postgresql://127.0.0.1:9/runs: ")) == (PROBLEM, True)
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, (OK, "answers")),
        (401, (WARNING, "wants credentials (status 401)")),
        (500, (PROBLEM, "answers with status 500")),
    ],
)
def test_a_tracking_server(checkout, monkeypatch, status, said):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{where}/")
    assert of(stores.tracking(checkout)) == [(said[0], f"http://{where}/: {said[1]}")]
    assert asked == ["/health"]
    server.shutdown()
    server.server_close()
    assert of(stores.tracking(checkout)) == [(PROBLEM, f"http://{where}/: no answer (ConnectionRefusedError)")]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_looked_for_and_verified_but_not_fetched(checkout, tmp_path, monkeypatch):
    from ifm.metrics import weights

    params = checkout / "params.yaml"
    assert of(work.weights(checkout)) == [(OK, "extractor classifier needs none")]
    monkeypatch.setattr(weights, "INCEPTION_FOLDER", tmp_path)
    monkeypatch.setattr(weights, "_fetch_inception", lambda *_, **__: pytest.fail("was fetched"))
    edit(params, {"evaluate.extractor": "inception"})
    ((level, text),) = of(work.weights(checkout))
    assert (level, text) == (WARNING, "those of inception are not here: the stage reference will fetch them")
    file = tmp_path / weights.INCEPTION_FILE
    file.write_bytes(b"not the weights")
    ((level, text),) = of(work.weights(checkout))
    assert (level, text.startswith(f"{file}: sha256 is {file_sha256(file)}, expected f58cb9b6")) == (PROBLEM, True)
    edit(params, {"evaluate.weights_sha256": file_sha256(file)})
    assert of(work.weights(checkout)) == [(OK, f"{file}: the digest is right")]
    edit(params, {"evaluate.inception_path": "nowhere/weights.pt"})
    ((level, text),) = of(work.weights(checkout))
    assert (level, "no such file" in text) == (PROBLEM, True)
