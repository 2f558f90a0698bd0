"""Many experiments compared: variants of params, run by `dvc exp run --temp`, and their results as one table.

Every variant is an experiment of its own, in a folder of its own, whose stages up to `evaluate` come from DVC's run
cache where another variant has made them: a teacher is trained once for each preset, seed and D. An experiment's name
ends in a hash of its params and of the stages' code, so that a repeated command finds what is finished, wherever the
branch stands, and never takes an old result for a new one.

`make ablation` (ablation.py) and `make objectives` (objectives.py) are the studies there are.
"""

import argparse
import copy
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pandas as pd
from filelock import FileLock, Timeout

from ifm import checkout
from ifm.config import Config, ConfigError, params_text, parse, read_mapping, read_yaml
from ifm.errors import UserError, in_a_line
from ifm.files import file_sha256, read_json, write_text
from ifm.metrics import cautions
from ifm.tracking import digest, flatten
from pipeline.runner import paths
from pipeline.runner.stage import data_name, declared_code, of_dvc, outputs, terminate
from pipeline.tools import params_file, preset

STAGES = ("fetch", "preprocess", "reference", "teacher", "trajectories", "flow", "sample", "evaluate")
UNREAD = ("diagnose", "dynamics")  # sections that none of STAGES reads
TERMINATION = 30  # seconds that a stage has to close its run
METRICS = ("fid", "sliced_wasserstein", "energy_distance")
TEACHERS = ("teacher_nfe", *(f"teacher_{metric}" for metric in METRICS), *(f"teacher_1_{metric}" for metric in METRICS))


# --- what is run ----------------------------------------------------------------------------------------------------


class Variant(Protocol):
    """One row of a study's table: the values that it sets, and the dynamics it concerns."""

    @property
    def name(self) -> str: ...
    @property
    def dynamics(self) -> tuple[str, ...]: ...
    def params(self, preset_name: str) -> dict[str, Any]: ...  # by dotted name
    def facts(self, task: "Task", dynamics: str, records: Mapping[str, Any]) -> dict[str, Any]: ...  # further columns


@dataclass(frozen=True)
class Task:
    """One experiment: a variant of a preset under a seed."""

    name: str  # of the experiment
    preset: str
    variant: Variant
    seed: int
    dynamics: tuple[str, ...]
    config: Config
    settings: Mapping[str, Any]  # by dotted name: what differs from params.yaml

    @property
    def label(self) -> str:
        return f"{self.preset} {self.variant.name} seed {self.seed}"


@dataclass(frozen=True)
class Left:
    """A variant without a result, and why."""

    label: str
    reason: str


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

    @property
    def logs(self) -> Path:
        return Path(".ifm") / self.name

    def chosen(self, names: Sequence[str] | None) -> tuple[Variant, ...]:
        """The variants called by these names, in the table's order; all where there are none."""
        known = [variant.name for variant in self.variants]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise UserError(f"no variant {unknown[0]!r}; there are {', '.join(known)}")
        return tuple(variant for variant in self.variants if not names or variant.name in names)


def plan(
    study: Study,
    presets: Sequence[str],
    seeds: Sequence[int],
    *,
    text: str,
    code: str,
    variants: Sequence[Variant] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[list[Task], list[Left]]:
    """The experiments, and what is skipped because its values don't go together.

    text: params.yaml's; code: hash of the stages' code (`code_digest`); variants: the study's. Raises UserError for a
    preset that does not exist and for an override of a key that does not exist.
    """
    tasks, skipped = [], []
    before = flatten(preset.parse_yaml(text))
    applied = {name: preset.parse_yaml(preset.apply(name, text)) for name in presets}
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
        settings = {k: v for k, v in flatten(values).items() if k not in before or before[k] != v}
        experiment = f"{study.name}-{name}-{variant.name}-s{seed}-{key}"
        tasks.append(Task(experiment, name, variant, seed, dynamics, config, settings))
    return tasks, skipped


def code_digest() -> str:
    """A hash of the Python files that dvc.yaml names as deps of STAGES."""
    files = {file for stage in STAGES for file in declared_code(stage)}
    return digest({str(file): file_sha256(file) for file in sorted(files)})


def override_text(value: Any) -> str:
    """A value as `dvc exp run -S key=value` reads it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(override_text, value))}]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./-]*", value) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        )
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


# --- running it -----------------------------------------------------------------------------------------------------


class Runner(Protocol):
    """Where experiments run and their results lie."""

    def finished(self) -> set[str]: ...
    def run(self, task: Task) -> None: ...  # raises UserError
    def read(self, task: Task) -> dict[str, Any]: ...  # {"reference": ..., dynamics: metrics}; raises UserError
    def records(self, task: Task) -> dict[str, Any]: ...  # {"flow-ve": run.json, ...} of what DVC's cache holds


class DvcRunner:
    """`dvc exp run --temp`, one at a time: a second worker would train the same teacher again."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def finished(self) -> set[str]:
        return set(self._refs())

    def run(self, task: Task) -> None:
        log = self._study.logs / f"{task.name}.log"
        process = start(task.name, task.settings, [f"evaluate@{d}" for d in task.dynamics], log=log)
        try:
            process.wait()
        finally:
            end(process)
        if task.name not in self.finished():
            raise UserError(f"{_fault(log)} (log: {log})")

    def read(self, task: Task) -> dict[str, Any]:
        return read_metrics(task.name, self._refs()[task.name], ("reference", *task.dynamics))

    def records(self, task: Task) -> dict[str, Any]:
        return read_records(self._refs()[task.name])

    def _refs(self) -> dict[str, str]:
        return experiments(f"{self._study.name}-")


def experiments(prefix: str) -> dict[str, str]:
    """Refs of the experiments whose names begin so, by name; of any commit that they started from."""
    # refs/exps/<2>/<38 digits of the commit it starts from>/<name>
    refs = git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    return {ref.split("/")[-1]: ref for ref in refs if ref.split("/")[-1].startswith(prefix)}


def read_metrics(experiment: str, ref: str, names: Sequence[str]) -> dict[str, Any]:
    """What an experiment's reports/metrics hold, by name. Raises UserError where a file is not there or no JSON."""
    found = {}
    for name in names:
        text = git("show", f"{ref}:{(paths.METRICS / f'{name}.json').as_posix()}")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"experiment {experiment}: {name}.json is no JSON; `dvc exp remove {experiment}`"
            ) from error
    return found


def read_records(ref: str) -> dict[str, Any]:
    """An experiment's run.json of every stage, by stage, as far as DVC's cache holds them."""
    from dvc.repo import Repo

    with Repo() as repo:
        kept = repo.cache.local
        files = {
            Path(out): Path(kept.oid_to_path(md5))
            for out, md5 in outputs(of_dvc(git("show", f"{ref}:dvc.lock"))["stages"]).items()
            if Path(out).parent == paths.RUNS
        }
    return {path.stem: read_json(file) for path, file in files.items() if file.is_file()}


def start(
    experiment: str,
    settings: Mapping[str, Any],
    targets: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Starts `dvc exp run --temp` in a session of its own, for `end`; targets: stages, none for the whole graph.

    It waits for DVC's lock, which another experiment holds while it starts and while its results are taken in.
    """
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", experiment]
    words += [word for key, value in settings.items() for word in ("-S", f"{key}={override_text(value)}")]
    around = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # stages call `python`
        "DVC_NO_ANALYTICS": "true",
        **(environment or {}),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        return subprocess.Popen(
            [*words, *targets], stdout=out, stderr=subprocess.STDOUT, env=around, start_new_session=True
        )


def end(process: subprocess.Popen) -> None:
    """Ends DVC and the stage it runs, which keeps its checkpoint; nothing where it has ended."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATION)
            return


def _fault(log: Path) -> str:
    """DVC's own line, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR: ")), lines[-1] if lines else "no output")


def run_all(
    tasks: Sequence[Task],
    runner: Runner,
    *,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> list[Left]:
    """Runs what is not finished, one after the other, and returns what failed."""
    done = runner.finished()
    waiting = [task for task in tasks if task.name not in done]
    say(f"{len(tasks)} experiments, {len(tasks) - len(waiting)} finished before, {len(waiting)} to run")
    failed, spent = [], []
    for i, task in enumerate(waiting):
        where = f"[{i + 1}/{len(waiting)}] {task.label}"
        say(f"{where}: {', '.join(task.dynamics)} ...")
        start = clock()
        try:
            runner.run(task)
        except UserError as error:
            failed.append(Left(task.label, str(error)))
            say(f"{where}: failed: {error}")
            continue
        spent.append((task, clock() - start))
        left = remaining(waiting[i + 1 :], spent)
        say(f"{where}: {duration(spent[-1][1])}" + (f"; about {duration(left)} left" if left else ""))
    return failed


def remaining(waiting: Sequence[Task], spent: Sequence[tuple[Task, float]]) -> float:
    """Seconds that the waiting tasks will take, by the time of a dynamics in the same preset, else in any."""

    def rate(name: str) -> float:
        mine = [(len(t.dynamics), s) for t, s in spent if t.preset == name] or [(len(t.dynamics), s) for t, s in spent]
        return sum(s for _, s in mine) / sum(n for n, _ in mine)

    return sum(len(task.dynamics) * rate(task.preset) for task in waiting)


def duration(seconds: float) -> str:
    """45 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- reading it back ------------------------------------------------------------------------------------------------


def rows(task: Task, results: Mapping[str, Any], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each dynamics and sampler of the flow, with the teacher's figures at 1 and at most NFE beside it.

    records: the stages' run.json, by name; what is not there leaves its columns empty.
    """
    found = []
    for d in task.dynamics:
        teacher = {row["nfe"]: row for row in results[d].values() if row["model"] == "teacher"}
        most = max(teacher, default=None)
        beside = {"teacher_nfe": most} | {f"teacher_{m}": teacher.get(most, {}).get(m) for m in METRICS}
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


def collect(study: Study, tasks: Sequence[Task], runner: Runner) -> tuple[pd.DataFrame, list[Left]]:
    """The finished tasks' rows, and what has none: not finished, or not to be read."""
    done, found, without = runner.finished(), [], []
    for task in tasks:
        if task.name not in done:
            without.append(Left(task.label, "not finished"))
            continue
        try:
            found += rows(task, runner.read(task), runner.records(task))
        except UserError as error:
            without.append(Left(task.label, str(error)))
    return pd.DataFrame(found, columns=list(study.columns)), without


def earlier(study: Study) -> pd.DataFrame | None:
    """The rows of the study's file; None where there is none. Raises UserError where it cannot be read."""
    if not study.csv.is_file():
        return None
    try:
        return pd.read_csv(study.csv).reindex(columns=list(study.columns))
    except (ValueError, OSError) as error:
        raise UserError(f"{study.csv}: cannot be read ({in_a_line(error)}); delete it and run again") from error


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


# --- the command ----------------------------------------------------------------------------------------------------


def git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("git is not installed; experiments are Git commits") from error
    if done.returncode:
        raise UserError(f"git {words[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def check_checkout() -> str:
    """The commit experiments start from. Raises UserError where there is none or where files differ from it.

    Results (reports/, dvc.lock) may differ: `dvc repro` writes them, and no experiment reads them.
    """
    try:
        commit = git("rev-parse", "--verify", "HEAD").strip()
    except UserError as error:
        if "not installed" in str(error):
            raise
        raise UserError("this folder is not a Git checkout with a commit; clone the repository") from error
    if missing := checkout.missing_identity(Path.cwd()):
        how = " and ".join(f"git config {key} ..." for key in missing)
        raise UserError(f"Git does not know your {' and '.join(missing)}, and experiments are commits: {how}")
    changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=no", "--", ".").splitlines()]
    changed = [name for name in changed if name != "dvc.lock" and not name.startswith("reports/")]
    if changed:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UserError(f"uncommitted changes in {shown}: an experiment starts from a commit; commit or stash them")
    return commit


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    bad = [word for word in words if "=" not in word]
    if bad:
        raise UserError(f"--set {bad[0]}: must be key=value, e.g. flow.steps=500")
    return {key: read_yaml(value, source=f"--set {key}={value}") for key, _, value in (w.partition("=") for w in words)}


def describe(tasks: Sequence[Task], skipped: Sequence[Left], finished: set[str]) -> str:
    """What would run, a line each."""
    lines = []
    for task in tasks:
        state = "finished" if task.name in finished else "to run"
        lines.append(
            f"{state:<9} {task.preset:<8} seed {task.seed:<3} {task.variant.name:<22} {' '.join(task.dynamics)}"
        )
    lines += [f"skipped   {one.label}: {one.reason}" for one in skipped]
    waiting = sum(task.name not in finished for task in tasks)
    return "\n".join([*lines, f"{len(tasks)} experiments, {waiting} to run, {len(skipped)} skipped"])


def run_study(study: Study, arguments: argparse.Namespace, runner: Runner) -> int:
    """The command's work; its exit status. Raises UserError."""
    for name in arguments.presets:
        if name not in preset.names():
            raise UserError(f"no preset {name!r}; there are {', '.join(preset.names())}")
    text = params_text(paths.PARAMS)
    read_mapping(text, source=str(paths.PARAMS))  # one clear line where it is broken
    tasks, skipped = plan(
        study,
        list(dict.fromkeys(arguments.presets)),
        list(dict.fromkeys(arguments.seeds)),
        text=text,
        code=code_digest(),
        variants=study.chosen(arguments.only),
        overrides=_overrides(arguments.set),
    )
    if arguments.dry_run:
        print(describe(tasks, skipped, runner.finished()))
        return 0
    commit = check_checkout()
    earlier(study)  # a file that cannot be added to is told before the work
    for one in skipped:
        print(f"skipped: {one.label}: {one.reason}", flush=True)
    failed: list[Left] = []
    try:
        failed = run_all(tasks, runner, say=lambda line: print(line, flush=True))
    finally:  # after a Ctrl-C too: what is finished is shown
        table, without = collect(study, tasks, runner)
        reasons = {one.label: one for one in [*without, *failed]}  # why it failed, where that is known
        if len(table):
            write(study, merged(study, table), left=[*reasons.values(), *skipped], commit=commit)
            print(f"{len(table)} rows in {study.csv}; page: {study.page}", flush=True)
    for one in reasons.values():
        print(f"failed: {one.label}: {one.reason}", file=sys.stderr)
    return 1 if reasons else 0


def main(study: Study, *, module: str, about: str) -> None:
    """The command line of a study."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--presets", nargs="+", default=["points", "digits"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=", ".join(v.name for v in study.variants))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="params of every variant")
    parser.add_argument("--dry-run", action="store_true", help="list the variants and what would run")
    arguments = parser.parse_args()
    runner = DvcRunner(study)
    command(lambda: run_study(study, arguments, runner), study.name, study.logs, alone=not arguments.dry_run)


def command(work: Callable[[], int], name: str, folder: Path, *, alone: bool) -> NoReturn:
    """Runs a command's work and exits with its status; what a user can mend is one line. alone: one such at a time."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        if not alone:
            sys.exit(work())
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            sys.exit(work())
    except Timeout:
        sys.exit(f"the study {name} is already running in this folder")
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, ConfigError) as error:
        sys.exit(str(error))
