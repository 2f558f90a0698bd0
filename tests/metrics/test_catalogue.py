"""The table of metrics: what it says of the known ones, and that an entry is all that a new one needs."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ifm.errors import UserError
from ifm.metrics import catalogue
from ifm.metrics.comparison import Comparison, Found, Measures, Real
from ifm.metrics.evaluation import evaluate_samples
from ifm.metrics.extractors import PixelExtractor
from ifm.metrics.figures import figures_of
from ifm.metrics.metric import IMAGES, POINTS, TEXT, Aligned, Better, Metric, Role
from ifm.metrics.reference import Reference
from ifm.report.contents import Report
from ifm.report.page import render
from ifm.report.summary import summary_columns, summary_csv, summary_json
from ifm.use.card import model_card, read_evaluation
from pipeline.runner.headline import headline
from pipeline.stages import track
from pipeline.tools import readme
from pipeline.tools.compare_tables import title_of
from pipeline.tools.comparison import metric_columns

ROOT = Path(__file__).parents[2]
SHAPE = (1, 4, 4)
MEASURES = Measures(kid_subsets=2, kid_subset_size=10, neighbours=2, neighbour_samples=50, sliced_projections=8, seed=0)
SAMPLERS = [("teacher", "heun", 9), ("flow", "one_step", 1)]


def brightness_error(of: Comparison) -> float:
    """How far the samples' mean grey level is from 128."""
    return abs(float(np.mean(of.samples)) - 128)


BRIGHTNESS = Metric(
    "brightness", "Brightness error", Better.LOWER, tooltip="the mean grey level’s distance from 128.", ideal=0,
    compute=brightness_error, where=lambda of: of.samples is not None, format=Aligned(least=1, most=1),
)  # fmt: skip


@pytest.fixture
def with_brightness(monkeypatch):
    monkeypatch.setitem(catalogue.METRICS, BRIGHTNESS.key, BRIGHTNESS)


@pytest.fixture
def judged(with_brightness, tmp_path):
    """(figures, samples): two samplers with two sets of 20 images each, judged by their pixels."""
    rng = np.random.default_rng(0)
    splits = {name: rng.normal(size=(30, 16)).astype(np.float32) for name in ("train", "test")}
    metadata = {"split": "train", "image_shape": list(SHAPE), "dimension": 16, "warnings": [], "classes": None}
    reference = Reference(PixelExtractor(device=torch.device("cpu")), splits, None, None, None, metadata)
    described, samples = [], {}
    for model, sampler, nfe in SAMPLERS:
        name = f"{model}-{nfe}"
        samples[name] = rng.integers(0, 256, (40, *SHAPE), np.uint8)
        np.save(tmp_path / f"{name}.npy", samples[name])
        described.append({"name": name, "model": model, "sampler": sampler, "nfe": nfe})
    (tmp_path / "metadata.json").write_text(json.dumps({"image_shape": list(SHAPE), "samplers": described, "seeds": 2}))
    return evaluate_samples(tmp_path, reference, measures=MEASURES).figures, samples


def summary_of(figures):
    rows = [{**row, "data": "toy", "extractor": "pixels", "dynamics": "ve", "seed": 0} for row in figures.values()]
    return pd.DataFrame(rows).reindex(columns=summary_columns()).assign(warnings=None)


def test_a_new_entry_is_computed_with_its_deviation(judged):
    figures, samples = judged
    for name, images in samples.items():
        each = [abs(part.mean() - 128) for part in (images[:20], images[20:])]
        assert figures[name]["brightness"] == pytest.approx(np.mean(each), rel=1e-12)
        assert figures[name]["brightness_sd"] == pytest.approx(np.std(each, ddof=1), rel=1e-12)
    assert "brightness" not in figures["data-test"]  # real images are at hand as features alone
    assert figures["data-test"]["fid"] > 0


def test_a_new_entry_has_columns_in_the_summary(judged):
    figures, _ = judged
    columns = summary_columns()
    assert columns[columns.index("endpoint_rms_sd") + 1 :][:3] == ["brightness", "brightness_sd", "seconds_per_image"]
    summary = summary_of(figures)
    assert summary_csv(summary).splitlines()[0] == ",".join(columns)
    flow = next(row for row in json.loads(summary_json(summary)) if row["model"] == "flow")
    assert flow["brightness"] == float(f"{figures['flow-1']['brightness']:.6g}")


@pytest.mark.usefixtures("undrawn")
def test_a_new_entry_stands_in_the_report(judged):
    figures, _ = judged
    page = render(
        Report(summary=summary_of(figures), params_text="", data="toy", seed=0, git_commit="0", created="today")
    )
    heading = re.search(r'<th scope="col"[^>]*>Brightness error</th>', page)[0]
    assert 'data-better="lower"' in heading
    assert 'title="The mean grey level’s distance from 128. Lower is better. The real law has 0."' in heading
    assert f"{figures['flow-1']['brightness']:.1f} ± " in page
    assert 'aria-label="Brightness error against NFE"' in page
    assert "<figcaption>Brightness error: the mean grey level’s distance from 128.</figcaption>" in page


def test_a_new_entry_reaches_tracking_ranking_comparison_and_card(judged, tmp_path):
    figures, _ = judged
    tracked = track.final_figures({"ve": figures, "diagnostics": {}, "reference": {}}, ["ve"])
    assert tracked["brightness/ve-flow-1nfe"] == figures["flow-1"]["brightness"]
    assert "brightness_sd/ve-flow-1nfe" not in tracked
    assert "brightness" not in headline(figures)
    assert catalogue.ranking(IMAGES)["brightness"] is False  # lower is better
    assert "brightness" not in catalogue.ranking(POINTS)
    summary = summary_of(figures)
    assert "brightness" in metric_columns(summary, summary)
    assert title_of("brightness") == "Brightness error"
    (tmp_path / "ve.json").write_text(json.dumps(figures))
    description = {"dynamics": {"name": "ve"}, "image_shape": list(SHAPE)}
    card = model_card(description, title="x", usage="", library=None, evaluation=read_evaluation(tmp_path / "ve.json"))
    assert "brightness error" in card


def test_the_committed_summary_has_the_tables_columns():
    with open(ROOT / "reports/summary.csv", encoding="utf-8", newline="") as file:
        committed = next(csv.reader(file))
    assert summary_columns() == committed


def test_directions_and_what_is_ranked():
    lower, higher = ({k for k in catalogue.METRICS if catalogue.lower_is_better(k) is way} for way in (True, False))
    assert {"fid", "kid", "near_copies", "sliced_wasserstein", "energy_distance", "seconds_per_image"} < lower
    assert {"inception_score", "precision", "recall", "density", "coverage"} < higher
    assert catalogue.lower_is_better("class_p") is catalogue.lower_is_better("no such key") is None
    of_images = ["fid", "kid", "inception_score", "precision", "recall", "density", "coverage"]
    of_text = ["fourgram_tv", "bigram_tv", "character_tv", "word_share"]
    assert list(catalogue.ranking()) == [
        *of_images, "sliced_wasserstein", "energy_distance", *of_text, "asked_class_share",
    ]  # fmt: skip
    assert list(catalogue.ranking(IMAGES)) == [*of_images, "asked_class_share"]
    assert [m.key for m in catalogue.judges()] == ["fid", "sliced_wasserstein", "fourgram_tv"]
    assert [m.key for m in catalogue.studied()] == ["fid", "sliced_wasserstein", "energy_distance"]
    assert list(catalogue.ranking(TEXT)) == of_text
    assert catalogue.judge(POINTS).key == "sliced_wasserstein"


def test_every_entry_says_what_it_is():
    for key, metric in catalogue.METRICS.items():
        assert metric.key == key
        assert metric.hint
        assert metric.tooltip.endswith(".")
        assert (metric.role is Role.COST) <= (metric.compute is None)
    assert len({metric.title for metric in catalogue.of()}) == len(catalogue.METRICS)


def test_unknown_keys_and_kinds_are_named():
    with pytest.raises(UserError, match=r"^fdi: no such metric; there are fid, "):
        catalogue.get("fdi")
    with pytest.raises(UserError, match=r"^no metric judges smells; "):
        catalogue.judge("smells")


def test_points_have_their_two_distances():
    rng = np.random.default_rng(1)
    points, real = rng.normal(size=(40, 2)).astype(np.float32), rng.normal(size=(50, 2)).astype(np.float32)
    assert set(figures_of(Comparison(Found(points), Real(real, MEASURES)), POINTS)) == {
        "sliced_wasserstein",
        "energy_distance",
    }
    same = figures_of(Comparison(Found(real), Real(real, MEASURES)), POINTS)
    assert same == {key: pytest.approx(0, abs=1e-6) for key in same}


def test_titles_and_directions_are_known_without_numpy():
    code = "import sys; from ifm.metrics import catalogue; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_the_columns_in_the_docs_are_the_tables():
    text = (ROOT / readme.TABLES).read_text(encoding="utf-8")
    assert text.split(readme.COLUMNS)[1].strip() == readme.columns()
