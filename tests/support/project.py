"""A clone of this checkout with its own Git history, DVC cache and MLflow store, and budgets that a test can pay."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tools import params_file
from tests.support import warm

ROOT = Path(__file__).parents[2]
REAL_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
TINY = {
    "dynamics": ["rf"],
    "network.channels": [16, 16], "network.attention": [False, False],
    "teacher.steps": 20, "teacher.batch_size": 16, "teacher.warmup_steps": 2, "teacher.log_every": 5,
    "teacher.checkpoint_every": 10,
    "trajectories.count": 64, "trajectories.shard_size": 32, "trajectories.batch_size": 16,
    "trajectories.solver_steps": 4, "trajectories.stored_times": 3,
    "flow.steps": 20, "flow.batch_size": 16, "flow.warmup_steps": 2, "flow.log_every": 5, "flow.checkpoint_every": 10,
    "select.count": 32, "select.levels": 3,
    "sample.seeds": 2, "sample.count": 48, "sample.batch_size": 32, "sample.grid_images": 16,
    "sample.flow_steps": [1, 2],
    "evaluate.teacher_nfe": [1, 5], "evaluate.kid_subsets": 3, "evaluate.classifier.steps": 20,
    "diagnose.paths": 8, "diagnose.solver_steps": 4, "diagnose.jacobian_paths": 2, "diagnose.jacobian_times": 2,
}  # fmt: skip


class Project:
    """A clone with its own Git history, DVC cache and MLflow store."""

    def __init__(self, folder: Path, *, kept_warm: bool = True) -> None:
        """kept_warm=False: its processes are real ones, for a test that kills them or looks at their parents."""
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "IFM_", "GIT_"))}
        self.env = clean | {
            "PATH": warm.on_path(REAL_PATH) if kept_warm else REAL_PATH,
            "DVC_NO_ANALYTICS": "true",
            "CUDA_VISIBLE_DEVICES": "",  # bytes that must be equal, and several processes: on CPUs
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip

    def run(self, *words: str, ok: bool = True, **env: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.env | env, text=True, check=False, timeout=900,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode == 0) == ok, done.stdout[-20000:]
        return done.stdout

    def set(self, **values) -> None:
        edit(self.folder / "params.yaml", {name.replace("__", "."): value for name, value in values.items()})

    def repro(self, *words: str, **options) -> list[str]:
        """The stages that ran."""
        out = self.run("dvc", "repro", *words, **options)
        return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]

    def json(self, path: str):
        return json.loads((self.folder / path).read_text())

    def runs(self) -> list:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        return client.search_runs([client.get_experiment_by_name("ifm").experiment_id])


def edit(path: Path, values: dict) -> None:
    path.write_text(params_file.edited(path.read_text(), values))


def clone_of_this(folder: Path) -> Project:
    """A copy of the working tree without its results."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a Git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, folder / name
        # Results of the default configuration are the clone's own to make.
        if source.is_file() and not name.startswith("reports/") and name != "dvc.lock":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return Project(folder)
