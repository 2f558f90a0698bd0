"""Studies: variants of params under presets and seeds, held against each other in one table.

Every variant is an experiment of the stages up to `evaluate`, run by the engine (engine.py): a teacher is trained once
for each preset, seed and D. `make ablation` (ablation.py) and `make objectives` (objectives.py) are the studies there
are.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from ifm.config import ConfigError, params_text, parse, read_mapping, read_yaml
from ifm.errors import UserError, in_a_line
from ifm.files import write_text
from ifm.metrics import catalogue, cautions, teachers
from ifm.tracking import digest
from pipeline.runner import paths
from pipeline.runner.stage import data_name
from pipeline.studies import shared
from pipeline.studies.engine import LOGS, Engine, Experiment, Left, command, count, differing, status
from pipeline.studies.experiments import DvcExperiments, check_checkout
from pipeline.studies.workers import Experiments
from pipeline.tools import params_file, preset

STAGES = ("fetch", "preprocess", "reference", "teacher", "trajectories", "flow", "select", "sample", "evaluate")
UNREAD = ("diagnose", "dynamics")  # sections that none of STAGES reads
METRICS = tuple(metric.key for metric in catalogue.studied())
TEACHERS = (
    "teacher_nfe",
    "teacher_most_nfe",
    *(f"teacher_{metric}" for metric in METRICS),
    *(f"teacher_1_{metric}" for metric in METRICS),
)


# What is said of rows that an earlier version wrote: they have no `teacher_most_nfe`.
OLD = (
    "Some rows are of an earlier version, with the teacher at its most evaluations and not at its best: run them again."
)


# --- what is run ------------------------------------------------------------------------------------------------------


class Variant(Protocol):
    """One row of a study's table: the values that it sets, and the dynamics it concerns."""

    @property
    def name(self) -> str: ...
    @property
    def dynamics(self) -> tuple[str, ...]: ...
    def params(self, preset_name: str) -> dict[str, Any]: ...  # by dotted name
    def facts(self, task: "Task", dynamics: str, records: Mapping[str, Any]) -> dict[str, Any]: ...  # further columns


@dataclass(frozen=True, kw_only=True)
class Task(Experiment):
    """One experiment: a variant of a preset under a seed."""

    preset: str
    variant: Variant
    dynamics: tuple[str, ...]

    @property
    def described(self) -> str:
        return f"{self.preset:<8} seed {self.seed:<3} {self.variant.name:<22} {' '.join(self.dynamics)}"


# (table, missing: (variant, reason), commit, created) -> HTML
Render = Callable[..., str]


@dataclass(frozen=True)
class Study:
    """What is compared, and what the table and its page hold."""

    name: str  # reports/{name}.csv and .html, experiments called {name}-...
    variants: tuple[Variant, ...]
    variant_column: str  # of the table
    key_columns: tuple[str, ...]  # what tells rows apart
    columns: tuple[str, ...]  # of the table, key_columns first
    budget: tuple[str, ...]  # columns that rows of one data set must share to stand beside each other
    render: Render

    @property
    def csv(self) -> Path:
        return paths.REPORTS / f"{self.name}.csv"

    @property
    def page(self) -> Path:
        return paths.REPORTS / f"{self.name}.html"

    def chosen(self, names: Sequence[str] | None) -> tuple[Variant, ...]:
        """The variants called by these names, in the table's order; all where there are none."""
        known = [variant.name for variant in self.variants]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise UserError(f"no variant {unknown[0]!r}; there are {', '.join(known)}")
        return tuple(variant for variant in self.variants if not names or variant.name in names)


def read_graph(path: Path = Path("dvc.yaml")) -> dict[str, Any]:
    """The stages of dvc.yaml that a study runs."""
    graph = shared.read_graph(path)
    return {name: graph[name] for name in STAGES}


def plan(
    study: Study,
    presets: Sequence[str],
    seeds: Sequence[int],
    *,
    text: str,
    graph: Mapping[str, Any],
    code: str,
    variants: Sequence[Variant] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[list[Task], list[Left]]:
    """The experiments, and what is skipped because its values don't go together.

    text: params.yaml's; graph: `read_graph`'s; code: hash of its code (`shared.code_digest`); variants: the study's.
    Raises UserError for a preset that does not exist and for an override of a key that does not exist.
    """
    tasks, skipped = [], []
    base = preset.parse_yaml(text)
    applied = {name: preset.parse_yaml(preset.apply(name, text, objective="trajectory")) for name in presets}
    for name, seed, variant in itertools.product(presets, seeds, study.variants if variants is None else variants):
        values = copy.deepcopy(applied[name])
        for dotted, value in {"seed": seed, **variant.params(name), **(overrides or {})}.items():
            params_file.set_value(values, dotted, value)
        label = f"{name} {variant.name} seed {seed}"
        try:
            config = parse(values, source=label)
        except ConfigError as error:
            skipped.append(Left(label, str(error).removeprefix(f"{label}: ").replace("\n", "; ")))
            continue
        dynamics = tuple(d for d in config.dynamics if d in variant.dynamics)
        if not dynamics:
            wanted = " or ".join(variant.dynamics)
            skipped.append(Left(label, f"concerns {wanted} alone, and dynamics is {', '.join(config.dynamics)}"))
            continue
        read = {section: value for section, value in values.items() if section not in UNREAD}
        key = digest({"params": read, "dynamics": dynamics, "code": code})[:10]
        targets = tuple(f"evaluate@{d}" for d in dynamics)
        nodes = shared.needed(shared.nodes(graph, values), targets)
        tasks.append(
            Task(
                name=f"{study.name}-{name}-{variant.name}-s{seed}-{key}",
                label=label,
                settings=differing(values, base),
                makes=shared.keys(nodes),
                targets=targets,
                weight=len(dynamics),
                kind=name,
                seed=seed,
                config=config,
                nodes=nodes,
                preset=name,
                variant=variant,
                dynamics=dynamics,
            )
        )
    return tasks, skipped


# --- the table --------------------------------------------------------------------------------------------------------


def rows(task: Task, results: Mapping[str, Any], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each dynamics and sampler of the flow, with the teacher's figures at 1 and at its best NFE beside it.

    results: the evaluate stages' figures, by dynamics, and the `reference` they are held against; records: the stages'
    run.json, by name; what is not there leaves its columns empty.
    """
    found = []
    for d in task.dynamics:
        teacher = {row["nfe"]: row for row in results[d].values() if row["model"] == "teacher"}
        judge = catalogue.judge_of(key for row in results[d].values() for key in row)
        best = teachers.best(teacher.values(), judge) or {}
        beside = {"teacher_nfe": best.get("nfe"), "teacher_most_nfe": max(teacher, default=None)}
        beside |= {f"teacher_{m}": best.get(m) for m in METRICS}
        beside |= {f"teacher_1_{m}": teacher.get(1, {}).get(m) for m in METRICS}
        common = {
            "data": data_name(task.config),
            "extractor": results["reference"]["extractor"],
            "dynamics": d,
            "seed": task.seed,
            "train_steps": task.config.flow.steps,
            **task.variant.facts(task, d, records),
        }
        found += [
            common | beside | {"steps": row["nfe"]} | row | {"warnings": cautions.cell(cautions.told(row))}
            for row in results[d].values()
            if row["model"] == "flow"
        ]
    return found


def earlier(study: Study) -> pd.DataFrame | None:
    """The rows of the study's file; None where there is none. Raises UserError where it cannot be read."""
    if not study.csv.is_file():
        return None
    try:
        found = pd.read_csv(study.csv).reindex(columns=list(study.columns))
    except (ValueError, OSError) as error:
        raise UserError(f"{study.csv}: cannot be read ({in_a_line(error)}); delete it and run again") from error
    old = found["teacher_nfe"].notna() & found["teacher_most_nfe"].isna()
    texts = [
        cautions.together([cautions.of_cells([cell]), [OLD] * is_old])
        for cell, is_old in zip(found["warnings"], old, strict=True)
    ]
    return found.assign(warnings=[cautions.cell(each) for each in texts])


def merged(study: Study, new: pd.DataFrame) -> pd.DataFrame:
    """The new rows, and those of the file that stand beside them.

    A variant's rows give way to new ones of the same data and seed, and on a data set with new rows only those stay
    that have the new ones' budget: other budgets are not compared.
    """
    old = earlier(study)
    if old is None:
        return new
    budget, run = ["data", *study.budget], ["data", "dynamics", study.variant_column, "seed"]
    comparable = ~old["data"].isin(new["data"]) | _rows(old, budget).isin(_rows(new, budget))
    old = old[comparable & ~_rows(old, run).isin(_rows(new, run))]
    return pd.concat([old, new], ignore_index=True) if len(old) else new


def _rows(table: pd.DataFrame, columns: list[str]) -> pd.Index:
    """Each row's values in some columns, to be compared as a whole."""
    return pd.MultiIndex.from_frame(table[columns])


def write(study: Study, table: pd.DataFrame, *, left: Sequence[Left], commit: str) -> None:
    """Writes the study's table and page."""
    table = table.sort_values(["data"], kind="stable", ignore_index=True)
    write_text(study.csv, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    missing = [(one.label, one.reason) for one in left]
    write_text(study.page, study.render(table, missing=missing, commit=commit, created=created))


# --- the command ------------------------------------------------------------------------------------------------------


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """The values of --set, by dotted name."""
    bad = [word for word in words if "=" not in word]
    if bad:
        raise UserError(f"--set {bad[0]}: must be key=value, e.g. flow.steps=500")
    return {key: read_yaml(value, source=f"--set {key}={value}") for key, _, value in (w.partition("=") for w in words)}


def run_study(study: Study, arguments: argparse.Namespace, experiments: Experiments) -> int:
    """The command's work; its exit status. Raises UserError."""
    for name in arguments.presets:
        if name not in preset.names():
            raise UserError(f"no preset {name!r}; there are {', '.join(preset.names())}")
    text = params_text(paths.PARAMS)
    read_mapping(text, source=str(paths.PARAMS))  # one clear line where it is broken
    graph = read_graph()
    code = shared.code_digest(graph)
    tasks, skipped = plan(
        study,
        list(dict.fromkeys(arguments.presets)),
        list(dict.fromkeys(arguments.seeds)),
        text=text,
        graph=graph,
        code=code,
        variants=study.chosen(arguments.only),
        overrides=overrides(arguments.set),
    )
    engine = Engine.of(study.name, experiments, code=code, jobs=1 if arguments.dry_run else arguments.jobs)
    if arguments.dry_run:
        lines, to_run = engine.described(tasks, retry=True)
        lines += [f"skipped   {one.label}: {one.reason}" for one in skipped]
        print("\n".join([*lines, f"{len(tasks)} experiments, {to_run} to run, {len(skipped)} skipped"]))
        return 0
    commit = check_checkout()
    earlier(study)  # a file that cannot be added to is told before the work
    for one in skipped:
        print(f"skipped: {one.label}: {one.reason}", flush=True)
    print(engine.summary(tasks), flush=True)
    try:
        engine.run(tasks, retry=True)
    finally:  # after a Ctrl-C too: what is finished is shown
        left = _finish(study, tasks, engine, skipped=skipped, commit=commit)
        engine.forget_shared()
    return status(left)


def _finish(study: Study, tasks: Sequence[Task], engine: Engine, *, skipped: Sequence[Left], commit: str) -> list[Left]:
    """Writes what is finished; what has no result, and why."""
    kept = engine.pool.experiments

    def read(task: Task) -> list[dict[str, Any]]:
        return rows(task, kept.metrics(task.name, ("reference", *task.dynamics)), kept.records(task.name))

    found, without = engine.collect(tasks, read)
    left = [Left(task.label, without[task.name]) for task in tasks if task.name in without]
    if found:
        table = pd.DataFrame(found, columns=list(study.columns))
        write(study, merged(study, table), left=[*left, *skipped], commit=commit)
        print(f"{len(table)} rows in {study.csv}; page: {study.page}", flush=True)
    return left


def parser(study: Study, *, module: str, about: str) -> argparse.ArgumentParser:
    """The command line of a study."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--presets", nargs="+", default=["points", "digits"], metavar="NAME")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    made.add_argument("--only", nargs="+", metavar="VARIANT", help=", ".join(v.name for v in study.variants))
    made.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="params of every variant")
    made.add_argument("--jobs", type=count, metavar="N", help="experiments at a time (default: one for each GPU)")
    made.add_argument("--dry-run", action="store_true", help="list the variants and what would run")
    return made


def main(study: Study, given: argparse.Namespace) -> None:
    """The command of a study."""
    experiments = DvcExperiments(f"{study.name}-", LOGS / study.name)
    command(lambda: run_study(study, given, experiments), study.name, LOGS / study.name, alone=not given.dry_run)
