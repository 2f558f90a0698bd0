"""The comparison's tables: one step against the teacher, and a line for each metric of each row."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from ifm.metrics import catalogue
from ifm.report import names, tables
from ifm.report.headlines import best_teachers, nfe_text, over_teacher
from ifm.report.rounding import MISSING, mean_and_deviation, significant
from pipeline.tools.comparison import (
    BEYOND,
    DIFFERS,
    EQUAL,
    KEYS,
    LOOSE,
    OF_THE_FLOW,
    ONLY_A,
    ONLY_B,
    WITHIN,
    Row,
    Value,
    change,
    difference,
    over_rows,
    ratio,
    value_of,
)

CAPITALS = {"fid", "kid", "rms", "nfe", "auc", "mb"}
KEY_TITLES = {key: tables.TITLES[key] for key in LOOSE}
SAMPLERS = tables.WORDS["sampler"]
_KINDS = (EQUAL, WITHIN, BEYOND, DIFFERS, ONLY_A, ONLY_B)


def title_of(column: str, sample: str = "image") -> str:
    """A column of summary.csv in words: the catalogue's title, or its own where that has another unit.

    sample: what an image is called.
    """
    metric = catalogue.METRICS.get(column)
    if metric is not None and metric.format.scale == 1:
        return metric.title.format(sample=sample)
    named = column.replace("image", sample)
    words = " ".join(word.upper() if word in CAPITALS else word for word in named.split("_"))
    return words[:1].upper() + words[1:]


def apart(value: Value | None) -> tuple[str, str]:
    """A figure and its spread as text; "" where it has none."""
    if value is None:
        return MISSING, ""
    return mean_and_deviation(value.mean, value.deviation, digits=4)


def figure(value: Value | None) -> str:
    return " ".join(apart(value)).rstrip()


def difference_text(value: float | None) -> str:
    if value is None:
        return MISSING
    return ("+" if value > 0 else "") + significant(value)


def ratio_text(value: float | None) -> str:
    return MISSING if value is None else significant(value, 4 if value >= 1 else 3)


def headline(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """For each dynamics (of each data set and flow, where there are several) the flow, the teacher, their ratio."""
    flows = [row for row in rows if row.key["model"] == "flow" and row.key["sampler"] == "one_step"]
    several = len({(row.key["data"], row.key["extractor"]) for row in rows}) > 1
    groups = []
    for dynamics in names.ordered([row.key["dynamics"] for row in rows]):
        mine = [row for row in rows if row.key["dynamics"] == dynamics]
        for data, extractor in dict.fromkeys((row.key["data"], row.key["extractor"]) for row in mine):
            here = [row for row in mine if (row.key["data"], row.key["extractor"]) == (data, extractor)]
            variants = dict.fromkeys((row.key["objective"], row.key["anchor"]) for row in here if row in flows)
            for pair in variants or [("", "")]:
                one_step = [row for row in here if row in flows and (row.key["objective"], row.key["anchor"]) == pair]
                about = [f"{data}, {extractor}"] * several + [names.variant_title(*pair)] * (len(variants) > 1)
                groups.append(
                    {
                        "name": names.DYNAMICS.get(dynamics, dynamics),
                        "about": "; ".join(about),
                        "colour": names.css_colour(dynamics),
                        "lines": _headline_lines(
                            one_step, [row for row in here if row.key["model"] == "teacher"], metric
                        ),
                    }
                )
    return groups


def _headline_lines(flow: Sequence[Row], teacher: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    of_flow, of_teacher = ([_records(rows, side) for side in "ab"] for rows in (flow, teacher))
    best = [best_teachers(rows, metric) for rows in of_teacher]
    nfe = " against ".join(dict.fromkeys(nfe_text(list(rows["nfe"])) for rows in best if len(rows)))
    flows = [over_rows(rows.to_dict("records"), metric) for rows in of_flow]
    teachers = [over_rows(rows.to_dict("records"), metric) for rows in best]
    ratios = [over_teacher(x, y, metric) for x, y in zip(of_flow, of_teacher, strict=True)]
    over = [
        r and Value(r.mean, r.deviation) if x and y else None for r, x, y in zip(ratios, flows, teachers, strict=True)
    ]
    found = [("Flow, 1 step", flows), (f"Teacher, {nfe} NFE", teachers), ("Flow / teacher", over)]
    return [
        {
            "title": title,
            "figures": [apart(x), apart(y)],
            "ratio": ratio_text(ratio(x, y)),
            "change": change(x, y) if change(x, y) in (WITHIN, BEYOND) else "",
        }
        for title, (x, y) in found
        if x or y
    ]


def _records(rows: Sequence[Row], side: str) -> pd.DataFrame:
    """The records of one side; a table without rows has the columns that are asked for."""
    found = [record for row in rows if (record := getattr(row, side))]
    return pd.DataFrame(found) if found else pd.DataFrame(columns=list(KEYS))


def table(rows: Sequence[Row], metrics: Sequence[str], judged: str) -> dict[str, Any]:
    """A line for each metric of each row, and for each metric how many rows are equal, within the spread, ..."""
    shown, sample = [key for key in KEY_TITLES if _distinct(rows, key) > 1], _sample(rows)
    lines, glance = [], []
    for metric in metrics:
        mine = [(row, value_of(row.a, metric), value_of(row.b, metric)) for row in rows]
        mine = [(row, x, y) for row, x, y in mine if x or y]
        verdicts = Counter(change(x, y) for _, x, y in mine)
        ratios = [r for _, x, y in mine if (r := ratio(x, y)) is not None]
        glance.append(
            {
                "title": title_of(metric, sample),
                "hint": catalogue.METRICS[metric].hint if metric in catalogue.METRICS else "",
                "rows": len(mine),
                "counts": verdicts,
                "ratio": median(ratios) if ratios else None,
            }
        )
        lines += [_line(row, x, y, metric=metric, title=title_of(metric, sample), keys=shown) for row, x, y in mine]
    kinds = [kind for kind in _KINDS if any(one["counts"][kind] for one in glance)]
    return {
        "keys": [KEY_TITLES[key] for key in shown],
        "lines": lines,
        "kinds": kinds,
        "glance": [
            {**one, "counts": [one["counts"][kind] or "" for kind in kinds], "ratio": ratio_text(one["ratio"])}
            for one in glance
        ],
        "metrics": [(metric, title_of(metric, sample)) for metric in metrics],
        "first": judged if judged in metrics else "",
        "constants": [
            ("flow’s " * (key in OF_THE_FLOW) + KEY_TITLES[key].lower(), value)
            for key in KEY_TITLES
            if key not in shown and (value := _constant(rows, key))
        ],
        "spread": any(kind in kinds for kind in (WITHIN, BEYOND)),
    }


def _line(
    row: Row, x: Value | None, y: Value | None, *, metric: str, title: str, keys: Sequence[str]
) -> dict[str, Any]:
    d, r = difference(x, y), ratio(x, y)
    key = row.key
    words = [title, names.DYNAMICS.get(key["dynamics"], key["dynamics"]), key["model"]]
    words += [str(key[name]) if key[name] != "" else MISSING for name in keys]
    words.append(SAMPLERS.get(key["sampler"], key["sampler"]))
    return {
        "metric": metric,
        "words": words,
        "nfe": key["nfe"],
        "figures": [
            (figure(x), _key(x.mean if x else None)),
            (figure(y), _key(y.mean if y else None)),
            (difference_text(d), _key(d)),
            (ratio_text(r), _key(r)),
        ],
        "change": change(x, y),
        "beyond": change(x, y) == BEYOND,
    }


def _sample(rows: Sequence[Row]) -> str:
    """What one sample is called, of both sides."""
    return names.unit(pd.DataFrame({"extractor": [row.key["extractor"] for row in rows]}))


def _key(value: float | None) -> str:
    """What a cell is sorted by; "" sorts last."""
    return "" if value is None else f"{value:.12g}"


def _distinct(rows: Sequence[Row], key: str) -> int:
    return len(set(_of_key(rows, key)))


def _constant(rows: Sequence[Row], key: str) -> str:
    """The one value of a key; "" where the sides differ in it."""
    found = {str(record[key]) for row in _relevant(rows, key) for record in (row.a, row.b) if record}
    return found.pop() if len(found) == 1 else ""


def _of_key(rows: Sequence[Row], key: str) -> list[Any]:
    return [row.key[key] for row in _relevant(rows, key)]


def _relevant(rows: Sequence[Row], key: str) -> list[Row]:
    return [row for row in rows if key not in OF_THE_FLOW or row.key["model"] == "flow"]
