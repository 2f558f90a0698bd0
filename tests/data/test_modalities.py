"""The table of modalities: which shape is whose, there and back between rest and model, files that people open."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifm import modalities, pretrained
from ifm.dynamics.rectified import RectifiedFlow
from ifm.modalities import MODALITIES, SampleError, at_rest, at_work, files
from ifm.modalities.images import IMAGES
from ifm.model import Teacher, build_flow
from ifm.networks import NETWORKS, build_network
from ifm.use import drawing
from ifm.use.models import usable

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ((3, 32, 32), "images"),
        (torch.Size([1, 8, 8]), "images"),
        ((2,), "points"),
        ({"image_shape": [1, 8, 8]}, "images"),
        ({"image_shape": [4]}, "points"),
        ({"channels": 3, "image_size": 8}, "images"),
        ({"shape": [2], "source": "ring"}, "points"),
        ({"modality": "points", "image_shape": [1, 1, 1]}, "points"),
    ],
)
def test_of(found, name):
    assert modalities.of(found).name == name


@pytest.mark.parametrize("found", [(), (1, 2), {}, {"image_shape": None}, {"modality": "smells"}])
def test_what_is_of_no_modality_is_an_error(found):
    with pytest.raises(ValueError, match=re.escape("are none of images [C, H, W], points [d]")):
        modalities.of(found)


SMELLS = replace(IMAGES, name="smells", noun="smells", dtype="float16", by_shape=False, to_model=lambda x: x.float())


def test_what_its_axes_do_not_tell_is_told_by_name(monkeypatch):
    monkeypatch.setitem(MODALITIES, "smells", SMELLS)
    described = {"modality": "smells", "smells": {"nose": 1}, "image_shape": [1, 8, 8], "count": 3}
    assert modalities.of(described) is modalities.of((1, 8, 8), "smells") is SMELLS
    assert modalities.of((1, 8, 8)) is IMAGES
    assert modalities.recorded(described) == {"modality": "smells", "smells": {"nose": 1}}
    assert modalities.recorded({"image_shape": [1, 8, 8]}) == {}
    x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float16)
    assert at_work(x, "smells").dtype == torch.float32


def test_a_model_remembers_what_its_samples_are(tmp_path, monkeypatch):
    monkeypatch.setitem(MODALITIES, "smells", SMELLS)
    monkeypatch.setitem(NETWORKS, "unet", replace(NETWORKS["unet"], also=("smells",)))
    network = build_network(
        kind="unet",
        shape=(1, 8, 8),
        modality="smells",
        takes_anchor=False,
        **{"channels": [8], "layers_per_block": 1, "attention": [False], "dropout": 0.0, "norm_groups": 4},
    )
    dynamics = RectifiedFlow()
    for named in ({}, {"modality": "smells", "smells": {"nose": 1}}):
        flow = build_flow(network, dynamics, scheme="edm", takes_anchor=False)
        pretrained.save_model(flow, tmp_path / "flow", record={"image_shape": [1, 8, 8], **named})
        pretrained.save_model(
            Teacher(network, dynamics), tmp_path / "teacher", record={"image_shape": [1, 8, 8], **named}
        )
        for found in (pretrained.load_flow(tmp_path / "flow"), pretrained.load_teacher(tmp_path / "teacher")):
            assert found.of_data == usable(found).of_data == named
            assert drawing.modality(found).name == (named.get("modality") or "images")


def test_at_rest_and_back_is_the_identity():
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x = at_work(levels)
    assert (float(x.min()), float(x.max()), x.dtype) == (-1, 1, torch.float32)
    np.testing.assert_array_equal(at_rest(x), levels.numpy())
    points = torch.randn(5, 2)
    np.testing.assert_array_equal(at_rest(at_work(points)), points.numpy())


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 2)])
def test_at_rest_takes_finite_values_alone_and_gives_the_dtype(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    assert at_rest(x).dtype == np.dtype(modalities.of(shape[1:]).dtype)
    x.view(-1)[-1] = torch.nan
    with pytest.raises(SampleError, match="NaN or infinity"):
        at_rest(x)


def test_images_are_rounded_to_the_nearest_and_clipped():
    x = torch.tensor([-1.5, -1, 0.0039, 1, 2]).reshape(1, 1, 1, 5)
    assert at_rest(x).ravel().tolist() == [0, 0, 128, 255, 255]


def batches(samples: np.ndarray, size: int = 3):
    return ((range(i, min(i + size, len(samples))), samples[i : i + size]) for i in range(0, len(samples), size))


def test_points_in_a_table_come_back_to_the_bit(tmp_path):
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    files.writers("points")[".csv"](tmp_path / "x.csv", batches(points), 7, (3,))
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("x_0,x_1,x_2", 8)
    found = np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1, dtype=np.float32)
    np.testing.assert_array_equal(found, points)


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5), (2,)])
def test_arrays_come_back_to_the_bit(tmp_path, shape):
    modality = modalities.of(shape)
    samples = (100 * np.random.default_rng(0).random((7, *shape))).astype(modality.dtype)
    files.writers(modality.name)[".npy"](tmp_path / "x.npy", batches(samples), 7, shape)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), samples)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_a_png_of_each_image(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), np.uint8)
    files.writers("images")["/"](tmp_path / "out", batches(images), 5, images.shape[1:])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    for name, image in zip(names, images, strict=True):
        found = np.atleast_3d(np.asarray(Image.open(tmp_path / "out" / name))).transpose(2, 0, 1)
        np.testing.assert_array_equal(found, image)


def test_every_modality_of_the_table_is_whole():
    for name, modality in MODALITIES.items():
        assert modality.name == name
        assert (modality.preview == "grids") == (modality.pictures is not None)
        assert ".npy" in files.writers(name)
        assert modality.extractors


def test_whoever_must_tell_modalities_apart_asks_the_table():
    """No module of the package or the pipeline counts the sizes of a shape, or compares a source's name."""
    asks = re.compile(
        r"len\(\w*shape\) [=!]= [13]\b|len\(\w+\[.\w*shape.\]\) [=!]= [13]\b|\.source [=!]= .\w|\.ndim == 4\b"
    )
    # collections: files of unknown images; pictures: what a grid takes.
    allowed = {"src/ifm/metrics/collections.py", "src/ifm/metrics/stored.py", "src/ifm/modalities/pictures.py"}
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        found = asks.findall(path.read_text(encoding="utf-8"))
        assert not found or name in allowed, f"{name}: {found}"
