"""One process or many: who launches, what a launched stage sees, and whose exit status and signals count."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifm.errors import UserError
from pipeline.runner import launch
from tests.support import warm
from tests.support.on_cpus import on_cpus

ROOT = Path(__file__).parents[2]
JOB = """
import json, os, sys
from pathlib import Path
from pipeline.runner.launch import launcher
seen = {"argv": sys.argv[1:], "launcher": launcher(), "asked": os.environ["IFM_LAUNCH"]}
Path(os.environ["SEEN"]).write_text(json.dumps(seen))
sys.exit(7)
"""
WAITING_JOB = """
import os, signal, sys, time
if sys.argv[1] == "handles":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher around the tests, and the signal handlers put back that `relaunch` sets."""
    for name in ("LOCAL_RANK", "RANK", "IFM_LAUNCH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "waiting_job.py").write_text(WAITING_JOB)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")]))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return tmp_path


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK"])
def test_a_launched_process_launches_nothing(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("IFM_LAUNCH", "torchrun --nproc_per_node 2")
    monkeypatch.setattr(launch, "_gpu_count", lambda: 8)
    assert launch.launcher() is None
    assert launch.relaunch("no.such.module", []) is None


def test_the_words_of_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IFM_LAUNCH", "accelerate launch --config_file 'my file.yaml' --num_processes 8")
    assert launch.launcher() == ["accelerate", "launch", "--config_file", "my file.yaml", "--num_processes", "8"]


@pytest.mark.parametrize("asked", ["none", " none "])
def test_none_keeps_to_one_process_on_many_gpus(monkeypatch: pytest.MonkeyPatch, asked: str):
    monkeypatch.setattr(launch, "_gpu_count", lambda: 8)
    monkeypatch.setenv("IFM_LAUNCH", asked)
    assert launch.launcher() is None


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("asked", [None, "", "  "])
def test_one_device_needs_no_launcher(monkeypatch: pytest.MonkeyPatch, gpus: int, asked: str | None):
    monkeypatch.setattr(launch, "_gpu_count", lambda: gpus)
    if asked is not None:
        monkeypatch.setenv("IFM_LAUNCH", asked)
    assert launch.launcher() is None


def test_several_gpus_are_used_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "_gpu_count", lambda: 3)
    assert launch.launcher() == [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "3")
    ]


@pytest.mark.parametrize("visible", ["", "0", "2,", "GPU-1"])
def test_a_process_bound_to_one_gpu_counts_none(monkeypatch: pytest.MonkeyPatch, visible: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "torch", None)  # and torch is not asked
    assert launch._gpu_count() == 0


def test_the_child_gets_module_and_arguments_and_does_not_launch_again(jobs: Path, monkeypatch: pytest.MonkeyPatch):
    """A launcher of one process (here: python itself) sets no RANK."""
    monkeypatch.setenv("IFM_LAUNCH", sys.executable)
    assert launch.relaunch("job", ["ve", "a b"]) == 7
    assert json.loads((jobs / "seen.json").read_text()) == {"argv": ["ve", "a b"], "launcher": None, "asked": "none"}
    assert os.environ["IFM_LAUNCH"] == sys.executable


def test_an_unknown_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("IFM_LAUNCH", "no-such-launcher --n 2")
    assert launch.relaunch("job", []) == 2
    assert capfd.readouterr().err == "IFM_LAUNCH: no such command 'no-such-launcher'\n"


def test_a_command_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("IFM_LAUNCH", str(tmp_path))
    assert launch.relaunch("job", []) == 2
    assert capfd.readouterr().err == f"IFM_LAUNCH: {str(tmp_path)!r} cannot be run (Permission denied)\n"


def test_a_quote_left_open(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("IFM_LAUNCH", "torchrun 'x")
    said = 'IFM_LAUNCH = "torchrun \'x" cannot be split into words: No closing quotation'
    with pytest.raises(UserError) as caught:
        launch.launcher()
    assert str(caught.value) == said
    assert launch.relaunch("job", []) == 2
    assert capfd.readouterr().err == f"{said}\n"


@pytest.mark.parametrize(("kind", "status"), [("handles", 5), ("dies", 128 + signal.SIGTERM)])
def test_sigterm_goes_to_the_child_and_its_status_comes_back(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: int
):
    monkeypatch.setenv("IFM_LAUNCH", sys.executable)
    code = f"import sys; from pipeline.runner.launch import relaunch; sys.exit(relaunch('waiting_job', [{kind!r}]))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=120) == status
    parent.stdout.close()


def test_processes_of_torchrun_know_each_other(tmp_path):
    """make_accelerator under a launcher on CPUs: two ranks of one group, not two processes that each do it all."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "from ifm.hardware.processes import make_accelerator\n"
        "a = make_accelerator('no', seed=0)\n"
        f"open({str(tmp_path)!r} + f'/rank-{{a.process_index}}-of-{{a.num_processes}}', 'w').close()\n"
    )
    words = [warm.python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=on_cpus())
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.glob("rank-*")) == ["rank-0-of-2", "rank-1-of-2"]
