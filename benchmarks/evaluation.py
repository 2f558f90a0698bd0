"""Evaluation: the Frechet distance against clean-fid's, and the offline classifier's features."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.results import Result, Skipped, Target
from benchmarks.subjects import Options, digits
from benchmarks.timing import interleave, timed
from ifm.metrics.classifier import Classifier
from ifm.metrics.distances import Moments, fid, moments
from ifm.metrics.extraction import extract
from ifm.metrics.extractors import ClassifierExtractor
from ifm.metrics.neighbours import nearest, place_for
from ifm.modalities.images import to_unit

CPU = torch.device("cpu")  # distances are computed on the host
FEATURES = 3  # rows for each dimension: a covariance of full rank


def random_moments(dimension: int, *, seed: int) -> Moments:
    """Of features whose variances fall as 1 / k, as those of networks do, in a random mixture."""
    rng = np.random.default_rng(seed)
    scaled = rng.standard_normal((FEATURES * dimension, dimension)) * np.arange(1, dimension + 1) ** -0.5
    return moments((scaled @ rng.standard_normal((dimension, dimension)) / dimension**0.5).astype(np.float32))


def frechet(options: Options) -> Iterator[Result]:
    """`fid` against clean-fid's `frechet_distance` from the same moments, and how far the values are apart."""
    try:
        from cleanfid.fid import frechet_distance
    except ImportError as error:
        yield Result.skipped("Frechet distance", Skipped(f"clean-fid cannot be imported ({error})"), peer="clean-fid")
        return
    apart = []
    for d in (64, 128) if options.quick else (64, 512, 2048):
        a, b = random_moments(d, seed=0), random_moments(d, seed=1)
        peer = partial(frechet_distance, a.mean, a.covariance, b.mean, b.covariance)
        calls = 50 if d == 64 else 1
        contestants = {
            "ours": timed(partial(fid, a, b), device=CPU, calls=calls),
            "peer": timed(peer, device=CPU, calls=calls),
        }
        seconds = interleave(contestants, rounds=min(options.rounds, 5), warmups=1 if d < 2048 else 0)
        yield Result.rate(
            f"Frechet distance, {d} dimensions",
            "distances/s",
            amount=1,
            seconds=seconds["ours"],
            peer="clean-fid",
            peers=seconds["peer"],
            target=Target("ratio", ">=", 4) if d == 2048 else None,
        )
        theirs = float(peer())
        apart.append(abs(fid(a, b) - theirs) / abs(theirs))
    yield Result.of(
        "Frechet distance, difference of values",
        max(apart),
        "relative",
        peer="clean-fid",
        target=Target("value", "<=", 1e-6),
        note="the largest over the dimensions above",
    )


def classifier(options: Options) -> Iterator[Result]:
    """Features/s of the offline extractor, against its network's bare forward passes."""
    subject = digits(options)
    images, size = np.tile(subject.images(), (1 if options.quick else 4, 1, 1, 1)), 1024
    channels, side = subject.shape[:2]
    width = subject.config.evaluate.classifier.width
    model = Classifier(channels=channels, image_size=side, classes=10, width=width)
    extractor = ClassifierExtractor(model, device=options.device)
    x = to_unit(images).to(options.device)

    @torch.inference_mode()
    def forward() -> None:
        for part in x.split(size):
            extractor.model(part)

    ours = partial(extract, extractor, images, batch_size=size)
    contestants = {"ours": timed(ours, device=options.device), "forward": timed(forward, device=options.device)}
    seconds = interleave(contestants, rounds=options.rounds)
    yield Result.rate(
        "features of the offline classifier: digits",
        "images/s",
        amount=len(images),
        seconds=seconds["ours"],
        peer="bare forward passes",
        peers=seconds["forward"],
        note="with class probabilities",
    )


def neighbours(options: Options) -> Iterator[Result]:
    """Nearest neighbours in feature space, on the GPU where there is one, against scipy's distances on the host."""
    from scipy.spatial.distance import cdist

    rng, d = np.random.default_rng(0), 128
    samples, train = (500, 2_000) if options.quick else (2_000, 10_000)
    a, b = (rng.standard_normal((n, d)).astype(np.float32) for n in (samples, train))
    contestants = {
        "ours": timed(partial(nearest, a, b), device=options.device),
        "scipy": timed(lambda: cdist(a, b).argmin(axis=1), device=CPU),
    }
    seconds = interleave(contestants, rounds=min(options.rounds, 3))
    yield Result.rate(
        f"nearest of {train:,} neighbours, {d} features",
        "samples/s",
        amount=samples,
        seconds=seconds["ours"],
        peer="scipy, one thread",
        peers=seconds["scipy"],
        note=f"float64, on {place_for(a, b).type}",
    )
