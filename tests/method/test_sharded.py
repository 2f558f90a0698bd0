"""FSDP2: a model split over processes (on CPUs, see split_worker.py) against one process that holds it whole."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from ifm.hardware.processes import LaunchError, check_splitting
from ifm.objectives.interval import interval_phase
from tests.support import split_worker, warm
from tests.support.launch import one_process, torchrun
from tests.support.on_cpus import on_cpus

# Every block split for itself, or the model as one; each process's initial weights, or the main one's.
BLOCKS = {
    "fsdp_version": 2,
    "auto_wrap_policy": "transformer_based_wrap",
    "transformer_cls_names_to_wrap": ["ResnetBlock2D"],
}
ROOT = {"fsdp_version": 2, "auto_wrap_policy": "no_wrap", "cpu_ram_efficient_loading": True}
CASES = [
    {
        "name": "teacher",
        "objective": "teacher",
        "plugin": BLOCKS,
        "settings": {"gradient_accumulation": 2, "gradient_checkpointing": True, "lr_decay": "none"},
    },
    {"name": "average-root", "objective": "average", "plugin": ROOT},
    {"name": "online", "objective": "online", "plugin": BLOCKS | {"activation_checkpointing": True}},
    {"name": "poisoned", "objective": "poisoned", "plugin": BLOCKS, "settings": {"steps": 8}},
    {"name": "interval", "objective": "interval", "plugin": BLOCKS},
    {"name": "bf16", "objective": "online", "plugin": BLOCKS, "precision": "bf16"},
]
SLOW = [  # each of their parts is in one of the others
    {"name": "average", "objective": "average", "plugin": BLOCKS},
    {"name": "bf16-interval", "objective": "interval", "plugin": BLOCKS, "precision": "bf16"},
]
BANK = {"name": "bank", "objective": "bank", "plugin": BLOCKS, "settings": {"steps": 12, "gradient_accumulation": 2}}


def config_in_docs(path):
    """docs/multi-gpu.md's accelerate config, in a file."""
    text = (Path(__file__).parents[2] / "docs/multi-gpu.md").read_text()
    path.write_text(re.search(r"```yaml\n(distributed_type: FSDP\n.*?)```", text, re.DOTALL)[1])
    return path


def given(out, cases):
    """The folder of a worker, with its cases."""
    out.mkdir()
    (out / "cases.json").write_text(json.dumps(cases))
    return out


def by_accelerate(config, out):
    """Two processes by the launcher that docs/multi-gpu.md names."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes=2"]
    words = [warm.python(), *launcher, "--main_process_port=0", split_worker.__file__, "split", str(out)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=on_cpus())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process and three wrote. `resumed` went to step 6 in two, to 10 in one, and on in three."""
    folder = tmp_path_factory.mktemp("split")
    resumed = BANK | {"name": "resumed", "checkpoints": str(folder / "resumed")}
    two = given(folder / "two", [resumed | {"stop": 6, "plugin": {}}])
    done = by_accelerate(config_in_docs(folder / "fsdp.yaml"), two)
    assert done.returncode == 0, done.stderr[-3000:]
    of_two = load_file(next((folder / "resumed").glob("*.safetensors")))
    undisturbed = BANK | {"checkpoints": str(folder / "undisturbed")}
    one, three = in_one_and_three(folder, [*CASES, undisturbed, resumed | {"stop": 10}], [*CASES, resumed])
    return SimpleNamespace(folder=folder, one=one, three=three, of_two=of_two)


@pytest.fixture(scope="module")
def trained_slowly(tmp_path_factory):
    one, three = in_one_and_three(tmp_path_factory.mktemp("slow"), SLOW, SLOW)
    return SimpleNamespace(one=one, three=three)


def in_one_and_three(folder, alone, split):
    """The folders that one process and three fill, with these cases each."""
    one, three = given(folder / "one", alone), given(folder / "three", split)
    with one_process():
        split_worker.main(False, one)
    done = torchrun(split_worker, 3, "split", three)
    assert done.returncode == 0, done.stderr[-3000:]
    return one, three


def named(wanted):
    """Parameters: the cases so chosen, the slow ones marked, each with the fixture that trained it."""
    kinds = ((CASES, "trained", ()), (SLOW, "trained_slowly", pytest.mark.slow))
    return [
        pytest.param(case["name"], by, id=case["name"], marks=marks)
        for cases, by, marks in kinds
        for case in filter(wanted, cases)
    ]


def told(out, name, process=0):
    return torch.load(out / f"{name}-{process}.pt", weights_only=True)


NO_GRADIENT = "to_k.bias"  # softmax does not see it: its gradient is rounding, which Adam makes steps of


def assert_same_training(one, many):
    """Weights and curves up to the order of sums. loss_max is over the parts of a batch, which are others."""
    assert one["weights"].keys() == many["weights"].keys()
    for name, whole in one["weights"].items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(many["weights"][name], whole, rtol=1e-3, atol=2e-5)
    assert len(one["curve"]) == len(many["curve"])
    for a, b in zip(one["curve"], many["curve"], strict=True):
        for key in a.keys() - {"loss_max"}:
            assert b[key] == pytest.approx(a[key], rel=1e-3), (key, a["step"])


@pytest.mark.parametrize(("name", "by"), named(lambda case: case.get("precision") != "bf16"))
def test_a_split_model_trains_as_a_whole_one(name, by, request):
    trained = request.getfixturevalue(by)
    assert_same_training(told(trained.one, name), told(trained.three, name))


def test_every_process_gets_the_whole_average(trained):
    for name in ("teacher", "average-root"):
        first = told(trained.three, name)["weights"]
        for process in (1, 2):
            other = told(trained.three, name, process)["weights"]
            assert all(torch.equal(first[key], other[key]) for key in first)


def test_steps_that_are_not_finite_in_one_process_are_skipped_in_all(trained):
    for out in (trained.one, trained.three):
        assert [row["skipped"] for row in told(out, "poisoned")["curve"]] == [0, 1, 2, 2]


@pytest.mark.parametrize(("name", "by"), named(lambda case: case.get("precision") == "bf16"))
def test_bf16_trains_alike_and_keeps_float32_weights(name, by, request):
    trained = request.getfixturevalue(by)
    one, many = told(trained.one, name), told(trained.three, name)
    assert {t.dtype for t in many["weights"].values()} == {torch.float32}
    for a, b in zip(one["curve"], many["curve"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
        assert b["ema_distance"] == pytest.approx(a["ema_distance"], rel=0.1)


def test_a_checkpoint_does_not_tell_how_the_model_was_split(trained):
    """Of two processes with a part each, and of one: equal names, shapes and types, values up to the order of sums."""
    of_one = load_file(trained.folder / "undisturbed/step-000000004.safetensors")
    assert trained.of_two.keys() == of_one.keys()
    order = list(told(trained.one, "bank")["weights"])  # which ema.{i} and optimizer.{i} count
    assert {f"optimizer.{i}.exp_avg_sq" for i in range(len(order))} <= of_one.keys()
    for name, x in of_one.items():
        assert (trained.of_two[name].dtype, trained.of_two[name].shape) == (x.dtype, x.shape)
        kind, key = name.split(".")[:2]
        if (order[int(key)] if kind in ("ema", "optimizer") else name).endswith(NO_GRADIENT):
            continue
        near = {"rtol": 2e-2, "atol": 2e-3} if name == "anchor.bank" else {"rtol": 2e-3, "atol": 2e-5}
        torch.testing.assert_close(trained.of_two[name], x, **near)


def test_a_run_goes_on_split_whole_and_split_again(trained):
    whole, resumed = told(trained.one, "bank"), told(trained.three, "resumed")
    assert (whole["resumed_from"], resumed["resumed_from"]) == (0, 8)
    assert_same_training(whole, resumed)
    for name, bank in whole["bank"].items():
        torch.testing.assert_close(resumed["bank"][name], bank, rtol=2e-2, atol=2e-3)


def set_up_for(kind=DistributedType.FSDP, precision="no", **options):
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2} | options)
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(distributed_type=kind, state=state, mixed_precision=precision, parallelism_config=None)


@pytest.mark.parametrize(
    ("accelerator", "line"),
    [
        (set_up_for(DistributedType.DEEPSPEED), "set up for DEEPSPEED; to split a model .* distributed_type: FSDP"),
        (set_up_for(fsdp_version=1), "fsdp_version: 1; use fsdp_version: 2"),
        (set_up_for(auto_wrap_policy="size_based_wrap"), "SIZE_BASED_WRAP, .* use TRANSFORMER_BASED_WRAP"),
        (set_up_for(cpu_offload=True), "fsdp_offload_params: true; use false"),
        (set_up_for(precision="fp16"), "fp16 is not supported with FSDP; use bf16 or no"),
    ],
)
def test_ways_of_splitting_that_training_does_not_know_are_refused(accelerator, line):
    with pytest.raises(LaunchError, match=line):
        check_splitting(accelerator)


def test_what_training_knows_is_let_through():
    check_splitting(set_up_for(auto_wrap_policy="no_wrap"))
    check_splitting(set_up_for(DistributedType.MULTI_GPU, "fp16", cpu_offload=True))


def test_forward_mode_is_refused_before_any_work():
    line = (
        "objective interval cannot train a model split by FSDP with flow.interval.derivative: forward; set it to diff"
    )
    with pytest.raises(LaunchError, match=line):
        interval_phase(set_up_for(), None, None, batch_size=6, same_share=0.5, whole_share=0.5, power=0.0)
