"""The paper's persistent anchors: size, start, resets, and the same bits in any number of processes."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from ifm import anchors
from ifm.random import EndlessShuffle, Streams


def make_bank(size=10, shape=(1, 2, 2), seed=5):
    return anchors.AnchorBank(size, shape, seed=seed)


def visit_of(rows, n, mirrored=None):
    return anchors.Visit(np.array(rows), np.array(n), mirrored)


def test_the_bank_takes_two_bytes_a_number_and_no_memory_before_it_is_used():
    """CIFAR-10's size: 307.2 MB, none of it touched until a row is refreshed. In a process whose memory is new."""
    pytest.importorskip("resource")
    code = """
import resource
import numpy as np
from ifm import anchors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bank = anchors.AnchorBank(50_000, (3, 32, 32), seed=0)
visit = anchors.Visit(np.array([7, 49_999]), np.array([1, 1]))
bank.write(visit, bank.read(visit, np.arange(2)))
sizes = bank.nbytes, bank.state()[bank.KEY].nbytes
print(*sizes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held, kept, grown = map(int, done.stdout.split())
    assert held == kept == 307_200_000
    assert grown < 50_000_000


def test_a_row_starts_as_noise_of_its_seed_and_index():
    rows = np.array([4, 0, 9])
    found = make_bank().read(visit_of(rows, [1, 1, 1]), np.arange(3))
    assert torch.equal(found, Streams(5, "bank", rows).normal((1, 2, 2)).half())
    assert torch.equal(make_bank().read(visit_of([9, 4], [1, 1]), np.arange(2)), found[[2, 0]])  # in any order
    assert not torch.equal(make_bank(seed=6).read(visit_of(rows, [1, 1, 1]), np.arange(3)), found)
    many = anchors.AnchorBank(4000, (5,), seed=0)
    drawn = many.read(visit_of(range(4000), [1] * 4000), np.arange(4000)).float()
    assert drawn.mean().abs() < 0.03
    assert (drawn.std() - 1).abs() < 0.03


def test_a_row_is_what_was_last_written():
    bank = make_bank()
    values = torch.randn(3, 1, 2, 2).half()
    bank.write(visit_of([4, 0, 9], [1, 1, 1]), values)
    assert torch.equal(bank.read(visit_of([9, 0, 3, 4], [2, 2, 1, 2]), np.arange(4))[[3, 1, 0]], values)


def test_a_sample_twice_in_a_batch():
    """Where epochs meet: both read what stood before the batch, the later position stays."""
    bank = make_bank()
    visit = visit_of([3, 3], [1, 2])
    first = bank.read(visit, np.arange(2))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[:1], bank.start(np.array([3])))
    values = torch.randn(2, 1, 2, 2).half()
    bank.write(visit, values)
    assert torch.equal(bank.read(visit_of([3], [3]), np.arange(1)), values[1:])


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (3, 8), (5, 1)])
def test_visits_and_first_visits_by_counting(size, batch):
    """The pure functions of (seed, step) against a record of every batch."""
    order = EndlessShuffle(size, batch, seed=2)
    count, before = np.zeros(size, int), set()
    for step in range(9):
        rows, n = order.batch(step), order.visits(step)
        for row, k in zip(rows, n, strict=True):
            count[row] += 1
            assert k == count[row]
        unwritten = anchors.unwritten(anchors.Visit(rows, n))
        assert unwritten.tolist() == [row not in before for row in rows.tolist()]
        before |= set(rows.tolist())


def bank_policy(reset=0.0, **bank):
    return anchors.BankAnchor(make_bank(**bank), reset_probability=reset)


def ask(policy, visit, step=0):
    positions = torch.arange(len(visit.rows))
    streams = Streams(1, "anchor", positions.tolist(), step=step)
    x_t = torch.zeros(len(positions), *policy.bank.shape)
    return policy(None, x_t, torch.ones(len(positions)), generator=streams, positions=positions, visit=visit)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (0.25, 16), (0.1, 6), (1.0, 64)])
def test_resets_have_their_exact_share_and_refresh_the_row_all_the_same(probability, expected):
    policy = bank_policy(probability, size=64)
    first = visit_of(range(64), [1] * 64)
    ask(policy, first)
    policy.refresh(torch.full((64, 1, 2, 2), 3.0))
    again = visit_of(range(64), [2] * 64)
    x_anchor = ask(policy, again, step=1)
    reset = (x_anchor != 3.0).flatten(1).any(dim=1)
    assert reset.sum() == expected
    noise = Streams(1, "anchor", range(64), step=1).normal((1, 2, 2))
    assert torch.equal(x_anchor[reset], noise[reset])
    assert torch.equal(policy.visits(torch.arange(64), again), torch.where(reset, 1, 2))
    policy.refresh(torch.full((64, 1, 2, 2), 5.0))
    kept = policy.bank.read(visit_of(range(64), [3] * 64), np.arange(64))
    assert bool((kept == 5.0).all())


def test_mirrored_images_have_mirrored_anchors():
    """A row belongs to the image as stored: shown mirrored, it is mirrored, and so is the estimate on its way back."""
    policy = bank_policy()
    estimate = torch.arange(8.0).reshape(2, 1, 2, 2)
    ask(policy, visit_of([1, 2], [1, 1], torch.tensor([True, False])))
    policy.refresh(estimate)
    shown = ask(policy, visit_of([1, 2], [2, 2], torch.tensor([False, True])))
    assert torch.equal(shown, estimate.flip(-1))


def test_an_estimate_that_float16_cannot_hold_leaves_its_row():
    policy = bank_policy()
    start = policy.bank.start(np.arange(3)).float()
    ask(policy, visit_of(range(3), [1] * 3))
    policy.refresh(torch.tensor([1.0, 1e5, float("nan")]).view(3, 1, 1, 1).expand(3, 1, 2, 2))
    found = ask(policy, visit_of(range(3), [2] * 3))
    assert torch.equal(found, torch.cat([torch.ones(1, 1, 2, 2), start[1:]]))


def test_the_bank_is_no_part_of_a_network_and_refuses_another_ones_state():
    policy = anchors.BankAnchor(anchors.AnchorBank(10, (1, 8, 8), seed=0), reset_probability=0.1)
    assert not isinstance(policy, torch.nn.Module)
    state = policy.state()
    with pytest.raises(ValueError, match=r"float16 \[10, 1, 8, 8\], not float16 \[11, 1, 8, 8\]"):
        anchors.AnchorBank(11, (1, 8, 8), seed=0).restore(state)
    with pytest.raises(ValueError, match="needs to know which samples"):
        policy(None, torch.zeros(1, 1, 8, 8), torch.ones(1), generator=None, positions=torch.arange(1))


class Rank:
    """One of several processes of a single one: it records what it gives, and gets what all gave."""

    def __init__(self, rank, processes):
        self.rank, self.processes, self.is_main = rank, processes, rank == 0


def together(calls):
    """Runs the ranks' calls as threads that meet in their collectives."""
    given, barrier = [None] * len(calls), threading.Barrier(len(calls))
    results = [None] * len(calls)

    def meet(rank, x):
        given[rank] = x.clone()
        barrier.wait(60)
        everything = list(given)
        barrier.wait(60)
        return everything

    def work(rank):
        exchange = Rank(rank, len(calls))
        exchange.gather = lambda x: torch.cat(meet(rank, x))
        exchange.total = lambda x: torch.stack(meet(rank, x)).sum(0, dtype=x.dtype)
        results[rank] = calls[rank](exchange)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(calls))]
    [t.start() for t in threads]
    [t.join(30) for t in threads]
    return results


def live(exchange, *, steps, size=11, batch=12, restore=None, first=0):
    """A bank that lives through some steps of shuffled batches: what it read, bytes, whole state."""
    order = EndlessShuffle(size, batch, seed=3)
    bank = anchors.AnchorBank(size, (1, 2, 3), seed=4, exchange=exchange)
    bank.CHUNK_BYTES = 24  # two rows
    if restore is not None:
        bank.restore(restore)
    each = batch // (exchange.processes if exchange else 1)
    positions = np.arange(each) + each * (exchange.rank if exchange else 0)
    read = []
    for step in range(first, steps):
        visit = anchors.Visit(order.batch(step), order.visits(step))
        x = bank.read(visit, positions)
        read.append(x)
        bank.write(visit, (x.float() * -0.7 + torch.from_numpy(positions).view(-1, 1, 1, 1) * (step % 2)).half())
    return read, bank.nbytes, {name: t.clone() for name, t in bank.state().items()}


@pytest.mark.parametrize("size", [11, 50])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_bank_is_the_same_for_any_number_of_processes(processes, size):
    """Bit for bit, negative zeros included; shards that add up; a state that any other number of processes takes on."""
    read, nbytes, state = live(None, steps=7, size=size)
    ranks = together([lambda e: live(e, steps=7, size=size)] * processes)
    assert sum(r[1] for r in ranks) == nbytes == size * 12
    assert max(r[1] for r in ranks) <= -(-size // processes) * 12
    for step in range(7):
        parts = torch.cat([r[0][step] for r in ranks])
        assert torch.equal(parts.view(torch.int16), read[step].view(torch.int16))
    whole = ranks[0][2]["anchor.bank"]
    assert torch.equal(whole.view(torch.int16), state["anchor.bank"].view(torch.int16))
    assert all(r[2] == {} for r in ranks[1:])
    # four steps here, three more there
    half = live(None, steps=4, size=size)[2]
    on = together([lambda e: live(e, steps=7, size=size, first=4, restore=half)] * processes)
    assert torch.equal(on[0][2]["anchor.bank"], state["anchor.bank"])
