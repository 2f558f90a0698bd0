"""configs/accelerate and examples/slurm: read by the programs they are for, launched where no GPU is needed."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file

from tests.support import warm
from tests.support.on_cpus import on_cpus

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "examples/slurm").iterdir())
JOB = """
import json, os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP",
         "FSDP_VERSION", "FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_RESHARD_AFTER_FORWARD", "GROUP_RANK")
seen = {name: os.environ[name] for name in names if name in os.environ} | {"argv": sys.argv[1:]}
Path(sys.argv[1], f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))
"""
# Of sbatch's manual, what the scripts use.
SBATCH = {
    "job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue",
    "open-mode", "output",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """As a shell outside of any launcher, on CPUs."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in on_cpus().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def parsed(words):
    """The words of `accelerate launch`, with what the config file adds."""
    args = launch.launch_command_parser().parse_args([str(word) for word in words])
    return launch._validate_launch_command(args)[0]


def launched(job, *words):
    """What each process of a launch saw, by rank."""
    command = [warm.python(), "-m", "accelerate.commands.launch", *map(str, words), job / "job.py", job]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return seen_in(job)


def seen_in(job):
    return [json.loads(path.read_text()) for path in sorted(job.glob("rank*.json"))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_there_is_one_for_each_kind_of_machine():
    assert {path.stem for path in CONFIGS} == {"cpu", "gpu-bf16", "ddp", "fsdp2", "two-nodes"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    """It refuses unknown ones, but for those of fsdp_config, which its options name."""
    found = load_config_from_file(str(path))
    options = {action.dest for action in launch.launch_command_parser()._actions}
    assert set(found.fsdp_config or {}) <= options
    assert parsed(["--config_file", path, "x.py"]).num_processes == found.num_processes


def test_the_split_models_config_is_the_docs():
    text = (ROOT / "docs/multi-gpu.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(re.search(r"```yaml\n(distributed_type: FSDP.*?)```", text, re.S)[1])
    assert shown.items() <= yaml.safe_load((ROOT / "configs/accelerate/fsdp2.yaml").read_text()).items()


def test_the_cpus_config_starts_one_process_on_the_cpu(job):
    (seen,) = launched(job, "--config_file", ROOT / "configs/accelerate/cpu.yaml")
    assert seen["ACCELERATE_USE_CPU"].lower() == "true"
    assert seen["ACCELERATE_MIXED_PRECISION"] == "no"


def test_the_split_models_config_starts_its_processes(job):
    seen = launched(job, "--config_file", ROOT / "configs/accelerate/fsdp2.yaml", "--num_processes", 2)
    assert [each["RANK"] for each in seen] == ["0", "1"]
    assert {each["FSDP_VERSION"] for each in seen} == {"2"}
    assert {each["FSDP_TRANSFORMER_CLS_TO_WRAP"] for each in seen} == {"ResnetBlock2D"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_the_scripts(script):
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)
    keys = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(), re.M)
    assert set(keys) <= SBATCH
    assert bool(keys) == (script.suffix == ".sbatch")


def stubs(folder, **programs):
    """Programs of a cluster that write down what they are asked."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").touch()
    for name in ("configs/accelerate", "examples/slurm"):
        shutil.copytree(ROOT / name, root / name)
    return root


# Many nodes, more than a pipe holds: a reader that stops after the first line would break it.
SCONTROL = 'if [ "$1" = show ]; then printf "n%d\\n" {0..20000}; else echo "scontrol $*" >> said; fi'


def test_the_pipelines_script_starts_dvc_on_node_0_and_the_stages_on_all(tmp_path, checkout):
    path = stubs(
        tmp_path / "bin", scontrol=SCONTROL, dvc='echo "dvc $* | $IFM_LAUNCH | $IFM_MASTER | $IFM_GPUS" > said'
    )
    slurm = {
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
    }
    env = os.environ | slurm | {"SLURM_GPUS_ON_NODE": "4", "PATH": path}
    subprocess.run(["bash", checkout / "examples/slurm/repro.sbatch", "evaluate@ve"], env=env, check=True)
    expected = "dvc repro evaluate@ve | srun --ntasks-per-node 1 examples/slurm/node.sh | n0 | 4\n"
    assert (checkout / "said").read_text() == expected
    subprocess.run(["bash", checkout / "examples/slurm/repro.sbatch"], env=env | {"SLURM_NNODES": "1"}, check=True)
    assert (checkout / "said").read_text() == "dvc repro |  | n0 | 4\n"


@pytest.mark.parametrize(("script", "program"), [("repro.sbatch", "dvc"), ("sweep.sbatch", "ifm")])
def test_a_job_that_is_cut_off_stops_its_work_and_comes_again(tmp_path, checkout, script, program):
    waits = f"trap 'echo stopped >> said; exit 143' TERM; echo {program} $* >> said; touch up; sleep 60 & wait"
    path = stubs(tmp_path / "bin", scontrol=SCONTROL, **{program: waits})
    slurm = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "n0", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(
        ["bash", checkout / "examples/slurm" / script, "-a"], env=os.environ | slurm | {"PATH": path}
    )
    asked = threading.Event()
    while not (checkout / "up").exists() and job.poll() is None:
        asked.wait(0.02)
    job.terminate()
    job.wait(120)
    command = "dvc repro -a" if program == "dvc" else "ifm sweep -a"
    assert (checkout / "said").read_text().splitlines() == [command, "stopped", "scontrol requeue 7"]


def test_the_nodes_of_a_job_meet(tmp_path, checkout):
    """node.sh on two nodes, which are this machine: one group of two times two processes."""
    (tmp_path / "job.py").write_text(JOB)
    accelerate = f'shift; exec {warm.python()} -m accelerate.commands.launch "$@"'
    path = stubs(tmp_path / "bin", accelerate=accelerate)
    common = {
        "IFM_MASTER": "127.0.0.1",
        "IFM_PORT": str(free_port()),
        "IFM_GPUS": "2",
        "SLURM_NNODES": "2",
        "PATH": path,
    }
    words = ["bash", "examples/slurm/node.sh", tmp_path / "job.py", tmp_path]
    nodes = [
        subprocess.Popen(
            words, cwd=checkout, env=os.environ | common | {"SLURM_NODEID": rank},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    seen = seen_in(tmp_path)
    assert [each["RANK"] for each in seen] == ["0", "1", "2", "3"]
    assert [each["GROUP_RANK"] for each in seen] == ["0", "0", "1", "1"]
    assert {each["WORLD_SIZE"] for each in seen} == {"4"}
