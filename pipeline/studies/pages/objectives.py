"""The objectives' page: quality at 1, 2 and 4 evaluations beside the teacher's, and what each took to train.

Every figure is a mean over seeds with its standard deviation, never the best one.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.report import plots
from ifm.report.rounding import MISSING, significant
from pipeline.studies.pages.ablation import METRICS, Estimate, filled, judged_by, mean_ratio, summarised, warned

TEMPLATE = Path(__file__).with_name("objectives.html")
TITLES = {
    "trajectory": "trajectory",
    "trajectory-consistency": "trajectory, consistency",
    "consistency": "consistency",
    "interval": "interval",
    "data": "data (the paper’s)",
}
WITH_TEACHER = ("trajectory", "trajectory-consistency")  # the others train none for their own use
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")  # Okabe & Ito's, in TITLES' order
SEVERAL = {"interval": "chain", "data": "anchor"}  # sampler from two steps on; re-noised for the others
LINES = (  # of a table: title, objective, sampler if not SEVERAL's
    *((title, objective, None) for objective, title in TITLES.items()),
    ("interval, re-noised", "interval", "renoise"),
)


def teacher(rows: pd.DataFrame, metric: str) -> Estimate | None:
    """The teacher of one data set and dynamics at most evaluations: of those trained longest, over seeds."""
    longest = rows[rows["teacher_evaluations"] == rows["teacher_evaluations"].max()]
    return summarised(longest.drop_duplicates("seed").set_index("seed")[f"teacher_{metric}"])


def at_steps(
    rows: pd.DataFrame, objective: str, steps: int, metric: str, *, several: str | None = None
) -> Estimate | None:
    """An objective's figure at a number of evaluations, over seeds: from one data set's rows of one dynamics.

    several: the sampler from two steps on; None: SEVERAL's.
    """
    sampler = "one_step" if steps == 1 else several or SEVERAL.get(objective, "renoise")
    mine = rows[(rows["objective"] == objective) & (rows["steps"] == steps) & (rows["sampler"] == sampler)]
    return summarised(mine.set_index("seed")[metric])


def _of(rows: pd.DataFrame, objective: str, column: str) -> Estimate | None:
    return summarised(rows[rows["objective"] == objective].drop_duplicates("seed")[column])


def _table(rows: pd.DataFrame, metric: str, steps: Sequence[int]) -> dict[str, Any]:
    """One data set and dynamics: a line for each objective."""
    of_teacher = teacher(rows, metric)
    lines = []
    for title, objective, several in LINES:
        found = [at_steps(rows, objective, n, metric, several=several) for n in steps]
        if not any(found) or (several and not any(found[1:])):
            continue
        ratios = [mean_ratio(e, of_teacher) if e and of_teacher else None for e in found]
        evaluations, seconds, memory = (
            _of(rows, objective, column) for column in ("evaluations", "train_seconds", "peak_memory_mb")
        )
        lines.append(
            {
                "title": title,
                "teacher": "yes" if objective in WITH_TEACHER else "no",
                "quality": [e or MISSING for e in found],
                "ratios": [MISSING if ratio is None else significant(ratio) for ratio in ratios],
                "evaluations": f"{evaluations.mean / 1e6:.2f} M" if evaluations else MISSING,
                "seconds": significant(seconds.mean, 2) + " s" if seconds else MISSING,
                "memory": f"{memory.mean / 1000:.2f} GB" if memory else MISSING,
                "seeds": rows[rows["objective"] == objective]["seed"].nunique(),
            }
        )
    return {"teacher": of_teacher, "lines": lines, "nfe": int(rows["teacher_nfe"].max())}


def _figure(by_dynamics: dict[str, pd.DataFrame], metric: str, steps: Sequence[int], *, name: str) -> str:
    """A panel for each dynamics: a line for each objective, the teacher's level dashed."""
    shown = [o for o in TITLES if any(at_steps(rows, o, 1, metric) for rows in by_dynamics.values())]
    colour = dict(zip(TITLES, COLOURS, strict=True))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(by_dynamics), sharey=True, squeeze=False)[0]
        for ax, (d, rows) in zip(panels, by_dynamics.items(), strict=True):
            for i, objective in enumerate(shown):
                found = [(k, at_steps(rows, objective, n, metric)) for k, n in enumerate(steps)]
                found = [(k + 0.05 * (i - len(shown) / 2), e) for k, e in found if e]
                if not found:
                    continue
                x, means = [k for k, _ in found], [e.mean for _, e in found]
                ax.plot(x, means, color=colour[objective], zorder=3, **plots.marker("one_step", colour[objective]))
                for k, e in found:
                    if e.deviation:
                        low = max(e.mean - e.deviation, e.mean / 20)  # a logarithmic axis has no zero
                        ax.vlines(k, low, e.mean + e.deviation, color=colour[objective], linewidth=1.4, zorder=2)
            of_teacher = teacher(rows, metric)
            if of_teacher:
                ax.axhline(of_teacher.mean, color=plots.INK, linestyle="--", linewidth=1, zorder=1)
            ax.set_xticks(range(len(steps)), [str(n) for n in steps])
            ax.set_xlim(-0.4, len(steps) - 0.6)
            ax.set_xlabel("Evaluations")
            ax.set_title(plots.DYNAMICS[d], fontsize=plots.SIZE)
            ax.set_yscale("log")
        plots.log_y(panels[0])
        panels[0].set_ylabel(METRICS[metric])
        handles = [panels[0].plot([], [], color=colour[o], linewidth=3)[0] for o in shown]
        handles.append(panels[0].plot([], [], color=plots.INK, linestyle="--", linewidth=1)[0])
        titles = [*(TITLES[o] for o in shown), "teacher, most evaluations"]
        figure.legend(handles, titles, loc="outside lower center", ncols=2 if len(by_dynamics) < 3 else 3)

    size = (2.6 * max(2, len(by_dynamics)), 3.6)
    return plots.svg(draw, name=re.sub(r"\W", "-", name), label=f"{METRICS[metric]} against evaluations", size=size)


def render(table: pd.DataFrame, *, missing: Sequence[tuple[str, str]], commit: str, created: str) -> str:
    """The page as HTML text: self-contained, the same for the same input. `missing`: (objective, reason).

    Raises ValueError where the table has no rows.
    """
    if table.empty:
        raise ValueError("the table has no rows: nothing to show")
    sections = []
    for data, rows in table.groupby("data", sort=True):
        metric = judged_by(rows)
        steps = sorted(n for n in rows["steps"].unique() if n in (1, 2, 4))
        by_dynamics = {d: rows[rows["dynamics"] == d] for d in plots.ordered(list(rows["dynamics"]))}
        sections.append(
            {
                "data": data,
                "metric": METRICS[metric],
                "steps": steps,
                "samples": int(rows["n_samples"].max()),
                "svg": Markup(_figure(by_dynamics, metric, steps, name=f"objectives-{data}")),
                "tables": [
                    {"name": plots.DYNAMICS[d], "colour": plots.css_colour(d), **_table(mine, metric, steps)}
                    for d, mine in by_dynamics.items()
                ],
            }
        )
    return filled(
        TEMPLATE,
        facts={
            "Data": ", ".join(section["data"] for section in sections),
            "Seeds": ", ".join(map(str, sorted(table["seed"].unique()))),
        },
        commit=commit,
        created=created,
        careful=warned(table),
        sections=sections,
        missing=missing,
    )
