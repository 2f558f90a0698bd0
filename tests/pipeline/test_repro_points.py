"""The real graph on points, by plain `dvc repro` and by `ifm repro`: the same dvc.lock; slow."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import warm
from tests.support.project import TINY, Project, clone_of_this, edit

OF_IMAGES = ("network", "evaluate.classifier", "dynamics")
MEASURED = ("reports/runs", "reports/report-run.json", "reports/index.html", "reports/summary")  # they hold times


def points(folder: Path) -> Project:
    made = clone_of_this(folder)
    made.env["OMP_NUM_THREADS"] = "1"  # sums in the same order
    made.run(warm.python(), "-m", "pipeline.tools.preset", "points")
    tiny = {key: value for key, value in TINY.items() if not key.startswith(OF_IMAGES)}
    edit(folder / "params.yaml", tiny | {"dynamics": ["ve", "rf"], "data.points.count": 2000, "network.mlp.width": 16})
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    return made


def locked(made: Project) -> Any:
    """dvc.lock without the digests of what holds times, in its order."""
    stages = yaml.safe_load((made.folder / "dvc.lock").read_text())["stages"]
    for stage in stages.values():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            if entry["path"].startswith(MEASURED):
                del entry["md5"], entry["size"]
    return [(name, list(stage.items())) for name, stage in stages.items()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_same_lock_both_ways(tmp_path):
    plain, beside = points(tmp_path / "plain"), points(tmp_path / "beside")
    plain.run("dvc", "repro")
    said = beside.run(sys.executable, "-m", "pipeline.runner.repro", "--jobs", "2")
    assert locked(beside) == locked(plain)
    lines = said.splitlines()
    assert f"report: {beside.folder / 'reports/index.html'}" in lines
    assert [line.split()[0] for line in lines if line.split()[0] in ("ve", "rf")] == ["ve", "rf"] * 2  # each, then both
    assert "up to date" in beside.run("dvc", "repro")
    assert {run.info.status for run in beside.runs()} == {"FINISHED"}
    assert sorted(run.data.tags["ifm.stage"] for run in beside.runs() if "ifm.stage" in run.data.tags) == sorted(
        run.data.tags["ifm.stage"] for run in plain.runs() if "ifm.stage" in run.data.tags
    )
