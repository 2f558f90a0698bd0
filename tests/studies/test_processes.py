"""DVC's processes of a study end as a whole, and with the study (pipeline.studies.experiments)."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ifm.errors import UserError
from pipeline.studies.experiments import DvcProcess, check_checkout
from tests.support.project import ROOT

# As DVC does: it starts a stage, waits for it, and ends at once where it is told to.
DVC = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
STAGE = """
import os, signal, sys, time
from pathlib import Path
from pipeline.runner.parent import end_with_parent

def told(number, frame):  # it closes its run
    time.sleep(1)
    Path("ended").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, told)
end_with_parent()
Path("at").write_text(str(os.getpid()))
time.sleep(100)
"""
STUDY = """
import sys, time
from pathlib import Path
from pipeline.studies.experiments import DvcProcess

DvcProcess.begin(sys.argv[1:], {}, Path("log"))
time.sleep(100)
"""
WORDS = [sys.executable, "-c", DVC, STAGE]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    return tmp_path


def stage(folder: Path) -> psutil.Process:
    """The stage, once it is at work."""
    deadline = time.monotonic() + 60
    while not ((file := folder / "at").exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(file.read_text()))


def over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_stage_has_time_to_end_when_dvc_ends_at_once(here):
    process = DvcProcess.begin(WORDS, {}, here / "log")
    working = stage(here)
    process.end()
    assert over(working)
    assert (here / "ended").exists()
    process.end()  # nothing is left to end


def test_nothing_goes_on_when_the_study_is_killed(here):
    """Else its next start would run the same experiment beside it."""
    study = subprocess.Popen([sys.executable, "-c", STUDY, *WORDS])
    working = stage(here)
    study.kill()
    study.wait()
    deadline = time.monotonic() + 30
    while not over(working) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert over(working)
    assert (here / "ended").exists()


def test_results_of_a_checkout_below_gits_root_may_differ(here):
    folder = here / "below"
    (folder / "reports").mkdir(parents=True)
    for name in ("dvc.lock", "reports/summary.csv", "params.yaml"):
        (folder / name).write_text("1\n")
    for words in (
        ["init", "-q"], ["config", "user.name", "a"], ["config", "user.email", "a@b.c"], ["add", "-A"],
        ["commit", "-qm", "start"],
    ):  # fmt: skip
        subprocess.run(["git", *words], check=True)
    for name in ("dvc.lock", "reports/summary.csv"):
        (folder / name).write_text("2\n")
    (here / "elsewhere").write_text("2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert len(check_checkout()) == 40
        (folder / "params.yaml").write_text("2\n")
        with pytest.raises(UserError, match=r"uncommitted changes in params\.yaml"):
            check_checkout()
