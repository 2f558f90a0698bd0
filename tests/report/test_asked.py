"""The report's section on classes that were asked for, and the curve against the guidance scale."""

import re

import pandas as pd
import pytest

from ifm.report.asked import asked
from ifm.report.contents import AskedClasses
from ifm.report.page import render
from ifm.report.plots import against_guidance, by_class
from tests.support.reports import full_report, pictures, summary_of

CLASSES = [str(i) for i in range(10)]


def guided(scale=1.0):
    rows = []
    for w in (1.0, 2.0, 4.0):
        common = {"guidance": w, "seeds": 3, "n_samples": 1000, "fid": scale * (1 + w), "recall": 1 / (1 + w)}
        rows.append(
            {"model": f"flow-w{w:g}", "sampler": "one_step", "nfe": 1, "asked_class_share": 0.9 + w / 50, **common}
        )
        rows.append({"model": f"teacher-w{w:g}", "sampler": "heun", "nfe": 9, **common, "seeds": 1})
    return rows


def report(**changes):
    summary = summary_of("ve", "rf")
    flow = (summary["model"] == "flow") & (summary["sampler"] == "one_step")
    summary.loc[flow, ["asked_class_share", "asked_class_share_sd", "fid_within_classes"]] = [0.9712, 0.0032, 12.3]
    first = summary[flow].head(1)
    more = [first.assign(model=f"flow-w{w}", fid=7654.3) for w in (2, 4)]
    summary = pd.concat([summary, *more], ignore_index=True)
    found = {
        "ve": AskedClasses(pictures(0)[0][1], [0.97] * 9 + [None], [12.3] * 10, guided()),
        "rf": AskedClasses(b"", [0.9] * 10, None, guided(2.0)),
    }
    return full_report(summary=summary, asked=found, **changes)


@pytest.mark.usefixtures("undrawn")
def test_the_page_shows_what_was_asked():
    page = render(report())
    section = page[page.index("<h2>Classes asked for</h2>") : page.index("<h2>Diagnostics</h2>")]
    assert section.count("97.1 ± 0.3") == 2
    assert section.count("a row for each class") == 1  # the one dynamics that has a grid
    assert 'aria-label="In the class asked for (%), by class asked for"' in section
    assert 'aria-label="FID within the class, by class asked for"' in section
    for title in ("FID", "Recall", "In the class asked for"):
        assert f'aria-label="{title} against the guidance scale"' in section
    rows = re.findall(r'<td data-head="Model">(.*?)</td><td class="n" data-head="w">(.*?)</td>', section)
    assert rows[:6] == [("flow, 1 step", w) for w in "124"] + [("teacher, 9 NFE", w) for w in "124"]
    assert page == render(report())
    assert page.count("7654.3") == page.count('data-key="7654.3"') == 2  # in the table of all rows, and nowhere else


def test_the_figures_are_the_same_for_the_same_classes():
    """Drawn, as on the page."""
    found, again = asked(report()), asked(report())
    for one, other in ((found, again), (found["guidance"], again["guidance"])):
        assert one["figures"] == other["figures"]
    figures = [svg for _, svg in found["figures"] + found["guidance"]["figures"]]
    labels = [re.search('aria-label="([^"]*)"', svg)[1] for svg in figures]
    told = ("In the class asked for (%)", "FID within the class")
    guided = ("FID", "In the class asked for", "Recall")
    assert labels[:2] == [f"{title}, by class asked for" for title in told]
    assert labels[2:] == [f"{title} against the guidance scale" for title in guided]
    assert all("<path" in svg and "<text" in svg for svg in figures)


@pytest.mark.usefixtures("undrawn")
def test_a_page_without_classes_asked_for_is_what_it_was():
    page = render(full_report())
    assert "Classes asked for" not in page
    assert "<h2>Guidance</h2>" not in page
    assert asked(full_report()) is None


def test_no_curve_without_scales_and_no_table_either():
    found = asked(full_report(asked={"ve": AskedClasses(shares=[0.5] * 10)}))
    assert found["guidance"] is None
    assert found["grids"] == []
    assert against_guidance({"ve": guided()}, key="kid", title="KID") is None


def test_values_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(ValueError, match="ve: 3 values for 10 classes"):
        by_class({"ve": [0.1, 0.2, None]}, classes=CLASSES, name="x", title="X")
