"""`ifm doctor`: what of this machine and this folder stands in the way of a run, and what to do about it.

Nothing is installed, fetched or written. Addresses are shown without users, passwords and queries.
"""

import argparse
import importlib.metadata
import importlib.util
import math
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from ifm import checkout, extras
from ifm.errors import UserError

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PYTHON = (3, 11)
SECONDS = 20  # that a remote or a server has to answer
UNKNOWN_IMAGES = 60_000  # of a data set whose size is not known before it is fetched
MODELS = 200_000_000  # bytes of networks, checkpoints and the runs' store, roughly
EXTRAS = ("s3", "ssh")  # of this package, for DVC's remotes
CACHED = 2  # copies of an output: in the folder and in DVC's cache


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    name: str
    level: Literal["ok", "warning", "problem"]
    text: str
    mend: str = ""  # what to do


def add_options(parser: argparse.ArgumentParser) -> None:
    """None: it says all it finds."""


def run(given: argparse.Namespace) -> None:
    """Checks Python, torch, disk, params.yaml, DVC and its remotes, tracking and weights; status 1 on a problem."""
    levels = []
    for finding in examine(checkout.find()):
        levels.append(finding.level)
        print(f"{finding.level:<8} {finding.name:<12} {finding.text}", flush=True)
        if finding.mend:
            print(f"{'':<21} {finding.mend}", flush=True)
    print(f"\n{levels.count(PROBLEM)} problems, {levels.count(WARNING)} warnings")
    if PROBLEM in levels:
        sys.exit(1)


def examine(root: Path | None) -> Iterator[Finding]:
    """All findings. root: the checkout; None: there is none."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python", python),
        ("torch", torch_devices),
        ("GPU", gpu_abilities),
        ("cores", cores),
    ]
    if root is None:
        mend = "in a clone of the project, params.yaml, DVC, tracking and weights are looked at too"
        checks.append(("checkout", lambda: iter([Finding("checkout", WARNING, "this folder is in none", mend)])))
    else:
        checks += [
            ("package", lambda: package(root)),
            ("params.yaml", lambda: params(root)),
            ("speed", lambda: speed(root)),
            ("disk", lambda: disk(root)),
            ("DVC", lambda: dvc(root)),
            ("tracking", lambda: tracking(root)),
            ("weights", lambda: weights(root)),
        ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a library raises must not hide the other findings
            yield Finding(name, PROBLEM, f"the check itself failed ({type(error).__name__})")


# This machine


def python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding(
            "Python", PROBLEM, f"{found}; {PYTHON[0]}.{PYTHON[1]} or newer is needed", "make setup PYTHON=..."
        )
    else:
        yield Finding("Python", OK, found)
    name, mend = "python on PATH", "source .venv/bin/activate, or use make: DVC's stages call `python`"
    there = shutil.which("python")
    if there is None:
        yield Finding("Python", PROBLEM, f"there is no {name}", mend)
        return
    ask = [there, "-c", "import sys; print(sys.prefix)"]
    with suppress(OSError, subprocess.TimeoutExpired):
        prefix = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=SECONDS).stdout.strip()
        if not prefix or Path(prefix).resolve() != Path(sys.prefix).resolve():
            yield Finding("Python", PROBLEM, f"{name} is {there}, and not this environment's", mend)


def package(root: Path) -> Iterator[Finding]:
    """Whether this package is the checkout's: an environment that was moved or copied has that of its old place."""
    own, used = root / "src" / "ifm", Path(__file__).parents[1]
    if own.is_dir() and own.resolve() != used.resolve():
        mend = "rm -r .venv; make setup: an environment cannot be moved or copied"
        yield Finding("package", WARNING, f"`ifm` is {used}, and not this checkout's", mend)


def torch_devices() -> Iterator[Finding]:
    """torch, and a product of matrices on every device."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", PROBLEM, "not installed", "make setup")
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in ["cpu", *(f"cuda:{i}" for i in range(gpus))]:
        title = f"{torch.__version__} on {torch.cuda.get_device_name(name) if name != 'cpu' else 'the CPU'}"
        try:
            wrong = not works_on(name)
        except RuntimeError as error:
            yield Finding(
                "torch", PROBLEM, f"{title}: {str(error).splitlines()[0][:120]}", "install the driver's torch"
            )
            continue
        if wrong:
            yield Finding("torch", PROBLEM, f"{title}: a product of matrices is wrong", "install torch anew")
        else:
            yield Finding("torch", OK, title)
    if not gpus and shutil.which("nvidia-smi"):
        why = "CUDA_VISIBLE_DEVICES hides them" if "CUDA_VISIBLE_DEVICES" in os.environ else "torch finds none"
        mend = "install a torch of the driver's CUDA version; without, all runs on the CPU"
        yield Finding("GPU", WARNING, f"there is an NVIDIA driver, and {why}", mend)


def works_on(device: str) -> bool:
    """Whether a product and its gradient come out right: of whole numbers, so exactly."""
    import torch

    x = torch.arange(16.0, device=device).reshape(4, 4).requires_grad_()
    (x @ x.T).sum().backward()
    column_sums = torch.arange(16.0).reshape(4, 4).sum(0)
    return torch.equal(x.grad.cpu(), 2 * column_sums.expand(4, 4))


def gpu_abilities() -> Iterator[Finding]:
    """What training makes use of on a GPU: bfloat16, and a compiler that works."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("GPU", OK, "computes in bfloat16")
    else:
        yield Finding("GPU", WARNING, "has no bfloat16", "teacher.precision, flow.precision: fp16, or no")
    yield compiler("cuda")


def compiler(device: str) -> Finding:
    """Whether torch.compile makes a small block for the device, and how long that takes."""
    import torch

    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.GroupNorm(4, 8), torch.nn.SiLU())
    block, x, began = block.to(device), torch.randn(2, 8, 8, 8, device=device), time.perf_counter()
    try:
        with torch.no_grad():
            apart = float((torch.compile(block)(x) - block(x)).abs().max())
    except Exception as error:  # whatever a compiler raises
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        mend = "IFM_COMPILE=off goes without; torch.compile needs Triton and a C compiler"
        return Finding("GPU", WARNING, f"torch.compile fails: {reason}", mend)
    if not apart < 0.01:  # TF32 on one side alone
        return Finding("GPU", WARNING, f"torch.compile computes wrongly, by {apart:.2g}", "IFM_COMPILE=off")
    return Finding("GPU", OK, f"torch.compile works, a block takes {time.perf_counter() - began:.1f} s")


def cores() -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > count:
        mend = "leave OMP_NUM_THREADS unset"
        yield Finding("cores", WARNING, f"{count}, and OMP_NUM_THREADS asks for {asked} threads", mend)
    else:
        yield Finding("cores", OK, f"{count}, {asked or count} threads")


# This checkout


def params(root: Path) -> Iterator[Finding]:
    from ifm import config

    try:
        found = config.load(root / "params.yaml")
    except ModuleNotFoundError as error:
        yield Finding("params.yaml", WARNING, "cannot be read", extras.missing(error) or str(error))
    except UserError as error:
        for line in str(error).splitlines():
            yield Finding("params.yaml", PROBLEM, line.removeprefix(f"{root}{os.sep}"), "mend it, or git checkout it")
    else:
        yield Finding("params.yaml", OK, f"{found.data.source}, {', '.join(found.dynamics)}, seed {found.seed}")


def speed(root: Path) -> Iterator[Finding]:
    """What a GPU trains of the configured network, in passes of a few seconds."""
    config = _config(root)
    if config is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    batch = config.flow.batch_size
    try:
        rate = training_rate(config, "cuda")
    except RuntimeError as error:  # memory, most of all
        mend = "flow.gradient_accumulation, flow.gradient_checkpointing: true, or a smaller flow.batch_size"
        yield Finding("speed", WARNING, f"a batch of {batch}: {str(error).splitlines()[0][:120]}", mend)
        return
    steps = config.flow.steps / (rate / batch)
    title = torch.cuda.get_device_name()
    yield Finding(
        "speed", OK, f"about {rate:,.0f} images/s in training on one {title}, flow.steps in {steps / 60:,.1f} min"
    )


def training_rate(config: Any, device: str, *, seconds: float = 3.0) -> float:
    """Samples a second, forward and backward, of the configured network in flow.precision, not compiled."""
    import torch

    from ifm.hardware.devices import memory_format
    from ifm.networks import build_network

    at, shape, batch = torch.device(device), _state_shape(config), config.flow.batch_size
    of_data = {"shape": shape, "modality": config.data.modality.name}
    network = build_network(**of_data, takes_anchor=False, **config.network.model_dump())
    network.to(at, memory_format=memory_format(at))
    x, c_noise = torch.randn(batch, *shape, device=at), torch.zeros(batch, device=at)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.flow.precision)

    def step() -> None:
        with torch.autocast(at.type, dtype, enabled=dtype is not None):
            loss = network(x, c_noise).float().square().mean()
        loss.backward()
        network.zero_grad()
        if at.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        step()
    count, began = 0, time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        step()
        count += 1
    return count * batch / (time.perf_counter() - began)


def disk(root: Path) -> Iterator[Finding]:
    config = _config(root)
    if config is None:
        return
    free, need = shutil.disk_usage(root).free, needed_bytes(config)
    text = f"{_gigabytes(free)} free, a run takes about {_gigabytes(need)}"
    mend = "free some, or move DVC's cache: dvc cache dir --local FOLDER"
    if free < need:
        yield Finding("disk", PROBLEM, text, mend)
    else:
        yield Finding("disk", WARNING if free < 2 * need else OK, text, mend if free < 2 * need else "")


def needed_bytes(config: Any) -> int:
    """Roughly what data, paths, samples and models of one run take, DVC's cache included."""
    import numpy as np

    from ifm.objectives import needs_paths
    from ifm.trajectories import stored_bytes

    data, values = config.data, math.prod(config.data.shape)
    size = np.dtype(data.modality.dtype).itemsize  # bytes of a value
    known = data.origin.count(data) if data.origin.count else None
    images, states = known or data.max_images or UNKNOWN_IMAGES, math.prod(_state_shape(config))
    stored = 2 * images * values * size  # raw and processed
    stored += 0 if data.encoder is None else images * (1 + data.random_flip) * 2 * states * 2  # mean and deviation
    samplers = 1 + (len(config.sample.flow_steps) - 1) * len(config.sample.flow_samplers)
    samplers += 0 if config.teacher.kind == "none" else len(config.evaluate.teacher_nfe)
    samples = samplers * config.sample.seeds * config.sample.count * values * size
    stored_paths = needs_paths(config.flow) and config.trajectories.store == "disk"
    paths = stored_bytes(config.trajectories.count, config.trajectories.stored_times, (states,)) if stored_paths else 0
    return CACHED * (stored + len(config.dynamics) * (samples + paths)) + MODELS


def _state_shape(config: Any) -> tuple[int, ...]:
    """Of what models work on. An encoder of the Hub, which is not asked here, is taken for Stable Diffusion's."""
    from ifm import latents
    from ifm.files import located
    from ifm.tracking import project_root

    data, root = config.data, project_root()
    if data.encoder is None:
        return data.shape
    if located(data.encoder, root).is_dir():
        return latents.look_up(data.encoder, revision=None, root=root).shape(data.shape)
    return 4, data.image_size // 8, data.image_size // 8


def dvc(root: Path) -> Iterator[Finding]:
    """Git, DVC's folder, and every remote."""
    if not shutil.which("git"):
        yield Finding("Git", PROBLEM, "not installed; DVC's experiments are commits", "install git")
    else:
        head = ["git", "-C", str(root), "rev-parse", "--verify", "-q", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
        if commit:
            yield Finding("Git", OK, f"commit {commit[:10]}")
            if missing := checkout.missing_identity(root):
                text = f"does not know your {' and '.join(missing)}: dvc exp run and sweeps end in an unexpected error"
                yield Finding("Git", WARNING, text, "; ".join(f"git config --global {key} ..." for key in missing))
        else:
            yield Finding("Git", PROBLEM, "this folder is no checkout with a commit", "git clone the project")
    if importlib.util.find_spec("dvc") is None:
        mend = "make setup; single stages work without: python -m pipeline.stages.NAME"
        yield Finding("DVC", WARNING, "not installed: no dvc repro, no sweeps, no sharing", mend)
        return
    if not (root / ".dvc" / "config").is_file():
        yield Finding("DVC", PROBLEM, "this folder has no .dvc/config", "git checkout .dvc, or dvc init")
        return
    yield Finding("DVC", OK, importlib.metadata.version("dvc"))
    yield from remotes(root)


def remotes(root: Path) -> Iterator[Finding]:
    """Whether each remote of DVC's answers."""
    from dvc.config import Config

    config = Config(dvc_dir=str(root / ".dvc"))
    default = config["core"].get("remote")
    if not config["remote"]:
        yield Finding("remote", OK, "none: results stay here (docs/sharing.md)")
    for name, options in config["remote"].items():
        title = f"{name}{' (default)' if name == default else ''}, {plain_url(options['url'])}"
        found: list[Finding] = []
        thread = threading.Thread(target=lambda n=name, t=title, f=found: f.append(_reach(root, n, t)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        yield from found or [
            Finding("remote", PROBLEM, f"{title}: no answer in {SECONDS} s", "check address, network and port")
        ]
    if config["remote"] and default is None:
        yield Finding("remote", WARNING, "none of them is the default", "dvc remote default NAME")


def _reach(root: Path, name: str, title: str) -> Finding:
    """Asks a remote whether its folder is there."""
    from dvc.repo import Repo

    secrets = f"see docs/sharing.md; keys and passwords: dvc remote modify --local {name} ..."
    try:
        with Repo(str(root)) as repo:
            remote = repo.cloud.get_remote(name)
            fs, path = remote.fs, remote.path
            there = fs.exists(path)
            if fs.protocol == "local":
                above = next(p for p in (Path(path), *Path(path).parents) if p.exists())
                if not os.access(above, os.W_OK):
                    return Finding("remote", PROBLEM, f"{title}: cannot be written to", f"check the rights of {above}")
            elif not there and fs.protocol == "s3" and not fs.exists(path.partition("/")[0]):
                return Finding("remote", PROBLEM, f"{title}: no such bucket, or no right to see it", secrets)
            elif not there and fs.protocol in ("http", "https"):  # which takes no answer for a file that is not there
                with suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(title.rpartition(", ")[2], timeout=SECONDS).close()
    except Exception as error:  # each kind of remote has its own
        kind = type(error).__name__
        if kind == "RemoteMissingDepsError" or isinstance(error, ImportError):
            kind = title.rpartition(", ")[2].partition("://")[0]
            mend = f"pip install -e '.[{kind}]' -c constraints.txt" if kind in EXTRAS else f"pip install 'dvc[{kind}]'"
            return Finding("remote", PROBLEM, f"{title}: its package is missing", mend)
        return Finding("remote", PROBLEM, f"{title}: cannot be reached ({kind})", secrets)
    return Finding("remote", OK, f"{title}: answers" + ("" if there else "; nothing was pushed yet"))


def plain_url(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def tracking(root: Path) -> Iterator[Finding]:
    """Whether MLflow's store opens or its server answers."""
    from ifm.tracking import unavailable

    reason = unavailable()
    if reason:
        yield Finding("tracking", WARNING, reason, "the pipeline runs all the same, and logs no runs")
        return
    from ifm.tracking import places, store

    with _in(root):
        uri = store.tracking_uri()
        own = not os.environ.get("MLFLOW_TRACKING_URI")
        file = root / places.STORE if own else places.sqlite_file(uri)
    if file is not None:
        yield from _sqlite(file.absolute() if file.is_absolute() else (root / file).resolve(), root)
    elif uri.partition(":")[0] in ("http", "https"):
        yield _server(plain_url(uri))
    else:
        found: list[Finding] = []
        thread = threading.Thread(target=lambda: found.append(_other_store(uri)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        mend = "check address, network and port, or unset MLFLOW_TRACKING_URI"
        yield from found or [Finding("tracking", PROBLEM, f"{plain_url(uri)}: no answer in {SECONDS} s", mend)]


@contextmanager
def _in(root: Path) -> Iterator[None]:
    """The current folder, for a moment: addresses may be relative to it."""
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def _sqlite(file: Path, root: Path) -> Iterator[Finding]:
    from ifm.tracking import places

    shown = file.relative_to(root) if file.is_relative_to(root) else file
    with _in(root):
        meant = places.sqlite_file(places.address(file))
        if meant is None or meant.resolve() != file.resolve():
            mend = "rename the folder, or set MLFLOW_TRACKING_URI to a store elsewhere"
            yield Finding("tracking", PROBLEM, f"{shown}: its path has characters that an address cannot hold", mend)
            return
    if not file.is_file():
        above = next(folder for folder in file.parents if folder.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield Finding("tracking", PROBLEM, f"{shown}: cannot be made, {above} takes no writes", "check its rights")
        else:
            yield Finding("tracking", OK, f"{shown}: made by the first run")
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            runs = connection.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
            own = file.resolve() == (root / places.STORE).resolve()
            elsewhere = list(places.strays(connection, root)) if own else []
    except sqlite3.Error as error:
        yield Finding("tracking", PROBLEM, f"{shown}: no store of MLflow's ({error})", "move it away, then make track")
        return
    yield Finding("tracking", OK, f"{shown}: {runs} runs")
    for folder in dict.fromkeys(folder for *_, folder in elsewhere):
        left = sum(bool(rest) and (folder / rest[1:]).is_dir() for *_, rest, where in elsewhere if where == folder)
        text = f"this project was at {folder.parent}, or is a copy of it; {left} runs have their artifacts there"
        mend = f"cp -rn {shlex.quote(str(folder))} . brings them; the next run does the rest"
        yield Finding("tracking", WARNING, text, mend if left else "the next run has the store point here")


def _other_store(uri: str) -> Finding:
    """Asks a store of another kind."""
    from ifm.tracking import store

    shown = store.without_secrets(uri)
    try:
        store.ask(uri)
    except Exception as error:  # each kind of store has its own
        return Finding("tracking", PROBLEM, f"{shown}: {store.brief(error)}", "or unset MLFLOW_TRACKING_URI")
    return Finding("tracking", OK, f"{shown}: answers")


def _server(url: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SECONDS):
            return Finding("tracking", OK, f"{url}: answers")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return Finding("tracking", WARNING, f"{url}: wants credentials (status {error.code})", mend)
        return Finding("tracking", PROBLEM, f"{url}: answers with status {error.code}", "is this MLflow's address?")
    except (OSError, ValueError) as error:
        reason = type(getattr(error, "reason", error)).__name__
        mend = "start the server (make ui), or unset MLFLOW_TRACKING_URI"
        return Finding("tracking", PROBLEM, f"{url}: no answer ({reason})", mend)


def weights(root: Path) -> Iterator[Finding]:
    """Whether the published weights that params.yaml asks for are there and have their digest."""
    config = _config(root)
    if config is None:
        return
    from ifm.metrics import weights as known

    asked = config.evaluate
    if asked.extractor not in ("inception", "dinov2"):
        yield Finding("weights", OK, f"extractor {asked.extractor} needs none")
        return
    try:
        if asked.extractor == "inception":
            digest = asked.weights_sha256 or known.INCEPTION_SHA256
            usual = known.INCEPTION_FOLDER / known.INCEPTION_FILE
            path = root / Path(asked.inception_path).expanduser() if asked.inception_path else None
            file = known.find_inception(str(path)) if path else usual if usual.is_file() else None
            mend = f"or put {known.INCEPTION_FILE} into {known.INCEPTION_FOLDER}, or name it in evaluate.inception_path"
        else:
            if importlib.util.find_spec("transformers") is None:
                yield Finding("weights", PROBLEM, "dinov2 needs transformers", "pip install -e '.[dinov2]'")
            digest = asked.weights_sha256 or known.DINOV2_SHA256
            path = root / Path(asked.dinov2_path).expanduser() if asked.dinov2_path else None
            file = known.find_dinov2(str(path)) if path else _in_the_hubs_cache()
            mend = "or name a folder with them in evaluate.dinov2_path"
        if file is None:
            text = f"those of {asked.extractor} are not here: the stage reference will fetch them"
            yield Finding("weights", WARNING, text, f"keep the network up, {mend} (docs/extractors.md)")
        else:
            known.verify(file, sha256=digest)
            yield Finding("weights", OK, f"{file}: the digest is right")
    except UserError as error:
        yield Finding("weights", PROBLEM, str(error))


def _in_the_hubs_cache() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    from ifm.metrics import weights as known

    names = (known.DINOV2_CONFIG, known.DINOV2_FILE)
    found = [try_to_load_from_cache(known.DINOV2_REPOSITORY, n, revision=known.DINOV2_REVISION) for n in names]
    return Path(found[-1]) if all(isinstance(file, str) for file in found) else None


def _config(root: Path) -> Any:
    """params.yaml, or None where it cannot be used, which `params` has said."""
    from ifm import config

    try:
        return config.load(root / "params.yaml")
    except (UserError, ModuleNotFoundError):
        return None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
