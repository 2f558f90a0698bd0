"""What figures of images made elsewhere depend on, in plain values: the protocol of `ifm evaluate`."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import ifm
from ifm.metrics.collections import Images
from ifm.metrics.comparison import Real
from ifm.metrics.extractors import Extractor
from ifm.metrics.legacy import LegacyInceptionExtractor
from ifm.metrics.request import Request
from ifm.metrics.statistics import CLEAN, LEGACY, Statistics


def facts_of(extractor: Extractor) -> dict[str, Any]:
    """What statistics say of their making, and must share with the samples'."""
    described = extractor.describe()
    mode = LEGACY if isinstance(extractor, LegacyInceptionExtractor) else CLEAN
    said = {key: described[key] for key in ("extractor", "checksum", "resize", "rounding")}
    return said | {"mode": mode if extractor.name == "inception" else None}


def protocol_of(
    request: Request,
    images: Mapping[str, Images],
    extractor: Extractor,
    real: Real,
    made: Mapping[str, Any] | None,
    width: int,
    stated: Statistics | None,
) -> dict[str, Any]:
    """Everything that the figures depend on: plain values for JSON."""
    each = len(images.get("samples", ())) // request.sets
    described = {name: _described(part) for name, part in images.items()}
    if stated is not None:
        of = {key: stated.said[key] for key in ("count", "image_shape") if stated.said.get(key)}
        described["reference"] = {"path": str(request.reference), "statistics": "mu, sigma"} | of
    if made is not None:
        described["reference"] = {
            "path": str(request.reference),
            "count": len(real.features),
            "shape": list(made["image_shape"]),
            "split": made["split"],
        }
        for name in ("train", "unseen"):
            features = getattr(real, name)
            described.setdefault(name, {"path": str(request.reference), "count": len(features)})
    return {
        **{name: described[name] for name in ("samples", "reference", "train", "unseen") if name in described},
        **extractor.describe(),
        "dimension": width,
        "image_size": None if request.resize is None else request.resize.size,
        "resample": None if request.resize is None else request.resize.resample,
        "value_range": request.value_range,
        **({} if "samples" not in images else {"sets": request.sets, "samples_per_set": each}),
        **({} if stated or "samples" not in images else _measured(request, real, each)),
        "batch_size": request.batch_size,
        "device": extractor.device.type,
        "versions": {"ifm": ifm.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "scipy", "pillow", "clean-fid")},
    }


def _measured(request: Request, real: Real, each: int) -> dict[str, Any]:
    """How the figures that compare features one by one are computed."""
    how = request.measures
    return {
        "neighbours": how.neighbours,
        "neighbour_samples": how.neighbour_samples,
        "kid_subsets": how.kid_subsets,
        "kid_subset_size": min(how.kid_subset_size, each, len(real.features)),
        "seed": how.seed,
    }


def _described(images: Images) -> dict[str, Any]:
    pictures = images.pictures
    return {
        "path": str(pictures.path),
        "count": len(images),
        "shape": list(images.shape),
        "passed_over": pictures.passed_over,
    }
