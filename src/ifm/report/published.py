"""Figures from the literature, for a page whose own were found by the same protocol."""

import re
from dataclasses import dataclass
from typing import Any

from ifm.metrics.weights import INCEPTION_SHA256
from ifm.report import names
from ifm.report.contents import Report

SAMPLES = 50_000  # that published FIDs are of


@dataclass(frozen=True)
class Published:
    """An FID from a paper."""

    method: str
    nfe: int
    fid: str
    kind: str
    arxiv: str

    @property
    def source(self) -> str:
        return f"arXiv {self.arxiv}"


@dataclass(frozen=True)
class Benchmark:
    """A data set with the protocol that its published FIDs share: Inception, 50,000 samples, the train split."""

    title: str
    name: str  # a pattern of the data set's names
    shape: tuple[int, int, int]
    images: int  # of the train split
    figures: tuple[Published, ...]


CIFAR10 = Benchmark(
    "CIFAR-10, without classes",
    r"cifar-?10(?!\d)",
    (3, 32, 32),
    50_000,
    (
        Published("SiDA", 1, "1.50", "distilled, adversarial", "2410.14919"),
        Published("TCM", 1, "2.46", "consistency", "2410.14895"),
        Published("CMT", 1, "2.74", "consistency", "2509.24526"),
        Published("iCT-deep", 1, "2.51", "consistency", "2310.14189"),
        Published("iCT", 1, "2.83", "consistency", "2310.14189"),
        Published("sCT", 1, "2.85", "consistency", "2410.11081"),
        Published("Integration Flow, VE", 1, "2.86", "integration flow", "2504.20179"),
        Published("Integration Flow, PFGM++", 1, "2.91", "integration flow", "2504.20179"),
        Published("MeanFlow", 1, "2.92", "mean velocity", "2505.13447"),
        Published("Integration Flow, rectified flow", 1, "3.36", "integration flow", "2504.20179"),
        Published("ECT", 1, "3.60", "consistency", "2406.14548"),
        Published("CMT", 2, "1.97", "consistency", "2509.24526"),
        Published("ECT", 2, "2.11", "consistency", "2406.14548"),
        Published("EDM", 35, "1.97", "teacher, Heun", "2206.00364"),
        Published("PFGM++", 35, "1.91", "teacher, Heun", "2302.04265"),
    ),
)
IMAGENET256 = Benchmark(
    "ImageNet 256 × 256, by class",
    r"imagenet|ilsvrc",
    (3, 256, 256),
    1_281_167,
    (
        Published("Drifting", 1, "1.54", "drifting", "2602.04770"),
        Published("FACM", 1, "1.70", "consistency, distilled", "2507.03738"),
        Published("iMF-XL/2", 1, "1.72", "mean velocity", "2512.02012"),
        Published("MeanFlow-XL/2", 1, "3.43", "mean velocity", "2505.13447"),
        Published("FACM", 2, "1.32", "consistency, distilled", "2507.03738"),
        Published("iMF-XL/2", 2, "1.54", "mean velocity", "2512.02012"),
    ),
)
BENCHMARKS = (CIFAR10, IMAGENET256)


def benchmark_of(report: Report) -> Benchmark | None:
    """The benchmark whose published figures stand beside the page's own; None where the protocols differ.

    Data set, size and number of real images, extractor with its weights, and the number of samples must agree.
    """
    reference, classes = report.reference, bool(report.asked)
    counts = names.of_models(report.summary)["n_samples"]
    if not _of_the_papers(reference) or counts.isna().any() or counts.min() < SAMPLES:
        return None
    for benchmark in BENCHMARKS:
        same = tuple(reference.get("image_shape") or ()) == benchmark.shape
        whole = reference.get("n_train") == benchmark.images
        if same and whole and classes == (benchmark is IMAGENET256) and re.search(benchmark.name, report.data.lower()):
            return benchmark
    return None


def _of_the_papers(reference: Any) -> bool:
    """Whether the real side is the published Inception's features of the train split."""
    known = {"extractor": "inception", "checksum": INCEPTION_SHA256, "split": "train"}
    return all(reference.get(key) == value for key, value in known.items())
