"""Kills running pipelines at random moments, and compares what they end with to undisturbed ones.

In temporary copies of this checkout with a tiny params.yaml: an undisturbed `dvc repro` for each number of processes,
then pipelines whose stages are killed (`plan` says which, when and how), each time followed by the same command again.
At the end models, data and metrics have to be the same bytes, and MLflow's store one parent and no open run.
With --side-by-side the pipelines run by `ifm repro`, two branches at a time, and are compared to plain `dvc repro`.
`make kill-test N=30` writes docs/reliability.json and the figures of docs/reliability.md.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from ifm.config import params_text, read_params
from ifm.errors import UserError
from ifm.files import file_sha256, write_json, write_text
from pipeline.runner.stage import of_dvc
from pipeline.tools import params_file

TINY = {
    "dynamics": ["rf"],
    "network.channels": [16, 16], "network.attention": [False, False],
    "teacher.steps": 300, "teacher.batch_size": 16, "teacher.warmup_steps": 2, "teacher.log_every": 25,
    "teacher.checkpoint_every": 25,
    "trajectories.count": 256, "trajectories.shard_size": 16, "trajectories.batch_size": 16,
    "trajectories.solver_steps": 16, "trajectories.stored_times": 3,
    "flow.steps": 300, "flow.batch_size": 16, "flow.warmup_steps": 2, "flow.log_every": 25,
    "flow.checkpoint_every": 25,
    "select.count": 32, "sample.seeds": 2, "sample.count": 48, "sample.batch_size": 32, "sample.grid_images": 16,
    "sample.flow_steps": [1, 2],
    "evaluate.teacher_nfe": [1, 5], "evaluate.kid_subsets": 3, "evaluate.classifier.steps": 20,
    "diagnose.paths": 8, "diagnose.solver_steps": 4, "diagnose.jacobian_paths": 2, "diagnose.jacobian_times": 2,
}  # fmt: skip
STAGES = (
    "teacher", "trajectories", "flow", "select", "sample", "evaluate", "reference", "diagnose", "fetch", "preprocess",
    "report", "track",
)  # fmt: skip
PARALLEL = ("teacher", "trajectories", "flow", "select", "sample", "evaluate")  # by as many processes as IFM_LAUNCH has
SIGNALS = ("SIGKILL", "SIGTERM")
VICTIMS = ("stage", "stage", "all", "dvc")  # the stage's process, DVC and all below it, DVC alone
MODES = ("workspace", "experiment", "two processes")
SHARES = (0.5, 0.3, 0.2)  # of the kills, by mode
BESIDE = "side by side"  # the mode of `ifm repro`, by --side-by-side alone
BRANCHES = ["rf", "ve"]  # of it; kills are timed by the first
COMPARED = (
    "models",
    "data",
    "reports/metrics",
    "reports/headline",
    "reports/diagnostics",
    "reports/curves",
    "reports/summary.csv",
)
MEASURED = ("seconds", "memory", "mb")  # in a column's name: measured, so never the same twice
STEPS = {"teacher": 300, "trajectories": 16, "flow": 300}  # what there is to save: optimizer steps, shards
STARTING = 0.2  # moments below it are in a stage's start, those above at a share of STEPS
LATEST = 0.6  # of its usual duration, for a stage that saves nothing
ATTEMPT = 900.0  # seconds that one `dvc repro` may take
POLL = 0.02
EXPERIMENT = "killed"
MARK = "<!-- kills -->"


# --- what is planned ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """One kill that is to be: in `mode`, of `stage`, at a share `moment` of its work."""

    mode: str
    stage: str
    signal: str
    victim: str
    moment: float

    def due(self, elapsed: float, saved: int, usual: float) -> bool:
        """Whether the moment has come. elapsed, usual: seconds; saved: steps or shards that are on disk.

        By what is saved where something is: other programs on the machine change durations.
        """
        if self.stage not in STEPS:
            return elapsed >= LATEST * self.moment * usual
        if self.moment < STARTING:
            return elapsed >= self.moment * usual
        return saved > 0 and saved >= (self.moment - STARTING) / (1 - STARTING) * STEPS[self.stage]


def plan(count: int, *, seed: int, beside: bool = False) -> list[Kill]:
    """`count` kills: modes by their shares, stages in turn, signals and victims in turn, moments at random."""
    draw = random.Random(seed)
    kills = []
    shares = [(BESIDE, count)] if beside else zip(MODES, shared_out(count, SHARES), strict=True)
    for m, (mode, number) in enumerate(shares):
        stages = PARALLEL if mode == "two processes" else STAGES
        for i in range(number):
            at = len(kills)
            # A step of two in the signals for each round of the victims: every pair of them comes up.
            number_of_signal = at + at // len(VICTIMS)
            kills.append(
                Kill(
                    mode=mode,
                    stage=stages[(m + i) % len(stages)],
                    signal=SIGNALS[number_of_signal % len(SIGNALS)],
                    victim=VICTIMS[at % len(VICTIMS)],
                    moment=round(0.9 * draw.random(), 3),
                )
            )
    return kills


def shared_out(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers by shares, largest remainder first; none is empty where there are enough."""
    numbers = [int(count * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (numbers[i] > 0, numbers[i] - count * shares[i]))
    for i in by_remainder[: count - sum(numbers)]:
        numbers[i] += 1
    return numbers


# --- what is seen ---------------------------------------------------------------------------------------------------


@dataclass
class Killed:
    """What became of a Kill."""

    plan: Kill
    alive: bool  # False: the stage had ended before its moment came
    after_seconds: float = 0.0  # since the stage's process appeared
    saved: str = ""  # the newest checkpoint, or how many shards there were
    resumed: str = ""  # what the next start said
    lost_seconds: float = 0.0  # since the newest checkpoint, or since the stage's start: work that is done again


@dataclass
class Round:
    """A pipeline from nothing to its end."""

    mode: str
    kills: list[Killed] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    different: list[str] = field(default_factory=list)  # outputs that are not those of the undisturbed run
    store: list[str] = field(default_factory=list)  # what is wrong in MLflow's store
    left: list[str] = field(default_factory=list)  # checkpoints and temporary files that nobody will use


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every output that depends on params and code alone, by its path."""
    found = {}
    for name in COMPARED:
        top = folder / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            shown = path.relative_to(folder).as_posix()
            found[shown] = _table_digest(path) if name.endswith("summary.csv") else file_sha256(path)
    return {name: found[name] for name in sorted(found) if not name.endswith(".gitignore")}


def _table_digest(path: Path) -> str:
    """sha256 of a table without the columns that are measured."""
    table = pd.read_csv(path, dtype=str)
    kept = [c for c in table.columns if not any(word in c.split("_") for word in MEASURED)]
    return hashlib.sha256(table[kept].to_csv(index=False).encode()).hexdigest()


def differences(made: Mapping[str, str], reference: Mapping[str, str]) -> list[str]:
    """Outputs that are missing, too many or other bytes."""
    return sorted(name for name in made.keys() | reference.keys() if made.get(name) != reference.get(name))


def store_faults(folder: Path) -> list[str]:
    """What is wrong with the runs of a project that has come to its end once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("ifm").experiment_id], max_results=5000)
    faults = [f"{r.info.run_name} is left {r.info.status}" for r in runs if r.info.status == "RUNNING"]
    parents = [r for r in runs if r.data.tags.get("ifm.kind") == "pipeline"]
    if len(parents) != 1:
        faults.append(f"{len(parents)} rows for one state")
    for parent in parents:
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        names = sorted(r.data.tags["ifm.stage"] for r in children)
        if len(names) != len(set(names)) or len(names) != _expected(folder):
            faults.append(f"the stages of the row are {names}")
        faults += [f"{r.info.run_name} is {r.info.status}" for r in children if r.info.status != "FINISHED"]
    return faults


def _expected(folder: Path) -> int:
    """How many stages the row of a state has: all but `track`, those of a branch once for each."""
    graph = of_dvc((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    branches = len(read_params(folder / "params.yaml")["dynamics"])
    return sum(branches if "matrix" in graph[stage] else 1 for stage in STAGES if stage != "track")


def leftovers(folder: Path) -> list[str]:
    """Work folders and temporary files that are still there, relative to the project."""
    inside = [p for name in ("models", "data", "reports") for p in (folder / name).rglob(".*.tmp")]
    work = folder / ".ifm" / "checkpoints"
    return sorted(p.relative_to(folder).as_posix() for p in [*inside, *(work.iterdir() if work.is_dir() else [])])


# --- running and killing --------------------------------------------------------------------------------------------


class Project:
    """A copy of this checkout with tiny params, its own Git history, cache and store."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "IFM_", "GIT_"))}
        self.env = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "DVC_NO_ANALYTICS": "true",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "CUDA_VISIBLE_DEVICES": "",  # sums on a GPU may come in any order
        }
        if mode == "two processes":
            self.env["IFM_LAUNCH"] = "torchrun --standalone --nproc_per_node 2"

    def words(self) -> list[str]:
        dvc = [sys.executable, "-m", "dvc"]
        if self.mode == "experiment":
            return [*dvc, "exp", "run", "--temp", "--force", "--name", EXPERIMENT]
        if self.mode == BESIDE:
            return [sys.executable, "-m", "pipeline.runner.repro", "--jobs", str(len(BRANCHES))]
        return [*dvc, "repro"]

    def run(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.env, text=True, capture_output=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(words)} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def start(self, log: Path) -> subprocess.Popen:
        with open(log, "ab") as out:
            return subprocess.Popen(
                self.words(), cwd=self.folder, env=self.env, stdout=out, stderr=out, start_new_session=True
            )

    def finished(self) -> None:
        """Brings an experiment's results into the workspace."""
        if self.mode == "experiment":
            self.run(sys.executable, "-m", "dvc", "exp", "apply", EXPERIMENT)

    def saved(self, stage: str) -> tuple[str, float]:
        """The newest checkpoint ("step 50") or the shards ("3 shards") of a stage, and when it was written."""
        files = list((self.folder / ".ifm" / "checkpoints").glob(f"{stage}-*/[!.]*"))
        steps = sorted(p for p in files if p.name.startswith("step-"))
        shards = [p for p in files if p.name.startswith("shard-")]
        with suppress(FileNotFoundError):
            if steps:
                return f"step {int(steps[-1].stem.removeprefix('step-'))}", steps[-1].stat().st_mtime
            if shards:
                return f"{len(shards)} shards", max(p.stat().st_mtime for p in shards)
        return "", 0.0


def make_project(source: Path, folder: Path, mode: str, branches: Sequence[str] = ("rf",)) -> Project:
    """Copies what Git knows, without results, sets tiny params, and commits."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=source, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise UserError(f"{source} is no Git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (source / name).is_file() and not name.startswith("reports/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, folder / name)
    params = folder / "params.yaml"
    write_text(params, params_file.edited(params_text(params), TINY | {"dynamics": list(branches)}))
    project = Project(folder, mode)
    project.run("git", "init", "-q")
    for key, value in (("user.name", "kill test"), ("user.email", "kill-test@example.org")):
        project.run("git", "config", key, value)
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "Tiny params")
    return project


def stage_processes(top: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """(stage, process) of every process below DVC that runs a stage, outermost first."""
    found = []
    with suppress(psutil.Error):
        for process in top.children(recursive=True):
            with suppress(psutil.Error):
                name = stage_of(process.cmdline())
                if name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((name, process))
    return found


def stage_of(command: Sequence[str]) -> str | None:
    """The stage that a command line runs, e.g. "teacher"."""
    named = [word.removeprefix("pipeline.stages.") for word in command if word.startswith("pipeline.stages.")]
    return named[0] if named else None


def attempt(project: Project, log: Path, todo: list[Kill], usual: dict[str, float]) -> tuple[int, list[Killed]]:
    """Runs the pipeline until it ends, and kills what is due meanwhile: (exit status, the kills).

    usual: seconds that each stage takes, from its process's first sight; filled in where `todo` is empty. A stage that
    ends before its moment is not killed (`alive` False). Side by side a branch goes on when another's stage was killed,
    and one run meets several kills.
    """
    process = project.start(log)
    top, begun, deadline = psutil.Process(process.pid), {}, time.monotonic() + ATTEMPT
    found: list[Killed] = []
    hit: set[str] = set()  # stages whose kill this attempt has had: what is left of them is about to end
    ending = False  # the whole pipeline was hit
    while process.poll() is None:
        if time.monotonic() > deadline:
            _signal_group(process, signal.SIGKILL)
            raise UserError(f"a pipeline did not end in {ATTEMPT:.0f} s; see {log}")
        running = stage_processes(top)
        names = {name for name, _ in running}
        for name in names:
            begun.setdefault(name, time.time())
        for name in begun.keys() - usual.keys() - names:
            usual[name] = time.time() - begun[name]
        for name in [] if ending else sorted(begun.keys() - hit):
            kill = min((k for k in todo if k.stage == name), key=lambda k: k.moment, default=None)
            if kill is None:
                continue
            if name in names and kill.due(time.time() - begun[name], _number(project.saved(name)[0]), usual[name]):
                found.append(_kill(project, process, running, kill, begun[name]))
                ending = kill.victim != "stage"
            elif name not in names and project.mode != BESIDE:  # there another branch comes to the stage
                found.append(Killed(kill, alive=False))
            else:
                continue
            hit.add(name)
            if ending:
                break
        time.sleep(POLL)
    for name in begun:
        usual.setdefault(name, time.time() - begun[name])
    return process.returncode, found


def _kill(
    project: Project, dvc: subprocess.Popen, running: list[tuple[str, psutil.Process]], kill: Kill, begun: float
) -> Killed:
    number = getattr(signal, kill.signal)
    saved, when = project.saved(kill.stage)
    now = time.time()
    killed = Killed(kill, alive=True, after_seconds=now - begun, saved=saved, lost_seconds=now - max(begun, when))
    if kill.victim == "all":
        _signal_group(dvc, number)
    elif kill.victim == "dvc":
        dvc.send_signal(number)
    else:
        # Of several processes the launching one and each that it launched may be hit.
        processes = [process for name, process in running if name == kill.stage]
        chosen = processes[int(kill.moment * 1000) % len(processes)]
        with suppress(psutil.NoSuchProcess):
            chosen.send_signal(number)
    return killed


def _number(saved: str) -> int:
    return int("".join(c for c in saved if c.isdigit()) or 0)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run_round(
    source: Path,
    folder: Path,
    mode: str,
    todo: list[Kill],
    *,
    usual: dict[str, float],
    reference: dict[str, str] | None,
    branches: Sequence[str] = ("rf",),
) -> tuple[Round, dict[str, str]]:
    """A pipeline from nothing, killed by `todo`, until it has ended by itself; (what was seen, its digests)."""
    project, done, todo = make_project(source, folder, mode, branches), Round(mode), list(todo)
    log, started, last = folder.with_suffix(".log"), time.monotonic(), list[Killed]()
    while True:
        before = log.stat().st_size if log.exists() else 0
        status, killed = attempt(project, log, todo, usual)
        done.attempts += 1
        said = log.read_bytes()[before:].decode(errors="replace")
        _note_resumed(last, said, branches)
        for each in killed:
            todo.remove(each.plan)
            print(_line(each), flush=True)
        done.kills += killed
        last = killed
        if status == 0:  # what is left to do could not be killed any more
            done.kills += [Killed(kill, alive=False) for kill in todo]
            break
        if not any(each.alive for each in killed):
            raise UserError(f"the pipeline failed by itself (exit status {status}); the end of {log}: {said[-3000:]}")
    done.seconds = time.monotonic() - started
    project.finished()
    made = digests(folder)
    done.different = differences(made, reference) if reference is not None else []
    done.store, done.left = store_faults(folder), leftovers(folder)
    return done, made


def _note_resumed(kills: Iterable[Killed], said: str, branches: Sequence[str]) -> None:
    """Writes down what the start after the kills said of where it goes on."""
    lines = [line.strip() for line in said.splitlines()]
    for killed in kills:
        stage = killed.plan.stage
        starts = tuple(f"{stage}{between}{branch}: goes on" for branch in branches for between in " -")
        goes_on = [line.partition(": ")[2] for line in lines if line.startswith(starts)]
        if killed.alive and goes_on:
            killed.resumed = goes_on[-1]


def _line(killed: Killed) -> str:
    kill = killed.plan
    what = f"{kill.mode}: {kill.stage} by {kill.signal} to {kill.victim}"
    if not killed.alive:
        return f"{what}: had ended before"
    return f"{what} after {killed.after_seconds:.1f} s ({killed.saved or 'nothing saved yet'})"


# --- the whole ------------------------------------------------------------------------------------------------------


def run(source: Path, work: Path, *, kills: int, seed: int, beside: bool = False) -> Iterator[dict[str, Any]]:
    """All rounds; after each the record that goes to docs/reliability.json."""
    rounds, undisturbed = [], []
    planned = plan(kills, seed=seed, beside=beside)
    branches = BRANCHES if beside else ["rf"]
    references: dict[bool, tuple[dict[str, str], dict[str, float]]] = {}
    for mode in [BESIDE] if beside else MODES:
        todo = [kill for kill in planned if kill.mode == mode]
        two = mode == "two processes"
        if not todo:
            continue
        if two not in references:
            name = "two processes" if two else "workspace"
            print(f"{name}: undisturbed ...", flush=True)
            usual: dict[str, float] = {}
            done, made = run_round(
                source,
                work / f"undisturbed-{len(references)}",
                name,
                [],
                usual=usual,
                reference=None,
                branches=branches,
            )
            references[two] = (made, usual)
            undisturbed.append(done)
        reference, usual = references[two]
        done, _ = run_round(
            source,
            work / mode.replace(" ", "-"),
            mode,
            todo,
            usual=dict(usual),
            reference=reference,
            branches=branches,
        )
        rounds.append(done)
        print(f"{mode}: {_verdict(done)}", flush=True)
        yield record(rounds, undisturbed, seed=seed, outputs=len(next(iter(references.values()))[0]))


def _verdict(done: Round) -> str:
    faults = [*done.different, *done.store, *done.left]
    return "; ".join(faults) if faults else f"the same outputs after {len(done.kills)} kills, {done.seconds:.0f} s"


def record(rounds: Iterable[Round], undisturbed: Iterable[Round], *, seed: int, outputs: int) -> dict[str, Any]:
    """Counts, by mode and in all, and every kill."""
    rounds = list(rounds)
    rows = [_counts(done.mode, [done]) for done in rounds]
    return {
        "seed": seed,
        "outputs_compared": outputs,
        "undisturbed_seconds": {done.mode: round(done.seconds, 1) for done in undisturbed},
        "modes": [*rows, _counts("all", rounds)],
        "faults": [fault for done in [*undisturbed, *rounds] for fault in (*done.different, *done.store, *done.left)],
        "kills": [_flat(killed) for done in rounds for killed in done.kills],
    }


def _flat(killed: Killed) -> dict[str, Any]:
    values = asdict(killed)
    return values.pop("plan") | {k: round(v, 2) if isinstance(v, float) else v for k, v in values.items()}


def _counts(mode: str, rounds: Sequence[Round]) -> dict[str, Any]:
    kills = [killed for done in rounds for killed in done.kills]
    hit = [killed for killed in kills if killed.alive]
    return {
        "mode": mode,
        "kills": len(kills),
        "alive": len(hit),
        "with_checkpoint": sum(bool(killed.saved) for killed in hit),
        "resumed": sum(bool(killed.resumed) for killed in hit),
        "rounds": len(rounds),
        "rounds_identical": sum(not done.different for done in rounds),
        "store_faults": sum(len(done.store) for done in rounds),
        "left_over": sum(len(done.left) for done in rounds),
        "lost_seconds": round(sum(killed.lost_seconds for killed in hit), 1),
        "seconds": round(sum(done.seconds for done in rounds), 1),
    }


def table(made: Mapping[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = [
        "| where | kills | of a running stage | with a checkpoint or shards saved | resumed from it | identical "
        "outputs | faults in MLflow | left over | work done again |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in made["modes"]:
        same = "yes" if row["rounds_identical"] == row["rounds"] else "**no**"
        lines.append(
            f"| {row['mode']} | {row['kills']} | {row['alive']} | {row['with_checkpoint']} | {row['resumed']} | {same} "
            f"| {row['store_faults']} | {row['left_over']} | {row['lost_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def with_table(page: str, made: Mapping[str, Any]) -> str:
    """The page with the table between its two marks."""
    parts = page.split(MARK)
    if len(parts) != 3:
        raise UserError(f"the page needs two lines {MARK!r}")
    return f"{parts[0]}{MARK}\n{table(made)}\n{MARK}{parts[2]}"


def main() -> None:
    """Runs from the command line; the status is 1 where anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.kill_test", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.json"))
    parser.add_argument("--page", type=Path, help="gets the table, between its marks (default: docs/reliability.md "
                        "with the default --out)")  # fmt: skip
    parser.add_argument("--side-by-side", action="store_true", help="by `ifm repro`; needs --out")
    parser.add_argument("--keep", action="store_true", help="keep the temporary copies, to look into them")
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error(f"--kills must be at least 1, got {arguments.kills}")
    if arguments.side_by_side and arguments.out == parser.get_default("out"):
        parser.error("--side-by-side needs --out")
    page = arguments.page
    if page is None and arguments.out == parser.get_default("out"):
        page = Path("docs/reliability.md")
    work = Path(tempfile.mkdtemp(prefix="ifm-kill-test-"))
    try:
        for made in run(Path.cwd(), work, kills=arguments.kills, seed=arguments.seed, beside=arguments.side_by_side):
            write_json(arguments.out, made)
            if page:
                write_text(page, with_table(page.read_text(encoding="utf-8"), made))
    except UserError as error:
        sys.exit(f"kill test: {error} (kept: {work})")
    print(json.dumps(made["modes"][-1], indent=2))
    if made["faults"] or arguments.keep:
        print(f"kept: {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if made["faults"] else 0)


if __name__ == "__main__":
    main()
