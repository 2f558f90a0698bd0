"""Extractors: what they compute against direct computation, and that nothing loads weights that were not verified."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ifm.config import EvaluateConfig, read_params
from ifm.files import file_sha256
from ifm.metrics import weights
from ifm.metrics.classifier import Classifier
from ifm.metrics.extractors import (
    ClassifierExtractor,
    CoordinateExtractor,
    Dinov2Extractor,
    ExtractorError,
    InceptionExtractor,
    PixelExtractor,
)
from ifm.metrics.reference import build_reference, load_reference
from ifm.metrics.weights import find_dinov2, find_inception

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
CPU = torch.device("cpu")
OTHER = "ab" * 32  # a digest of nothing here


def uint8_images(n: int, channels: int, size: int = 12, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), np.uint8)


def evaluate_config(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**(read_params(Path(__file__).parents[2] / "params.yaml")["evaluate"] | changes))


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of reading weights fails the test."""

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unverified weights were loaded")

    for name in ("torch.jit.load", "torch.load", "ifm.metrics.extractors.load_file"):
        monkeypatch.setattr(name, loaded)


# Inception


class Layers(nn.Module):
    """[n, 3, 299, 299] -> [n, 2048]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]


class StandIn(nn.Module):
    """The published script's interface: features by `layers`, class probabilities by its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.register_buffer("weight", torch.linspace(-1, 1, 21).view(3, 7))
        self.register_buffer("bias", torch.linspace(0, 3, 7))

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        x = F.interpolate(img.float(), size=(299, 299), mode="bilinear")
        x = ((x - 128) / 128).mean(dim=(2, 3)) @ self.weight
        return x.softmax(dim=1) if no_output_bias else (x + self.bias).softmax(dim=1)


class Bare(nn.Module):
    """A script whose forward gives features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Unnamed(nn.Module):
    """A script without forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return self.layers(x)


def scripted(module: nn.Module, file: Path) -> tuple[Path, str]:
    torch.jit.script(module).save(str(file))
    return file, file_sha256(file)


@pytest.fixture
def inception(tmp_path: Path) -> tuple[Path, str]:
    return scripted(StandIn(), tmp_path / weights.INCEPTION_FILE)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("expected", [None, OTHER], ids=["published", "of weights_sha256"])
def test_a_script_with_another_digest_is_never_loaded(inception: tuple[Path, str], expected: str | None):
    file, found = inception
    with pytest.raises(ExtractorError) as caught:
        InceptionExtractor(file, sha256=expected, device=CPU)
    assert str(caught.value) == (
        f"{file}: sha256 is {found}, expected {expected or weights.INCEPTION_SHA256}; delete it and fetch it again, "
        f"or, where another network is meant, set evaluate.weights_sha256: {found}"
    )


def test_the_bytes_that_are_loaded_are_those_that_were_verified(
    inception: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    """A file that is swapped between check and load changes nothing."""
    file, sha256 = inception
    load, seen = torch.jit.load, []

    def swapped(data: Any, **kwargs: Any) -> Any:
        file.write_bytes(b"swapped")
        seen.append(hashlib.sha256(data.getvalue()).hexdigest())
        return load(data, **kwargs)

    monkeypatch.setattr("torch.jit.load", swapped)
    assert InceptionExtractor(file, sha256=sha256, device=CPU).checksum == sha256
    assert seen == [sha256]


def test_a_tampered_script_is_refused(inception: tuple[Path, str]):
    file, sha256 = inception
    InceptionExtractor(file, sha256=sha256, device=CPU)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExtractorError, match=f"expected {sha256}"):
        InceptionExtractor(file, sha256=sha256, device=CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_inceptions_probabilities_are_its_own_forwards_without_bias(inception: tuple[Path, str], channels: int):
    file, sha256 = inception
    extractor, x = InceptionExtractor(file, sha256=sha256, device=CPU), uint8_images(5, channels)
    features, found = extractor.features_and_probabilities(x)
    expected = StandIn()(torch.from_numpy(x).expand(-1, 3, -1, -1), no_output_bias=True).numpy()
    assert (found.dtype, found.shape) == (np.float32, (5, 7))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(found, extractor.class_probabilities(x))
    assert np.array_equal(features, extractor(x))


@pytest.mark.parametrize("module", [Bare, Unnamed])
def test_a_script_without_probabilities(tmp_path: Path, module: type[nn.Module]):
    file, sha256 = scripted(module(), tmp_path / "x.pt")
    extractor, x = InceptionExtractor(file, sha256=sha256, device=CPU), uint8_images(2, 3)
    assert extractor.class_probabilities(x) is None
    assert extractor.describe()["probabilities"] is None
    assert extractor.features_and_probabilities(x)[0].shape == (2, 2048)


def fetches(monkeypatch: pytest.MonkeyPatch, usual: Path, data: bytes, error: Exception | None = None) -> None:
    """clean-fid's download writes `data` into the folder it is given; its usual place is in `usual`."""

    def download(fpath: str) -> str:
        file = Path(fpath) / weights.INCEPTION_FILE
        file.write_bytes(data)
        if error:
            raise error
        return str(file)

    monkeypatch.setattr(weights, "INCEPTION_FOLDER", usual)
    monkeypatch.setattr("cleanfid.downloads_helper.check_download_inception", download)


def test_a_right_download_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetches(monkeypatch, tmp_path, b"right")
    monkeypatch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(b"right").hexdigest())
    assert find_inception(None).read_bytes() == b"right"
    assert [file.name for file in tmp_path.iterdir()] == [weights.INCEPTION_FILE]


@pytest.mark.parametrize("expected", [None, OTHER], ids=["published", "of weights_sha256"])
def test_a_wrong_download_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str | None):
    fetches(monkeypatch, tmp_path, b"half")
    with pytest.raises(ExtractorError) as caught:
        find_inception(None, sha256=expected)
    found = hashlib.sha256(b"half").hexdigest()
    assert str(caught.value) == (
        f"the Inception weights are not at {tmp_path / weights.INCEPTION_FILE}, and what was fetched has sha256 "
        f"{found}, expected {expected or weights.INCEPTION_SHA256}; it was removed: put {weights.INCEPTION_FILE} "
        "there or name it in evaluate.inception_path, then run `dvc repro` again"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("reset"), KeyboardInterrupt()])
def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    fetches(monkeypatch, tmp_path, b"half", error)
    with pytest.raises((ExtractorError, KeyboardInterrupt)):
        find_inception(None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_users_is_not_removed(inception: tuple[Path, str]):
    file, _ = inception
    with pytest.raises(ExtractorError):
        InceptionExtractor(find_inception(str(file)), device=CPU)
    assert file.is_file()


# DINOv2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder and the model of a DINOv2 of 2 layers, made for 56x56, with random weights."""
    transformers = pytest.importorskip("transformers", reason="extractor dinov2 needs transformers: the extra dinov2")
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**shape, layerscale_value=0.5)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder, model


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name in (weights.TRANSFORMERS_CONFIG, weights.TRANSFORMERS_FILE):
        (to / name).write_bytes((folder / name).read_bytes())
    return to / weights.TRANSFORMERS_FILE


def dinov2(folder: Path) -> Dinov2Extractor:
    file = find_dinov2(str(folder))
    return Dinov2Extractor(file, sha256=file_sha256(file), device=CPU)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 300)])
def test_dinov2_is_the_normalized_class_token_of_images_resized_by_pil(
    tiny: tuple[Path, Any], channels: int, size: int
):
    folder, model = tiny
    x = uint8_images(3, channels, size, seed=size)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rows = []
    for image in x:
        picture = (
            Image.fromarray(image[0]).convert("RGB") if channels == 1 else Image.fromarray(np.moveaxis(image, 0, 2))
        )
        resized = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), np.float64)
        pixels = torch.from_numpy(((resized / 255 - mean) / std).transpose(2, 0, 1)).float()[None]
        with torch.no_grad():
            rows.append(model(pixel_values=pixels).pooler_output[0].numpy())
    found = dinov2(folder)(x)
    assert (found.dtype, found.shape) == (np.float32, (3, 16))
    np.testing.assert_allclose(found, np.stack(rows), rtol=1e-3, atol=1e-4)
    assert np.abs(found - found[0]).max() > 1e-2  # the images are told apart


def test_dinov2_in_parts_is_the_whole(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch):
    extractor, x = dinov2(tiny[0]), uint8_images(5, 1)
    whole = extractor(x)
    monkeypatch.setattr("ifm.metrics.extractors.DINOV2_BATCH", 2)
    np.testing.assert_allclose(extractor(x), whole, rtol=1e-4, atol=1e-5)


def test_grey_images_are_repeated_to_three_channels(tiny: tuple[Path, Any]):
    extractor, x = dinov2(tiny[0]), uint8_images(2, 1)
    assert np.array_equal(extractor(x), extractor(np.repeat(x, 3, axis=1)))


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("expected", [None, OTHER], ids=["published", "of weights_sha256"])
def test_dinov2_weights_with_another_digest_are_never_loaded(tiny: tuple[Path, Any], expected: str | None):
    file = tiny[0] / weights.TRANSFORMERS_FILE
    with pytest.raises(ExtractorError) as caught:
        Dinov2Extractor(file, sha256=expected, device=CPU)
    said = f"{file}: sha256 is {file_sha256(file)}, expected {expected or weights.DINOV2_SHA256}; "
    assert str(caught.value).startswith(said)


def test_the_config_cannot_name_other_weights(tiny: tuple[Path, Any], tmp_path: Path):
    """transformers reads config.json's `transformers_weights` in the place of model.safetensors, where it may."""
    file = copied(tiny[0], tmp_path / "x")
    save_file({k: v * 2 for k, v in load_file(file).items()}, file.parent / "other.safetensors")
    config = json.loads((file.parent / "config.json").read_text())
    (file.parent / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    x = uint8_images(2, 3)
    assert np.array_equal(dinov2(file.parent)(x), dinov2(tiny[0])(x))


def test_half_precision_weights_are_computed_in_float32(tiny: tuple[Path, Any], tmp_path: Path):
    file = copied(tiny[0], tmp_path / "x")
    save_file({k: v.half() for k, v in load_file(file).items()}, file)
    x = uint8_images(2, 3)
    found = dinov2(file.parent)(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dinov2(tiny[0])(x), atol=0.05)


def test_weights_that_do_not_fit_the_config(tiny: tuple[Path, Any], tmp_path: Path):
    file = copied(tiny[0], tmp_path / "x")
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "layernorm.weight"}, file)
    with pytest.raises(ExtractorError, match=re.escape(f"{file}: not the weights that config.json describes (no lay")):
        dinov2(file.parent)
    save_file(tensors | {"layernorm.weight": torch.ones(3)}, file)
    with pytest.raises(ExtractorError, match=r"not the weights that config\.json describes"):
        dinov2(file.parent)
    file.write_bytes(b"cut")
    with pytest.raises(ExtractorError, match=r"not the weights that config\.json describes"):
        dinov2(file.parent)
    (file.parent / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ExtractorError, match=r"config\.json: no configuration of a DINOv2 \(model_type: dinov2\)"):
        dinov2(file.parent)


def test_dinov2_is_found_as_a_folder_or_a_file(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.touch()
    (tmp_path / "config.json").touch()
    assert find_dinov2(str(tmp_path)) == find_dinov2(str(file)) == file


MEND = "put config.json and model.safetensors of facebook/dinov2-large there"


@pytest.mark.usefixtures("never_loaded")
def test_pickled_weights_are_refused(tmp_path: Path):
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ExtractorError) as caught:
            find_dinov2(str(path))
        assert str(caught.value) == (
            f"evaluate.dinov2_path = {str(path)!r}: no model.safetensors; {MEND} "
            "(pickled weights such as pytorch_model.bin can run code and are not read)"
        )


def test_a_missing_dinov2_path(tmp_path: Path):
    with pytest.raises(ExtractorError) as caught:
        find_dinov2(str(tmp_path / "nowhere"))
    assert str(caught.value) == f"evaluate.dinov2_path = {str(tmp_path / 'nowhere')!r}: no such file or folder; {MEND}"
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ExtractorError) as caught:
        find_dinov2(str(tmp_path))
    assert str(caught.value) == (
        f"evaluate.dinov2_path = {str(tmp_path)!r}: no config.json beside model.safetensors; {MEND}"
    )


def test_the_hub_is_asked_for_two_files_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(repository: str, name: str, *, revision: str) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_dinov2(None) == tmp_path / "model.safetensors"
    commit = "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
    assert asked == [("facebook/dinov2-large", name, commit) for name in ("config.json", "model.safetensors")]


def test_offline_the_message_names_files_and_key(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ExtractorError) as caught:
        find_dinov2(None)
    assert str(caught.value) == (
        "the DINOv2 weights are not in the Hub's cache and could not be fetched (OSError); put config.json and "
        "model.safetensors of facebook/dinov2-large into a folder and name it in evaluate.dinov2_path, then run "
        "`dvc repro` again (nothing else is lost), or use evaluate.extractor: classifier or pixels"
    )


def test_without_transformers_the_message_names_the_extra_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fetched(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("fetched for nothing")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtractorError) as caught:
        build_reference(
            evaluate_config(extractor="dinov2"), train=Split(2), test=Split(2), out=tmp_path / "r", device=CPU
        )
    assert str(caught.value).startswith("evaluate.extractor: dinov2 needs transformers (")
    assert str(caught.value).endswith("install it with `pip install -e '.[dinov2]'`")


class Split:
    """Random images as a split of a data set."""

    labels, classes = None, None

    def __init__(self, n: int, *, seed: int = 0) -> None:
        self.images = uint8_images(n, 1, 8, seed=seed)
        self.shape = self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]

    def batches(self, size: int):
        yield self.images


def test_a_reference_of_dinov2_features(tiny: tuple[Path, Any], tmp_path: Path):
    sha256 = file_sha256(tiny[0] / weights.TRANSFORMERS_FILE)
    config = evaluate_config(extractor="dinov2", dinov2_path=str(tiny[0]), weights_sha256=sha256)
    train, test = Split(6), Split(4, seed=1)
    metadata = build_reference(config, train=train, test=test, out=tmp_path / "r", device=CPU)
    assert (metadata["extractor"], metadata["checksum"], metadata["dimension"]) == ("dinov2", sha256, 16)
    reference = load_reference(tmp_path / "r", config, device=CPU)
    np.testing.assert_allclose(reference.features, reference.extractor(train.images), rtol=1e-4, atol=1e-5)


# What is printed beside figures


def test_the_classifiers_probabilities_are_the_softmax_of_its_logits():
    torch.manual_seed(0)
    model = Classifier(channels=1, image_size=12, classes=5, width=6).eval()
    extractor, x = ClassifierExtractor(model, device=CPU), uint8_images(4, 1)
    features, found = extractor.features_and_probabilities(x)
    with torch.no_grad():
        expected = F.softmax(model(torch.from_numpy(x).float() / 127.5 - 1), dim=1).numpy()
    assert found.dtype == features.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(found, extractor.class_probabilities(x))
    assert np.array_equal(features, extractor(x))


def test_extractors_without_classes_have_no_probabilities():
    x = uint8_images(2, 1)
    for extractor in (PixelExtractor(device=CPU), CoordinateExtractor(device=CPU)):
        features, found = extractor.features_and_probabilities(x)
        assert (found, extractor.class_probabilities(x)) == (None, None)
        assert np.array_equal(features, extractor(x))


def test_every_extractor_describes_its_protocol(tiny: tuple[Path, Any], inception: tuple[Path, str]):
    file, sha256 = inception
    model = Classifier(channels=1, image_size=12, classes=5, width=6)
    described = {
        found["extractor"]: found
        for found in (
            extractor.describe()
            for extractor in (
                ClassifierExtractor(model, device=CPU),
                PixelExtractor(device=CPU),
                CoordinateExtractor(device=CPU),
                InceptionExtractor(file, sha256=sha256, device=CPU),
                dinov2(tiny[0]),
            )
        )
    }
    assert {name: found["dimension"] for name, found in described.items()} == {
        "classifier": 6,
        "pixels": None,
        "coordinates": None,
        "inception": 2048,
        "dinov2": 16,
    }
    assert {name: found["resize"] for name, found in described.items()} == {
        "classifier": "none",
        "pixels": "none",
        "coordinates": "none",
        "inception": "clean-fid: PIL bicubic to 299x299, antialiased, each channel in float32",
        "dinov2": "PIL bicubic to 224x224, antialiased",
    }
    assert [name for name, found in described.items() if found["probabilities"]] == ["classifier", "inception"]
    assert described["inception"]["checksum"] == sha256
    assert described["dinov2"]["checksum"] == file_sha256(tiny[0] / weights.TRANSFORMERS_FILE)
    assert described["dinov2"]["network"] == {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    assert described["dinov2"]["library"].startswith("transformers ")
    assert all("uint8" in found["rounding"] for name, found in described.items() if name != "coordinates")
    json.dumps(described)
