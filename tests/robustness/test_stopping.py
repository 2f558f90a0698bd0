"""Ctrl-C: one line that says where the work goes on, nothing lost, in one process and in several."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ifm import dynamics
from ifm.cli import main as cli
from ifm.model import Teacher
from ifm.training.checkpoint import Checkpoints
from ifm.training.loop import fit
from ifm.training.stopping import Note
from pipeline.runner import launch, unfinished
from pipeline.studies import study
from tests.support.training import settings, unet

ROOT = Path(__file__).parents[2]
INTERRUPTED = 128 + signal.SIGINT


@pytest.fixture(autouse=True)
def handlers():
    """As they were before each test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def around(**env: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "IFM_TRACKING": "off"} | env


# --- a training -------------------------------------------------------------------------------------------------------


def train(folder: Path, *, interrupt_at: int | None = None, **changes):
    """(weights, result) of a small training, with a Ctrl-C in the middle of a step."""
    model = Teacher(unet(), dynamics.build("ve"))

    def loss(asked, step):
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn((8, 1, 8, 8), generator=generator)
        yield (asked(x, torch.ones(8)) - x).square().mean() * (step + 1)

    how = settings(steps=20, log_every=5, checkpoint_every=10, **changes)
    result = fit(Accelerator(cpu=True), model, loss=loss, settings=how, checkpoints=Checkpoints(folder), seed=1)
    return model.state_dict(), result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training without a Ctrl-C."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "step", [2, 4, 12, 19], ids=["before any line", "at a line", "after a checkpoint", "at the end"]
)
def test_ctrl_c_keeps_the_step_and_the_rest_comes_out_the_same(step, whole, tmp_path):
    """To the bit, the curve between two of its lines included."""
    weights, undisturbed = whole
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", interrupt_at=step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert unfinished.goes_on(tmp_path / "cut") == f"stopped; `dvc repro` goes on from step {step + 1}"
    again, resumed = train(tmp_path / "cut")
    assert resumed.resumed_from == step + 1
    assert resumed.history == undisturbed.history
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_second_ctrl_c_interrupts_at_once():
    note, seen = Note(), []

    def go_through() -> None:
        for item in note.during(range(5)):
            seen.append(item)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        go_through()
    assert seen == [0, 1]
    assert note.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_loop_puts_the_handler_back():
    def go_through() -> None:
        for _ in Note().during(range(5)):
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        go_through()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "somebody's"])
def test_other_handlers_stay(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        note = Note()
        for _ in note.during(range(1)):
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in Note(when=False).during(range(1)):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "stopped; `dvc repro` goes on with this stage"),
        (["made-of.json", "shard-00000.npy", "shard-00001.npy"], "stopped; `dvc repro` goes on after 2 shards"),
        (["step-000000250.safetensors", "step-000001000.safetensors"], "stopped; `dvc repro` goes on from step 1000"),
    ],
)
def test_where_it_goes_on(files, said, tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    for name in files:
        (tmp_path / name).touch()
    assert unfinished.goes_on(tmp_path) == said
    monkeypatch.setenv("DVC_EXP_NAME", "lively-lynx")
    assert unfinished.goes_on(tmp_path) == said.replace("`dvc repro`", "the same command")


def test_the_folder_that_is_worked_in(tmp_path):
    made_of = {"params": {}, "code": {}, "inputs": {}}
    assert unfinished.worked_in(tmp_path, "teacher-ve") is None
    work = unfinished.WorkFolder.open(tmp_path, "teacher-ve", made_of)
    (tmp_path / "teacher-ve-0123").mkdir()  # of earlier work
    assert unfinished.worked_in(tmp_path, "teacher-ve") == work.path
    assert unfinished.worked_in(tmp_path, "teacher-rf") is None
    work.finish()
    assert unfinished.worked_in(tmp_path, "teacher-ve") is None


STAGE = """
import sys, time
from pipeline.runner.stage import main
def work(stage):
    "Works."
    folder = stage.work_folder(params={}, inputs={})
    (folder / "step-000000500.safetensors").touch()
    print("ready", flush=True)
    time.sleep(60)
sys.argv = ["python -m pipeline.stages.fetch"]
main(work, module="fetch", params=lambda stage: {}, parallel=True)
"""


def stopped(words: list[str], folder: Path, *, when: str = "ready", again: str = "", **env: str) -> tuple[int, str]:
    """Status and output of a process group that gets a Ctrl-C as from a terminal once it has said `when`."""
    process = subprocess.Popen(
        words,
        cwd=folder,
        env=around(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        for line in process.stdout:
            if line.strip() == when:
                break
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=180)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for source in (ROOT / "pipeline", ROOT / "src"):  # what dvc.yaml says a stage is made of
        (tmp_path / source.name).symlink_to(source)
    return tmp_path


LINE = "fetch: stopped; `dvc repro` goes on from step 500\n"


def test_a_stage_says_one_line(folder):
    assert stopped([sys.executable, "-c", STAGE], folder) == (INTERRUPTED, LINE)


def test_several_processes_say_one_line_and_are_gone(folder):
    """The launcher gets no Ctrl-C, has nothing to say, and leaves nobody behind."""
    script = folder / "launcher.py"
    script.write_text(
        "import signal, subprocess, sys, os\n"
        "def loud(*_):\n    print('Traceback of the launcher', flush=True); sys.exit(1)\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, loud)\n"
        "i = sys.argv.index('-m')\n"
        "words = [sys.executable, '-u', '-m', *sys.argv[i + 1:]]\n"
        "ranks = [subprocess.Popen(words, env=os.environ | {'RANK': str(r)}) for r in range(2)]\n"
        "open('pids', 'w').write(' '.join(str(r.pid) for r in ranks))\n"
        "for rank in ranks:\n    rank.wait()\n"
        "print('Traceback: a rank has failed', flush=True)\n"
    )
    (folder / "rank.py").write_text(
        "import os, signal, sys, time\n"
        "from ifm.tracking import project_root\n"
        "from pipeline.runner import unfinished\n"
        "def ended(*_):\n    open(f'ended-{os.environ[\"RANK\"]}', 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, ended)\n"
        "open(f'up-{os.environ[\"RANK\"]}', 'w').close()\n"
        "if os.environ['RANK'] == '0':\n"
        "    root = project_root() / '.ifm' / 'checkpoints'\n"
        "    work = unfinished.WorkFolder.open(root, 'fetch', {'params': {}, 'code': {}, 'inputs': {}})\n"
        "    (work.path / 'step-000000500.safetensors').touch()\n"
        "    while not os.path.exists('up-1'):\n        time.sleep(0.05)\n"
        "    print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    code = "import sys; from pipeline.runner.launch import relaunch; sys.exit(relaunch('rank', [], name='fetch'))"
    asked = f"{sys.executable} {script}"
    env = {"IFM_LAUNCH": asked, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)])}
    assert stopped([sys.executable, "-c", code], folder, **env) == (INTERRUPTED, LINE)
    assert sorted(p.name for p in folder.glob("ended-*")) == ["ended-0", "ended-1"]  # by themselves: runs are closed
    for pid in map(int, (folder / "pids").read_text().split()):
        assert not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_launcher_with_nobody_here_is_told_to_end(tmp_path, monkeypatch):
    """As that of a cluster, whose processes are on other machines."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout.readline() == "up\n"
    launch._end(process, "no.such.module")
    assert process.wait(timeout=120) == 7
    process.stdout.close()


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_modules_are_imported(ignored, tmp_path):
    """At once, whatever the module being imported does with a KeyboardInterrupt; not in the background."""
    package = tmp_path / "pipeline" / "stages"
    package.mkdir(parents=True)
    (tmp_path / "pipeline" / "runner").mkdir()
    for name in ("__init__.py", "stages/__init__.py", "runner/__init__.py", "runner/parent.py"):
        (tmp_path / "pipeline" / name).write_text(
            (ROOT / "pipeline" / name).read_text(encoding="utf-8"), encoding="utf-8"
        )
    (package / "slow.py").write_text(
        "import time\nprint('ready', flush=True)\n"
        "for _ in range(20):\n    try:\n        time.sleep(0.1)\n    except BaseException:\n        pass\n"
        "raise SystemExit(3)\n"
    )
    start = (
        f"trap '' INT; exec {sys.executable} -m pipeline.stages.slow ve"
        if ignored
        else (f"exec {sys.executable} -m pipeline.stages.slow ve")
    )
    done = stopped(["bash", "-c", start], tmp_path, PYTHONPATH=str(tmp_path))
    line = "slow-ve: stopped; `dvc repro` goes on with this stage\n"
    assert done == ((3, "") if ignored else (INTERRUPTED, line))


def test_a_command_of_the_pipeline_without_words_of_its_own(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").write_text((ROOT / "pipeline/__init__.py").read_text(encoding="utf-8"))
    (tmp_path / "pipeline/tool.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    status, said = stopped([sys.executable, "-m", "pipeline.tool"], tmp_path, PYTHONPATH=str(tmp_path))
    assert (status, said) == (-signal.SIGINT, "stopped; the same command starts again\n")


@pytest.mark.parametrize("alone", [True, False])
def test_a_sweep_or_study(alone, tmp_path, capsys):
    def work() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        study.command(work, "ablation", tmp_path / "logs", alone=alone)
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "ablation: stopped; the same command goes on from here\n"


def test_a_command_of_ifm(monkeypatch, capsys):
    def interrupted(given):
        """Is interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "doctor", (lambda parser: None, interrupted))
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "ifm: stopped\n"


def test_a_stage_says_how_long_it_took(folder):
    code = STAGE.replace("time.sleep(60)", "")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=around(), capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "tracking: off (IFM_TRACKING)"
    assert re.fullmatch(r"fetch: done in [\d.]+ s", lines[-1])
