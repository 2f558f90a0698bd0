"""How cost grows: seconds and peak memory against image size, batch, paths, bank and samples, with fitted exponents."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks.data import write_rows
from benchmarks.powers import PowerLaw
from benchmarks.results import hardware, short
from benchmarks.subjects import Options, Subject, subjects
from benchmarks.timing import Contestant, Spread, interleave, timed
from benchmarks.training import clocked, flow_training
from ifm.anchors import AnchorBank, Visit
from ifm.data.arrays import ShardedArray
from ifm.hardware.memory import peak_memory
from ifm.metrics.classifier import Classifier
from ifm.metrics.distances import fid, moments
from ifm.metrics.extraction import extract
from ifm.metrics.extractors import ClassifierExtractor
from ifm.metrics.neighbours import Manifold, precision_recall
from ifm.sampling import draw_samples, flow_sampler
from ifm.trajectories import generate

CPU = torch.device("cpu")
PATH, IMAGE = (4, 3, 32, 32), (3, 32, 32)  # a stored trajectory and an image of the cifar10 preset
STEP_BATCH, SAMPLE_BATCH, READ_BATCH, BANK_BATCH = 32, 64, 64, 512
FEATURES = 64  # of the offline classifier
SHARDS, BLOCK = 4, 100
MOST_ROUNDS = 5
HOUR = 3600.0

Make = Callable[[int, Options, Path], Contestant]  # (size, options, an empty folder) -> a contestant


@dataclass(frozen=True)
class Point:
    """One size: seconds (median and quartiles over rounds) and MB at once; None where the system does not tell."""

    size: int
    seconds: float
    low: float
    high: float
    megabytes: float | None


@dataclass(frozen=True)
class Growth:
    """A measured curve, its two laws, and what binds first."""

    name: str
    size: str
    points: list[Point]
    time: PowerLaw
    memory: PowerLaw | None
    binds: str

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        made = {
            "points": [Point(**p) for p in values["points"]],
            "time": PowerLaw(**values["time"]),
            "memory": None if values["memory"] is None else PowerLaw(**values["memory"]),
        }
        return cls(**(values | made))

    def line(self) -> str:
        """A row of the table: | what | by | sizes | seconds | exponent | MB | exponent |."""
        first, last = self.points[0], self.points[-1]
        seconds = f"{short(first.seconds)} to {short(last.seconds)}"
        held = "" if self.memory is None else f"{short(first.megabytes)} to {short(last.megabytes)}"
        sizes = f"{first.size:,} to {last.size:,}"
        cells = (self.name, self.size, sizes, seconds, str(self.time), held, str(self.memory or ""))
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Curve:
    """What is measured at which sizes, and what theory says of it."""

    name: str
    size: str  # what the sizes count
    make: Make
    sizes: tuple[int, ...]
    quick: tuple[int, ...]  # for --quick; the first warms a process up before its memory is read
    time: float  # expected exponents
    memory: float | None  # None: not taken
    patience: float  # seconds from which on time binds
    at_scale: Callable[[PowerLaw, PowerLaw | None], str]


# What is measured


def at_side(side: int, options: Options) -> Subject:
    """The largest network that is measured on this device, at another image size."""
    subject = subjects(options)[-1]
    data = subject.config.data.model_copy(update={"image_size": side})
    return replace(subject, config=subject.config.model_copy(update={"data": data}), batch_size=STEP_BATCH)


def _step(subject: Subject, options: Options) -> Contestant:
    flow, train = flow_training(subject, options)
    return clocked(flow, train, steps=2, device=options.device)


def step_by_side(side: int, options: Options, folder: Path) -> Contestant:
    """A training step of the flow on images of side `side`."""
    return _step(at_side(side, options), options)


def step_by_batch(size: int, options: Options, folder: Path) -> Contestant:
    """A training step of the flow on a batch of `size`."""
    return _step(replace(subjects(options)[-1], batch_size=size), options)


def _sampling(subject: Subject, samples: int, batch_size: int, options: Options) -> Contestant:
    flow = subject.flow().to(options.device, memory_format=torch.channels_last).eval()
    draw = partial(
        draw_samples,
        flow_sampler(flow, kind="one_step", steps=1),
        dynamics=flow.dynamics,
        shape=subject.shape,
        count=samples,
        batch_size=batch_size,
        seed=0,
        device=options.device,
    )
    # The call's first batch is a warm-up besides those asked for.
    batches = -(-samples // batch_size)
    whole = timed(draw, device=options.device)
    return lambda: whole() * batches / (batches + 1)


def sample_by_side(side: int, options: Options, folder: Path) -> Contestant:
    """A batch of one-step samples of side `side`, drawn and rounded."""
    return _sampling(at_side(side, options), SAMPLE_BATCH, SAMPLE_BATCH, options)


def sampling_by_count(samples: int, options: Options, folder: Path) -> Contestant:
    """`samples` one-step samples, in batches of the preset's size."""
    subject = subjects(options)[-1]
    return _sampling(subject, samples, min(subject.config.sample.batch_size, samples), options)


def generation(paths: int, options: Options, folder: Path) -> Contestant:
    """`paths` trajectories of the teacher, into shards of a batch each."""
    subject, runs, accelerator = subjects(options)[-1], count(), options.accelerator()
    teacher = subject.teacher().to(options.device, memory_format=torch.channels_last).eval()
    values = subject.config.trajectories

    def work() -> None:
        generate(
            accelerator,
            teacher,
            teacher.dynamics,
            shape=subject.shape,
            count=paths,
            stored_times=values.stored_times,
            solver_steps=values.solver_steps,
            rho=values.rho,
            batch_size=64,
            shard_size=64,
            seed=0,
            work=folder / f"{paths}-{next(runs)}",
        )

    return timed(work, device=options.device)


def reading(paths: int, options: Options, folder: Path) -> Contestant:
    """A batch of random rows out of `paths` stored trajectories, other rows at every call."""
    rng = np.random.default_rng(0)
    parts = [folder / f"{paths}-{i}.npy" for i in range(SHARDS)]
    block = rng.standard_normal((BLOCK, *PATH), np.float32).astype(np.float16)
    write_rows(parts, block, blocks=paths // SHARDS // BLOCK)
    stored = ShardedArray(parts, stage="trajectories")
    return timed(lambda: stored[rng.integers(0, len(stored), READ_BATCH)], device=CPU, calls=4)


def bank(samples: int, options: Options, folder: Path) -> Contestant:
    """A batch's anchors read and written in a bank of `samples`, all of which have been visited."""
    kept, rng, positions = AnchorBank(samples, IMAGE, seed=0), np.random.default_rng(0), np.arange(BANK_BATCH)
    values = torch.randn(BANK_BATCH, *IMAGE).half()
    for start in range(0, samples, BANK_BATCH):
        rows = np.arange(start, min(start + BANK_BATCH, samples))
        kept.write(Visit(rows, np.ones(len(rows), np.int64)), values[: len(rows)])

    def work() -> None:
        visit = Visit(rng.integers(0, samples, BANK_BATCH), np.full(BANK_BATCH, 2))
        kept.read(visit, positions)
        kept.write(visit, values)

    return timed(work, device=CPU, calls=20)


def extraction(samples: int, options: Options, folder: Path) -> Contestant:
    """Features and class probabilities of `samples` images by the offline classifier."""
    channels, side = subjects(options)[0].shape[:2]
    model = Classifier(channels=channels, image_size=side, classes=10, width=FEATURES)
    extractor = ClassifierExtractor(model, device=options.device)
    images = np.random.default_rng(0).integers(0, 256, (samples, channels, side, side), dtype=np.uint8)
    return timed(partial(extract, extractor, images, batch_size=256), device=options.device)


def features(samples: int, *, seed: int) -> np.ndarray:
    """float32 [samples, FEATURES]."""
    return np.random.default_rng(seed).standard_normal((samples, FEATURES), np.float32)


def frechet(samples: int, options: Options, folder: Path) -> Contestant:
    """The moments of `samples` features and the Frechet distance to given moments."""
    real, fake = moments(features(1000, seed=1)), features(samples, seed=0)
    return timed(lambda: fid(moments(fake), real), device=CPU)


def neighbours(samples: int, options: Options, folder: Path) -> Contestant:
    """Precision, recall, density and coverage of `samples` features against as many."""
    fake, real = features(samples, seed=0), features(samples, seed=1)
    return timed(lambda: precision_recall(Manifold.of(fake, k=5), Manifold.of(real, k=5)), device=CPU)


# What it comes to


def duration(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, length in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= length * (2 if unit == "days" else 1):
            return f"{short(seconds / length)} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size_of(megabytes: float) -> str:
    return f"{short(megabytes / 1000)} GB" if megabytes >= 1000 else f"{short(megabytes)} MB"


def cost(time: PowerLaw, memory: PowerLaw | None, size: int) -> str:
    """Of a size, by the fit."""
    return duration(time.at(size)) + ("" if memory is None else f" and {size_of(memory.at(size))}")


def first_limit(time: PowerLaw, memory: PowerLaw | None, *, size: str, patience: float, gigabytes: float) -> str:
    """Whether memory is full or patience ends at the smaller size, and where."""
    full = float("inf") if memory is None else memory.size_at(gigabytes * 1000)
    long = time.size_at(patience)
    if full == long == float("inf"):
        return "nothing of it grows"
    if full <= long:
        return f"memory: {gigabytes:g} GB are full at {short(full)} {size}"
    return f"time: {duration(patience)} is reached at {short(long)} {size}"


def of_step_by_side(time: PowerLaw, memory: PowerLaw | None) -> str:
    scores = 4 * (64 * 64) ** 2 / 1e6
    return (
        f"at 256 pixels a step takes {cost(time, memory, 256)}. Self-attention, which the default has none of, is "
        f"quartic: at 64 x 64 the scores of one head are (64 x 64)^2 x 4 bytes = {short(scores)} MB an image"
    )


def of_sample_by_side(time: PowerLaw, memory: PowerLaw | None) -> str:
    return f"at 256 pixels a batch takes {cost(time, memory, 256)}"


def of_batch(time: PowerLaw, memory: PowerLaw | None) -> str:
    rates = [n / time.at(n) for n in (64, 1024)]
    return f"a batch of 1,024 takes {cost(time, memory, 1024)}: {short(rates[1] / rates[0])} times the images/s of 64"


def of_generation(time: PowerLaw, memory: PowerLaw | None) -> str:
    stored = 2 * int(np.prod(PATH)) * 500_000 / 1e9
    return (
        f"500,000 paths of this network take {duration(time.at(500_000))}; at the cifar10 preset's size they are "
        f"500,000 x 4 x 3 x 32 x 32 x 2 bytes = {short(stored)} GB of disk. Memory holds a shard: "
        "trajectories.shard_size paths, whatever their number"
    )


def of_reading(time: PowerLaw, memory: PowerLaw | None) -> str:
    each, here = 2 * int(np.prod(PATH)), hardware(CPU)["memory_gb"]
    return (
        f"the page cache binds: {here:g} GB hold {short(here * 1e9 / each)} paths of {short(each / 1e3)} kB. Beyond, "
        f"each row is a read of the disk of its own (not measured), {short(512 * each / 1e6)} MB in a batch of 512"
    )


def of_bank(time: PowerLaw, memory: PowerLaw | None) -> str:
    whole = 2 * 3 * 64 * 64 * 1_281_167 / 1e9
    return (
        f"ImageNet's 1,281,167 images at 64 x 64 are {short(whole)} GB, over all processes together, and as much again "
        "on disk for each of two checkpoints; with several processes the main one holds all of it to write one"
    )


def of_sampling(time: PowerLaw, memory: PowerLaw | None) -> str:
    return f"50,000 samples take {cost(time, memory, 50_000)}; three sets of one sampler {duration(time.at(150_000))}"


def of_extraction(time: PowerLaw, memory: PowerLaw | None) -> str:
    return f"50,000 images of this size take {cost(time, memory, 50_000)} with the small classifier"


def of_frechet(time: PowerLaw, memory: PowerLaw | None) -> str:
    return (
        f"50,000 samples take {cost(time, memory, 50_000)} at {FEATURES} dimensions. Operations are n d^2 + d^3: at "
        f"Inception's 2048 the moments' are {short((2048 / FEATURES) ** 2)} times as many, and the float32 features of "
        f"50,000 take {short(4 * 2048 * 50_000 / 1e6)} MB"
    )


def of_neighbours(time: PowerLaw, memory: PowerLaw | None) -> str:
    return (
        f"50,000 samples need {cost(time, memory, 50_000)} for a sampler and set. evaluate.neighbour_samples (10,000) "
        f"bounds it at {cost(time, memory, 10_000)}"
    )


COUNTS = (1000, 2000, 4000, 8000)
SIDES, SIDE, TINY = (8, 16, 32, 64), "pixels a side", (4, 8, 16)
CURVES = (
    Curve("training step, by side", SIDE, step_by_side, SIDES, TINY, 2, 2, 60, of_step_by_side),
    Curve("one-step sample, by side", SIDE, sample_by_side, SIDES, TINY, 2, 2, 60, of_sample_by_side),
    Curve(
        "training step, by batch", "images a batch", step_by_batch, (64, 128, 256, 512, 1024), TINY, 1, 1, 60, of_batch
    ),
    Curve("trajectories made", "paths", generation, (64, 128, 256, 512), TINY, 1, 0, 24 * HOUR, of_generation),
    Curve("trajectories read", "paths", reading, (2000, 4000, 8000, 16_000), (400, 800, 1600), 0, None, 1, of_reading),
    Curve("anchor bank", "samples", bank, (5000, 10_000, 20_000, 40_000), (512, 1024, 2048), 0, 1, 1, of_bank),
    Curve("sampling", "samples", sampling_by_count, COUNTS, (32, 64, 128), 1, 1, HOUR, of_sampling),
    Curve("extraction", "samples", extraction, (4000, 8000, 16_000, 32_000), (64, 128, 256), 1, 1, HOUR, of_extraction),
    Curve(
        "Frechet distance",
        "samples",
        frechet,
        (32_000, 64_000, 128_000, 256_000),
        (256, 512, 1024),
        1,
        1,
        HOUR,
        of_frechet,
    ),
    Curve("neighbours", "samples", neighbours, COUNTS, (64, 128, 256), 2, 1, HOUR, of_neighbours),
)


def growth(options: Options) -> Iterator[Growth]:
    """All curves."""
    for curve in CURVES:
        yield measure(curve, options)


def measure(curve: Curve, options: Options) -> Growth:
    """Times all sizes by turns in this process, and takes the memory of each in a process of its own."""
    sizes = curve.quick if options.quick else curve.sizes
    with tempfile.TemporaryDirectory() as folder:
        contestants = {str(n): curve.make(n, options, Path(folder)) for n in sizes}
        seconds = interleave(contestants, rounds=min(options.rounds, MOST_ROUNDS))
    del contestants
    points = []
    for n in sizes:
        spread = Spread.of(seconds[str(n)])
        megabytes = None if curve.memory is None else peak_of(curve, n, options)
        points.append(Point(n, spread.median, spread.low, spread.high, megabytes))
    time = PowerLaw.fit(sizes, [p.seconds for p in points], expected=curve.time)
    held, memory = [p.megabytes for p in points], None
    if all(held):
        memory = PowerLaw.fit(sizes, held, expected=curve.memory)
    return Growth(curve.name, curve.size, points, time, memory, binds(curve, time, memory, _gigabytes(options.device)))


def binds(curve: Curve, time: PowerLaw, memory: PowerLaw | None, gigabytes: float) -> str:
    """What binds first with so much memory, and what it comes to at the literature's scale."""
    limit = first_limit(time, memory, size=curve.size, patience=curve.patience, gigabytes=gigabytes)
    return f"{limit}; {curve.at_scale(time, memory)}."


def peak_of(curve: Curve, size: int, options: Options) -> float | None:
    """MB that making and doing it once take, in a fresh process, over what that held after its smallest size."""
    context = multiprocessing.get_context("forkserver")  # imports once, and has computed nothing: each child is fresh
    context.set_forkserver_preload(["benchmarks.growth", "diffusers.models.unets.unet_2d"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, CURVES.index(curve), size, options).result()


def _peak(index: int, size: int, options: Options) -> float | None:
    curve = CURVES[index]
    with tempfile.TemporaryDirectory() as folder:
        curve.make(curve.quick[0], options, Path(folder))()
        with peak_memory(options.device) as peak:
            curve.make(size, options, Path(folder))()
    return peak.megabytes


def _gigabytes(device: torch.device) -> float:
    """Of the device, or of the host."""
    if device.type == "cuda":
        return round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    return hardware(device)["memory_gb"]
