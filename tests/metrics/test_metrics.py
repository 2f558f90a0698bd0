"""Figures of merit against closed forms, against clean-fid, and against direct computation."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.fid import fid_from_feats, kernel_distance
from cleanfid.resize import build_resizer

from ifm.config import EvaluateConfig, read_params
from ifm.errors import UserError
from ifm.files import file_sha256
from ifm.metrics import weights
from ifm.metrics.classifier import Classifier, ClassifierSettings, accuracy, classify, load_classifier, train_classifier
from ifm.metrics.distances import Moments, fid, kid, moments
from ifm.metrics.evaluation import endpoint_rms, evaluate_samples
from ifm.metrics.extractors import ExtractorError, InceptionExtractor, PixelExtractor, features
from ifm.metrics.figures import Found, Measures, fid_trend, image_figures
from ifm.metrics.reference import build_reference, load_reference
from ifm.metrics.weights import find_inception

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
CPU = torch.device("cpu")
SETTINGS = ClassifierSettings(width=8, steps=60, batch_size=32, lr=2e-2, seed=3)
SHAPE = (1, 8, 8)


@dataclasses.dataclass
class Images:
    """A split of a data set, in memory."""

    images: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self), size):
            yield self.images[start : start + size]


def toy(n: int, *, seed: int, labelled: bool = True) -> Images:
    """Two classes told apart by brightness: dark noise (0) and bright noise (1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, *SHAPE)) + 150 * labels[:, None, None, None]
    return Images(images.astype(np.uint8), labels if labelled else None, ["dark", "bright"] if labelled else None)


TRAIN, TEST = toy(90, seed=0), toy(31, seed=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**changes: Any) -> EvaluateConfig:
    values = read_params(Path(__file__).parents[2] / "params.yaml")["evaluate"]
    return EvaluateConfig(**(values | {"classifier": dataclasses.asdict(SETTINGS)} | changes))


# Frechet distance


def gaussian(mean: list[float], variances: list[float]) -> Moments:
    return Moments(mean=np.array(mean), covariance=np.diag(np.array(variances)))


@pytest.mark.parametrize("seed", range(3))
def test_fid_of_diagonal_gaussians(seed: int):
    """|m_a - m_b|^2 + sum (s_a - s_b)^2."""
    rng = np.random.default_rng(seed)
    mean_a, mean_b, s_a, s_b = rng.normal(size=6), rng.normal(size=6), rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    expected = ((mean_a - mean_b) ** 2).sum() + ((s_a - s_b) ** 2).sum()
    a, b = gaussian(mean_a, s_a**2), gaussian(mean_b, s_b**2)
    assert fid(a, b) == pytest.approx(expected, rel=1e-10)
    assert fid(b, a) == pytest.approx(expected, rel=1e-10)
    assert fid(a, a) == pytest.approx(0, abs=1e-10)


def test_fid_with_a_singular_covariance():
    """A direction without variance adds the other's variance in it."""
    a, b = gaussian([0, 0, 0], [1, 4, 0]), gaussian([1, 0, 0], [9, 4, 25])
    assert fid(a, b) == pytest.approx(1 + 4 + 0 + 25, abs=1e-6)
    assert fid(b, a) == pytest.approx(30, abs=1e-6)
    assert fid(a, a) == pytest.approx(0, abs=1e-6)


def test_fid_of_point_masses_is_their_squared_distance():
    assert fid(gaussian([0, 3], [0, 0]), gaussian([4, 0], [0, 0])) == pytest.approx(25)


def test_fid_between_rotated_gaussians():
    """A rotation of both moves nothing; tr (S_a S_b)^(1/2) from the eigenvalues of S_a^(1/2) S_b S_a^(1/2)."""
    rng = np.random.default_rng(0)
    a, b = (moments(rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))) for _ in range(2))
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root)).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * cross
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    turned = [Moments(turn @ m.mean, turn @ m.covariance @ turn.T) for m in (a, b)]
    assert fid(a, b) == pytest.approx(expected, rel=1e-9)
    assert fid(*turned) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [200, 12], ids=["full rank", "fewer samples than dimensions"])
def test_fid_equals_clean_fids(n: int):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 16)), 0.5 + 2 * rng.normal(size=(n + 20, 16))
    assert fid(moments(a), moments(b)) == pytest.approx(fid_from_feats(a, b), rel=1e-6)


def test_moments_are_computed_in_float64_and_unbiased():
    found = moments(np.array([[1e4], [1e4 + 1], [1e4 + 2]], np.float32))
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.mean.tolist() == [10001.0]
    assert found.covariance.tolist() == [[1.0]]


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (4, 2, 2)])
def test_moments_need_two_rows_of_features(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="features must have shape") as caught:
        moments(np.zeros(shape))
    assert str(caught.value) == f"features must have shape [n >= 2, d], got {shape}"


# Kernel distance


@pytest.mark.parametrize("whole_kernel", [0, 1000])
def test_kid_equals_clean_fids_under_the_same_seed_and_leaves_numpys_generator(
    whole_kernel: int, monkeypatch: pytest.MonkeyPatch
):
    """By one kernel of all pairs, and by one for each subset."""
    monkeypatch.setattr("ifm.metrics.distances.WHOLE_KERNEL", whole_kernel)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(1, 1, size=(80, 4)).astype(np.float32)
    np.random.seed(11)
    expected = kernel_distance(a.astype(np.float64), b.astype(np.float64), num_subsets=7, max_subset_size=30)
    np.random.seed(5)
    before = np.random.get_state()[1]
    assert kid(a, b, subsets=7, subset_size=30, seed=11) == pytest.approx(expected, rel=1e-12)
    assert kid(a, b, subsets=7, subset_size=30, seed=11 + 2**32) == pytest.approx(expected, rel=1e-12)  # 32 bits
    assert kid(a, b, subsets=7, subset_size=30, seed=12) != pytest.approx(expected, rel=1e-3)
    assert np.array_equal(np.random.get_state()[1], before)


def test_kid_over_the_whole_sets_is_the_unbiased_mmd():
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j), k = (x.y / d + 1)^3."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 3)) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 3 + 1) ** 3

    off = ~np.eye(20, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    assert kid(x, y, subsets=2, subset_size=1000, seed=0) == pytest.approx(expected, rel=1e-9)


def test_kid_is_near_zero_for_one_law_only():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    assert abs(kid(a, b, subsets=20, subset_size=200, seed=0)) < 0.05
    assert kid(a, b + 1, subsets=20, subset_size=200, seed=0) > 1


# Classifier


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, list[dict[str, float]]]:
    rows: list[dict[str, float]] = []
    return train_classifier(
        TRAIN.images, TRAIN.labels, classes=2, settings=SETTINGS, device=CPU, on_log=rows.append
    ), rows


def test_the_classifier_is_the_same_to_the_byte(trained: tuple[Classifier, list]):
    torch.manual_seed(99)  # whatever was drawn before
    again = train_classifier(TRAIN.images, TRAIN.labels, classes=2, settings=SETTINGS, device=CPU)
    for name, value in trained[0].state_dict().items():
        assert value.numpy().tobytes() == again.state_dict()[name].numpy().tobytes(), name


def test_the_classifier_learns_separable_classes(trained: tuple[Classifier, list]):
    model, rows = trained
    assert accuracy(model, TEST.images, TEST.labels) == 1.0
    assert classify(model, TEST.images, batch_size=7).tolist() == TEST.labels.tolist()
    assert accuracy(model, TEST.images, 1 - TEST.labels) == 0.0
    assert [row["step"] for row in rows] == [50]
    assert not model.training


@pytest.mark.parametrize(("channels", "size"), [(1, 4), (1, 8), (3, 28), (3, 33)])
def test_features_have_one_row_an_image_and_feed_the_head(channels: int, size: int):
    model = Classifier(channels=channels, image_size=size, classes=5, width=6)
    x = torch.rand(3, channels, size, size) * 2 - 1
    assert model.features(x).shape == (3, 6)
    assert torch.equal(model(x), model.head(model.features(x)))


# Extractors


def test_the_pixel_extractor_is_the_scaled_pixels():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) * 10
    found = PixelExtractor(device=CPU)(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images.reshape(2, 12) / 127.5 - 1, atol=1e-6)


def test_features_join_the_batches_and_refuse_what_is_not_finite():
    extractor = PixelExtractor(device=CPU)
    assert np.array_equal(features(extractor, TRAIN.batches(40)), extractor(TRAIN.images))
    extractor = type("Broken", (PixelExtractor,), {"__call__": lambda self, images: np.full((len(images), 2), np.nan)})
    with pytest.raises(ValueError, match="the pixels extractor gave features that are not finite"):
        features(extractor(device=CPU), TRAIN.batches(40))


class StandInLayers(torch.nn.Module):
    """[n, 3, 299, 299] -> [n, 2048]: a fixed linear map of pixels taken here and there."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * 23 * 23, 2048)).astype(np.float32))
        self.register_buffer("weight", weight / 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 3
        assert x.shape[2] == 299
        assert x.shape[3] == 299
        return x[:, :, ::13, ::13].flatten(1) @ self.weight


class StandIn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = StandInLayers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / weights.INCEPTION_FILE
    torch.jit.script(StandIn()).save(str(file))
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_the_inception_extractor_resizes_and_scales_as_clean_fid(inception: Path, channels: int):
    images = np.random.default_rng(channels).integers(0, 256, (3, channels, 12, 12), np.uint8)
    found = InceptionExtractor(inception, sha256=file_sha256(inception), device=CPU)(images)
    resize = build_resizer("clean")
    colour = [np.repeat(image, 3 // channels, axis=0).transpose(1, 2, 0) for image in images]  # [12, 12, 3]
    x = torch.from_numpy(np.stack([resize(image) for image in colour]).transpose(0, 3, 1, 2))  # [n, 3, 299, 299]
    expected = StandInLayers()((x - 128) / 128).numpy()
    assert found.shape == (3, 2048)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_inception_checksum_is_the_files(inception: Path):
    import hashlib

    sha256 = hashlib.sha256(inception.read_bytes()).hexdigest()
    assert InceptionExtractor(inception, sha256=sha256, device=CPU).checksum == sha256


def test_a_file_that_is_no_inception(tmp_path: Path):
    file = tmp_path / "x.pt"
    file.write_bytes(b"half a download")
    with pytest.raises(ExtractorError) as caught:
        InceptionExtractor(file, sha256=file_sha256(file), device=CPU)
    assert str(caught.value).startswith(f"{file}: not a TorchScript Inception (")
    torch.jit.script(torch.nn.Identity()).save(str(file))
    with pytest.raises(ExtractorError, match="layers"):
        InceptionExtractor(file, sha256=file_sha256(file), device=CPU)


def test_inception_is_found_as_a_file_or_in_a_folder(inception: Path):
    assert find_inception(str(inception)) == inception
    assert find_inception(str(inception.parent)) == inception


def test_a_missing_inception_path(tmp_path: Path):
    for path in (tmp_path / "nowhere.pt", tmp_path):  # no such file; a folder without it
        with pytest.raises(ExtractorError) as caught:
            find_inception(str(path))
        assert str(caught.value) == (
            f"evaluate.inception_path = {str(path)!r}: no such file; put inception-2015-12-05.pt there"
        )


def test_without_a_network_the_message_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / weights.INCEPTION_FILE

    def no_network(fpath: str) -> str:
        (Path(fpath) / weights.INCEPTION_FILE).write_bytes(b"half")
        raise OSError("no network")

    monkeypatch.setattr(weights, "INCEPTION_FOLDER", tmp_path)
    monkeypatch.setattr("cleanfid.downloads_helper.check_download_inception", no_network)
    with pytest.raises(ExtractorError) as caught:
        find_inception(None)
    text = str(caught.value)
    assert f"the Inception weights are not at {file} and could not be fetched (OSError)" in text
    assert "put inception-2015-12-05.pt there or name it in evaluate.inception_path" in text
    assert list(tmp_path.iterdir()) == []  # no half a download is left


def test_without_a_path_clean_fids_own_file_is_taken(inception: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "INCEPTION_FOLDER", inception.parent)
    assert find_inception(None) == inception


# Reference


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reference") / "out"
    return folder, build_reference(config(), train=TRAIN, test=TEST, out=folder, device=CPU)


def test_the_reference_comes_back_as_it_was_built(built: tuple[Path, dict], trained: tuple[Classifier, list]):
    folder, metadata = built
    reference = load_reference(folder, config(), device=CPU)
    assert reference.metadata == metadata == json.loads((folder / "metadata.json").read_text())
    assert reference.extractor.checksum == metadata["checksum"]
    expected = trained[0].features(torch.from_numpy(TRAIN.images).float() / 127.5 - 1).detach().numpy()
    np.testing.assert_allclose(reference.features, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(reference.features, features(reference.extractor, TRAIN.batches(256)))
    assert np.array_equal(reference.moments.mean, moments(reference.features).mean)
    test_features = np.load(folder / "features-test.npy")
    assert metadata["floor_fid"] == pytest.approx(fid(moments(test_features), reference.moments), rel=1e-9)
    assert {k: metadata[k] for k in ("extractor", "dimension", "split", "n_train", "n_test", "image_shape")} == {
        "extractor": "classifier",
        "dimension": 8,
        "split": "train",
        "n_train": 90,
        "n_test": 31,
        "image_shape": [1, 8, 8],
    }
    assert (metadata["accuracy"], metadata["class_shares"]) == (1.0, [0.5, 0.5])


def test_the_test_split_as_reference(tmp_path: Path):
    made = config(extractor="pixels", reference_split="test")
    metadata = build_reference(made, train=TRAIN, test=TEST, out=tmp_path / "r", device=CPU)
    reference = load_reference(tmp_path / "r", made, device=CPU)
    assert len(reference.features) == len(TEST)
    assert metadata["class_shares"] == [16 / 31, 15 / 31]
    a, b = (moments(PixelExtractor(device=CPU)(s.images)) for s in (TRAIN, TEST))
    assert metadata["floor_fid"] == pytest.approx(fid(a, b), rel=1e-6)
    assert reference.classifier is None
    assert (metadata["accuracy"], metadata["checksum"]) == (None, "identity")


def test_a_reference_of_another_extractor_is_refused(built: tuple[Path, dict]):
    folder, _ = built
    with pytest.raises(UserError) as caught:
        load_reference(folder, config(extractor="pixels"), device=CPU)
    assert str(caught.value) == (
        f"{folder} was made with evaluate.extractor = classifier, params.yaml asks for pixels; "
        "run `dvc repro reference`"
    )


def test_other_weights_are_refused(built: tuple[Path, dict], tmp_path: Path, inception: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "reference"
    shutil.copytree(built[0], folder)
    weights = load_file(folder / "classifier.safetensors")
    weights["head.bias"] = weights["head.bias"] + 1e-7
    save_file(weights, folder / "classifier.safetensors")
    with pytest.raises(UserError) as caught:
        load_reference(folder, config(), device=CPU)
    assert str(caught.value) == f"{folder}: made with other classifier weights; run `dvc repro --force reference`"


def test_a_classifier_of_another_width_or_a_damaged_or_missing_one(built: tuple[Path, dict], tmp_path: Path):
    import shutil

    folder = tmp_path / "reference"
    shutil.copytree(built[0], folder)
    wider = config(classifier=dataclasses.asdict(SETTINGS) | {"width": 9})
    with pytest.raises(UserError, match=r"no classifier of evaluate\.classifier\.width = 9; run `dvc repro --force"):
        load_reference(folder, wider, device=CPU)
    (folder / "classifier.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"no classifier of evaluate\.classifier\.width = 8"):
        load_reference(folder, config(), device=CPU)
    (folder / "classifier.safetensors").unlink()
    with pytest.raises(UserError, match="the classifier's weights are missing; run `dvc repro --force reference`"):
        load_reference(folder, config(), device=CPU)


def test_the_inception_reference_knows_its_file(tmp_path: Path, inception: Path):
    made = config(extractor="inception", inception_path=str(inception), weights_sha256=file_sha256(inception))
    train, test = toy(4, seed=2), toy(1, seed=3)  # one image has no covariance, hence no floor
    metadata = build_reference(made, train=train, test=test, out=tmp_path / "r", device=CPU)
    assert (metadata["dimension"], metadata["floor_fid"]) == (2048, None)
    assert len(load_reference(tmp_path / "r", made, device=CPU).features) == 4
    other = tmp_path / "other.pt"
    changed = StandIn()
    changed.layers.weight.mul_(2)
    torch.jit.script(changed).save(str(other))
    asked = config(extractor="inception", inception_path=str(other), weights_sha256=file_sha256(other))
    with pytest.raises(UserError, match="made with other inception weights"):
        load_reference(tmp_path / "r", asked, device=CPU)


def test_a_classifier_needs_labels_and_leaves_nothing_without(tmp_path: Path):
    bare = toy(10, seed=0, labelled=False)
    with pytest.raises(UserError, match=r"evaluate\.extractor: classifier needs labels, and data/processed has none"):
        build_reference(config(), train=bare, test=bare, out=tmp_path / "r", device=CPU)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_load_by_themselves(built: tuple[Path, dict]):
    model = load_classifier(built[0] / "classifier.safetensors", channels=1, image_size=8, classes=2, width=8)
    assert accuracy(model, TEST.images, TEST.labels) == 1.0


# Evaluation


def samples(folder: Path, arrays: dict[str, np.ndarray], *, shape: tuple[int, ...] = SHAPE) -> Path:
    """What the sample stage leaves: one array a sampler, called <model>-<nfe>."""
    folder.mkdir(exist_ok=True)
    for name, images in arrays.items():
        np.save(folder / f"{name}.npy", images)
    described = [
        {"name": name, "model": name.split("-")[0], "sampler": "heun", "nfe": int(name.split("-")[1])}
        for name in arrays
    ]
    (folder / "metadata.json").write_text(json.dumps({"image_shape": list(shape), "samplers": described}))
    return folder


MEASURES = Measures(
    kid_subsets=3, kid_subset_size=10, neighbours=3, neighbour_samples=100, sliced_projections=8, seed=4
)


def evaluate(folder: Path, built: tuple[Path, dict]) -> dict[str, dict[str, Any]]:
    reference = load_reference(built[0], config(), device=CPU)
    return evaluate_samples(folder, reference, measures=MEASURES).figures


def test_figures_of_a_folder_against_direct_computation(built: tuple[Path, dict], tmp_path: Path):
    best, quick, flow = toy(20, seed=5).images, toy(20, seed=6).images, toy(20, seed=7).images[::-1].copy()
    dark = flow.copy()
    dark[1::2] = flow[::2]  # the flow's even rows are bright
    folder = samples(tmp_path / "s", {"teacher-35": best, "teacher-3": quick, "flow-1": flow, "flow-2": dark})
    figures = evaluate(folder, built)
    reference = load_reference(built[0], config(), device=CPU)
    real = reference.real(MEASURES)
    for name, images in (("teacher-35", best), ("teacher-3", quick), ("flow-1", flow)):
        found = Found(*reference.extractor.features_and_probabilities(images))
        row = figures[name]
        assert {key: row[key] for key in image_figures(found, real)} == image_figures(found, real)
        found = found.features
        assert row["fid"] == fid(moments(found), reference.moments)
        assert row["kid"] == kid(found, reference.features, subsets=3, subset_size=10, seed=4)
        assert (row["n_samples"], row["class_shares"], row["min_class_share"]) == (20, [0.5, 0.5], 0.5)
    assert [row["nfe"] for row in figures.values()] == [0, 35, 3, 1, 2]
    of_test = figures["data-test"]
    assert (of_test["model"], of_test["sampler"], of_test["n_samples"]) == ("data", "test", 31)
    assert of_test["fid"] == pytest.approx(built[1]["floor_fid"], rel=1e-9)
    distances = [
        np.linalg.norm((x.astype(float) - y.astype(float)) / 127.5) / 8 for x, y in zip(flow, best, strict=True)
    ]
    assert figures["flow-1"]["endpoint_rms"] == pytest.approx(np.mean(distances), rel=1e-12)
    assert "endpoint_rms" not in figures["teacher-3"]
    assert figures["flow-2"]["class_shares"] == [0.0, 1.0]
    assert figures["flow-2"]["min_class_share"] == 0.0
    json.dumps(figures, allow_nan=False)


def test_figures_over_seeds_are_means_of_the_sets(built: tuple[Path, dict], tmp_path: Path):
    """Three sets in one array: each figure is the mean of the sets' own, classes are counted over all of them."""
    sets = [toy(12, seed=5 + i).images for i in range(3)]
    folder = samples(tmp_path / "s", {"teacher-3": np.concatenate(sets), "flow-1": np.concatenate(sets[::-1])})
    described = json.loads((folder / "metadata.json").read_text()) | {"seeds": 3}
    (folder / "metadata.json").write_text(json.dumps(described))
    row = evaluate(folder, built)["flow-1"]
    reference = load_reference(built[0], config(), device=CPU)
    found = [Found(*reference.extractor.features_and_probabilities(x)) for x in sets[::-1]]
    each = [image_figures(f, reference.real(MEASURES)) for f in found]
    for key in each[0]:
        assert row[key] == pytest.approx(np.mean([e[key] for e in each]), rel=1e-6)
        assert row[f"{key}_sd"] == pytest.approx(np.std([e[key] for e in each], ddof=1), rel=1e-5, abs=1e-9)
    assert (row["n_samples"], row["seeds"], row["class_shares"]) == (12, 3, [0.5, 0.5])
    assert row["fid_pooled"] == pytest.approx(fid_trend(found, reference.real(MEASURES))["fid_pooled"], rel=1e-6)
    takes = reference.extractor.features_and_probabilities
    teachers = [image_figures(Found(*takes(x)), reference.real(MEASURES)) for x in sets]
    ratios = [e["fid"] / t["fid"] for e, t in zip(each, teachers, strict=True)]
    assert (row["ratio"], row["ratio_sd"]) == (pytest.approx(np.mean(ratios)), pytest.approx(np.std(ratios, ddof=1)))
    assert row["endpoint_rms"] == pytest.approx(
        np.mean([endpoint_rms(a, b) for a, b in zip(sets[::-1], sets, strict=True)])
    )


@pytest.mark.parametrize(("count", "seeds", "given"), [(31, 3, "31 samples in 3"), (9, 3, "9 samples in 3")])
def test_sets_that_are_uneven_or_too_small(
    built: tuple[Path, dict], tmp_path: Path, count: int, seeds: int, given: str
):
    folder = samples(tmp_path / "s", {"flow-1": toy(count, seed=5).images})
    described = json.loads((folder / "metadata.json").read_text()) | {"seeds": seeds}
    (folder / "metadata.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"flow-1 has {given} set.s., which must be of equal size and at least 4 each"):
        evaluate(folder, built)


def test_the_closest_pairs_are_those_of_the_one_step_flow(built: tuple[Path, dict], tmp_path: Path):
    copied = toy(20, seed=9).images
    copied[[3, 8]] = TRAIN.images[[40, 11]]
    folder = samples(tmp_path / "s", {"flow-1": copied})
    described = json.loads((folder / "metadata.json").read_text())
    described["samplers"][0]["sampler"] = "one_step"
    (folder / "metadata.json").write_text(json.dumps(described))
    reference = load_reference(built[0], config(), device=CPU)
    closest = evaluate_samples(folder, reference, measures=MEASURES).closest["flow-1"]
    assert {(3, 40), (8, 11)} == set(closest[:2])
    assert len(closest) == 8


def test_endpoint_rms_of_a_constant_offset():
    a = np.full((3, 1, 2, 2), 100, np.uint8)
    b = np.stack([np.full((1, 2, 2), 100 + d, np.uint8) for d in (0, 51, 102)])
    assert endpoint_rms(a, b) == pytest.approx((0 + 0.4 + 0.8) / 3)
    assert endpoint_rms(b, a) == endpoint_rms(a, b)


def test_a_flow_without_teacher_has_no_endpoint(built: tuple[Path, dict], tmp_path: Path):
    figures = evaluate(samples(tmp_path / "s", {"flow-1": TEST.images}), built)
    assert figures["flow-1"]["fid"] > 0
    assert "endpoint_rms" not in figures["flow-1"]


@pytest.mark.parametrize("damage", [b"", b"hello", b"\x93NUMPY\x01\x00"], ids=["empty", "no array", "cut"])
def test_an_array_that_cannot_be_read(built: tuple[Path, dict], tmp_path: Path, damage: bytes):
    folder = samples(tmp_path / "s", {"teacher-3": TEST.images, "flow-1": TEST.images})
    (folder / "flow-1.npy").write_bytes(damage)
    with pytest.raises(UserError) as caught:
        evaluate(folder, built)
    assert str(caught.value).startswith(f"{folder / 'flow-1.npy'}: cannot be read (")
    assert str(caught.value).endswith("run `dvc repro --force sample@...`")


def test_a_missing_array(built: tuple[Path, dict], tmp_path: Path):
    folder = samples(tmp_path / "s", {"teacher-3": TEST.images})
    (folder / "teacher-3.npy").unlink()
    with pytest.raises(UserError, match=r"teacher-3\.npy: cannot be read"):
        evaluate(folder, built)


def test_samples_of_another_image_shape(built: tuple[Path, dict], tmp_path: Path):
    folder = samples(tmp_path / "s", {"flow-1": np.zeros((4, 3, 8, 8), np.uint8)}, shape=(3, 8, 8))
    with pytest.raises(UserError) as caught:
        evaluate(folder, built)
    assert str(caught.value) == f"{folder}: images of shape [3, 8, 8], the reference has [1, 8, 8]"


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (np.zeros((4, 1, 9, 9), np.uint8), "uint8 [4, 1, 9, 9]"),
        (np.zeros((4, 64), np.uint8), "uint8 [4, 64]"),
        (np.zeros((4, 1, 8, 8), np.float32), "float32 [4, 1, 8, 8]"),
        (np.zeros((1, 1, 8, 8), np.uint8), "uint8 [1, 1, 8, 8]"),
    ],
)
def test_an_array_that_is_not_what_the_metadata_says(
    built: tuple[Path, dict], tmp_path: Path, images: np.ndarray, given: str
):
    folder = samples(tmp_path / "s", {"flow-1": images})
    with pytest.raises(UserError) as caught:
        evaluate(folder, built)
    assert str(caught.value) == (
        f"{folder / 'flow-1.npy'}: must be uint8 [n >= 2, 1, 8, 8], got {given}; run `dvc repro --force sample@...`"
    )


def test_pairs_of_unequal_number(built: tuple[Path, dict], tmp_path: Path):
    folder = samples(tmp_path / "s", {"teacher-3": TEST.images, "flow-1": TEST.images[:5]})
    with pytest.raises(UserError, match="flow-1 has 5 images, the teacher 31; run"):
        evaluate(folder, built)
