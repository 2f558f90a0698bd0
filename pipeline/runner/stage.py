"""What every stage shares: arguments, checked params, tracking, signals, and one clear line for errors of the user."""

import argparse
import gc
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from ifm import tracking
from ifm.config import Config, ConfigError, parse, read_params
from ifm.dynamics import DYNAMICS
from ifm.errors import UserError
from ifm.files import located, read_json, readable
from ifm.progress import at_work, tell
from ifm.tracking import StageRun
from pipeline.runner import launch, lockfile, paths, unfinished

if TYPE_CHECKING:
    import torch


# The use that a stage makes of its data, in MLflow's words; all other stages prepare data.
CONTEXTS = {
    "teacher": "training",
    "flow": "training",
    "select": "evaluation",
    "evaluate": "evaluation",
    "diagnose": "evaluation",
}


@dataclass
class Stage:
    """The input of a stage's work: the whole checked config, its dynamics (if any), and its MLflow run."""

    name: str  # e.g. "teacher-ve": also the names of its run, curve and record
    module: str
    config: Config
    values: dict[str, Any]  # params.yaml as plain values
    dynamics: str | None
    run: StageRun = field(default_factory=lambda: StageRun("untracked"))
    _work: unfinished.WorkFolder | None = None  # of the main process

    def sections(self, *names: str) -> dict[str, Any]:
        """The plain values of some params, by dotted name, e.g. ``sections("seed", "ode.ve")``."""
        return {name: lookup(self.values, name) for name in names}

    @property
    def device(self) -> "torch.device":
        """A GPU where there is one."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def work_folder(self, *, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
        """The folder in which this computation keeps its checkpoints: .ifm/checkpoints/<stage>-<hash>.

        Every process calls it once. It names on stderr the checkpoints of other params, code or inputs of the stage.
        """
        code = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in declared_code(self.module)}
        made_of = {"params": dict(params), "code": code, "inputs": dict(inputs)}
        root = tracking.project_root() / ".ifm" / "checkpoints"
        if int(os.environ.get("RANK", "0")) == 0:
            unfinished.tell(self.name, unfinished.left(root, self.name, made_of), root=root)
            self._work = unfinished.WorkFolder.open(root, self.name, made_of)
        return root / from_main_process(self._work.path.name if self._work else None)

    def finish(self) -> None:
        """Removes the work folder, once the stage's outputs are in place."""
        if self._work:
            self._work.finish()

    def warn(self, texts: Sequence[str]) -> None:
        """Reports reasons to doubt the stage's figures: a line each on stderr, and a tag of its run."""
        for text in texts:
            print(f"{self.name}: warning: {text}", file=sys.stderr, flush=True)
        if texts:
            self.run.log_tags({"warnings": tracking.as_tag(texts)})

    def outs(self) -> list[Path]:
        """The outputs of dvc.yaml."""
        entry = of_dvc(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][self.module]
        return [Path(name) for name in resolved(entry, self.dynamics)["outs"]]


def from_main_process(value: Any) -> Any:
    """The value of process 0, in every process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def placed(config: Config, root: Path) -> Config:
    """Local files by absolute paths. Relative ones start in the main checkout, where a DVC experiment does not run."""
    data, evaluate = config.data, config.evaluate
    changed = {"path": data.path and str(located(data.path, root))}
    if data.origin.key == "name" and located(data.name, root).exists():
        changed["name"] = str(located(data.name, root))
    weights = {key: getattr(evaluate, key) for key in ("inception_path", "dinov2_path", "clap_path")}
    weights = {key: path and str(located(path, root)) for key, path in weights.items()}
    sections = {"data": data.model_copy(update=changed), "evaluate": evaluate.model_copy(update=weights)}
    return config.model_copy(update=sections)


def lookup(values: Mapping[str, Any], dotted: str) -> Any:
    """A value of params.yaml by dotted name."""
    for part in dotted.split("."):
        values = values[part]
    return values


def declared_code(stage: str) -> list[Path]:
    """The Python files among the deps of a stage in dvc.yaml."""
    graph = of_dvc(Path("dvc.yaml").read_text(encoding="utf-8"))
    return [Path(d) for d in graph["stages"][stage]["deps"] if str(d).endswith(".py")]


def of_dvc(text: str) -> dict[str, Any]:
    """dvc.yaml or dvc.lock, read by libyaml: the pure-Python reader of params.yaml takes half a second for the lock."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def main(
    work: Callable[[Stage], None],
    *,
    module: str,
    params: Callable[[Stage], Mapping[str, Any]],
    per_dynamics: bool = False,
    parallel: bool | Callable[[Config], bool] = False,
    tracked: bool = True,
) -> None:
    """Runs a stage from the command line and exits with its status.

    `params`: the values to log with the run. `parallel`: the stage may be launched as several processes, or when.
    `tracked=False`: the stage does the tracking itself.
    """
    parser = argparse.ArgumentParser(prog=f"python -m pipeline.stages.{module}", description=work.__doc__)
    if per_dynamics:
        parser.add_argument("dynamics", choices=list(DYNAMICS))
    arguments = parser.parse_args()
    try:
        values = read_params(paths.PARAMS)
        config = placed(parse(values, source=str(paths.PARAMS)), tracking.project_root())
    except ConfigError as error:
        sys.exit(f"{error}")
    dynamics = getattr(arguments, "dynamics", None)
    name = f"{module}-{dynamics}" if dynamics else module
    stage = Stage(name, module, config, values, dynamics)
    if "RANK" not in os.environ:
        unfinished.remove_temporaries(stage.outs())
    if parallel if isinstance(parallel, bool) else parallel(config):
        status = launch.relaunch(f"pipeline.stages.{module}", sys.argv[1:], name=name)
        if status is not None:
            sys.exit(status)
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # pipeline.stages has another one during imports
    try:
        with at_work(name), _tracked(stage, params(stage), tracked=tracked):
            gc.freeze()
            gc.enable()  # pipeline.stages disables it during imports
            keep_compiled(tracking.project_root() / ".ifm" / "compiled")
            work(stage)
        stage.finish()
    except KeyboardInterrupt:
        if launch.LAUNCHED not in os.environ:  # otherwise the launching process says so
            tell(f"{name}: {unfinished.goes_on(stage._work.path if stage._work else None)}")
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        if os.environ.get("IFM_DEBUG"):
            raise
        sys.exit(f"{name}: {error}")


def keep_compiled(folder: Path) -> None:
    """Has torch.compile and Triton keep what they compile in a folder of the checkout, unless told otherwise."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def terminate(number: int, frame: FrameType | None) -> None:
    """Turns SIGTERM into an exception, so that the stage's run is closed and its temporary files are removed."""
    sys.exit(128 + number)


@contextmanager
def _tracked(stage: Stage, params: Mapping[str, Any], *, tracked: bool) -> Iterator[None]:
    """Opens the stage's run on the main process; the others work untracked."""
    if not tracked or int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    made = made_before(stage)
    tags = {"ifm.dynamics": stage.dynamics} if stage.dynamics else {}
    tags |= {"data": data_name(stage.config)} | {f"input.{path}": md5 for path, md5 in made.items()}
    inputs = data_inputs(stage.config, made, context=CONTEXTS.get(stage.module, "preparation"))
    record = paths.run_record(stage.name)
    with tracking.stage_run(stage.name, params=params, record=record, tags=tags, inputs=inputs) as run:
        stage.run = run
        yield


def data_name(config: Config) -> str:
    """The data set's name in reports: its name on the Hub, its folder's name, "digits", or its law."""
    data = config.data
    if called := data.origin.label(data):
        return called
    given = data.name or data.path
    return readable(Path(given).resolve().name if given == data.path or Path(given).is_absolute() else given)


def locked_outputs(lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """md5 of each output of the stages that have run, by path."""
    text = lockfile.read(lock)
    made = outputs(of_dvc(text).get("stages") or {}) if text else {}
    return {path: md5 for path, md5 in made.items() if md5}


def outputs(stages: Mapping[str, Any]) -> dict[str, str | None]:
    """md5 of each output of the stages of a dvc.lock, by path; None if it holds none."""
    return {out["path"]: out.get("md5") for entry in stages.values() for out in entry.get("outs") or ()}


def resolved(entry: Mapping[str, Any], dynamics: str | None) -> dict[str, list[str]]:
    """Params, deps and outs of a stage of dvc.yaml, for one dynamics. An entry with options is a mapping of one key."""

    def names(*kinds: str) -> list[str]:
        listed = [one for kind in kinds for one in entry.get(kind, [])]
        plain = [next(iter(one)) if isinstance(one, dict) else one for one in listed]
        return [name.replace("${item.dynamics}", dynamics or "") for name in plain]

    return {"params": names("params"), "deps": names("deps"), "outs": names("outs", "metrics", "plots")}


def made_before(stage: Stage) -> dict[str, str]:
    """md5 of each input of this stage that another stage made, by path."""
    graph, made = of_dvc(Path("dvc.yaml").read_text(encoding="utf-8")), locked_outputs()
    deps = resolved(graph["stages"][stage.module], stage.dynamics)["deps"]
    return {d: made[d] for d in deps if d in made}


def data_inputs(config: Config, made: Mapping[str, str], *, context: str) -> list[dict[str, Any]]:
    """The data sets among outputs, as MLflow shows them: e.g. digits/processed with the start of its md5."""
    return [
        {
            "name": path.replace("data/", f"{data_name(config)}/", 1),
            "digest": md5[:12],
            "source": tracking.cache_uri(md5),
            "profile": _profile(Path(path)),
            "context": context,
        }
        for path, md5 in made.items()
        if path.startswith("data/") and path not in map(str, (paths.SOURCE, paths.PUBLIC, paths.ENCODER))
    ]


def _profile(folder: Path) -> dict[str, Any]:
    """The amount of data in a folder, as far as its metadata says; {} if it is not here."""
    try:
        metadata = read_json(folder / "metadata.json")
    except (OSError, ValueError):
        return {}
    shown = {key: metadata[key] for key in ("shape", "image_shape", "count", "seeds") if key in metadata}
    splits = metadata.get("splits")
    if isinstance(splits, dict):
        counts = {name: split["count"] if isinstance(split, dict) else split for name, split in splits.items()}
        shown["splits"] = counts
    return shown
