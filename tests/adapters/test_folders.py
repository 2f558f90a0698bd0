"""Folders of diffusers: what is read, what is refused in one line, and what is written again."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from ifm import dynamics, pretrained
from ifm.adapters import folder as folders
from ifm.adapters import places
from ifm.conditions.classes import Classes, ClassLabels
from ifm.errors import UserError
from ifm.model import Teacher, build_flow
from ifm.networks import load_network
from ifm.use import loading
from ifm.use.diffusers_folder import write_folder
from tests.support.public_model import small_unet

VE = dynamics.build("ve")
HOW = {"shape": (1, 8, 8), "sigma_data": VE.sigma_data, "clock": VE.clock}
X_T, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 40.0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public") / "ddpm"
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def mine(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


def read(folder, **changes):
    return folders.read(folders.find(folder, named="m"), **HOW | changes)


def asked(network, **told):
    with torch.no_grad():
        return Teacher(network, VE)(T.reshape(-1, 1, 1, 1) * X_T, T, **told)


def test_a_bare_model_reads_as_a_pipeline_does(saved, tmp_path):
    expected = asked(read(saved))
    bare = shutil.copytree(saved / "unet", tmp_path / "bare")
    with pytest.raises(UserError, match=r"^m: no scheduler_config\.json .*; name it with teacher\.scheduler$"):
        read(bare)
    for scheduler in (saved, saved / "scheduler", saved / "scheduler/scheduler_config.json"):
        found = folders.find(bare, named="m", scheduler=scheduler)
        assert torch.equal(asked(folders.read(found, **HOW)), expected)
    shutil.copy(saved / "scheduler/scheduler_config.json", bare)
    assert torch.equal(asked(read(bare)), expected)


def test_old_names_of_weights_are_read(tmp_path):
    """As in the files of 2022, whose attention has query, key, value and proj_attn."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    DDPMPipeline(small_unet(**blocks), DDPMScheduler()).save_pretrained(tmp_path / "new")
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    file = old / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, name in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {key.replace(f".{new}.", f".{name}."): x for key, x in weights.items()}
    assert any(".query." in key for key in weights)
    save_file(weights, file, metadata={"format": "pt"})
    assert torch.equal(asked(read(old)), asked(read(tmp_path / "new")))


def test_what_is_saved_is_read_again(saved, tmp_path):
    network = read(saved)
    pretrained.save_model(Teacher(network, VE), tmp_path / "teacher", record={"image_shape": [1, 8, 8]})
    found = pretrained.load_teacher(tmp_path / "teacher")
    assert torch.equal(found(X_T, T), Teacher(network, VE)(X_T, T))
    other = replace(folders.find(saved, named="m"), scheduler={"_class_name": "EDMEulerScheduler"})
    pretrained.save_model(Teacher(folders.read(other, **HOW), VE), tmp_path / "edm", record={})
    digests = {pretrained.describe(tmp_path / name)["sha256"] for name in ("teacher", "edm")}
    assert len(digests) == 2  # the same weights under another schedule


@pytest.mark.parametrize("takes_anchor", [False, True])
def test_a_flow_starts_as_the_teacher(saved, tmp_path, takes_anchor):
    """With anchor channels of no weight, below the level at which it is asked no more, and after saving."""
    network = read(saved)
    flow = build_flow(network.for_flow(takes_anchor=takes_anchor, top=5.0), VE, scheme="edm", takes_anchor=takes_anchor)
    if takes_anchor:
        assert flow.network.model.conv_in.weight[:, 1:].abs().max() > 0
        flow.network.model.conv_in.weight.data[:, 1:] = 0
    t = torch.tensor([0.5, 1.0, 4.9])
    x_anchor = torch.randn_like(X_T) if takes_anchor else None
    found = flow.eval()(X_T, t, x_anchor=x_anchor)
    network.clip = None  # as in the flow
    torch.testing.assert_close(found, Teacher(network, VE)(X_T, t), rtol=0, atol=0.02)  # g is exact at t_min, D at 0
    pretrained.save_model(flow, tmp_path / "flow", record={})
    again = pretrained.load_flow(tmp_path / "flow")
    assert torch.equal(again(X_T, t, x_anchor=x_anchor), found)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"^diffusers: a flow that started from a public model .*; use --format onnx"):
        write_folder(again, tmp_path / "flow", tmp_path / "out")


def test_a_flow_tells_times_apart_where_its_level_does_not_grow_with_the_noise(saved, tmp_path):
    """States of noise alone, the same but for scale. Flows of before, without a ceiling, gave one answer for all."""
    network = read(saved)
    made = network.for_flow(takes_anchor=False, top=2.5, ceiling=5.0)
    z = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def estimates(network):
        with torch.no_grad():
            return [Teacher(network, VE)(t * z, torch.full((6,), t)) for t in (4.0, 20.0)]

    before, after = estimates(made)
    assert float((before - after).abs().max()) > 0.01
    angles = torch.linspace(0.1, math.pi / 2, 500)
    levels = torch.tan(made._asked(angles))
    assert (levels.diff() > 0).all()
    torch.testing.assert_close(levels[angles < math.atan(2.5)], torch.tan(angles[angles < math.atan(2.5)]))
    assert float(levels[-1]) == pytest.approx(5.0)
    (tmp_path / "new").mkdir()
    made.save(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["ceiling"] == 5.0
    del config["ceiling"]
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    before, after = estimates(load_network(tmp_path / "new"))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_a_transformer_with_classes_and_a_learned_variance(tmp_path):
    """DiT's form: twice the channels out, a null class after the last."""
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2, "sample_size": 8}
    model = DiTTransformer2DModel(in_channels=1, out_channels=2, num_embeds_ada_norm=3, **size)
    model.save_pretrained(tmp_path / "dit/transformer")
    DDPMScheduler().save_pretrained(tmp_path / "dit/scheduler")
    config = tmp_path / "dit/transformer/config.json"
    config.write_text(config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))  # as published
    free, kind = read(tmp_path / "dit"), Classes(classes=["a", "b", "c"], shares=[0.2, 0.3, 0.5])
    told = read(tmp_path / "dit", condition=kind).train()
    labels = ClassLabels(torch.tensor([0, 1, 2]))
    assert torch.equal(asked(told, condition=labels), asked(told, condition=labels))  # no label is dropped at random
    assert not torch.equal(asked(told, condition=labels), asked(free))
    assert torch.equal(asked(told, condition=kind.none(3)), asked(free))
    flow = told.for_flow(takes_anchor=True, top=None)
    assert flow(torch.cat([X_T, X_T], dim=1), T.log() / 4, condition=labels).shape == X_T.shape
    with pytest.raises(UserError, match=r"^m: has 3 classes, the data have 2"):
        read(tmp_path / "dit", condition=Classes(classes=["a", "b"], shares=[0.5, 0.5]))


def test_a_model_that_needs_classes(tmp_path):
    DDPMPipeline(small_unet(num_class_embeds=10), DDPMScheduler()).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"wants one of 10 classes for each image; set condition.kind: class"):
        read(tmp_path / "m")
    kind = Classes(classes=list("abcdefghij"), shares=[0.1] * 10)
    told = ClassLabels(torch.tensor([0, 4, 9]))
    with pytest.raises(UserError, match="has 10 classes, the data have 10, and one more stands for none"):
        read(tmp_path / "m", condition=kind.told_to(drops=True, scale=None))
    nine = Classes(classes=list("abcdefghi"), shares=[1 / 9] * 9, drops=True)
    assert asked(read(tmp_path / "m", condition=nine), condition=nine.none(3)).shape == X_T.shape
    assert asked(read(tmp_path / "m", condition=kind), condition=told).shape == X_T.shape
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="has no classes, the data have 10"):
        read(tmp_path / "plain", condition=kind)


def edited(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def spoil(folder, how):
    unet, scheduler = folder / "unet/config.json", folder / "scheduler/scheduler_config.json"
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    match how:
        case "pickle":
            weights.rename(weights.with_suffix(".bin"))
        case "no weights":
            weights.unlink()
        case "no config":
            unet.unlink()
        case "other class":
            edited(unet, _class_name="MyUNet")
        case "other scheduler":
            edited(scheduler, _class_name="MyScheduler")
        case "other prediction":
            edited(scheduler, prediction_type="score")
        case "flow's levels alone":
            edited(scheduler, _class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True)
        case "huge":
            edited(unet, block_out_channels=[8000, 16000])
        case "layers":
            edited(unet, layers_per_block=10**9)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no json":
            unet.write_text("{")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle", "holds pickled weights .diffusion_pytorch_model.bin., which can run code; save them once"),
        ("no weights", r"no diffusion_pytorch_model\.safetensors in unet/"),
        ("no config", "holds no config.json of diffusers"),
        ("other class", "the model is of class MyUNet; known: UNet2DModel, DiT"),
        ("other scheduler", "the scheduler is of class MyScheduler; known: DDPMScheduler"),
        ("other prediction", "says prediction_type 'score'; known: epsilon, sample, v_prediction"),
        ("flow's levels alone", "says use_flow_sigmas and prediction_type 'epsilon'; of these flow_prediction is read"),
        ("huge", "config.json asks for"),
        ("layers", "config.json asks for 1000000000 layers"),
        ("truncated", "m: "),
        ("no json", r"config\.json is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line(mine, how, said):
    spoil(mine, how)
    with pytest.raises(UserError, match=f"^m: .*{said}" if said != "m: " else "^m: ") as error:
        read(mine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 8, 8), "takes 1 channels, the data have 3; see data.channels"),
        ((1, 16, 16), "is for 8 x 8 pixels, the data have 16 x 16; see data.image_size"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line(saved, shape, said):
    with pytest.raises(UserError, match=f"^m: {said}$"):
        read(saved, shape=shape)


def test_places(saved, tmp_path, monkeypatch):
    found, origin = places.look_up(saved.name, revision=None, scheduler=None, root=saved.parent)
    assert (found.folder, origin) == (saved / "unet", {})
    with pytest.raises(UserError, match=r"teacher\.revision = 'main' is for the Hub's models: set it to null"):
        places.look_up(str(saved), revision="main", scheduler=None, root=tmp_path)
    with pytest.raises(UserError, match=r"^teacher\.scheduler = 'none': no such file or folder$"):
        places.look_up(str(saved), revision=None, scheduler="none", root=tmp_path)
    fits = {"scheduler": None, "root": tmp_path, "shape": (1, 8, 8)}
    places.check(str(saved), classes=None, drops=False, **fits)
    with pytest.raises(UserError, match=r"^teacher\.path = .*: has no classes, the data have 10; see condition\.kind$"):
        places.check(str(saved), classes=10, drops=False, **fits)  # before anything is decoded
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^teacher\.path = someone/model: no such folder, and the Hub .* be reached"):
        places.look_up("someone/model", revision=None, scheduler=None, root=tmp_path)


def test_a_public_model_is_sampled_as_it_is(saved, tmp_path, capsys):
    from ifm.cli.main import main

    model = loading.load_any(loading.find(saved), named="m")
    assert (model.dynamics.t_max, model.network.data_shape) == (80.0, (1, 8, 8))
    main(["sample", "--model", str(saved), "--n", "4", "--nfe", "3", "--out", str(tmp_path / "grid.png")])
    assert "4 images [1, 8, 8]" in capsys.readouterr().out
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "flow/scheduler")
    shutil.copytree(saved / "unet", tmp_path / "flow/unet")
    assert loading.load_any(loading.find(tmp_path / "flow")).dynamics.t_max == 80.0
