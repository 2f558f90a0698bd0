"""What speaks against figures stands beside them, and what later stages need of the data is checked before training."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ifm import diagnostics, dynamics
from ifm.cli.evaluate import MEASURES as OPTIONS
from ifm.cli.main import main
from ifm.config import ConfigError, EvaluateConfig, parse, read_params
from ifm.data import needs
from ifm.data.arrays import DataError, ProcessedMetadata, duplicates_in_words
from ifm.data.fetching import fetch as fetch_images
from ifm.data.fetching import fetch_points
from ifm.data.points import PointMetadata, preprocess_points
from ifm.data.preprocessing import preprocess
from ifm.diagnostics import neighbour_spacing
from ifm.errors import UserError
from ifm.exact import ExactTeacher
from ifm.metrics import cautions
from ifm.metrics.classifier import ClassifierSettings
from ifm.metrics.evaluation import evaluate_samples
from ifm.metrics.extractors import FeatureError, PixelExtractor, features
from ifm.metrics.figures import Found, Measures, Real, image_figures, over_sets, without_neighbours
from ifm.metrics.reference import build_reference, load_reference
from ifm.modalities import SampleError
from ifm.modalities.images import to_uint8
from ifm.report import plots
from ifm.report.diagnostics import diagnostics as diagnostics_shown
from ifm.report.page import render, warnings_of
from ifm.report.summary import summary_csv, summary_json
from ifm.sampling import Draws
from ifm.tracking import flatten
from ifm.use.card import model_card, read_evaluation
from pipeline.runner import paths
from pipeline.runner.stage import Stage
from pipeline.stages import (
    diagnose,
    evaluate,
    fetch,
    flow,
    reference,
    report,
    sample,
    select,
    teacher,
    track,
    trajectories,
)
from pipeline.stages import preprocess as preprocess_stage
from pipeline.studies import sweep
from pipeline.tools import comparison, fairness, preset, readme
from tests.support.exact import LinearFlow
from tests.support.reports import diagnostics_of, full_report, summary_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SETTINGS = ClassifierSettings(width=8, steps=60, batch_size=32, lr=2e-2, seed=3)
MEASURES = Measures(kid_subsets=3, kid_subset_size=10, neighbours=5, neighbour_samples=99, sliced_projections=8, seed=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Split:
    """Images or points in memory, as `build_reference` takes them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, classes: list[str] | None = None) -> None:
        self.images, self.labels, self.classes, self.shape = images, labels, classes, images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]

    def batches(self, size: int):
        return (self.images[i : i + size] for i in range(0, len(self), size))


def noise(n: int, *, seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, size, size), np.uint8)


def labelled(n: int, *, seed: int, random: bool = False) -> Split:
    """Two classes told apart by brightness; random: labels that have nothing to do with the images."""
    rng = np.random.default_rng(seed)
    bright = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 1, 8, 8)) + 150 * bright[:, None, None, None]
    return Split(images.astype(np.uint8), rng.permutation(bright) if random else bright, ["dark", "bright"])


def evaluate_config(**changes: Any) -> EvaluateConfig:
    values = read_params(ROOT / "params.yaml")["evaluate"]
    classifier = {name: getattr(SETTINGS, name) for name in ("width", "steps", "batch_size", "lr", "seed")}
    return EvaluateConfig(**(values | {"classifier": classifier} | changes))


def built(tmp_path: Path, train: Split, test: Split, **changes: Any) -> dict[str, Any]:
    options = {"duplicates": changes.pop("duplicates", None)}
    return build_reference(
        evaluate_config(**changes), train=train, test=test, out=tmp_path / "r", device=CPU, **options
    )


# --- a classifier that cannot judge ---------------------------------------------------------------------------------


def at_least(right: int, n: int, p: float) -> float:
    """P(X >= right) of a binomial law, term by term."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(right, n + 1))


@pytest.mark.parametrize("right", [50, 58, 61, 62, 63, 90])
def test_chance_is_the_binomial_law_of_the_most_frequent_class(right):
    """100 test images of two equal classes: 62 right answers are chance by 1 %, 63 are not."""
    labels = np.repeat([0, 1], 50)
    said = np.where(np.arange(100) < right, labels, 1 - labels)
    found = cautions.of_classifier(said, labels, of_train=[40, 40])
    p = at_least(right, 100, 0.5)
    assert bool(found) == (p > 0.01)
    if found:
        assert f"right on {right} of 100 test examples ({right:.1f} %), which is no better than chance" in found[0]
        assert f"p = {p:.2g}" in found[0]


def test_a_constant_answer_is_chance_however_often_it_is_right():
    labels = np.array([0] * 190 + [1] * 10)
    assert (
        "always the most frequent class is right on 95.0 %"
        in cautions.of_classifier(np.zeros(200, int), labels, of_train=[9, 9])[0]
    )
    assert cautions.of_classifier(labels, labels, of_train=[9, 9]) == []


@pytest.mark.parametrize(("labels", "says"), [([0, 1, 0, 1], True), ([0] * 30, True), ([0, 1, 2, 0, 1, 2], False)])
def test_a_test_part_that_cannot_say(labels, says):
    """(1/2)^4 is above 1 %, (1/3)^6 is not; a test part of one class never says anything."""
    found = cautions.of_classifier(np.array(labels), np.array(labels), of_train=[5, 5, 5])
    assert bool(found) is says
    if says:
        assert f"{len(labels)} test examples cannot say whether the classifier judges at all" in found[0]


def test_classes_that_were_not_trained_on_are_told():
    labels = np.arange(30) % 3
    (found,) = cautions.of_classifier(labels, labels, of_train=[4, 0, 4])
    assert found.startswith("1 of the test examples' 3 classes have no training example")


def test_labels_at_random_are_a_warning_in_the_reference_and_good_ones_are_none(tmp_path):
    good = built(tmp_path, labelled(300, seed=0), labelled(120, seed=1))
    assert (good["warnings"], good["accuracy"]) == ([], 1.0)
    bad = built(tmp_path, labelled(300, seed=0, random=True), labelled(120, seed=1, random=True))
    assert len(bad["warnings"]) == 1
    assert "no better than chance" in bad["warnings"][0]
    assert load_reference(tmp_path / "r", evaluate_config(), device=CPU).metadata["warnings"] == bad["warnings"]


@pytest.mark.parametrize("classes", [["only"], ["only", "never"]])
def test_one_class_is_refused_before_the_classifier_is_trained(tmp_path, classes, monkeypatch):
    """By the labels that there are, not by the names."""
    monkeypatch.setattr("ifm.metrics.reference.train_classifier", lambda *a, **k: pytest.fail("was trained"))
    train = Split(noise(20, seed=0), np.zeros(20, np.int64), classes)
    with pytest.raises(UserError) as caught:
        built(tmp_path, train, train)
    assert str(caught.value) == (
        "evaluate.extractor: classifier needs training data of at least two classes, and data/processed has one "
        "('only'); use evaluate.extractor: inception, dinov2 or pixels"
    )
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_all_the_same_are_refused(tmp_path):
    white = Split(np.full((9, 1, 8, 8), 255, np.uint8))
    with pytest.raises(UserError, match="pixels gives the same features for all 9 reference examples, so it cannot"):
        built(tmp_path, white, white, extractor="pixels")
    train = labelled(40, seed=0)
    dead = SETTINGS.__dict__ | {"lr": 1e3}  # no unit answers any more, or none with a number
    with pytest.raises(UserError, match=r"lower evaluate\.classifier\.lr"):
        built(tmp_path, train, train, classifier=dead)
    assert list(tmp_path.iterdir()) == []


def test_features_and_samples_that_are_no_numbers_are_one_line():
    class Broken(PixelExtractor):
        def __call__(self, images):
            return np.full((len(images), 2), np.nan, np.float32)

    with pytest.raises(FeatureError, match="the pixels extractor gave features that are not finite"):
        features(Broken(device=CPU), [noise(2, seed=0)])
    with pytest.raises(SampleError, match="the model has diverged; train it with a lower lr"):
        to_uint8(torch.tensor([[float("inf")]]))
    assert issubclass(FeatureError, UserError)
    assert issubclass(SampleError, UserError)


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "real", "dimension", "said"),
    [
        (2000, 3000, 64, []),
        (64, 3000, 64, ["64 samples for 64 features"]),
        (65, 3000, 64, ["65 samples are few"]),
        (2000, 10, 2048, ["2,000 samples for 2,048 features", "10 reference examples for 2,048 features"]),
        (None, 99, 0, ["99 reference examples are few"]),
    ],
)
def test_too_few_images_are_told(samples, real, dimension, said):
    found = cautions.of_counts(samples, real, dimension)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_duplicates_are_told_from_one_per_cent_on():
    counts = {"train": 10, "test": 0, "test_in_train": 2}
    assert cautions.of_duplicates(counts, train=1000, test=200) == []
    of_train, of_test = cautions.of_duplicates(counts, train=999, test=199)
    assert of_train.startswith("10 of 999 training examples repeat another")
    assert of_test.startswith("2 of 199 test examples are training examples too")
    assert cautions.of_duplicates(None, train=1, test=1) == []


def test_sentences_go_through_a_table_and_back():
    lists = [["One.", "Two, or 3."], ["Two, or 3.", "Four."], []]
    cells = [cautions.cell(texts) for texts in lists]
    assert cells[2] is None
    assert cautions.of_cells([*cells, math.nan]) == ["One.", "Two, or 3.", "Four."]
    assert cautions.told({"warnings": ["a", 3]}) == ["a"]
    assert cautions.told({"warnings": "text"}) == cautions.told({}) == []


# --- figures that cannot be computed --------------------------------------------------------------------------------


def sampled(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, images in arrays.items():
        np.save(folder / f"{name}.npy", images)
    described = [{"name": n, "model": n.split("-")[0], "sampler": "heun", "nfe": int(n.split("-")[1])} for n in arrays]
    shape = next(iter(arrays.values())).shape[1:]
    (folder / "metadata.json").write_text(json.dumps({"image_shape": list(shape), "samplers": described}))
    return folder


def test_as_few_reference_images_as_neighbours_leave_the_other_figures(tmp_path):
    made = built(
        tmp_path, Split(noise(20, seed=0)), Split(noise(5, seed=1)), extractor="pixels", reference_split="test"
    )
    known = load_reference(tmp_path / "r", evaluate_config(extractor="pixels", reference_split="test"), device=CPU)
    rows = evaluate_samples(sampled(tmp_path / "s", {"flow-1": noise(30, seed=2)}), known, measures=MEASURES).figures
    json.dumps(rows, allow_nan=False)
    for name, count in (("flow-1", 30), ("data-train", 20)):
        row = rows[name]
        assert [row[key] for key in ("precision", "recall", "density", "coverage")] == [None] * 4
        assert row["fid"] > 0
        assert math.isfinite(row["kid"])
        assert row["warnings"][: len(made["warnings"])] == made["warnings"]
        assert row["warnings"][-1] == (
            "Precision, recall, density and coverage are not computed: evaluate.neighbours = 5 needs 6 images of each "
            f"side, there are {count} of one and 5 of the reference."
        )


def test_one_more_image_than_neighbours_is_enough():
    real = Real(noise(6, seed=0).reshape(6, -1).astype(np.float32), MEASURES)
    found = Found(noise(6, seed=1).reshape(6, -1).astype(np.float32))
    assert without_neighbours(6, real) is None
    assert 0 <= image_figures(found, real)["recall"] <= 1
    assert image_figures(found.part(slice(0, 5)), real)["recall"] is None


def test_means_over_sets_of_what_one_set_has_not():
    assert over_sets([{"fid": 1.0, "recall": None}, {"fid": 3.0, "recall": 0.5}]) == {
        "fid": 2.0, "fid_sd": pytest.approx(2**0.5), "recall": None,
    }  # fmt: skip


def test_a_teacher_at_distance_zero_has_no_ratio(tmp_path):
    """Its samples are the reference's own points."""
    real = np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32)
    built(tmp_path, Split(real), Split(real[:120]), extractor="coordinates")
    known = load_reference(tmp_path / "r", evaluate_config(extractor="coordinates"), device=CPU)
    folder = sampled(tmp_path / "s", {"teacher-3": real, "flow-1": real[::-1] + np.float32(0.1)})
    row = evaluate_samples(folder, known, measures=MEASURES).figures["flow-1"]
    assert row["ratio"] is None
    assert row["warnings"] == ["The ratio to the teacher is not computed: the teacher's distance is 0 in a set."]


# --- data, before training ------------------------------------------------------------------------------------------


def config_of(**changes: Any):
    values = read_params(ROOT / "params.yaml")
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        values[section][key] = value
    return parse(values)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format=kind, lossless=True)
    return out.getvalue()


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def processed(tmp_path: Path, files: dict[str, bytes], **data: Any) -> ProcessedMetadata:
    folder = folder_of(tmp_path / "pictures", files)
    changes = {"source": "imagefolder", "path": str(folder), "label_column": None} | data
    chosen = config_of(evaluate__extractor="pixels", **{f"data__{key}": value for key, value in changes.items()}).data
    fetch_images(chosen, tmp_path / "raw")
    return preprocess(chosen, tmp_path / "raw", tmp_path / "out")


def test_pictures_with_the_same_pixels_are_counted(tmp_path):
    """Whatever their file: in the train split, in the test split, and in both; one other pixel is no duplicate."""
    a, b, c, d = noise(4, seed=0)[:, 0]
    near = a.copy()
    near[3, 3] ^= 1
    train = {"1.png": a, "2.png": a, "3.webp": a, "4.png": b, "5.png": c, "6.png": near}
    test = {"1.png": b, "2.png": b, "3.png": d}
    files = {f"train/{name}": encoded(x, "WEBP" if "webp" in name else "PNG") for name, x in train.items()}
    files |= {f"test/{name}": encoded(x) for name, x in test.items()}
    made = processed(tmp_path, files, test_split="test")
    assert made.duplicates == {"train": 2, "test": 1, "test_in_train": 2}
    assert ProcessedMetadata.read(tmp_path / "out") == made
    assert duplicates_in_words(made.duplicates, {"train": 6, "test": 3}, noun="images") == (
        "2 of 6 train images and 1 of 3 test images repeat another of their split; 2 test images are in the train "
        "split too"
    )


def test_pictures_become_duplicates_where_they_are_made_small(tmp_path):
    """Large pictures that differ in detail alone."""
    flat = {f"{i}.png": encoded(np.full((32, 32), 20 * i, np.uint8)) for i in range(8)}
    rough = np.full((32, 32), 20, np.uint8)
    rough[:, ::2], rough[:, 1::2] = 21, 19
    made = processed(tmp_path, flat | {"rough.png": encoded(rough)}, image_size=4, resample="box", test_fraction=0.1)
    assert sum(made.duplicates.values()) == 1


def test_a_folder_of_one_picture_is_refused(tmp_path):
    files = {f"{i}.png": encoded(np.full((8, 8), 255, np.uint8)) for i in range(12)}
    with pytest.raises(DataError, match=r"all 10 training images are the same at data\.image_size = 8"):
        processed(tmp_path, files)
    assert not (tmp_path / "out").exists()


def test_points_that_occur_twice_are_counted(tmp_path):
    values = preset.parse_yaml(preset.apply("points", (ROOT / "params.yaml").read_text()))
    values["data"]["points"] |= {"law": "gaussian", "dimensions": 2, "count": 50}
    config = parse(values).data
    fetch_points(config, tmp_path / "raw")
    drawn = np.load(tmp_path / "raw" / "points.npy")
    np.save(tmp_path / "raw" / "points.npy", np.concatenate([drawn[:25]] * 2))
    made = preprocess_points(config, tmp_path / "raw", tmp_path / "out")
    assert made.duplicates["train"] + made.duplicates["test"] + made.duplicates["test_in_train"] == 25
    assert PointMetadata.read(tmp_path / "out") == made


CASES = {
    "as many as neighbours": (
        {}, needs.Counts({"train": 5, "test": 2}, ["a", "b"], [3, 2]),
        "data/raw: 5 train and 2 test images: evaluate.reference_split = train has 5, and evaluate.neighbours = 5 "
        "needs 6 to compare with; lower evaluate.neighbours to 4 or add images",
    ),
    "the other split has more": (
        {"evaluate__reference_split": "test"}, needs.Counts({"train": 7, "test": 5}, ["a", "b"], [4, 3]),
        "data/raw: 7 train and 5 test images: evaluate.reference_split = test has 5, and evaluate.neighbours = 5 "
        "needs 6 to compare with; lower evaluate.neighbours to 4 or set evaluate.reference_split to train or add "
        "images",
    ),
    "one to compare with": (
        {"evaluate__reference_split": "test", "evaluate__neighbours": 1, "evaluate__extractor": "pixels"},
        needs.Counts({"train": 40, "test": 1}, None, None),
        "data/raw: 40 train and 1 test images: evaluate.reference_split = test has 1, and evaluate.neighbours = 1 "
        "needs 2 to compare with; set evaluate.reference_split to train or add images",
    ),
    "one to train on": (
        {"evaluate__extractor": "pixels"}, needs.Counts({"train": 1, "test": 9}, None, None),
        "data/raw: 1 train and 9 test images: at least 2 must be for training; add images or lower data.test_fraction",
    ),
    "one class": (
        {}, needs.Counts({"train": 9, "test": 9}, ["a", "b"], [0, 9]),
        "evaluate.extractor: classifier needs training data of at least two classes, and data/raw has one ('b'); use "
        "evaluate.extractor: inception, dinov2 or pixels",
    ),
    "no labels": (
        {}, needs.Counts({"train": 9, "test": 9}, None, None),
        "evaluate.extractor: classifier needs labels, and data/raw has none; use evaluate.extractor: inception, dinov2 "
        "or pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_data_that_a_later_stage_cannot_use_are_one_line(case):
    changes, counts, message = CASES[case]
    with pytest.raises(UserError) as caught:
        needs.check(config_of(**changes), counts, where=Path("data/raw"))
    assert str(caught.value) == message


def test_data_that_are_just_enough_pass():
    needs.check(config_of(), needs.Counts({"train": 6, "test": 1}, ["a", "b"], [5, 1]), where=Path("data/raw"))
    needs.check(
        config_of(evaluate__extractor="pixels", evaluate__neighbours=1),
        needs.Counts({"train": 2, "test": 1}, ["a"], [2]),
        where=Path("data/raw"),
    )


def test_a_mode_without_a_point_is_told_before_training():
    values = preset.parse_yaml(preset.apply("points", (ROOT / "params.yaml").read_text()))
    values["data"]["points"]["count"] = 12
    counts = needs.Counts({"train": 10, "test": 2}, list("01234567"), [1, 2, 0, 1, 3, 2, 0, 1])
    with pytest.raises(UserError, match=r"2 of the 8 modes of data\.points\.law = 'eight_gaussians' have no training"):
        needs.check(parse(values), counts, where=Path("data/raw"))


def test_pixels_of_large_images_are_refused_by_their_number():
    """Their covariance would not fit: 64 x 64 in colour are the most, as for `ifm evaluate`."""
    config_of(evaluate__extractor="pixels", data__image_size=64, data__channels=3)
    with pytest.raises(ConfigError, match=r"pixels has 49,152 features with data\.image_size = 128 and data\.channels"):
        config_of(evaluate__extractor="pixels", data__image_size=128, data__channels=3)


# --- diagnostics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 60])
def test_the_distance_between_duplicates_is_zero(count):
    """Also where the library takes distances by a matrix product, whose rounding is not."""
    x = 30 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    twice = torch.cat([x, x])
    for chunk in (7, 4096):
        assert torch.equal(neighbour_spacing(twice, queries=2 * count, chunk=chunk), torch.zeros(2 * count).double())
    apart = torch.cdist(x.flatten(1).double(), x.flatten(1).double()).fill_diagonal_(torch.inf).amin(dim=1) / 192**0.5
    torch.testing.assert_close(neighbour_spacing(x, queries=count), apart, rtol=1e-3, atol=0)


def diagnosed(data: torch.Tensor, flow: Any = None) -> dict[str, Any]:
    d = dynamics.build("rf")
    return diagnostics.diagnose(
        flow or LinearFlow(d), ExactTeacher(data, d), Draws.of(d, (3,), range(6), seed=0, device=CPU), data=data,
        stored=None, solver_steps=4, jacobian_paths=2, jacobian_times=2, whole_jacobian_up_to=10, directions=2,
        anchor_refinements=3, seed=0,
    )  # fmt: skip


def test_data_that_occur_twice_have_no_closest_approach_and_a_page_all_the_same():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    found = diagnosed(torch.cat([x, x])) | {"reference": "exact"}
    mine = found["non_intersection"]
    assert (mine["ratio"], mine["teacher_ratio"], mine["spacing"]) == (None, None, 0)
    assert found["warnings"] == [diagnostics.NO_SPACING]
    assert diagnosed(x)["warnings"] == []
    json.dumps(found, allow_nan=False)
    assert {k: v for k, v in flatten(found).items() if v is None}.keys() >= {"non_intersection.ratio"}
    assert "approach" not in plots.diagnostic_figures({"rf": found})
    assert "approach" in plots.diagnostic_figures({"rf": found, "ve": diagnostics_of("ve")})
    shown = diagnostics_shown({"rf": found})
    assert [title for title, _ in shown["rows"] if title.startswith("Closest approach")] == []


def test_a_flow_that_has_diverged_has_no_diagnostics_and_says_so():
    class Diverged(LinearFlow):
        def forward(self, x_t, t, *, x_anchor):
            return super().forward(x_t, t, x_anchor=x_anchor) * torch.nan

    d = dynamics.build("rf")
    found = diagnosed(torch.randn(10, 3, generator=torch.Generator().manual_seed(1)), Diverged(d))
    json.dumps(found, allow_nan=False)
    assert found["warnings"] == [diagnostics.NOT_FINITE]
    assert found["error"]["one_step"] is None
    assert found["straightness"]["teacher"] > 0
    assert set(plots.diagnostic_figures({"rf": found | {"reference": "exact"}})) >= {"error", "jacobian"}


# --- beside every figure --------------------------------------------------------------------------------------------

HOSTILE = "5 reference images <b>for</b> 64 features."


@pytest.mark.usefixtures("undrawn")
def test_the_page_and_the_summary_show_what_speaks_against_the_figures():
    summary = summary_of("ve", "rf").assign(warnings="One. | Two.", recall=None)
    known = {"extractor": "classifier", "n_train": 20, "n_test": 5, "split": "train", "warnings": ["One.", HOSTILE]}
    known["duplicates"] = {"train": 9, "test": 1, "test_in_train": 4}
    page = render(full_report(summary=summary, reference=known))
    start = page.index('<aside class="warnings"')
    assert start < page.index("One step against the teacher")
    box = page[start : page.index("</aside>", start)]
    assert [box.count(text) for text in ("One.", "Two.", "5 reference images &lt;b&gt;for&lt;/b&gt;")] == [1, 1, 1]
    assert "9 of 20 train images and 1 of 5 test images repeat another of their split" in page
    assert page.count("With care: see the warnings above.") >= 3
    assert json.loads(summary_json(summary))[0]["warnings"] == "One. | Two."
    assert pd.read_csv(io.StringIO(summary_csv(summary)))["warnings"].tolist() == ["One. | Two."] * len(summary)


def test_the_page_collects_them_from_everywhere_once():
    assert warnings_of(full_report()) == []
    found = diagnostics_of("ve") | {"warnings": ["One.", "Four."]}
    summary = summary_of("ve").assign(warnings=["Two. | One.", *[None] * 11])
    known = {"warnings": ["One."]}
    assert warnings_of(full_report(summary=summary, diagnostics={"ve": found}, reference=known)) == [
        "One.", "Two.", "Four.",
    ]  # fmt: skip


def test_the_pipelines_run_has_a_tag_and_a_note():
    results = {
        "reference": {"warnings": ["One."]},
        "ve": {"flow-1": {"warnings": ["One.", "Two."]}},
        "diagnostics": {"ve": {"warnings": ["Three."]}},
    }
    assert track.warnings(results, ["ve"]) == ["One.", "Two.", "Three."]
    assert "With care:\n- One." in track.note({"fid/ve-flow-1nfe": 1.0}, "digits", "pixels", ["One."])
    assert "With care" not in track.note({"fid/ve-flow-1nfe": 1.0}, "digits", "pixels")


def test_a_stage_says_them_and_tags_its_run(capsys):
    tags: dict[str, str] = {}
    stage = Stage("evaluate-ve", "evaluate", config_of(), {}, "ve", SimpleNamespace(log_tags=tags.update))
    stage.warn(["One.", "Two."])
    assert capsys.readouterr().err == "evaluate-ve: warning: One.\nevaluate-ve: warning: Two.\n"
    assert tags == {"warnings": "One. Two."}


def test_a_model_card_has_them(tmp_path):
    rows = {
        "flow-1": {"nfe": 1, "fid": 2.0, "recall": None, "n_samples": 9, "seeds": 1, "warnings": ["One.", "*Two*."]}
    }
    (tmp_path / "ve.json").write_text(json.dumps(rows))
    (tmp_path / "reference.json").write_text(json.dumps({"extractor": "pixels", "warnings": ["One."]}))
    stated = read_evaluation(tmp_path / "ve.json")
    assert stated.warnings == ["One.", "*Two*."]
    card = model_card({"dynamics": {"name": "ve"}}, title="t", usage="u", library=None, evaluation=stated)
    assert "Read the figures with care:\n\n- One.\n- \\*Two\\*." in card
    (tmp_path / "own.json").write_text(json.dumps({"figures": {"fid": 1.0}, "protocol": {}, "warnings": ["Few."]}))
    assert read_evaluation(tmp_path / "own.json").warnings == ["Few."]


def test_tables_made_of_results_have_them():
    summary = summary_of("ve").assign(warnings="One. | Two.")
    assert "*With care:* One.\n*With care:* Two." in readme.table(summary)
    empty = dict.fromkeys(sweep.HIGHER_IS_BETTER)
    row = {"data": "d", "dynamics": "ve", "sampler": "one_step", "nfe": 1, "fid": 2.0, "flow.lr": "1"}
    rows = [
        empty | row | {"seed": s, "experiment": f"e{s}", "warnings": text} for s, text in enumerate(["A.", "A. | B."])
    ]
    measure = sweep.Measure("fid", "one_step", None)
    table = sweep.ranked(rows, ["flow.lr"], measure)
    assert table["warnings"].tolist() == ["A. | B."]
    options = {"axes": ["flow.lr"], "metric": "fid", "higher": False, "missing": [], "commit": "c", "created": "today"}
    page = sweep.sweep_page.render(table, **options)
    assert page.index("<li>B.</li>") < page.index("<table>")


def test_a_comparison_says_them_for_each_side():
    summary = summary_of("ve")
    side = comparison.Side("A", "c", "d", "s", "revision", summary, metrics={"reference": {"warnings": ["One."]}})
    other = comparison.Side("B", "c", "d", "s", "revision", summary, metrics={"ve": {"flow-1": {"warnings": ["Two."]}}})
    found = fairness.warnings(side, other, [])
    assert "A: One." in found
    assert "B: Two." in found


# --- ifm evaluate ---------------------------------------------------------------------------------------------------


def judged(capsys, *words: Any, out: Path) -> tuple[dict[str, Any], str]:
    main(["evaluate", *map(str, words), "--device", "cpu", "--out", str(out)])
    return json.loads(out.read_text()), capsys.readouterr().out


@pytest.mark.parametrize(("count", "said"), [(10, "10 samples for 64 features"), (70, "70 samples are few")])
def test_ifm_evaluate_on_few_images_warns(tmp_path, capsys, count, said):
    np.save(tmp_path / "s.npy", noise(count, seed=0))
    np.save(tmp_path / "r.npy", noise(200, seed=1))
    words = ["--samples", tmp_path / "s.npy", "--reference", tmp_path / "r.npy", "--extractor", "pixels"]
    found, printed = judged(capsys, *words, out=tmp_path / "f.json")
    assert len(found["warnings"]) == 1
    assert found["warnings"][0].startswith(said)
    assert printed.index("warnings\n") < printed.index(said) < printed.index("figures\n")


def test_ifm_evaluate_has_the_stages_measures_and_warnings_against_its_reference(tmp_path, capsys):
    """KID's subsets, neighbours and seed of the project's params.yaml, whatever an option does not say."""
    folder = tmp_path / "data" / "reference"
    folder.parent.mkdir()
    train, test = labelled(200, seed=0, random=True), labelled(120, seed=1, random=True)
    made = build_reference(evaluate_config(), train=train, test=test, out=folder, device=CPU)
    np.save(tmp_path / "s.npy", labelled(150, seed=2).images)
    words = ["--samples", tmp_path / "s.npy", "--reference", folder]
    alone, _ = judged(capsys, *words, out=tmp_path / "a.json")
    assert {name: alone["protocol"][name] for name in ("kid_subsets", "neighbours", "seed")} == {
        "kid_subsets": OPTIONS["kid_subsets"], "neighbours": OPTIONS["neighbours"], "seed": OPTIONS["seed"],
    }  # fmt: skip
    assert alone["warnings"] == made["warnings"]
    assert "no better than chance" in alone["warnings"][0]
    values = read_params(ROOT / "params.yaml") | {"seed": 7}
    values["evaluate"] |= {"kid_subsets": 4, "kid_subset_size": 30, "neighbours": 3}
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    beside, _ = judged(capsys, *words, "--neighbours", 2, out=tmp_path / "b.json")
    protocol = beside["protocol"]
    assert [protocol[k] for k in ("kid_subsets", "kid_subset_size", "neighbours", "seed")] == [4, 30, 2, 7]
    sampled(tmp_path / "d", {"flow-1": np.load(tmp_path / "s.npy")})
    how = Measures(
        kid_subsets=4, kid_subset_size=30, neighbours=3, neighbour_samples=10_000, sliced_projections=1, seed=7
    )
    known = load_reference(folder, evaluate_config(), device=CPU)
    assert evaluate_samples(tmp_path / "d", known, measures=how).figures["flow-1"]["kid"] == beside["figures"]["kid"]


# --- every stage, in one process ------------------------------------------------------------------------------------

TINY = {
    "data__source": "imagefolder", "data__path": "pictures",
    "network__channels": [8], "network__attention": [False], "network__norm_groups": 4,
    "teacher__steps": 4, "teacher__batch_size": 8, "teacher__log_every": 2, "teacher__checkpoint_every": 4,
    "trajectories__count": 16, "trajectories__shard_size": 16, "trajectories__batch_size": 16,
    "trajectories__solver_steps": 3, "trajectories__stored_times": 3,
    "flow__steps": 4, "flow__batch_size": 8, "flow__log_every": 2, "flow__checkpoint_every": 4,
    "select__count": 12, "sample__seeds": 2, "sample__count": 12, "sample__batch_size": 12, "sample__flow_steps": [1],
    "evaluate__teacher_nfe": [1, 3], "evaluate__kid_subsets": 2,
    "evaluate__classifier": {"width": 8, "steps": 10, "batch_size": 8, "lr": 1e-2, "seed": 0},
    "diagnose__paths": 4, "diagnose__solver_steps": 3, "diagnose__jacobian_paths": 1, "diagnose__jacobian_times": 2,
    "diagnose__directions": 1, "diagnose__anchor_refinements": 2,
}  # fmt: skip


class Untracked(Stage):
    def work_folder(self, *, params, inputs):
        return Path("work") / self.name


def run_stage(stage: Any, values: dict[str, Any], d: str | None, tags: dict[str, str]) -> None:
    module = stage.__name__.rpartition(".")[2]
    made = Untracked(f"{module}-{d}" if d else module, module, parse(values), values, d)
    made.run = SimpleNamespace(
        timings={}, log_metrics=lambda m: None, log_row=None, log_model=lambda *a, **k: None,
        log_artifact=lambda *a: None, log_tags=lambda t: tags.update({made.name: t["warnings"]}),
    )  # fmt: skip
    stage.work(made)
    paths.RUNS.mkdir(parents=True, exist_ok=True)
    paths.run_record(made.name).write_text(json.dumps({"timings": made.run.timings}))


def tiny_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], **changes: Any) -> dict:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.stages.sample.TIMED_BATCHES", (1,))
    monkeypatch.setattr("pipeline.stages.fetch.project_root", lambda: tmp_path)
    folder_of(tmp_path / "pictures", files)
    values = read_params(ROOT / "params.yaml") | {"dynamics": ["rf"]}
    for dotted, value in (TINY | changes).items():
        section, key = dotted.split("__")
        values[section][key] = value
    Path("params.yaml").write_text(json.dumps(values))
    return values


def no_constant(text: str) -> None:
    pytest.fail(f"{text} in a JSON file")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("case", ["duplicates and random labels", "one test image"])
def test_every_stage_on_data_that_hardly_judge(case, tmp_path, monkeypatch, capsys):
    """The page is made, with what speaks against its figures; no file holds NaN."""
    few, changes = noise(12, seed=0)[:, 0], {}
    if case == "one test image":
        files = {f"{c}/{i}.png": encoded(few[2 * i + k]) for k, c in enumerate("ab") for i in range(2)}
        changes = {"data__test_fraction": 0.1, "evaluate__neighbours": 2}
        said = "1 test example cannot say whether the classifier judges at all"
    else:
        files = {f"{'abc'[i % 3]}/{i}-{k}.png": encoded(x) for i, x in enumerate(few) for k in range(3)}
        said = "test examples are training examples too"
    values, tags = tiny_project(tmp_path, monkeypatch, files, **changes), {}
    branch = [teacher, trajectories, flow, select, sample, evaluate, diagnose]
    for stage in (fetch, preprocess_stage, reference, *branch, report):
        run_stage(stage, values, "rf" if stage in branch else None, tags)
    assert ("repeat another of their split" in capsys.readouterr().out) == (case != "one test image")
    for file in Path().rglob("*.json"):
        json.loads(file.read_text(), parse_constant=no_constant)
    page = Path("reports/index.html").read_text()
    assert said in page
    assert said in " ".join(json.loads(Path("reports/metrics/reference.json").read_text())["warnings"])
    table = pd.read_csv("reports/summary.csv")
    assert table["warnings"].str.contains(said).all()
    assert table.loc[table.model != "data", "fid"].notna().all()
    assert all(said in tags[name] for name in ("reference", "evaluate-rf"))
    found = json.loads(paths.diagnostics("rf").read_text())
    assert (found["non_intersection"]["ratio"] is None) == (case != "one test image")
    assert ("Closest approach is not computed" in page) == (case != "one test image")


@pytest.mark.parametrize(
    ("folders", "changes", "message"),
    [
        (
            ["only"],
            {},
            "needs training data of at least two classes, and data/raw has one ('only'); use evaluate.ext",
        ),
        (["a", "b"], {"evaluate__reference_split": "test"}, "evaluate.neighbours = 5 needs 6 to compare with"),
    ],
)
def test_the_stage_preprocess_refuses_before_it_decodes(folders, changes, message, tmp_path, monkeypatch):
    files = {f"{c}/{i}.png": encoded(x) for c in folders for i, x in enumerate(noise(9, seed=0)[:, 0])}
    values = tiny_project(tmp_path, monkeypatch, files, **changes)
    run_stage(fetch, values, None, {})
    monkeypatch.setattr("ifm.data.preprocessing.decode", lambda data: pytest.fail("an image was decoded"))
    with pytest.raises(UserError) as caught:
        run_stage(preprocess_stage, values, None, {})
    assert message in str(caught.value)
    assert not paths.PROCESSED.exists()
    assert paths.RAW.exists()  # what was fetched stays


def test_the_stage_reference_checks_what_has_changed_since(tmp_path, monkeypatch):
    files = {f"{c}/{i}.png": encoded(x) for c in "ab" for i, x in enumerate(noise(9, seed=0)[:, 0])}
    values = tiny_project(tmp_path, monkeypatch, files)
    for stage in (fetch, preprocess_stage):
        run_stage(stage, values, None, {})
    values["evaluate"]["neighbours"] = 14
    values["sample"]["count"] = 20
    with pytest.raises(UserError, match=r"^data/processed: 14 train and 4 test images: .* has 14, and evaluate\.neig"):
        run_stage(reference, values, None, {})
    assert not paths.REFERENCE.exists()
