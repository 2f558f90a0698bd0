"""The whole graph on a handful of synthesised recordings, from a folder of WAV files to a page that plays them."""

import io
import json
import shutil
import wave

import numpy as np
import pandas as pd
import pytest

from ifm.modalities.wav import wav_bytes
from tests.support.project import TINY, clone_of_this, edit

pytest.importorskip("soundfile")
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["logmel", "complex"])
def test_from_a_folder_of_recordings_to_a_page_that_plays_samples(tmp_path, representation):
    rng = np.random.default_rng(0)
    for name, hertz in {"low": 300, "high": 2000}.items():
        (tmp_path / "tones" / name).mkdir(parents=True)
        for i in range(20):
            x = np.sin(2 * np.pi * hertz * (1 + 0.02 * i) * np.arange(2000) / 8000) + rng.normal(size=2000) / 20
            (tmp_path / "tones" / name / f"{i}.wav").write_bytes(wav_bytes(x, 8000))
    project = clone_of_this(tmp_path / "ifm")
    audio = {"seconds": 0.3, "hop": 100, "fft": 206 if representation == "complex" else 400, "mels": 16, "multiple": 4}
    edit(
        project.folder / "params.yaml",
        TINY
        | {"data.source": "audiofolder", "data.path": str(tmp_path / "tones"), "condition.kind": "class"}
        | {f"data.audio.{key}": value for key, value in (audio | {"representation": representation}).items()},
    )
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    project.repro()
    shape = (1, 16, 24) if representation == "logmel" else (2, 104, 24)
    metadata = project.json("data/processed/metadata.json")
    assert (metadata["modality"], metadata["shape"], metadata["classes"]) == ("sound", list(shape), ["high", "low"])
    for folder in ("models/teacher/rf", "models/flow/rf"):
        described = project.json(f"{folder}/ifm.json")
        assert (described["modality"], described["sound"]) == ("sound", metadata["sound"])
    samples = project.folder / "data/samples/rf"
    drawn = np.load(samples / "flow-one_step-nfe001.npy")
    assert (drawn.dtype, drawn.shape) == (np.float16, (2 * 48, *shape))
    shown = project.json("data/samples/rf/sounds/shown.json")
    assert shown["names"] == ["high", "low"]
    played = sorted((samples / "sounds").rglob("*.wav"))
    assert len(played) == 4 * 2
    with wave.open(io.BytesIO(played[0].read_bytes())) as file:
        assert (file.getnframes(), file.getframerate()) == (2400, 8000)
    page = (project.folder / "reports/index.html").read_text()
    assert page.count("<audio controls") == 3 * 2
    assert len(page) < 5_000_000
    assert "Real sounds, train split" in page
    table = pd.read_csv(project.folder / "reports/summary.csv")
    one_step = table[table.sampler == "one_step"].iloc[0]
    assert one_step[["fid", "asked_class_share", "coverage"]].notna().all()
    logged = {run.data.tags.get("ifm.stage"): run.info.run_id for run in project.runs()}
    out = tmp_path / "out"
    project.run("python", "-m", "ifm", "sample", "--model", "models/flow/rf", "--class", "all", "--out", f"{out}/")
    assert len(list(out.glob("*.wav"))) == 64
    judged = ["--samples", str(out), "--reference", "data/reference", "--out", f"{tmp_path}/figures.json"]
    project.run("python", "-m", "ifm", "evaluate", *judged)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["protocol"]["samples"]["count"] == 64
    assert figures["figures"]["fid"] > 0
    assert "sample-rf" in logged
