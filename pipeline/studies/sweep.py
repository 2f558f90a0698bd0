"""`ifm sweep`: params.yaml over a grid of values, or a search through them, and the configurations by rank.

Every configuration under every seed is one DVC experiment of the whole graph, so that `dvc exp apply` brings all its
results and MLflow has its row. Its name ends in a hash of its params and of the code, so that a repeated command finds
what is finished. What several share is made once (pipeline/studies/shared.py, pipeline/studies/workers.py).
"""

import argparse
import copy
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from ifm.cli.main import Parser
from ifm.config import Config, ConfigError, parse, read_params
from ifm.errors import UserError
from ifm.files import file_sha256, write_text
from ifm.metrics import cautions
from ifm.report.rounding import significant
from ifm.tracking import digest, flatten
from pipeline.runner import paths
from pipeline.runner.stage import data_name
from pipeline.studies import shared, study
from pipeline.studies.pages import sweep as sweep_page
from pipeline.studies.shared import Node
from pipeline.studies.study import Left
from pipeline.studies.workers import DvcExperiments, Experiments, Job, Pool, slots
from pipeline.tools import params_file, preset

NAME = "sweep"
ROWS = paths.REPORTS / "sweep-rows.csv"  # what is ranked: a row for each experiment and dynamics
CSV, PAGE = paths.REPORTS / "sweep.csv", paths.REPORTS / "sweep.html"
LOGS = Path(".ifm") / NAME
HIGHER_IS_BETTER = {  # what can be ranked by
    "fid": False,
    "kid": False,
    "inception_score": True,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "sliced_wasserstein": False,
    "energy_distance": False,
}
OF_POINTS = ("sliced_wasserstein", "energy_distance")
SAMPLERS = ("one_step", "anchor", "renoise", "chain", "heun")
SEARCH_SEED = 0
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Numbers to search in, both ends included."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


Values = tuple[Any, ...] | Range


def read_axes(words: Sequence[str]) -> dict[str, Values]:
    """What -S asks for, by dotted name: values in YAML, parted by commas, or a range LOW..HIGH or LOW..HIGH:log.

    Raises UserError that names the word.
    """
    axes: dict[str, Values] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text:
            raise UserError(f"-S {word}: must be key=value,value,..., e.g. flow.lr=1e-4,3e-4")
        if key in axes:
            raise UserError(f"-S {word}: {key} is there twice; put all its values behind one -S")
        if key == "seed":
            raise UserError(f"-S {word}: seeds are an axis of their own; use --seeds {text}")
        axes[key] = _range(word, text) or _values(word, text)
    return axes


def _range(word: str, text: str) -> Range | None:
    found = re.fullmatch(rf"({NUMBER})\.\.({NUMBER})(:log)?", text)
    if not found:
        return None
    low, high = (preset.parse_yaml(end) for end in found.groups()[:2])
    if not low < high:
        raise UserError(f"-S {word}: a range goes from a lower number to a higher one")
    if found[3] and low <= 0:
        raise UserError(f"-S {word}: a logarithmic range is above 0")
    return Range(low, high, bool(found[3]))


def _values(word: str, text: str) -> tuple[Any, ...]:
    try:
        found = [preset.parse_yaml(part) for part in _parts(text)]
    except ConfigError as error:
        raise UserError(f"-S {word}: {text!r} is no YAML") from error
    if len({repr(value) for value in found}) < len(found):
        raise UserError(f"-S {word}: a value is there twice")
    return tuple(found)


def _parts(text: str) -> list[str]:
    """Parted by the commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


@dataclass(frozen=True)
class Measure:
    """What configurations are ranked by: a figure of one sampler, over dynamics and seeds."""

    metric: str
    sampler: str
    nfe: int | None  # None: the most that there are

    @property
    def higher(self) -> bool:
        return HIGHER_IS_BETTER[self.metric]

    def steps(self, config: Config) -> int:
        """Evaluations of the sampler in a configuration. Raises UserError where it is not sampled."""
        if self.sampler == "one_step":
            there = [1]
        elif self.sampler == "heun":
            there = [] if config.teacher.kind == "none" else config.evaluate.teacher_nfe
        else:
            there = [n for n in config.sample.flow_steps if n > 1 and self.sampler in config.sample.flow_samplers]
        if not there or self.nfe not in (None, *there):
            where = "evaluate.teacher_nfe" if self.sampler == "heun" else "sample.flow_samplers and sample.flow_steps"
            asked = self.sampler + (f" at {self.nfe} evaluations" if self.nfe else "")
            raise UserError(f"--sampler {asked}: is not sampled; see {where} in {paths.PARAMS}")
        return self.nfe or max(there)

    def row(self, metrics: Mapping[str, Mapping[str, Any]], config: Config) -> Mapping[str, Any] | None:
        """The sampler's figures among those of one dynamics."""
        model = "teacher" if self.sampler == "heun" else "flow"
        key = (model, self.sampler, self.steps(config))
        return next((r for r in metrics.values() if (r["model"], r["sampler"], r["nfe"]) == key), None)


# --- what is run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One experiment: a configuration under a seed."""

    job: Job
    seed: int
    config: Config
    nodes: Mapping[str, Node]


@dataclass(frozen=True)
class Trial:
    """One configuration."""

    values: Mapping[str, Any]  # of the axes
    runs: tuple[Run, ...]  # one for each seed

    @property
    def jobs(self) -> list[Job]:
        return [run.job for run in self.runs]


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
        for key, value in {"seed": seed, **values}.items():
            try:
                params_file.set_value(whole, key, value)
            except UserError as error:
                raise UserError(f"-S {key}: {error}") from None
        said = words(values)
        config = parse(whole, source=f"-S {said}" if said else str(paths.PARAMS))
        self._check(config)
        before = flatten(self.base)
        settings = {k: v for k, v in flatten(whole).items() if k not in before or before[k] != v}
        key = digest({"params": whole, "code": self.code})[:10]
        nodes = shared.nodes(self.graph, whole)
        name = "-".join([NAME, *filter(None, [_slug(values)]), f"s{seed}", key])
        job = Job(name, f"{said} seed {seed}".strip(), settings, shared.made_by(nodes, []))
        return Run(job, seed, config, nodes)

    def _check(self, config: Config) -> None:
        points = config.data.modality.name == "points"
        if points != (self.measure.metric in OF_POINTS):
            known = [m for m in HIGHER_IS_BETTER if (m in OF_POINTS) == points]
            raise UserError(f"--metric {self.measure.metric}: data.source: {config.data.source} has {', '.join(known)}")
        self.measure.steps(config)


def words(values: Mapping[str, Any]) -> str:
    """flow.lr=0.0001 anchor.policy=none"""
    return " ".join(f"{key}={study.override_text(value)}" for key, value in values.items())


def _slug(values: Mapping[str, Any]) -> str:
    """Part of a ref's name: what is varied, in brief."""
    texts = (f"{key.rpartition('.')[2]}-{study.override_text(value)}" for key, value in values.items())
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(texts)).replace("..", ".")[:60].strip("-.")


def grid(axes: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def code_digest(graph: Mapping[str, Any]) -> str:
    """A hash of the files of code that dvc.yaml names as deps: their change makes results stale."""
    files = {dep for stage in graph.values() for dep in stage["deps"] if dep.startswith(("src/", "pipeline/"))}
    return digest({file: file_sha256(Path(file)) for file in sorted(files)})


def shared_jobs(runs: Sequence[Run], code: str) -> list[Job]:
    """What at least two of the experiments share, as jobs that go before them."""
    jobs = []
    for who, stages in shared.shared([run.nodes for run in runs]):
        first = runs[who[0]]
        makes = shared.made_by(first.nodes, stages)
        seed = f" (seed {first.seed})" if len({run.seed for run in runs}) > 1 and len(who) < len(runs) else ""
        label = f"shared by {len(who)}: {', '.join(stages)}{seed}"
        name = f"{NAME}-shared-{digest([code, sorted(makes)])}"
        jobs.append(Job(name, label, first.job.settings, makes, tuple(stages), shared=True))
    return jobs


@dataclass(frozen=True)
class Failures:
    """What failed before, which is not tried again without being asked: a file for each experiment."""

    folder: Path = LOGS / "failed"

    def read(self, names: Sequence[str]) -> dict[str, str]:
        files = {name: self.folder / f"{name}.txt" for name in names}
        return {name: file.read_text(encoding="utf-8").strip() for name, file in files.items() if file.is_file()}

    def write(self, messages: Mapping[str, str]) -> None:
        for name, message in messages.items():
            write_text(self.folder / f"{name}.txt", message + "\n")

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            (self.folder / f"{name}.txt").unlink(missing_ok=True)


def run_trials(trials: Sequence[Trial], pool: Pool, *, code: str, retry: bool, failures: Failures) -> dict[str, str]:
    """Runs what is neither finished nor failed before; why the others have no result, by the experiment's name."""
    jobs = [run.job for trial in trials for run in trial.runs]
    if retry:
        failures.forget([job.name for job in jobs])
    before = failures.read([job.name for job in jobs])
    finished = pool.experiments.finished()
    waiting = [run for trial in trials for run in trial.runs if run.job.name not in {*finished, *before}]
    ahead = shared_jobs(waiting, code) if len(pool.slots) > 1 else []
    try:
        pool.run([*ahead, *(run.job for run in waiting)])
    finally:
        new = {run.job.name: pool.failed[run.job.name] for run in waiting if run.job.name in pool.failed}
        failures.write(new)
    return before | new


def search(plan: Plan, axes: Mapping[str, Values], count: int, *, at_once: int) -> "Search":
    """A search by Optuna's TPE, the same for the same results. Raises UserError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search needs Optuna: pip install -e '.[optuna]' -c constraints.txt")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SEARCH_SEED, constant_liar=at_once > 1)
    direction = "maximize" if plan.measure.higher else "minimize"
    return Search(plan, axes, count, at_once, optuna.create_study(direction=direction, sampler=sampler))


@dataclass
class Search:
    """Proposes configurations and is told their scores."""

    plan: Plan
    axes: Mapping[str, Values]
    count: int
    at_once: int
    study: Any

    def batches(self) -> Iterator[list[tuple[Any, Trial]]]:
        """As many at a time as there are workers: (to tell by, configuration)."""
        for first in range(0, self.count, self.at_once):
            asked = [self.study.ask() for _ in range(min(self.at_once, self.count - first))]
            yield [(one, self.plan.trial(self._values(one))) for one in asked]

    def tell(self, asked: Any, score: float | None) -> None:
        if score is None:
            import optuna

            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(asked, score)

    def _values(self, asked: Any) -> dict[str, Any]:
        return {key: self._suggested(asked, key, values) for key, values in self.axes.items()}

    def _suggested(self, asked: Any, key: str, values: Values) -> Any:
        if not isinstance(values, Range):
            return values[asked.suggest_categorical(key, range(len(values)))]
        if values.whole:
            return asked.suggest_int(key, values.low, values.high, log=values.log)
        drawn = float(f"{asked.suggest_float(key, values.low, values.high, log=values.log):.4g}")
        return min(max(drawn, values.low), values.high)


def corners(axes: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every value and end once, the other axes at their first: what is checked before a search begins."""
    ends = {key: values.ends if isinstance(values, Range) else values for key, values in axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    yield from (first | {key: value} for key, values in ends.items() for value in values[1:])


# --- reading it back ------------------------------------------------------------------------------------------------


def read_rows(trial: Trial, measure: Measure) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each finished experiment and dynamics: what is varied, seed, and the sampler's figures.

    And why an experiment that is finished has no figure to rank by, by its name.
    """
    refs, found, without = study.experiments(f"{NAME}-"), [], {}
    for run in trial.runs:
        name = run.job.name
        if name not in refs:
            continue
        try:
            rows = _rows(trial, run, measure, study.read_metrics(name, refs[name], run.config.dynamics))
        except UserError as error:  # one that cannot be read does not cost the others
            without[name] = str(error)
            continue
        lacking = [row for row in rows if row[measure.metric] is None]
        if lacking:
            where, reasons = (
                ", ".join(filter(None, (row[key] for row in lacking))) for key in ("dynamics", "warnings")
            )
            said = f"finished, but {where} has no {measure.metric} of {measure.sampler}"
            without[name] = said + (f": {reasons}" if reasons else "")
        found += rows
    return found, without


def _rows(trial: Trial, run: Run, measure: Measure, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    varied = {column(key): study.override_text(value) for key, value in trial.values.items()}
    common = {"data": data_name(run.config), "sampler": measure.sampler, "nfe": measure.steps(run.config)}
    rows = []
    for d in run.config.dynamics:
        row = measure.row(results[d], run.config) or {}
        figures = {metric: row.get(metric) for metric in HIGHER_IS_BETTER}
        of_run = {"experiment": run.job.name, "warnings": cautions.cell(cautions.told(row))}
        rows.append(varied | common | {"dynamics": d, "seed": run.seed, **figures, **of_run})
    return rows


def column(axis: str) -> str:
    """What an axis is called in the tables, where `dynamics` is each row's own."""
    return axis if "." in axis else f"params.{axis}"


def score(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The mean over dynamics and seeds; None where there is none."""
    values = [row[metric] for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    return sum(values) / len(values) if values else None


def ranked(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], measure: Measure) -> pd.DataFrame:
    """One row for each configuration and dynamics, the best configuration first: means and deviations over seeds.

    `score` is the mean over the dynamics, which the rank goes by, `score_sd` the deviation of that mean over seeds;
    deviations are empty with one seed. `experiments` are in the order of the seeds.
    """
    table = pd.DataFrame(rows).assign(whole=0)  # something to group by where nothing is varied
    table["warnings"] = table.get("warnings")
    table[list(HIGHER_IS_BETTER)] = table[list(HIGHER_IS_BETTER)].astype(float)
    of = [*axes, "whole"]
    means = table.groupby([*of, "seed"], sort=False)[measure.metric].mean().groupby(of, sort=False)
    scores = pd.DataFrame({"score": means.mean(), "score_sd": means.std()}).reset_index()
    scores = scores.sort_values("score", ascending=not measure.higher, kind="stable", ignore_index=True)
    scores["rank"] = scores.index + 1
    shown = [metric for metric in HIGHER_IS_BETTER if table[metric].notna().any()]
    shown.sort(key=lambda metric: metric != measure.metric)
    groups = table.groupby([*of, "data", "dynamics", "sampler", "nfe"], sort=False)
    summary = pd.DataFrame({"seeds": groups["seed"].nunique(), "experiments": groups["experiment"].agg(" ".join)})
    summary["warnings"] = groups["warnings"].agg(lambda cells: cautions.cell(cautions.of_cells(cells)))
    for name in shown:
        summary[name], summary[f"{name}_sd"] = groups[name].mean(), groups[name].std()
    found = summary.reset_index().merge(scores, on=of).sort_values("rank", kind="stable", ignore_index=True)
    figures = [column for name in shown for column in (name, f"{name}_sd")]
    before = ["rank", *axes, "data", "dynamics", "sampler", "nfe", "score", "score_sd", "seeds"]
    return found[[*before, *figures, "experiments", "warnings"]]


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


def terminal(table: pd.DataFrame, axes: Sequence[str], metric: str) -> str:
    """The configurations by rank, a line each."""
    several = table["dynamics"].nunique() > 1
    lines = []
    for rank, rows in table.groupby("rank", sort=True):
        first = rows.iloc[0]
        line = {"rank": rank, **{key: first[key] for key in axes}}
        line[f"{metric}, mean" if several else metric] = sweep_page.with_deviation(first["score"], first["score_sd"])
        if several:
            line |= {d: significant(value) for d, value in zip(rows["dynamics"], rows[metric], strict=True)}
        lines.append(line | {"seeds": first["seeds"], "experiment": first["experiments"].split()[0]})
    return pd.DataFrame(lines).fillna("").to_string(index=False)


# --- the command ----------------------------------------------------------------------------------------------------


def run_sweep(given: argparse.Namespace, experiments: Experiments) -> int:
    """The command's work; its exit status. Raises UserError and ConfigError."""
    base = read_params(paths.PARAMS)
    config = parse(base)
    axes = read_axes(given.set)
    ranges = [key for key, values in axes.items() if isinstance(values, Range)]
    if ranges and not given.search:
        raise UserError(f"-S {ranges[0]}: a range needs --search N; a grid takes values, parted by commas")
    metric = given.metric or ("sliced_wasserstein" if config.data.modality.name == "points" else "fid")
    graph = shared.read_graph()
    seeds = tuple(dict.fromkeys(given.seeds or [config.seed]))
    plan = Plan(base, graph, code_digest(graph), seeds, Measure(metric, given.sampler, given.nfe))
    trials = [
        plan.trial(values) for values in (corners(axes) if given.search else grid(axes))
    ]  # checked before any work
    if given.dry_run:
        print(describe(trials, plan, given, experiments))
        return 0
    commit = study.check_checkout()
    if importlib.util.find_spec("dvc") is None:
        raise UserError("a sweep's experiments are DVC's: pip install -e '.[pipeline]' -c constraints.txt")
    pool = Pool(experiments, slots(given.jobs), say=_say)
    options = {"code": plan.code, "retry": given.retry_failed, "failures": Failures()}
    without: dict[str, str] = {}
    if given.search:
        found = search(plan, axes, given.search, at_once=len(pool.slots))
        trials = []
    try:
        if not given.search:
            count = sum(len(trial.runs) for trial in trials)
            print(f"{len(trials)} configurations, {count} experiments, {len(pool.slots)} at a time", flush=True)
            without = run_trials(trials, pool, **options)
        else:
            for batch in found.batches():
                new = {words(trial.values): trial for _, trial in batch}
                trials += [trial for said, trial in new.items() if said not in {words(t.values) for t in trials}]
                without |= run_trials(list(new.values()), pool, **options)
                for asked, trial in batch:
                    found.tell(asked, score(read_rows(trial, plan.measure)[0], metric))
    finally:  # after a Ctrl-C too: what is finished is shown
        left = _finish(trials, plan.measure, without, commit=commit)
        _forget_shared()
    for one in left:
        print(f"failed: {one.label}: {one.reason}", file=sys.stderr)
    if left:
        print("the same command with --retry-failed tries them again", file=sys.stderr)
    return 1 if left else 0


def _say(line: str) -> None:
    """A line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def _finish(trials: Sequence[Trial], measure: Measure, why: Mapping[str, str], *, commit: str) -> list[Left]:
    """Writes and prints what is finished; what has no result, and why."""
    read = [read_rows(trial, measure) for trial in trials]
    why = {**why, **{name: reason for _, without in read for name, reason in without.items()}}
    rows = [row for found, _ in read for row in found if row[measure.metric] is not None]
    done = {row["experiment"] for row in rows}
    missing = [run for trial in trials for run in trial.runs if run.job.name not in done]
    left = [Left(run.job.label, why.get(run.job.name, "not finished")) for run in missing]
    if rows:
        axes = [column(key) for key in trials[0].values]
        write_table(ROWS, pd.DataFrame(rows))
        table = ranked(rows, axes, measure)
        write_table(CSV, table)
        print(f"\n{terminal(table, axes, measure.metric)}\n")
        for text in cautions.of_cells(table["warnings"]):
            print(f"with care: {text}")
        write_page(table, axes, measure, left=left, commit=commit)
        best = table.iloc[0]["experiments"].split()[0]
        print(f"table: {CSV}; page: {PAGE}; the first: dvc exp apply {best}", flush=True)
    return left


def _forget_shared() -> None:
    """Removes the experiments of shared stages, whose results the others have."""
    refs = study.experiments(f"{NAME}-shared-")
    for ref in refs.values():
        study.git("update-ref", "-d", ref)


def describe(trials: Sequence[Trial], plan: Plan, given: argparse.Namespace, experiments: Experiments) -> str:
    """What would run."""
    if given.search:
        return f"a search of {given.search} configurations, {len(plan.seeds)} experiments each; all values are valid"
    runs = [run for trial in trials for run in trial.runs]
    finished, failed = experiments.finished(), Failures().read([run.job.name for run in runs])
    lines = []
    for run in runs:
        again = run.job.name in failed and not given.retry_failed
        state = "finished" if run.job.name in finished else "failed" if again else "to run"
        lines.append(f"{state:<9} {run.job.label}  ({run.job.name})")
    waiting = [run for run, line in zip(runs, lines, strict=True) if line.startswith("to run")]
    lines += [f"once      {job.label}" for job in shared_jobs(waiting, plan.code)]
    return "\n".join([*lines, f"{len(runs)} experiments, {len(waiting)} to run"])


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise argparse.ArgumentTypeError(f"must be whole numbers, parted by commas, e.g. 0,1,2; got {text!r}")
    return [int(word) for word in text.split(",")]


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="ifm sweep", description=main.__doc__, allow_abbrev=False)
    add = made.add_argument
    about = "what is varied (repeat it): values parted by commas; with --search also LOW..HIGH or LOW..HIGH:log"
    add("-S", dest="set", action="append", default=[], metavar="KEY=VALUES", help=about)
    add("--seeds", type=_integers, metavar="N,N,...", help="each configuration under each (default: params.yaml's)")
    add("--metric", choices=HIGHER_IS_BETTER, help="what is ranked by (default: fid; points: sliced_wasserstein)")
    add("--sampler", choices=SAMPLERS, default="one_step", help="whose (default: %(default)s; heun: the teacher's)")
    add("--nfe", type=_count, metavar="N", help="its evaluations (default: the most that are sampled)")
    add("--jobs", type=_count, metavar="N", help="experiments at a time (default: one for each GPU, one without)")
    add("--search", type=_count, metavar="N", help="instead of a grid, N configurations chosen by Optuna's TPE")
    add("--retry-failed", action="store_true", help="try again what failed before")
    add("--dry-run", action="store_true", help="check all values and list what would run")
    return made


def main() -> None:
    """Runs params.yaml over a grid of values, or a search through them, and ranks the results."""
    given = parser().parse_args()
    experiments = DvcExperiments(f"{NAME}-", LOGS)
    study.command(lambda: run_sweep(given, experiments), NAME, LOGS, alone=not given.dry_run)


if __name__ == "__main__":
    main()
