"""From features to figures, against closed forms, brute force and clean-fid's own commands."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ifm.metrics.classes import class_figures, inception_score, inception_score_of_parts
from ifm.metrics.classifier import Classifier
from ifm.metrics.distances import Moments, fid, kid, moments
from ifm.metrics.extraction import extract
from ifm.metrics.extractors import ClassifierExtractor, PixelExtractor
from ifm.metrics.figures import Found, Measures, Real, fid_trend, image_figures, least_samples, over_sets
from ifm.metrics.neighbours import Manifold, chosen, copies, nearest, precision_recall

CPU = torch.device("cpu")
MEASURES = Measures(kid_subsets=5, kid_subset_size=20, neighbours=3, neighbour_samples=50, sliced_projections=8, seed=1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(n, d, *, seed, scale=1.0, shift=0.0):
    return (scale * np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(np.float32)


# --- Frechet and kernel distances -----------------------------------------------------------------------------------


def test_moments_of_many_blocks_are_numpys():
    x = normal(9000, 7, seed=0, shift=100.0)  # a large mean: a one-pass sum of squares would lose digits
    found, wide = moments(x), x.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("d", "n"), [(4, 200), (32, 200), (64, 40), (128, 30)], ids=["4", "32", "singular", "low rank"]
)
def test_frechet_is_clean_fids(d, n, seed):
    """Covariances with a spectrum as features have it; of fewer samples than dimensions they are singular."""
    cleanfid = pytest.importorskip("cleanfid.fid")
    spectrum = (1 / np.arange(1, d + 1)).astype(np.float32)
    a, b = (moments(normal(n, d, seed=10 * seed + i, shift=0.1 * i) * spectrum) for i in range(2))
    assert fid(a, b) == pytest.approx(cleanfid.frechet_distance(a.mean, a.covariance, b.mean, b.covariance), rel=1e-6)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-9)


def test_frechet_of_singular_covariances_that_commute_is_the_closed_form():
    """The sum of (sqrt a - sqrt b)^2 over the eigenvalues, zeros among them."""
    a, b = np.array([4.0, 1.0, 0.0, 0.0, 9.0]), np.array([1.0, 0.0, 0.0, 2.0, 9.0])
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    one, two = (Moments(np.zeros(5), (q * x) @ q.T) for x in (a, b))
    assert fid(one, two) == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-7)
    assert fid(one, one) == pytest.approx(0.0, abs=1e-7)


def test_frechet_refuses_what_has_no_distance():
    good = Moments(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="2 and 3 features"):
        fid(good, Moments(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        fid(good, Moments(np.array([0.0, np.nan]), np.eye(2)))


def folder_of(path: Path, images: np.ndarray) -> str:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0], "L").convert("RGB").save(path / f"{i:04d}.png")
    return str(path)


def test_fid_and_kid_are_those_of_clean_fids_commands_on_two_folders(tmp_path):
    cleanfid = pytest.importorskip("cleanfid.fid")
    """compute_fid and compute_kid with the same custom extractor, and no resizing on either side."""
    torch.manual_seed(0)
    model = Classifier(channels=1, image_size=8, classes=3, width=6).eval()
    rng = np.random.default_rng(2)
    a, b = (rng.integers(low, 256, (40, 1, 8, 8)).astype(np.uint8) for low in (0, 60))
    folders = folder_of(tmp_path / "a", a), folder_of(tmp_path / "b", b)

    def features(batch: torch.Tensor) -> torch.Tensor:  # float [n, 3, H, W] in [0, 255]
        return model.features(batch[:, :1].float() / 127.5 - 1).detach()

    options = {
        "custom_feat_extractor": features, "custom_fn_resize": lambda x: x, "num_workers": 0, "device": CPU,
        "verbose": False, "batch_size": 16,
    }  # fmt: skip
    extractor = ClassifierExtractor(model, device=CPU)
    found = [extract(extractor, x, batch_size=7).features for x in (a, b)]
    ours = fid(moments(found[0]), moments(found[1]))
    assert ours == pytest.approx(cleanfid.compute_fid(*folders, **options), rel=1e-6)
    options["model"] = options.pop("custom_feat_extractor")  # compute_kid itself takes no extractor
    theirs = [cleanfid.get_folder_features(f, mode="clean", **options) for f in folders]
    np.random.seed(11)
    theirs = cleanfid.kernel_distance(*(x.astype(np.float64) for x in theirs))
    assert kid(found[0], found[1], subsets=100, subset_size=1000, seed=11) == pytest.approx(theirs, rel=1e-6)


def test_fid_extrapolates_to_that_of_the_laws():
    """Two samples of one law: FID at n is c/n above zero, and the extrapolation takes it away on the average."""
    real = Real(normal(40_000, 8, seed=0), MEASURES)
    trends, small = [], []
    for i in range(12):
        sets = [Found(normal(100, 8, seed=1 + 3 * i + k)) for k in range(3)]
        trends.append(fid_trend(sets, real))
        small.append(np.mean([fid(moments(s.features), real.moments) for s in sets]))
    pooled, limit = (np.mean([t[key] for t in trends]) for key in ("fid_pooled", "fid_extrapolated"))
    assert np.mean(small) > 0.2
    assert pooled == pytest.approx(np.mean(small) / 3, rel=0.2)
    assert abs(limit) < 0.1 * np.mean(small)


def test_the_trend_of_one_set_is_between_it_and_its_halves():
    real, one = Real(normal(500, 3, seed=0), MEASURES), Found(normal(60, 3, seed=1))
    halves = np.mean([fid(moments(one.features[:30]), real.moments), fid(moments(one.features[30:]), real.moments)])
    whole = fid(moments(one.features), real.moments)
    assert fid_trend([one], real) == {"fid_pooled": whole, "fid_extrapolated": pytest.approx(2 * whole - halves)}
    assert fid_trend([Found(one.features[:3])], real) == {}


# --- neighbours -----------------------------------------------------------------------------------------------------


def brute_force(fake, real, k):
    """The definitions, pair by pair."""

    def distance(x, y):
        return float(np.sqrt(((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum()))

    def radii(points):
        return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]

    r_real, r_fake = radii(real), radii(fake)
    inside = np.array([[distance(f, r) <= r_real[j] for j, r in enumerate(real)] for f in fake])
    recalled = np.array([[distance(f, r) <= r_fake[i] for r in real] for i, f in enumerate(fake)])
    return {
        "precision": inside.any(axis=1).mean(),
        "recall": recalled.any(axis=0).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(axis=0).mean(),
    }


@pytest.mark.parametrize(("d", "k", "shift"), itertools.product((1, 5, 40), (1, 3), (0.0, 1.5)))
def test_precision_and_recall_by_definition(d, k, shift, monkeypatch):
    monkeypatch.setattr("ifm.metrics.neighbours._BLOCK", 7)  # several blocks, the last one short
    fake, real = normal(25, d, seed=1, shift=shift / np.sqrt(d)), normal(31, d, seed=2)
    found = precision_recall(Manifold.of(fake, k=k), Manifold.of(real, k=k))
    assert found == pytest.approx(brute_force(fake, real, k), abs=1e-12)


def test_precision_and_recall_of_equal_apart_and_collapsed_sets():
    real = normal(60, 6, seed=0)
    manifold = Manifold.of(real, k=3)
    same = precision_recall(manifold, manifold)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] >= 1
    apart = precision_recall(Manifold.of(real + 1000, k=3), manifold)
    assert apart == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    collapsed = precision_recall(Manifold.of(np.repeat(real[:1], 60, axis=0), k=3), manifold)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] <= 2 / 60
    assert collapsed["coverage"] < 0.2


def test_the_balls_need_more_points_than_neighbours():
    with pytest.raises(ValueError, match="3 samples have no 3 nearest others each; use at least 4"):
        Manifold.of(normal(3, 2, seed=0), k=3)
    assert least_samples(MEASURES) == 4


def test_nearest_by_brute_force_and_of_copies():
    a, b = normal(20, 9, seed=3), normal(33, 9, seed=4)
    a[5] = b[17]
    all_distances = np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)
    distances, rows = nearest(a, b)
    np.testing.assert_allclose(distances, all_distances.min(axis=1), atol=1e-6)
    assert np.array_equal(rows, all_distances.argmin(axis=1))
    assert rows[5] == 17
    assert distances[5] < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch):
    """In float64 on both: moments, neighbours and balls, in several blocks."""
    a, b = normal(700, 64, seed=1, shift=0.1), normal(900, 64, seed=2)

    def found():
        balls = precision_recall(Manifold.of(a, k=5), Manifold.of(b, k=5))
        return moments(a), nearest(a, b), balls, fid(moments(a), moments(b))

    monkeypatch.setattr("ifm.metrics.neighbours._GPU_BLOCK_BYTES", 2**20)
    on_gpu = found()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = found()
    np.testing.assert_allclose(on_gpu[0].covariance, on_cpu[0].covariance, rtol=0, atol=1e-12)
    np.testing.assert_allclose(on_gpu[1][0], on_cpu[1][0], atol=1e-9)
    assert np.array_equal(on_gpu[1][1], on_cpu[1][1])
    assert on_gpu[2] == pytest.approx(on_cpu[2], abs=1e-12)
    assert on_gpu[3] == pytest.approx(on_cpu[3], abs=1e-9)


def test_copies_are_found_and_fresh_samples_are_not():
    train, unseen, fresh = (normal(400, 10, seed=i) for i in range(3))
    from_unseen = nearest(unseen, train)[0]
    honest = copies(nearest(fresh, train)[0], from_unseen)
    assert honest["train_distance_auc"] == pytest.approx(0.5, abs=0.06)
    assert honest["near_copies"] == pytest.approx(0.05, abs=0.03)
    half = fresh.copy()
    half[::2] = train[::2]
    assert copies(nearest(half, train)[0], from_unseen)["train_distance_auc"] == pytest.approx(0.25, abs=0.05)
    copied = copies(nearest(train, train)[0], from_unseen)
    assert (copied["train_distance_auc"], copied["near_copies"]) == (0.0, 1.0)
    assert copied["train_distance"] == pytest.approx(0.0, abs=1e-6)
    assert copied["unseen_distance"] == np.median(from_unseen)


def test_a_choice_of_rows_is_spread_over_the_folder_and_repeats():
    x = np.arange(1000)[:, None]
    found = chosen(x, most=100)
    assert np.array_equal(found, chosen(x, most=100))
    assert len(np.unique(found)) == 100
    assert (found < 500).mean() == pytest.approx(0.5, abs=0.15)
    assert np.array_equal(chosen(x, most=1000), x)


# --- classes --------------------------------------------------------------------------------------------------------


def test_inception_score_between_one_and_the_number_of_classes():
    assert inception_score(np.tile(np.eye(7), (5, 1))) == pytest.approx(7)  # certain, and every class
    assert inception_score(np.full((20, 7), 1 / 7)) == pytest.approx(1)
    assert inception_score(np.tile(np.eye(7)[:1], (9, 1))) == pytest.approx(1)  # one class alone
    p = stats.dirichlet([0.3] * 5).rvs(200, random_state=0)
    divergence = [stats.entropy(row, p.mean(axis=0)) for row in p]
    assert inception_score(p.astype(np.float32)) == pytest.approx(np.exp(np.mean(divergence)), rel=1e-5)


def test_inception_score_of_ten_parts_is_the_published_code():
    """openai/improved-gan, inception_score/model.py: consecutive parts, numpy's mean and std."""
    p = np.random.default_rng(3).dirichlet(np.ones(7), 103)
    scores = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        divergence = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(divergence, 1))))
    assert inception_score_of_parts(p) == pytest.approx((np.mean(scores), np.std(scores)))
    assert inception_score_of_parts(np.tile(np.eye(7), (10, 1))) == pytest.approx((7, 0))
    with pytest.raises(ValueError, match="9 samples cannot be cut into 10 parts"):
        inception_score_of_parts(p[:9])


def test_class_counts_against_shares():
    found = class_figures([50, 30, 0, 20], [0.4, 0.4, 0.1, 0.1])
    expected = stats.chisquare([50, 30, 0, 20], [40, 40, 10, 10])
    assert found == {
        "class_shares": [0.5, 0.3, 0.0, 0.2],
        "min_class_share": 0.0,
        "missing_classes": 1,
        "class_chi2": pytest.approx(expected.statistic / 3),
        "class_p": pytest.approx(expected.pvalue),
    }


def test_a_class_that_the_real_data_lack_is_left_out_of_the_test():
    found = class_figures([10, 30, 5], [0.25, 0.75, 0.0])
    assert (found["class_chi2"], found["class_p"]) == (pytest.approx(0), pytest.approx(1))
    assert "class_p" not in class_figures([1, 2], None)
    absent = class_figures([10, 30, 0], [0.25, 0.75, 0.0])
    assert (absent["missing_classes"], absent["min_class_share"]) == (0, 0.25)
    assert "class_p" not in class_figures([5, 5], [1.0, 0.0])


# --- together -------------------------------------------------------------------------------------------------------


def test_figures_of_a_set_are_its_parts():
    real = Real(normal(80, 4, seed=0), MEASURES, train=normal(80, 4, seed=0), unseen=normal(30, 4, seed=5))
    found = Found(normal(70, 4, seed=1, shift=0.3), stats.dirichlet([1.0] * 3).rvs(70, random_state=1))
    figures = image_figures(found, real)
    assert figures["fid"] == fid(moments(found.features), moments(real.features))
    assert figures["kid"] == kid(found.features, real.features, subsets=5, subset_size=20, seed=1)
    assert figures["inception_score"] == inception_score(found.probabilities)
    some = [Manifold.of(chosen(x, most=50), k=3) for x in (found.features, real.features)]
    assert {key: figures[key] for key in ("precision", "recall", "density", "coverage")} == precision_recall(*some)
    assert figures["train_distance_auc"] > 0.5
    bare = image_figures(Found(found.features), Real(real.features, MEASURES))
    assert set(figures) - set(bare) == {
        "inception_score", "inception_score_parts", "inception_score_deviation", "train_distance_auc",
        "near_copies", "train_distance", "unseen_distance",
    }  # fmt: skip


def test_means_and_deviations_over_sets():
    assert over_sets([{"fid": 1.0}, {"fid": 2.0}, {"fid": 6.0}]) == {
        "fid": pytest.approx(3.0),
        "fid_sd": pytest.approx(np.std([1, 2, 6], ddof=1)),
    }
    assert over_sets([{"fid": 1.5}]) == {"fid": 1.5}


# --- batches --------------------------------------------------------------------------------------------------------


class Recorded(np.ndarray):
    """An array that notes how much of it is read at once."""

    def __getitem__(self, key):
        if isinstance(key, slice):
            self.reads.append(len(range(*key.indices(len(self)))))
        return super().__getitem__(key)


def test_features_are_taken_a_batch_at_a_time():
    plain = np.random.default_rng(0).integers(0, 256, (23, 1, 4, 4), np.uint8)
    images = plain.view(Recorded)
    images.reads = []
    found = extract(PixelExtractor(device=CPU), images, batch_size=5)
    assert images.reads == [5, 5, 5, 5, 3]
    assert np.array_equal(found.features, plain.reshape(23, -1).astype(np.float32) / 127.5 - 1)
    assert found.features.dtype == np.float32
    assert found.probabilities is None


def test_features_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(PixelExtractor, "__call__", lambda self, images: np.full((len(images), 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="pixels extractor gave features that are not finite"):
        extract(PixelExtractor(device=CPU), np.zeros((3, 1, 2, 2), np.uint8), batch_size=2)
