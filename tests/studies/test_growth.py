"""Growth curves: the fit on known data, what a limit says, every curve at its smallest. No time is asserted."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from benchmarks import __main__ as program
from benchmarks import data, growth, growth_page
from benchmarks.growth import CURVES, Growth, Point
from benchmarks.powers import PowerLaw
from benchmarks.subjects import Options
from ifm.anchors import AnchorBank
from ifm.data.arrays import ShardedArray

CPU = torch.device("cpu")
QUICK = Options(CPU, rounds=1, quick=True)
SIZES = (8, 16, 32, 64)


def law(exponent, *, factor=1.0, error=0.0, expected=1.0):
    return PowerLaw(factor, exponent, error, expected)


# --- the fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.0])
def test_an_exact_power_law_is_found(exponent):
    found = PowerLaw.fit(SIZES, [3 * n**exponent for n in SIZES], expected=2)
    assert (found.exponent, found.error) == (pytest.approx(exponent, abs=1e-12), pytest.approx(0, abs=1e-7))
    assert found.factor == pytest.approx(3)
    assert found.at(256) == pytest.approx(3 * 256**exponent)


def test_the_standard_error_is_that_of_a_regression():
    values = [0.1, 0.5, 1.4, 7.0]
    found, known = PowerLaw.fit(SIZES, values, expected=2), linregress(np.log(SIZES), np.log(values))
    assert found.exponent == pytest.approx(known.slope)
    assert found.error == pytest.approx(known.stderr)
    assert math.log(found.factor) == pytest.approx(known.intercept)
    assert str(law(1.234, error=0.056, expected=2)) == "1.23 ± 0.06 (2)"


@pytest.mark.parametrize(
    ("sizes", "values", "said"),
    [
        ((1, 2), (1, 2), "at least 3 points, got 2"),
        ((1, 2, 3), (1, 2), "at least 3 points"),
        ((1, 2, 3), (1, 0, 2), "above 0"),
        ((2, 2, 2), (1, 2, 3), "must differ"),
    ],
)
def test_what_no_law_can_be_fitted_to(sizes, values, said):
    with pytest.raises(ValueError, match=said):
        PowerLaw.fit(sizes, values, expected=1)


def test_where_a_law_reaches_a_value():
    assert law(2, factor=0.5).size_at(0.5 * 30**2) == pytest.approx(30)
    for flat in (law(0.0), law(-1.0), law(0.09), law(0.3, error=0.2), law(0.2, expected=0)):
        assert not flat.grows
        assert flat.size_at(1e9) == math.inf


# --- what binds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "memory", "said"),
    [
        (law(1, factor=1e-4), law(1, factor=1.0), "memory: 25 GB are full at 25,000 samples"),
        (law(2, factor=1e-3), law(0.0), "time: 10 s is reached at 100 samples"),
        (law(1), None, "time: 10 s is reached at 10 samples"),
        (law(0.0), law(0.0), "nothing of it grows"),
    ],
)
def test_the_first_limit(time, memory, said):
    assert growth.first_limit(time, memory, size="samples", patience=10, gigabytes=25) == said


def test_units():
    assert [growth.duration(s) for s in (5e-6, 0.0021, 3, 90, 7200, 2e5)] == [
        *("5 us", "2.1 ms", "3 s", "1.5 min", "2 h", "2.31 days")
    ]
    assert [growth.size_of(m) for m in (12.34, 2500)] == ["12.3 MB", "2.5 GB"]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_what_it_comes_to_can_be_said_with_and_without_memory(curve):
    for memory in (law(1), None):
        text = curve.at_scale(law(2, factor=1e-6), memory)
        assert "inf" not in text
        assert "nan" not in text


# --- curves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_curve_runs_at_its_smallest(curve, tmp_path):
    assert curve.make(curve.quick[0], QUICK, tmp_path)() > 0


def test_every_curve_has_four_sizes_that_grow():
    for curve in CURVES:
        assert len(curve.sizes) >= 4
        assert sorted({*curve.sizes}) == list(curve.sizes)
        assert len(curve.quick) >= 3


def test_peak_memory_is_that_of_the_size():
    """A bank of 20,000 rows of 3x32x32 in 16 bits is 123 MB; nothing else of its making is a third as large."""
    (bank,) = [curve for curve in CURVES if curve.make is growth.bank]
    found, held = growth.peak_of(bank, 20_000, QUICK), AnchorBank(20_000, growth.IMAGE, seed=0).nbytes / 1e6
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 0.98 * held <= found < 1.33 * held  # Linux counts pages by thread, and adds them up now and then


def test_a_curve_is_measured_and_read_back():
    (curve,) = [curve for curve in CURVES if curve.make is growth.reading]
    found = growth.measure(curve, QUICK)
    assert [p.size for p in found.points] == list(curve.quick)
    assert all(p.low <= p.seconds <= p.high for p in found.points)
    assert found.time == PowerLaw.fit(curve.quick, [p.seconds for p in found.points], expected=0)
    assert found.memory is None  # of a map it is the page cache's
    assert "the page cache binds" in found.binds
    assert Growth.read(json.loads(json.dumps(asdict(found)))) == found


def test_rows_are_written_a_block_at_a_time(tmp_path):
    block = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    data.write_rows(files, block, blocks=2)
    stored = ShardedArray(files, stage="trajectories")
    assert np.array_equal(stored[np.arange(12)], np.concatenate([block] * 4))


def test_waiting_for_rows_of_a_memory_map():
    (row,) = data.waiting(QUICK)
    assert row.value > 0
    assert row.ratio > 0
    assert "GB in the page cache; a batch of 64 is waited for" in row.note


# --- the page -------------------------------------------------------------------------------------------------------

MADE = Growth(
    name="sampling",
    size="samples",
    points=[Point(n, n / 1000, n / 1100, n / 900, 2.0 * n) for n in (1000, 2000, 4000)],
    time=law(1.0, factor=1e-3, error=0.01),
    memory=law(1.0, factor=2.0, error=0.02),
    binds="memory: full.",
)
DOCUMENT = {
    "hardware": {"cpu": "C", "cores": 2, "threads": 1, "memory_gb": 25.2, "gpu": None, "load_before": 0.5},
    "versions": {"python": "3.11"},
    "command": "python -m benchmarks --only growth",
    "date": "2026-01-02",
    "results": [asdict(MADE)],
}
SECTION = """### C

C, 2 cores, 1 threads, 25.2 GB; load 0.5 before the start; 2026-01-02, `python -m benchmarks --only growth`.
python 3.11.

![Time and memory against size, relative to the smallest, log-log](images/growth-cpu.svg)

| what | by | sizes | seconds | exponent (expected) | MB | exponent (expected) |
|---|---|---|---|---|---|---|
| sampling | samples | 1,000 to 4,000 | 1 to 4 | 1.00 ± 0.01 (1) | 2,000 to 8,000 | 1.00 ± 0.02 (1) |

What binds first:

- **sampling**: memory: full."""


def test_the_page_is_made_from_the_file():
    page = "before\n<!-- results -->\nold\n<!-- results -->\nafter\n"
    made = growth_page.page(page, {"growth-cpu": DOCUMENT})
    assert made == f"before\n<!-- results -->\n{SECTION}\n<!-- results -->\nafter\n"
    with pytest.raises(ValueError, match=r"growth.md must have <!-- results --> twice"):
        growth_page.page("nothing", {})


def test_the_committed_page_is_made_of_the_committed_results():
    page = growth_page.PAGE.read_text(encoding="utf-8")
    assert growth_page.page(page, growth_page.results()) == page
    assert len(growth_page.results()) >= 1
    for name in growth_page.results():
        assert (growth_page.FIGURES / f"{name}.svg").is_file()


def test_the_figure_has_a_panel_for_each_curve_and_is_the_same_twice():
    text = growth_page.figure([MADE, MADE])
    assert text == growth_page.figure([MADE, MADE])
    assert text.count(">sampling</text>") == 2
    assert growth_page.figure([replace(MADE, memory=None)]).count(">peak memory</text>") == 0


def test_growth_has_a_file_of_its_own(tmp_path, monkeypatch):
    """Beside the other rows, or alone where it was asked for alone."""
    monkeypatch.setattr(program, "benchmarks", lambda: {"step": lambda options: [], "growth": lambda options: [MADE]})
    out = tmp_path / "out.json"
    program.main(["--only", "growth", "--quick", "--device", "cpu", "--out", str(out)])
    assert json.loads(out.read_text())["results"] == [json.loads(json.dumps(asdict(MADE)))]
