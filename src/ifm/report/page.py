"""The report: one self-contained HTML page, and the summary as CSV and JSON.

The page shows what the numbers say and adds no verdict: a bad ratio stands there as plainly as a good one.
"""

import base64
import csv
import io
import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from ifm.data.arrays import duplicates_in_words
from ifm.metrics import cautions
from ifm.modalities.pictures import shrink_png
from ifm.report import plots
from ifm.report.assets import asset
from ifm.report.rounding import MISSING, fixed, measured, power_of_ten, significant, spread_decimals

SUMMARY_COLUMNS = (
    "data", "extractor", "checksum", "reference", "dynamics", "model", "objective", "anchor", "sampler", "nfe",
    "seed", "seeds", "n_samples", "fid", "fid_sd", "fid_pooled", "fid_extrapolated", "ratio", "ratio_sd", "kid",
    "kid_sd", "inception_score", "inception_score_sd", "precision", "precision_sd", "recall", "recall_sd", "density",
    "density_sd", "coverage", "coverage_sd", "sliced_wasserstein", "sliced_wasserstein_sd", "energy_distance",
    "energy_distance_sd", "min_class_share", "missing_classes", "class_chi2", "class_p", "train_distance_auc",
    "train_distance_auc_sd", "near_copies", "near_copies_sd", "endpoint_rms", "endpoint_rms_sd", "seconds_per_image",
    "seconds_batch_1", "peak_memory_mb", "parameters", "train_images", "train_seconds", "warnings",
)  # fmt: skip
TEXT_COLUMNS = (
    "data", "extractor", "checksum", "reference", "dynamics", "model", "objective", "anchor", "sampler", "warnings",
)  # fmt: skip
INTEGER_COLUMNS = ("nfe", "seed", "seeds", "n_samples", "missing_classes", "parameters", "train_images")

PICTURE_BYTES = 3_000_000  # of all grids; base64 adds a third, and the page stays under 5 MB


@dataclass(frozen=True)
class Report:
    """What the page shows. See `render` for what may be missing."""

    summary: pd.DataFrame  # SUMMARY_COLUMNS, one row for each measured sampler
    params_text: str  # params.yaml, as it is
    data: str  # the data set's name
    seed: int
    git_commit: str
    created: str
    # (stage, dynamics) -> step, loss, ...; the stage is "teacher" or "flow"
    curves: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    # dynamics -> (caption, PNG), ...
    grids: Mapping[str, Sequence[tuple[str, bytes]]] = field(default_factory=dict)
    real: tuple[str, bytes] | None = None  # (caption, PNG): a grid of real images, as large as the others
    # dynamics -> PNG: samples of the flow in one step above the training images that they are nearest to
    pairs: Mapping[str, bytes] = field(default_factory=dict)
    # dynamics -> batch size -> seconds an image takes the flow in one step
    batch_seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    # dynamics -> share of each class among the flow's samples in one step
    class_shares: Mapping[str, Sequence[float]] | None = None
    # dynamics -> what the scatter plots show, for data that are points
    points: Mapping[str, "PointSamples"] = field(default_factory=dict)
    real_shares: Sequence[float] | None = None
    classes: Sequence[str] | None = None
    # dynamics -> what `ifm.diagnostics.diagnose` gives, and "reference": "exact" | "teacher"
    diagnostics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # extractor, checksum, resize, rounding, dimension, n_train, n_test, split, accuracy, floor_fid, duplicates,
    # warnings
    reference: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PointSamples:
    """Samples of one dynamics whose data are points in two or more dimensions."""

    data: np.ndarray  # [m, d], of the reference split
    samples: Sequence[tuple[str, np.ndarray]]  # (caption, [n, d])
    paths: np.ndarray | None  # [n, K, d], stored trajectories of the teacher, if there are any


@dataclass(frozen=True)
class Published:
    """A figure from the literature: FID on CIFAR-10 with Inception features."""

    method: str
    nfe: int
    fid: str
    kind: str


PUBLISHED = (
    Published("Integration Flow, VE", 1, "2.86", "one step"),
    Published("Integration Flow, rectified flow", 1, "3.36", "one step"),
    Published("Integration Flow, PFGM++", 1, "2.91", "one step"),
    Published("sCT", 1, "2.85", "one step"),
    Published("iCT", 1, "2.83", "one step"),
    Published("MeanFlow", 1, "2.92", "one step"),
    Published("TCM", 1, "2.46", "one step"),
    Published("CMT", 2, "1.97", "two steps"),
    Published("EDM", 35, "1.97", "teacher, Heun"),
    Published("PFGM++", 35, "1.91", "teacher, Heun"),
)


@dataclass(frozen=True)
class Estimate:
    """A measured value over seeds: mean, standard deviation (None below two), number of seeds."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Headline:
    """One dynamics in one line. A value that was not measured is None."""

    dynamics: str
    variant: str  # objective and anchor policy, "" where the page has only one pair
    flow_fid: Estimate | None
    teacher_fid: Estimate | None
    teacher_nfe: int | None
    ratio: Estimate | None  # see `over_teacher`
    single_fid: Estimate | None  # teacher with one evaluation
    speed_up: float | None  # teacher's seconds per image / flow's


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read, and what it is sorted by."""

    text: str
    key: str


@dataclass(frozen=True)
class Column:
    """A table column: its heading, whether it is sorted as numbers, how values and their deviations are written."""

    title: str  # {sample}: what one sample is called
    numeric: bool
    write: Callable[[pd.Series, pd.Series | None], list[str]]


# --- summary files ------------------------------------------------------------------------------------------


def summary_csv(summary: pd.DataFrame) -> str:
    """The summary as CSV in the order of SUMMARY_COLUMNS; six significant digits, a missing value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SUMMARY_COLUMNS)
    writer.writerows(record.values() for record in _records(summary))
    return text.getvalue()


def summary_json(summary: pd.DataFrame) -> str:
    """The summary as a JSON list of records; six significant digits, a missing or infinite value is null."""
    return json.dumps(_records(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _records(summary: pd.DataFrame) -> list[dict[str, Any]]:
    _check(summary)
    rows = summary[list(SUMMARY_COLUMNS)].itertuples(index=False, name=None)
    return [{column: _plain(column, value) for column, value in zip(SUMMARY_COLUMNS, row, strict=True)} for row in rows]


def _plain(column: str, value: Any) -> str | int | float | None:
    if pd.isna(value):
        return None
    if column in TEXT_COLUMNS:
        return str(value)
    if not math.isfinite(value):
        return None
    return int(value) if column in INTEGER_COLUMNS else float(f"{value:.6g}")


def _check(summary: pd.DataFrame) -> None:
    missing = [column for column in SUMMARY_COLUMNS if column not in summary.columns]
    if missing:
        raise ValueError(f"the summary lacks the columns {missing}")


# --- numbers as text ----------------------------------------------------------------------------------------


def short_commit(text: str) -> str:
    """The text with ten characters of each commit's name that stands there in full."""
    return re.sub(r"\b(?:[0-9a-f]{40}|[0-9a-f]{64})\b", lambda name: name[0][:10], text)


def _aligned(*, scale: float = 1, digits: int = 2, least: int = 0, most: int = 5) -> Callable[..., list[str]]:
    """One number of decimals for a column, such that the smallest value shows `digits` significant digits.

    A deviation that would read 0 with them takes more.
    """

    def write(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
        scaled = values.astype(float) * scale
        spreads = [None] * len(scaled) if deviations is None else deviations.astype(float) * scale
        sizes = scaled[np.isfinite(scaled) & (scaled != 0)].abs()
        needed = digits - 1 - math.floor(math.log10(sizes.min())) if len(sizes) else 0
        decimals = min(max(needed, least), most)
        return [measured(value, spread, decimals=decimals) for value, spread in zip(scaled, spreads, strict=True)]

    return write


def _sized(*, scale: float = 1, digits: int = 3, least: float = 0) -> Callable[..., list[str]]:
    """Each value with its own significant digits, for a column of several powers of ten; "<" below `least`."""

    def text(value: float) -> str:
        return f"< {least:g}" if 0 < value < least else significant(value, digits)

    return lambda values, deviations=None: [text(value) for value in values.astype(float) * scale]


def _words(names: Mapping[str, str]) -> Callable[..., list[str]]:
    return lambda values, deviations=None: [
        MISSING if pd.isna(v) or v == "" else names.get(str(v), str(v)) for v in values
    ]


def _counts(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
    return [MISSING if pd.isna(value) else f"{int(value):,}" for value in values]


def _probabilities(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
    return ["< 0.001" if 0 <= value < 1e-3 else fixed(value, 3) for value in values.astype(float)]


COLUMNS = {
    "data": Column("Data", False, _words({})),
    "extractor": Column("Extractor", False, _words({})),
    "checksum": Column("Checksum", False, _words({})),
    "reference": Column("Reference", False, _words({})),
    "dynamics": Column("Dynamics", False, _words(plots.DYNAMICS)),
    "model": Column("Model", False, _words({})),
    "objective": Column("Objective", False, _words({})),
    "anchor": Column("Anchor", False, _words({})),
    "sampler": Column(
        "Sampler",
        False,
        _words(
            {"heun": "Heun", "one_step": "one step", "renoise": "re-noise", "chain": "sub-intervals"}
        ),  # data: split
    ),
    "nfe": Column("NFE", True, _counts),
    "seed": Column("Seed", True, _counts),
    "seeds": Column("Sampling seeds", True, _counts),
    "n_samples": Column("Samples a seed", True, _counts),
    "fid": Column("FID", True, _aligned(least=3, digits=2)),
    "fid_pooled": Column("FID, all seeds’ samples", True, _aligned(least=3, digits=2)),
    "fid_extrapolated": Column("FID, extrapolated", True, _aligned(least=3, most=3)),
    "ratio": Column("Over the teacher’s", True, _aligned(least=2, most=2)),
    "kid": Column("KID", True, _aligned(least=4, most=6)),
    "inception_score": Column("Inception score", True, _aligned(least=2)),
    "precision": Column("Precision", True, _aligned(least=3, most=3)),
    "recall": Column("Recall", True, _aligned(least=3, most=3)),
    "density": Column("Density", True, _aligned(least=3, most=3)),
    "coverage": Column("Coverage", True, _aligned(least=3, most=3)),
    "missing_classes": Column("Missing classes", True, _counts),
    "class_chi2": Column("Class χ² / dof", True, _aligned(digits=2)),
    "class_p": Column("Class p", True, _probabilities),
    "train_distance_auc": Column("Farther from training data than unseen", True, _aligned(least=3, most=3)),
    "near_copies": Column("Near copies", True, _aligned(least=3, most=3)),
    "seconds_per_image": Column("ms per {sample}", True, _sized(scale=1e3)),
    "seconds_batch_1": Column("ms, batch of 1", True, _sized(scale=1e3)),
    "peak_memory_mb": Column("Memory, MB", True, _sized(digits=2, least=0.1)),
    "parameters": Column("Parameters", True, _counts),
    "train_images": Column("Training {sample}s", True, _counts),
    "train_seconds": Column("Training time, s", True, _sized()),
    "endpoint_rms": Column("End-point RMS", True, _aligned(digits=3)),
    "sliced_wasserstein": Column("Sliced 2-Wasserstein", True, _aligned(digits=3)),
    "energy_distance": Column("Energy distance", True, _aligned(digits=3)),
    "min_class_share": Column("Rarest class, %", True, _aligned(scale=100, least=1)),
}
FIRST = (  # what a row is, then what it is judged by
    "data", "extractor", "checksum", "reference", "dynamics", "model", "objective", "anchor", "sampler", "nfe",
)  # fmt: skip
JUDGED_FIRST = {"point": ("sliced_wasserstein", "ratio", "energy_distance")}
FOLDED = (
    "data",
    "extractor",
    "checksum",
    "reference",
    "seed",
    "seeds",
    "n_samples",
    "objective",
    "anchor",
    "parameters",
    "train_seconds",
)  # to the caption, if constant
FLOW_ONLY = ("objective", "anchor")
REAL = "Real images"
PROTOCOL = {"resize": "Resize", "rounding": "Rounding", "probabilities": "Class probabilities"}
FLOORS = {
    "floor_fid": "FID",
    "floor_sliced_wasserstein": "sliced 2-Wasserstein",
    "floor_energy_distance": "energy distance",
}


# --- tables -------------------------------------------------------------------------------------------------


def headlines(summary: pd.DataFrame) -> list[Headline]:
    """One line for each dynamics and (objective, anchor policy) pair of its flow; of one data set and extractor.

    Where there is no FID, the fields called fid hold the distance that `plots.judged` takes.
    """
    summary = plots.judged(_of_models(summary))
    variants = plots.flow_variants(summary) or [("", "")]
    lines = []
    for dynamics in plots.ordered(list(summary["dynamics"])):
        mine = summary[summary["dynamics"] == dynamics]
        for objective, anchor in variants:
            same = (mine["objective"].fillna("") == objective) & (mine["anchor"].fillna("") == anchor)
            one_step = mine[same & (mine["model"] == "flow") & (mine["sampler"] == "one_step")]
            if len(one_step) or len(variants) == 1:
                variant = plots.variant_title(objective, anchor) if len(variants) > 1 else ""
                lines.append(_headline(dynamics, variant, one_step, mine[mine["model"] == "teacher"]))
    return lines


def _headline(dynamics: str, variant: str, one_step: pd.DataFrame, teacher: pd.DataFrame) -> Headline:
    nfe = int(teacher["nfe"].max()) if len(teacher) else None
    best = teacher[teacher["nfe"] == nfe]
    flow_fid, teacher_fid = _estimate(one_step), _estimate(best)
    return Headline(
        dynamics=dynamics,
        variant=variant,
        flow_fid=flow_fid,
        teacher_fid=teacher_fid,
        teacher_nfe=nfe,
        ratio=over_teacher(one_step, best) if flow_fid and teacher_fid else None,
        single_fid=_estimate(teacher[teacher["nfe"] == 1]),
        speed_up=_quotient(_estimate(best, "seconds_per_image"), _estimate(one_step, "seconds_per_image")),
    )


def over_teacher(flow: pd.DataFrame, teacher: pd.DataFrame, column: str = "fid") -> Estimate | None:
    """The flow's figure over the teacher's: the mean over seeds of their ratio, not the ratio of their means.

    The summary's `ratio` has it over sampling seeds, from the same prior draws; seeds of training are averaged in turn.
    Where it is not there, it is had by seed of training from rows of one set of samples each, and from no others.
    """
    stored = _estimate(flow, "ratio") if "ratio" in flow else None
    if stored or flow.empty or teacher.empty:
        return stored
    single = [rows[rows.get("seeds", pd.Series(1, rows.index)).fillna(1) == 1] for rows in (flow, teacher)]
    both = single[0].merge(single[1], on="seed", suffixes=("", "_of_teacher"))
    under = both[f"{column}_of_teacher"].astype(float)
    return _estimate(pd.DataFrame({"ratio": (both[column].astype(float) / under)[under > 0]}), "ratio")


def _of_models(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of real data."""
    return summary[summary["model"] != "data"]


def _estimate(rows: pd.DataFrame, column: str = "fid") -> Estimate | None:
    """Over seeds of training; of a single one over its sampling seeds."""
    finite = rows[np.isfinite(rows[column].astype(float))]
    if finite.empty:
        return None
    values = finite[column].astype(float)
    if len(finite) > 1:
        return Estimate(float(values.mean()), float(values.std()), len(finite))
    deviation = finite.get(f"{column}_sd", pd.Series([np.nan])).astype(float).iloc[0]
    return Estimate(float(values.iloc[0]), deviation if math.isfinite(deviation) else None, 1)


def _quotient(over: Estimate | None, under: Estimate | None) -> float | None:
    return over.mean / under.mean if over and under and under.mean > 0 else None


def _headline_cells(lines: Sequence[Headline]) -> list[dict[str, Any]]:
    """Headlines as text. The flow's FIDs and the teacher's share their decimals, for the eye to compare."""
    decimals = _fid_decimals([e for line in lines for e in (line.flow_fid, line.teacher_fid) if e])
    single = _fid_decimals([line.single_fid for line in lines if line.single_fid])
    ratio = _fid_decimals([line.ratio for line in lines if line.ratio], least=2)
    return [
        {
            "name": plots.DYNAMICS.get(line.dynamics, line.dynamics),
            "colour": plots.css_colour(line.dynamics),
            "variant": line.variant,
            "nfe": line.teacher_nfe,
            "flow": _fid(line.flow_fid, decimals),
            "teacher": _fid(line.teacher_fid, decimals),
            "single": _fid(line.single_fid, single),
            "ratio": _fid(line.ratio, ratio),
            "speed_up": MISSING if line.speed_up is None else f"{significant(line.speed_up)}×",
        }
        for line in lines
    ]


def _fid_decimals(estimates: Sequence[Estimate], *, least: int | None = None) -> int:
    """Two decimals; fewer beyond four digits, more where the smallest or its deviation would show too little."""
    positive = [estimate.mean for estimate in estimates if estimate.mean > 0]
    power = math.floor(math.log10(min(positive))) if positive else 0
    least = min(max(min(2, 3 - power), 1 - power, 0), 5) if least is None else least
    return min(max([least, *(spread_decimals(estimate.deviation) for estimate in estimates)]), least + 2)


def _fid(estimate: Estimate | None, decimals: int) -> str:
    return MISSING if estimate is None else measured(estimate.mean, estimate.deviation, decimals=decimals)


def _full_table(summary: pd.DataFrame) -> dict[str, Any]:
    """Columns, rows and the constants of the table of all rows; a column without a figure is left out.

    What the rows are judged by stands behind what they are. A column with a deviation beside it is written with it.
    """
    constant = [column for column in FOLDED if _is_constant(column, summary)]
    shown = [c for c in _column_order(summary) if c not in constant and (_has_figures(summary[c], c) or c == "nfe")]
    written = [_cells(COLUMNS[column], summary[column], summary.get(f"{column}_sd")) for column in shown]
    sample = plots.unit(summary)
    return {
        "columns": [replace(COLUMNS[c], title=COLUMNS[c].title.format(sample=sample)) for c in shown],
        "rows": list(zip(*written, strict=True)),
        "constants": [_constant(column, summary[column]) for column in constant],
    }


def _column_order(summary: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys([*FIRST, *JUDGED_FIRST.get(plots.unit(summary), ("fid", "ratio")), *COLUMNS]))


def _has_figures(values: pd.Series, column: str) -> bool:
    """Whether a column says something: all missing is nothing, and so is no memory at all."""
    if column in TEXT_COLUMNS:
        return bool((values.notna() & (values != "")).any())
    values = values.astype(float)
    return bool((np.isfinite(values) & ((values != 0) | (column != "peak_memory_mb"))).any())


def _cells(column: Column, values: pd.Series, deviations: pd.Series | None = None) -> list[Cell]:
    texts = column.write(values, deviations)
    return [Cell(text, _sort_key(v, text, column.numeric)) for text, v in zip(texts, values, strict=True)]


def _is_constant(column: str, summary: pd.DataFrame) -> bool:
    """One value in all rows of models, or in all of the flow's where the teacher has none."""
    summary = _of_models(summary)
    values = summary[column] if column not in FLOW_ONLY else summary.loc[summary["model"] == "flow", column]
    return bool(values.notna().all()) and values.nunique() == 1


def _constant(column: str, values: pd.Series) -> tuple[str, str]:
    title = ("flow’s " if column in FLOW_ONLY else "") + COLUMNS[column].title.lower()
    return title, COLUMNS[column].write(values.dropna(), None)[0]


def _sort_key(value: Any, text: str, numeric: bool) -> str:
    """A number in full, a word as it is read; "" where missing, which sorts last."""
    if pd.isna(value) or (numeric and not math.isfinite(value)):
        return ""
    return f"{value:.12g}" if numeric else text


# --- pictures and shares ------------------------------------------------------------------------------------


def _pictures(grids: Mapping[str, Sequence[tuple[str, bytes]]], real: tuple[str, bytes] | None) -> list[dict[str, Any]]:
    """Grids of real images, then of each dynamics, as data URIs; all made smaller by tenths to fit PICTURE_BYTES."""
    named = {key: list(grids[key]) for key in plots.ordered(grids) if grids[key]}
    if real and len(named) > 1:
        named = {REAL: [(real[0].capitalize(), real[1])], **named}
    elif real and named:  # one dynamics: all in one line
        named = {key: [(f"{REAL}, {real[0]}", real[1]), *pictures] for key, pictures in named.items()}
    for key, pictures in named.items():
        for caption, png in pictures:
            if not png.startswith(b"\x89PNG\r\n\x1a\n"):
                raise ValueError(f"the grid {caption!r} of {key} is not a PNG")
    factor = 1.0
    fitted = named
    while sum(len(png) for pictures in fitted.values() for _, png in pictures) > PICTURE_BYTES:
        factor *= 0.9
        fitted = {key: [(c, shrink_png(png, factor)) for c, png in named[key]] for key in named}
    return [
        {
            "name": plots.DYNAMICS.get(key, key),
            "colour": None if key == REAL else plots.css_colour(key),
            "pictures": [_picture(caption, png, plots.DYNAMICS.get(key, key)) for caption, png in pictures],
        }
        for key, pictures in fitted.items()
    ]


def _picture(caption: str, png: bytes, name: str) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24])
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {
        "caption": caption,
        "alt": f"{name}: grid of images, {caption}",
        "uri": uri,
        "width": width,
        "height": height,
    }


def _scatters(points: Mapping[str, PointSamples]) -> list[dict[str, Any]]:
    """Scatter plots and path lines of each dynamics as SVG, under a caption each."""
    groups = []
    for key in plots.ordered(points):
        mine, name = points[key], plots.DYNAMICS.get(key, key)
        common = {"data": mine.data, "shade": plots.colour(key)}
        figures = [
            (caption, plots.scatter(x, name=f"points-{key}-{i}", label=f"{name}: points, {caption}", **common))
            for i, (caption, x) in enumerate(mine.samples)
        ]
        if mine.paths is not None:
            label = f"{name}: paths of the teacher"
            lines = plots.path_lines(mine.paths, name=f"paths-{key}", label=label, **common)
            figures.append(("Stored paths of the teacher, each time scaled to the data’s spread", lines))
        groups.append(
            {
                "name": name,
                "colour": plots.css_colour(key),
                "figures": [{"caption": caption, "svg": Markup(svg)} for caption, svg in figures],
            }
        )
    return groups


def _classes(report: Report) -> dict[str, Any] | None:
    """The histogram and, for each dynamics, the rarest class and the distance from the real shares."""
    if not report.class_shares or report.real_shares is None or report.classes is None:
        return None
    names = [str(name) for name in report.classes]
    svg = plots.class_histogram(
        report.class_shares, real_shares=report.real_shares, classes=names, sample=plots.unit(report.summary)
    )
    rows = []
    one_step = report.summary[report.summary["sampler"] == "one_step"].drop_duplicates("dynamics").set_index("dynamics")
    for key in plots.ordered(report.class_shares):
        shares, real = np.asarray(report.class_shares[key], float), np.asarray(report.real_shares, float)
        rarest = int(shares.argmin())
        rows.append(
            {
                "name": plots.DYNAMICS.get(key, key),
                "colour": plots.css_colour(key),
                "rarest": names[rarest],
                "share": f"{100 * shares[rarest]:.1f}",
                "real": f"{100 * real[rarest]:.1f}",
                "distance": f"{50 * np.abs(shares - real).sum():.1f}",
                "missing": int((shares == 0).sum()),
                "test": _test(one_step.loc[key]) if key in one_step.index else MISSING,
            }
        )
    return {"svg": Markup(svg), "rows": rows}


def _test(row: pd.Series) -> str:
    """The chi-square test of the class counts: over its degrees of freedom, and the p-value."""
    if pd.isna(row["class_chi2"]):
        return MISSING
    p = "< 0.001" if row["class_p"] < 1e-3 else f"{row['class_p']:.3f}"
    return f"{significant(row['class_chi2'])} ({p})"


# --- diagnostics --------------------------------------------------------------------------------------------


def _diagnostics(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The claims as a table (a row for each number, a column for each dynamics) and the figures."""
    found = {key: result for key, result in found.items() if result["reference"]}  # None: there was no teacher
    if not found:
        return None
    keys = plots.ordered(found)
    results = [found[key] for key in keys]
    whole = all(result["jacobian"]["whole"] for result in results)
    bound = "" if whole else ", bound from above by random directions"
    references = {result["reference"] for result in results}
    exact = "the exact flow map" if references == {"exact"} else "the teacher’s fine solve"

    def values(*path: str, scale: float = 1) -> list[float | None]:
        return [None if (value := _at(result, path)) is None else scale * value for result in results]

    rows = [
        ("Closest approach of estimated paths, in data spacings", values("non_intersection", "ratio")),
        ("The same for the teacher’s end points", values("non_intersection", "teacher_ratio")),
        (f"Smallest singular value of the Jacobian{bound}, Gaussian data 1", values("jacobian", "least")),
        (
            "Jacobians with negative determinant, largest share at one time, %",
            values("jacobian", "folded", scale=100),
        ),
        ("Sensitivity to the start x_T, Gaussian data 1", values("stability", "x_T", "rms")),
        ("Sensitivity to log time at t_max", values("stability", "t", "rms")),
        ("Sensitivity to the anchor", values("stability", "anchor", "rms")),
        ("Anchor: change from one evaluation to the next shrinks by the factor", values("anchor", "contraction")),
        ("Straightness S of the teacher’s paths, straight 0", values("straightness", "teacher")),
        ("Straightness S of the flow’s paths, straight 0", values("straightness", "flow")),
        (f"One-step error against {exact}, new paths", values("error", "one_step")),
        ("One-step error against the data’s closed-form flow map, new paths", values("error", "exact", "one_step")),
        ("The teacher’s fine solve against the same", values("error", "exact", "teacher")),
        ("One-step error on training paths", values("error", "training", "one_step")),
    ]
    return {
        "dynamics": [{"name": plots.DYNAMICS.get(key, key), "colour": plots.css_colour(key)} for key in keys],
        "rows": [(title, [_number_cell(v) for v in row]) for title, row in rows if any(v is not None for v in row)],
        "figures": {name: Markup(svg) for name, svg in plots.diagnostic_figures(found).items()},
        "paths": sorted({result["paths"] for result in results}),
    }


def _at(result: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if result is None or key not in result:
            return None
        result = result[key]
    return result


def _number_cell(value: float | None) -> str:
    """Two or three digits that can be read: powers of ten where plain notation would be long."""
    if value is None:
        return MISSING
    return power_of_ten(value) if value and abs(value) < 1e-3 else significant(value)


# --- the page -----------------------------------------------------------------------------------------------


def _measure(summary: pd.DataFrame, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Headline and plots of one (data, extractor); the reference's floor belongs to its own extractor only."""
    data, extractor = (str(summary[column].iloc[0]) for column in ("data", "extractor"))
    real, summary = summary[summary["model"] == "data"], _of_models(summary)
    floors = {c: float(real[c].iloc[0]) for c in plots.METRICS if len(real) and pd.notna(real[c].iloc[0])}
    lines = headlines(summary)
    quality = plots.quality(summary)
    floor_key = "floor_fid" if quality == plots.QUALITY["fid"] else "floor_sliced_wasserstein"
    floor = reference.get(floor_key) if reference.get("extractor", extractor) == extractor else None
    nfes = {line.teacher_nfe for line in lines if line.teacher_nfe is not None}
    seeds, sets = summary["seed"].nunique(), summary["seeds"].max()
    return {
        "data": data,
        "extractor": extractor,
        "quality": quality,
        "sample": plots.unit(summary),
        "lines": _headline_cells(lines),
        "nfe": nfes.pop() if len(nfes) == 1 else None,
        "variants": any(line.variant for line in lines),
        "seeds": seeds if seeds > 1 else None,
        "sets": int(sets) if seeds == 1 and sets > 1 else None,
        "floor": None if floor is None or not math.isfinite(floor) else significant(floor),
        "samples": _range(summary["n_samples"]),
        "how": _how(reference, summary),
        "bias": _bias(summary),
        "against_nfe": Markup(plots.quality_against_nfe(summary, floor_fid=floor)),
        "against_seconds": Markup(plots.quality_against_seconds(summary, floor_fid=floor)),
        "metrics": {key: Markup(svg) for key, svg in plots.metrics_against_nfe(summary, floors).items()},
        "real_lines": any(key in plots.FLOORED for key in floors),
    }


def _how(reference: Mapping[str, Any], summary: pd.DataFrame) -> str:
    """The protocol in a line, to stand beside figures."""
    parts = [f"{extractor} features" for extractor in summary["extractor"].unique() if extractor != "coordinates"]
    parts += [f"weights {c}" for c in summary["checksum"].dropna().unique() if c != "identity"]
    if reference.get("resize") and plots.unit(summary) != "point":
        parts.append(f"resize: {reference['resize']}")
    sets = summary["seeds"].max()
    times = f"{int(sets)} × " if pd.notna(sets) and sets > 1 else ""
    parts.append(f"{times}{_range(summary['n_samples'])} samples")
    parts += [f"against {r}" for r in summary["reference"].dropna().unique()]
    return ", ".join(parts)


def _bias(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """FID at two numbers of samples and extrapolated, of the flow in one step and the teacher at its most."""
    teacher = summary[summary["model"] == "teacher"]
    best = teacher[teacher["nfe"] == teacher["nfe"].max()]
    chosen = pd.concat([summary[summary["sampler"] == "one_step"], best])
    chosen = chosen[chosen["fid_extrapolated"].notna()]
    decimals = _fid_decimals([Estimate(float(v), None, 1) for v in chosen["fid"]])
    rows = []
    for dynamics in plots.ordered(list(chosen["dynamics"])):
        for _, row in chosen[chosen["dynamics"] == dynamics].iterrows():
            sets = int(row["seeds"]) if pd.notna(row["seeds"]) else 1
            small = int(row["n_samples"]) if sets > 1 else int(row["n_samples"]) // 2
            rows.append(
                {
                    "name": plots.DYNAMICS.get(dynamics, dynamics),
                    "colour": plots.css_colour(dynamics),
                    "model": "flow, 1 step" if row["model"] == "flow" else f"teacher, {int(row['nfe'])} NFE",
                    "small": f"{small:,}",
                    "large": f"{int(row['n_samples']) * sets:,}",
                    "fids": [fixed(row[key], max(decimals, 3)) for key in ("fid", "fid_pooled", "fid_extrapolated")],
                }
            )
    return rows


def _memorisation(report: Report) -> list[dict[str, Any]]:
    """How near the flow's samples in one step are to training data, and the nearest pairs."""
    rows = []
    for dynamics in plots.ordered(report.summary["dynamics"].dropna()):
        one_step = report.summary[(report.summary["dynamics"] == dynamics) & (report.summary["sampler"] == "one_step")]
        farther, copies = _estimate(one_step, "train_distance_auc"), _estimate(one_step, "near_copies")
        if farther is None or copies is None:
            continue
        name, png = plots.DYNAMICS.get(dynamics, dynamics), report.pairs.get(dynamics)
        rows.append(
            {
                "name": name,
                "colour": plots.css_colour(dynamics),
                "farther": _fid(farther, 3),
                "copies": _fid(Estimate(100 * copies.mean, _times(copies.deviation, 100), copies.seeds), 1),
                "picture": _picture("samples above their nearest training images", png, name) if png else None,
            }
        )
    return rows


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _batches(report: Report) -> list[dict[str, Any]]:
    """What an image takes the flow in one step, in batches of several sizes: milliseconds, a row for each dynamics."""
    rows = []
    for dynamics in plots.ordered(report.batch_seconds):
        taken = report.batch_seconds[dynamics]
        best = min(taken.values(), default=None)
        rows.append(
            {
                "name": plots.DYNAMICS.get(dynamics, dynamics),
                "colour": plots.css_colour(dynamics),
                "cells": [(significant(1e3 * seconds), seconds == best) for _, seconds in sorted(taken.items())],
                "sizes": [f"{size:,}" for size in sorted(taken)],
            }
        )
    return rows


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    if pd.isna(low):
        return MISSING
    return f"{int(low):,}" if low == high else f"{int(low):,} to {int(high):,}"


def _warnings(report: Report) -> list[str]:
    """What speaks against the figures of the page: of the reference, of each row, of the diagnostics."""
    of_rows = cautions.of_cells(report.summary["warnings"])
    return cautions.together(
        [cautions.told(report.reference), of_rows, *(cautions.told(found) for found in report.diagnostics.values())]
    )


def _protocol(report: Report) -> list[tuple[str, str]]:
    """How the figures were obtained: (what, how)."""
    reference, summary = report.reference, report.summary
    what = f"{plots.unit(summary)}s"
    extractor = str(reference.get("extractor") or ", ".join(map(str, summary["extractor"].unique())))
    if reference.get("dimension") is not None:
        extractor += f", {int(reference['dimension']):,} features"
    if reference.get("accuracy") is not None:
        extractor += f"; {100 * reference['accuracy']:.1f} % of the test images classified correctly"
    models = _of_models(summary)
    sets = models["seeds"].max()
    count = f"{_range(models['n_samples'])} for each sampler"
    if pd.notna(sets) and sets > 1:
        count += f" and sampling seed, {int(sets)} seeds; every figure is their mean, ± one standard deviation"
    lines = [("Extractor", extractor)]
    if reference.get("checksum") not in (None, "identity"):
        lines.append(("Its weights", f"sha256 {reference['checksum']}"))
    kept = [key for key in PROTOCOL if reference.get(key) and (key != "resize" or what != "points")]
    lines += [(PROTOCOL[key], reference[key]) for key in kept]
    lines.append(("Samples", count))
    split = reference.get("split")
    if split is not None:
        count = reference.get(f"n_{split}")
        lines.append(("Reference", f"{split} split" + (f", {int(count):,} {what}" if count is not None else "")))
    if reference.get("duplicates"):
        counts = {name: reference[f"n_{name}"] for name in ("train", "test")}
        lines.append(("Repeated " + what, duplicates_in_words(reference["duplicates"], counts, noun=what)))
    for key, name in FLOORS.items():
        floor = reference.get(key)
        if floor is not None and math.isfinite(floor):
            count = reference.get("n_test")
            tests = f"{int(count):,} {what}" if count is not None else f"real {what}"
            lines.append(("Floor", f"{name} {significant(floor)}: test split ({tests}) against train split"))
    if summary["fid_extrapolated"].notna().any():
        lines.append(
            (
                "FID’s bias",
                "FID at n samples is too large by about c/n; extrapolated from one seed’s samples and all seeds’ to "
                "infinitely many (Chong & Forsyth 2020); the reference keeps its size",
            )
        )
    if summary["precision"].notna().any():
        lines.append(
            (
                "Diversity",
                "precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) on the same "
                "features; inception score on the extractor’s own classes, all of a seed’s samples at once",
            )
        )
    if summary["endpoint_rms"].notna().any():
        lines.append(("End-point RMS", "flow against the teacher at its largest NFE, from the same prior draw"))
    lines.append(("Seed of training", ", ".join(str(int(s)) for s in sorted(summary["seed"].dropna().unique()))))
    return lines


def render(report: Report) -> str:
    """The page as HTML text: self-contained, the same for the same input.

    `curves`, `grids`, `points`, `class_shares` (with `real_shares` and `classes`), `diagnostics`, `reference` and its
    keys, and `versions` may be empty or None; their parts are left out. Raises ValueError where the summary is empty,
    lacks a column, where a grid is not a PNG, or where shares and classes differ in number.
    """
    _check(report.summary)
    if report.summary.empty:
        raise ValueError("the summary has no rows: nothing to report")
    panels = plots.training_curves(report.curves)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short_commit"] = short_commit
    template = environment.from_string(files("ifm.report").joinpath("report.html").read_text(encoding="utf-8"))
    groups = report.summary.groupby(["data", "extractor"], sort=False)
    return template.render(
        style=asset("style.css"),
        sort=asset("sort.js"),
        report=report,
        measures=[_measure(rows, report.reference) for _, rows in groups],
        sample=plots.unit(report.summary),
        dimensions=max((mine.data.shape[1] for mine in report.points.values()), default=None),
        pictures=_pictures(report.grids, report.real),
        memorisation=_memorisation(report),
        batches=_batches(report),
        scatters=_scatters(report.points),
        table=_full_table(report.summary),
        classes=_classes(report),
        diagnostics=_diagnostics(report.diagnostics),
        curves=[(plots.STAGES[stage], Markup(svg)) for stage, svg in panels.items()],
        protocol=_protocol(report),
        warnings=_warnings(report),
        published=PUBLISHED,
    )
