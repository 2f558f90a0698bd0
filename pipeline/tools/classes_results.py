"""`python -m pipeline.tools.classes_results STATE ...`: finished runs by class as reports/results/classes.csv.

A state is what `make compare` takes: a commit, a branch, the name of a DVC experiment (`ifm sweep --seeds 0,1,2` makes
one for each seed) or `workspace`. `--docs` writes the tables of docs/classes.md from the file instead.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ifm.errors import UserError
from ifm.files import write_text
from ifm.metrics import catalogue, teachers
from ifm.report import names
from ifm.report.headlines import estimate, written
from pipeline.runner import paths
from pipeline.tools.compare import read_side
from pipeline.tools.comparison import Side

CSV, PAGE = paths.REPORTS / "results" / "classes.csv", Path("docs/classes.md")
MARK = "<!-- python -m pipeline.tools.classes_results --docs -->"
COLUMNS = ("data", "dynamics", "objective", "model", "nfe", "seed", "metric", "value")
METRICS = (
    "asked_class_share", "fid", "sliced_wasserstein", "recall", "fid_within_classes", "ratio", "seconds_per_image",
)  # fmt: skip
WITHOUT = "-unconditional"  # ends the model's name in runs without classes


def rows_of(side: Side) -> list[dict[str, Any]]:
    """A finished run's rows: the flow in one step, the teacher at its best NFE, and both at other guidance scales.

    The model is flow, flow-w2, teacher, teacher-w2; with -unconditional behind it where nothing was asked for.
    """
    conditional = (side.params.get("condition") or {}).get("kind", "none") != "none"
    found = []
    for _, mine in side.summary.groupby(["dynamics", "seed"], sort=False):
        records = mine.to_dict("records")
        judge = catalogue.judge(names.kind(mine))
        best = teachers.best((r for r in records if r["model"] == "teacher"), judge)
        for record in records:
            one_step = record["model"] == "flow" and record["sampler"] == "one_step"
            if record is best or one_step or record["model"].startswith(("flow-", "teacher-")):
                found += _of_record(record, conditional=conditional)
    return found


def _of_record(record: dict[str, Any], *, conditional: bool) -> list[dict[str, Any]]:
    """A row for each metric that a record of the summary has."""
    model = record["model"] if conditional else record["model"] + WITHOUT
    key = {name: record[name] for name in ("data", "dynamics", "nfe", "seed")}
    key |= {"objective": record["objective"] if record["model"].startswith("flow") else "", "model": model}
    known = [name for name in METRICS if pd.notna(record.get(name))]
    return [{**key, "metric": name, "value": float(f"{record[name]:.6g}")} for name in known]


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The file's content, in an order that the order of states does not change. Raises UserError for a row twice."""
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    twice = found[found.duplicated(list(COLUMNS[:-1]))]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(f"{first.dynamics}, {first.model}, seed {first.seed}: two states have it; name each run once")
    return found.sort_values(list(COLUMNS[:-1]), kind="stable", ignore_index=True)


def markdown(found: pd.DataFrame) -> str:
    """A line for each dynamics, objective and model: means over seeds, ± a standard deviation."""
    shown = [name for name in METRICS if (found["metric"] == name).any()]
    lines = [
        f"| data | dynamics | objective | model | NFE | {' | '.join(catalogue.title(m) for m in shown)} |",
        "|" + "---|" * (5 + len(shown)),
    ]
    text = found.fillna({"objective": ""})
    for (data, dynamics, objective, model), mine in text.groupby(list(COLUMNS[:4]), sort=False):
        mine = mine.assign(value=mine["value"].where(mine["metric"] != "seconds_per_image", 1000 * mine["value"]))  # ms
        values = [estimate(mine[mine["metric"] == name].rename(columns={"value": name}), name) for name in shown]
        nfe = ", ".join(str(n) for n in sorted(set(mine["nfe"])))
        lines.append(
            f"| {data} | {dynamics} | {objective} | {model} | {nfe} | {' | '.join(written(v, 3) for v in values)} |"
        )
    seeds = found["seed"].nunique()
    return "\n".join([*lines, "", f"Means ± standard deviations over {seeds} training seed{'s' * (seeds > 1)}."])


def main() -> None:
    """Writes reports/results/classes.csv, or with --docs the tables of docs/classes.md."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.classes_results", description=main.__doc__)
    parser.add_argument("states", nargs="*", metavar="STATE", help="a commit, branch, DVC experiment or workspace")
    parser.add_argument("--docs", action="store_true", help="the tables of docs/classes.md, from the file")
    given = parser.parse_args()
    try:
        if given.docs:
            write_docs(pd.read_csv(CSV))
            return
        if not given.states:
            raise UserError("which runs? name their commits, DVC experiments or workspace")
        found = table(row for state in given.states for row in rows_of(read_side(state)))
        write_text(CSV, found.to_csv(index=False, lineterminator="\n"))
        print(f"{CSV}: {len(found)} rows of {len(given.states)} runs")
    except (UserError, OSError) as error:
        sys.exit(str(error))


def write_docs(found: pd.DataFrame) -> None:
    """The text between the page's two marks."""
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK, 2)
    write_text(PAGE, f"{before}{MARK}\n{markdown(found)}\n{MARK}{after}")


if __name__ == "__main__":
    main()
