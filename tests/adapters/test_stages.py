"""`teacher.kind: pretrained` in params.yaml and in the graph: from a public model to one step."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel

from ifm import pretrained
from ifm.adapters.network import FLOW_TOP, AdaptedNetwork
from ifm.config import ConfigError, parse
from ifm.errors import UserError
from ifm.files import read_json
from pipeline.stages import evaluate, fetch, flow, preprocess, reference, sample, select, teacher, trajectories
from pipeline.tools import preset
from tests.support.project import TINY
from tests.support.public_model import small_unet
from tests.support.stages import ROOT, changed, run_stage, values_of

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
PUBLIC = {"teacher.kind": "pretrained", "teacher.path": "public", "dynamics": ["ve"]}


def digits(**changes):
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return changed(values_of("digits"), TINY | PUBLIC | named)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher__path": None}, "teacher: kind: pretrained needs path, a folder in diffusers' form or a Hub id"),
        ({"dynamics": ["ve", "pfgmpp"]}, "dynamics: pfgmpp does not fit teacher.kind: pretrained: public models learn"),
        ({"anchor__input": "cross_attention"}, "anchor.input: cross_attention does not fit flow.init: teacher"),
        ({"flow__scheme": "paper"}, "flow.scheme: paper does not fit flow.init: teacher"),
    ],
)
def test_rules(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse(digits(**changes))
    parse(digits())
    parse(digits(anchor__input="cross_attention", flow__init="scratch"))


def test_points_have_no_public_models():
    values = changed(values_of("points"), PUBLIC)
    with pytest.raises(ConfigError, match=r"teacher\.kind: pretrained is for images, and data\.source is points"):
        parse(values)


def test_a_public_model_becomes_a_one_step_one(tmp_path, monkeypatch):
    """teacher, trajectories, flow, select, sample and evaluate of two branches, from one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained("public")
    values = digits(dynamics=["ve", "rf"], trajectories__count=32)
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for module in (fetch, preprocess, reference):
        run_stage(module, values)
    rest = (select, sample, evaluate)
    for d in values["dynamics"]:
        for module in (teacher, trajectories, flow, *(rest if d == "ve" else ())):
            run_stage(module, values, d)
        adapted = pretrained.load_teacher(Path("models/teacher", d)).network
        made = pretrained.load_flow(Path("models/trained", d)).network
        assert isinstance(adapted, AdaptedNetwork)
        assert made.top == FLOW_TOP * values["ode"]["sigma_data"]
        moved = made.model.conv_in.weight[:, :1] - adapted.model.conv_in.weight
        assert 0 < moved.abs().max() < 0.2  # trained on from the public weights
    noted = read_json(Path("data/public.json"))
    assert (noted["public"], noted["files"]) == (["teacher"], 4)  # for DVC, which asks for its digest from now on
    assert np.load("data/samples/ve/flow-one_step-nfe001.npy").shape[1:] == (1, 8, 8)
    assert "flow-one_step-nfe001" in Path("reports/metrics/ve.json").read_text()
    DDPMPipeline(small_unet(sample_size=16), DDPMScheduler()).save_pretrained("public")
    for module, d in ((preprocess, None), (teacher, "ve")):  # before anything is decoded, too
        with pytest.raises(UserError, match="'public': is for 16 x 16 pixels, the data have 8 x 8"):
            run_stage(module, values, d)


def test_a_transformer_with_classes_is_guided(tmp_path, monkeypatch):
    """DiT's null class is the one without a class that classifier-free guidance asks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 4, "sample_size": 8}
    DiTTransformer2DModel(in_channels=1, out_channels=2, num_embeds_ada_norm=10, **size).save_pretrained(
        "public/transformer"
    )
    DDPMScheduler().save_pretrained("public/scheduler")
    guided = {"condition.kind": "class", "condition.drop_probability": 0.1, "guidance.kind": "cfg"}
    tiny = {"flow.steps": 4, "flow.warmup_steps": 1, "flow.log_every": 1, "flow.checkpoint_every": 2}
    plain = digits(trajectories__count=32, **{k.replace(".", "__"): v for k, v in (guided | tiny).items()})
    for module in (fetch, preprocess):
        run_stage(module, plain)
    ends = []
    for scale in (1.0, 3.0):
        values = changed(plain, {"guidance.scale": scale})
        for module in (teacher, trajectories, flow) if scale > 1 else (teacher, trajectories):
            run_stage(module, values, "ve")
        ends.append(np.load("data/trajectories/ve/first.npy")[:, -1])
        shutil.rmtree("work")
    assert not np.array_equal(*ends)
    made = pretrained.load_flow(Path("models/trained/ve"))
    assert (made.condition_kind.classes[:2], made.condition_kind.drops) == (["0", "1"], True)


FORMS = {  # of the published networks, at a size that a test can pay
    "ddpm-cifar10": {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "ddpm-celebahq": {
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_presets_run_on_stand_ins(name, tmp_path, monkeypatch):
    """A bare folder, as on the Hub, in the preset's precision; images are the digits in three channels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    small_unet(in_channels=3, out_channels=3, **FORMS[name]).save_pretrained("public")
    DDPMScheduler(variance_type="fixed_large").save_pretrained("public")
    text = preset.apply(name, TEXT, data="images" if name == "ddpm-celebahq" else None)
    data = {"source": "digits", "name": None, "path": None, "label_column": "label", "test_split": None}
    data |= {"image_size": 8, "channels": 3}
    small = {"flow.warmup_steps": 1, "trajectories.count": 16, "trajectories.solver_steps": 5, "flow.batch_size": 4}
    small |= {"flow.steps": 2, "flow.log_every": 1, "flow.checkpoint_every": 2, "teacher.path": "public"}
    small |= {f"data.{key}": value for key, value in data.items()}
    small |= {"evaluate.extractor": "pixels", "dynamics": ["ve"]}
    values = changed(preset.parse_yaml(text), small)
    assert (values["teacher"]["kind"], values["flow"]["precision"]) == ("pretrained", "bf16")
    for module in (fetch, preprocess):
        run_stage(module, values)
    for module in (teacher, trajectories, flow):
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
        run_stage(module, values, "ve")
    x_T = values["ode"]["ve"]["t_max"] * torch.randn(2, 3, 8, 8)
    made = pretrained.load_flow(Path("models/trained/ve"))
    x_0_hat = made(x_T, torch.full((2,), values["ode"]["ve"]["t_max"]), x_anchor=torch.randn(2, 3, 8, 8))
    assert bool(x_0_hat.isfinite().all())
