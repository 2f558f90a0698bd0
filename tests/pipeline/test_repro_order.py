"""`ifm repro` without DVC: which stage comes next, how long the rest takes, dvc.lock's order, and what is printed."""

from itertools import permutations
from pathlib import Path

import pytest
import yaml

from ifm.progress import Lines
from pipeline.runner import lockfile, show, slots
from pipeline.runner.schedule import Graph, Schedule

ROOT = Path(__file__).parents[2]
KINDS = ("teacher", "flow", "judge")
BRANCHES = ("ve", "rf", "pfgmpp")


def graph() -> Graph:
    """fetch -> teacher@d -> flow@d -> judge@d -> report, in the order in which DVC goes through it."""
    needs = {"fetch": frozenset()}
    for kind, before in zip(KINDS, ("fetch", *KINDS), strict=False):
        for d in BRANCHES:
            needs[f"{kind}@{d}"] = frozenset({before if before == "fetch" else f"{before}@{d}"})
    needs["report"] = frozenset(f"judge@{d}" for d in BRANCHES)
    return Graph(tuple(needs), needs)


def played(schedule: Schedule, *, jobs: int, seconds: float = 1.0) -> tuple[list[tuple[float, str]], float]:
    """(when, stage) of every end, where each stage takes `seconds`; and when the last one was."""
    now, ends, seen = 0.0, {}, []
    while True:
        while len(ends) < jobs and (name := schedule.next()):
            assert schedule.graph.needs[name] <= schedule.done
            ends[name] = now + seconds
        if not ends:
            return seen, now
        name = min(ends, key=ends.get)
        now = ends.pop(name)
        schedule.ended(name, well=True)
        seen.append((now, name))


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
def test_every_stage_comes_once_and_after_what_it_needs(jobs):
    schedule = Schedule(graph())
    seen, _ = played(schedule, jobs=jobs)
    assert sorted(name for _, name in seen) == sorted(schedule.graph.order)
    assert schedule.over


def test_two_at_a_time_the_first_branch_is_early_and_no_branch_is_left_alone():
    """Nine stages of three branches on two: 4.5 rounds at the least, the first branch in 3."""
    seen, last = played(Schedule(graph()), jobs=2)
    assert dict((name, at) for at, name in seen)["judge@ve"] == 1 + 3
    assert last == 1 + 5 + 1


def test_the_shortest_branch_is_the_first():
    times = dict.fromkeys(graph().order, 10.0) | {"teacher@rf": 1.0}
    schedule = Schedule(graph(), times)
    schedule.ended("fetch", well=True)
    assert schedule.next() == "teacher@rf"


def test_a_failure_leaves_the_other_branches():
    schedule = Schedule(graph())
    schedule.ended("fetch", well=True)
    schedule.ended("flow@rf", well=False)
    schedule.ended("teacher@rf", well=True)
    seen, _ = played(schedule, jobs=2)
    assert {name for _, name in seen} == {f"{kind}@{d}" for kind in KINDS for d in ("ve", "pfgmpp")}
    assert schedule.over
    assert schedule.skipped() == ["judge@rf", "report"]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_time_left_is_that_of_the_same_schedule(jobs):
    times = dict.fromkeys(graph().order, 7.0)
    _, last = played(Schedule(graph()), jobs=jobs, seconds=7.0)
    assert Schedule(graph(), times).left({}, jobs=jobs) == pytest.approx(last)


def test_the_time_left_of_what_runs_and_of_branches_never_seen():
    times = {"fetch": 1.0, "teacher@ve": 10.0, "flow@ve": 20.0, "judge@ve": 5.0, "report": 2.0}
    schedule = Schedule(graph(), times, done={"fetch", "teacher@ve", "teacher@rf", "teacher@pfgmpp"})
    assert schedule.next() == "flow@ve"
    assert schedule.left({"flow@ve": 8.0}, jobs=3) == pytest.approx(20 + 5 + 2)
    assert Schedule(graph(), {"fetch": 1.0}).left({}, jobs=1) is None
    del times["report"]
    assert Schedule(graph(), times).left({}, jobs=3) == pytest.approx(1 + 10 + 20 + 5)
    only_report = Schedule(graph(), times, done=set(graph().order) - {"report"})
    assert only_report.left({}, jobs=1) is None


# --- dvc.lock ---------------------------------------------------------------------------------------------------------

TEXT = (ROOT / "dvc.lock").read_text(encoding="utf-8")
SMALL = (
    "schema: '2.0'\nstages:\n  fetch:\n    cmd: x\n    outs:\n    - path: a\n      md5: '1'\n"
    "  flow@ve:\n    cmd: 'y:\n\n      z'\n  report:\n    cmd: r\n"
)


def test_the_committed_lock_is_read_as_it_is():
    assert lockfile.names(TEXT) == list(yaml.load(TEXT, yaml.CSafeLoader)["stages"])
    assert lockfile.ordered(TEXT, lockfile.names(TEXT)) == TEXT


@pytest.mark.parametrize("order", permutations(["fetch", "flow@ve", "report"]))
@pytest.mark.parametrize("tail", ["", "datasets:\n- name: d\n"])
def test_stages_change_places_and_nothing_else(order, tail):
    made = lockfile.ordered(SMALL + tail, order)
    assert yaml.safe_load(made) == yaml.safe_load(SMALL + tail)
    assert list(yaml.safe_load(made)["stages"]) == list(order)
    assert lockfile.ordered(made, ["fetch", "flow@ve", "report"]) == SMALL + tail


def test_what_is_not_named_comes_last_and_what_is_no_lock_stays():
    assert lockfile.names(lockfile.ordered(SMALL, ["report"])) == ["report", "fetch", "flow@ve"]
    for text in ("", "schema: '2.0'\n", "stages: {}\n", "not a lock"):
        assert lockfile.ordered(text, ["report"]) == text


def test_half_a_list_of_files_in_use_goes_and_a_whole_one_stays(tmp_path):
    file = tmp_path / "rwlock"
    file.write_text('{"write": {}}')
    (tmp_path / "rwlock.lock").touch()
    lockfile.mend(tmp_path)
    assert file.exists()
    file.write_text("")
    lockfile.mend(tmp_path)
    assert not file.exists()
    lockfile.mend(tmp_path)


# --- what is printed --------------------------------------------------------------------------------------------------

GOOD = """\
Running stage 'flow@rf':
> python -m pipeline.stages.flow rf
tracking: off (IFM_TRACKING)
flow rf: goes on from step 50 of 2600
flow rf: step 1200 of 2600, loss 0.123, 48 step/s, 3 min left
flow-rf: warning: few samples
something else
flow-rf: done in 12 s
Updating lock file 'dvc.lock'

To track the changes with git, run:

	git add dvc.lock
"""
BAD = """\
Running stage 'flow@rf':
> python -m pipeline.stages.flow rf
flow rf: step 12 of 2600, loss nan, 48 step/s, 3 min left
flow-rf: the loss is not finite at step 12; lower flow.lr
ERROR: failed to reproduce 'flow@rf': failed to run: python -m pipeline.stages.flow rf, exited with 1
"""


def test_what_a_stage_said_that_matters():
    assert show.worth_passing_on("flow@rf", GOOD) == [
        "tracking: off (IFM_TRACKING)",
        "flow rf: goes on from step 50 of 2600",
        "flow-rf: warning: few samples",
    ]
    assert show.ran(GOOD) == ["flow@rf"]
    assert show.ran("Stage 'flow@rf' didn't change, skipping") == []


def test_why_a_stage_failed():
    assert show.why(BAD, 255) == "flow-rf: the loss is not finite at step 12; lower flow.lr"
    assert show.why(BAD.replace("exited with 1", "exited with -9"), 255) == "ended by signal 9"
    assert show.why(BAD.replace("exited with 1", "exited with 143"), 255) == "ended by signal 15"
    assert show.why(GOOD, -15) == "ended by signal 15"
    assert show.why("ERROR: Unable to acquire lock. Most likely", 255) == "Unable to acquire lock. Most likely"
    assert show.why("", 1) == "no output"


def test_only_a_stage_that_did_not_start_was_blocked():
    assert show.blocked("ERROR: 'models' is busy, it is being blocked by:\n  (PID 7): dvc repro\n")
    assert show.blocked("ERROR: Unable to acquire lock. Most likely another DVC process is running")
    assert not show.blocked(BAD + "Unable to acquire lock")


def test_every_stage_of_the_graph_has_a_phrase(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, stage in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        assert 0 < len(show.phrase(stage["cmd"])) < 130, name
    assert show.phrase("echo x") == ""


def test_the_table_has_a_column_for_every_figure():
    rows = {"ve": {"fid": 0.51234, "teacher_nfe": 17, "ratio": None}, "rf": {"fid": 12.0, "recall": 0.5}}
    assert show.table(rows) == [
        "      fid  teacher nfe  ratio  recall",
        "ve  0.512           17      -       -",
        "rf     12            -      -     0.5",
    ]
    assert show.table({}) == []


def test_the_newest_line_of_a_training_is_in_its_file(tmp_path, monkeypatch):
    """Once a second at the most; the log gets a line every 30 s as before."""
    monkeypatch.setenv("IFM_PROGRESS", str(tmp_path / "now"))
    times, said = iter([0.0, 0.5, 1.2, 1.9, 31.0]), []
    lines = Lines(range(400), label="flow ve", unit="step", clock=lambda: next(times), say=said.append)
    lines.n = 5
    assert not (tmp_path / "now").exists()
    lines.n = 12
    assert (tmp_path / "now").read_text().startswith("flow ve: step 12 of 400, 10 step/s, ")
    lines.n = 19
    assert (tmp_path / "now").read_text().startswith("flow ve: step 12 of 400")
    lines.n = 310
    assert (tmp_path / "now").read_text() == said[0]
    monkeypatch.setenv("RANK", "1")
    assert Lines(range(3), label="x")._beside is None


# --- hardware ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("branches", "cores", "gpus", "launch", "jobs"),
    [
        (3, 2, [], None, 2),
        (3, 8, [], None, 3),
        (1, 8, [], None, 1),
        (0, 8, [], None, 1),
        (3, 8, ["0"], None, 1),
        (3, 8, ["0", "1"], None, 2),
        (3, 8, [], "torchrun --nproc_per_node 2", 1),
        (3, 8, [], "none", 3),
    ],
)
def test_how_many_at_a_time(branches, cores, gpus, launch, jobs, monkeypatch):
    monkeypatch.setattr(slots, "cores", lambda: cores)
    monkeypatch.setattr(slots, "visible_gpus", lambda: gpus)
    monkeypatch.setenv("IFM_LAUNCH", launch) if launch else monkeypatch.delenv("IFM_LAUNCH", raising=False)
    assert slots.default_jobs(branches) == jobs
