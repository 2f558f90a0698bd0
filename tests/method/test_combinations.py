"""Every preset with every objective and precision: teacher, paths, flow and samples, two steps each on tiny sizes."""

import json
import shutil
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ifm.config import parse
from ifm.data.arrays import ProcessedMetadata, ProcessedSplit
from ifm.data.fetching import fetch, fetch_points
from ifm.data.points import preprocess_points
from ifm.data.preprocessing import preprocess
from ifm.data.sound import SoundMetadata
from ifm.modalities.spectrograms import Normalised, Spectrograms
from ifm.objectives.interval import differentiable_forward, mean_velocity_target
from ifm.sampling import seconds_per_image
from pipeline.runner import paths
from pipeline.runner.stage import Stage
from pipeline.stages import flow, sample, select, teacher, trajectories
from pipeline.tools import preset
from tests.support.small_models import small_flow

ROOT = Path(__file__).parents[2]
LOCAL = {"cifar10-jpeg", "imagefolder", "spoken-digits", "tiny-shakespeare"}
PUBLIC = {"ddpm-cifar10", "ddpm-celebahq", "dit-imagenet256"}  # public teachers: tests/adapters, tests/latents
PRECISIONS = ("no", "bf16", "fp16")
TINY = {
    "teacher": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2},
    "flow": {
        "steps": 2, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2, "reference_batch": 8,
    },
    "trajectories": {"count": 8, "batch_size": 8, "shard_size": 8, "solver_steps": 6},
    "select": {"count": 0},  # no reference is made
    "sample": {"count": 8, "batch_size": 8, "seeds": 1, "flow_steps": [1, 2], "grid_images": 4},
    "evaluate": {"teacher_nfe": [1, 3], "neighbours": 3, "guidance_scales": []},
}  # fmt: skip


@cache
def preset_text(name: str, objective: str) -> str:
    data = "images/mine" if name in LOCAL else None
    return preset.apply(name, (ROOT / "params.yaml").read_text(), objective=objective, data=data)


def tiny(name: str, objective: str, precision: str) -> dict:
    """A preset's values with its layers, attention, laws and schedules, at sizes that a test can pay."""
    values = preset.parse_yaml(preset_text(name, objective))
    for section, changes in TINY.items():
        values[section] |= changes
    values["teacher"]["precision"] = values["flow"]["precision"] = precision
    values["dynamics"] = ["pfgmpp" if precision == "bf16" else "rf"]
    values["network"] |= {"channels": [8] * len(values["network"]["channels"]), "norm_groups": 4}
    values["network"]["mlp"] = {"width": 16, "layers": 2}
    values["data"]["image_size"] = 8
    values["data"]["points"]["count"] = 64
    values["network"]["sequence"] = {"patch": 2, "width": 16, "depth": 1, "heads": 2}
    values["data"]["text"]["length"] = 8
    values["data"]["audio"] |= {"seconds": 0.1, "hop": 100, "fft": 200, "mels": 8}
    if values["anchor"]["policy"] == "bank":
        values["flow"]["batch_size"], values["anchor"]["reset_probability"] = 4, 0.25
    return values


class Untracked(Stage):
    def work_folder(self, *, params, inputs):
        return Path("work") / self.name


def write_data(config) -> None:
    if config.data.source == "points":
        fetch_points(config.data, paths.RAW)
        preprocess_points(config.data, paths.RAW, paths.PROCESSED)
        return
    if config.data.modality.name == "text":
        Path("text").mkdir()
        for split, letters in (("train", "abcd" * 60), ("test", "abcd" * 10)):
            (Path("text") / f"{split}.txt").write_text(letters)
        data = config.data.model_copy(update={"path": "text"})
        fetch(data, paths.RAW)
        preprocess(data, paths.RAW, paths.PROCESSED)
        return
    shape, rng = (16, *config.data.shape), np.random.default_rng(0)
    sounds = config.data.modality.name == "sound"
    paths.PROCESSED.mkdir(parents=True)
    data = rng.normal(0, 0.5, shape).astype(np.float16) if sounds else rng.integers(0, 256, shape, np.uint8)
    np.save(paths.PROCESSED / "train-00000.npy", data)
    classes, counts = None, None
    if config.condition.kind == "class":
        classes, counts = ["odd", "even"], [8, 8]
        np.save(paths.PROCESSED / "train-labels.npy", np.arange(16) % 2)
    if sounds:
        form = Normalised(Spectrograms.of(config.data.audio), np.zeros(shape[1:3]), 1.0)
        SoundMetadata(
            modality="sound", source="parquet", name=None, shape=list(shape[1:]), classes=classes,
            sound=form.describe(),
            splits={"train": ProcessedSplit(count=16, shards=["train-00000.npy"], class_counts=counts, sha256="0")},
        ).write(paths.PROCESSED)  # fmt: skip
        return
    ProcessedMetadata(
        source="digits", name=None, image_size=shape[-1], channels=shape[1], classes=classes,
        random_flip=config.data.random_flip, mean=[0.0] * shape[1], std=[1.0] * shape[1],
        splits={"train": ProcessedSplit(count=16, shards=["train-00000.npy"], class_counts=counts, sha256="0")},
    ).write(paths.PROCESSED)  # fmt: skip


def run(values: dict, *modules) -> None:
    config, (d,) = parse(values), values["dynamics"]
    Path("params.yaml").write_text(json.dumps(values))
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        stage = Untracked(f"{name}-{d}", name, config, values, d)
        nothing = {"log_metrics": lambda m: None, "log_row": None, "log_model": lambda *a, **k: None}
        stage.run = SimpleNamespace(timings={}, log_artifact=lambda *a: None, **nothing)
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
        module.work(stage)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, teacher and paths of a preset in a precision: made once, copied for each objective."""
    folders = {}

    def of(name: str, precision: str, monkeypatch) -> Path:
        if (name, precision) not in folders:
            folder = folders[name, precision] = tmp_path_factory.mktemp("made")
            monkeypatch.chdir(folder)
            values = tiny(name, "trajectory", precision)
            write_data(parse(values))
            run(values, teacher, trajectories)
        return folders[name, precision]

    return of


SAME = {"digits-long": "digits", "imagefolder": "cifar10-jpeg"}  # in all that is run here
NAMES = sorted(set(preset.names()) - PUBLIC - set(SAME))


def combinations() -> list:
    """Every preset with every objective once, and each of them in every precision; the rest of the product is slow."""
    found = []
    for i, name in enumerate(NAMES):
        for j, objective in enumerate(preset.objectives()):
            for k, precision in enumerate(PRECISIONS):
                marks = () if k == (i + j) % len(PRECISIONS) else pytest.mark.slow
                found.append(pytest.param(name, objective, precision, marks=marks))
    return found


@pytest.mark.parametrize("objective", preset.objectives())
def test_presets_that_are_left_out_are_others_at_these_sizes(objective):
    for name, other in SAME.items():
        one, two = (tiny(each, objective, "no") for each in (name, other))
        unread = ("data", "evaluate") if name == "imagefolder" else ()
        assert {k: v for k, v in one.items() if k not in unread} == {k: v for k, v in two.items() if k not in unread}


def test_the_quick_combinations_are_pairwise():
    """Each two of preset, objective and precision meet."""
    quick = [c.values for c in combinations() if not c.marks]
    kinds = (NAMES, preset.objectives(), PRECISIONS)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(c[a], c[b]) for c in quick} == set(product(kinds[a], kinds[b]))


@pytest.mark.parametrize(("name", "objective", "precision"), combinations())
def test_every_preset_trains_by_every_objective_in_every_precision(
    name, objective, precision, made, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.stages.sample.TIMED_BATCHES", (1,))
    monkeypatch.setattr("pipeline.stages.sample.seconds_per_image", partial(seconds_per_image, repeats=1))
    start = made(name, precision, monkeypatch)
    shutil.copytree(start, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    values = tiny(name, objective, precision)
    if values["teacher"]["kind"] == "none":
        shutil.rmtree("models")
        run(values, teacher)
    run(values, flow, select, sample)
    (d,) = values["dynamics"]
    curve = pd.read_csv(paths.curve(f"flow-{d}"))
    assert curve.step.tolist() == [1, 2]
    assert np.isfinite(curve[["loss", "grad_norm"]]).all(axis=None)
    assert (curve.skipped == 0).all()
    drawn = np.load(paths.samples(d) / "flow-one_step-nfe001.npy")
    assert len(drawn) == 8
    assert np.isfinite(drawn.astype(float)).all()


def derivative_target(net: nn.Module, *, autocast: bool) -> torch.Tensor:
    flow, rng = small_flow(two_times=True, shape=(1, 8, 8)), torch.Generator().manual_seed(1)
    flow.network = net
    y, velocity, x_anchor = (torch.randn(4, 1, 8, 8, generator=rng) for _ in range(3))
    theta, theta_s = torch.linspace(0.4, 1.5, 4), torch.linspace(0.1, 1.0, 4)

    def u(y, theta):
        return flow.mean_velocity(y, theta, theta_s=theta_s, x_anchor=x_anchor)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), differentiable_forward(flow):
        return mean_velocity_target(u, y, velocity=velocity, theta=theta, theta_s=theta_s)


def test_the_derivative_under_autocast_is_float32s_and_leaves_no_hook():
    net = small_flow(two_times=True).network
    plain, cast = (derivative_target(net, autocast=on) for on in (False, True))
    torch.testing.assert_close(cast, plain)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_the_derivative_does_not_depend_on_the_layout_of_the_weights():
    net = small_flow(two_times=True).network
    plain = derivative_target(net, autocast=False)
    torch.testing.assert_close(
        derivative_target(net.to(memory_format=torch.channels_last), autocast=True), plain, rtol=1e-3, atol=1e-4
    )
