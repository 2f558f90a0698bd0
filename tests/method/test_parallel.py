"""Batches shared out over processes: the same samples, features and choice, to the byte, for any number of them."""

import json

import numpy as np
import pytest

from ifm.hardware.parallel import shared_batches
from tests.support import sharing_worker
from tests.support.launch import one_process, torchrun


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_take_turns_and_all_see_every_batch_in_order(processes, monkeypatch):
    """gather_object stands in for the processes of one round: it asks each rank's own work."""
    batches = [range(0, 4), range(4, 8), range(8, 11)]
    rounds = []

    class First:
        num_processes, process_index = processes, 0

    def gather(mine):
        start = len(rounds) * processes
        rounds.append(mine)
        others = [(rank, batch) for rank, batch in enumerate(batches[start : start + processes]) if rank]
        return mine + others

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    accelerator = None if processes == 1 else First()
    found = list(shared_batches(lambda members: (0, members), count=11, batch_size=4, accelerator=accelerator))
    assert [members for members, _ in found] == batches
    assert [members for _, (_, members) in found] == batches
    assert [rank for _, (rank, _) in found] == [i % processes for i in range(3)]
    assert all(len(mine) == 1 for mine in rounds)


@pytest.mark.parametrize("several", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_samples_and_features_are_the_same_in_one_two_and_three_processes(several, tmp_path):
    """Samples end in the main process's file; every process has all features, and none has done all the work."""
    found = {}
    for count in (1, several):
        out = tmp_path / f"{count}"
        out.mkdir()
        if count == 1:
            with one_process():
                sharing_worker.main(out)
        else:
            done = torchrun(sharing_worker, count, out)
            assert done.returncode == 0, done.stderr[-3000:]
        notes = [json.loads((out / f"digests-{rank}.json").read_text()) for rank in range(count)]
        assert all(note["digests"] == notes[0]["digests"] for note in notes)
        assert sorted(n for note in notes for n in note["worked"]) == [3, 5, 5, 5, 5]
        assert all(note["worked"] for note in notes)
        found[count] = notes[0]["digests"], np.load(out / "samples.npy").tobytes()
    assert found[1] == found[several]
