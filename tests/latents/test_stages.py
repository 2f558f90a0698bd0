"""data.encoder in the graph: digits as latents, from the encoder to figures with their floor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ifm import IntegrationFlow, pretrained
from ifm.config import ConfigError, parse
from ifm.errors import UserError
from ifm.files import read_json
from pipeline.stages import (
    diagnose,
    evaluate,
    fetch,
    flow,
    preprocess,
    reference,
    report,
    sample,
    select,
    teacher,
    trajectories,
)
from pipeline.tools import preset
from tests.support.autoencoders import small_kl
from tests.support.project import TINY
from tests.support.stages import ROOT, changed, run_stage

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
LATENTS = {
    "dynamics": ["ve"],
    "data.encoder": "kl",
    "data.random_flip": True,
    "ode.sigma_data": None,
    "evaluate.extractor": "pixels",
    "diagnose.paths": 2,
    "diagnose.jacobian_paths": 1,
}


def digits(**changes):
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return changed(preset.parse_yaml(preset.apply("digits", TEXT)), TINY | LATENTS | named)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__encoder": None, "data__encoder_revision": "v1"}, "data: encoder_revision: v1 is of no encoder"),
        ({"ode__sigma_data": 0.0}, "ode.sigma_data = 0.0: "),
    ],
)
def test_rules(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse(digits(**changes))


def test_points_have_no_latents():
    values = changed(preset.parse_yaml(preset.apply("points", TEXT)), {"data.encoder": "kl"})
    with pytest.raises(ConfigError, match="data: encoder: kl makes latents of images, and source: points has none"):
        parse(values)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All stages on the latents of a random autoencoder."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        small_kl(folder / "kl")
        values = digits()
        Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        for module in (fetch, preprocess, reference):
            run_stage(module, values)
        shutil.rmtree("kl")  # all that follows has its own
        for module in (teacher, trajectories, flow, select, sample, evaluate, diagnose):
            run_stage(module, values, "ve")
        run_stage(report, values)
    return folder


def test_samples_are_images_and_stand_beside_their_floor(made):
    described = read_json(made / "models/flow/ve/ifm.json")
    assert (described["image_shape"], described["latent_shape"]) == ([1, 8, 8], [2, 4, 4])
    latents = read_json(made / "data/processed/latents.json")
    assert described["dynamics"]["sigma_data"] == pytest.approx(np.sqrt(np.mean(np.square(latents["std"]))), rel=0.2)
    samples = np.load(made / "data/samples/ve/flow-one_step-nfe001.npy")
    assert (samples.dtype, samples.shape[1:]) == (np.uint8, (1, 8, 8))
    reference = read_json(made / "data/reference/metadata.json")
    figures = read_json(made / "reports/metrics/ve.json")
    assert figures["data-reconstruction"]["fid"] == pytest.approx(reference["reconstruction_fid"], rel=1e-6)
    assert "reconstruction" in (made / "reports/summary.csv").read_text()
    assert "floor of models of its latents" in (made / "reports/index.html").read_text()
    noted = read_json(made / "data/encoder.json")
    assert (noted["encoder"], noted["files"]) == (["encoder"], 2)


def test_a_models_folder_stands_alone(made, tmp_path):
    """The stage's samples again, by the folder alone, at the stage's batch size; without decoder/ in one line."""
    folder = tmp_path / "copied"
    shutil.copytree(made / "models/flow/ve", folder)
    found = IntegrationFlow.from_pretrained(folder).sample(48, sampler="one_step", batch_size=32)
    assert np.array_equal(found, np.load(made / "data/samples/ve/flow-one_step-nfe001.npy")[:48])
    assert pretrained.load_teacher(made / "models/teacher/ve").decoder is not None
    shutil.rmtree(folder / "decoder")
    with pytest.raises(UserError, match=r"a file is missing .decoder/, which makes images of its latents"):
        IntegrationFlow.from_pretrained(folder)


def test_sizes_are_checked_before_anything_is_decoded(made, monkeypatch):
    monkeypatch.chdir(made)
    small_kl(made / "kl")
    before = sorted(made.glob("data/processed/*"))
    changes = {"network__channels": [16, 16, 16, 16], "network__attention": [False] * 4}
    with pytest.raises(UserError, match=r"the latents. side = 4 cannot be halved 3 times, as network\.channels asks"):
        run_stage(preprocess, digits(**changes))
    with pytest.raises(UserError, match=r"takes 1 channels, the data have 3; see data\.channels"):
        run_stage(preprocess, digits(data__channels=3))
    assert sorted(made.glob("data/processed/*")) == before
