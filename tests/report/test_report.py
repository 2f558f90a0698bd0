"""The report page: safe, self-contained, the same for the same input, and no wider than its window."""

import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ifm.metrics.weights import INCEPTION_SHA256
from ifm.modalities.pictures import grid_png, save_grid, side_by_side
from ifm.report import plots
from ifm.report.contents import AskedClasses, PointSamples, Report
from ifm.report.headlines import headline_cells, headlines, over_teacher
from ifm.report.page import render, short_commit
from ifm.report.published import CIFAR10, IMAGENET256, benchmark_of
from ifm.report.rounding import significant
from ifm.report.summary import summary_columns, summary_csv, summary_json
from ifm.report.tables import full_table
from tests.support.pages import SPLIT_WORDS, Page, chromium
from tests.support.reports import TEACHER_FID, curve, diagnostics_of, full_report, pictures, summary_of


@pytest.fixture(scope="module")
def page():
    return render(full_report())


def headline_row(page, name):
    """The headline's cells of one dynamics."""
    body = page[page.index('<table class="headline">') : page.index("</table>")]
    row = next(row for row in body.split("<tr>") if name in row)
    return [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


# --- what it says -------------------------------------------------------------------------------------------


def test_headline_has_the_figures_their_ratio_and_the_speed_up(page):
    """The ratio is the one of equal prior draws, `ratio` in the summary, not the quotient of the two means (2.22)."""
    assert headline_row(page, "VE diffusion") == ["1.94 ± 0.04", "0.87 (35)", "2.20 ± 0.03", "313.2", "35.0×"]
    assert "Means over 3 sampling seeds, ± one standard deviation." in Page(page).text


@pytest.mark.usefixtures("undrawn")
def test_headline_of_seeds_is_mean_and_deviation():
    rows = pd.concat([summary_of("rf", seed=0, factor=1.0), summary_of("rf", seed=1, factor=3.0)])
    page = render(full_report(summary=rows))
    assert headline_row(page, "Rectified flow")[:3] == ["3.88 ± 2.74", "1.74 ± 1.23 (35)", "2.20 ± 0.00"]
    assert "2 seeds" in page


def test_each_objective_and_anchor_policy_has_its_own_line():
    rows = pd.concat([summary_of("ve"), summary_of("ve", anchor="none", factor=2.0)[6:]])
    lines = headlines(rows)
    assert [(line.variant, line.flow_fid.mean) for line in lines] == [
        ("trajectory, anchor self", 1.94),
        ("trajectory, anchor none", 3.88),
    ]
    assert {line.teacher_fid.mean for line in lines} == {TEACHER_FID[35]}
    assert "trajectory, anchor none" in plots.quality_against_nfe(rows)


def test_extractors_are_kept_apart():
    rows = summary_of("ve")
    both = pd.concat([rows, rows.assign(extractor="pixels", fid=rows["fid"] * 10)])
    page = render(full_report(summary=both))
    assert page.count('<table class="headline">') == 2
    fids = ("FID against NFE", "FID against time")
    floored = [part for part in page.split("<svg")[1:] if any(f in part for f in fids) and "Real test images" in part]
    assert len(floored) == 2  # two plots of the reference's extractor only
    with pytest.raises(ValueError, match="extractor"):
        plots.quality_against_nfe(both)


def table_rows(page, label):
    """The cells of each body row of the table in the region so labelled."""
    body = page[page.index(f'aria-label="{label}"') :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    return [
        [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in body.split("<tr>")[1:]
    ]


def test_protocol_stands_beside_the_figures(page):
    text = Page(page).text
    assert "classifier features, weights 0123456789ab, 3 × 1,000 samples, against train split (1,438 images)" in text
    both = replace(full_report(), reference=full_report().reference | {"checksum": "f" * 64, "resize": "none at all"})
    text = Page(render(both)).text
    assert f"sha256 {'f' * 64}" in text
    assert text.count("none at all") == 2  # beside the figures, and in the protocol


def test_fid_at_two_numbers_of_samples(page):
    rows = table_rows(page, "FID at two numbers of samples")
    assert rows[0] == ["VE diffusion", "flow, 1 step", "1.940", "1.740", "1.640"]
    assert "3,000 samples" in page


def test_copies_are_told_by_distance_and_share(page):
    assert table_rows(page, "Nearness to training data")[1] == ["Rectified flow", "0.481 ± 0.011", "6.2 ± 0.5"]


def test_time_by_batch_size_marks_the_best(page):
    assert table_rows(page, "Time by batch size")[0] == ["VE diffusion", "4.20", "0.210", "0.250"]
    assert page.count("<b>0.210</b>") == 3


def test_classes_are_tested(page):
    assert table_rows(page, "Class coverage")[0][-2:] == ["0", "2.35 (0.012)"]


def test_real_images_are_a_row_and_a_line_but_no_model(page):
    row = next(row for row in table_rows(page, "All measurements") if row[1] == "data")
    assert row[0] == "–"
    assert row[2] == "test"
    assert [line.dynamics for line in headlines(full_report().summary)] == ["ve", "rf", "pfgmpp"]
    models = full_report().summary.query("model != 'data'")
    bare, floored = (plots.metrics_against_nfe(models, floors) for floors in ({}, {"precision": 0.9, "recall": 0.9}))
    assert floored["precision"] != bare["precision"]
    assert floored["precision"] in page
    assert floored["recall"] == bare["recall"]  # recall depends on the number of samples: no line


def test_the_pareto_front_is_what_no_point_beats():
    rng = np.random.default_rng(0)
    cost, loss = rng.integers(0, 20, 60).tolist(), rng.integers(0, 20, 60).tolist()
    found = plots.pareto_front(cost, loss)
    points = list(zip(cost, loss, strict=True))
    best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {points[i] for i in found} == best
    assert len(found) == len(best)
    assert plots.pareto_front([], []) == []


def diagnostic_rows(page):
    """Title -> cells of the diagnostics' table."""
    table = page[page.index('<table class="diagnostics">') :]
    rows = table[: table.index("</table>")].split("<tr>")[2:]
    cells = [[re.sub("<[^>]+>", "", c).strip() for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]
    return {title: numbers for title, *numbers in cells}


def test_diagnostics_are_numbers_and_figures(page):
    rows = diagnostic_rows(page)
    assert len(rows) == 12
    assert rows["Closest approach of estimated paths, in data spacings"] == ["0.877"] * 3
    assert rows["Smallest singular value of the Jacobian, Gaussian data 1"] == ["2.4·10⁻⁴"] * 3
    assert rows["Jacobians with negative determinant, largest share at one time, %"] == ["62.5"] * 3
    assert rows["One-step error against the teacher’s fine solve, new paths"] == ["0.186"] * 3
    for name in ("approach", "jacobian", "stability", "anchor", "straightness", "error"):
        assert f'id="diagnostic-{name}-' in page
    assert "captions" not in page


def test_diagnostics_of_a_flow_that_gives_one_image_for_everything():
    collapsed = diagnostics_of("rf")
    collapsed["anchor"]["steps"] = [0.0 for _ in collapsed["anchor"]["steps"]]
    collapsed["stability"] = {name: dict.fromkeys(q, 0.0) for name, q in collapsed["stability"].items()}
    assert 'id="diagnostic-anchor-' in render(full_report(diagnostics={"rf": collapsed}))


def test_diagnostics_without_anchor_bounded_and_exact():
    found = {"rf": diagnostics_of("rf", anchor=False, whole=False) | {"reference": "exact"}}
    page = render(full_report(diagnostics=found))
    rows = diagnostic_rows(page)
    assert len(rows) == 9
    assert not [title for title in rows if "nchor" in title or "determinant" in title]
    assert "Smallest singular value of the Jacobian, bound from above by random directions, Gaussian data 1" in rows
    assert "One-step error against the exact flow map, new paths" in rows
    assert "diagnostic-anchor" not in page
    assert "Smallest, bound from above" in page
    mixed = render(full_report(diagnostics=found | {"ve": diagnostics_of("ve")}))
    assert diagnostic_rows(mixed)["Sensitivity to the anchor"] == ["1.44", "–"]


@pytest.mark.usefixtures("undrawn")
def test_errors_against_a_closed_form_have_rows_where_there_is_one():
    known = diagnostics_of("rf")
    known["error"] = known["error"] | {
        "exact": {"one_step": 0.0456, "teacher": 0.00789, "profile": known["error"]["profile"]}
    }
    rows = diagnostic_rows(render(full_report(diagnostics={"rf": known, "pfgmpp": diagnostics_of("pfgmpp")})))
    assert len(rows) == 14
    assert rows["One-step error against the data’s closed-form flow map, new paths"] == ["0.0456", "–"]
    assert rows["The teacher’s fine solve against the same"] == ["0.00789", "–"]


OF_THE_PAPERS = {
    "extractor": "inception", "checksum": INCEPTION_SHA256, "split": "train", "dimension": 2048, "n_train": 50_000,
    "n_test": 10_000, "image_shape": [3, 32, 32], "resize": "clean-fid: PIL bicubic",
}  # fmt: skip


def of_the_papers(*, data="uoft-cs/cifar10", samples=50_000, **changes):
    """A report on CIFAR-10 by the papers' protocol, with changes of its reference."""
    rows = full_report().summary.assign(extractor="inception", n_samples=samples, data=data)
    return full_report(summary=rows, data=data, reference=OF_THE_PAPERS | changes)


@pytest.mark.usefixtures("undrawn")
def test_published_figures_stand_beside_figures_of_the_same_protocol_alone():
    text = Page(render(of_the_papers())).text
    shown = text[text.index("Published figures") :]
    for method, fid, source in (
        ("SiDA", "1.50", "2410.14919"), ("TCM", "2.46", "2410.14895"), ("CMT", "2.74", "2509.24526"),
        ("CMT", "1.97", "2509.24526"), ("MeanFlow", "2.92", "2505.13447"), ("sCT", "2.85", "2410.11081"),
        ("ECT", "3.60", "2406.14548"), ("ECT", "2.11", "2406.14548"), ("Integration Flow, VE", "2.86", "2504.20179"),
        ("rectified flow", "3.36", "2504.20179"), ("Integration Flow, PFGM++", "2.91", "2504.20179"),
    ):  # fmt: skip
        assert re.search(rf"{re.escape(method)}\D*\d+\s+{re.escape(fid)}\s+arXiv {re.escape(source)}", shown), method
    assert "are near, not equal" in shown  # the papers resize otherwise
    assert "Drifting" not in shown


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "digits"}, {"data": "uoft-cs/cifar100"}, {"samples": 10_000}, {"extractor": "classifier"},
        {"checksum": "0" * 64}, {"split": "test"}, {"n_train": 40_000}, {"image_shape": [3, 64, 64]},
    ],
    ids=str,
)  # fmt: skip
def test_published_figures_of_another_protocol_are_not_shown(changes):
    assert benchmark_of(of_the_papers()) is CIFAR10
    assert benchmark_of(of_the_papers(**changes)) is None


def test_published_figures_by_class_are_for_flows_by_class():
    imagenet = of_the_papers(data="ILSVRC/imagenet-1k", n_train=1_281_167, image_shape=[3, 256, 256])
    assert benchmark_of(imagenet) is None
    assert benchmark_of(replace(imagenet, asked={"rf": AskedClasses()})) is IMAGENET256
    assert [(f.method, f.nfe, f.fid) for f in IMAGENET256.figures] == [
        ("Drifting", 1, "1.54"), ("FACM", 1, "1.70"), ("iMF-XL/2", 1, "1.72"), ("MeanFlow-XL/2", 1, "3.43"),
        ("FACM", 2, "1.32"), ("iMF-XL/2", 2, "1.54"),
    ]  # fmt: skip


def test_a_page_of_another_protocol_has_no_published_figures(page):
    assert "Published figures" not in Page(page).text


def test_params_stand_exactly(page):
    inside = re.search(r"<pre[^>]*><code>(.*?)</code></pre>", page, flags=re.DOTALL).group(1)
    assert html.unescape(inside) == full_report().params_text


def test_significant_digits():
    assert [significant(x) for x in (0.00123456, 12.345, 1234.5, 0.0, float("nan"))] == [
        "0.00123",
        "12.3",
        "1,234",
        "0",
        "–",
    ]


# --- numbers, nouns and columns by the kind of data ---------------------------------------------------------


def points_summary(dimensions=2, *, memory=0.0, seeds=3):
    """Of a law in so many dimensions: no FID, and none of what images alone have."""
    common = {
        "data": "gaussian", "extractor": "coordinates", "checksum": "identity", "seed": 0, "seeds": seeds,
        "reference": "train split (8,000 points)", "n_samples": 1000, "peak_memory_mb": memory, "train_images": 192_000,
        "seconds_batch_1": 7.1e-4,
    }  # fmt: skip
    rows = [
        common
        | kind
        | {"dynamics": d, "nfe": nfe, "sliced_wasserstein": quality, "energy_distance": quality / dimensions,
           "sliced_wasserstein_sd": 0.0041 if seeds > 1 else np.nan, "seconds_per_image": 2.3e-7 * nfe}
        for d in ("ve", "rf", "pfgmpp")
        for kind, nfe, quality in (
            ({"model": "teacher", "sampler": "heun"}, 1, 0.9),
            ({"model": "teacher", "sampler": "heun"}, 63, 0.4318),
            ({"model": "flow", "sampler": "one_step", "objective": "trajectory", "anchor": "self", "ratio": 1.0357,
              "ratio_sd": 0.0123 if seeds > 1 else np.nan}, 1, 0.4472),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=summary_columns())


def points_report(dimensions=2, **changes):
    data = np.random.default_rng(0).standard_normal((50, dimensions))
    shown = {"ve": PointSamples(data, [("Flow, 1 NFE", data)], None)} if dimensions > 1 else {}
    return full_report(
        summary=points_summary(dimensions),
        data="gaussian",
        grids={},
        real=None,
        pairs={},
        points=shown,
        curves={},
        diagnostics={},
        params_text="",
        reference={"extractor": "coordinates", "dimension": dimensions, "n_train": 8000, "split": "train",
                   "resize": "none", "floor_sliced_wasserstein": 0.0107},
        **changes,
    )  # fmt: skip


def measurements(summary):
    """The table of all rows: heading -> its cells."""
    table = full_table(summary)
    columns = zip(*table["rows"], strict=True)
    return {c.title: [cell.text for cell in cells] for c, cells in zip(table["columns"], columns, strict=True)}


def headline_of(summary):
    """Dynamics -> its cells, from the flow's figure on."""
    lines = headline_cells(headlines(summary))
    return {line["name"]: [line[key] for key in ("flow", "teacher", "ratio", "single")] for line in lines}


def headings(page):
    head = page[page.index('id="rows"') :]
    return re.findall(r"<th[^>]*>([^<]*)</th>", head[: head.index("</thead>")])


def test_the_deciding_figure_stands_behind_what_a_row_is(page):
    what = ["Dynamics", "Model", "Sampler", "NFE"]
    assert headings(page)[:6] == [*what, "FID", "Over the teacher’s"]
    judged = ["Sliced 2-Wasserstein", "Over the teacher’s", "Energy distance"]
    seeds = pd.concat([points_summary(), points_summary().assign(seed=1)])
    for summary in (points_summary(), points_summary(16, seeds=1), seeds):
        assert list(measurements(summary))[:7] == [*what, *judged]


def test_columns_without_a_figure_are_left_out_of_the_page_and_kept_in_the_files():
    rows = summary_of("ve").assign(recall=np.inf, density=np.nan, peak_memory_mb=0.0)
    shown = measurements(rows)
    assert not {"Recall", "Density", "Memory, MB", "Sliced 2-Wasserstein", "Energy distance"} & set(shown)
    assert "Coverage" in shown
    assert summary_csv(rows).splitlines()[0] == ",".join(summary_columns())
    for summary in (rows, points_summary()):
        assert all(set(column) != {"–"} for column in measurements(summary).values())


def test_memory_is_rounded_by_its_size_and_hidden_where_there_is_none():
    rows = summary_of("ve")
    rows["peak_memory_mb"] = np.resize([0.004096, 1.6384, 62.4394, 0.0, 12345.6, np.nan], len(rows))
    assert measurements(rows)["Memory, MB"][:6] == ["< 0.1", "1.6", "62", "0", "12,346", "–"]
    assert "Memory, MB" not in measurements(points_summary(memory=0.0))
    assert "Memory, MB" in measurements(points_summary(memory=0.01))


def test_a_deviation_is_seen_in_headline_and_table():
    assert headline_of(points_summary())["VE diffusion"][:3] == ["0.447 ± 0.004", "0.432 ± 0.004", "1.036 ± 0.012"]
    table = measurements(points_summary())
    assert [table[name][2] for name in list(table)[4:6]] == ["0.447 ± 0.004", "1.036 ± 0.012"]
    assert headline_of(points_summary(seeds=1))["VE diffusion"] == ["0.45", "0.43", "1.04", "0.90"]
    tiny = points_summary()
    tiny[["sliced_wasserstein", "sliced_wasserstein_sd"]] *= 1e-6
    assert headline_of(tiny)["PFGM++"][0] == "(4.47 ± 0.04)·10⁻⁷"
    missing = points_summary().assign(sliced_wasserstein=np.nan, ratio=np.nan)
    assert headline_of(missing)["PFGM++"] == ["–"] * 4


@pytest.mark.parametrize("dimensions", [1, 16])
def test_points_are_called_points_everywhere(dimensions, page):
    found = render(points_report(dimensions))
    labels = " ".join(attributes.get("aria-label") or "" for _, attributes in Page(found).tags)
    text = Page(found).text.split("Published figures")[0] + labels
    assert not re.search(r"\b[Ii]mages?\b|pixel(?!\))", text)
    for words in ("takes noise to a point", "Real points", "ms per point", "Time a point takes", "Training points"):
        assert words in text, words
    for words in ("evaluations per point (NFE)", "Time per point", "Real test points", "real test points score 0.0107"):
        assert words in text, words
    assert ("the first two of 16 coordinates" in text) == (dimensions == 16)
    of_images = Page(page).text
    assert not re.search(r"(?:per|a|real|training) points?\b", of_images)
    assert "ms per image" in of_images


def test_commits_are_short(page):
    full = full_report().git_commit
    assert not re.search(r"[0-9a-f]{40}", Page(page).text)
    assert Page(page).text.count("3f9c2a7e41 + uncommitted changes") == 2
    assert f'title="{full}"' in page
    assert short_commit(f"{'a1' * 20} and {'b2' * 32}, abc") == "a1a1a1a1a1 and b2b2b2b2b2, abc"


@pytest.mark.usefixtures("undrawn")
def test_real_images_stand_first_and_are_as_large_as_the_others(page):
    tags = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert tags[0]["alt"] == "Real images: grid of images, Train split"
    assert len({(image["width"], image["height"]) for image in tags[:10]}) == 1
    alone = render(full_report(summary=summary_of("rf"), grids={"rf": pictures(0)}))
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", alone)
    assert captions[:2] == ["Real images, train split", "Flow, one step"]
    none = render(full_report(summary=summary_of("rf"), real=None))
    assert "Real images</h3>" not in none


def test_curves_that_coincide_are_all_seen():
    """Equal figures of three dynamics: each has a line of its own width, the narrower in front, and markers apart."""
    svg = plots.quality_against_nfe(summary_of("ve", "rf", "pfgmpp"))
    lines = re.findall(r'<path d="M ([\d.]+)[^"]*"[^>]*style="fill: none; ([^"]*)"', svg)
    shades = [plots.css_colour(d) for d in ("ve", "rf", "pfgmpp")]

    def drawn(shade, dashed):
        mine = [(float(x), style) for x, style in lines if f"stroke: {shade}" in style]
        mine = [(x, style) for x, style in mine if ("stroke-dasharray" in style) == dashed]
        width = re.search(r"stroke-width: ([\d.]+)", mine[0][1])
        return mine[0][0], float(width[1]) if width else 1.0

    for dashed in (True, False):
        (x_1, w_1), (x_2, w_2), (x_3, w_3) = (drawn(shade, dashed) for shade in shades)
        assert w_1 > w_2 + 0.5 > w_3 + 1.0
        assert x_1 < x_2 < x_3
    assert list(plots.widths(["x", "ve"])) == ["ve", "x"]
    assert plots.widths(["rf"]) == {"rf": 1.0}
    many = list(plots.widths("abcdefgh").values())
    assert many == sorted(many, reverse=True)
    assert max(many) < 3


def test_many_classes_with_long_names_fit_under_their_axis():
    names = [f"a class with a rather long name {i}" for i in range(200)]
    svg = plots.class_histogram({"ve": [1 / 200] * 200}, real_shares=[1 / 200] * 200, classes=names)
    labels = re.findall(r">(a class[^<]*)<", svg)
    assert 5 < len(labels) <= 24
    assert max(map(len, labels)) <= plots.LABEL


# --- one definition of a ratio ------------------------------------------------------------------------------


def test_a_ratio_is_the_mean_of_ratios_over_the_seeds_of_training(page):
    """1/1 and 9/3: their mean is 2, the ratio of the means 2.5. One of a single set of samples needs no column."""
    flow = pd.DataFrame({"seed": [0, 1], "fid": [1.0, 9.0]})
    teacher = pd.DataFrame({"seed": [1, 0, 7], "nfe": 35, "fid": [3.0, 1.0, 100.0]})
    found = over_teacher(flow, teacher)
    assert (found.mean, found.deviation, found.seeds) == (2.0, pytest.approx(2**0.5), 2)
    assert over_teacher(flow.assign(seeds=3), teacher) is None  # the sets' ratios are not known
    stored = over_teacher(flow.assign(seeds=3, ratio=[1.2, 1.4], ratio_sd=0.1), teacher)
    assert (stored.mean, stored.seeds) == (pytest.approx(1.3), 2)
    assert over_teacher(flow, teacher.assign(fid=0.0)) is None
    assert "not the ratio of the two means" in Page(page).text


# --- what it is ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn_anew")
def test_same_input_same_page(page):
    assert render(full_report()) == page


def test_foreign_text_is_escaped():
    evil = "<script>alert(1)</script>\" ' & $x$"
    rows = summary_of("ve").assign(data=evil, objective=evil)
    page = render(
        full_report(
            summary=rows,
            data=evil,
            params_text=evil,
            git_commit=evil,
            created=evil,
            versions={evil: evil},
            classes=[evil] * 10,
            reference={"extractor": evil},
            grids={evil: pictures(0)},
        )
    )
    assert "<script>alert" not in page
    assert [tag for tag, _ in Page(page).tags].count("script") == 1


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    without_pictures = re.sub(r'data:image/png;base64,[^"]*', "", page)
    assert "//" not in without_pictures.replace("http://www.w3.org/2000/svg", "")


def test_pictures_have_alternative_text_and_size(page):
    images = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert len(images) == 1 + 9 + 3  # real images, grids, and the closest pairs
    assert all(image["alt"] and int(image["width"]) > 0 and int(image["height"]) > 0 for image in images)
    assert len(page.encode()) < 5_000_000


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in Page(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_large_pictures_are_made_to_fit():
    grids = {name: pictures(i, size=128, channels=3) for i, name in enumerate(("ve", "rf", "pfgmpp"))}
    assert sum(len(png) for pictures in grids.values() for _, png in pictures) > 5_000_000
    assert len(render(full_report(grids=grids)).encode()) < 5_000_000


def test_optional_parts_may_be_missing(page):
    rows = summary_of("rf").assign(endpoint_rms=np.nan, min_class_share=np.nan)
    bare = Report(summary=rows, params_text="", data="points", seed=0, git_commit="unknown", created="today")
    without = render(bare)
    text = Page(without).text
    assert "Rectified flow" in text
    for absent in ("Classes", "Floor", "For scale", "nan", "None"):
        assert absent not in text
    for part in (">Samples</h2>", ">Training</h2>", ">Diagnostics</h2>", ">End-point RMS</th>"):
        assert part not in without
        assert part in page


@pytest.mark.parametrize("model", ["teacher", "flow"])
def test_one_model_alone(model):
    rows = summary_of("ve")
    cells = headline_row(render(full_report(summary=rows[rows["model"] == model])), "VE diffusion")
    assert cells[2] == "–"
    assert cells[4] == "–"


def test_values_off_a_logarithmic_axis_are_left_out_of_the_plots():
    rows = summary_of("ve")
    rows.loc[0, "fid"] = np.inf
    rows.loc[1, "fid"] = np.nan
    rows.loc[2, "seconds_per_image"] = 0.0
    page = render(full_report(summary=rows))
    assert headline_row(page, "VE diffusion")[3] == "–"
    assert "inf" not in re.sub("inf(er|o|in)", "", Page(page).text.lower())


def test_nothing_measured():
    render(full_report(summary=summary_of("ve").assign(fid=np.nan, kid=np.nan)))
    with pytest.raises(ValueError, match="no rows"):
        render(full_report(summary=summary_of("ve")[:0]))
    with pytest.raises(ValueError, match="kid"):
        render(full_report(summary=summary_of("ve").drop(columns="kid")))
    with pytest.raises(ValueError, match="not a PNG"):
        render(full_report(grids={"ve": [("broken", b"GIF89a")]}))


# --- figures and pictures -----------------------------------------------------------------------------------


def test_figures_suit_light_and_dark(page):
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert "currentColor" in svg
        assert not re.search(r"#000000|#010203|#040506|<style|<metadata|DejaVu", svg)
        assert "<text" in svg


def test_curves_are_thinned_to_means():
    long = pd.DataFrame({"step": np.arange(1000), "loss": np.r_[np.nan, np.ones(999)]})
    short = plots.thinned(long, points=100)
    assert len(short) == 100
    assert short["step"].iloc[0] == np.arange(1, 11).mean()


def test_the_empty_curve_of_an_exact_teacher_is_left_out():
    empty = pd.read_csv(io.StringIO("step,loss,grad_norm,lr\n"))
    assert len(plots.thinned(empty)) == 0
    assert list(plots.training_curves({("teacher", "ve"): empty, ("flow", "ve"): curve(1.0)})) == ["flow"]


def test_class_shares_must_match_the_classes():
    with pytest.raises(ValueError, match="2 shares for 3 classes"):
        plots.class_histogram({"ve": [0.5, 0.5]}, real_shares=[0.3, 0.3, 0.4], classes=["a", "b", "c"])


@pytest.mark.parametrize(("low", "high"), [(0.4, 400), (0.231, 0.262), (0.15, 0.8), (1e-9, 1e6), (3.0, 3.01)])
def test_logarithmic_ticks_are_few_round_and_within(low, high):
    ticks = plots.log_ticks(low, high, most=7)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_picture_tiles_hold_the_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), np.uint8)
    save_grid(images, tmp_path / "grid.png", columns=2)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 32 + 2, 2 * 32 + 2, 3)  # tiles of 32 pixels, 2 between them
    assert (picture[:32:4, 34::4] == images[1].transpose(1, 2, 0)).all()
    with pytest.raises(ValueError, match="uint8"):
        grid_png(images.astype(float), columns=2)


def test_side_by_side_writes_titled_panels(tmp_path):
    images = np.zeros((4, 1, 8, 8), np.uint8)
    titles = ("Flow, one step", "Teacher, 35 NFE, the same prior draws", "Unbreakablewordlongerthanitstiles")
    side_by_side([(title, images) for title in titles], tmp_path / "side.png", columns=2)
    picture = np.asarray(Image.open(tmp_path / "side.png"))
    assert picture.shape[1] > 3 * 66
    assert (picture[:10] == 255).all()


# --- summary files ------------------------------------------------------------------------------------------


def test_csv_round_trip():
    rows = summary_of("ve", "rf")
    back = pd.read_csv(io.StringIO(summary_csv(rows[rows.columns[::-1]])))
    assert list(back.columns) == summary_columns()
    pd.testing.assert_frame_equal(back, rows, check_dtype=False, rtol=5e-6)


def test_json_round_trip():
    rows = summary_of("ve")
    rows.loc[1, "fid"] = np.inf
    records = json.loads(summary_json(rows), parse_constant=pytest.fail)
    assert list(records[0]) == summary_columns()
    assert records[0]["endpoint_rms"] is None
    assert records[0]["objective"] is None
    assert records[1]["fid"] is None
    assert records[5]["fid"] == 0.872124
    assert isinstance(records[5]["nfe"], int)


# --- in a browser -------------------------------------------------------------------------------------------

# Words of up to 20 letters in tables that begin on one line and end on another.

# The probe measures the page in a frame of exact width: a headless window has a least width of its own.
PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" style="width:{width}px;height:900px;border:0"
srcdoc="{page}"></iframe><script>
{split_words}
addEventListener("load", () => {{
  const inner = document.getElementById("f").contentDocument, root = inner.documentElement;
  inner.querySelectorAll("#rows button")[{column}].click();
  const cells = [...inner.querySelectorAll("#rows tbody tr")].map((row) => row.cells[{column}].textContent);
  const cut = [...inner.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1);
  const hidden = [...inner.querySelectorAll("main *, header *")].filter((one) => {{
    const box = one.getBoundingClientRect();
    return box.width && (box.right > root.clientWidth + 1 || box.left < -1) && !one.closest(".scroll, pre");
  }});
  const deciding = inner.querySelector("#rows tbody tr").cells[{column}].getBoundingClientRect();
  const places = [deciding.left, deciding.right, inner.getElementById("rows").parentNode.clientWidth];
  document.body.dataset.seen = JSON.stringify([
    root.scrollWidth, root.clientWidth, cells, cut.map((box) => box.getAttribute("aria-label")),
    hidden.map((one) => one.outerHTML.slice(0, 90)), places, splitWords(inner),
  ]);
}});
</script></body>"""


@pytest.fixture(scope="module")
def wide_pages():
    """With names of classes that are long."""
    long = {"classes": ["a class with a rather long name"] * 10}
    return {"images": render(full_report(**long)), "points": render(points_report(**long))}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["images", "points"])
def test_page_never_scrolls_sideways_and_sorts_by_number(width, kind, browser, wide_pages, tmp_path):
    """Nothing is cut but the long table, which scrolls in its own box; what decides is in sight there."""
    judged = {"images": "FID", "points": "Sliced 2-Wasserstein"}[kind]
    page = wide_pages[kind]
    probe = tmp_path / "probe.html"
    column = headings(page).index(judged)
    filled = PROBE.format(width=width, page=html.escape(page), column=column, split_words=SPLIT_WORDS)
    probe.write_text(filled, encoding="utf-8")
    dom = chromium(browser, tmp_path, f"--window-size={width},900", "--dump-dom", probe.as_uri())
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom).group(1)))
    scroll, client, cells, cut, hidden, (left, right, box), split = seen
    assert client == pytest.approx(width, abs=20)  # less a scroll bar
    assert scroll <= client
    assert set(cut) <= {"All measurements"}
    assert hidden == []
    assert split == []
    assert right <= client if width > 400 else (left + right) / 2 < box
    means = [float(cell.split(" ±")[0]) for cell in cells]
    assert means == sorted(means)


@pytest.mark.parametrize("width", [1280, 390])
def test_page_can_be_seen(width, browser, page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "page.png"
    chromium(
        browser,
        tmp_path,
        f"--window-size={width},2000",
        f"--screenshot={shot}",
        (tmp_path / "page.html").as_uri(),
    )
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50


def test_quality_by_training_step_stands_beside_the_losses(page):
    """A line through the values, a ring at the step that was kept; without states there is neither."""
    found = {"ve": {"metric": "fid", "count": 1000, "kept": 10, "values": {"5": 3.0, "10": 1.0, "15": 2.0}}}
    judged = render(full_report(by_step=found))
    assert "Flow: FID in one step" in judged
    assert "1,000 images of draws of" in judged
    assert "Kept (ring): VE diffusion 10." in judged
    assert "in one step, by training step" in judged
    assert "Kept (ring)" not in page
