"""The teacher that a flow is held against: the best of its NFE, from hand-made figures and samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ifm.metrics import catalogue, teachers
from ifm.metrics.comparison import Measures
from ifm.metrics.evaluation import evaluate_samples
from ifm.metrics.extractors import CoordinateExtractor
from ifm.metrics.metric import POINTS, Better, Metric
from ifm.metrics.reference import Reference
from ifm.use.card import Evaluation, model_card
from pipeline.runner.headline import headline
from pipeline.stages import track
from pipeline.studies import ranking
from pipeline.studies.study import rows as study_rows

FID, SLICED = catalogue.get("fid"), catalogue.judge(POINTS)
MEASURES = Measures(kid_subsets=1, kid_subset_size=2, neighbours=2, neighbour_samples=9, sliced_projections=4, seed=0)


def teacher(nfe, fid, **more):
    return {"model": "teacher", "sampler": "heun", "nfe": nfe, "fid": fid, **more}


def flow(nfe=1, sampler="one_step", **more):
    return {"model": "flow", "sampler": sampler, "nfe": nfe, **more}


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ({1: 60.0, 9: 0.5, 17: 0.4, 35: 0.45}, 17),  # in the middle
        ({35: 0.4, 17: 0.5, 1: 60.0}, 35),
        ({35: 0.4, 9: 0.4, 17: 0.4}, 9),  # equal: the fewest
        ({1: 3.0}, 1),
        ({1: None, 3: float("nan"), 5: float("inf"), 9: 2.0}, 9),
        ({1: None, 3: float("nan")}, None),
        ({}, None),  # teacher.kind: none
    ],
)
def test_the_best_is_the_least_figure_with_fewest_evaluations(figures, chosen):
    found = teachers.best([teacher(nfe, fid) for nfe, fid in figures.items()], FID)
    assert (found and found["nfe"]) == chosen


def test_the_metric_says_which_way_is_better_and_another_column_may_hold_it():
    rows = [teacher(1, 0.1, share=0.2), teacher(3, 0.3, share=0.9), teacher(5, 0.2, share=0.9)]
    share = Metric("share", "Share", Better.HIGHER)
    assert teachers.best(rows, share)["nfe"] == 3
    assert teachers.best(rows, SLICED, column="fid")["nfe"] == 1


def test_a_ratio_counts_where_it_is_against_the_best():
    rows = [teacher(1, 60.0), teacher(17, 0.4), teacher(35, 0.5)]
    assert teachers.ratio_of(flow(ratio=1.5, teacher_nfe=17), rows, FID) == 1.5
    assert teachers.ratio_of(flow(ratio=1.2), rows, FID) is None  # an earlier version's: against 35
    assert teachers.ratio_of(flow(ratio=1.2), [*rows[:1], rows[2]], FID) == 1.2  # there 35 is the best
    assert teachers.ratio_of(flow(), [], FID) is None


# --- the stage ------------------------------------------------------------------------------------------------------


REAL = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float64)


def judged(folder: Path, shifts):
    """Figures of points on a line: each set is the reference moved, so that its distance is how far."""
    folder.mkdir()
    described = []
    for (model, sampler, nfe), moved in shifts.items():
        name = f"{model}-{sampler}-{nfe}"
        np.save(folder / f"{name}.npy", np.concatenate([REAL + by for by in moved]).astype(np.float32))
        described.append({"name": name, "model": model, "sampler": sampler, "nfe": nfe, "times": [80.0]})
    metadata = {"image_shape": [1], "samplers": described, "seeds": 2}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    of = {"split": "train", "image_shape": [1], "dimension": 1, "warnings": [], "classes": None}
    splits = {"train": REAL.astype(np.float32), "test": REAL[:20].astype(np.float32)}
    reference = Reference(CoordinateExtractor(device=torch.device("cpu")), splits, None, None, None, of)
    return evaluate_samples(folder, reference, measures=MEASURES).figures


def test_points_are_held_against_the_middle_pair_by_pair(tmp_path):
    """Sets at 1 and 3 over a teacher's at 0.5 and 1 are 2 and 3 times as far; the ratio of the means would be 2.67."""
    figures = judged(
        tmp_path / "s",
        {
            ("teacher", "heun", 1): (3.0, 3.0),
            ("teacher", "heun", 3): (0.5, 1.0),
            ("teacher", "heun", 5): (0.25, 2.0),  # best in the first set, not in the mean
            ("flow", "one_step", 1): (1.0, 3.0),
            ("flow", "selected", 2): (0.25, 1.0),
        },
    )
    one, two = figures["flow-one_step-1"], figures["flow-selected-2"]
    assert figures["teacher-heun-3"]["sliced_wasserstein"] == pytest.approx(0.75, rel=1e-5)
    assert (one["teacher_nfe"], two["teacher_nfe"]) == (3, 3)
    assert (one["ratio"], one["ratio_sd"]) == (pytest.approx(2.5, rel=1e-5), pytest.approx(0.5**0.5, rel=1e-4))
    assert (two["ratio"], two["ratio_sd"]) == (pytest.approx(0.75, rel=1e-5), pytest.approx(0.25 * 2**0.5, rel=1e-4))
    assert "teacher_nfe" not in figures["teacher-heun-3"]
    assert one["endpoint_rms"] == pytest.approx((0.75 + 1.0) / 2, rel=1e-5)  # against the finest, at 5
    found = headline(figures)
    assert (found["teacher_nfe"], found["teacher_sliced_wasserstein"]) == (3, pytest.approx(0.75, rel=1e-5))
    assert found["ratio"] == one["ratio"]


def test_equal_teachers_are_the_cheaper_one_and_without_a_teacher_there_is_no_ratio(tmp_path):
    same = {("teacher", "heun", n): (0.5, 1.0) for n in (9, 3, 5)} | {("flow", "one_step", 1): (1.0, 1.0)}
    figures = judged(tmp_path / "s", same)
    assert figures["flow-one_step-1"]["teacher_nfe"] == 3
    alone = judged(tmp_path / "t", {("flow", "one_step", 1): (1.0, 1.0)})["flow-one_step-1"]
    assert not {"ratio", "ratio_sd", "teacher_nfe"} & set(alone)


# --- what reads the figures -----------------------------------------------------------------------------------------

OF_VE = {
    "t1": teacher(1, 60.0, fid_sd=1.0), "t17": teacher(17, 0.4, fid_sd=0.1), "t35": teacher(35, 0.5, fid_sd=0.1),
    "f1": flow(fid=0.6, ratio=1.6, ratio_sd=0.2, teacher_nfe=17, train_distance=0.27, unseen_distance=0.26),
    "f2": flow(2, "renoise", fid=0.3, ratio=0.8, teacher_nfe=17),
}  # fmt: skip
OF_RF = {
    "t1": teacher(1, 60.0), "t9": teacher(9, 0.8), "t35": teacher(35, 0.9),
    "f1": flow(fid=0.6, ratio=0.75, teacher_nfe=9),
}  # fmt: skip


def test_each_dynamics_has_its_own_best_in_what_the_last_stage_prints():
    assert [line.split() for line in track.closing({"ve": OF_VE, "rf": OF_RF}, ["ve", "rf"])[1:3]] == [
        ["ve", "0.6", "0.4", "(17)", "1.6"],
        ["rf", "0.6", "0.8", "(9)", "0.75"],
    ]


def test_mlflow_has_the_ratio_with_its_nfe_and_the_teacher_from_its_best_on():
    results = {"ve": OF_VE, "rf": OF_RF, "diagnostics": {}, "reference": {}}
    figures = track.final_figures(results, ["ve", "rf"])
    assert (figures["ratio/ve-flow-1nfe"], figures["teacher_nfe/ve-flow-1nfe"]) == (1.6, 17)
    assert (figures["ratio/rf-flow-1nfe"], figures["teacher_nfe/rf-flow-1nfe"]) == (0.75, 9)
    of_teacher = [name for name in figures if name.startswith("fid/ve-teacher")]
    assert of_teacher == ["fid/ve-teacher-17nfe", "fid/ve-teacher-35nfe", "fid/ve-teacher-1nfe"]
    assert "over the teacher at its best number of evaluations: ve 17, rf 9." in track.note(figures, "t", "p")


def card(rows, data=None, **described):
    described = {"dynamics": {"name": "ve"}, **described}
    return model_card(described, title="t", usage="u", library=None, data=data, evaluation=Evaluation(rows, {}))


def test_a_card_names_the_nfe_beside_the_ratio_and_how_near_training_images_are():
    text = card(OF_VE)
    assert "has 1.6 ± 0.2 times the FID of its teacher at 17 evaluations, where the teacher is best" in text
    assert "nearest training image, in feature space: 0.27 of the flow's samples in one evaluation, 0.26 of" in text
    old = {name: {k: v for k, v in row.items() if k != "teacher_nfe"} for name, row in OF_VE.items()}
    assert "The teacher is best at 17 evaluations." in card(old)
    assert "times the FID" not in card(old)
    assert "teacher" not in card({"f1": flow(fid=0.6)})


def test_a_card_of_sounds_has_a_frechet_distance_and_no_fid():
    text = card(OF_VE, data="my recordings", image_shape=[1, 32, 24], modality="sound")
    assert "name: Fréchet distance, 1 evaluation (" in text
    assert "times the Fréchet distance of its teacher at 17 evaluations" in text
    assert "nearest training sound, in feature space: 0.27" in text
    assert "0.26 of sounds that training has not seen" in text
    assert "and not FAD: it does not compare with published ones." in text
    assert "FID" not in text


def test_a_sweep_ranks_teachers_at_their_best():
    measure = ranking.Measure("fid", "heun", None)

    class Config:
        class teacher:
            kind = "network"

        class evaluate:
            teacher_nfe = (1, 17, 35)

    assert measure.row(OF_VE, Config)["nfe"] == 17
    assert ranking.Measure("fid", "heun", 35).row(OF_VE, Config)["fid"] == 0.5
    empty = dict.fromkeys(ranking.HIGHER_IS_BETTER)
    common = {**empty, "data": "d", "sampler": "heun", "dynamics": "ve", "lr": "1", "experiment": "e"}
    rows = [{**common, "seed": s, "nfe": nfe, "fid": fid} for s, nfe, fid in ((0, 17, 0.4), (1, 9, 0.6))]
    table = ranking.ranked(rows, ["lr"], measure)
    assert (table.nfe.tolist(), table.fid.tolist(), table.seeds.tolist()) == (["9 to 17"], [0.5], [2])


def test_a_studys_rows_have_the_teacher_at_its_best(monkeypatch):
    class Task:
        dynamics, seed = ("ve",), 3

        class config:
            class flow:
                steps = 7

        class variant:
            @staticmethod
            def facts(task, dynamics, records):
                return {"variant": "v"}

    monkeypatch.setattr("pipeline.studies.study.data_name", lambda config: "d")
    first, second = study_rows(Task, {"ve": OF_VE, "reference": {"extractor": "pixels"}}, {})
    for row in (first, second):
        assert (row["teacher_nfe"], row["teacher_most_nfe"], row["teacher_fid"]) == (17, 35, 0.4)
        assert row["teacher_1_fid"] == 60.0
