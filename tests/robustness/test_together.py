"""Two at once in one checkout, on one cache and one store; a cache that is damaged. By the real `dvc`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.runner.show import BUSY
from pipeline.tools.check_cache import copies, damaged, file_md5
from tests.support import warm
from tests.support.project import TINY, Project, clone_of_this, edit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def project(folder: Path) -> Project:
    made = clone_of_this(folder)
    edit(made.folder / "params.yaml", TINY)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    return made


def start(made: Project, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        words, cwd=made.folder, env=made.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def locked(made: Project, experiment: str = "") -> dict[str, str]:
    """md5 of every data output in dvc.lock, without the runs' records, which hold times."""
    text = (made.folder / "dvc.lock").read_text()
    if experiment:
        (ref,) = made.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}").split()
        text = made.run("git", "show", f"{ref}:dvc.lock")
    stages = yaml.safe_load(text)["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    return {path: md5 for path, md5 in outs.items() if not path.startswith("reports/")}


def test_two_repros_in_one_checkout(tmp_path):
    """One works; the other waits for it, or is told so in DVC's words; then there is nothing to do."""
    made = project(tmp_path / "ifm")
    both = [start(made, "dvc", "repro", "preprocess") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    statuses = [process.returncode for process in both]
    assert 0 in statuses, said
    for status, text in zip(statuses, said, strict=True):
        assert status == 0 or any(said in text for said in BUSY), text
    made.run("dvc", "repro", "preprocess")
    assert made.repro("preprocess") == []
    assert damaged(made.folder / ".dvc" / "cache") == []
    assert {r.info.status for r in made.runs()} == {"FINISHED"}


@pytest.mark.slow
def test_two_checkouts_on_one_cache_and_one_store(tmp_path):
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    both = [project(tmp_path / name) for name in ("one", "two")]
    for made in both:
        made.env["MLFLOW_TRACKING_URI"] = store
        made.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    # A fresh SQLite store bears no two processes that make its tables at once; each checkout has a lock of its own.
    both[0].run("dvc", "repro", "fetch")
    running = [start(made, "dvc", "repro", "preprocess", "reference") for made in both]
    for process in running:
        out = process.communicate(timeout=600)[0]
        assert process.returncode == 0, out
    first, second = (locked(made) for made in both)
    assert first == second
    assert set(first) == {"data/raw", "data/processed", "data/reference"}
    assert damaged(tmp_path / "cache") == []
    for made in both:
        assert "up to date" in made.run("dvc", "status", "preprocess", "reference")

    from mlflow import MlflowClient

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("ifm").experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {"fetch", "preprocess", "reference"} == {r.info.run_name for r in runs}


@pytest.mark.slow
def test_experiments_side_by_side_that_share_a_stage(tmp_path):
    """Two `dvc exp run --temp` need the same teacher and the same paths: neither takes the other's files away."""
    made = project(tmp_path / "ifm")
    made.run("dvc", "repro", "preprocess")
    words = ("dvc", "--wait-for-lock", "exp", "run", "--temp", "flow@rf")
    both = [
        start(made, *words, "--name", f"lr-{i}", "-S", f"flow.lr={i}e-4", "-S", "teacher.steps=300") for i in (1, 2)
    ]
    for process in both:
        out = process.communicate(timeout=900)[0]
        assert process.returncode == 0, out
    weights = []
    for i in (1, 2):
        made_by = locked(made, f"lr-{i}")
        weights.append({k: v for k, v in made_by.items() if "teacher" in k or "trajectories" in k})
    assert weights[0] == weights[1]
    assert len(weights[0]) == 2
    assert damaged(made.folder / ".dvc" / "cache") == []
    assert {r.info.status for r in made.runs()} == {"FINISHED"}
    assert list((made.folder / ".ifm" / "checkpoints").iterdir()) == []


# --- a damaged cache ------------------------------------------------------------------------------------------------

GRAPH = """
stages:
  make:
    cmd: mkdir -p d && seq 1 1000 > d/a && echo x > d/b && echo made >> runs
    outs: [d]
  use:
    cmd: cat d/a d/b > e
    deps: [d]
    outs: [e]
"""


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """Two stages and no Python in them."""
    made = Project(tmp_path / "small")
    made.env["PYTHONPATH"] = os.pathsep.join(sys.path)
    made.folder.mkdir()
    (made.folder / "dvc.yaml").write_text(GRAPH)
    made.run("git", "init", "-q")
    made.run("dvc", "init", "-q")
    made.run("dvc", "repro", "-q")
    return made


def damage(made: Project, *, truncate: bool) -> Path:
    """d/a in the cache is cut off, or other bytes; read-only as before."""
    md5 = file_md5(made.folder / "d" / "a")
    entry = made.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    entry.chmod(0o644)
    entry.write_bytes(entry.read_bytes()[:100] if truncate else entry.read_bytes().replace(b"7", b"8"))
    entry.chmod(0o444)
    return entry


@pytest.mark.parametrize(
    ("remote", "truncate"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_found_and_made_or_fetched_again(small, truncate, remote, tmp_path):
    good = (small.folder / "d" / "a").read_bytes()
    if remote:
        small.run("dvc", "remote", "add", "-d", "shared", str(tmp_path / "remote"))
        small.run("dvc", "push", "-q")
    entry = damage(small, truncate=truncate)
    shutil.rmtree(small.folder / "d")
    small.run("dvc", "checkout")
    # Why there is a check of our own: DVC trusts a read-only file and sees nothing.
    assert (small.folder / "d" / "a").read_bytes() != good
    assert "up to date" in small.run("dvc", "status")
    check = (warm.python(), "-m", "pipeline.tools.check_cache")
    told = small.run(*check, ok=False)
    assert f"{entry}: damaged" in told
    assert "d/a: a copy of a damaged file" in told
    assert entry.exists()
    small.run(*check, "--mend")
    assert not entry.exists()
    small.run("dvc", "pull") if remote else small.run("dvc", "repro")
    assert (small.folder / "d" / "a").read_bytes() == good
    assert (small.folder / "runs").read_text() == ("made\n" if remote else "made\nmade\n")
    assert "every file has the checksum of its name" in small.run(*check)
    assert "up to date" in small.run("dvc", "status")


def test_a_damaged_list_of_a_folder_is_found(small):
    (entry,) = (small.folder / ".dvc/cache").rglob("*.dir")
    entry.chmod(0o644)
    entry.write_bytes(entry.read_bytes()[:-5])
    (bad,) = damaged(small.folder / ".dvc/cache")
    assert bad.path == entry
    assert copies(small.folder, [bad]) == []
    entry.unlink()
    small.run("dvc", "repro")
    assert damaged(small.folder / ".dvc/cache") == []
