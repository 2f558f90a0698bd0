"""The comparison's page: what `pipeline.tools.comparison` finds, as one self-contained HTML file without a verdict."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.report import plots
from ifm.report.page import over_teacher
from ifm.report.rounding import MISSING, mean_and_deviation, significant
from pipeline.studies.pages.page import filled
from pipeline.tools import comparison
from pipeline.tools.comparison import BEYOND, EQUAL, Row, Side, Value, change, difference, ratio, value_of

TEMPLATE = Path(__file__).with_name("compare.html")
CAPITALS = {"fid", "kid", "rms", "nfe", "auc", "mb"}
# Behind a separator, and every 24 characters of an endless word; behind a hyphen browsers break of themselves.
BREAKS = re.compile(r"(?<=[/._,=@:])(?=[^\s/._,=@:])|(?<=[^\s/._,=@:-]{24})(?=[^\s/._,=@:-])")
KEY_TITLES = {"data": "Data", "extractor": "Extractor", "objective": "Objective", "anchor": "Anchor", "seed": "Seed"}
SAMPLERS = {"heun": "Heun", "one_step": "one step", "renoise": "re-noise", "chain": "sub-intervals"}
FEW = 3  # names in a cell


def render(a: Side, b: Side, rows: Sequence[Row], *, created: str) -> str:
    """The page as HTML text: self-contained, the same for the same input. `rows`: `comparison.paired`'s."""
    report = files("ifm").joinpath("report.html").read_text(encoding="utf-8")
    judged = comparison.judged_by(rows)
    headline = _headline(rows, judged)
    stages = comparison.stage_changes(a.lock, b.lock)
    return filled(
        TEMPLATE,
        facts={},
        breakable=breakable,
        commit=f"{a.commit[:10]} and {b.commit[:10]}",
        created=created,
        script=Markup(re.search(r"<script>(.*?)</script>", report, flags=re.DOTALL).group(1)),  # sorts #rows
        sides=[("A", a), ("B", b)],
        warnings=comparison.warnings(a, b, rows),
        matched={KEY_TITLES[key].lower(): pair for key, pair in comparison.loose_keys(a.summary, b.summary).items()},
        quality=_title(judged),
        headline=headline,
        spreads=any(spread for group in headline for line in group["lines"] for _, spread in line["figures"]),
        params=_params(a, b),
        has_params=bool(a.params and b.params),
        table=_table(rows, comparison.metric_columns(a.summary, b.summary), judged),
        curves=[(plots.STAGES[stage], Markup(svg)) for stage, svg in _curves(a.curves, b.curves).items()],
        other=_other(a, b),
        stages=[_stage(one) for one in stages],
        code=_code(stages),
        same_stages=len(set(a.lock) & set(b.lock)) - sum(one.only is None for one in stages),
        has_lock=bool(a.lock and b.lock),
        versions=[(name, _word(x), _word(y)) for name, x, y in comparison.differing(a.versions, b.versions)],
        has_versions=bool(a.versions and b.versions),
    )


# --- words and numbers ----------------------------------------------------------------------------------------------


def _title(column: str, sample: str = "image") -> str:
    """A column of summary.csv in words: those of `plots.QUALITY`, else its own. sample: what an image is called."""
    if column in plots.QUALITY:
        return plots.QUALITY[column]
    named = column.replace("image", sample)
    words = " ".join(word.upper() if word in CAPITALS else word for word in named.split("_"))
    return words[:1].upper() + words[1:]


def _sample(rows: Sequence[Row]) -> str:
    """What one sample is called, of both sides."""
    return plots.unit(pd.DataFrame({"extractor": [row.key["extractor"] for row in rows]}))


def breakable(text: Any) -> Markup:
    """Text that a narrow column may break behind its separators, and an endless word anywhere, but no other word."""
    parts = BREAKS.split(str(text))
    return Markup("<wbr>").join(parts)


def _word(value: Any) -> str:
    """A YAML value as it would stand there; `...` (not there) is a dash."""
    if value is ...:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _params(a: Side, b: Side) -> dict[str, list[tuple[str, str, str]]]:
    """What differs where both sides have the key, and what one side has alone: often a newer key with its default."""
    found = comparison.differing(a.params, b.params)
    kinds = {"both": [line for line in found if ... not in line], "one": [line for line in found if ... in line]}
    return {kind: [(key, _word(x), _word(y)) for key, x, y in lines] for kind, lines in kinds.items()}


def _apart(value: Value | None) -> tuple[str, str]:
    """A figure and its spread as text; "" where it has none."""
    if value is None:
        return MISSING, ""
    return mean_and_deviation(value.mean, value.deviation, digits=4)


def _figure(value: Value | None) -> str:
    return " ".join(_apart(value)).rstrip()


def _difference(value: float | None) -> str:
    if value is None:
        return MISSING
    return ("+" if value > 0 else "") + significant(value)


def _ratio(value: float | None) -> str:
    return MISSING if value is None else significant(value, 4 if value >= 1 else 3)


def _key(value: float | None) -> str:
    """What a cell is sorted by; "" sorts last."""
    return "" if value is None else f"{value:.12g}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "") or MISSING


# --- headline -------------------------------------------------------------------------------------------------------


def _headline(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """For each dynamics (of each data set and flow, where there are several) the flow, the teacher, their ratio."""
    flows = [row for row in rows if row.key["model"] == "flow" and row.key["sampler"] == "one_step"]
    several = len({(row.key["data"], row.key["extractor"]) for row in rows}) > 1
    groups = []
    for dynamics in plots.ordered([row.key["dynamics"] for row in rows]):
        mine = [row for row in rows if row.key["dynamics"] == dynamics]
        for data, extractor in dict.fromkeys((row.key["data"], row.key["extractor"]) for row in mine):
            here = [row for row in mine if (row.key["data"], row.key["extractor"]) == (data, extractor)]
            variants = dict.fromkeys((row.key["objective"], row.key["anchor"]) for row in here if row in flows)
            for pair in variants or [("", "")]:
                one_step = [row for row in here if row in flows and (row.key["objective"], row.key["anchor"]) == pair]
                about = [f"{data}, {extractor}"] * several + [plots.variant_title(*pair)] * (len(variants) > 1)
                groups.append(
                    {
                        "name": plots.DYNAMICS.get(dynamics, dynamics),
                        "about": "; ".join(about),
                        "colour": plots.css_colour(dynamics),
                        "lines": _headline_lines(
                            one_step, [row for row in here if row.key["model"] == "teacher"], metric
                        ),
                    }
                )
    return groups


def _headline_lines(flow: Sequence[Row], teacher: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    most = [max((row.key["nfe"] for row in teacher if value_of(getattr(row, s), metric)), default=None) for s in "ab"]
    nfe = " against ".join(str(n) for n in dict.fromkeys(n for n in most if n is not None))
    flows = [comparison.over_rows([getattr(row, side) for row in flow], metric) for side in "ab"]
    teachers = [
        comparison.over_rows([getattr(row, side) for row in teacher if row.key["nfe"] == n], metric)
        for side, n in zip("ab", most, strict=True)
    ]
    over = [_over_teacher(flow, teacher, side, n, metric) for side, n in zip("ab", most, strict=True)]
    over = [r if x and y else None for r, x, y in zip(over, flows, teachers, strict=True)]
    found = [("Flow, 1 step", flows), (f"Teacher, {nfe} NFE", teachers), ("Flow / teacher", over)]
    return [
        {
            "title": title,
            "figures": [_apart(x), _apart(y)],
            "ratio": _ratio(ratio(x, y)),
            "change": change(x, y) if change(x, y) in (comparison.WITHIN, BEYOND) else "",
        }
        for title, (x, y) in found
        if x or y
    ]


def _over_teacher(flow: Sequence[Row], teacher: Sequence[Row], side: str, nfe: int | None, metric: str) -> Value | None:
    """The report's ratio of one side: the mean over seeds of the flow's figure over the teacher's."""
    rows = [[record for row in rows if (record := getattr(row, side))] for rows in (flow, teacher)]
    flows, teachers = (pd.DataFrame(records) for records in (rows[0], [r for r in rows[1] if r["nfe"] == nfe]))
    found = None if flows.empty or teachers.empty else over_teacher(flows, teachers, metric)
    return found and Value(found.mean, found.deviation)


# --- every metric ---------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Row], metrics: Sequence[str], judged: str) -> dict[str, Any]:
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
                "title": _title(metric, sample),
                "rows": len(mine),
                "counts": verdicts,
                "ratio": median(ratios) if ratios else None,
            }
        )
        lines += [_line(row, x, y, metric=metric, title=_title(metric, sample), keys=shown) for row, x, y in mine]
    kinds = [kind for kind in _KINDS if any(one["counts"][kind] for one in glance)]
    return {
        "keys": [KEY_TITLES[key] for key in shown],
        "lines": lines,
        "kinds": kinds,
        "glance": [
            {**one, "counts": [one["counts"][kind] or "" for kind in kinds], "ratio": _ratio(one["ratio"])}
            for one in glance
        ],
        "metrics": [(metric, _title(metric, sample)) for metric in metrics],
        "first": judged if judged in metrics else "",
        "constants": [
            ("flow’s " * (key in comparison.OF_THE_FLOW) + KEY_TITLES[key].lower(), value)
            for key in KEY_TITLES
            if key not in shown and (value := _constant(rows, key))
        ],
        "spread": any(kind in kinds for kind in (comparison.WITHIN, BEYOND)),
    }


_KINDS = (EQUAL, comparison.WITHIN, BEYOND, comparison.DIFFERS, comparison.ONLY_A, comparison.ONLY_B)


def _line(
    row: Row, x: Value | None, y: Value | None, *, metric: str, title: str, keys: Sequence[str]
) -> dict[str, Any]:
    d, r = difference(x, y), ratio(x, y)
    key = row.key
    words = [title, plots.DYNAMICS.get(key["dynamics"], key["dynamics"]), key["model"]]
    words += [str(key[name]) if key[name] != "" else MISSING for name in keys]
    words.append(SAMPLERS.get(key["sampler"], key["sampler"]))
    return {
        "metric": metric,
        "words": words,
        "nfe": key["nfe"],
        "figures": [
            (_figure(x), _key(x.mean if x else None)),
            (_figure(y), _key(y.mean if y else None)),
            (_difference(d), _key(d)),
            (_ratio(r), _key(r)),
        ],
        "change": change(x, y),
        "beyond": change(x, y) == BEYOND,
    }


def _distinct(rows: Sequence[Row], key: str) -> int:
    return len(set(_of_key(rows, key)))


def _constant(rows: Sequence[Row], key: str) -> str:
    """The one value of a key; "" where the sides differ in it."""
    found = {str(record[key]) for row in _relevant(rows, key) for record in (row.a, row.b) if record}
    return found.pop() if len(found) == 1 else ""


def _of_key(rows: Sequence[Row], key: str) -> list[Any]:
    return [row.key[key] for row in _relevant(rows, key)]


def _relevant(rows: Sequence[Row], key: str) -> list[Row]:
    return [row for row in rows if key not in comparison.OF_THE_FLOW or row.key["model"] == "flow"]


# --- curves, other numbers, stages ----------------------------------------------------------------------------------


def _curves(a: Mapping[str, pd.DataFrame], b: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Loss against step for each stage: A dashed and broad, B a thin line over it, a colour for each dynamics."""
    panels = {}
    for stage in plots.STAGES:
        found = {}
        for side, curves in (("A", a), ("B", b)):
            named = {
                name.partition("-")[2]: plots.thinned(curve) for name, curve in curves.items() if _is_of(name, stage)
            }
            found |= {(d, side): curve for d, curve in named.items() if len(curve)}
        if found:
            panels[stage] = _curve_panel(stage, found)
    return panels


def _is_of(name: str, stage: str) -> bool:
    return name.partition("-")[0] == stage and "-" in name


def _curve_panel(stage: str, curves: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    styles = {
        "A": {"linestyle": (0, (2.2, 1.3)), "linewidth": 3.2, "alpha": 0.45},
        "B": {"linestyle": "-", "linewidth": 1.2},
    }

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        dynamics = plots.ordered([d for d, _ in curves])
        widths = plots.widths(dynamics)
        for d in dynamics:
            for side, style in styles.items():
                if (d, side) in curves:
                    curve = curves[d, side]
                    thick = {"linewidth": style["linewidth"] * widths[d]}
                    ax.plot(curve["step"], curve["loss"], color=plots.colour(d), **style | thick)
        handles = [plots.swatch(d, dynamics) for d in dynamics]
        handles += [ax.plot([], [], color=plots.INK, **style)[0] for style in styles.values()]
        ax.set_yscale("log")
        plots.log_y(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        ax.set_xlabel("Step")
        ax.set_ylabel("Loss")
        titles = [*(plots.DYNAMICS.get(d, d) for d in dynamics), *styles]
        figure.legend(handles, titles, loc="outside lower center", ncols=len(titles) if len(titles) <= 5 else 3)

    label = f"{plots.STAGES[stage]}: training loss of A and B against step"
    return plots.svg(draw, name=f"compare-{stage}", label=label, size=(5.4, 3.2))


def _other(a: Side, b: Side) -> dict[str, Any]:
    """Numbers of metrics and diagnostics that differ, and how many do not."""
    of_a, of_b = comparison.scalars(a), comparison.scalars(b)
    lines = []
    for file, key in dict.fromkeys([*of_a, *of_b]):
        x, y = (Value(found[file, key]) if (file, key) in found else None for found in (of_a, of_b))
        if change(x, y) != EQUAL:
            figures = (_figure(x), _figure(y), _difference(difference(x, y)), _ratio(ratio(x, y)))
            lines.append({"file": file, "key": key, "figures": figures})
    return {"lines": lines, "all": len({*of_a, *of_b})}


def _stage(one: comparison.StageChange) -> dict[str, Any]:
    """A stage's line: counts of code files, names of data, params and outputs."""
    outs = f"differ: {_few(one.outs)}" if one.outs else "the same bytes"
    if one.outs and one.same_outs:
        outs += f"; the same: {_few(one.same_outs)}"
    return {
        "name": one.name,
        "only": one.only,
        "code": f"{len(one.code)} file{'s' * (len(one.code) > 1)}" if one.code else "the same",
        "data": _few(one.data) if one.data else "the same",
        "params": _few(one.params) if one.params else "the same",
        "outs": outs,
    }


def _code(stages: Sequence[comparison.StageChange]) -> list[tuple[str, str]]:
    """(file, stages) of the code that differs."""
    users: dict[str, list[str]] = {}
    for one in stages:
        for path in one.code:
            users.setdefault(path, []).append(one.name)
    return [(path, ", ".join(names)) for path, names in sorted(users.items())]
