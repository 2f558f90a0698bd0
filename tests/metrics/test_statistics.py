"""Statistics of real images in the published form: figures by them, what is refused, and what others read of ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance
from torch import Tensor, nn

from ifm.cli.main import main
from ifm.files import file_sha256
from ifm.metrics.distances import moments
from ifm.metrics.extractors import InceptionExtractor, PixelExtractor
from ifm.metrics.legacy import LegacyInceptionExtractor
from ifm.metrics.statistics import read_statistics
from tests.support.judged import HOW, Layers, folder_of, noise, one_thread, refused, saved  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
CPU = torch.device("cpu")
PIXELS = "--extractor pixels"


class Script(nn.Module):
    """A stand-in of Inception's script, with the arguments of the published one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = nn.functional.interpolate(img.float(), size=(299, 299), mode="bilinear", align_corners=True)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        return features.softmax(dim=1)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> list[str]:
    """The options of the weights."""
    file = tmp_path_factory.mktemp("weights") / "script.pt"
    torch.jit.script(Script()).save(str(file))
    return ["--weights", str(file), "--weights-sha256", file_sha256(file)]


def published(path: Path, features: np.ndarray, *, compressed: bool = False) -> Path:
    """As EDM's fid.py (savez), clean-fid and pytorch-fid (savez_compressed) write them."""
    write = np.savez_compressed if compressed else np.savez
    write(path, mu=features.mean(axis=0, dtype=np.float64), sigma=np.cov(features, rowvar=False, dtype=np.float64))
    return path


def evaluate(folder: Path, *words: Any) -> dict[str, Any]:
    out = folder / "out.json"
    main(["evaluate", *map(str, words), *HOW, "--out", str(out)])
    return json.loads(out.read_text())


def pixels(images: np.ndarray) -> np.ndarray:
    return PixelExtractor(device=CPU)(images)


@pytest.mark.parametrize("compressed", [False, True])
def test_fid_by_published_statistics_is_that_by_the_images(tmp_path, compressed):
    real, samples = noise(90, seed=1), noise(80, seed=0)
    known = published(tmp_path / "stats.npz", pixels(real), compressed=compressed)
    given = ["--samples", saved(tmp_path / "x.npy", samples), "--sets", 2, *PIXELS.split()]
    by_images = evaluate(tmp_path, *given, "--reference", saved(tmp_path / "r.npy", real))
    by_moments = evaluate(tmp_path, *given, "--reference", known)
    assert set(by_moments["figures"]) == {"fid", "fid_sd", "fid_pooled", "fid_extrapolated"}  # no more can be known
    for key, value in by_moments["figures"].items():
        assert value == pytest.approx(by_images["figures"][key], rel=1e-9, abs=1e-9)
    assert by_moments["protocol"]["reference"] == {"path": str(known), "statistics": "mu, sigma"}
    assert "kid_subsets" not in by_moments["protocol"]
    # 40 samples of 64 features: said; of the reference, whose number nobody knows, nothing is.
    assert [text.split(" for")[0] for text in by_moments["warnings"]] == ["40 samples"]


def test_ours_are_read_by_others_and_by_us(tmp_path):
    real = noise(90, seed=1)
    given = ["--reference", saved(tmp_path / "r.npy", real), *PIXELS.split()]
    ours = tmp_path / "ours.npz"
    made = evaluate(tmp_path, *given, "--write-statistics", ours)  # without samples
    assert made["figures"] == {}
    others, exact = np.load(ours), moments(pixels(real))
    assert np.array_equal(others["mu"], exact.mean)
    assert np.array_equal(others["sigma"], exact.covariance)
    x = pixels(noise(80, seed=0))
    theirs = frechet_distance(x.mean(0), np.cov(x, rowvar=False), others["mu"], others["sigma"])
    samples = saved(tmp_path / "x.npy", noise(80, seed=0))
    again = evaluate(tmp_path, "--samples", samples, "--reference", ours)  # it says itself what made it
    assert again["figures"]["fid"] == pytest.approx(theirs, rel=1e-6)
    assert again["protocol"]["reference"]["count"] == 90
    first = ours.read_bytes()
    evaluate(tmp_path, *given, "--samples", samples, "--write-statistics", ours)
    assert ours.read_bytes() == first


def test_each_resizing_gives_its_own_features_and_agrees_with_itself(tmp_path, script, monkeypatch, capsys):
    monkeypatch.setattr(InceptionExtractor, "dimension", 24)
    x, r = noise(40, seed=0, channels=3, size=16), noise(40, seed=1, channels=3, size=16)
    given = ["--samples", saved(tmp_path / "x.npy", x), *script, "--extractor", "inception"]
    images, legacy = saved(tmp_path / "r.npy", r), tmp_path / "legacy.npz"
    fids = {}
    for mode in ("clean", "legacy"):
        made = evaluate(
            tmp_path, *given, "--reference", images, "--resize", mode, "--write-statistics", tmp_path / f"{mode}.npz"
        )
        again = evaluate(tmp_path, *given, "--reference", tmp_path / f"{mode}.npz")
        assert again["figures"]["fid"] == pytest.approx(made["figures"]["fid"], rel=1e-9)
        assert again["figures"]["inception_score"] == made["figures"]["inception_score"]  # needs no real images
        fids[mode] = made["figures"]["fid"]
    assert fids["clean"] != pytest.approx(fids["legacy"], rel=1e-3)
    weights = Path(script[1])
    extractor = LegacyInceptionExtractor(weights, sha256=script[3], device=CPU)
    with torch.inference_mode():
        expected = Script()(torch.from_numpy(r), return_features=True).numpy()
    np.testing.assert_allclose(extractor(r), expected, rtol=1e-5, atol=1e-5)
    assert read_statistics(legacy).said["mode"] == "legacy"
    said = refused([*map(str, given), "--reference", str(legacy), "--resize", "clean", *HOW], capsys)
    assert f"--resize clean: --reference {legacy} was made with legacy; leave the option out" in said


def bad(folder: Path, **changes: np.ndarray) -> Path:
    values = {"mu": np.zeros(64), "sigma": np.eye(64)} | changes
    np.savez(folder / "s.npz", **values)
    return folder / "s.npz"


def said(**facts: str) -> np.ndarray:
    return np.array(json.dumps(facts))


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "extractor not stated": ({}, "", "statistics do not say which extractor made them; state it: --extractor"),
    "resize not stated": ({}, "--extractor inception", "do not say how images became 299 x 299, and figures differ"),
    "pytorch-fid": ({}, "--extractor inception --resize pytorch", "pytorch-fid has a network file and a resizing of"),
    "resize of pixels": ({}, f"{PIXELS} --resize legacy", "is of --extractor inception, not of pixels; leave it out"),
    "other extractor": ({"ifm": said(extractor="inception")}, PIXELS, "s.npz was made with inception; leave the"),
    "other weights": ({"ifm": said(checksum="ab")}, PIXELS, "with weights of sha256 ab, those at hand have identity"),
    "a classifier's": ({"ifm": said(extractor="classifier")}, "", "made with classifier, which only the folder"),
    "dimension": ({"mu": np.zeros(9), "sigma": np.eye(9)}, PIXELS, "of 9 features, --extractor pixels has 64"),
    "shapes": ({"sigma": np.eye(9)}, PIXELS, "mu has shape [64], sigma [9, 9]; they must be [d] and [d, d]"),
    "NaN": ({"mu": np.full(64, np.nan)}, PIXELS, "mu or sigma holds NaN or infinity"),
    "no covariance": ({"sigma": -np.eye(64)}, PIXELS, "sigma is no covariance"),
    "not symmetric": ({"sigma": np.triu(np.ones((64, 64)))}, PIXELS, "sigma is no covariance (not symmetric"),
    "pickled": ({"mu": np.array([None] * 64)}, PIXELS, "s.npz: cannot be read (mu holds object, not floats)"),
    "other form": ({"ifm": np.array("[1]")}, PIXELS, "its entry `ifm` has another form"),
    "training images": ({}, f"{PIXELS} --train x.npy --unseen x.npy", "--train: --reference"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_statistics_that_cannot_be_compared_are_refused_in_one_line(tmp_path, capsys, monkeypatch, case):
    def taken(*arguments: Any, **options: Any) -> None:
        raise AssertionError("features were taken before the input was refused")

    monkeypatch.setattr("ifm.metrics.scoring.extract", taken)
    monkeypatch.chdir(tmp_path)
    changes, more, expected = REFUSED[case]
    samples = saved(tmp_path / "x.npy", noise(12, seed=0))
    words = ["--samples", samples, "--reference", bad(tmp_path, **changes), *more.split(), *HOW]
    assert expected in refused(list(map(str, words)), capsys)


def test_something_must_be_asked(tmp_path, capsys):
    reference = str(saved(tmp_path / "r.npy", noise(12, seed=0)))
    assert "--samples is missing" in refused(["--reference", reference], capsys)
    given = ["--reference", str(bad(tmp_path)), *PIXELS.split(), "--write-statistics", str(tmp_path / "o.npz")]
    assert "--reference holds statistics already" in refused(given, capsys)


def test_an_archive_with_images_is_one_of_images(tmp_path):
    """ADM's reference batches hold images, and moments of other images."""
    x = noise(24, seed=1)
    np.savez(tmp_path / "adm.npz", x.transpose(0, 2, 3, 1), mu=np.zeros(64), sigma=np.eye(64))
    found = evaluate(
        tmp_path, "--samples", saved(tmp_path / "x.npy", x), "--reference", tmp_path / "adm.npz", *PIXELS.split()
    )
    assert found["figures"]["fid"] == pytest.approx(0, abs=1e-6)
