"""Finished runs become one file of results, and the tables of a docs page."""

import io
from dataclasses import replace

import pandas as pd
import pytest

from ifm.errors import UserError
from ifm.report.summary import summary_columns
from pipeline.tools import results
from pipeline.tools.comparison import Side
from pipeline.tools.results import CLASSES, MODALITIES, TEACHERS


def side(*, seed=0, kind="class", objective: str = "trajectory"):
    """A run of one dynamics: a teacher at two NFE, the flow in one and two steps, and in one step and at w = 2."""
    common = {"data": "digits", "extractor": "classifier", "dynamics": "ve", "seed": seed, "anchor": ""}
    flow = {**common, "objective": objective}
    rows = [
        {**common, "objective": "", "model": "teacher", "sampler": "heun", "nfe": 9, "fid": 2.0},
        {**common, "objective": "", "model": "teacher", "sampler": "heun", "nfe": 17, "fid": 1.0 + seed},
        {
            **flow,
            "model": "flow",
            "sampler": "one_step",
            "nfe": 1,
            "fid": 1.5,
            "recall": 0.9,
            "asked_class_share": 0.98,
        },
        {**flow, "model": "flow", "sampler": "selected", "nfe": 2, "fid": 1.2},
        {**common, "dynamics": "", "objective": "", "model": "data", "sampler": "test", "nfe": 0, "fid": 0.5},
    ]
    if kind == "class":
        rows.append(
            {**flow, "model": "flow-w2", "sampler": "one_step", "nfe": 1, "fid": 1.8, "asked_class_share": 0.99}
        )
        rows.append({**common, "objective": "", "model": "teacher-w2", "sampler": "heun", "nfe": 9, "fid": 1.9})
    params = {"condition": {"kind": kind}, "flow": {}}
    summary = pd.DataFrame(rows).reindex(columns=summary_columns())
    return Side("x", "c0", "", "", "experiment", summary, params=params)


def test_rows_are_the_flow_in_one_step_the_best_teacher_and_other_scales():
    found = results.table(results.rows_of(side(), CLASSES))
    assert list(found) == list(results.COLUMNS)
    fids = found[found.metric == "fid"]
    assert {(r.model, r.nfe, r.value) for r in fids.itertuples()} == {
        ("flow", 1, 1.5), ("flow-w2", 1, 1.8), ("teacher", 17, 1.0), ("teacher-w2", 9, 1.9),
    }  # fmt: skip
    assert set(found[found.model == "flow"].metric) == {"asked_class_share", "fid", "recall"}
    assert found[found.model == "flow"].objective.unique().tolist() == ["trajectory"]
    assert found[found.model == "teacher"].objective.unique().tolist() == [""]


def test_a_run_without_classes_and_one_of_two_objectives_are_named():
    found = pd.DataFrame(results.rows_of(side(kind="none", objective="trajectory+consistency"), CLASSES))
    assert set(found.model) == {"flow-unconditional", "teacher-unconditional"}
    assert set(found.objective) == {"trajectory+consistency", ""}


def test_the_file_does_not_depend_on_the_order_of_runs_and_none_counts_twice():
    runs = [side(seed=seed) for seed in (0, 1)]
    one, other = (
        results.table(row for run in order for row in results.rows_of(run, CLASSES)) for order in (runs, runs[::-1])
    )
    assert one.to_csv() == other.to_csv()
    with pytest.raises(UserError, match="ve, teacher, seed 0: two states have it"):
        results.table(2 * results.rows_of(runs[0], CLASSES))


def test_docs_have_means_over_seeds_between_their_marks(tmp_path, monkeypatch):
    page = tmp_path / "docs" / "classes.md"
    mark = CLASSES.mark
    page.parent.mkdir()
    short = results.IN_SHORT
    page.write_text(f"{short}\nold\n{short}\nbefore\n{mark}\nold\n{mark}\nafter\n")
    monkeypatch.chdir(tmp_path)
    found = results.table(row for seed in (0, 1) for row in results.rows_of(side(seed=seed), CLASSES))
    found.to_csv(tmp_path / "classes.csv", index=False)
    results.write_docs(pd.read_csv(tmp_path / "classes.csv"), CLASSES)
    text = page.read_text()
    assert f"\n{short}\nbefore\n{mark}\n| data |" in text
    assert text.startswith(f"{short}\n| one step, 2 training seeds | `ve` |\n|---|---|\n")
    assert "| FID | 1.50 ± 0.00 |\n| FID of `digits-long`, without classes | – |" in text
    assert "| FID, recall at w | `ve` flow | teacher |\n|---|---|---|\n| 2 | 1.80, – | 1.90, – |" in text
    assert text.endswith(f"Means ± standard deviations over 2 training seeds.\n{mark}\nafter\n")
    assert "| digits | ve |  | teacher | 9, 17 |" in text  # seed 1's best is at 9
    assert "| 1.500 ± 0.000 |" in text


def test_other_modalities_have_every_teacher_and_real_data():
    found = results.table(results.rows_of(side(), MODALITIES))
    distances = found[found.metric == "frechet"]
    assert {(r.model, r.nfe, r.value) for r in distances.itertuples()} == {
        ("flow", 1, 1.5), ("flow", 2, 1.2), ("teacher", 9, 2.0), ("teacher", 17, 1.0), ("data", 0, 0.5),
    }  # fmt: skip
    text = results.markdown(found, MODALITIES)
    assert "| Fréchet distance |" in text
    assert [line.split("|")[5].strip() for line in text.splitlines() if "| teacher |" in line] == ["9", "17"]
    assert "| digits |  |  | data | 0 | – | 0.500 |" in text


def test_runs_are_added_to_the_file_and_a_newer_one_takes_the_place_of_the_old():
    first, second = (results.table(results.rows_of(side(seed=seed), MODALITIES)) for seed in (0, 1))
    both = results.added(first, second, MODALITIES)
    assert len(both) == len(first) + len(second)
    pd.testing.assert_frame_equal(results.added(both, second, MODALITIES), both)
    read = pd.read_csv(io.StringIO(both.to_csv(index=False)))  # empty names come back as NaN
    pd.testing.assert_frame_equal(results.added(read, second, MODALITIES), both)


def test_a_run_by_class_leaves_the_one_without_classes():
    without, by_class = (
        results.table(results.rows_of(replace(side(), params={"condition": {"kind": kind}}), CLASSES))
        for kind in ("none", "class")
    )
    both = results.added(without, by_class, CLASSES)
    assert len(both) == len(without) + len(by_class)
    pd.testing.assert_frame_equal(results.added(both, by_class, CLASSES), both)
    pd.testing.assert_frame_equal(results.added(both, without, CLASSES), both)


def test_runs_of_other_networks_latents_and_teachers_stand_side_by_side():
    """With the autoencoder's floor; a run again takes the place of its own rows alone."""
    changes = {
        "": {},
        "-transformer": {"network": {"kind": "transformer"}},
        "-latents": {"data": {"encoder": "models/public/autoencoder"}},
        "-public": {"teacher": {"kind": "pretrained"}},
    }
    found = None
    for ending, params in changes.items():
        floor = {"reference": {"reconstruction_fid": 0.25}} if ending == "-latents" else {}
        new = results.table(results.rows_of(replace(side(), params=params, metrics=floor), TEACHERS))
        assert {r.model for r in new.itertuples() if r.dynamics} == {f"flow{ending}", f"teacher{ending}"}
        found = new if found is None else results.added(found, new, TEACHERS)
    assert found[found.model == "autoencoder"].value.tolist() == [0.25]
    assert len(found[found.metric == "fid"]) == 4 * 4 + 1
    pd.testing.assert_frame_equal(results.added(found, new, TEACHERS), found)


def test_the_command_adds_runs_and_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "read_side", lambda state: side(seed=int(state)))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/modalities.md").write_text(f"a\n{MODALITIES.mark}\n{MODALITIES.mark}\nb\n")
    for words in (["modalities", "0"], ["modalities", "--add", "1"], ["modalities", "--docs"]):
        monkeypatch.setattr("sys.argv", ["results", *words])
        results.main()
    assert pd.read_csv(tmp_path / MODALITIES.csv).seed.unique().tolist() == [0, 1]
    assert (
        "| digits | ve | trajectory | flow | 1 | 0.980 ± 0.000 | 1.500 ± 0.000 |"
        in (tmp_path / "docs/modalities.md").read_text()
    )
    monkeypatch.setattr("sys.argv", ["results", "classes"])
    with pytest.raises(SystemExit, match="which runs"):
        results.main()
