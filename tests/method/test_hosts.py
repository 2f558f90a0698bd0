"""Two hosts: torchrun with --nnodes 2 over two network namespaces gives what two processes on one host give."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import two_hosts, warm
from tests.support.on_cpus import on_cpus
from tests.support.project import TINY, clone_of_this, edit

WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"
HOSTS = Path(two_hosts.__file__)
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
ONE_HOST = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# torchrun gives each of several processes on a host one thread, and a single one all: sums are then in another order.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def refusal() -> str | None:
    """Why two hosts cannot be had here, or None."""
    if two_hosts.ip() is None:
        return "needs ip (iproute2)"
    pair = f"{two_hosts.ip()} link add ifm-a type veth peer name ifm-b"
    try:
        done = subprocess.run([*NAMESPACE, "sh", "-c", pair], capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs unshare (util-linux): {error}"
    return f"no network namespaces here: {done.stderr.strip()}" if done.returncode else None


@pytest.fixture(scope="module", autouse=True)
def _two_hosts_can_be_had():
    if reason := refusal():
        pytest.skip(reason)


def made(words: list[str], folder: Path) -> dict[str, bytes]:
    """All files of a run, by name."""
    folder.mkdir()
    words = [word.replace("OUT", str(folder)) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=on_cpus(**ONE_THREAD))
    assert done.returncode == 0, done.stderr[-3000:]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_two_hosts_make_what_two_processes_on_one_host_make(tmp_path):
    """Weights of every objective, shards, the anchor bank and each process's batches: byte for byte."""
    files = made([*NAMESPACE, sys.executable, str(HOSTS), "OUT", str(WORKER), "OUT"], tmp_path / "hosts")
    notes = [json.loads(files.pop(f"host-{node}.json")) for node in (0, 1)]
    assert notes[0]["namespace"] != notes[1]["namespace"]
    # Half of each gradient's sum crosses the wire: six steps of five networks, each as large as its file.
    weights = sum(len(files[f"{name}.pt"]) for name in ("teacher", "flow", "data", "consistency", "interval"))
    assert all(note["received"] > weights for note in notes)
    one = made([warm.python(), *ONE_HOST, str(WORKER), "OUT"], tmp_path / "one")
    assert len(one) == 13
    assert files.keys() == one.keys()
    assert [name for name in one if files[name] != one[name]] == []


@pytest.mark.slow
def test_stages_on_two_hosts(tmp_path):
    """`dvc repro` on one machine, IFM_LAUNCH starting each stage on two: the models of two processes on one."""
    models = {}
    for name, launch in (
        ("hosts", [*NAMESPACE, sys.executable, str(HOSTS), str(tmp_path)]),
        ("one", [sys.executable, *ONE_HOST]),
    ):
        project = clone_of_this(tmp_path / name)
        edit(project.folder / "params.yaml", TINY | {"anchor.policy": "bank", "flow.objective": "trajectory"})
        project.run("git", "init", "-q")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "tiny")
        project.run("dvc", "repro", "sample@rf", IFM_LAUNCH=shlex.join(launch), IFM_TRACKING="off", **ONE_THREAD)
        files = [p for kind in ("teacher", "flow") for p in project.folder.glob(f"models/{kind}/rf/**/*.safetensors")]
        files += [*project.folder.glob("data/trajectories/rf/*.npy"), *project.folder.glob("data/samples/rf/*.npy")]
        models[name] = {str(p.relative_to(project.folder)): p.read_bytes() for p in files}
    assert len(models["one"]) >= 6
    assert models["hosts"].keys() == models["one"].keys()
    assert [name for name in models["one"] if models["hosts"][name] != models["one"][name]] == []
