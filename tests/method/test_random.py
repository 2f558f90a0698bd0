"""Draws belong to (seed, purpose, step, index), whoever makes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from ifm.random import EndlessShuffle, StepStreams, Streams, stream


def test_rows_do_not_depend_on_the_batch():
    whole = Streams(7, "noise", range(10), step=3)
    z, u, c = whole.normal((2, 3)), whole.uniform(), whole.chi_square(5)
    part = Streams(7, "noise", [4, 8], step=3)
    assert torch.equal(part.normal((2, 3)), z[[4, 8]])
    assert torch.equal(part.uniform(), u[[4, 8]])
    assert torch.equal(part.chi_square(5), c[[4, 8]])


def test_streams_are_those_of_their_key_whatever_was_drawn_before():
    """Generators are used again; two at a time stay apart, and each starts as a new one would."""
    for step in range(3):
        one, other = Streams(7, "noise", range(5), step=step), Streams(7, "anchor", range(5), step=step)
        fresh = [stream(7, "anchor", step=step, index=i).standard_normal(3, dtype=np.float32) for i in range(5)]
        assert np.array_equal(other.normal((3,)).numpy(), np.stack(fresh))
        odd = one.uniform()  # leaves half of a block behind
        fresh = [stream(7, "noise", step=step, index=i).random() for i in range(5)]
        assert odd.tolist() == torch.tensor(fresh, dtype=torch.float32).tolist()


def test_what_is_drawn_ahead_is_what_would_be_drawn(monkeypatch):
    """Steps that ask as the last one did, for more, for less, for something else, and one that is asked twice."""
    whole = [("normal", (2, 3)), ("uniform",), ("chi_square", 5)]
    asked = [whole, whole, whole, [*whole, ("normal", ())], whole[:1], whole, [("uniform",), *whole], whole[::-1], []]
    ahead = StepStreams(7, "noise", [3, 1], device=torch.device("cuda"))
    for step, calls in [*enumerate(asked), (5, whole), (20, whole)]:
        found, fresh = ahead.at(step), Streams(7, "noise", [3, 1], step=step)
        assert len(found) == 2
        if step == 2:  # by what the steps before asked for
            monkeypatch.setattr(found, "_own", None)  # all of it was made by the thread
        for name, *given in calls:
            assert torch.equal(getattr(found, name)(*given), getattr(fresh, name)(*given))


def test_streams_differ_by_every_part_of_their_key():
    keys = [
        {"seed": 1, "purpose": "noise"},
        {"seed": 2, "purpose": "noise"},
        {"seed": 1, "purpose": "anchor"},
        {"seed": 1, "purpose": "noise", "step": 1},
        {"seed": 1, "purpose": "noise", "index": 1},
        {"seed": 1, "purpose": "noise", "step": 2**63},
    ]
    draws = [tuple(stream(**key).random(4)) for key in keys]
    assert len(set(draws)) == len(keys)


def test_laws():
    s = Streams(0, "noise", range(20_000))
    assert stats.kstest(s.normal(()).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(s.uniform().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(s.chi_square(3.5).numpy(), stats.chi2(3.5).cdf).pvalue > 1e-3
    pixels = Streams(0, "noise", range(100)).normal((200,)).numpy()
    assert abs(np.corrcoef(pixels)[np.triu_indices(100, 1)]).max() < 0.35


def test_a_uniform_number_is_below_1_in_float32_too():
    """Rounding would make 1 of what is nearer to it than 2^-25: an index one too large, once in 10^7 draws."""
    s = Streams(0, "noise", range(3))
    own = s._streams
    s._streams = [SimpleNamespace(random=lambda x=x: x) for x in (1 - 2**-53, 1 - 2**-25, 0.5)]
    found = s.uniform().tolist()
    s._streams = own  # which go back to where others take them from
    assert found == [1 - 2**-24, 1 - 2**-24, 0.5]


def test_seed_out_of_range():
    with pytest.raises(ValueError, match="seed must be in"):
        stream(-1, "noise")


@pytest.mark.parametrize(("size", "batch"), [(10, 3), (7, 7), (5, 16), (1, 4)])
def test_endless_shuffle_visits_all_equally_and_is_a_function_of_the_step(size, batch):
    order = EndlessShuffle(size, batch, seed=3)
    steps = size * 4  # whole epochs: size * 4 * batch samples
    visits = np.concatenate([order.batch(step) for step in range(steps)])
    assert np.bincount(visits, minlength=size).tolist() == [4 * batch] * size
    assert sorted(visits[:size]) == list(range(size))
    backwards = [EndlessShuffle(size, batch, seed=3).batch(step) for step in reversed(range(steps))]
    assert np.array_equal(np.concatenate(backwards[::-1]), visits)


def test_epochs_differ():
    order = EndlessShuffle(100, 100, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(1))


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        EndlessShuffle(0, 4, seed=0)
