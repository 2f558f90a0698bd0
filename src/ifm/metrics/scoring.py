"""Figures of images made elsewhere by the pipeline's protocol: what `ifm evaluate` computes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from ifm.config import MOST_FEATURES, ClassifierConfig, EvaluateConfig
from ifm.errors import UserError
from ifm.files import file_sha256
from ifm.metrics import arrays, catalogue, cautions
from ifm.metrics.classes import class_figures
from ifm.metrics.collections import Images, inspected
from ifm.metrics.comparison import Comparison, Found, Real
from ifm.metrics.described import facts_of, protocol_of
from ifm.metrics.evaluation import closest_pairs
from ifm.metrics.extraction import extract
from ifm.metrics.extractors import (
    Dinov2Extractor,
    Extractor,
    FeatureError,
    InceptionExtractor,
    PixelExtractor,
    dinov2_class,
)
from ifm.metrics.figures import fid_trend, image_figures, over_sets
from ifm.metrics.legacy import LegacyInceptionExtractor
from ifm.metrics.reference import Reference, load_reference
from ifm.metrics.request import Request, check_counts, check_request, check_shapes, opened_pictures, reference_metadata
from ifm.metrics.statistics import (
    LEGACY,
    KnownMoments,
    Statistics,
    agreed,
    check_against,
    is_statistics,
    read_statistics,
)
from ifm.metrics.weights import ExtractorError, find_clap, find_dinov2, find_inception
from ifm.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

# What needs no more of the real images than their moments.
OF_MOMENTS = ("fid", "inception_score", "inception_score_parts", "inception_score_deviation")
FINDERS = {"inception": find_inception, "dinov2": find_dinov2, "clap": find_clap}  # of weights, by extractor
# What the pipeline's messages call the options of this command.
_OPTIONS = {
    "evaluate.inception_path": "--weights",
    "evaluate.dinov2_path": "--weights",
    "evaluate.clap_path": "--weights",
    "evaluate.weights_sha256:": "--weights-sha256",
    "evaluate.extractor: classifier or pixels": "--extractor pixels",
    "evaluate.extractor: dinov2": "--extractor dinov2",
    "evaluate.extractor: clap": "--extractor clap",
    ", then run `dvc repro` again (nothing else is lost)": "",
    ", then run `dvc repro` again": "",
}


@dataclass(frozen=True)
class Score:
    """What was found, and how."""

    protocol: dict[str, Any]
    figures: dict[str, Any]
    warnings: list[str]  # sentences that speak against the figures (ifm.metrics.cautions)
    pairs: np.ndarray | None  # the closest samples, then their training images: uint8 [2 p, C, H, W]
    real: Statistics | None  # of real images, in the form that others read


def score(request: Request, *, device: torch.device, accelerator: "Accelerator | None" = None) -> Score:
    """Judges the samples, images or others (`ifm.metrics.arrays`); see docs/evaluation.md.

    Processes share the work and find the same.

    Raises UserError, before any feature is taken, where the images do not fit each other or the figures.
    """
    made = reference_metadata(request.reference)
    kind = arrays.kind_of(request, made)
    if kind is not None:
        arrays.check(request, kind, made)
        reference = None if made is None else _load(request, made, device)
        told = arrays.judge(request, kind, reference, device=device, accelerator=accelerator)
        return Score(*told, pairs=None, real=None)
    stated = read_statistics(request.reference) if is_statistics(request.reference) else None
    check_request(request, made, stated)
    if stated is not None:
        name, mode = agreed(request.reference, stated, extractor=request.extractor, mode=request.mode)
        request = dataclasses.replace(request, extractor=name, mode=mode)
    opened = opened_pictures(request, made, stated)
    check_counts(request, opened, made, stated)
    images = {
        name: inspected(pictures, resize=request.resize, accelerator=accelerator) for name, pictures in opened.items()
    }
    check_shapes(request, images, made)
    reference = None if made is None else _load(request, made, device)
    extractor = _extractor(request, device) if reference is None else reference.extractor
    width = extractor.dimension or int(np.prod(next(iter(images.values())).shape if images else made["image_shape"]))
    if width > MOST_FEATURES:
        raise UserError(
            f"--extractor {extractor.name}: {width} features an image, {MOST_FEATURES} are the most; make the images "
            "smaller by --image-size or use --extractor inception"
        )
    facts = facts_of(extractor)
    if stated is not None:
        check_against(request.reference, stated, facts, width=width)
    found = {
        name: _features(extractor, part, name, batch_size=request.batch_size, accelerator=accelerator)
        for name, part in images.items()
    }
    real = _real(request, reference, found, stated)
    samples = found.get("samples")
    shape = made["image_shape"] if made else list(images["reference"].shape) if "reference" in images else None
    return Score(
        protocol=protocol_of(request, images, extractor, real, made, width, stated),
        figures={} if samples is None else _figures(request, samples, real, reference),
        warnings=_cautions(request, samples, real, made, width),
        pairs=_pairs(images, samples, real) if request.pairs else None,
        real=stated or Statistics(real.moments, facts | {"count": len(real.features), "image_shape": shape}),
    )


def _load(request: Request, made: Mapping[str, Any], device: torch.device) -> Reference:
    """The reference folder. Raises UserError where it is damaged, or was made with other weights."""
    try:
        config = _evaluate_config(request, made)
        _check_weights(request, made)
        return load_reference(request.reference, config, device=device)
    except ExtractorError as error:
        raise UserError(_in_options(error)) from error
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"--reference {request.reference}: is no whole reference folder ({type(error).__name__}: {reason}); run "
            "`dvc repro --force reference`"
        ) from error


def _evaluate_config(request: Request, made: Mapping[str, Any]) -> EvaluateConfig:
    """What the folder was made with; how its classifier was trained matters no more."""
    path = None if request.weights is None else str(request.weights)
    how = request.measures
    return EvaluateConfig(
        extractor=made["extractor"],
        inception_path=path,
        dinov2_path=path,
        clap_path=path,
        weights_sha256=made["checksum"] if made["extractor"] in FINDERS else None,
        classifier=ClassifierConfig(width=made["dimension"], steps=10, batch_size=1, lr=1.0, seed=0),
        reference_split=made["split"],
        kid_subsets=how.kid_subsets,
        kid_subset_size=how.kid_subset_size,
        neighbours=how.neighbours,
        neighbour_samples=how.neighbour_samples,
        sliced_projections=how.sliced_projections,
        guidance_scales=[],
        teacher_nfe=[1],
    )


def _check_weights(request: Request, made: Mapping[str, Any]) -> None:
    """Raises UserError where the weights that were given are not the folder's."""
    if request.weights is None or made["extractor"] not in FINDERS:
        return
    found = file_sha256(FINDERS[made["extractor"]](str(request.weights)))
    if found != made["checksum"]:
        raise UserError(
            f"--weights {request.weights}: sha256 is {found}, --reference {request.reference} was made with "
            f"{made['checksum']}; give that file, or the reference as images"
        )


def _extractor(request: Request, device: torch.device) -> Extractor:
    name = request.extractor or "inception"
    path, sha256 = None if request.weights is None else str(request.weights), request.weights_sha256
    try:
        if name == "inception":
            kind = LegacyInceptionExtractor if request.mode == LEGACY else InceptionExtractor
            return kind(find_inception(path, sha256=sha256), sha256=sha256, device=device)
        if name == "dinov2":
            dinov2_class()  # fails before a gigabyte is fetched
            return Dinov2Extractor(find_dinov2(path), sha256=sha256, device=device)
    except ExtractorError as error:
        raise UserError(_in_options(error)) from error
    return PixelExtractor(device=device)


def _in_options(error: Exception) -> str:
    """A message about params.yaml in the words of this command."""
    message = str(error)
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message


class _Watched:
    """Images whose reading moves a bar, for `count` processes that read alike."""

    def __init__(self, images: Images, bar: Any, processes: int) -> None:
        self._images, self._bar, self._processes = images, bar, processes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        batch = self._images[rows]
        self._bar.update(min(len(batch) * self._processes, self._bar.total - self._bar.n))
        return batch


def _features(
    extractor: Extractor, images: Images, name: str, *, batch_size: int, accelerator: "Accelerator | None"
) -> Found:
    processes = 1 if accelerator is None else accelerator.num_processes
    with progress(total=len(images), label=f"features of {name}", unit="img") as bar:
        try:
            return extract(extractor, _Watched(images, bar, processes), batch_size=batch_size, accelerator=accelerator)
        except FeatureError as error:
            raise UserError(f"--{name} {images.pictures.path}: {error}") from error


def _real(request: Request, reference: Reference | None, found: Mapping[str, Found], stated: Statistics | None) -> Real:
    """The side of the real data: known moments, the folder's features, or those of the images that were given."""
    if stated is not None:
        nothing = np.empty((0, len(stated.moments.mean)), np.float32)
        return KnownMoments(nothing, request.measures, known=stated.moments)
    given = {name: found[name].features for name in ("train", "unseen") if name in found}
    if reference is None:
        return Real(found["reference"].features, request.measures, **given)
    return dataclasses.replace(reference.real(request.measures), **given)


def _figures(request: Request, found: Found, real: Real, reference: Reference | None) -> dict[str, Any]:
    each = len(found) // request.sets
    sets = [found.part(slice(i * each, (i + 1) * each)) for i in range(request.sets)]
    figures_of_set = _of_moments if isinstance(real, KnownMoments) else image_figures
    figures: dict[str, Any] = over_sets([figures_of_set(s, real) for s in sets]) | fid_trend(sets, real)
    if reference is not None and reference.classifier is not None:
        counts = np.bincount(found.probabilities.argmax(axis=1), minlength=found.probabilities.shape[1])
        figures |= class_figures(counts, reference.class_shares)
    return figures


def _of_moments(found: Found, real: Real) -> dict[str, float | None]:
    """The figures that need no real images, only their moments."""
    of, entries = Comparison(found, real), map(catalogue.get, OF_MOMENTS)
    return {m.key: m.compute(of) for m in entries if m.where(of)}


def _cautions(
    request: Request, found: Found | None, real: Real, made: Mapping[str, Any] | None, width: int
) -> list[str]:
    """Those of the reference folder, and whether there are enough images. found: of the samples, if there are any."""
    each, known = None if found is None else len(found) // request.sets, isinstance(real, KnownMoments)
    # Of moments alone nobody knows the number of images: only the samples are counted.
    of_counts = cautions.of_counts(each, max(width + 1, cautions.FEW) if known else len(real.features), width)
    of_unseen = [] if real.unseen_distances is None else cautions.of_unseen(len(real.unseen))
    return cautions.together([cautions.told(made or {}), of_counts, of_unseen])


def _pairs(images: Mapping[str, Images], found: Found, real: Real) -> np.ndarray:
    """The samples nearest to a training image, then those images: uint8 [2 p, C, H, W]."""
    pairs = closest_pairs(found.features, real.train)
    return np.concatenate([images["samples"].take([i for i, _ in pairs]), images["train"].take([j for _, j in pairs])])
