"""The benchmarks' arithmetic: ratios, turns, FLOPs, rows and tables. No time is asserted."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import __main__ as program
from benchmarks import peers, sampling, table, training
from benchmarks.results import Result, Skipped, Target, document, hardware, versions
from benchmarks.subjects import Options, preset, subjects
from benchmarks.timing import Apart, Spread, StepClock, interleave, speed_ratio, timed

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = Options(CPU, rounds=1, quick=True)


# --- timing ---------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_warm_ups_do_not_count():
    order, number = [], count()

    def contestant(name):
        def once():
            order.append(name)
            return float(next(number))

        return once

    seconds = interleave({name: contestant(name) for name in "AB"}, rounds=3, warmups=1)
    assert "".join(order) == "ABABABAB"
    assert seconds == {"A": [2, 4, 6], "B": [3, 5, 7]}
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interleave({}, rounds=0)


def test_a_call_is_timed_as_the_mean_of_its_calls():
    clock, done = iter([10.0, 16.0]), []
    once = timed(lambda: done.append(1), device=CPU, calls=3, clock=lambda: next(clock))
    assert once() == 2.0
    assert len(done) == 3


def test_the_ratio_is_of_speeds_in_one_round():
    """A machine that slows down five times in the last round moves neither ratio nor quartiles."""
    assert speed_ratio([1.0, 2.0, 10.0], [2.0, 4.0, 20.0]) == Spread(2.0, 2.0, 2.0)
    assert speed_ratio([2.0], [1.0]).median == 0.5
    with pytest.raises(ValueError, match="longer"):
        speed_ratio([1.0], [1.0, 2.0])


def process_of_its_own():
    return lambda: float(os.getpid())


def test_a_contestant_apart_is_another_process():
    with Apart(process_of_its_own) as contestant:
        assert contestant() == contestant() != os.getpid()


def test_quartiles():
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)


def test_a_step_lasts_from_pass_to_pass_with_gradient():
    """The fake clock is read at passes 0 and 3: 3 steps in 12 seconds; passes without gradient are not counted."""
    network, times = nn.Linear(1, 1), iter([100.0, 112.0])
    with StepClock(network, steps=3, device=CPU, clock=lambda: next(times)) as clock:
        for _ in range(5):
            with torch.no_grad():
                network(torch.ones(1))
            network(torch.ones(1))
    assert clock.seconds == 4.0
    times = iter([100.0, 112.0])
    with StepClock(network, steps=3, device=CPU, warm=2, clock=lambda: next(times)) as late:
        for _ in range(2):
            network(torch.ones(1))
        assert next(times) == 100.0  # nobody has looked yet
        times = iter([100.0, 112.0])
        for _ in range(4):
            network(torch.ones(1))
    assert late.seconds == 4.0
    network(torch.ones(1))  # the hook is gone
    with StepClock(network, steps=3, device=CPU) as short:
        network(torch.ones(1))
    with pytest.raises(ValueError, match="3 steps need 4 passes to be timed, got 1"):
        _ = short.seconds


# --- what is counted ------------------------------------------------------------------------------------------------


def test_flops_of_a_known_network():
    """Linear 5 -> 7 on a batch of 3: 2 * 3 * 5 * 7 forward, as much for the weight's gradient; the input needs none.

    The second layer, 7 -> 2, has a gradient for its input too.
    """
    network, x = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)), torch.randn(3, 5)
    flops = training.flops_of_step(lambda steps: [network(x).sum().backward() for _ in range(steps)])
    assert flops == 2 * (2 * 3 * 5 * 7) + 3 * (2 * 3 * 7 * 2)


def test_peaks_are_seconds_for_an_operation():
    assert all(0 < make(QUICK)() < 1e-6 for make in training.PEAKS.values())


def test_the_preset_is_the_digits_whatever_params_hold():
    (subject,) = subjects(QUICK)
    assert subject.shape == (1, 8, 8)
    assert subject.images().shape == (1437, 1, 8, 8)
    assert preset("cifar10").network.channels == [256, 256, 256]


def test_the_plain_loop_does_what_fit_does():
    """Same loss, same draws: after three steps without schedule the two loops' weights agree."""
    (subject,) = subjects(QUICK)
    trained, settings = [], training.settings_for
    flat = {
        "lr_decay": "none",
        "warmup_steps": 0,
        "ema_decay": 0.0,
    }  # the average is the weights
    for patched in (False, True):
        teacher, train = training.teacher_training(subject, QUICK)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "settings_for", lambda s, n: training.replace(settings(s, n), **flat))
            if patched:
                patch.setattr("ifm.training.teacher.fit", training.bare_fit)
            train(3)
        trained.append([p.detach().double() for p in teacher.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize("name", peers.TRAINING)
def test_a_peers_loss_reaches_every_weight(name):
    """On the network that it is timed with; skipped where the peer is not installed."""
    (subject,) = subjects(QUICK)
    try:
        loss = peers.TRAINING[name](peers.Batches(subject.images(), 4, CPU))
    except Skipped as reason:
        pytest.skip(str(reason))
    network = subject.teacher().network
    loss(network, 0).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("name", peers.SOLVERS)
def test_a_peers_solver_takes_as_many_evaluations(name):
    calls = []

    class Network(nn.Module):
        def forward(self, x, t):
            assert t.shape == (len(x),)
            calls.append(1)
            return torch.zeros_like(x)

    try:
        out = peers.SOLVERS[name](Network(), torch.ones(2, 1, 8, 8), 7)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert out.shape == (2, 1, 8, 8)
    assert len(calls) == 7


def test_the_consistency_scheduler_takes_as_many_evaluations():
    calls = []

    def network(x, t):
        assert t.shape == (len(x),)
        calls.append(float(t[0]))
        return torch.zeros_like(x)

    assert peers.consistency(network, torch.ones(2, 1, 8, 8), 4).shape == (2, 1, 8, 8)
    assert len(calls) == len(set(calls)) == 4


EDM = """
import torch
class EDMLoss:
    def __call__(self, net, images, labels=None, augment_pipe=None):
        sigma = torch.full([len(images), 1, 1, 1], 0.5)
        return (net(images, sigma, labels, augment_labels=None) - images) ** 2
"""


@pytest.fixture
def _edm_is_forgotten():
    yield
    for name in ("training", "training.loss"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_edm_is_forgotten")
def test_edm_is_taken_from_a_checkout(tmp_path):
    """At sigma = sigma_data c_skip = 1/2 and c_out = sqrt(1/8): with F = 0 the loss is x^2 / 4."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "loss.py").write_text(EDM)
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8).numpy()  # -1 at work
    loss = peers.edm_loss(peers.Batches(images, 6, CPU), folder=tmp_path)
    assert float(loss(lambda x, c_noise: torch.zeros_like(x), 0)) == pytest.approx(0.25)
    assert str(tmp_path) not in sys.path


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_has_rate_ratio_and_verdict():
    seconds, peers_seconds, target = [1.0, 2.0, 4.0], [3.0, 6.0, 12.0], Target("ratio", ">=", 4)
    row = Result.rate("x", "images/s", amount=10, seconds=seconds, peer="p", peers=peers_seconds, target=target)
    assert row == Result(
        "x", 5.0, "images/s", "p", 3.0, "ratio >= 4", False, "quartiles 3.75 to 7.5 in 3 rounds; ratio 3 to 3"
    )


@pytest.mark.parametrize(
    ("target", "value", "ratio", "holds"),
    [
        (Target("ratio", ">=", 0.95), 1.0, 0.95, True),
        (Target("ratio", ">=", 0.95), 1.0, 0.94, False),
        (Target("value", "<=", 1.5), 1.5, None, True),
        (Target("value", "<=", 1.5), 1.6, None, False),
    ],
)
def test_targets(target, value, ratio, holds):
    assert target.holds(value=value, ratio=ratio) is holds


def test_a_target_on_a_missing_ratio_is_an_error():
    with pytest.raises(ValueError, match="ratio >= 1 needs a ratio"):
        Target("ratio", ">=", 1).holds(value=1.0, ratio=None)


@contextmanager
def here(make):
    """A contestant in this process: one of its own imports for ten seconds."""
    yield make()


def missing(batches):
    raise Skipped("peer cannot be imported (No module named 'peer')")


def test_what_cannot_be_run_is_a_row_with_its_reason(tmp_path, monkeypatch):
    """A missing peer, an empty folder for --edm, none at all: rows without a measurement, and no verdict."""
    monkeypatch.setattr(peers, "TRAINING", {"peer": missing})
    rows = [*training.against_peers(QUICK)]
    monkeypatch.setattr(training, "Apart", here)
    rows += training.against_peers(Options(CPU, 1, True, edm=tmp_path / "edm"))
    assert all(row.value is row.ratio is row.holds is None and row.target == "ratio >= 1" for row in rows)
    notes = [row.note for row in rows]
    assert notes[0] == "skipped: peer cannot be imported (No module named 'peer')"
    assert notes[1] == "skipped: no --edm PATH was given"
    assert notes[3].startswith("skipped: edm holds no EDM that can be imported (No module named 'training")


def test_on_a_gpu_the_fastest_peer_comes_once_more_compiled(monkeypatch):
    """And the goal against plain ones is higher there."""
    asked, ratios = [], {"slow": 3.0, "fast": 1.5, "missing": None}

    def against(peer, make_loss, subject, options, *, target, compiled=False):
        asked.append((peer, str(target), compiled))
        return Result(f"{peer} {compiled}", None, "images/s", ratio=ratios[peer])

    monkeypatch.setattr(peers, "TRAINING", dict.fromkeys(ratios))
    monkeypatch.setattr(training, "subjects", lambda options: [None])
    monkeypatch.setattr(training, "_against", against)
    rows = [*training.against_peers(Options(torch.device("cuda"), 1, True))]
    assert len(rows) == 5
    plain = [(peer, "ratio >= 1.2", False) for peer in ratios]
    assert asked == [*plain, ("fast", "ratio >= 1", True)]


def test_a_missing_solver_is_a_row_with_its_reason(monkeypatch):
    def missing(network, x_T, nfe):
        raise Skipped("gone")

    monkeypatch.setattr(peers, "SOLVERS", {"peer": missing})
    (row,) = sampling.solvers(QUICK)
    assert (row.value, row.note) == (None, "skipped: gone")


def test_a_document_is_plain_json():
    rows = [Result.of("a", 1.5, "s"), Result.skipped("b", "why")]
    made = document(rows, hardware=hardware(CPU), versions=versions(), command="python -m benchmarks")
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert list(made) == ["hardware", "versions", "command", "date", "results"]
    keys = ["name", "value", "unit", "peer", "ratio", "target", "holds", "note"]
    assert [list(row) for row in made["results"]] == [keys, keys]
    assert set(made["hardware"]) == {"cpu", "cores", "threads", "memory_gb", "gpu", "load_before"}
    assert made["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


# --- table and program ----------------------------------------------------------------------------------------------

RUN = {
    "hardware": {"cpu": "C", "cores": 2, "threads": 1, "memory_gb": 25.2, "gpu": None, "load_before": 0.5},
    "versions": {"python": "3.11", "torch": "2"},
    "command": "python -m benchmarks",
    "date": "2026-01-02",
    "results": [
        {
            **{"name": "a", "value": 1234.5, "unit": "images/s", "peer": "p", "ratio": 0.9449},
            **{"target": "ratio >= 0.95", "holds": False, "note": "n"},
        },
        {
            **{"name": "b", "value": None, "unit": "", "peer": None, "ratio": None},
            **{"target": None, "holds": None, "note": "skipped: why"},
        },
    ],
}
TABLE = """### C

C, 2 cores, 1 threads, 25.2 GB; load 0.5 before the start; 2026-01-02, `python -m benchmarks`.
python 3.11, torch 2.

| what | value | against | ratio | target | met | note |
|---|---|---|---|---|---|---|
| a | 1,234 images/s | p | 0.945 | ratio >= 0.95 | **no** | n |
| b |  |  |  |  |  | skipped: why |"""


def test_the_table_is_made_from_the_file():
    assert table.section(RUN) == TABLE
    page = "before\n<!-- results -->\nold\n<!-- results -->\nafter\n"
    made = table.page(page, [RUN])
    assert made == f"before\n<!-- results -->\n{TABLE}\n<!-- results -->\nafter\n"
    assert table.page(made, [RUN]) == made
    with pytest.raises(ValueError, match="must have <!-- results --> twice"):
        table.page("nothing", [RUN])


def test_the_committed_page_is_made_of_the_committed_results():
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.page(page, table.results()) == page


def test_files_are_named_by_the_gpu():
    assert program.result_file(None).name == "cpu.json"
    assert program.result_file("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_the_command_is_recorded_without_folders():
    assert program._command(["--edm", "/some/where/edm"]) == "python -m benchmarks --edm edm"


def test_an_unknown_benchmark_is_named():
    with pytest.raises(SystemExit, match="no benchmark nothing; there are step, loop"):
        program.main(["--only", "nothing", "--device", "cpu"])


def test_a_run_keeps_what_it_has_and_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
    """The file is written after each benchmark; one that fails, or has no time left, is a row that says so."""
    seen, out = [], tmp_path / "gpu.json"

    def good(options):
        yield Result.of("good", 1.0, "s")

    def bad(options):
        seen.append(json.loads(out.read_text())["results"][0]["name"])
        raise RuntimeError("no room\nhere")
        yield

    monkeypatch.setattr(program, "benchmarks", lambda: {"step": good, "frechet": bad, "loop": good})
    with pytest.raises(SystemExit, match="failed: frechet"):
        program.main(["--device", "cpu", "--quick", "--out", str(out)])
    rows = {row["name"]: row["note"] for row in json.loads(out.read_text())["results"]}
    assert seen == ["good"]
    assert rows["frechet"] == "skipped: failed: no room here"
    monkeypatch.setattr(program, "SETS", {"short": ("step",)})
    program.main(["--device", "cpu", "--only", "short", "--minutes", "1e-12", "--out", str(out)])
    assert [row["note"] for row in json.loads(out.read_text())["results"]] == ["skipped: 1e-12 minutes were over"]


@pytest.mark.slow
def test_a_quick_run_measures_everything(tmp_path):
    out = tmp_path / "out.json"
    words = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cpu", "--out", str(out)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"IFM_TRACKING": "off"})
    rows = json.loads(out.read_text())["results"]
    assert len(rows) > 20
    assert all(row["value"] is not None or row["note"].startswith("skipped: ") for row in rows)
