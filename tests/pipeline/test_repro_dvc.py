"""`ifm repro` by the real DVC, on a graph of small stages: side by side, dvc.lock, failures, locks, kills."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.project import ROOT, Project

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

RUN = "from pipeline.runner.repro import main; main(check=lambda: None)"
GRAPH = """
vars:
  - source.json
stages:
  source:
    matrix:
      key: ${watched}
    cmd: python work.py source
    always_changed: true
    outs:
      - source.json:
          cache: false
          persist: true
  fetch:
    cmd: python work.py fetch
    deps: [source.json]
    params: [size]
    outs: [data]
  train:
    matrix:
      d: ${dynamics}
    cmd: python work.py train ${item.d}
    deps: [data]
    params: [rate]
    outs:
      - models/${item.d}
  judge:
    matrix:
      d: ${dynamics}
    cmd: python work.py judge ${item.d}
    deps:
      - models/${item.d}
    outs:
      - figures/${item.d}.json:
          cache: false
  report:
    cmd: python work.py report
    deps: [figures]
    outs: [page.html]
"""
# A stage of this graph: notes that it ran and with how many threads, waits as it is told to, and writes what it read.
WORK = """
import os, signal, sys, time
from pathlib import Path
from pipeline.runner import parent

parent.end_with_dvc()
kind, d = (*sys.argv[1:], "")[:2]
name = f"{kind}@{d}" if d else kind
def told(number, frame):  # as a stage writes its checkpoint and closes its run
    time.sleep(1)
    Path(f"ended-{name}").write_text(str(number))
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, told)
with open("ran", "a") as file:
    file.write(f"{name} {os.environ.get('OMP_NUM_THREADS', '-')}\\n")
Path(f"at-{name}").touch()
deadline = time.monotonic() + 60
while (until := Path(f"wait-{name}")).exists() and not Path(until.read_text()).exists():
    if time.monotonic() > deadline:
        sys.exit(f"{name}: {until.read_text()} never came")
    time.sleep(0.02)
if Path(f"fail-{name}").exists():
    sys.exit(f"{kind}-{d}: the loss is not finite; lower rate")
reads = {"fetch": [], "train": ["data"], "judge": [f"models/{d}"], "report": ["figures"]}
writes = {"fetch": "data", "train": f"models/{d}", "judge": f"figures/{d}.json", "report": "page.html"}
if kind != "source":
    out = Path(writes[kind])
    out.parent.mkdir(exist_ok=True)
    read = [p for top in map(Path, reads[kind]) for p in ([top] if top.is_file() else sorted(top.rglob("*.json")))]
    out.write_text(name + "".join(p.read_text() for p in read)[-300:])
"""


@pytest.fixture
def made(tmp_path: Path, start_of_all: Path) -> Project:
    return project(tmp_path / "small", start_of_all)


def project(folder: Path, start_of_all: Path) -> Project:
    shutil.copytree(start_of_all, folder, symlinks=True)
    return at(folder)


def at(folder: Path) -> Project:
    found = Project(folder, kept_warm=False)
    found.env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    found.env.pop("OMP_NUM_THREADS", None)
    return found


@pytest.fixture(scope="module")
def start_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small graph, committed, before anything ran."""
    folder = tmp_path_factory.mktemp("start") / "small"
    folder.mkdir()
    found = at(folder)
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "work.py").write_text(WORK)
    (folder / "params.yaml").write_text("size: 3\nrate: 0.1\ndynamics: [ve, rf, pfgmpp]\n")
    (folder / "source.json").write_text('{"watched": []}')
    found.run("git", "init", "-q")
    found.run("dvc", "init", "-q")
    found.run("git", "add", "-A")
    found.run("git", "commit", "-qm", "start")
    return folder


def repro(made: Project, *words: str, **options) -> str:
    return made.run(sys.executable, "-c", RUN, *words, **options)


def ran(made: Project) -> list[str]:
    """The stages that ran since the last call."""
    file = made.folder / "ran"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(line.split()[0] for line in lines)


def waits(made: Project, stage: str, until: str) -> None:
    (made.folder / f"wait-{stage}").write_text(until)


ALL = sorted(
    ["fetch", "report", *(f"{kind}@{d}" for kind in ("train", "judge") for d in ("ve", "rf", "pfgmpp"))]
)  # fmt: skip


def test_the_same_lock_as_plain_dvc_in_one_life_of_a_project(tmp_path, start_of_all):
    """From nothing, after a change, with branches less and more: the same stages run, the same bytes of dvc.lock."""
    plain, beside = (project(tmp_path / name, start_of_all) for name in ("plain", "beside"))
    # The branches end in another order than plain DVC's.
    waits(beside, "train@ve", "figures/rf.json")
    steps = [
        lambda text: text,
        lambda text: text.replace("rate: 0.1", "rate: 0.2"),
        lambda text: text.replace("[ve, rf, pfgmpp]", "[rf]"),
        lambda text: text.replace("[rf]", "[vp, ve, rf, trig]"),
    ]
    for i, step in enumerate(steps):
        locks = []
        for one in (plain, beside):
            params = one.folder / "params.yaml"
            params.write_text(step(params.read_text()))
            one.run("dvc", "repro") if one is plain else repro(one, "--jobs", "3")
            locks.append((one.folder / "dvc.lock").read_bytes())
        assert locks[0] == locks[1], i
        assert (found := ran(plain)) == ran(beside)
        assert i or found == ALL
    assert "up to date" in beside.run("dvc", "repro")
    assert "nothing changed: all 10 stages are up to date" in repro(beside)
    assert ran(beside) == []


def test_branches_run_side_by_side_on_their_share_of_the_cores(made):
    """Each waits for the other to have started: one after the other, none would end."""
    waits(made, "train@ve", "at-train@rf")
    waits(made, "train@rf", "at-train@ve")
    said = repro(made, "--jobs", "2")
    threads = {line.split()[1] for line in (made.folder / "ran").read_text().splitlines()}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert ran(made) == ALL
    lines = said.splitlines()
    assert lines[0] == "8 stages to do; 2 at a time; what they print is in .ifm/repro"
    assert sum(": done in " in line for line in lines) == 8
    assert "5 of 8 done" in said
    # The second time each stage's time is known, and what nobody changed comes from the cache.
    (made.folder / "data").unlink()
    said = repro(made, "--jobs", "1")
    assert "fetch: taken from the cache; 1 of 8 done, about " in said
    assert ran(made) == []


def test_targets_are_all_that_runs(made):
    repro(made, "judge@rf")
    assert ran(made) == ["fetch", "judge@rf", "train@rf"]
    assert repro(made, "nothing", ok=False) == "ifm repro: Stage 'nothing' not found inside 'dvc.yaml' file\n"


def test_a_failed_branch_lets_the_others_end_and_is_named(made):
    (made.folder / "fail-train@rf").touch()
    waits(made, "train@ve", "at-train@rf")
    said = repro(made, "--jobs", "2", ok=False)
    assert ran(made) == sorted(set(ALL) - {"judge@rf", "report"})
    assert said.splitlines()[-2:] == [
        "not run, because they need what failed: judge@rf, report",
        "failed: train@rf: train-rf: the loss is not finite; lower rate (all it said: .ifm/repro/train@rf.log)",
    ]
    (made.folder / "fail-train@rf").unlink()
    repro(made)
    assert ran(made) == ["judge@rf", "report", "train@rf"]


def test_another_dvc_is_waited_for(made):
    """DVC's own lock, while another DVC works; and one on an output, which a plain second DVC would stop at."""
    (made.folder / ".dvc/tmp").mkdir(exist_ok=True)
    other = subprocess.Popen(["sleep", "300"])
    busy = {"write": {str(made.folder / "models" / "ve"): {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}
    (made.folder / ".dvc/tmp/rwlock").write_text(json.dumps(busy))
    with open(made.folder / ".dvc/tmp/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running = start(made, "judge@ve", "judge@rf", "--jobs", "2")
        time.sleep(6)
        assert running.poll() is None
        assert not (made.folder / "ran").exists()
    until(made, "at-judge@rf")
    assert not (made.folder / "at-train@ve").exists()
    other.kill()
    other.wait()
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 0, said
    assert ran(made) == ["fetch", "judge@rf", "judge@ve", "train@rf", "train@ve"]


def test_one_runner_at_a_time(made):
    waits(made, "fetch", "go")
    running = start(made)
    until(made, "at-fetch")
    assert repro(made, ok=False) == f"ifm repro: another `ifm repro` runs in this folder (process {running.pid})\n"
    (made.folder / "go").touch()
    assert running.wait(120) == 0


def test_local_data_are_looked_at_every_time(made):
    """An always_changed stage: it runs, and what it finds decides what else does."""
    (made.folder / "source.json").write_text('{"watched": ["path"]}')
    repro(made)
    assert ran(made) == sorted([*ALL, "source"])
    lock = (made.folder / "dvc.lock").read_bytes()
    assert "nothing changed" in repro(made)
    assert ran(made) == ["source"]
    made.run("dvc", "repro")
    assert ran(made) == ["source"]
    assert (made.folder / "dvc.lock").read_bytes() == lock


# bash becomes the stage; dash stays between it and DVC
QUICK = ((signal.SIGINT, "bash"), (signal.SIGTERM, "bash"), (signal.SIGKILL, "sh"))
ENDS = [
    pytest.param(number, shell, marks=() if (number, shell) in QUICK else pytest.mark.slow)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    for shell in ("bash", "sh")
]


@pytest.mark.parametrize(("number", "shell"), ENDS)
def test_no_stage_outlives_the_runner(made, number, shell):
    made.env["SHELL"] = shutil.which(shell) or pytest.skip(f"needs {shell}")
    for d in ("ve", "rf"):
        waits(made, f"train@{d}", "go")
    running = start(made, "--jobs", "2")
    until(made, "at-train@ve", "at-train@rf")
    below = psutil.Process(running.pid).children(recursive=True)
    assert len(below) >= 4
    running.send_signal(number)
    status = running.wait(180)
    _, alive = psutil.wait_procs(below, 60)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    # Stages had the time that they need, and a closed terminal is Ctrl-C to them.
    told = {signal.SIGHUP: signal.SIGINT, signal.SIGKILL: signal.SIGTERM}.get(number, number)
    assert {(made.folder / f"ended-train@{d}").read_text() for d in ("ve", "rf")} == {str(int(told))}
    (made.folder / "go").touch()
    ran(made)
    repro(made)
    assert ran(made) == sorted(set(ALL) - {"fetch"})


def test_under_nohup_a_closed_terminal_changes_nothing(made):
    waits(made, "train@ve", "go")
    running = start(made, "train@ve", hangup=signal.SIG_IGN)
    until(made, "at-train@ve")
    for one in [running, *psutil.Process(running.pid).children(recursive=True)]:
        one.send_signal(signal.SIGHUP)
    (made.folder / "go").touch()
    assert running.wait(120) == 0
    assert ran(made) == ["fetch", "train@ve"]


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_no_stage_outlives_plain_dvc(made, shell):
    made.env["SHELL"] = shutil.which(shell) or pytest.skip(f"needs {shell}")
    waits(made, "fetch", "go")
    running = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q", "fetch"], cwd=made.folder, env=made.env)
    until(made, "at-fetch")
    below = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(below, 60)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_a_dozen_kills_end_with_the_same_lock(tmp_path, start_of_all):
    """At random moments, of the runner or of a stage; every time the same command again, and nothing else."""
    plain, killed = (project(tmp_path / name, start_of_all) for name in ("plain", "killed"))
    draw, hit = random.Random(0), 0
    for kind in ("train", "judge"):
        for d in ("ve", "rf", "pfgmpp"):
            waits(killed, f"{kind}@{d}", "go")
    for i in range(12):
        name = draw.choice(["train@ve", "train@rf", "judge@ve", "judge@rf"])
        (killed.folder / f"at-{name}").unlink(missing_ok=True)
        for one in (plain, killed):  # there is something to do every time
            (one.folder / "params.yaml").write_text(f"size: 3\nrate: 0.{i + 2}\ndynamics: [ve, rf, pfgmpp]\n")
        running = start(killed, "--jobs", "2")
        deadline = time.monotonic() + draw.uniform(3, 12)
        while running.poll() is None and time.monotonic() < deadline and not (killed.folder / f"at-{name}").exists():
            time.sleep(0.05)
        if i % 3 == 2:  # the next time round stages that waited end
            (killed.folder / f"wait-{name}").unlink(missing_ok=True)
        below = psutil.Process(running.pid).children(recursive=True) if running.poll() is None else []
        stages = [one for one in below if "work.py" in " ".join(one.cmdline())]
        victim = draw.choice([running, *stages])
        hit += running.poll() is None
        victim.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
        (killed.folder / "go").touch()  # what is left of a runner whose stage was hit comes to its end
        running.communicate(timeout=120)
        (killed.folder / "go").unlink()
        assert [one for one in psutil.wait_procs(below, 60)[1] if one.status() != psutil.STATUS_ZOMBIE] == []
    assert hit >= 10
    (killed.folder / "go").touch()
    repro(killed)
    plain.run("dvc", "repro")
    assert (killed.folder / "dvc.lock").read_bytes() == (plain.folder / "dvc.lock").read_bytes()
    assert "up to date" in killed.run("dvc", "repro")


def start(made: Project, *words: str, hangup: int = signal.SIG_DFL) -> subprocess.Popen:
    """hangup: what the process is started to do at SIGHUP, whatever the tests themselves were."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], cwd=made.folder, env=made.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
    )  # fmt: skip


def until(made: Project, *names: str) -> None:
    """Waits for stages to have started."""
    deadline = time.monotonic() + 120
    while not all((made.folder / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.05)
