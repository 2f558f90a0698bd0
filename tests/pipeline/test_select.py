"""Stage select: it finishes a flow, records what measured best on draws of its own, and others sample by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ifm import pretrained, selection
from ifm.metrics.points import sliced_wasserstein
from ifm.sampling import draw_samples, flow_sampler
from ifm.use.models import IntegrationFlow
from pipeline.runner import paths
from pipeline.stages import flow, sample, select
from tests.support.stages import changed, points, run_graph, run_stage

CPU = torch.device("cpu")
VALUES = points(dynamics=["ve"], sample__flow_steps=[1, 2, 4])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of the whole graph up to the samples."""
    folder = tmp_path_factory.mktemp("graph")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_graph(VALUES, up_to=sample)
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_finished_flow_is_the_trained_one_and_its_record(here):
    trained, finished = content(paths.trained("ve")), content(paths.flow("ve"))
    before, after = json.loads(trained.pop("ifm.json")), json.loads(finished.pop("ifm.json"))
    assert trained == finished
    assert {key: after[key] for key in before} == before
    assert list(after)[len(before) :] == ["samplers", "selected_on"]
    assert list(after["samplers"]) == ["1", "2", "4"]
    assert after["samplers"]["1"]["sampler"] == "one_step"
    assert {entry["metric"] for entry in after["samplers"].values()} == {"sliced_wasserstein"}
    assert after["selected_on"] == {
        "metric": "sliced_wasserstein", "count": 50, "seed": 0, "first_draw": selection.FIRST,
        "extractor": "coordinates", "checksum": "identity", "split": "train",
    }  # fmt: skip


def test_recorded_samplers_give_the_recorded_figures_on_the_draws_of_selection(here):
    described, loaded = pretrained.describe(paths.flow("ve")), pretrained.load_flow(paths.flow("ve"))
    real = np.load(paths.REFERENCE / "features-train.npy")
    for n, entry in described["samplers"].items():
        sampler = flow_sampler(loaded, kind="selected", steps=int(n))
        assert sampler.way.describe().items() <= entry.items()
        drawn = draw_samples(
            sampler, dynamics=loaded.dynamics, shape=(2,), count=50, batch_size=50, seed=0, device=CPU,
            first=selection.FIRST,
        )  # fmt: skip
        figure = sliced_wasserstein(drawn.images, real, projections=VALUES["evaluate"]["sliced_projections"])
        assert figure == entry["value"]


def test_stage_sample_and_the_api_sample_as_the_model_records(here):
    metadata = json.loads((paths.samples("ve") / "metadata.json").read_text())
    entries = pretrained.describe(paths.flow("ve"))["samplers"]
    said = {s["nfe"]: s for s in metadata["samplers"] if s["sampler"] == "selected"}
    assert said.keys() == {2, 4}
    for n, sampler in said.items():
        assert sampler["how"] == entries[str(n)]["sampler"]
        assert sampler.get("times") == entries[str(n)].get("times")
        mine = IntegrationFlow.from_pretrained(paths.flow("ve")).sample(50, steps=n, batch_size=50)
        assert np.array_equal(mine, np.load(paths.samples("ve") / f"{sampler['name']}.npy")[:50])


def test_again_it_is_the_same_to_the_byte(here):
    before = content(paths.flow("ve"))
    run_stage(select, VALUES, "ve")
    assert content(paths.flow("ve")) == before


def test_without_selection_there_is_no_record_and_old_defaults_hold(here, capsys):
    kept = content(paths.flow("ve"))
    values = changed(VALUES, {"select.count": 0})
    run_stage(select, values, "ve")
    assert "select-ve: select.count is 0: nothing to choose" in capsys.readouterr().out
    assert content(paths.flow("ve")) == content(paths.trained("ve"))
    run_stage(sample, values, "ve")
    metadata = json.loads((paths.samples("ve") / "metadata.json").read_text())
    assert [s["how"] for s in metadata["samplers"] if s["sampler"] == "selected"] == ["anchor", "anchor"]
    for name, data in kept.items():
        (paths.flow("ve") / name).write_bytes(data)


def test_states_of_before_the_end_are_judged_and_the_best_is_kept(made, tmp_path, monkeypatch):
    """Every 5 of 20 steps: the curve's values are one-step figures of these weights; training itself is untouched."""
    shutil.copytree(made, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    alone = pretrained.describe(paths.trained("ve"))["sha256"]
    usual = pretrained.describe(paths.flow("ve"))
    shutil.rmtree("work", ignore_errors=True)
    values = changed(VALUES, {"flow.evaluate_every": 5, "select.evaluate_count": 50})
    run_stage(flow, values, "ve")
    assert pretrained.describe(paths.trained("ve"))["sha256"] == alone
    states = pretrained.states_of(paths.trained("ve"))
    assert list(states) == [5, 10, 15]
    described = {step: pretrained.describe(folder) for step, folder in states.items()}
    assert [(said["step"], said["train_images"]) for said in described.values()] == [(s, 16 * s) for s in states]
    assert len({alone, *(said["sha256"] for said in described.values())}) == 4
    run_stage(select, values, "ve")
    last = pretrained.describe(paths.flow("ve"))
    curve = last["one_step_by_training_step"]
    assert (last["sha256"], curve["kept"], list(curve["values"])) == (alone, 20, ["5", "10", "15", "20"])
    assert curve["values"]["20"] == last["samplers"]["1"]["value"]  # as many samples, the same draws
    assert last["samplers"] == usual["samplers"]
    real = np.load(paths.REFERENCE / "features-train.npy")
    for step, folder in states.items():
        state = pretrained.load_flow(folder)
        drawn = draw_samples(
            flow_sampler(state, kind="one_step", steps=1), dynamics=state.dynamics, shape=(2,), count=50,
            batch_size=50, seed=0, device=CPU, first=selection.FIRST,
        )  # fmt: skip
        figure = sliced_wasserstein(drawn.images, real, projections=VALUES["evaluate"]["sliced_projections"])
        assert curve["values"][str(step)] == figure
    run_stage(select, changed(values, {"select.keep": "best", "select.count": 0}), "ve")
    kept = pretrained.describe(paths.flow("ve"))
    best = int(min(curve["values"], key=curve["values"].get))
    assert kept["one_step_by_training_step"] == curve | {"kept": best}
    assert kept["sha256"] == (alone if best == 20 else described[best]["sha256"])


def test_of_several_averages_the_best_in_one_step_is_taken(made, tmp_path, monkeypatch):
    """Decays: flow keeps an average for each; select measures them and finishes the best one."""
    shutil.copytree(made, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    alone = pretrained.describe(paths.trained("ve"))["sha256"]
    values = changed(VALUES, {"flow.ema_decay": [0.99, 0.5, 0.0]})
    shutil.rmtree("work", ignore_errors=True)
    run_stage(flow, values, "ve")
    folders = pretrained.averages_of(paths.trained("ve"))
    assert [f.name for f in folders] == ["ve", "average-0.0", "average-0.5"]
    described = {said["ema_decay"]: said for said in map(pretrained.describe, folders)}
    assert described.keys() == {0.99, 0.5, 0.0}
    assert described[0.99]["sha256"] == alone  # what training goes by is untouched
    assert len({said["sha256"] for said in described.values()}) == 3
    run_stage(select, values, "ve")
    finished = pretrained.describe(paths.flow("ve"))
    figures = {float(decay): value for decay, value in finished["ema_decays_in_one_step"].items()}
    assert figures.keys() == described.keys()
    best = min(figures, key=figures.get)
    assert (finished["ema_decay"], finished["sha256"]) == (best, described[best]["sha256"])
    assert finished["samplers"]["1"]["value"] == figures[best]
    assert sorted(p.name for p in paths.flow("ve").iterdir()) == sorted(
        p.name for p in folders[0].iterdir() if p.is_file()
    )
    run_stage(select, changed(values, {"select.count": 0}), "ve")
    assert pretrained.describe(paths.flow("ve"))["sha256"] == alone
