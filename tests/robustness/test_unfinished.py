"""What a kill leaves behind: checkpoints that are not mixed, folders that are not shared, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ifm.config import parse, read_params
from ifm.files import read_json
from pipeline.runner import unfinished
from pipeline.runner.stage import Stage
from pipeline.runner.unfinished import MADE_OF, WorkFolder

ROOT = Path(__file__).parents[2]
MADE_OF_THIS = {
    "params": {"seed": 0, "teacher": {"lr": 0.1, "steps": 10}},
    "code": {"src/ifm/model.py": "a", "src/ifm/files.py": "b"},
    "inputs": {"images": "c"},
}


def changed(**parts) -> dict:
    return {key: value | parts.get(key, {}) for key, value in MADE_OF_THIS.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / ".ifm" / "checkpoints"


def leave(root: Path, made_of: dict, *, file: str | None = "step-000000010.safetensors") -> Path:
    """A folder as a killed process leaves it."""
    work = WorkFolder.open(root, "teacher-ve", made_of)
    if file:
        (work.path / file).write_bytes(b"weights")
    os.close(work._lock)
    return work.path


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"params": {"teacher": {"lr": 0.2, "steps": 10}}}, "other parameters (teacher.lr)"),
        ({"params": {"teacher": {"steps": 10}}}, "other parameters (teacher.lr)"),
        ({"code": {"src/ifm/model.py": "x", "src/ifm/new.py": "y"}}, "other code (src/ifm/model.py, src/ifm/new.py)"),
        ({"inputs": {"images": "x"}}, "other inputs (images)"),
        ({"params": {"seed": 1}, "inputs": {"images": "x"}}, "other parameters (seed), inputs (images)"),
    ],
)
def test_one_line_says_which_part_of_a_checkpoint_is_another(root, capsys, parts, told):
    old = leave(root, changed(**parts))
    found = unfinished.left(root, "teacher-ve", MADE_OF_THIS)
    unfinished.tell("teacher-ve", found, root=root)
    shown = f".ifm/checkpoints/{old.name}"
    assert capsys.readouterr().err == (
        f"teacher-ve: a checkpoint of {told} is left at {shown}; it is not used; rm -r {shown} removes it\n"
    )
    assert WorkFolder.open(root, "teacher-ve", MADE_OF_THIS).path != old


def test_its_own_checkpoint_is_found_again_and_nothing_is_said(root):
    old = leave(root, MADE_OF_THIS)
    assert unfinished.left(root, "teacher-ve", MADE_OF_THIS) == []
    work = WorkFolder.open(root, "teacher-ve", MADE_OF_THIS)
    assert work.path == old
    assert [p.name for p in old.glob("step-*")] == ["step-000000010.safetensors"]
    assert read_json(old / MADE_OF) == MADE_OF_THIS
    (old / ".shard-00000.npy.1.tmp").write_bytes(b"half")
    work.finish()
    assert list(root.iterdir()) == []


def test_the_newest_is_named_and_the_others_counted_and_other_stages_left_out(root, capsys):
    first = leave(root, changed(params={"seed": 1}))
    os.utime(first, (1, 1))
    second = leave(root, changed(params={"seed": 2}))
    WorkFolder.open(root, "teacher-rf", MADE_OF_THIS)
    unfinished.tell("teacher-ve", unfinished.left(root, "teacher-ve", MADE_OF_THIS), root=root)
    out = capsys.readouterr().err
    assert out.startswith(
        f"teacher-ve: a checkpoint of other parameters (seed) is left at .ifm/checkpoints/{second.name}"
    )
    assert " (1 more there); " in out


def test_a_folder_without_a_checkpoint_goes_and_one_in_use_stays_silent(root):
    empty = leave(root, changed(params={"seed": 1}), file=None)
    used = WorkFolder.open(root, "teacher-ve", changed(params={"seed": 2}))
    (used.path / "step-000000010.safetensors").write_bytes(b"weights")
    assert unfinished.left(root, "teacher-ve", MADE_OF_THIS) == []
    assert not empty.exists()
    assert used.path.exists()


def test_a_folder_of_an_earlier_version(root):
    (root / "teacher-ve-0123456789abcdef").mkdir(parents=True)
    (root / "teacher-ve-0123456789abcdef" / "step-000000010.safetensors").touch()
    ((_, told),) = unfinished.left(root, "teacher-ve", MADE_OF_THIS)
    assert told == "an earlier version of this project"


def test_two_that_do_the_same_work_have_a_folder_each(root, monkeypatch):
    monkeypatch.setattr(unfinished, "PATIENCE", 0.1)
    first = WorkFolder.open(root, "teacher-ve", MADE_OF_THIS)
    second = WorkFolder.open(root, "teacher-ve", MADE_OF_THIS)
    assert second.path.name == f"{first.path.name}-2"
    (second.path / "step-000000010.safetensors").touch()
    first.finish()
    assert second.path.is_dir()
    third = WorkFolder.open(root, "teacher-ve", MADE_OF_THIS)
    assert third.path == first.path
    second.finish()
    assert [p.name for p in root.iterdir()] == [third.path.name]


def test_a_killed_process_lets_go_of_its_folder(root):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.runner.unfinished import WorkFolder; "
        "WorkFolder.open(Path(sys.argv[1]), 'teacher-ve', {'params': {}, 'code': {}, 'inputs': {}}); "
        "print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "open\n"
    (held,) = root.iterdir()
    assert unfinished._lock(held) is None
    process.kill()
    process.wait()
    assert WorkFolder.open(root, "teacher-ve", {"params": {}, "code": {}, "inputs": {}}).path == held


def test_a_stage_tells_of_a_changed_learning_rate_and_takes_its_own_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    values = read_params(Path("params.yaml"))

    def started(lr: float) -> tuple[Stage, Path]:
        values["teacher"]["lr"] = lr
        stage = Stage("teacher-ve", "teacher", parse(values), values, "ve")
        return stage, stage.work_folder(params=stage.sections("seed", "teacher"), inputs={"images": "x"})

    stage, old = started(0.001)
    (old / "step-000000010.safetensors").touch()
    os.close(stage._work._lock)
    assert capsys.readouterr().err == ""
    stage, new = started(0.002)
    assert new != old
    told = f"teacher-ve: a checkpoint of other parameters (teacher.lr) is left at .ifm/checkpoints/{old.name}; "
    assert capsys.readouterr().err.startswith(told)
    stage.finish()
    assert not new.exists()
    stage, again = started(0.001)
    assert (again, capsys.readouterr().err) == (old, "")
    stage.finish()


def test_the_outs_of_a_stage_are_those_of_its_branch(monkeypatch):
    monkeypatch.chdir(ROOT)
    values = read_params(Path("params.yaml"))
    stage = Stage("evaluate-rf", "evaluate", parse(values), values, "rf")
    names = {"data/pairs/rf", "reports/runs/evaluate-rf.json", "reports/metrics/rf.json", "reports/headline/rf.json"}
    assert {p.as_posix() for p in stage.outs()} == names


def test_temporaries_of_a_killed_process_go(tmp_path):
    out = tmp_path / "samples" / "rf"
    out.mkdir(parents=True)
    (out.parent / ".rf.77.tmp" / "grids").mkdir(parents=True)
    (out.parent / ".rf.json.77.tmp").touch()
    (out.parent / ".ve.77.tmp").mkdir()
    unfinished.remove_temporaries([out, out.with_suffix(".json"), tmp_path / "absent" / "rf"])
    assert sorted(p.name for p in out.parent.iterdir()) == [".ve.77.tmp", "rf"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process of its parent's end")
def test_no_process_outlives_its_parent(tmp_path):
    child = (
        "import os, sys, time; from pipeline.runner import parent; parent.end_with_parent(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])", child],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 120
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """A zombie that nobody waits for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
