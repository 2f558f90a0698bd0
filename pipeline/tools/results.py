"""`python -m pipeline.tools.results TABLE STATE ...`: finished runs as reports/results/TABLE.csv.

TABLE is `classes`, `modalities`, `teachers` or `default-seeds`. A state is what `make compare` takes: a commit, a
branch, the name of a DVC experiment (`ifm sweep --seeds 0,1,2` makes one for each seed) or `workspace`. `--docs` writes
the tables of docs/TABLE.md from the file instead (default-seeds: of docs/interval.md). `--add` keeps the rows of the
file that the runs do not have.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ifm.dynamics import DYNAMICS
from ifm.errors import UserError, either, in_a_line
from ifm.files import write_text
from ifm.metrics import catalogue, teachers
from ifm.report import names
from ifm.report.headlines import estimate, written
from pipeline.runner import paths
from pipeline.tools.compare import read_side
from pipeline.tools.comparison import Side
from pipeline.tools.marks import write_between

COLUMNS = ("data", "dynamics", "objective", "model", "nfe", "seed", "metric", "value")
WITHOUT = "-unconditional"  # ends the model's name in runs without classes
IN_SHORT = "<!-- in short -->"
NAMELESS = {"objective": "", "dynamics": ""}  # of real data, as read from a file
Record = dict[str, Any]  # a line of a run's summary


@dataclass(frozen=True)
class Results:
    """One file of results. metrics: its own, in the order of the docs. keeps: (record, its teacher's best) -> whether
    the record has rows. by: columns whose values have a line each in the docs. renamed: metrics that have another name
    in the file. ending: (params.yaml) -> what the model's name ends in. run: columns that name one training; kind:
    (model's name) -> what of it does too. autoencoder: whether the figure of encoder and decoder alone has a row.
    shown_on: the docs page, where it has another name. short: tables of the main figures, between the page's IN_SHORT.
    """

    name: str
    metrics: tuple[str, ...]
    keeps: Callable[[Record, Record | None], bool]
    by: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    ending: Callable[[Mapping[str, Any]], str] = lambda params: ""
    run: tuple[str, ...] = ("data", "dynamics", "seed")
    kind: Callable[[str], str] = lambda model: ""
    autoencoder: bool = False
    shown_on: str = ""
    short: Callable[[pd.DataFrame], str] | None = None

    @property
    def csv(self) -> Path:
        return paths.REPORTS / "results" / f"{self.name}.csv"

    @property
    def page(self) -> Path:
        return Path("docs") / f"{self.shown_on or self.name}.md"

    @property
    def mark(self) -> str:
        """Stands before and behind the tables of the page."""
        return f"<!-- python -m pipeline.tools.results {self.name} --docs -->"


def _at_its_best(record: Record, best: Record | None) -> bool:
    """The flow in one step, the teacher at its best NFE, and both at other guidance scales."""
    return record is best or _one_step(record) or record["model"].startswith(("flow-", "teacher-"))


def _all_teachers(record: Record, best: Record | None) -> bool:
    """The flow in one step and as it is used in several, the teacher at every NFE, and real data."""
    return _one_step(record) or record["sampler"] == "selected" or record["model"] in ("teacher", "data")


def _models(record: Record, best: Record | None) -> bool:
    """The flow and every teacher."""
    return record["model"] != "data" and _all_teachers(record, best)


def _one_step(record: Record) -> bool:
    return record["model"] == "flow" and record["sampler"] == "one_step"


def _of_classes(params: Mapping[str, Any]) -> str:
    asked = (params.get("condition") or {}).get("kind", "none") != "none"
    return "" if asked else WITHOUT


def _of_networks(params: Mapping[str, Any]) -> str:
    """What sets the run apart from the default: its network, its latents, its public teacher."""
    kind = (params.get("network") or {}).get("kind", "unet")
    named = [kind] * (kind != "unet")
    named += ["latents"] * bool((params.get("data") or {}).get("encoder"))
    named += ["public"] * ((params.get("teacher") or {}).get("kind") == "pretrained")
    return "".join(f"-{name}" for name in named)


def _classes_in_short(found: pd.DataFrame) -> str:
    """One step by dynamics, and flow and teacher against the guidance scale: means over training seeds."""
    dynamics = [name for name in DYNAMICS if (found["dynamics"] == name).any()]

    def values(d: str, model: str, metric: str) -> pd.Series:
        return found[(found["dynamics"] == d) & (found["model"] == model) & (found["metric"] == metric)]["value"]

    def mean(d: str, model: str, metric: str, *, sd: bool = False) -> str:
        some, unit, digits = values(d, model, metric), *((100, 1) if metric == "asked_class_share" else (1, 2))
        spread = f" ± {unit * some.std():.{digits}f}" if sd and len(some) > 1 else ""
        return f"{unit * some.mean():.{digits}f}{spread}" if len(some) else "–"

    rows = [
        ("in the class asked for (%)", "flow", "asked_class_share"),
        ("FID", "flow", "fid"),
        ("FID of `digits-long`, without classes", f"flow{WITHOUT}", "fid"),
        ("over the conditional teacher at its best", "flow", "ratio"),
        ("recall", "flow", "recall"),
    ]
    own = sorted({values(d, "flow", "fid").count() for d in dynamics})
    lines = [f"| one step, {_of_seeds(own)} | {' | '.join(f'`{d}`' for d in dynamics)} |"]
    lines += ["|" + "---|" * (1 + len(dynamics))]
    lines += [f"| {title} | {' | '.join(mean(d, *of, sd=True) for d in dynamics)} |" for title, *of in rows]
    scales = sorted({name.removeprefix("flow-w") for name in found["model"] if name.startswith("flow-w")}, key=float)
    lines += ["", f"| FID, recall at w | {' | '.join(f'`{d}` flow | teacher' for d in dynamics)} |"]
    lines += ["|" + "---|" * (1 + 2 * len(dynamics))]
    for w in scales:
        of = [(d, f"{model}-w{w}") for d in dynamics for model in ("flow", "teacher")]
        cells = [", ".join(mean(*one, metric) for metric in ("fid", "recall")) for one in of]
        lines += [f"| {w} | {' | '.join(cells)} |"]
    return "\n".join(lines)


CLASSES = Results(
    "classes",
    (
        "asked_class_share",
        "fid",
        "sliced_wasserstein",
        "recall",
        "fid_within_classes",
        "ratio",
        "endpoint_rms",
        "seconds_per_image",
    ),
    _at_its_best,
    by=COLUMNS[:4],  # a teacher is at its best at another NFE with each seed
    ending=_of_classes,
    kind=lambda model: WITHOUT if model.endswith(WITHOUT) else "",
    short=_classes_in_short,
)
MODALITIES = Results(
    "modalities",
    (
        "asked_class_share", "fid", "coverage", "near_copies", "word_share", "fourgram_tv", "half_copies",
        "sliced_wasserstein", "energy_distance", "ratio",
    ),
    _all_teachers,
    by=COLUMNS[:5],
    renamed={"fid": "frechet"},
)  # fmt: skip
TEACHERS = Results(
    "teachers",
    ("fid", "recall", "train_distance", "ratio"),
    _models,
    by=COLUMNS[:5],
    ending=_of_networks,
    run=("data", "dynamics", "model", "seed"),
    autoencoder=True,
)
SEEDS = Results(
    "default-seeds", ("fid", "recall", "train_distance", "ratio"), _models, by=COLUMNS[:5], shown_on="interval"
)
TABLES = {results.name: results for results in (CLASSES, MODALITIES, TEACHERS, SEEDS)}


def rows_of(side: Side, results: Results) -> list[dict[str, Any]]:
    """A finished run's rows. The model is flow, teacher or data, with -w2 behind it at guidance 2."""
    ending, found = results.ending(side.params), []
    for _, mine in side.summary.groupby(["dynamics", "seed"], sort=False):
        records = mine.to_dict("records")
        judge = catalogue.judge(names.kind(mine))
        best = teachers.best((r for r in records if r["model"] == "teacher"), judge)
        for record in records:
            if results.keeps(record, best):
                found += _of_record(record, results, ending=ending)
    floor = side.metrics.get("reference", {}).get("reconstruction_fid")
    if floor is not None and results.autoencoder:
        alone = {"dynamics": "", "objective": "", "model": "autoencoder", "nfe": 0, "metric": "fid", "value": floor}
        found.append({"data": found[0]["data"], "seed": found[0]["seed"], **alone})
    return found


def _of_record(record: Record, results: Results, *, ending: str) -> list[dict[str, Any]]:
    """A row for each metric that a record of the summary has."""
    key = {name: record[name] for name in ("data", "dynamics", "nfe", "seed")}
    objective = record["objective"] if record["model"].startswith("flow") else ""
    key |= {"objective": objective, "model": record["model"] + ending}
    known = [name for name in results.metrics if pd.notna(record.get(name))]
    return [{**key, "metric": results.renamed.get(name, name), "value": float(f"{record[name]:.6g}")} for name in known]


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The file's content, in an order that the order of states does not change. Raises UserError for a row twice."""
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    twice = found[found.duplicated(list(COLUMNS[:-1]))]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(f"{first.dynamics}, {first.model}, seed {first.seed}: two states have it; name each run once")
    return found.sort_values(list(COLUMNS[:-1]), kind="stable", ignore_index=True)


def added(old: pd.DataFrame, new: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Both, without the old rows of a training (`results.run`) that the new ones have."""
    old = old.fillna(NAMELESS)

    def runs(rows: pd.DataFrame) -> pd.Index:
        return rows.assign(kind=rows["model"].map(results.kind)).set_index([*results.run, "kind"]).index

    return table([*old[~runs(old).isin(runs(new))].to_dict("records"), *new.to_dict("records")])


def markdown(found: pd.DataFrame, results: Results) -> str:
    """A table for each data set, with a line for each of `results.by`: means over seeds, ± a standard deviation."""
    parts = [_one_table(mine, results) for _, mine in found.fillna(NAMELESS).groupby("data", sort=False)]
    return "\n\n".join([*parts, _spread(found, results)])


def _spread(found: pd.DataFrame, results: Results) -> str:
    """What the values are means over. Lines may have several numbers of training seeds."""
    counts = sorted(set(found.fillna(NAMELESS).groupby(list(results.by), sort=False)["seed"].nunique()))
    if counts == [1]:
        return "One training seed. Values are means over the sets of samples."
    return f"Means ± standard deviations over {_of_seeds(counts)}."


def _of_seeds(counts: Sequence[int]) -> str:
    """e.g. "2 or 3 training seeds"."""
    return f"{either(list(map(str, counts)))} training seed{'' if list(counts) == [1] else 's'}"


def _one_table(found: pd.DataFrame, results: Results) -> str:
    names_there = {results.renamed.get(name, name): name for name in results.metrics}
    shown = [name for name in names_there if (found["metric"] == name).any()]
    titles = ["Fréchet distance" if name == "frechet" else catalogue.title(name) for name in shown]
    lines = [f"| data | dynamics | objective | model | NFE | {' | '.join(titles)} |", "|" + "---|" * (5 + len(shown))]
    for key, mine in found.groupby(list(results.by), sort=False):
        data, dynamics, objective, model = key[:4]
        mine = mine.assign(value=mine["value"].where(mine["metric"] != "seconds_per_image", 1000 * mine["value"]))  # ms
        values = [estimate(mine[mine["metric"] == name].rename(columns={"value": name}), name) for name in shown]
        nfe = ", ".join(str(n) for n in sorted(set(mine["nfe"])))
        lines.append(
            f"| {data} | {dynamics} | {objective} | {model} | {nfe} | {' | '.join(written(v, 3) for v in values)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Writes reports/results/TABLE.csv, or with --docs the tables of docs/TABLE.md."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.results", description=main.__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("states", nargs="*", metavar="STATE", help="a commit, branch, DVC experiment or workspace")
    parser.add_argument("--add", action="store_true", help="keep the file's rows of other runs")
    parser.add_argument("--docs", action="store_true", help="the tables of the page, from the file")
    given = parser.parse_intermixed_args()
    results = TABLES[given.table]
    try:
        if given.docs:
            write_docs(_read(results.csv), results)
            return
        if not given.states:
            raise UserError("which runs? name their commits, DVC experiments or workspace")
        found = table(row for state in given.states for row in rows_of(read_side(state), results))
        if given.add and results.csv.exists():
            found = added(_read(results.csv), found, results)
        write_text(results.csv, found.to_csv(index=False, lineterminator="\n"))
        print(f"{results.csv}: {len(found)} rows, with those of {len(given.states)} runs")
    except (UserError, OSError) as error:
        sys.exit(str(error))


def _read(file: Path) -> pd.DataFrame:
    """A table of results. Raises UserError where the file is none."""
    try:
        found = pd.read_csv(file)
    except ValueError as error:
        raise UserError(f"{file}: cannot be read ({in_a_line(error)}); take it from Git again") from error
    if missing := [name for name in COLUMNS if name not in found]:
        raise UserError(f"{file}: has no column {missing[0]}; take it from Git again")
    return found


def write_docs(found: pd.DataFrame, results: Results) -> None:
    """The text between the page's marks."""
    if results.short is not None:
        write_between(results.page, IN_SHORT, results.short(found))
    write_between(results.page, results.mark, markdown(found, results))


if __name__ == "__main__":
    main()
