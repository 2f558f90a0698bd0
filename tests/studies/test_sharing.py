"""A real sweep of a tiny configuration, and its results on another clone: over a folder, SSH and S3 on loopback."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from ifm.cli.doctor import stores
from pipeline.tools import preset
from tests.support import warm
from tests.support.pages import Page
from tests.support.project import Project, clone_of_this, edit

ROOT = Path(__file__).parents[2]
TINY = {
    "dynamics": ["rf"], "network.mlp.width": 16, "network.mlp.layers": 1, "data.points.count": 400,
    "teacher.steps": 20, "teacher.batch_size": 16, "teacher.warmup_steps": 2, "teacher.log_every": 5,
    "teacher.checkpoint_every": 10, "trajectories.count": 64, "trajectories.shard_size": 32,
    "trajectories.batch_size": 16, "trajectories.solver_steps": 4, "trajectories.stored_times": 3, "flow.steps": 20,
    "flow.batch_size": 16, "flow.warmup_steps": 2, "flow.log_every": 5, "flow.checkpoint_every": 10,
    "sample.seeds": 1, "sample.count": 96, "sample.batch_size": 48, "sample.flow_steps": [1],
    "evaluate.teacher_nfe": [1, 3], "evaluate.sliced_projections": 16, "diagnose.paths": 4, "diagnose.solver_steps": 3,
    "diagnose.jacobian_paths": 1, "diagnose.jacobian_times": 2, "diagnose.anchor_refinements": 2,
}  # fmt: skip
SECRET = secrets.token_hex(20)

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def ended(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Project:
    """A project after `ifm sweep` of two values and `dvc exp apply` of the better, committed."""
    made = clone_of_this(tmp_path_factory.mktemp("sweep") / "ifm")
    file = made.folder / "params.yaml"
    file.write_text(preset.apply("points", file.read_text()))
    edit(file, TINY)
    for name in ("reports/.gitignore", "reports/runs/.gitignore"):  # which are no results
        (made.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made.folder / name)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    made.env |= {"PYTHONPATH": f"{made.folder / 'src'}"}
    made.said = made.run(warm.python(), "-m", "ifm", "sweep", "-S", "flow.lr=1e-3,5e-3", "--jobs", "2")
    made.table = pd.read_csv(made.folder / "reports/sweep.csv")
    made.run("dvc", "exp", "apply", made.table.experiments[0])
    return made


# --- the sweep --------------------------------------------------------------------------------------------------------


def test_the_best_is_applied_exactly_and_nothing_runs_again(swept):
    assert swept.json("reports/track.json")["state"] in {run.data.tags.get("ifm.state") for run in swept.runs()}
    assert "Data and pipelines are up to date" in swept.run("dvc", "status")
    assert swept.repro() == []
    best = swept.table.iloc[0]
    metrics = swept.json("reports/metrics/rf.json")["flow-one_step-nfe001"]
    pd.testing.assert_frame_equal(pd.read_csv(swept.folder / "reports/sweep.csv"), swept.table)  # apply left it alone
    assert "sweep" not in swept.run("git", "status", "--porcelain", "-uall")
    assert metrics["sliced_wasserstein"] == pytest.approx(best.score, rel=1e-5)
    assert preset.parse_yaml((swept.folder / "params.yaml").read_text())["flow"]["lr"] == best["flow.lr"]


def test_rows_are_ranked_in_the_table_the_page_and_mlflow(swept):
    table = swept.table
    assert table["rank"].tolist() == [1, 2]
    assert sorted(table["flow.lr"]) == [0.001, 0.005]
    assert table.score.is_monotonic_increasing
    assert table.score.nunique() == 2
    assert table.score_sd.isna().all()  # one seed
    page = (swept.folder / "reports/sweep.html").read_text()
    assert Page(page).fetched == []
    assert f"dvc exp apply {table.experiments[0]}" in page
    parents = {r.data.tags["dvc.exp_name"]: r for r in swept.runs() if r.data.tags.get("ifm.kind") == "pipeline"}
    assert set(parents) == set(table.experiments)
    for row in table.itertuples():
        logged = parents[row.experiments].data.metrics["sliced_wasserstein/rf-flow-1nfe"]
        assert logged == pytest.approx(row.score, rel=1e-5)


def test_what_is_shared_ran_once_and_a_second_sweep_runs_nothing(swept):
    ran = [r.info.run_name for r in swept.runs() if "ifm.recreated_from" not in r.data.tags]
    once = ("fetch", "preprocess", "reference", "teacher-rf", "trajectories-rf")
    assert [ran.count(name) for name in once] == [1] * 5
    assert [ran.count(f"{name}-rf") for name in ("flow", "select", "sample", "evaluate")] == [2] * 4
    assert "shared by 2: fetch, preprocess, reference, teacher@rf, trajectories@rf" in swept.said
    names = [ref.rpartition("/")[2] for ref in swept.run("git", "for-each-ref", "--format=%(refname)").split()]
    assert {name for name in names if name.startswith("sweep-")} == set(
        swept.table.experiments
    )  # none of what was shared
    swept.run("git", "commit", "-qam", "the better one")
    before = len(swept.runs())
    words = (warm.python(), "-m", "ifm", "sweep", "-S", "flow.lr=1e-3,5e-3", "--jobs", "2")
    out = swept.run(*words)
    assert "..." not in out
    assert len(swept.runs()) == before
    again = pd.read_csv(swept.folder / "reports/sweep.csv")
    pd.testing.assert_frame_equal(again, swept.table)


# --- sharing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed(swept) -> Project:
    swept.run("git", "add", "-A")
    swept.run("git", "commit", "-qm", "results", "--allow-empty")
    return swept


@pytest.fixture
def ssh(tmp_path) -> Iterator[dict[str, str]]:
    """A server for this user, with a key of its own: no root, nothing of the machine's."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen (Debian: openssh-server)")
    pytest.importorskip("dvc_ssh", reason="needs the extra .[ssh]")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd as root goes to
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "client.pub").rename(tmp_path / "authorized_keys")
    port, log = free_port(), tmp_path / "sshd.log"
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized_keys\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    with open(log, "w") as out:
        words = [sshd, "-D", "-e", "-f", str(tmp_path / "sshd_config")]
        process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(port, process, log)
        yield {
            "url": f"ssh://127.0.0.1{tmp_path}/store", "port": str(port), "user": getpass.getuser(),
            "keyfile": str(tmp_path / "client"), "allow_agent": "false",
        }  # fmt: skip
    finally:
        ended(process)


@pytest.fixture
def s3(tmp_path) -> Iterator[dict[str, str]]:
    """A server that speaks S3, with one bucket."""
    pytest.importorskip("moto", reason="needs moto, of the extra .[test]")
    pytest.importorskip("dvc_s3", reason="needs the extra .[s3]")
    import boto3

    port, log = free_port(), tmp_path / "moto.log"
    with open(log, "w") as out:
        words = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(port, process, log)
        address = f"http://127.0.0.1:{port}"
        keys = {"aws_access_key_id": "somebody", "aws_secret_access_key": SECRET}
        boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys).create_bucket(Bucket="results")
        yield {
            "url": "s3://results/ifm", "endpointurl": address, "access_key_id": "somebody", "secret_access_key": SECRET,
            "region": "us-east-1",
        }  # fmt: skip
    finally:
        ended(process)


@pytest.fixture
def folder(tmp_path) -> dict[str, str]:
    return {"url": str(tmp_path / "store")}


def connect(project: Project, options: dict[str, str]) -> None:
    """As docs/sharing.md has it: the address is for all, the rest for this machine alone."""
    project.run("dvc", "remote", "add", "-q", "-f", "-d", "--local", "shared", options["url"])
    for name, value in options.items():
        if name != "url":
            project.run("dvc", "remote", "modify", "-q", "--local", "shared", name, value)


@pytest.mark.parametrize("kind", ["folder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ssh", "s3"))])
def test_a_colleague_gets_the_results_and_retrains_nothing(committed, kind, request, tmp_path):
    options = request.getfixturevalue(kind)
    connect(committed, options)
    committed.run("dvc", "push", "-q")
    (finding,) = stores.remotes(committed.folder)
    assert (finding.level, finding.text) == ("ok", f"shared (default), {options['url']}: answers")
    assert committed.run("git", "status", "--porcelain") == ""  # no key, port or address of this machine's
    assert committed.run("git", "grep", "-c", "-e", SECRET, "-e", str(tmp_path), "HEAD", ok=False) == ""

    clone = Project(tmp_path / "colleague")
    committed.run("git", "clone", "-q", str(committed.folder), str(clone.folder))
    clone.env |= {"PYTHONPATH": f"{clone.folder / 'src'}"}
    connect(clone, options)
    if kind == "folder":
        clone.run("dvc", "pull", "-q")
        assert clone.repro() == []
        assert clone.repro("--force", "--single-item", "track") == ["track"]
        (mine,) = [r for r in clone.runs() if r.data.tags.get("ifm.kind") == "pipeline"]
        parents = [r for r in committed.runs() if r.data.tags.get("ifm.kind") == "pipeline"]
        (theirs,) = [r for r in parents if r.data.tags.get("dvc.exp_name") == committed.table.experiments[0]]
        assert mine.data.params == theirs.data.params
        assert mine.data.metrics == theirs.data.metrics
    else:
        assert clone.repro("--pull") == []  # pulls, and runs nothing
    for name in ("model.safetensors", "ifm.json"):
        model = Path("models/flow/rf") / name
        assert (clone.folder / model).read_bytes() == (committed.folder / model).read_bytes()


def test_a_model_is_taken_from_a_repository_as_from_a_registry(committed, folder, tmp_path):
    """`dvc get`: the files; `dvc import`: with where they come from, so that `dvc update` follows."""
    connect(committed, folder)
    committed.run("dvc", "push", "-q")
    user = Project(tmp_path / "user")
    user.folder.mkdir()
    user.run("git", "init", "-q")
    user.run("dvc", "init", "-q")
    user.run("dvc", "get", "-q", str(committed.folder), "models/flow/rf", "-o", "got")
    user.run("dvc", "import", "-q", str(committed.folder), "models/flow/rf", "-o", "imported", "--rev", "HEAD")
    original = (committed.folder / "models/flow/rf/model.safetensors").read_bytes()
    for name in ("got", "imported"):
        assert (user.folder / name / "model.safetensors").read_bytes() == original
    commit = committed.run("git", "rev-parse", "HEAD").strip()
    assert f"rev_lock: {commit}" in (user.folder / "imported.dvc").read_text()
