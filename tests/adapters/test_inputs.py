"""The files of a public teacher as an input of the graph: a change under the same path is noticed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ifm.adapters import inputs
from pipeline.stages import public
from tests.support.stages import ROOT

SECTION = {"kind": "pretrained", "path": "mine", "scheduler": None}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder in diffusers' form, as far as a digest looks, and params.yaml that names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "README.md"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("{}")
    Path("mine/unet/diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    Path("data").mkdir()
    Path("params.yaml").write_text(yaml.safe_dump({"teacher": SECTION}))
    return tmp_path / "mine"


def look(root, memory=None, **changes):
    return inputs.look(SECTION | changes, root=root, memory=memory)


def noted():
    return json.loads(Path("data/public.json").read_text())


def test_what_is_read_counts_and_nothing_else(mine, tmp_path):
    memory = tmp_path / "seen.json"
    first = look(tmp_path, memory)
    assert (first.public, first.files) == (["teacher"], 4)
    (mine / "README.md").write_text("more")
    os.utime(mine / "unet/config.json", (1, 1))
    shutil.copytree(mine, tmp_path / "copy/mine")
    assert look(tmp_path, memory) == look(tmp_path / "copy") == first
    for file in ("unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        before = look(tmp_path, memory)
        (mine / file).write_text("other")
        assert look(tmp_path, memory).sha256 != before.sha256
    shutil.move(mine / "scheduler", tmp_path / "apart")
    named = look(tmp_path, scheduler="apart")
    (tmp_path / "apart/scheduler_config.json").write_text("[]")
    assert look(tmp_path, scheduler="apart").sha256 != named.sha256


def test_what_is_not_on_this_disk(tmp_path):
    assert look(tmp_path) is None
    for kind in ("network", "exact", "none"):
        assert look(tmp_path, kind=kind) == inputs.Inputs()
    inputs.note(tmp_path / "public.json", inputs.Inputs())
    assert not (tmp_path / "public.json").exists()
    assert json.loads((ROOT / "data/public.json").read_text())["public"] == []  # of the default


def test_stage_public(mine, capsys):
    public.main()
    first = noted()
    shutil.rmtree(mine)
    public.main()
    assert noted() == first
    assert capsys.readouterr().err == "teacher.path = 'mine': not on this machine; what was made of it stands\n"
    Path("params.yaml").write_text(yaml.safe_dump({"teacher": SECTION | {"kind": "network"}}))
    public.main()
    assert noted() == {"public": [], "files": None, "sha256": None}
    Path("params.yaml").write_text("teacher: [")
    public.main()


def test_stage_public_imports_nothing_heavy():
    heavy = ("numpy", "torch", "pydantic", "ruamel", "diffusers", "mlflow")
    code = f"import sys, pipeline.stages.public; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_dvc_makes_the_teacher_again(mine, monkeypatch):
    """By the graph's own stage, with a teacher that copies what it would read."""
    from dvc.repo import Repo

    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert "data/public.json" in graph["stages"]["teacher"]["deps"]
    own = graph["stages"]["public"] | {"deps": [], "cmd": f"{sys.executable} -m pipeline.stages.public"}
    copies = {"cmd": "cp mine/unet/config.json made", "deps": ["data/public.json"], "outs": ["made"]}
    stages = {"vars": ["data/public.json:public"], "stages": {"public": own, "teacher": copies}}
    Path("dvc.yaml").write_text(yaml.safe_dump(stages))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("data/public.json").write_text('{"public": []}')

    def ran():
        with Repo(".") as repo:
            return [stage.addressing for stage in repo.reproduce()]

    Repo.init(".", no_scm=True).close()
    assert ran() == ["teacher"]
    public.main()  # as the real teacher notes it
    assert ran() == ["public@teacher", "teacher"]
    assert "teacher" not in ran()
    (mine / "unet/config.json").write_text("[]")
    assert ran() == ["public@teacher", "teacher"]
    assert Path("made").read_text() == "[]"
