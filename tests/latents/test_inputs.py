"""An encoder's files as an input of the graph: data/encoder.json follows them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ifm.config import read_params
from ifm.latents import inputs
from pipeline.stages import encoder
from tests.support.autoencoders import small_kl

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    asks("kl")
    return tmp_path


def asks(place):
    values = read_params(ROOT / "params.yaml")
    values["data"]["encoder"] = place
    Path("params.yaml").write_text(yaml.safe_dump(values))


def noted():
    return json.loads(Path("data/encoder.json").read_text())


@pytest.mark.parametrize("inner", ["", "vae"])
def test_the_digest_follows_what_is_read(here, inner):
    small_kl(Path("kl", inner))
    encoder.main()
    first = noted()
    assert (first["encoder"], first["files"]) == (["encoder"], 2)
    Path("kl", inner, "notes.txt").write_text("no part of it")
    encoder.main()
    assert noted() == first
    small_kl(Path("kl", inner), seed=1)
    encoder.main()
    assert noted()["sha256"] != first["sha256"]


def test_where_the_folder_is_missing_what_was_noted_stands(here, capsys):
    small_kl(Path("kl"))
    encoder.main()
    first = noted()
    Path("kl").rename("elsewhere")
    encoder.main()
    assert noted() == first
    assert "data.encoder = 'kl': not on this machine; what was made of it stands" in capsys.readouterr().err
    asks(None)
    encoder.main()
    assert noted() == {"encoder": [], "files": None, "sha256": None}


def test_none_notes_nothing_new(tmp_path):
    inputs.note(tmp_path / "encoder.json", inputs.Inputs())
    assert not (tmp_path / "encoder.json").exists()
    assert json.loads((ROOT / "data/encoder.json").read_text())["encoder"] == []  # of the default


def test_the_stage_is_light():
    heavy = ("torch", "numpy", "pydantic", "diffusers", "mlflow")
    code = f"import sys, pipeline.stages.encoder; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
