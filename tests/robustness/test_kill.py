"""The kill test: which kills, when, and what it takes for a difference; slow: three kills of real pipelines."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ifm.errors import UserError
from tests.robustness import kill_test
from tests.robustness.kill_test import (
    MARK,
    MODES,
    PARALLEL,
    SIGNALS,
    STAGES,
    STEPS,
    TINY,
    VICTIMS,
    Kill,
    Killed,
    Round,
    differences,
    digests,
    leftovers,
    plan,
    record,
    shared_out,
    stage_of,
    table,
    with_table,
)

ROOT = Path(__file__).parents[2]
KILL = Kill("workspace", "teacher", "SIGKILL", "stage", 0.6)


def test_a_plan_meets_every_stage_signal_and_victim():
    kills = plan(30, seed=0)
    assert len(kills) == 30
    assert {k.stage for k in kills} == set(STAGES)
    assert {(k.signal, k.victim) for k in kills} == {(s, v) for s in SIGNALS for v in VICTIMS}
    assert [sum(k.mode == mode for k in kills) for mode in MODES] == [15, 9, 6]
    assert {k.stage for k in kills if k.mode == "two processes"} == set(PARALLEL)
    assert all(0 <= k.moment <= 0.9 for k in kills)


def test_side_by_side_is_a_plan_of_its_own():
    kills = plan(len(STAGES), seed=0, beside=True)
    assert {k.mode for k in kills} == {"side by side"}
    assert {k.stage for k in kills} == set(STAGES)


def test_a_plan_depends_on_its_seed_alone():
    assert plan(30, seed=1) == plan(30, seed=1)
    moments = [[k.moment for k in plan(30, seed=seed)] for seed in (0, 1)]
    assert moments[0] != moments[1]
    assert len(set(moments[0])) > 25


@pytest.mark.parametrize(("count", "numbers"), [(3, [1, 1, 1]), (30, [15, 9, 6]), (1, [1, 0, 0]), (10, [5, 3, 2])])
def test_kills_are_shared_out(count, numbers):
    assert shared_out(count, (0.5, 0.3, 0.2)) == numbers


def test_the_moment_of_a_kill_is_a_share_of_what_there_is_to_save():
    assert not KILL.due(1e9, 0, 10.0)  # nothing is saved yet, however long it takes
    assert not KILL.due(0.0, 125, 10.0)
    assert KILL.due(0.0, 150, 10.0)  # (0.6 - 0.2) / 0.8 of 300 steps
    starting = replace(KILL, moment=0.1)
    assert (starting.due(0.9, 0, 10.0), starting.due(1.1, 0, 10.0)) == (False, True)
    short = replace(KILL, stage="report", moment=0.5)
    assert (short.due(2.9, 0, 10.0), short.due(3.1, 0, 10.0)) == (False, True)


def test_what_there_is_to_save_is_what_the_params_say():
    shards = -(-TINY["trajectories.count"] // TINY["trajectories.shard_size"])
    assert {"teacher": TINY["teacher.steps"], "flow": TINY["flow.steps"], "trajectories": shards} == STEPS


@pytest.mark.parametrize(
    ("command", "stage"),
    [
        (["python", "-m", "pipeline.stages.teacher", "rf"], "teacher"),
        (["python", "torchrun", "--nproc_per_node", "2", "-m", "pipeline.stages.flow", "rf"], "flow"),
        (["python", "-m", "dvc", "repro", "teacher@rf"], None),
    ],
)
def test_the_stage_of_a_command(command, stage):
    assert stage_of(command) == stage


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for name in ("models/teacher/rf/model.safetensors", "data/samples/rf/flow.npy", "reports/metrics/rf.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "reports/summary.csv").write_text("fid,seconds_per_image,peak_memory_mb,fid_sd\n1.5,2,3,4\n")
    return tmp_path


def test_digests_are_of_bytes_and_of_a_table_without_what_is_measured(outputs):
    before = digests(outputs)
    assert len(before) == 4
    (outputs / "reports/summary.csv").write_text("fid,seconds_per_image,peak_memory_mb,fid_sd\n1.5,9,9,4\n")
    assert digests(outputs) == before
    (outputs / "reports/summary.csv").write_text("fid,seconds_per_image,peak_memory_mb,fid_sd\n1.50,9,9,4\n")
    assert differences(digests(outputs), before) == ["reports/summary.csv"]


def test_changed_missing_and_further_files_are_differences(outputs):
    before = digests(outputs)
    (outputs / "models/teacher/rf/model.safetensors").write_text("models/teacher/rf/model.safetensorS")
    (outputs / "data/samples/rf/flow.npy").unlink()
    (outputs / "reports/metrics/ve.json").write_text("")
    names = ["data/samples/rf/flow.npy", "models/teacher/rf/model.safetensors", "reports/metrics/ve.json"]
    assert differences(digests(outputs), before) == names


def test_leftovers_are_seen(outputs):
    assert leftovers(outputs) == []
    (outputs / "data/samples/.rf.77.tmp").mkdir()
    (outputs / ".ifm/checkpoints/teacher-rf-0").mkdir(parents=True)
    assert leftovers(outputs) == [".ifm/checkpoints/teacher-rf-0", "data/samples/.rf.77.tmp"]


def test_what_the_next_start_said_is_noted():
    kills = [Killed(replace(KILL, stage=stage), alive=True) for stage in ("teacher", "trajectories", "flow")]
    said = (
        "teacher rf: step 25 of 300\n  flow ve: goes on from step 25 of 300\ntrajectories-rf: goes on after 3 shards\n"
    )
    kill_test._note_resumed(kills, said, ["rf", "ve"])
    assert [k.resumed for k in kills] == ["", "goes on after 3 shards", "goes on from step 25 of 300"]


class FakeProject:
    """A pipeline of two stages, each a process that sleeps; side by side both at once, else one after the other."""

    def __init__(self, mode, *, teacher=10.0):
        self.mode, self.teacher = mode, teacher

    def start(self, log):
        stage = f"{sys.executable} -c 'import time; time.sleep(%s)' -m pipeline.stages.%s"
        both = [stage % (self.teacher, "teacher"), stage % (10.0, "flow")]
        command = " & ".join(both) + " & wait" if self.mode == kill_test.BESIDE else "; ".join(both) + "; false"
        return subprocess.Popen(["bash", "-c", command], start_new_session=True)

    def saved(self, stage):
        return ("step 299", 0.0) if stage == "teacher" else ("", 0.0)


def test_a_pipeline_that_goes_on_after_a_kill_meets_the_next_one():
    """As a branch beside the one that was hit does, and a pipeline whose victim had done its work."""
    todo = [Kill("workspace", stage, "SIGKILL", "stage", 0.1) for stage in ("teacher", "flow")]
    for mode in (kill_test.BESIDE, "workspace"):
        _, killed = kill_test.attempt(FakeProject(mode), None, todo, {"teacher": 0.1, "flow": 0.1})
        assert {(k.plan.stage, k.alive) for k in killed} == {("teacher", True), ("flow", True)}


def test_nothing_more_is_killed_once_the_whole_pipeline_was():
    todo = [Kill("workspace", stage, "SIGKILL", "all", 0.1) for stage in ("teacher", "flow")]
    status, killed = kill_test.attempt(FakeProject(kill_test.BESIDE), None, todo, {"teacher": 0.1, "flow": 0.1})
    assert (status, len(killed)) == (-9, 1)


def test_a_stage_that_ended_before_its_moment_is_noted_and_the_next_one_killed():
    todo = [Kill("workspace", "teacher", "SIGKILL", "stage", 0.9), Kill("workspace", "flow", "SIGTERM", "stage", 0.1)]
    project = FakeProject("workspace", teacher=0.3)
    project.saved = lambda stage: ("", 0.0)
    _, killed = kill_test.attempt(project, None, todo, {"teacher": 0.1, "flow": 0.1})
    assert [(k.plan.stage, k.alive) for k in killed] == [("teacher", False), ("flow", True)]


def test_the_record_counts_and_the_table_shows_them():
    sound = Round("workspace", [Killed(KILL, True, 3.0, "step 25", "goes on from step 25 of 300", 1.26)], 2, 60.0)
    faulty = Round("experiment", [Killed(KILL, False), Killed(KILL, True)], 3, 40.0, ["models/x"], ["2 rows"], [])
    made = record([sound, faulty], [Round("workspace", seconds=20.04)], seed=0, outputs=7)
    assert json.loads(json.dumps(made)) == made
    assert made["faults"] == ["models/x", "2 rows"]
    assert made["undisturbed_seconds"] == {"workspace": 20.0}
    total = made["modes"][-1]
    assert (total["kills"], total["alive"], total["with_checkpoint"], total["resumed"]) == (3, 2, 1, 1)
    assert (total["rounds"], total["rounds_identical"], total["lost_seconds"]) == (2, 1, 1.3)
    shown = table(made)
    assert "| workspace | 1 | 1 | 1 | 1 | yes | 0 | 0 | 1 s |" in shown
    assert "| experiment | 2 | 1 | 0 | 0 | **no** | 1 | 0 | 0 s |" in shown
    page = f"# Kills\n\n{MARK}\nold\n{MARK}\nend\n"
    assert with_table(page, made) == f"# Kills\n\n{MARK}\n{shown}\n{MARK}\nend\n"
    with pytest.raises(UserError, match="two lines"):
        with_table("no marks", made)


def test_the_page_shows_the_record():
    page = (ROOT / "docs/reliability.md").read_text()
    assert with_table(page, json.loads((ROOT / "docs/reliability.json").read_text())) == page


@pytest.mark.slow
def test_three_kills(tmp_path):
    """In the workspace, in an experiment, of two processes: the same bytes at the end."""
    out = tmp_path / "reliability.json"
    words = [sys.executable, "-m", "tests.robustness.kill_test", "--kills", "3", "--seed", "1", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(out.read_text())
    assert made["faults"] == []
    assert made["outputs_compared"] > 50
    assert [row["rounds_identical"] for row in made["modes"]] == [1, 1, 1, 3]
    assert made["modes"][-1]["alive"] >= 2
