"""The headline: the teacher at its best NFE, the flow at several, nearness to training data, the opening sentence."""

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

from ifm.errors import UserError
from ifm.modalities.pictures import side_by_side_choice
from ifm.report.headlines import as_text, best_teachers, headline_cells, headlines, outdated
from ifm.report.opening import opening
from ifm.report.page import render
from ifm.report.summary import summary_columns, summary_csv
from pipeline.tools import comparison, readme
from pipeline.tools.compare_tables import headline as compared
from tests.support.pages import Page
from tests.support.reports import full_report, summary_of

COMMON = {
    "data": "digits", "extractor": "classifier", "checksum": "0", "reference": "train split", "seed": 0, "seeds": 3,
    "n_samples": 1000,
}  # fmt: skip
TEACHERS = {"ve": {1: 60.0, 9: 0.7, 17: 0.4, 35: 0.5}, "rf": {1: 70.0, 9: 0.6, 17: 0.6, 35: 0.9}}  # best: 17, and 9


def row(d, model, sampler, nfe, fid, **more):
    fixed = {"dynamics": d, "model": model, "sampler": sampler, "nfe": nfe, "fid": fid, "seconds_per_image": 1e-4 * nfe}
    return COMMON | fixed | {"recall": 0.9, "train_distance": 0.26, "unseen_distance": 0.25} | more


def rows_of(d, nfe, **common):
    """A teacher whose best is `nfe`, and a flow that has several samplers from two evaluations on."""
    teachers = [row(d, "teacher", "heun", n, fid, fid_sd=0.02, **common) for n, fid in TEACHERS[d].items()]
    of = {"objective": "trajectory", "anchor": "self", "teacher_nfe": nfe, **common}
    flows = [
        row(d, "flow", "one_step", 1, 0.6, **{"ratio": 1.5, "ratio_sd": 0.1, "train_distance": 0.27, **of}),
        row(d, "flow", "anchor", 2, 0.55, **{"ratio": 1.4, **of}),
        row(d, "flow", "selected", 2, 0.3, **{"ratio": 0.75, **of}),
        row(d, "flow", "renoise", 4, 0.2, **{"ratio": 0.5, **of}),
        row(d, "flow", "a new one", 4, 0.21, **{"ratio": 0.52, **of}),
    ]
    return [*teachers, *flows]


def table(*rows):
    return pd.DataFrame([each for some in rows for each in some]).reindex(columns=summary_columns())


BOTH = table(rows_of("ve", 17), rows_of("rf", 9))


@cache
def page_of_both():
    """The page that some tests look at beside its figures: with the fixture `undrawn`."""
    return render(full_report(summary=BOTH))


# --- the teacher at its best ----------------------------------------------------------------------------------------


def test_each_dynamics_has_its_own_best_and_of_equal_ones_the_cheapest():
    ve, rf = headlines(BOTH)
    assert [(line.teacher_nfe, line.teacher_fid.mean) for line in (ve, rf)] == [((17,), 0.4), ((9,), 0.6)]
    assert (ve.ratio.mean, ve.ratio.deviation, ve.single_fid.mean) == (1.5, 0.1, 60.0)
    assert (ve.speed_up, rf.speed_up) == (pytest.approx(17), pytest.approx(9))  # against the best, not against 35


def test_points_are_judged_by_their_distance():
    points = BOTH.assign(extractor="coordinates", sliced_wasserstein=BOTH["fid"], fid=np.nan)
    assert [line.teacher_nfe for line in headlines(points)] == [(17,), (9,)]
    assert [line.ratio.mean for line in headlines(points)] == [1.5, 1.5]


def test_without_a_teacher_there_is_the_flow_alone():
    alone = BOTH[BOTH["model"] == "flow"].assign(ratio=np.nan, teacher_nfe=np.nan)
    for line in headlines(alone):
        assert (line.teacher_fid, line.teacher_nfe, line.ratio, line.speed_up) == (None, (), None, None)
    assert outdated(alone) == []
    assert "teacher" not in opening(alone, data="digits")


def test_seeds_of_training_have_their_own_best():
    """Seed 0 is best at 17, seed 1 at 35: each ratio is against its own, the figure is the mean of both."""
    second = table(rows_of("ve", 35, seed=1, ratio=2.0))
    second.loc[second["nfe"] == 35, "fid"] = 0.2
    both = pd.concat([table(rows_of("ve", 17)), second], ignore_index=True)
    (line,) = headlines(both)
    assert (line.teacher_nfe, line.teacher_fid.mean) == ((17, 35), pytest.approx(0.3))
    assert (line.ratio.mean, line.ratio.seeds) == (1.75, 2)
    assert best_teachers(both[both["model"] == "teacher"])["nfe"].tolist() == [17, 35]
    assert headline_cells([line])[0]["nfe"] == "17 to 35"
    assert "over 2 training seeds, each the mean over 3 sampling seeds" in readme.table(both)


@pytest.mark.usefixtures("undrawn")
def test_a_ratio_of_an_earlier_version_is_left_out_and_named():
    old = BOTH.assign(teacher_nfe=np.nan)  # against 35, which is best in neither
    assert [line.ratio for line in headlines(old)] == [None, None]
    assert [text.split(",")[0] for text in outdated(old)] == [
        "VE diffusion: the stored ratio is over the teacher at 35 evaluations",
        "Rectified flow: the stored ratio is over the teacher at 35 evaluations",
    ]
    page = Page(render(full_report(summary=old, diagnostics={}))).text
    assert "VE diffusion: the stored ratio is over the teacher at 35 evaluations, its best is 17" in page
    assert "*With care:* VE diffusion: the stored ratio" in readme.table(old)
    still = old[(old["dynamics"] == "ve") & ~old["nfe"].isin([9, 17])]  # there the largest is the best
    assert (headlines(still)[0].ratio.mean, outdated(still)) == (1.5, [])


def test_two_states_are_compared_at_their_own_best():
    a, b = (table(rows_of(*each)).drop(columns="warnings") for each in (("ve", 17), ("rf", 9)))
    frames = [rows.assign(**{key: rows[key].fillna("") for key in comparison.TEXT_KEYS}) for rows in (a, b)]
    frames[1]["dynamics"] = "ve"
    lines = compared(comparison.paired(*frames), "fid")[0]["lines"]
    assert [(line["title"], [mean for mean, _ in line["figures"]]) for line in lines] == [
        ("Flow, 1 step", ["0.6000", "0.6000"]),
        ("Teacher, 17 against 9 NFE", ["0.4000", "0.6000"]),
        ("Flow / teacher", ["1.500", "1.500"]),
    ]


@pytest.mark.parametrize(("best", "shown"), [(17, [1, 17, 1]), (1, [1, 1]), (None, [1, 35, 1]), (8, [1, 35, 1])])
def test_grids_show_the_teacher_at_its_best(best, shown):
    samplers = [{"model": "flow", "nfe": n} for n in (2, 1)] + [{"model": "teacher", "nfe": n} for n in (1, 17, 35)]
    assert [s["nfe"] for s in side_by_side_choice(samplers, best=best)] == shown


# --- several evaluations, nearness ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_the_flow_at_each_number_of_evaluations_by_its_best_sampler():
    (line, _) = headlines(BOTH)
    assert [(step.nfe, step.sampler, step.fid.mean, step.ratio.mean) for step in line.steps] == [
        (1, "one_step", 0.6, 1.5), (2, "selected", 0.3, 0.75), (4, "renoise", 0.2, 0.5),
    ]  # fmt: skip
    text = " ".join(Page(page_of_both()).text.split())
    assert "0.30 selected, ratio 0.75, nearest 0.260" in text.replace("\xa0", " ")


@pytest.mark.usefixtures("undrawn")
def test_the_headline_says_how_near_samples_are_to_training_images():
    text = Page(page_of_both()).text.replace("\xa0", " ")
    assert "flow 0.270, teacher 0.260, test images 0.250" in text
    without = Page(render(full_report(summary=summary_of("ve")))).text
    assert "Nearest training image" not in re.split("All measurements", without)[0]
    assert "\n- VE diffusion: flow 0.27, teacher 0.26, test images 0.25" in readme.table(BOTH)


def test_the_readmes_table_names_the_nfe_and_the_seeds():
    lines = readme.table(BOTH).splitlines()
    assert lines[0].startswith("| dynamics | FID: flow, 1 NFE | teacher, best (NFE) | ratio | teacher, 1 NFE |")
    assert lines[2] == "| VE diffusion | 0.600 | 0.400 ± 0.020 (17) | 1.50 ± 0.10 | 60.0 | 0.90 | 0.90 | 17.0x |"
    assert lines[3].startswith("| Rectified flow | 0.600 | 0.600 ± 0.020 (9) | 1.50 ± 0.10 | 70.0 |")
    assert "Mean ± standard deviation over 3 sampling seeds of 1,000 samples; one training seed." in lines


# --- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_the_page_opens_with_the_sentence_then_the_grids_then_the_headline():
    page = page_of_both()
    places = [page.index(part) for part in ('<p class="opening">', "<h2>Samples</h2>", '<table class="headline">')]
    assert places == sorted(places)
    assert Page(page).text.count("Two networks (VE diffusion, Rectified flow) were trained on digits to turn") == 1


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((0.8, 0.7), "are better than"),
        ((0.95, 1.05), "are about as good as"),
        ((1.5, 1.2), "are not as good as"),
        ((0.8, 1.0), "are as good as or better than"),
        ((1.0, 1.4), "are at best as good as"),
        ((0.8, 1.4), "are in part better, in part worse than"),
    ],
)
def test_the_opening_says_in_words_what_the_ratios_say(ratios, said):
    """A ratio within its standard deviation of 1, here 0.1, is about as good."""
    parts = [
        table(rows_of(d, nfe, ratio=ratio)) for (d, nfe), ratio in zip((("ve", 17), ("rf", 9)), ratios, strict=True)
    ]
    text = opening(pd.concat(parts), data="digits")
    assert f"these images {said} those of the teacher network, which takes 9 to 17 steps" in text


def test_the_headline_as_plain_text(tmp_path):
    (tmp_path / "summary.csv").write_text(summary_csv(BOTH), encoding="utf-8")
    lines = [re.split(r"\s{2,}", line.strip()) for line in as_text(tmp_path).splitlines()]
    assert lines[0] == ["evaluations", "FID", "over the teacher's", "nearest training image"]
    assert lines[1:5] == [
        ["VE diffusion, one step", "1", "0.60", "1.50", "0.270"],
        ["VE diffusion, selected", "2", "0.30", "0.75", "0.260"],
        ["VE diffusion, re-noised", "4", "0.20", "0.50", "0.260"],
        ["VE diffusion, teacher at its best", "17", "0.40 ± 0.02", "0.260"],
    ]
    assert lines[-1] == ["images that training has not seen", "0.250"]


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("a,b\n1,2\n", "has no column data")])
def test_a_summary_that_is_none_is_one_line(content, said, tmp_path):
    if content:
        (tmp_path / "summary.csv").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        as_text(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_earlier_summary_is_read_without_its_new_columns(tmp_path):
    old = BOTH.drop(columns=["teacher_nfe", "train_distance", "train_distance_sd", "unseen_distance"])
    old.to_csv(tmp_path / "summary.csv", index=False)
    text = as_text(tmp_path)
    assert "VE diffusion, teacher at its best" in text
    assert "the ratio is left out until the figures are made again" in text
