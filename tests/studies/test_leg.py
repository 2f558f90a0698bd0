"""A training leg: its arithmetic, its decisions with stand-ins for the stages, and its folder. No time is asserted."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.leg import __main__ as command
from benchmarks.leg import plan, results, run
from benchmarks.leg.plan import Rate
from benchmarks.leg.results import Results
from benchmarks.leg.worker import go_on_from
from ifm import dynamics, pretrained
from ifm.config import Config, parse, read_params
from ifm.errors import UserError
from ifm.model import Teacher
from ifm.networks import build_network
from ifm.training.checkpoint import Checkpoints
from tests.support.stages import ROOT, changed

# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_rate_is_taken_after_the_first_row():
    """20 steps in 30 s with the start, then 20 in 4 s: 5 a second, and 26 s of start."""
    rows = [{"step": 20, "time": 130.0}, {"step": 40, "time": 134.0}]
    assert Rate.of(rows, began=100.0) == Rate(steps=5.0, start=26.0)


def test_steps_fill_the_time():
    rate = Rate(steps=10.0, start=10.0)
    assert plan.training_steps(rate, done=50, seconds=107.0) == 50 + int(0.97 * 1000)
    assert plan.training_steps(rate, done=50, seconds=107.0, weight=2.0) == int((50 + 0.97 * 1000) / 2)
    compiling = plan.Rate(steps=rate.steps, start=35.0)  # the second start finds compiled kernels
    assert plan.training_steps(compiling, done=50, seconds=110.0) == 50 + int(0.97 * 1000)
    assert plan.training_steps(rate, done=3, seconds=-5.0) == plan.LEAST_STEPS


def test_a_consistency_step_has_one_pass_more():
    """Forward and backward count three, a target one: 3 and 4, so 7/6 of the first on average."""
    values = read_params(ROOT / "params.yaml")

    def weight(anchored, *, guided=False, **changes):
        return plan.step_weight(
            parse(changed(values, {f"flow.{key}": value for key, value in changes.items()})).flow,
            anchored=anchored,
            guided=guided,
        )

    both = ["trajectory", "consistency"]
    assert weight(0.0, objective=both) == pytest.approx(7 / 6)
    assert weight(0.25, objective="trajectory") == 1.0
    assert weight(0.0, objective=both, velocity="teacher") == pytest.approx(9 / 6)  # the teacher at both times
    assert weight(0.0, objective=both, velocity="teacher", guided=True) == pytest.approx(11 / 6)


def test_paths_and_samples_fit_their_seconds():
    count, shard = plan.path_count(1700.0, seconds=100.0, nfe=17)
    assert (count, shard) == (8000, 800)
    assert plan.path_count(1.0, seconds=-1.0, nfe=17) == (10, 1)
    for rate in (10.0, 500.0, 3000.0, 1e6):
        made = plan.sampling(rate, seconds=40.0, flow_steps=[1, 2], batch=100)
        evaluations = (made["sample.count"] + 100) * (sum(made["evaluate.teacher_nfe"]) + 3)
        assert evaluations <= 40.0 * rate or made["sample.count"] == 100
        assert made["sample.count"] <= 10_000


def test_the_ends_are_in_the_order_of_the_stages():
    assert list(plan.ENDS.values()) == sorted(plan.ENDS.values())
    assert plan.ENDS["report"] == 1.0


# --- params -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> Path:
    """Forty images of two classes, as the hub's CIFAR-10 has them."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    labels = [i % 2 for i in range(40)]

    def cell(label: int) -> dict:
        pixels, file = rng.integers(0, 100, (32, 32, 3)).astype(np.uint8), io.BytesIO()
        pixels[8 * label : 8 * label + 8] = 220
        Image.fromarray(pixels).save(file, format="PNG")
        return {"bytes": file.getvalue(), "path": None}

    images = pa.array([cell(label) for label in labels], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    feature = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": images, "label": pa.array(labels, pa.int64())})
    folder.mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), folder / "train.parquet")
    return folder


class NoWorkers:
    """Stands in for processes."""

    def __init__(self, folder: Path, *, spare: int) -> None:
        pass


@pytest.fixture
def make(data, tmp_path, monkeypatch):
    """A leg that has started no process."""
    monkeypatch.setattr(run, "Workers", NoWorkers)

    def made(*words: str) -> run.Leg:
        out = ["--data", str(data), "--out", str(tmp_path / "out")]
        return run.Leg(command.parse([*out, *words]), tmp_path / "work")

    return made


def test_its_params_are_the_presets_with_the_recipe_and_what_is_set(make, data, tmp_path):
    leg = make("--dynamics", "rf", "--set", "teacher.lr=2.0e-3", "flow.steps=70")
    values = read_params(tmp_path / "work" / "params.yaml")
    assert isinstance(parse(values, source="test"), Config)
    assert values["dynamics"] == ["rf"]
    assert values["data"]["path"] == str(data)
    assert (values["data"]["test_split"], values["data"]["test_fraction"]) == (None, 0.1)
    assert values["network"]["channels"] == plan.RECIPE["network.channels"]
    assert values["teacher"]["lr"] == 2.0e-3
    leg.change(flow__steps=10, teacher__steps=30)
    values = read_params(tmp_path / "work" / "params.yaml")
    assert (values["flow"]["steps"], values["teacher"]["steps"]) == (70, 30)  # what --set fixed stays
    assert str(data.parent) not in leg.told()


def test_what_is_set_wrongly_is_said_before_anything_runs(make):
    with pytest.raises(UserError, match="write KEY=VALUE"):
        make("--set", "teacher.lr")
    with pytest.raises(UserError, match=r"params.yaml has no teacher.rate"):
        make("--set", "teacher.rate=1")


# --- decisions --------------------------------------------------------------------------------------------------------


class FakeJob:
    """A stage that has ended, or whose rows grow with every look."""

    def __init__(self, name: str, *, rows=(), status: int | None = 0) -> None:
        self.name, self.began, self._rows, self._status = name, time.time(), list(rows), status
        self.process, self.looks, self.stopped = self, 0, False

    @property
    def returncode(self) -> int | None:
        return self._status

    @property
    def runs(self) -> bool:
        return self._status is None and not self.stopped

    def rows(self):
        self.looks += 1
        return self._rows[: self.looks]

    def wait(self, until=None):
        return self._status

    def stop(self, *, patience=0.0):
        self.stopped = True


def test_a_training_is_timed_planned_and_goes_on(make, tmp_path, monkeypatch):
    """30 s for a teacher, 10 steps a second from the second row on: it goes on from its checkpoint with as many."""
    leg, orders = make("--minutes", "1.2"), []
    rows = [{"step": 20 * i, "time": time.time() + 2 * i + 3} for i in range(1, 9)]
    folder = tmp_path / "work" / run.CHECKPOINTS / "teacher-ve-abc"
    folder.mkdir(parents=True)

    def started(stage, *words, start=None, environment=None):
        orders.append((stage, start, leg.values["teacher"]["steps"]))
        if len(orders) == 1:
            (folder / "step-000000060.safetensors").touch()
            return FakeJob("teacher-ve", rows=rows, status=None)
        return FakeJob("teacher-ve")

    leg.workers.run = started
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    assert leg.train("teacher")
    (_, first, most), (_, second, steps) = orders
    assert (first, most) == (None, plan.MANY_STEPS)
    assert second == folder
    left = plan.ENDS["teacher"] * 72 - plan.FINISHING * 72
    assert 60 + 10 * (left - 10) * 0.97 - 20 <= steps <= 60 + 10 * left * 0.97
    assert leg.stages["teacher-ve"]["images_per_second"] == 10 * leg.values["teacher"]["batch_size"]


def test_a_late_training_is_saved_at_the_step_it_came_to(make, tmp_path):
    leg, orders = make("--set", "teacher.steps=900"), []
    folder = tmp_path / "work" / run.CHECKPOINTS / "teacher-ve-abc"
    folder.mkdir(parents=True)

    def started(stage, *words, start=None, environment=None):
        orders.append((start, leg.values["teacher"]["steps"]))
        if len(orders) == 1:
            (folder / "step-000000400.safetensors").touch()
            return FakeJob("teacher-ve", status=None)
        return FakeJob("teacher-ve")

    leg.workers.run = started
    assert leg.train("teacher")
    assert orders == [(None, 900), (folder, 400)]
    assert leg.stages["teacher-ve"]["steps"] == 400


def test_late_paths_are_used_as_far_as_they_came(make, tmp_path):
    leg, orders = make(), []
    leg.rate = 1000.0
    folder = tmp_path / "work" / run.CHECKPOINTS / "trajectories-ve-abc"
    folder.mkdir(parents=True)

    def started(stage, *words, start=None, environment=None):
        orders.append((start, leg.values["trajectories"]["count"]))
        if len(orders) == 1:
            for i in range(3):
                np.save(folder / f"shard-0000{i}.npy", np.zeros((7, 1), np.float16))
            return FakeJob("trajectories-ve", status=None)
        return FakeJob("trajectories-ve")

    leg.workers.run = started
    leg.paths()
    assert orders[1] == (folder, 21)
    assert leg.values["trajectories"]["count"] == 21


# --- the folder -------------------------------------------------------------------------------------------------------


def saved_teacher(folder: Path) -> Teacher:
    torch.manual_seed(0)
    options = {"channels": [8, 16], "layers_per_block": 1, "attention": [False, False], "dropout": 0.0}
    network = build_network(kind="unet", shape=(3, 8, 8), takes_anchor=False, norm_groups=4, **options)
    options = {"t_min": 0.002, "t_max": 80.0, "rho": 7.0, "log_time_mean": -1.2, "log_time_std": 1.2}
    teacher = Teacher(network, dynamics.build("ve", sigma_data=0.5, **options))
    pretrained.save_model(teacher, folder, record={"image_shape": [3, 8, 8]})
    return teacher


def test_weights_go_through_small_files_in_bfloat16(tmp_path, monkeypatch):
    teacher = saved_teacher(tmp_path / "model")
    monkeypatch.setattr(results, "SHARD_BYTES", 4000)
    Results(tmp_path / "out", dynamics="ve").model("teacher", tmp_path / "model")
    files = sorted((tmp_path / "out").glob("teacher-*.safetensors"))
    assert len(files) > 2
    assert all(t.dtype == torch.bfloat16 for file in files for t in load_file(file).values())

    assert results.restore(tmp_path / "out", "teacher", tmp_path / "again")
    assert not results.restore(tmp_path / "out", "flow", tmp_path / "none")
    again = pretrained.load_teacher(tmp_path / "again")
    for name, weight in teacher.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.bfloat16().float()), name

    results.first_checkpoint("teacher", tmp_path / "again", tmp_path / "start")
    found = Checkpoints(tmp_path / "start").load()
    assert found.record["step"] == 0
    weights = [p for p in again.parameters() if p.requires_grad]
    assert all(torch.equal(found.tensors[f"ema.{i}"], p) for i, p in enumerate(weights))

    for file in files:
        file.unlink()
    with pytest.raises(UserError, match="weights of the teacher are missing"):
        results.restore(tmp_path / "out", "teacher", tmp_path / "third")


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no results\.json, which a leg leaves"):
        results.read(tmp_path)


def test_a_stage_goes_on_from_another_folders_content(tmp_path, monkeypatch):
    from pipeline.runner.stage import Stage

    start, own = tmp_path / "start", tmp_path / "own"
    for folder in (start, own):
        folder.mkdir()
    (start / "step-000000005.safetensors").write_text("a")
    (start / "made-of.json").write_text("{}")
    monkeypatch.setattr(Stage, "work_folder", lambda self, **made_of: own)
    go_on_from(start)
    stage = Stage("teacher-ve", "teacher", None, {}, "ve")
    assert stage.work_folder(params={}, inputs={}) == own
    assert [file.name for file in own.iterdir()] == ["step-000000005.safetensors"]


def test_a_curve_is_thinned_out(tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text("step,loss\n" + "".join(f"{i},0.5\n" for i in range(1, 1001)))
    rows = results.curve(file)
    assert len(rows) == 200
    assert rows[1] == {"step": 6.0, "loss": 0.5}
    assert results.curve(tmp_path / "none.csv") == []


# --- all of it --------------------------------------------------------------------------------------------------------

TINY = (
    "network.channels=[8,16]", "network.attention=[false,false]", "network.layers_per_block=1", "network.norm_groups=8",
    "teacher.precision=no", "flow.precision=no", "teacher.batch_size=8", "flow.batch_size=8", "teacher.log_every=5",
    "flow.log_every=5", "teacher.checkpoint_every=500", "flow.checkpoint_every=500", "evaluate.classifier.width=16",
    "evaluate.classifier.steps=40", "evaluate.classifier.batch_size=16", "evaluate.kid_subsets=5",
    "evaluate.kid_subset_size=20", "flow.reference_batch=32", "trajectories.count=40", "trajectories.shard_size=20",
    "sample.count=100", "evaluate.teacher_nfe=[5]", "teacher.steps=40", "flow.steps=40",
)  # fmt: skip


@pytest.mark.slow
def test_two_legs_on_a_few_images(data, tmp_path, monkeypatch):
    for out, more in (("one", []), ("two", ["--from", str(tmp_path / "one")])):
        words = ["--data", str(data), "--minutes", "30", "--out", str(tmp_path / out), *more, "--set", *TINY]
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0
        found = json.loads((tmp_path / out / "results.json").read_text())
        assert {"flow-one_step-nfe001", "teacher-heun-nfe005"} <= found["figures"].keys()
        names = {file.name for file in (tmp_path / out).iterdir()}
        assert names == {"results.json", "report.html", "grids.png", "teacher-1.safetensors", "flow-1.safetensors"}
    assert found["goes_on_from"] == "one"
