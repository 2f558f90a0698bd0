"""`ifm sweep`: params.yaml over a grid of values, or a search through them, and the configurations by rank.

Every configuration under every seed is one DVC experiment of the whole graph, run by the engine (engine.py), so that
`dvc exp apply` brings all its results and MLflow has its row.
"""

import argparse
import copy
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ifm.cli.main import Parser
from ifm.config import Config, parse, read_params
from ifm.errors import UserError
from ifm.files import write_text
from ifm.metrics import catalogue, cautions
from ifm.tracking import digest
from pipeline.runner import paths
from pipeline.studies import shared, submitted
from pipeline.studies.axes import Range, asked_at, column, corners, grid, read_axes, slug, words
from pipeline.studies.engine import LOGS, Engine, Experiment, Left, command, count, differing, status
from pipeline.studies.experiments import DvcExperiments, check_checkout
from pipeline.studies.pages import sweep as sweep_page
from pipeline.studies.ranking import HIGHER_IS_BETTER, SAMPLERS, Measure, kind, ranked, rows, score, terminal
from pipeline.studies.search import hidden, search
from pipeline.studies.workers import Experiments
from pipeline.tools import params_file

NAME = "sweep"
ROWS = paths.REPORTS / "sweep-rows.csv"  # what is ranked: a row for each experiment and dynamics
CSV, PAGE = paths.REPORTS / "sweep.csv", paths.REPORTS / "sweep.html"


# --- what is run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run(Experiment):
    """One experiment: a configuration under a seed."""

    values: Mapping[str, Any]  # of the axes


@dataclass(frozen=True)
class Trial:
    """One configuration."""

    values: Mapping[str, Any]  # of the axes
    runs: tuple[Run, ...]  # one for each seed


@dataclass(frozen=True)
class Plan:
    """What every configuration has in common."""

    base: Mapping[str, Any]  # params.yaml
    graph: Mapping[str, Any]  # dvc.yaml's stages
    code: str
    seeds: tuple[int, ...]
    measure: Measure

    def trial(self, values: Mapping[str, Any]) -> Trial:
        """A configuration. Raises UserError for a key that does not exist, ConfigError for values that do not fit."""
        return Trial(values, tuple(self._run(values, seed) for seed in self.seeds))

    def _run(self, values: Mapping[str, Any], seed: int) -> Run:
        whole = copy.deepcopy(dict(self.base))
        for axis, value in {"seed": seed, **values}.items():
            key = asked_at(self.base, axis, value)
            try:
                params_file.set_value(whole, key, value)
            except UserError as error:
                raise UserError(f"-S {axis}: {error}") from None
        said = words(values)
        config = parse(whole, source=f"-S {said}" if said else str(paths.PARAMS))
        self._check(config)
        key = digest({"params": whole, "code": self.code})[:10]
        nodes = shared.nodes(self.graph, whole)
        return Run(
            name="-".join([NAME, *filter(None, [slug(values)]), f"s{seed}", key]),
            label=f"{said} seed {seed}".strip(),
            settings=differing(whole, self.base),
            makes=shared.keys(nodes),
            weight=len(config.dynamics),
            seed=seed,
            config=config,
            nodes=nodes,
            values=values,
        )

    def _check(self, config: Config) -> None:
        known = catalogue.ranking(kind(config))
        if self.measure.metric not in known:
            raise UserError(f"--metric {self.measure.metric}: data.source: {config.data.source} has {', '.join(known)}")
        self.measure.steps(config)


@dataclass
class Results:
    """The experiments of a sweep, in the order in which they were asked for, and what the finished ones found."""

    engine: Engine
    measure: Measure
    trials: list[Trial]

    def run(self, trials: Sequence[Trial], *, retry: bool) -> None:
        """Runs configurations, which join those there are."""
        known = {words(trial.values) for trial in self.trials}
        self.trials += [trial for trial in trials if words(trial.values) not in known]
        self.engine.run(_runs(trials), retry=retry)

    def rows(self, trials: Sequence[Trial]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The finished experiments' rows, and why the others have none, by name."""

        def read(run: Run) -> list[dict[str, Any]]:
            results = self.engine.pool.experiments.metrics(run.name, run.config.dynamics)
            return rows(run.values, run, self.measure, results)

        return self.engine.collect(_runs(trials), read)

    def finish(self, *, commit: str) -> list[Left]:
        """Writes and prints what is finished; what has no result, and why."""
        found, without = self.rows(self.trials)
        left = [Left(run.label, without[run.name]) for run in _runs(self.trials) if run.name in without]
        if found:
            axes = [column(key) for key in self.trials[0].values]
            write_table(ROWS, pd.DataFrame(found))
            table = ranked(found, axes, self.measure)
            write_table(CSV, table)
            print(f"\n{terminal(table, axes, self.measure.metric)}\n")
            for text in cautions.of_cells(table["warnings"]):
                print(f"with care: {text}")
            write_page(table, axes, self.measure, left=left, commit=commit)
            best = table.iloc[0]["experiments"].split()[0]
            print(f"table: {CSV}; page: {PAGE}; the first: dvc exp apply {best}", flush=True)
        return left


def _runs(trials: Sequence[Trial]) -> list[Run]:
    return [run for trial in trials for run in trial.runs]


def write_page(
    table: pd.DataFrame, axes: Sequence[str], measure: Measure, *, left: Sequence[Left], commit: str
) -> None:
    """Writes reports/sweep.html."""
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    missing = [(one.label, one.reason) for one in left]
    page = sweep_page.render(
        table, axes=axes, metric=measure.metric, higher=measure.higher, missing=missing, commit=commit, created=created
    )
    write_text(PAGE, page)


def write_table(file: Path, table: pd.DataFrame) -> None:
    write_text(file, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


# --- the command ------------------------------------------------------------------------------------------------------


def run_sweep(given: argparse.Namespace, experiments: Experiments) -> int:
    """The command's work; its exit status. Raises UserError and ConfigError."""
    base = read_params(paths.PARAMS)
    config = parse(base)
    axes = read_axes(given.set)
    if given.study and not given.search:
        raise UserError("--study: shares a search; give --search N too")
    if given.cluster_set and not given.cluster:
        raise UserError("--cluster-set: needs --cluster slurm or local")
    ranges = [key for key, values in axes.items() if isinstance(values, Range)]
    if ranges and not given.search:
        raise UserError(f"-S {ranges[0]}: a range needs --search N; a grid takes values, parted by commas")
    metric = given.metric or catalogue.judge(kind(config)).key
    graph = shared.read_graph()
    seeds = tuple(dict.fromkeys(given.seeds or [config.seed]))
    plan = Plan(base, graph, shared.code_digest(graph), seeds, Measure(metric, given.sampler, given.nfe))
    checked = [plan.trial(values) for values in (corners(axes) if given.search else grid(axes))]  # before any work
    engine = Engine.of(NAME, experiments, code=plan.code, jobs=1 if given.dry_run else given.jobs)
    if given.cluster and not given.dry_run:  # each gets what the cluster gives it
        engine.pool.slots = [{}] * (given.jobs or submitted.JOBS)
    if given.dry_run:
        print(_described(checked, engine, given))
        return 0
    commit = check_checkout()
    if importlib.util.find_spec("dvc") is None:
        raise UserError("a sweep's experiments are DVC's: pip install -e '.[pipeline]' -c constraints.txt")
    results = Results(engine, plan.measure, [])
    batches = _searched(plan, axes, results, given) if given.search else iter([checked])
    if not given.search:
        print(f"{len(checked)} configurations, {engine.summary(_runs(checked))}", flush=True)
    try:
        for trials in batches:
            results.run(trials, retry=given.retry_failed)
    finally:  # after a Ctrl-C too: what is finished is shown
        left = results.finish(commit=commit)
        engine.forget_shared()
    failed = status(left)
    if left:
        print("the same command with --retry-failed tries them again", file=sys.stderr)
    return failed


def _searched(
    plan: Plan, axes: Mapping[str, Any], results: Results, given: argparse.Namespace
) -> Iterator[list[Trial]]:
    """A search's configurations, as many at a time as there are workers; each batch goes by the scores before it."""
    at_once = min(len(results.engine.pool.slots), given.search)
    common = {"storage": given.study, "name": study_name(plan, axes), "worker": f"{os.uname().nodename}:{Path.cwd()}"}
    found = search(axes, given.search, at_once=at_once, higher=plan.measure.higher, **(common if given.study else {}))
    if given.study:
        print(f"study {common['name']} of {hidden(given.study)}", flush=True)
    for batch in found.batches():
        trials = [plan.trial(values) for _, values in batch]
        yield list({words(trial.values): trial for trial in trials}.values())
        for (asked, _), trial in zip(batch, trials, strict=True):
            found.tell(asked, score(results.rows([trial])[0], plan.measure.metric))


def study_name(plan: Plan, axes: Mapping[str, Any]) -> str:
    """Of a shared search: machines that ask for the same of the same code and params.yaml work on one study."""
    asked = {"axes": {key: repr(values) for key, values in axes.items()}, "seeds": plan.seeds, "code": plan.code}
    return f"{NAME}-{digest([asked, vars(plan.measure), plan.base])[:10]}"


def _described(trials: Sequence[Trial], engine: Engine, given: argparse.Namespace) -> str:
    """What would run."""
    runs = _runs(trials)
    if given.search:
        seeds = len(trials[0].runs)
        return f"a search of {given.search} configurations, {seeds} experiments each; all values are valid"
    lines, to_run = engine.described(runs, retry=given.retry_failed)
    return "\n".join([*lines, f"{len(runs)} experiments, {to_run} to run"])


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise argparse.ArgumentTypeError(f"must be whole numbers, parted by commas, e.g. 0,1,2; got {text!r}")
    return [int(word) for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="ifm sweep", description=main.__doc__, allow_abbrev=False)
    add = made.add_argument
    about = "what is varied (repeat it): values parted by commas; with --search also LOW..HIGH or LOW..HIGH:log"
    add("-S", dest="set", action="append", default=[], metavar="KEY=VALUES", help=about)
    add("--seeds", type=_integers, metavar="N,N,...", help="each configuration under each (default: params.yaml's)")
    add("--metric", choices=HIGHER_IS_BETTER, help="what is ranked by (default: fid; points: sliced_wasserstein)")
    add("--sampler", choices=SAMPLERS, default="one_step", help="whose (default: %(default)s; heun: the teacher's)")
    add("--nfe", type=count, metavar="N", help="its evaluations (default: the most that are sampled, of heun the best)")
    add("--jobs", type=count, metavar="N", help="experiments at a time (default: one for each GPU, one without)")
    add("--search", type=count, metavar="N", help="instead of a grid, N configurations chosen by Optuna's TPE")
    add("--study", metavar="URL", help="with --search: a database that several machines share one search in")
    add("--cluster", choices=submitted.CLUSTERS, help="run experiments as jobs, by submitit; local: on this machine")
    about = "of submitit, e.g. slurm_partition=gpu or timeout_min=720; may be repeated"
    add("--cluster-set", action="append", default=[], metavar="KEY=VALUE", help=about)
    add("--retry-failed", action="store_true", help="try again what failed before")
    add("--dry-run", action="store_true", help="check all values and list what would run")
    return made


def main() -> None:
    """Runs params.yaml over a grid of values, or a search through them, and ranks the results."""
    given = parser().parse_args()

    def work() -> int:
        if given.cluster and not given.dry_run:
            where = {"cluster": given.cluster, "words": given.cluster_set}
            return run_sweep(given, submitted.of(f"{NAME}-", LOGS / NAME, **where))
        return run_sweep(given, DvcExperiments(f"{NAME}-", LOGS / NAME))

    command(work, NAME, LOGS / NAME, alone=not given.dry_run)


if __name__ == "__main__":
    main()
