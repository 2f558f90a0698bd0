"""What stands for what on pages: titles and colours of dynamics and samplers, and what rows are judged by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ifm.dynamics import DYNAMICS as dynamics_table
from ifm.metrics import catalogue
from ifm.metrics.metric import IMAGES, POINTS, SPREAD, TEXT


class Titles(Mapping[str, str]):
    """The titles in a table whose entries have one; what is entered later is there too."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> str:
        return self._table[name].title

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


DYNAMICS = Titles(dynamics_table)
SAMPLERS = {
    "heun": "Teacher, Heun",
    "one_step": "Flow, one step",
    "anchor": "Flow, anchor refined",
    "renoise": "Flow, re-noised",
    "chain": "Flow, sub-intervals",
    "selected": "Flow, selected",
}
MODELS = ("teacher", "flow")
STAGES = {"teacher": "Teacher", "flow": "Flow"}
UNITS = {"coordinates": "point", "symbols": "text"}  # of what an extractor is for, where these are no images
OTHER_COLOURS = ("#56B4E9", "#F0E442")  # of the Okabe-Ito set too: for names that the table has not
INK, PAPER = "#010203", "#040506"  # drawn in the SVG, then replaced
PAINT = {
    INK: "currentColor",
    PAPER: "var(--paper, #fff)",
    "#0072b2": "var(--blue, #0072b2)",  # the one colour of the set that is dim on a dark page
}


def colour(dynamics: str) -> str:
    """The colour of a dynamics: the table's, else one of two by its name."""
    known = dynamics_table.get(dynamics)
    return known.colour if known else OTHER_COLOURS[sum(dynamics.encode()) % len(OTHER_COLOURS)]


def css_colour(dynamics: str) -> str:
    """`colour` as the figures paint it: where a page may set another shade, a CSS variable."""
    shade = colour(dynamics).lower()
    return PAINT.get(shade, shade)


def sampler_title(sampler: str) -> str:
    """A sampler in words, without whose it is: re-noised."""
    return SAMPLERS.get(sampler, sampler).removeprefix("Flow, ").removeprefix("Teacher, ")


def ordered(dynamics: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Each name once: those of `DYNAMICS` first, in its order, then the others by alphabet."""
    names = set(dynamics)
    return [key for key in DYNAMICS if key in names] + sorted(names - set(DYNAMICS))


def widths(dynamics: Mapping[str, object] | Sequence[str]) -> dict[str, float]:
    """Factors of line widths, falling in the order of drawing: of curves that lie on each other, each one is seen."""
    names = ordered(dynamics)
    step = min(0.7, 2 / max(len(names) - 1, 1))
    return {key: 1.0 if len(names) == 1 else 0.8 + step * (len(names) - 1 - i) for i, key in enumerate(names)}


def unit(summary: pd.DataFrame) -> str:
    """What one sample is: "image", "sound", "point" or "text", as extractor and reference say; "sample" of several."""
    if "extractor" in summary:
        units = {UNITS.get(extractor, "image") for extractor in summary["extractor"]}
        if units == {"image"} and "reference" in summary:
            sounds = summary["reference"].astype(str).str.endswith(" sounds)")
            units = {"sound" if sound else "image" for sound in sounds}
    else:
        points = summary["fid"].isna() & summary["sliced_wasserstein"].notna()
        units = {"point" if point else "image" for point in points}
    return units.pop() if len(units) == 1 else "sample" if units else "image"


def kind(summary: pd.DataFrame) -> str:
    """The kind of data of the rows, as the catalogue names it; images where they are of several."""
    return {"point": POINTS, "text": TEXT}.get(unit(summary), IMAGES)


def quality(summary: pd.DataFrame) -> str:
    """What the rows are judged by: "FID", of sounds "Fréchet distance", of points "Sliced 2-Wasserstein"."""
    judge = catalogue.judge(kind(summary))
    return "Fréchet distance" if judge.key == "fid" and unit(summary) == "sound" else judge.title


def judged(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows with what they are judged by in the column fid."""
    key = catalogue.judge(kind(summary)).key
    if key == "fid":
        return summary
    return summary.assign(fid=summary[key], fid_sd=summary.get(key + SPREAD, np.nan))


def flow_variants(summary: pd.DataFrame) -> list[tuple[str, str]]:
    """The (objective, anchor policy) pairs of the flow's rows, in order of appearance; "" where not given."""
    flow = summary.loc[summary["model"] == "flow", ["objective", "anchor"]].astype(object)
    flow = flow.where(flow.notna(), "")
    return list(dict.fromkeys(flow.itertuples(index=False, name=None)))


def variant_title(objective: str, anchor: str) -> str:
    """An (objective, anchor policy) pair in words."""
    return ", ".join([objective] * bool(objective) + [f"anchor {anchor}"] * bool(anchor))


def of_models(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of real data, and of models at other guidance scales."""
    return summary[summary["model"].isin(MODELS)]


def at_own_scale(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of models at other guidance scales (flow-w2, teacher-w2)."""
    return summary[summary["model"].isin((*MODELS, "data"))]
