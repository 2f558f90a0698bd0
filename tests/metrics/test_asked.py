"""Samples that were asked to be of a class: the share that is, and FID within classes."""

import json

import numpy as np
import pytest
import torch

from ifm.errors import UserError
from ifm.metrics.asked import (
    LABELS,
    asked_class_share,
    fid_figures,
    fids_by_class,
    least_of_a_class,
    read_asked,
    shares_by_class,
)
from ifm.metrics.comparison import Measures
from ifm.metrics.evaluation import evaluate_samples
from ifm.metrics.extractors import CoordinateExtractor, PixelExtractor
from ifm.metrics.reference import Reference

CPU = torch.device("cpu")
MEASURES = Measures(kid_subsets=2, kid_subset_size=10, neighbours=2, neighbour_samples=50, sliced_projections=8, seed=0)
CENTRES = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
NAMES = ["left", "right", "top"]


def test_shares_are_counts():
    said, asked = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2, 0])
    assert asked_class_share(said, asked) == 4 / 6
    assert shares_by_class(said, asked, classes=4) == [0.5, 1.0, 2 / 3, None]


def test_fid_within_a_class_is_the_distance_of_its_own_samples():
    """Each class's samples are its real ones moved: FID is the square of the way. Mixed up, it would not be."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 20, 7])
    real = rng.normal(size=(47, 4)) + 10 * labels[:, None]
    moved = real + np.array([0.5, 1.0, 1.0])[labels][:, None]
    order = rng.permutation(47)
    found = fids_by_class(moved[order], labels[order], real, labels, classes=4)
    assert found[:2] == [pytest.approx(4 * 0.25, rel=1e-9), pytest.approx(4 * 1.0, rel=1e-9)]
    assert found[2:] == [None, None]  # 7 of 4 features are fewer than 8; none
    assert least_of_a_class(4) == 8
    assert fids_by_class(moved[:39], labels[:39], real, labels, classes=1)[0] == pytest.approx(1.0)


def test_the_mean_is_over_all_classes_or_none():
    assert fid_figures([1.0, 3.0]) == {"fids_by_class": [1.0, 3.0], "fid_within_classes": 2.0}
    assert fid_figures([1.0, None]) == {"fids_by_class": [1.0, None], "fid_within_classes": None}
    assert fid_figures([None, None]) == {}
    # A class without real images is never asked for.
    assert fid_figures([1.0, None, 2.0], absent={1}) == {"fids_by_class": [1.0, None, 2.0], "fid_within_classes": 1.5}


def folder(tmp_path, samples, asked, *, classes=NAMES, shape=(2,)):
    tmp_path.mkdir(exist_ok=True)
    described = [{"name": name, "model": "flow", "sampler": "one_step", "nfe": 1} for name in samples]
    metadata = {"image_shape": list(shape), "samplers": described, "seeds": 2}
    if classes is not None:
        metadata["condition"] = {"kind": "class", "classes": classes, "shares": [1 / len(classes)] * len(classes)}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    for name, array in samples.items():
        np.save(tmp_path / f"{name}.npy", array)
    if asked is not None:
        np.save(tmp_path / LABELS, asked)
    return tmp_path


def of_points():
    real = np.concatenate([CENTRES + 0.1, CENTRES - 0.1]).astype(np.float32)
    metadata = {"split": "train", "image_shape": [2], "dimension": 2, "warnings": [], "classes": NAMES}
    splits = {"train": real, "test": real[:3]}
    return Reference(CoordinateExtractor(device=CPU), splits, None, [1 / 3] * 3, CENTRES, metadata)


def test_a_folder_of_samples_is_judged_by_what_was_asked(tmp_path):
    """Two sets of four points: 3 of 4 and 2 of 4 lie where they were asked to be."""
    said, asked = np.array([0, 1, 2, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 1, 1, 0, 0, 2])
    points = (CENTRES[said] + 0.05).astype(np.float32)
    row = evaluate_samples(folder(tmp_path, {"f": points}, asked), of_points(), measures=MEASURES).figures["f"]
    assert row["asked_class_share"] == (0.75 + 0.5) / 2
    assert row["asked_class_share_sd"] == pytest.approx(0.25 / 2**0.5)
    assert row["asked_shares"] == [1 / 3, 2 / 3, 1.0]
    without = evaluate_samples(
        folder(tmp_path / "b", {"f": points}, None, classes=None), of_points(), measures=MEASURES
    ).figures["f"]
    assert without == {key: value for key, value in row.items() if not key.startswith("asked_")}


def test_images_have_fid_within_classes_where_real_labels_are_known(tmp_path):
    rng = np.random.default_rng(1)
    shape, real_labels, asked = (1, 2, 2), np.repeat([0, 1], 10), np.tile([0, 1], 12)
    images = (
        rng.integers(0, 100, (44, *shape)) + 150 * np.concatenate([real_labels, asked])[:, None, None, None]
    ).astype(np.uint8)
    extractor = PixelExtractor(device=CPU)
    features = np.asarray(extractor(images), np.float32)
    metadata = {"split": "train", "image_shape": list(shape), "dimension": 4, "warnings": [], "classes": ["a", "b"]}
    reference = Reference(extractor, {"train": features[:20], "test": features[20:30]}, None, None, None, metadata)
    where = folder(tmp_path, {"f": images[20:]}, asked, classes=["a", "b"], shape=shape)
    judged = {
        known: evaluate_samples(where, reference, measures=MEASURES, labels=real_labels if known else None).figures["f"]
        for known in (True, False)
    }
    by_class = fids_by_class(features[20:], asked, features[:20], real_labels, classes=2)
    assert judged[True]["fids_by_class"] == pytest.approx(by_class, rel=1e-6)
    assert judged[True]["fid_within_classes"] == pytest.approx(np.mean(by_class), rel=1e-6)
    assert "asked_class_share" not in judged[True]  # no classifier says what a sample is
    assert "fids_by_class" not in judged[False]


@pytest.mark.parametrize(
    ("labels", "said"),
    [(None, "cannot be read"), (np.zeros(3, np.int64), r"must be int64 \[4\], got int64 \[3\]"),
     (np.zeros(4, np.int32), "got int32"), (np.array([0, 1, 2, 3]), "labels from 0 to 2 are needed, got 0 to 3")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(labels, said, tmp_path):
    if labels is not None:
        np.save(tmp_path / LABELS, labels)
    with pytest.raises(UserError, match=said) as error:
        read_asked(tmp_path, count=4, classes=3)
    assert LABELS in str(error.value)
    assert "\n" not in str(error.value)


def test_samples_of_other_classes_are_refused(tmp_path):
    points = np.zeros((8, 2), np.float32)
    where = folder(tmp_path, {"f": points}, np.zeros(8, np.int64), classes=["a", "b", "c"])
    with pytest.raises(UserError, match="samples of other classes than the reference's"):
        evaluate_samples(where, of_points(), measures=MEASURES)
