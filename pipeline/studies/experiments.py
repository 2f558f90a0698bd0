"""DVC's experiments: started by `dvc exp run --temp`, found again as Git refs, read from Git and from DVC's cache."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifm import checkout
from ifm.errors import UserError
from ifm.files import read_json
from ifm.progress import is_line
from pipeline.runner import groups, paths
from pipeline.runner.parent import end_with_parent
from pipeline.runner.stage import of_dvc, outputs
from pipeline.studies.workers import Job

STARTED = "Reproducing experiment"  # DVC's line once the folder is filled
TERMINATION = 30  # seconds that a stage has to close its run
MESSAGE_LINES = 3
WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra reads as something other than text


@dataclass
class DvcProcess:
    """`dvc exp run --temp` and its log."""

    process: subprocess.Popen
    log: Path

    @classmethod
    def begin(cls, words: Sequence[str], environment: Mapping[str, str], log: Path) -> "DvcProcess":
        """Starts DVC in a session of its own; environment: besides this process's."""
        around = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # stages call `python`
            "DVC_NO_ANALYTICS": "true",
            **environment,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                words,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=around,
                start_new_session=True,
                preexec_fn=end_with_parent,  # or it would go on beside the command's next start
            )
        return cls(process, log)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def started(self) -> bool:
        text = self._text()
        return STARTED in text or "ERROR: " in text

    def message(self) -> str:
        return f"{last_lines(self._text())} (log: {self.log})"

    def at(self) -> str:
        return current_stage(self._text())

    def end(self) -> None:
        """Ends DVC and the stage it runs, which keeps its checkpoint; nothing where it has ended."""
        if not self.ended():
            groups.end(self.process.pid, signal.SIGTERM, patience=TERMINATION)
            self.process.wait()

    def _text(self) -> str:
        return self.log.read_bytes().decode(errors="replace")


@dataclass(frozen=True)
class DvcExperiments:
    """The experiments whose names begin with a prefix, of any commit that they started from; their logs are kept."""

    prefix: str
    logs: Path

    def finished(self) -> set[str]:
        return set(self._refs())

    def start(self, job: Job, environment: Mapping[str, str]) -> DvcProcess:
        """Starts `dvc exp run --temp` in a session of its own."""
        return DvcProcess.begin(self.command(job), environment, self.logs / f"{job.name}.log")

    def command(self, job: Job) -> list[str]:
        """`dvc exp run --temp` of a job.

        It waits for DVC's lock, which another experiment holds while it starts and while its results are taken in.
        """
        words = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", job.name]
        words += [word for key, value in job.settings.items() for word in ("-S", f"{key}={override_text(value)}")]
        return [*words, *job.targets]

    def metrics(self, name: str, files: Sequence[str]) -> dict[str, Any]:
        """What an experiment's reports/metrics hold, by name. Raises UserError where a file is not there or no JSON."""
        ref, found = self._refs()[name], {}
        for file in files:
            text = git("show", f"{ref}:{(paths.METRICS / f'{file}.json').as_posix()}")
            try:
                found[file] = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"experiment {name}: {file}.json is no JSON; `dvc exp remove {name}`") from error
        return found

    def records(self, name: str) -> dict[str, Any]:
        """An experiment's run.json of every stage, by stage, as far as DVC's cache holds them."""
        from dvc.repo import Repo

        with Repo() as repo:
            kept = repo.cache.local
            files = {
                Path(out): Path(kept.oid_to_path(md5))
                for out, md5 in outputs(of_dvc(git("show", f"{self._refs()[name]}:dvc.lock"))["stages"]).items()
                if Path(out).parent == paths.RUNS
            }
        return {path.stem: read_json(file) for path, file in files.items() if file.is_file()}

    def forget(self, names: Iterable[str]) -> None:
        """Removes experiments; what they made stays in DVC's cache."""
        refs = self._refs()
        for name in names:
            git("update-ref", "-d", refs[name])

    def _refs(self) -> dict[str, str]:
        # refs/exps/<2>/<38 digits of the commit it starts from>/<name>
        refs = git("for-each-ref", "--format=%(refname)", "refs/exps").split()
        return {ref.split("/")[-1]: ref for ref in refs if ref.split("/")[-1].startswith(self.prefix)}


def current_stage(text: str) -> str:
    """The stage that a log is at, or ""."""
    return (re.findall(r"^Running stage '([^']*)'", text, flags=re.MULTILINE) or [""])[-1]


def last_lines(text: str) -> str:
    """What the failed stage said last, then DVC's own line; without DVC's notices and overdrawn progress bars."""
    lines = [line.rpartition("\r")[2].strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    at = next((i for i, line in enumerate(lines) if line.startswith("ERROR: ")), len(lines))
    stage = next((i for i in range(at, 0, -1) if lines[i - 1].startswith("> ")), 0)  # > python -m pipeline.stages...
    said = [line for line in lines[stage:at] if not (line.startswith(("WARNING: ", "tracking: ")) or is_line(line))]
    return "; ".join([*said[-MESSAGE_LINES:], *lines[at : at + 1]]) or "no output"


def override_text(value: Any) -> str:
    """A value as `dvc exp run -S key=value` reads it: in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(override_text, value))}]"
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, flags=re.ASCII) and value.lower() not in WORDS:
        return value
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()


def git(*words: str) -> str:
    """What a command of Git's prints. Raises UserError where it fails."""
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
    changed = git("diff", "--name-only", "--relative", "-z", "HEAD", "--", ".", ":!dvc.lock", ":!reports")
    changed = [name for name in changed.split("\0") if name]
    if changed:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UserError(f"uncommitted changes in {shown}: an experiment starts from a commit; commit or stash them")
    return commit
