"""What large data sets cost: the arithmetic by hand, and the committed page."""

import pytest

from benchmarks import scale
from benchmarks.scale import Rates, Stage, Work

RATES = Rates(
    gpu="g", made="by hand", peak_tflops=100.0, training_share=0.5, solving_share=0.25, decode_microseconds=3600.0,
    read_gb_per_second=2.0, node_gb_per_second=50.0, gpus_a_node=8,
)  # fmt: skip


def test_hours_are_operations_over_what_is_reached():
    """1.8e17 at half of 1e14 a second: an hour."""
    assert scale.gpu_hours(Stage("teacher", flops=1.8e17, share=0.5), RATES) == pytest.approx(1.0)


def test_a_runs_rows_give_peak_and_shares():
    """1000 images/s of three passes of 1e10 at 30 %: a peak of 1e14; 2000 evaluations/s: 20 % of it."""
    rows = {
        "model FLOPs utilisation: teacher, cifar10": 0.3,
        "training step: teacher, cifar10": 1000.0,
        "evaluations in trajectories: cifar10": 2000.0,
    }
    document = {
        "hardware": {"gpu": "a GPU"}, "command": "c", "date": "2026-01-01",
        "results": [{"name": name, "value": value} for name, value in rows.items()],
    }  # fmt: skip
    found = scale.of_run(document, flops=1e10)
    assert found["peak_tflops"] == pytest.approx(100.0)
    assert (found["training_share"], found["solving_share"]) == (0.3, pytest.approx(0.2))
    assert scale.of_run(document | {"results": []}, flops=1e10) == {}


def test_stages_are_the_presets_budgets(monkeypatch):
    """ImageNet at 64 pixels: 500,000 steps of 1024, a million paths of 35 guided evaluations."""
    monkeypatch.setattr(scale, "forward_flops", lambda name, shape=None: 1e9)
    work = Work("w", "imagenet64", 1_000_000, (3, 64, 64), encoded_bytes=1e5)
    found = {stage.name: stage for stage in scale.stages(work, RATES)}
    assert found["teacher"].flops == 500_000 * 1024 * 3 * 1e9
    assert found["trajectories"].flops == 1e6 * 2 * 35 * 1e9  # D_c and D_0
    assert found["flow"].flops == 300_000 * 1024 * 3.25 * 1e9
    assert found["trajectories"].terabytes == pytest.approx(2 * 2e6 * 3 * 12288 / 1e12)
    assert found["fetch"].core_hours == pytest.approx(1.0)
    assert found["fetch"].terabytes == pytest.approx(0.2)
    assert found["preprocess"].flops == 0


def test_operations_are_counted_without_memory():
    """The cifar10 preset's network: a GPU run counted 101 GFLOP an image and step of three passes."""
    assert scale.forward_flops("cifar10") == pytest.approx(101e9 / 3, rel=0.01)
    assert scale.parameters("cifar10") == pytest.approx(47.7e6, rel=0.01)


@pytest.mark.parametrize(("hours", "text"), [(0, ""), (72, "3 d"), (5.5, "5.5 h"), (0.5, "30 min"), (0.001, "3.6 s")])
def test_times_in_words(hours, text):
    assert scale.in_hours(hours) == text


def test_the_committed_page_is_made_of_the_committed_rates():
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.page(page) == page
