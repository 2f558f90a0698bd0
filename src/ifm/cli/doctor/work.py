"""What the run of params.yaml needs: time, room on the disk, weights."""

import importlib.util
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ifm import extras
from ifm.cli.doctor.findings import OK, PROBLEM, WARNING, Finding
from ifm.errors import UserError

UNKNOWN_IMAGES = 60_000  # of a data set whose size is not known before it is fetched
MODELS = 200_000_000  # bytes of networks, checkpoints and the runs' store, roughly
CACHED = 2  # copies of an output: in the folder and in DVC's cache


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
        "speed",
        OK,
        f"at least {rate:,.0f} images/s in training on one {title}, flow.steps in {steps / 60:,.1f} min at most",
    )


def training_rate(config: Any, device: str, *, seconds: float = 3.0) -> float:
    """Samples a second, forward and backward, of the configured network in flow.precision, with our kernels on a GPU.

    Training is faster than this: there it records its steps.
    """
    import torch

    from ifm.hardware.devices import memory_format
    from ifm.networks import build_network
    from ifm.networks.fused import fuse

    at, shape, batch = torch.device(device), _state_shape(config), config.flow.batch_size
    of_data = {"shape": shape, "modality": config.data.modality.name}
    network = build_network(**of_data, takes_anchor=False, **config.network.model_dump())
    network.to(at, memory_format=memory_format(at))
    fuse(network, at)
    x, c_noise = torch.randn(batch, *shape, device=at), torch.zeros(batch, device=at)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.flow.precision)

    def step() -> None:
        with torch.autocast(at.type, dtype, enabled=dtype is not None):
            loss = network(x, c_noise).float().square().mean()
        loss.backward()
        network.zero_grad()

    def taken(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if at.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    taken(2)
    count = max(1, round(seconds / taken(1)))
    return count * batch / taken(count)


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


def weights(root: Path) -> Iterator[Finding]:
    """Whether the published weights that params.yaml asks for are there and have their digest."""
    config = _config(root)
    if config is None:
        return
    from ifm.metrics import weights as known

    asked = config.evaluate
    if asked.extractor not in ("inception", "dinov2", "clap"):
        yield Finding("weights", OK, f"extractor {asked.extractor} needs none")
        return
    try:
        if asked.extractor == "inception":
            digest = asked.weights_sha256 or known.INCEPTION_SHA256
            usual = known.INCEPTION_FOLDER / known.INCEPTION_FILE
            path = root / Path(asked.inception_path).expanduser() if asked.inception_path else None
            file = known.find_inception(str(path)) if path else usual if usual.is_file() else None
            mend = f"or put {known.INCEPTION_FILE} into {known.INCEPTION_FOLDER}, or name it in evaluate.inception_path"
        elif asked.extractor == "clap":
            yield from _transformers(asked.extractor)
            digest, mend = asked.weights_sha256, ""
            file = known.find_clap(str(root / Path(asked.clap_path).expanduser()))
        else:
            yield from _transformers(asked.extractor)
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


def _transformers(extractor: str) -> Iterator[Finding]:
    """A problem where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        yield Finding("weights", PROBLEM, f"{extractor} needs transformers", "pip install -e '.[dinov2]'")


def _in_the_hubs_cache() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    from ifm.metrics import weights as known

    names = (known.TRANSFORMERS_CONFIG, known.TRANSFORMERS_FILE)
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
