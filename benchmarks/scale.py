"""docs/scale.md's tables: what large data sets cost, from measured rates: `python -m benchmarks.scale`.

The rates are those of the newest file of a GPU in benchmarks/results, else those in benchmarks/scale.json.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import table
from ifm.files import read_json, write_text

PAGE, BY_HAND = table.ROOT / "docs" / "scale.md", Path(__file__).with_suffix(".json")
GPUS = (1, 8, 64)
BYTES_A_PARAMETER = 20  # float32: weights, gradients, two moments, an average
BYTES_AN_IMAGE_IN_MEMORY = 24  # an epoch's order, a label, a digest: 8 each
COPIES = 2  # of an output: in the folder and in DVC's cache, where the file system links neither
PASSES = 3  # forward and backward, in forward passes
SUBJECT = "cifar10"  # whose rows are read


@dataclass(frozen=True)
class Rates:
    """What a GPU and a host do."""

    gpu: str
    made: str
    peak_tflops: float
    training_share: float  # of the peak
    solving_share: float
    decode_microseconds: float  # of a JPEG of 500 x 375, in fetch and in preprocess, one core
    read_gb_per_second: float  # random rows from a disk
    node_gb_per_second: float  # between nodes
    gpus_a_node: int


def rates() -> Rates:
    """From a measured run where there is one."""
    found = read_json(BY_HAND)
    for document in table.results():
        if document["hardware"]["gpu"]:
            found |= of_run(document, flops=forward_flops(SUBJECT))
    return Rates(**found)


def of_run(document: Mapping[str, Any], *, flops: float) -> dict[str, Any]:
    """Peak and shares in a run's rows; what it lacks stays as it was measured by hand. flops: of a forward pass."""
    rows = {row["name"]: row["value"] for row in document["results"] if row["value"] is not None}
    share = rows.get(f"model FLOPs utilisation: teacher, {SUBJECT}")
    rate = rows.get(f"training step: teacher, {SUBJECT}")
    if share is None or rate is None:
        return {}
    peak = rate * PASSES * flops / share
    made = {
        "gpu": document["hardware"]["gpu"],
        "made": f"by `{document['command']}`, {document['date']}",
        "peak_tflops": peak / 1e12,
        "training_share": share,
    }
    solved = rows.get(f"evaluations in trajectories: {SUBJECT}")
    return made | ({} if solved is None else {"solving_share": solved * flops / peak})


# --- what there is to do ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A data set and a preset's budgets, for one dynamics. latents: an autoencoder's, of pictures of 256 pixels."""

    name: str
    preset: str
    images: int
    shape: tuple[int, int, int]
    encoded_bytes: float  # of an image as it is fetched
    value_bytes: int = 1
    latents: bool = False


WORKS = (
    Work("ImageNet, 64 pixels", "imagenet64", 1_281_167, (3, 64, 64), 110e3),
    Work("ImageNet, 256 pixels in latents", "imagenet64", 1_281_167, (4, 32, 32), 110e3, value_bytes=2, latents=True),
    Work("100 million images, 64 pixels", "imagenet64", 100_000_000, (3, 64, 64), 110e3),
)


@dataclass(frozen=True)
class Stage:
    """flops: on GPUs; share: what of the peak they reach; core_hours: on the host; terabytes: of its outputs."""

    name: str
    flops: float = 0.0
    share: float = 1.0
    core_hours: float = 0.0
    terabytes: float = 0.0


def stages(work: Work, found: Rates) -> list[Stage]:
    """The stages that cost: those beside them, reference, select and evaluate, read samples once or a few times."""
    from benchmarks.subjects import preset

    config = preset(work.preset)
    forward, values = forward_flops(work.preset, shape=work.shape), math.prod(work.shape)
    decoding = work.images * found.decode_microseconds / 3.6e9
    teacher, flow, paths = config.teacher, config.flow, config.trajectories
    # D_c and D_0 of a guided teacher, with guidance at all noise levels: at most this.
    led = 2 if config.guidance.kind != "none" and config.guidance.scale != 1.0 else 1
    nfe = led * (2 * paths.solver_steps - 1)
    anchored = config.anchor.self_probability if config.anchor.policy == "self" else 0.0
    drawn = config.sample.seeds * config.sample.count
    evaluations = led * sum(config.evaluate.teacher_nfe) + sum(config.sample.flow_steps)
    samplers = len(config.evaluate.teacher_nfe) + len(config.sample.flow_steps)
    encode, decode = autoencoder_flops() if work.latents else (0.0, 0.0)
    return [
        Stage("fetch", core_hours=decoding, terabytes=COPIES * work.images * work.encoded_bytes / 1e12),
        Stage(
            "preprocess",
            flops=work.images * encode,
            share=found.training_share,
            core_hours=decoding,
            terabytes=COPIES * work.images * values * work.value_bytes / 1e12,
        ),
        Stage("teacher", teacher.steps * teacher.batch_size * PASSES * forward, found.training_share),
        Stage(
            "trajectories",
            paths.count * nfe * forward,
            found.solving_share,
            terabytes=COPIES * 2 * paths.count * (paths.stored_times - 1) * values / 1e12,
        ),
        Stage("flow", flow.steps * flow.batch_size * (PASSES + anchored) * forward, found.training_share),
        Stage(
            "sample",
            drawn * (evaluations * forward + samplers * decode),
            found.solving_share,
            terabytes=COPIES * drawn * samplers * values / 1e12,
        ),
    ]


def gpu_hours(stage: Stage, found: Rates) -> float:
    """On one GPU at its measured share of the peak."""
    return stage.flops / (found.peak_tflops * 1e12 * stage.share) / 3600


@cache
def forward_flops(name: str, *, shape: tuple[int, int, int] | None = None) -> float:
    """Of one image through a preset's network, counted on tensors without memory."""
    return _network(name, shape)[0]


@cache
def parameters(name: str, *, shape: tuple[int, int, int] | None = None) -> int:
    return _network(name, shape)[1]


@cache
def _network(name: str, shape: tuple[int, int, int] | None) -> tuple[float, int]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.subjects import preset
    from ifm.networks import build_network

    config = preset(name)
    with torch.device("meta"):
        network = build_network(shape=shape or config.data.shape, takes_anchor=False, **config.network.model_dump())
        inputs = torch.empty(1, *(shape or config.data.shape)), torch.empty(1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs)
    return float(counter.get_total_flops()), sum(p.numel() for p in network.parameters())


@cache
def autoencoder_flops() -> tuple[float, float]:
    """Of a picture of 256 pixels through the encoder and the decoder that latent diffusion commonly takes."""
    import torch
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    found, kinds = [], {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"), torch.no_grad():
        model = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **kinds)
        for part, shape in ((model.encoder, (1, 3, 256, 256)), (model.decoder, (1, 4, 32, 32))):
            with FlopCounterMode(display=False) as counter:
                part(torch.empty(shape))
            found.append(float(counter.get_total_flops()))
    return found[0], found[1]


# --- the page ---------------------------------------------------------------------------------------------------------


def section(work: Work, found: Rates) -> str:
    """A data set: its stages on 1, 8 and 64 GPUs, and what binds."""
    from benchmarks.subjects import preset

    rows = stages(work, found)
    forward = forward_flops(work.preset, shape=work.shape)
    lines = [
        f"### {work.name}",
        "",
        f"{work.images:,} images {list(work.shape)}; network of {parameters(work.preset, shape=work.shape) / 1e6:,.0f} "
        f"million parameters, {forward / 1e9:,.0f} GFLOP a forward pass.",
        "",
        f"| stage | GPU hours | {' | '.join(f'on {n}' for n in GPUS)} | core hours | disk, TB |",
        f"|---|---|{'---|' * len(GPUS)}---|---|",
    ]
    for stage in [*rows, _sum(rows, found)]:
        hours = gpu_hours(stage, found)
        walls = " | ".join(in_hours(hours / n) for n in GPUS)
        lines.append(
            f"| {stage.name} | {amount(hours)} | {walls} | {amount(stage.core_hours)} | {amount(stage.terabytes)} |"
        )
    return "\n".join([*lines, "", *binds(work, found, preset(work.preset))])


def _sum(rows: list[Stage], found: Rates) -> Stage:
    """All stages as one that takes as long as they do."""
    hours = sum(gpu_hours(stage, found) for stage in rows)
    flops = hours * 3600 * found.peak_tflops * 1e12
    return Stage("**all**", flops, 1.0, sum(s.core_hours for s in rows), sum(s.terabytes for s in rows))


def binds(work: Work, found: Rates, config: Any) -> Iterator[str]:
    """Memory, network and disk beside what a step computes."""
    forward, count = forward_flops(work.preset, shape=work.shape), parameters(work.preset, shape=work.shape)
    batch = config.teacher.batch_size
    images = found.peak_tflops * 1e12 * found.training_share / (PASSES * forward)  # a second, on one GPU
    most = max(GPUS)
    step = batch / (most * images)
    nodes = most // found.gpus_a_node
    exchange = 2 * 4 * count * (nodes - 1) / nodes / (found.node_gb_per_second * 1e9)
    read = most * images * math.prod(work.shape) * work.value_bytes / 1e9
    order = BYTES_AN_IMAGE_IN_MEMORY * work.images / 1e9
    yield table.wrapped(
        f"- **Memory**: {BYTES_A_PARAMETER * count / 1e9:.1f} GB a GPU for weights, gradients, moments and average, "
        f"besides activations; {order:.2g} GB a process on the host for orders, labels and digests, "
        f"{found.gpus_a_node * order:.2g} GB a node."
    )
    yield table.wrapped(
        f"- **Network**: on {most} GPUs a step of {batch} images computes for {1e3 * step:,.0f} ms, and {nodes} nodes "
        f"exchange gradients in {1e3 * exchange:,.0f} ms at {found.node_gb_per_second:g} GB/s a node: "
        + ("hidden behind the backward pass." if exchange < 0.5 * step else "it binds; take larger batches.")
    )
    yield table.wrapped(
        f"- **Reading**: {images:,.0f} images/s a GPU, {read:.2g} GB/s for {most}; a disk gives about "
        f"{found.read_gb_per_second:g} GB/s of random rows, so "
        + ("one is enough." if read < found.read_gb_per_second else "each node needs a copy of its own.")
    )


def amount(value: float) -> str:
    """Two significant digits; nothing for zero."""
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def in_hours(hours: float) -> str:
    """A time in readable units."""
    if not hours:
        return ""
    units = ((48, "d", 1 / 24), (1, "h", 1), (1 / 60, "min", 60), (0, "s", 3600))
    unit, scale = next((unit, scale) for least, unit, scale in units if hours >= least)
    return f"{amount(hours * scale)} {unit}"


def page(text: str) -> str:
    """The page with its tables made again."""
    found = rates()
    intro = table.wrapped(
        f"On {found.gpu}: {found.peak_tflops:,.0f} TFLOP/s of bf16 at most, of which training reaches "
        f"{100 * found.training_share:.1f} % and solving {100 * found.solving_share:.1f} % ({found.made})."
    )
    return table.between_marks(text, [intro, *(section(work, found) for work in WORKS)], name=PAGE.name)


def write() -> None:
    """Rewrites docs/scale.md."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    write()
