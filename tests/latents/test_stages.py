"""data.encoder in the graph: digits as latents, from the encoder to figures with their floor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, DiffusionPipeline, DiTTransformer2DModel

from ifm import IntegrationFlow, pretrained
from ifm.cli.main import main
from ifm.config import ConfigError, parse
from ifm.data.splits import open_states
from ifm.errors import UserError
from ifm.files import read_json
from ifm.sampling import Draws
from ifm.use import graphs
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
    state = tmp_path / "copied" / "step-000000010"  # states and averages share it
    state.mkdir()
    for file in folder.glob("*.*"):
        shutil.copy(file, state)
    assert pretrained.load_flow(state).decoder is not None
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


@pytest.mark.parametrize("kind", [pytest.param(form, marks=pytest.mark.slow) for form in ("pt2", "onnx")])
def test_a_graph_gives_images(made, kind, tmp_path):
    """The decoder is in the file; written graphs are compared with the model for several batch sizes."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    found = pretrained.load_flow(made / "models/flow/ve")
    written = graphs.write_graph(found, tmp_path, kind=kind)
    assert written.largest_difference <= graphs.TOLERANCE
    if kind == "pt2":
        program = torch.export.load(written.path).module()
        assert program(*graphs.example(found, 5)).shape == (5, 1, 8, 8)


def test_the_diffusers_pipeline_decodes(made, tmp_path, capsys):
    """From the same x_T and anchor the images of the flow; its own folder gives the flow again."""
    model, out = made / "models/flow/ve", tmp_path / "exported"
    main(["export", "--model", str(model), "--format", "diffusers", "--out", str(out), "--license", "mit"])
    flow = IntegrationFlow.from_pretrained(model)
    pipe = DiffusionPipeline.from_pretrained(out, custom_pipeline=str(out), trust_remote_code=True)
    assert type(pipe.vae).__name__ == "AutoencoderKL"
    draws = Draws.of(flow.dynamics, flow.network.data_shape, range(5), seed=3, device=torch.device("cpu"))
    given = {"latents": draws.x_T, "anchor": draws.x_anchor}
    images = pipe(**given, output_type="pt").images
    assert images.shape == (5, 1, 8, 8)
    levels = (255 * images).round().to(torch.uint8).numpy()
    ours = flow.sample(5, seed=3, sampler="one_step")
    assert np.abs(levels.astype(int) - ours).max() <= 1
    assert pipe(**given, output_type="latent").images.shape == (5, 2, 4, 4)
    assert np.array_equal(np.asarray(pipe(**given).images[0]), levels[0, 0])
    np.testing.assert_array_equal(IntegrationFlow.from_pretrained(out).sample(5, seed=3, sampler="one_step"), ours)
    with pytest.raises(SystemExit, match="makes latents, which flowmap does not decode; use --format diffusers"):
        main(["export", "--model", str(model), "--format", "flowmap", "--out", str(tmp_path / "x")])


def test_dits_preset_runs_on_stand_ins(tmp_path, monkeypatch):
    """Latents, classes, guidance, a public transformer whose learned variance is cut off, in the preset's precision."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    small_kl(tmp_path / "vae", channels=3, latent_channels=4)
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2, "sample_size": 4}
    dit = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=10, **size)
    dit.save_pretrained("public/transformer")
    DDPMScheduler(clip_sample=False).save_pretrained("public/scheduler")
    data = {"source": "digits", "name": None, "test_split": None, "image_size": 8}
    small = {f"data.{key}": value for key, value in data.items()}
    small |= {"data.encoder": "vae", "data.encoder_revision": None, "teacher.path": "public"}
    small |= {"flow.warmup_steps": 1, "trajectories.count": 16, "trajectories.solver_steps": 5, "flow.batch_size": 4}
    small |= {"flow.steps": 2, "flow.log_every": 1, "flow.checkpoint_every": 2}
    small |= {"evaluate.extractor": "pixels", "dynamics": ["ve"]}
    preset_values = preset.parse_yaml(preset.apply("dit-imagenet256", TEXT))
    assert (preset_values["teacher"]["kind"], preset_values["guidance"]["scale"]) == ("pretrained", 1.5)
    assert preset_values["ode"]["sigma_data"] is None
    values = changed(preset_values, small)
    for module in (fetch, preprocess):
        run_stage(module, values)
    for module in (teacher, trajectories, flow):
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
        run_stage(module, values, "ve")
    found = IntegrationFlow.from_pretrained("models/trained/ve")
    assert (found.network.data_shape, found.condition_kind.drops) == ((4, 4, 4), True)
    assert found.dynamics.sigma_data == open_states(Path("data/processed"), "train").sigma_data
    assert found.sample(3, classes=[0, 1, 2]).shape == (3, 3, 8, 8)
