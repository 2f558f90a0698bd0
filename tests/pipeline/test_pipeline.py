"""The real graph, by the real `dvc repro`, on a tiny configuration in a clone of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.project import REAL_PATH, TINY, Project, clone_of_this, edit

ROOT = Path(__file__).parents[2]
SINGLE = ["fetch", "preprocess", "reference", "report", "track"]
BRANCH = ["teacher@rf", "trajectories@rf", "flow@rf", "select@rf", "sample@rf", "evaluate@rf", "diagnose@rf"]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    made = clone_of_this(tmp_path_factory.mktemp("clone") / "ifm")
    edit(made.folder / "params.yaml", TINY)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    assert set(made.repro()) == {*SINGLE, *BRANCH}
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "results")
    return made


def test_outputs(project):
    folder = project.folder
    samples = folder / "data/samples/rf"
    names = {"teacher-heun-nfe001", "teacher-heun-nfe005", "flow-one_step-nfe001", "flow-selected-nfe002"}
    assert {p.stem for p in samples.glob("*.npy")} == names
    for name in names:
        images = np.load(samples / f"{name}.npy", allow_pickle=False)
        assert (images.shape, images.dtype) == ((96, 1, 8, 8), np.uint8)
        assert (samples / "grids" / f"{name}.png").is_file()
    assert (samples / "grids" / "side_by_side.png").is_file()
    trajectories = [np.load(p) for p in sorted((folder / "data/trajectories/rf").glob("shard-*.npy"))]
    assert [a.shape for a in trajectories] == [(32, 2, 1, 8, 8)] * 2
    assert trajectories[0].dtype == np.float16
    assert np.load(folder / "data/trajectories/rf/first.npy").shape == (64, 3, 1, 8, 8)
    assert project.json("data/trajectories/rf/metadata.json")["times"] == pytest.approx([1.0, 0.0306, 0.0], rel=1e-2)
    assert (folder / "reports/index.html").stat().st_size < 5_000_000
    assert not (folder / ".ifm/checkpoints").exists() or not list((folder / ".ifm/checkpoints").iterdir())


def test_summary_is_in_long_form(project):
    table = pd.read_csv(project.folder / "reports/summary.csv")
    assert len(table) == 4 + 1
    assert pd.read_json(project.folder / "reports/summary.json").shape == table.shape
    real, table = table[table.model == "data"], table[table.model != "data"]
    assert (real.sampler.tolist(), real.n_samples.tolist()) == (["test"], [359])
    assert set(table.columns) >= {
        "data", "extractor", "dynamics", "model", "objective", "anchor", "sampler", "nfe", "seed", "n_samples", "fid",
        "kid", "seconds_per_image", "parameters", "train_images", "train_seconds",
    }  # fmt: skip
    flow = table[table.model == "flow"].set_index(["sampler", "nfe"])
    assert set(flow.index) == {("one_step", 1), ("selected", 2)}
    assert set(flow.objective) == {"trajectory+consistency"}
    assert set(flow.anchor) == {"self"}
    assert (flow.train_images == 320).all()
    metrics = project.json("reports/metrics/rf.json")
    assert flow.loc[("one_step", 1), "fid"] == pytest.approx(metrics["flow-one_step-nfe001"]["fid"], rel=1e-5)
    assert (table[["fid", "fid_sd", "seconds_per_image", "seconds_batch_1", "train_seconds"]] > 0).all(axis=None)
    assert (table[["n_samples", "seeds"]] == [48, 2]).all(axis=None)
    assert table[["inception_score", "precision", "recall", "density", "coverage"]].notna().all(axis=None)
    assert json.loads((project.folder / "data/pairs/rf/pairs.json").read_text()).keys() == {"flow-one_step-nfe001"}
    assert (project.folder / "data/pairs/rf/flow-one_step-nfe001.png").is_file()


def test_tracking(project):
    runs = project.runs()
    parents = [r for r in runs if r.data.tags.get("ifm.kind") == "pipeline"]
    stages = {r.data.tags["ifm.stage"]: r for r in runs if r.data.tags.get("ifm.kind") == "stage"}
    assert len(parents) == 1
    assert set(stages) == {"fetch", "preprocess", "reference", "report", *(b.replace("@", "-") for b in BRANCH)}
    assert {r.info.status for r in runs} == {"FINISHED"}
    (parent,) = parents
    assert parent.data.params["flow.lr"] == "0.001"
    assert parent.data.metrics["fid/rf-flow-1nfe"] > 0
    for name, run in stages.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.data.tags[f"stage.{name}.run_id"] == run.info.run_id
    teacher = stages["teacher-rf"]
    assert teacher.data.tags["input.data/processed"].endswith(".dir")
    assert len(teacher.data.tags["mlflow.source.git.commit"]) == 40
    assert {"loss", "grad_norm", "lr", "train_seconds"} <= set(teacher.data.metrics)


def test_a_second_repro_does_nothing(project):
    assert project.repro() == []


def test_a_change_of_evaluate_retrains_nothing_and_going_back_runs_nothing(project):
    project.set(evaluate__kid_subsets=4)
    assert set(project.repro()) == {"evaluate@rf", "report", "track"}
    assert len([r for r in project.runs() if r.data.tags.get("ifm.kind") == "pipeline"]) == 2
    project.set(evaluate__kid_subsets=3)
    assert "evaluate@rf" not in project.repro()  # from DVC's run cache
    parents = [r for r in project.runs() if r.data.tags.get("ifm.kind") == "pipeline"]
    assert len(parents) == 2  # the same state is the same row


def test_a_wrong_value_stops_before_any_work(project):
    project.set(flow__init="teachr", seed=1)
    out = project.run("dvc", "repro", ok=False)
    assert "params.yaml: flow.init = 'teachr' is not allowed; allowed: 'teacher', 'scratch'" in out
    assert "Traceback" not in out
    assert not [r for r in project.runs() if r.info.status not in ("FINISHED",)]
    project.set(flow__init="teacher", seed=0)
    assert not set(project.repro()) & {*BRANCH}  # nothing was lost


def test_a_killed_training_goes_on_from_its_checkpoint(project):
    project.set(teacher__steps=300)
    process = subprocess.Popen(
        ["dvc", "repro", "teacher@rf"], cwd=project.folder, env=project.env | {"PATH": REAL_PATH},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = project.folder / ".ifm/checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("teacher-rf-*/step-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [r.info.status for r in project.runs()].count("RUNNING") == 1
    out = project.run("dvc", "repro", "teacher@rf")
    assert "teacher rf: goes on from step" in out
    statuses = [r.info.status for r in project.runs()]
    assert "RUNNING" not in statuses
    assert statuses.count("KILLED") == 1
    curve = pd.read_csv(project.folder / "reports/curves/teacher-rf.csv")
    assert curve.step.tolist() == list(range(5, 301, 5))
    assert not list(checkpoints.glob("*"))
    project.set(teacher__steps=20)
    assert not set(project.repro()) & {*BRANCH}


@pytest.mark.slow
def test_without_a_teacher_its_stages_do_no_work(project):
    """teacher.kind: none with `interval`: the stages say so, the page has the flow alone, and going back is free."""
    project.set(
        teacher__kind="none", flow__objective="interval", flow__init="scratch",
        sample__flow_samplers=["selected", "renoise", "chain"],
    )  # fmt: skip
    out = project.run("dvc", "repro")
    assert "teacher-rf: teacher.kind is none: nothing to train" in out
    assert "trajectories-rf: the flow's objective is interval, which needs no paths: nothing to solve" in out
    assert "diagnose-rf: teacher.kind is none" in out
    rows = project.json("reports/metrics/rf.json").values()
    assert [(r["model"], r["sampler"], r["nfe"]) for r in rows] == [
        ("data", "test", 0), ("flow", "one_step", 1), ("flow", "selected", 2), ("flow", "renoise", 2),
        ("flow", "chain", 2),
    ]  # fmt: skip
    assert "Flow, sub-intervals" in (project.folder / "reports/index.html").read_text()
    project.set(
        teacher__kind="network", flow__objective=["trajectory", "consistency"],
        flow__init="teacher",
        sample__flow_samplers=["selected"],
    )  # fmt: skip
    out = project.run("dvc", "repro")
    assert "nothing to" not in out
    assert "Stage 'flow@rf' is cached" in out


def test_two_processes_by_the_launcher(project):
    """torchrun around the stages: the same graph, the same files, shards equal byte for byte given equal weights."""
    before = {p.name: p.read_bytes() for p in (project.folder / "data/trajectories/rf").glob("*.npy")}
    known = {r.info.run_id for r in project.runs()}
    launch = {"IFM_LAUNCH": "torchrun --nproc_per_node 2"}
    project.run("dvc", "repro", "--force", "--single-item", "trajectories@rf", **launch)
    assert {p.name: p.read_bytes() for p in (project.folder / "data/trajectories/rf").glob("*.npy")} == before
    project.set(flow__steps=22)
    assert project.repro("flow@rf", **launch) == ["flow@rf"]
    # One run a stage: only the main process tracks.
    names = [r.info.run_name for r in project.runs() if r.info.run_id not in known]
    assert sorted(names) == ["flow-rf", "trajectories-rf"]
    project.set(flow__steps=20)
    project.run("dvc", "repro")


def test_a_colleague_pulls_and_retrains_nothing(project, tmp_path):
    """A clone with the cache from a remote: no stage of work runs, and `track` fills an empty store."""
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "again", "--allow-empty")
    remote = tmp_path / "remote"
    project.run("dvc", "remote", "add", "-f", "--local", "-d", "shared", str(remote))
    project.run("dvc", "push", "-q", "--run-cache")
    clone = Project(tmp_path / "colleague")
    project.run("git", "clone", "-q", str(project.folder), str(clone.folder))
    clone.run("dvc", "remote", "add", "--local", "-d", "shared", str(remote))
    # Without any data, from dvc.lock alone: every stage of work is up to date. (`report` and `track` depend on folders
    # of outputs, which DVC cannot compare before the pull.)
    out = clone.run("dvc", "repro", "--dry", "--allow-missing", *BRANCH)
    assert "Running stage" not in out
    clone.run("dvc", "pull", "-q")
    assert clone.repro() == []
    assert clone.repro("--force", "--single-item", "track") == ["track"]
    runs = clone.runs()
    (parent,) = [r for r in runs if r.data.tags.get("ifm.kind") == "pipeline"]
    stages = {r.data.tags["ifm.stage"]: r for r in runs if r.data.tags.get("ifm.kind") == "stage"}
    assert {*stages} == {"fetch", "preprocess", "reference", "report", *(b.replace("@", "-") for b in BRANCH)}
    origin = {r.data.tags.get("ifm.stage"): r for r in project.runs() if r.data.params.get("seed", "0") == "0"}
    assert stages["flow-rf"].data.params == origin["flow-rf"].data.params
    assert stages["flow-rf"].data.metrics["final_loss"] == origin["flow-rf"].data.metrics["final_loss"]
    assert stages["flow-rf"].data.tags["mlflow.parentRunId"] == parent.info.run_id


CIFAR10_JPEG = ROOT.parent / "shared" / "data" / "cifar10-jpeg"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10_JPEG.is_dir(), reason="the cifar10-jpeg parquet files are not beside the checkout")
def test_cifar10_jpeg_with_tiny_budgets(tmp_path):
    """The preset's own sources, shapes and network, with budgets for a CPU."""
    project = clone_of_this(tmp_path / "ifm")
    project.run(sys.executable, "-m", "pipeline.tools.preset", "cifar10-jpeg", "--data", str(CIFAR10_JPEG))
    tiny = {name: value for name, value in TINY.items() if not name.startswith("network")} | {
        "data.max_images": 500, "dynamics": ["ve", "rf", "pfgmpp"], "network.channels": [32, 64, 64],
        "teacher.steps": 4, "flow.steps": 4, "teacher.log_every": 2, "flow.log_every": 2,
        "teacher.checkpoint_every": 2, "flow.checkpoint_every": 2, "trajectories.count": 16,
        "trajectories.shard_size": 8, "sample.count": 16, "teacher.precision": "bf16",
    }  # fmt: skip
    edit(project.folder / "params.yaml", tiny)
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    project.repro()
    table = pd.read_csv(project.folder / "reports/summary.csv")
    assert set(table.dynamics.dropna()) == {"ve", "rf", "pfgmpp"}
    assert set(table.data) == {"cifar10-jpeg"}
    assert np.load(project.folder / "data/samples/ve/flow-one_step-nfe001.npy").shape == (2 * 16, 3, 32, 32)
    assert project.json("data/processed/metadata.json")["classes"][3] == "cat"
