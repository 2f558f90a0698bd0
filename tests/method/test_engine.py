"""What makes training fast, fit and safe: it must not change what is learned."""

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ifm import anchors, dynamics
from ifm.data.arrays import ShardedArray
from ifm.errors import UserError
from ifm.files import StorageError, atomic_path, free_bytes, in_words, warn_of_space
from ifm.hardware import devices
from ifm.hardware.devices import Compiled, RowReader, compiles, memory_format
from ifm.hardware.processes import LaunchError, parts_of
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.networks.mlp import MLP
from ifm.networks.unet import build_unet
from ifm.objectives.data import data_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.trajectory import trajectory_phase
from ifm.random import Streams
from ifm.solver import solve_trajectory
from ifm.training import averages
from ifm.training.checkpoint import Checkpoints, Snapshot
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings, fit
from ifm.training.teacher import train_teacher
from ifm.trajectories import SolvedTrajectories, StoredTrajectories, generate, save_first, stored_bytes, stored_times

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
POINTS = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)


def settings(**changes):
    return TrainSettings(
        **{
            "steps": 6, "batch_size": 8, "lr": 1e-3, "lr_decay": "cosine", "warmup_steps": 2, "ema_decay": 0.9,
            "clip_grad_norm": 1.0, "log_every": 2, "checkpoint_every": 4,
        } | changes
    )  # fmt: skip


def unet(in_channels=1, **more):
    torch.manual_seed(0)
    return build_unet(
        image_size=8, in_channels=in_channels, out_channels=1, channels=[8, 8], layers_per_block=1,
        attention=[False, False], dropout=0.0, norm_groups=4, **more,
    )  # fmt: skip


def teacher(**changes):
    model = Teacher(unet(), dynamics.build("ve"))
    result = train_teacher(Accelerator(cpu=True), model, IMAGES, settings=settings(**changes), random_flip=True, seed=1)
    return model.state_dict(), result


def point_teacher(**changes):
    torch.manual_seed(0)
    model = Teacher(MLP(in_features=2, out_features=2, width=16, layers=2), dynamics.build("rf"))
    result = train_teacher(
        Accelerator(cpu=True), model, POINTS, settings=settings(**changes), random_flip=False, seed=1
    )
    return model.state_dict(), result


PAIRS = {"random_flip": True, "seed": 1, "batch_size": 8}


def on_data(**changes):
    """The bank and the mixed schedule: what is kept of each sample must not depend on the parts."""
    flow = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    accelerator = Accelerator(cpu=True)
    policy = anchors.BankAnchor(anchors.AnchorBank(len(IMAGES), (1, 8, 8), seed=1), reset_probability=0.25)
    phase = data_phase(accelerator, flow, IMAGES, distance="pseudo_huber", huber_c=None, mixed=True, **PAIRS)
    result = train_flow(accelerator, flow, [phase], policy=policy, settings=settings(**changes), seed=1)
    return flow.state_dict() | {"bank": policy.state()["anchor.bank"].float()}, result


def on_intervals(**changes):
    flow = IntervalFlow(unet(2, two_times=True), dynamics.build("rf"), takes_anchor=True)
    accelerator = Accelerator(cpu=True)
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 1.0}
    phase = interval_phase(accelerator, flow, IMAGES, **how, **PAIRS)
    policy = anchors.SelfAnchor(0.5)
    result = train_flow(accelerator, flow, [phase], policy=policy, settings=settings(**changes), seed=1)
    return flow.state_dict(), result


# --- memory ---------------------------------------------------------------------------------------------------


whole_of = cache(lambda run: run())
OF_TWO = [pytest.param(run, 2, marks=pytest.mark.slow) for run in (point_teacher, on_data, on_intervals)]


@pytest.mark.parametrize(
    ("run", "parts"),
    [(teacher, 2), (teacher, 3), (point_teacher, 3), (on_data, 3), (on_intervals, 3), *OF_TWO],
)
def test_parts_of_a_batch_make_the_same_step(run, parts):
    """8 samples whole, in 4 + 4, in 3 + 3 + 2: weights up to the order of sums, and the curve's means."""
    (whole, one), (again, other) = whole_of(run), run(gradient_accumulation=parts)
    for name, w in whole.items():
        torch.testing.assert_close(again[name], w, rtol=2e-3, atol=2e-3 if name == "bank" else 2e-5)
    for a, b in zip(one.history, other.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_parts():
    assert list(parts_of(8, 1)) == [(slice(0, 8), 1.0)]
    found = list(parts_of(8, 3))
    assert [p.stop - p.start for p, _ in found] == [3, 3, 2]
    assert sum(share for _, share in found) == pytest.approx(1)
    with pytest.raises(LaunchError, match="gradient_accumulation = 9 is more than the 8 samples that a process has"):
        list(parts_of(8, 9))


@pytest.mark.parametrize("run", [teacher, point_teacher, on_data])
def test_activations_computed_again_give_the_same_weights(run, monkeypatch):
    """Bit for bit; and they are computed again: more calls of the network's inner modules."""
    calls = []
    plain = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda *a, **k: calls.append(1) or plain(*a, **k))
    whole, _ = run()
    before = len(calls)
    again, _ = run(gradient_checkpointing=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert len(calls) - before > before


def test_mapped_rows_do_not_stay_in_memory(tmp_path):
    """300 MB are read at random, six times over; what is mapped of them stays far below that."""
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.npy")
        np.save(files[-1], np.full((25_000, 2, 1000), i, np.float16))
    script = """
import re, sys
from pathlib import Path
import numpy as np
from ifm.data.arrays import ShardedArray
def mapped(): return int(re.search(r"RssFile:\\\\s+(\\\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
rows = ShardedArray([Path(p) for p in sys.argv[1:]], stage="x")
before, most, rng = mapped(), 0, np.random.default_rng(0)
for _ in range(600):
    chosen = rng.integers(0, len(rows), 750)
    assert (rows[chosen][:, 0, 0] == chosen // 25_000).all()
    most = max(most, mapped())
print(most - before)
""".replace("\\\\", "\\")
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc: this system does not tell what is mapped")
    done = subprocess.run([sys.executable, "-c", script, *map(str, files)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200


# --- rows and draws -------------------------------------------------------------------------------------------


def test_announced_rows_are_those_that_come(monkeypatch):
    monkeypatch.setattr("ifm.hardware.devices.RESIDENT_BYTES", 0)
    asked = []

    class Watched:
        nbytes = 10**12

        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, rows):
            asked.append(rows.tolist())
            if rows.max() >= len(IMAGES):
                raise OSError("the disk is gone")
            return IMAGES[rows]

    read = RowReader(Watched(), CPU)
    read.expect(np.array([3, 1]))
    assert torch.equal(read(np.array([3, 1])), torch.from_numpy(IMAGES[[3, 1]]))
    read.expect(np.array([5]))
    assert torch.equal(read(np.array([4])), torch.from_numpy(IMAGES[[4]]))  # another was announced
    assert asked.count([3, 1]) == asked.count([4]) == 1
    read.expect(np.array([99]))
    with pytest.raises(OSError, match="the disk is gone"):
        read(np.array([99]))


def test_training_from_mapped_rows_is_training_from_resident_ones(monkeypatch):
    resident, _ = teacher()
    monkeypatch.setattr("ifm.hardware.devices.RESIDENT_BYTES", 0)
    mapped, _ = teacher()
    assert all(torch.equal(resident[name], mapped[name]) for name in resident)


def test_threads_draw_what_one_thread_draws(monkeypatch):
    one = Streams(1, "noise", range(7), step=3).normal((100,))
    monkeypatch.setattr("ifm.random.NUMBERS_A_THREAD", 100)
    monkeypatch.setattr("ifm.random.THREADS", 3)
    streams = Streams(1, "noise", range(7), step=3)
    assert torch.equal(streams.normal((100,)), one)
    again = Streams(1, "noise", range(7), step=3)
    again.normal((100,))
    assert torch.equal(streams.normal((100,)), again.normal((100,)))


# --- trajectories ---------------------------------------------------------------------------------------------


def stored(folder, denoiser, d, *, shape, count=11, device=CPU):
    grid = {"stored_times": 4, "solver_steps": 6, "rho": 7.0}
    work = folder / "work"
    shards = generate(
        Accelerator(cpu=True), denoiser, d, shape=shape, count=count, batch_size=3, shard_size=5, seed=2, work=work,
        **grid,
    )  # fmt: skip
    paths = StoredTrajectories(
        ShardedArray(shards, stage="x"), d, times=stored_times(d, grid), shape=shape, seed=2, device=device
    )
    return paths, SolvedTrajectories(denoiser, d, shape=shape, count=count, seed=2, device=device, **grid), shards


@pytest.mark.parametrize(
    ("name", "resident"),
    [
        *((name, True) for name in ("ve", "rf", "pfgmpp")),
        ("ve", False),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("rf", "pfgmpp")),
    ],
)
def test_stored_and_solved_trajectories_agree_within_float16(name, resident, tmp_path, monkeypatch):
    """|stored - solved| <= 2^-11 |x| + 2^-25: half a unit in the last place; x_T, drawn again, is exact."""
    if not resident:
        monkeypatch.setattr("ifm.hardware.devices.RESIDENT_BYTES", 0)
    d, model = dynamics.build(name), Teacher(unet(), dynamics.build(name)).eval()
    kept, solved, shards = stored(tmp_path, model, d, shape=(1, 8, 8))
    assert [np.load(p).shape for p in shards] == [(5, 3, 1, 8, 8), (5, 3, 1, 8, 8), (1, 3, 1, 8, 8)]
    assert sum(np.load(p).nbytes for p in shards) == stored_bytes(11, 4, (1, 8, 8))
    assert len(kept) == len(solved) == 11
    assert torch.equal(kept.times, solved.times)
    rows = np.array([10, 0, 3, 3, 7])
    exact = solved.whole(rows)
    x_T = d.prior((1, 8, 8), generator=Streams(2, "trajectory", rows))
    assert torch.equal(exact[:, 0], x_T)
    torch.testing.assert_close(
        solve_trajectory(model, x_T, dynamics=d, times=d.solver_times(6, rho=7.0), keep=[0, 2, 4, 6]), exact
    )
    for k in (torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 1, 1, 1, 2]), torch.tensor([0] * 5)):
        (x_t, x_0), (true_t, true_0) = kept.points(rows, k), solved.points(rows, k)
        assert x_t.dtype == x_0.dtype == torch.float32
        assert torch.equal(true_t, exact[torch.arange(5), k])
        assert torch.equal(x_t[k == 0], x_T[k == 0])
        for a, b in ((x_t, true_t), (x_0, true_0)):
            bound = 2.0**-11 * b.abs() + 2.0**-25 + 1e-5 * b.abs().amax()  # other members in the batch: other sums
            assert bool(((a - b).abs() <= bound).all())
    save_first(kept, tmp_path)
    first = np.load(tmp_path / "first.npy")
    assert first.shape == (11, 4, 1, 8, 8)
    assert np.array_equal(first, kept.whole(np.arange(11)).numpy())


def test_a_million_cifar_trajectories_fit_in_20_gb():
    assert stored_bytes(1_000_000, 4, (3, 32, 32)) == 18_432_000_000


def test_a_killed_shard_is_made_again_and_finished_ones_stay(tmp_path):
    d, model = dynamics.build("ve"), Teacher(unet(), dynamics.build("ve")).eval()
    whole = {p.name: p.read_bytes() for p in stored(tmp_path / "a", model, d, shape=(1, 8, 8))[2]}
    calls = []

    def dies(x_t, t):
        calls.append(1)
        if len(calls) > 15:  # in the second batch of the first shard's three
            raise KeyboardInterrupt
        return model(x_t, t)

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "b", dies, d, shape=(1, 8, 8))
    assert list((tmp_path / "b/work").iterdir()) == []  # no half shard
    paths = stored(tmp_path / "b", model, d, shape=(1, 8, 8))[2]
    paths[1].unlink()
    before = paths[0].stat().st_mtime_ns
    again = stored(tmp_path / "b", model, d, shape=(1, 8, 8))[2]
    assert {p.name: p.read_bytes() for p in again} == whole
    assert paths[0].stat().st_mtime_ns == before


def test_a_flow_trains_on_paths_solved_as_they_are_needed(tmp_path):
    """As on stored ones, up to float16's rounding."""
    d, model = dynamics.build("ve"), Teacher(unet(), dynamics.build("ve")).eval()
    kept, solved, _ = stored(tmp_path, model, d, shape=(1, 8, 8))
    weights = []
    for paths in (kept, solved):
        flow = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
        accelerator = Accelerator(cpu=True)
        phase = trajectory_phase(accelerator, flow, paths, t_max_share=0.5, distance="l2", huber_c=None)
        train_flow(accelerator, flow, [phase], policy=anchors.SelfAnchor(0.5), settings=settings(), seed=1)
        weights.append(torch.cat([w.flatten() for w in flow.state_dict().values()]))
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=3e-3)  # where a gradient is near 0, Adam follows its sign
    assert (weights[0] - weights[1]).abs().mean() < 1e-5


# --- steps that are not finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted(bad):
    """Weights, moments and their step count are as if the step had not been; the curve's means leave it out."""
    seen = []

    def run(spoilt):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        steps = iter(range(100))

        def loss(m, step):
            factor = bad if step in spoilt else 1.0
            k = step if not spoilt else step - sum(s < step for s in spoilt)
            seen.append(next(steps))
            yield (m(torch.full((4, 3), 1.0 + k)) - 1).square().mean() * factor

        plain = {"lr_decay": "none", "warmup_steps": 0, "ema_decay": 0.0, "log_every": 1, "checkpoint_every": 100}
        result = fit(Accelerator(cpu=True), model, loss=loss, settings=settings(steps=6 + len(spoilt), **plain))
        return model.state_dict(), result.history

    (whole, history), (skipped, other) = run(()), run((2, 3))
    assert all(torch.equal(whole[name], skipped[name]) for name in whole)
    assert [row["skipped"] for row in other] == [0, 0, 1, 2, 2, 2, 2, 2]
    told = [row["loss"] for row in other if np.isfinite(row["loss"])]
    assert told == [row["loss"] for row in history]
    assert np.isnan([row["loss_max"] for row in other][2:4]).all()


def test_a_spike_and_a_lagging_average_show_in_the_curve():
    def loss(m, step):
        yield m.weight.sum() * (100.0 if step == 3 else 1.0)

    def run(decay):
        model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        chosen = settings(steps=6, log_every=3, checkpoint_every=6, ema_decay=decay, warmup_steps=0)
        return fit(Accelerator(cpu=True), model, loss=loss, settings=chosen).history

    first, second = run(0.999)
    assert first["loss_max"] == pytest.approx(2.0, rel=1e-2)
    assert second["loss_max"] > 2.5 * second["loss"] > 50
    assert first["ema_distance"] > 0
    assert [row["ema_distance"] for row in run(0.0)] == [0, 0]


# --- compiling ------------------------------------------------------------------------------------------------


def test_a_compiler_that_fails_is_done_without(monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction\nand more")

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: plain_compile(f, backend=broken))
    whole, _ = teacher()
    monkeypatch.setenv("IFM_COMPILE", "on")
    again, _ = teacher()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    out = capsys.readouterr().out
    assert out.count("torch.compile failed") == 1
    assert "no such instruction" in out
    assert "and more" not in out


def test_an_error_of_the_call_itself_comes_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Compiled(torch.nn.Linear(3, 1))(torch.zeros(2, 5))


@pytest.mark.slow
def test_compiled_training_learns_the_same(monkeypatch):
    whole, _ = point_teacher()
    monkeypatch.setenv("IFM_COMPILE", "on")
    again, _ = point_teacher()
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], rtol=1e-3, atol=1e-5)


def test_ifm_compile_is_on_or_off(monkeypatch):
    monkeypatch.delenv("IFM_COMPILE", raising=False)
    assert not compiles()
    for word, expected in (("on", True), ("off", False), ("", False), (" ON ", True)):
        monkeypatch.setenv("IFM_COMPILE", word)
        assert compiles() is expected
    monkeypatch.setenv("IFM_COMPILE", "fast")
    with pytest.raises(UserError, match="IFM_COMPILE = 'fast' is not allowed; allowed: on, off"):
        compiles()


def test_weights_lie_as_the_device_likes_them():
    assert memory_format(CPU) is torch.contiguous_format
    assert memory_format(torch.device("cuda")) is torch.channels_last


def test_an_array_that_a_gpu_holds_whole_goes_there_in_pieces(monkeypatch):
    array = np.arange(30, dtype=np.int16).reshape(10, 3)
    monkeypatch.setattr(devices, "RESIDENT_BYTES", 10)
    assert not RowReader(array, CPU).resident
    monkeypatch.setattr(devices, "_room", lambda device: 100)
    monkeypatch.setattr(devices, "PIECE_BYTES", 25)
    read = RowReader(array, CPU)
    assert read.resident
    assert np.array_equal(read(np.array([9, 0, 4])).numpy(), array[[9, 0, 4]])
    assert np.array_equal(read._whole.numpy(), array)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_step_does_not_wait_for_the_gpu(gpu, monkeypatch):
    """From one step's update to the next one's nothing synchronizes, plain and recorded: torch raises else."""
    model, whole = Teacher(unet(), dynamics.build("ve")), averages.ema_decay

    def watch(step, decay):
        torch.cuda.set_sync_debug_mode("error" if step in (1, 5) else "default")
        return whole(step, decay)

    monkeypatch.setattr(averages, "ema_decay", watch)
    chosen = settings(steps=8, log_every=8, checkpoint_every=8)
    try:
        train_teacher(gpu, model, IMAGES, settings=chosen, random_flip=True, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- disks ----------------------------------------------------------------------------------------------------


def limited(script, *arguments, limit=100_000):
    """Runs Python in a process that may not write files above `limit` bytes: EFBIG, as a quota says it."""

    def limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, preexec_fn=limits, check=False, env=dict(os.environ))


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_is_needed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, Snapshot({"w": torch.zeros(10)}, {"step": 5}))
    done = limited(
        "import sys, torch\nfrom pathlib import Path\n"
        "from ifm.training.checkpoint import Checkpoints, Snapshot\nfrom ifm.files import StorageError\n"
        "try:\n    Checkpoints(Path(sys.argv[1])).save(10, Snapshot({'w': torch.zeros(10**6)}, {'step': 10}))\n"
        "except StorageError as error:\n    print(error)",
        tmp_path,
    )
    assert "step-000000010.safetensors: cannot be written (File too large; it needs 4 MB" in done.stdout, done.stderr
    assert (
        "are free there); free some space and run the same command again: what was made before is kept" in done.stdout
    )
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000005.safetensors"]
    assert checkpoints.load().record == {"step": 5}


def test_a_shard_that_does_not_fit_leaves_the_finished_ones(tmp_path):
    done = limited(
        "import sys, torch\nfrom pathlib import Path\nfrom accelerate import Accelerator\n"
        "from ifm import dynamics\nfrom ifm.files import StorageError\nfrom ifm.trajectories import generate\n"
        "try:\n    generate(Accelerator(cpu=True), lambda x, t: 0 * x, dynamics.build('ve'), shape=(1, 8, 8),\n"
        "             count=610, stored_times=3, solver_steps=3, rho=7.0, batch_size=50, shard_size=600, seed=0,\n"
        "             work=Path(sys.argv[1]))\n"
        "except StorageError as error:\n    print(error)",
        tmp_path,
    )
    assert "shard-00000.npy: cannot be written (File too large; it needs 154 kB" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_writes_is_named(tmp_path):
    told = r"a\.json: cannot be written \(Read-only file system"
    with pytest.raises(StorageError, match=told), atomic_path(tmp_path / "a.json"):
        raise OSError(30, "Read-only file system")
    with pytest.raises(OSError, match="Is a directory") as other, atomic_path(tmp_path / "b"):
        raise IsADirectoryError(21, "Is a directory")
    assert not isinstance(other.value, StorageError)


def test_what_does_not_fit_is_said_before(tmp_path, capsys):
    warn_of_space(tmp_path / "not" / "yet", 10**18, what="trajectories ve")
    assert "warning: trajectories ve need 1e+06 TB at " in capsys.readouterr().err
    warn_of_space(tmp_path, 10, what="trajectories ve")
    assert capsys.readouterr().err == ""
    assert free_bytes(tmp_path) > 0
    assert [in_words(n) for n in (12, 18_432_000_000, 4_000_123)] == ["12 bytes", "18.4 GB", "4 MB"]


# --- memory on the host ---------------------------------------------------------------------------------------

FAULTS = """
import resource
import torch
from ifm.hardware.devices import keep_freed_memory
def faults():
    for _ in range(10):
        torch.ones(10_000_000)  # the heap grows until it has a gap of this size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
print(faults(), keep_freed_memory(), faults())
"""


def faults(**environment):
    """(before, whether memory is kept from then on, after)."""
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    anew, kept, count = told.stdout.split()
    return int(anew), kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_memory_that_tensors_free_is_kept():
    """Ten tensors of 40 MB, one after the other: their pages are taken from the system each time, or once."""
    anew, kept, count = faults()
    assert kept == "True"
    assert count < anew / 5
    assert faults(MALLOC_MMAP_THRESHOLD_="131072")[1] == "False"
