"""Stages as forks of `ifm repro` that have imported the large packages: the same process as a new Python's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runner import warm
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told by Linux")

# A stage of a checkout of its own: says how it was started, and does as its first word says.
STAGE = """
import atexit, json, os, signal, sys
atexit.register(lambda: print("at the end", flush=True))

def told():
    main = sys.modules["__main__"]
    return {
        "argv": sys.argv, "orig_argv": sys.orig_argv, "name": __name__, "spec": main.__spec__.name,
        "cwd": os.getcwd(), "environment": dict(os.environ), "stages": sys.modules["pipeline.stages"].__file__,
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "terminate": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "stdin": sys.stdin.read(), "first": sys.path[0], "imported": sys.modules["pipeline"].SEEN,
    }

if __name__ == "__main__":
    print(json.dumps(told()))
    word = sys.argv[1]
    if word == "says":
        sys.exit("no such thing")
    if word == "fails":
        raise RuntimeError("broken")
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "waits":
        import time
        time.sleep(60)
    sys.exit(int(word))
"""
# What `ifm repro` does, without DVC: loads, forks beside a process, which has the fork become the stage.
RUNNER = """
import os, sys
from pipeline.runner import warm
warm.wanted, warm.IMPORTED = (lambda: True), ("json",)
import types
sys.modules["torch"] = types.ModuleType("torch")  # stands for all that is large
COMMAND = "python -m pipeline.stages.work " + sys.argv[1]
warm.load([COMMAND] * 3, {})
waiting = warm.fork()
if sys.argv[1] == "nothing":
    sys.exit(0)
print("status", waiting.become(COMMAND.split()[2:], dict(os.environ), sys.argv[2]), file=sys.stderr)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    stages = tmp_path / "pipeline" / "stages"
    stages.mkdir(parents=True)
    (tmp_path / "pipeline" / "__init__.py").write_text("import sys\nSEEN = sys.argv[0]\n")
    (stages / "__init__.py").write_text("")
    (stages / "work.py").write_text(STAGE)
    return tmp_path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "PYTHONDONTWRITEBYTECODE": "1"}


def by_fork(checkout: Path, word: str) -> tuple[int, str, str]:
    words = [sys.executable, "-c", RUNNER, word, str(checkout)]
    done = subprocess.run(
        words, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    *said, last = done.stderr.strip().splitlines()
    return int(last.removeprefix("status ")), done.stdout, "\n".join(said)


def by_a_new_process(checkout: Path, word: str) -> tuple[int, str, str]:
    words = [sys.executable, "-m", "pipeline.stages.work", word]
    done = subprocess.run(
        words, env=environment(), cwd=checkout, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    return done.returncode, done.stdout, done.stderr.strip()


@pytest.mark.parametrize("word", ["0", "3", "says", "fails", "killed"])
def test_a_fork_is_what_a_new_process_would_be(checkout, word):
    status, out, said = by_fork(checkout, word)
    wanted = by_a_new_process(checkout, word)
    assert status == wanted[0]
    facts, end = out.partition("\n")[::2]
    plain, plain_end = wanted[1].partition("\n")[::2]
    assert json.loads(facts) == json.loads(plain) | {"environment": json.loads(facts)["environment"]}
    kept = {name: value for name, value in environment().items() if name != "_"}
    assert kept.items() <= json.loads(facts)["environment"].items()
    assert (end, said.splitlines()[-1:]) == (plain_end, wanted[2].splitlines()[-1:])


def test_a_fork_that_is_not_needed_ends_with_its_process(checkout):
    words = [sys.executable, "-c", RUNNER, "nothing", str(checkout)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)  # its pipes are closed
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_ends_with_the_process_that_waits_for_it(checkout, number):
    words = [sys.executable, "-c", RUNNER, "waits", str(checkout)]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process.stdout.readline()
    (stage,) = psutil.Process(process.pid).children()
    assert stage.cmdline()[:4] == ["python", "-m", "pipeline.stages.work", "waits"]
    process.send_signal(number)
    deadline = time.monotonic() + 20
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python -m pipeline.stages.flow ve", ["pipeline.stages.flow", "ve"]),
        ("python -m pipeline.stages.fetch", ["pipeline.stages.fetch"]),
        ("python -m pipeline.stages.fetch > log", None),
        ("python -m pipeline.stages.fetch && rm x", None),
        ("python -m pipeline.stages.fetch $HOME", None),
        ("X=1 python -m pipeline.stages.fetch", None),
        ("python work.py fetch", None),
        ("python -m pipeline.tools.readme", None),
        ("python3.12 -m pipeline.stages.fetch", None),
        ("python -m 'pipeline.stages.fetch", None),
        ("", None),
    ],
)
def test_what_a_shell_would_read_is_left_to_it(command, words):
    assert warm._words(command) == words


@pytest.mark.parametrize("stages", [0, 2])
def test_nothing_is_imported_for_few_stages(monkeypatch, stages):
    monkeypatch.setattr(warm, "IMPORTED", ("no_such_package",))
    monkeypatch.setattr(warm.gc, "disable", lambda: pytest.fail("loads"))
    warm.load(["python -m pipeline.stages.fetch"] * stages + ["python work.py"] * 5, {})


@pytest.mark.parametrize(("name", "value"), [("IFM_WARM", "off"), ("IFM_LAUNCH", "torchrun --nproc_per_node 2")])
def test_new_processes_where_forks_are_not_wanted(monkeypatch, name, value):
    monkeypatch.setattr(warm, "DRIVERS", ())
    monkeypatch.setattr(warm, "_available", lambda: warm.LEAST_MEMORY)
    monkeypatch.delenv("IFM_WARM", raising=False)
    monkeypatch.delenv("IFM_LAUNCH", raising=False)
    assert warm.wanted()
    monkeypatch.setenv(name, value)
    assert not warm.wanted()
    monkeypatch.delenv(name)
    monkeypatch.setattr(warm, "DRIVERS", (os.devnull,))
    assert not warm.wanted()
    monkeypatch.setattr(warm, "DRIVERS", ())
    monkeypatch.setattr(warm, "_available", lambda: warm.LEAST_MEMORY - 1)
    assert not warm.wanted()


def test_dvc_has_what_is_replaced():
    """Else stages would run as new processes, and nobody would notice."""
    from dvc.stage import run

    assert callable(run._run)
