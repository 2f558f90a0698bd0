"""Signs of life outside a terminal: how often, what they say, and that they change nothing."""

import io
import re
import sys
import time
from pathlib import Path

import pytest

from ifm import progress as module
from ifm.progress import Lines, at_work, gap, in_words, is_line, progress
from pipeline.studies.experiments import last_lines

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_every_thirty_seconds_with_what_is_known(clock):
    said: list[str] = []
    bar = Lines(range(100, 500), label="teacher ve", unit="step", initial=100, total=500, clock=clock, say=said.append)
    for step in bar:
        clock.now += 0.5
        if step == 120:
            bar.set_postfix(loss="0.25")
    assert said[:2] == [
        "teacher ve: step 160 of 500, loss 0.25, 2.0 step/s, 3 min left",  # 60 steps in 30 s: 340 are left
        "teacher ve: step 220 of 500, loss 0.25, 2.0 step/s, 2 min left",
    ]
    assert len(said) == 6
    assert all(is_line(line) for line in said)


def test_short_work_is_silent_and_a_day_has_some_hundred_lines(clock):
    said: list[str] = []
    for _ in Lines(range(29), label="x", clock=clock, say=said.append):
        clock.now += 1
    assert said == []
    for _ in Lines(range(24 * 360), label="x", clock=clock, say=said.append):
        clock.now += 10
    assert 200 < len(said) < 500
    assert [gap(t) for t in (0, 1500, 3000, 30_000, 1e6)] == [30, 30, 60, 600, 600]
    assert gap(1e6, every=1000) == 1000


def test_updates_by_hand_an_unknown_total_and_slow_units(clock):
    said: list[str] = []
    with Lines(label="fetch", unit="img", clock=clock, say=said.append) as bar:
        clock.now += 60
        bar.update(7)
        bar.set_postfix_str("at work")
        clock.now += 60
        bar.n = 12
    assert said == ["fetch: img 7, 8.6 s each", "fetch: img 12, at work, 10 s each"]
    slow = Lines(label="experiments", unit="exp", total=3, clock=clock, say=said.append)
    clock.now += 3600
    slow.update()
    assert said[-1] == "experiments: exp 1 of 3, 60 min each, 2.0 h left"
    fast = Lines(label="features", unit="img", total=10**6, clock=clock, say=said.append)
    clock.now += 30
    fast.update(370_000)
    assert said[-1] == "features: img 370000 of 1000000, 12,333 img/s, 51 s left"
    assert all(is_line(line) for line in said)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (12.4, "12 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (3600, "60 min"),
        (9000, "2.5 h"),
    ],
)
def test_times_in_words(seconds, said):
    assert in_words(seconds) == said


def test_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch):
    from accelerate.state import PartialState

    PartialState(cpu=True)  # accelerate's bar asks it who the main process is
    assert isinstance(progress(range(3), label="x"), Lines)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), label="x", unit="step")) == [0, 1, 2]
    assert "3/3" in terminal.getvalue()


def test_only_the_main_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    module.tell("x")
    with at_work("y"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    module.tell("x")
    assert capsys.readouterr().err == "x\n"


def test_work_without_any_progress_says_that_it_runs_and_how_long_it_took():
    said: list[str] = []
    with at_work("diagnose-ve", every=0.05, say=said.append):
        time.sleep(0.4)
    assert len(said) >= 2
    assert all(re.match(r"diagnose-ve: at work for \d", line) and is_line(line) for line in said[:-1])
    assert re.match(r"diagnose-ve: done in \d", said[-1])
    with pytest.raises(ValueError, match="broken"), at_work("x", say=said.append):
        raise ValueError("broken")
    assert not said[-1].startswith("x: done")


def test_a_failed_experiments_message_is_not_lost_behind_them():
    log = (
        "Running stage 'teacher@ve':\n> python -m pipeline.stages.teacher ve\n"
        "teacher-ve: data/processed is damaged\nteacher ve: step 60 of 100, loss 0.5, 2 step/s, 20 s left\n"
        "teacher-ve: at work for 3 min\nERROR: failed to reproduce 'teacher@ve'\n"
    )
    assert last_lines(log) == "teacher-ve: data/processed is damaged; ERROR: failed to reproduce 'teacher@ve'"
    for line in ("fetch: 1797 images, 10 classes", "teacher-ve: goes on from step 250 of 500", "x: 3 of 4 failed"):
        assert not is_line(line)
