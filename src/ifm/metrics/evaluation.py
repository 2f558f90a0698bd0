"""Figures of a folder of samples against the reference, sampler by sampler."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from ifm import modalities
from ifm.errors import UserError
from ifm.files import read_json
from ifm.metrics import catalogue, cautions, teachers
from ifm.metrics.asked import LABELS, fid_figures, fids_by_class, read_asked, shares_by_class
from ifm.metrics.classes import class_figures
from ifm.metrics.classifier import classify
from ifm.metrics.comparison import Comparison, Found, Measures, Real, least_samples, without_neighbours
from ifm.metrics.extraction import extract
from ifm.metrics.figures import fid_trend, figures_of, image_figures, over_sets
from ifm.metrics.metric import PLAIN, POINTS, TEXT
from ifm.metrics.neighbours import nearest
from ifm.metrics.points import nearest_centres
from ifm.metrics.reference import BATCH, Reference
from ifm.random import stream

if TYPE_CHECKING:
    from accelerate import Accelerator

MEND = "run `dvc repro --force sample@...`"
REAL_TEXT = "real text"  # a row of figures
OF_GRAMS, OF_WORDS = ("character_tv", "bigram_tv", "fourgram_tv"), ("word_share", "half_copies")
RECONSTRUCTION = "reconstruction"  # of real images, by the encoder and decoder of a model of latents
PAIRS = 8  # closest pairs kept of a sampler


@dataclass(frozen=True)
class Evaluation:
    """What is found out about a folder of samples, by sampler name."""

    figures: dict[str, dict[str, Any]]
    closest: dict[str, list[tuple[int, int]]]  # (sample, training image) of the nearest pairs in feature space


def evaluate_samples(
    folder: Path,
    reference: Reference,
    *,
    measures: Measures,
    labels: np.ndarray | None = None,
    accelerator: "Accelerator | None" = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Evaluation:
    """Figures of every sampler: {model, sampler, nfe, n_samples, seeds, ...}; of images first what real ones have.

    Each figure is the mean over the folder's sets of samples, one a sampling seed, with its standard deviation beside
    it: those of the catalogue that such data have, for images `fid_trend`, and `class_figures` of all sets together
    where there are classes. Where the samples were asked for by class, also of all sets together: asked_shares by
    class, and for images `fid_figures` within classes.

    labels: of the real images that the reference is made of, int64 [m]; None: no FID within classes.
    endpoint_rms: root mean square difference, in units of data in [-1, 1], from the teacher at its largest NFE started
    at the same x_T; averaged over samples, for the flow's samplers: that teacher is nearest to the ODE's solution.
    ratio: what they are judged by over the figure of the teacher at its best NFE (`teachers.best` of the means over
    sets), set by set, each from the same prior draws; teacher_nfe: that NFE. warnings: sentences that speak against a
    row's figures, those of the reference first (ifm.metrics.cautions); a figure that cannot be computed is None, with
    the reason there. Raises UserError at samples that cannot be judged.
    Processes share the extractor's work and find the same figures.
    """
    metadata = read_json(folder / "metadata.json")
    expected = tuple(reference.metadata["image_shape"])
    modality = modalities.of(reference.metadata)
    what = modality.noun
    if tuple(metadata["image_shape"]) != expected:
        raise UserError(f"{folder}: {what} of shape {metadata['image_shape']}, the reference has {list(expected)}")
    seeds = metadata.get("seeds", 1)
    arrays = {s["name"]: _load(folder, s["name"], expected, modality.dtype) for s in metadata["samplers"]}
    kind = modality.figures
    plain = kind in PLAIN
    least = 2 if plain else least_samples(measures)
    for name, images in arrays.items():
        if len(images) % seeds or len(images) // seeds < least:
            raise UserError(
                f"{folder}: {name} has {len(images)} samples in {seeds} set(s), which must be of equal size and at "
                f"least {least} each; raise sample.count or lower evaluate.neighbours"
            )
    of_teacher = [s for s in metadata["samplers"] if s["model"] == "teacher"]
    finest = arrays[max(of_teacher, key=lambda s: s["nfe"])["name"]] if of_teacher else None

    real = reference.real(measures)  # one for all samplers: it keeps what it has computed
    judge = catalogue.judge(kind)
    asked = _asked(folder, metadata, reference, arrays)
    judging = Judging(reference, real, kind, asked, labels, accelerator)
    by_set: dict[str, list[float]] = {}
    figures: dict[str, dict[str, Any]] = _of_real_data(
        reference, real, kind, count=min(map(len, arrays.values())) // seeds
    )
    closest: dict[str, list[tuple[int, int]]] = {}
    for sampler in progress(metadata["samplers"]):
        name, images = sampler["name"], arrays[sampler["name"]]
        row, each, found = judging.judge(sampler, images, seeds=seeds)
        by_set[name] = [one[judge.key] for one in each]
        if sampler["model"] == "flow" and finest is not None:
            if len(images) != len(finest):
                raise UserError(f"{folder}: {name} has {len(images)} {what}, the teacher {len(finest)}; {MEND}")
            row |= over_sets([{"endpoint_rms": endpoint_rms(images[s], finest[s])} for s in _sets(len(images), seeds)])
        figures[name] = row
        if not plain and sampler["sampler"] == "one_step":
            closest[name] = closest_pairs(found.features, real.train)
    best = teachers.best(({"name": s["name"], **figures[s["name"]]} for s in of_teacher), judge)
    if best is not None:
        for name in (s["name"] for s in metadata["samplers"] if s["model"] == "flow"):
            _add_ratio(figures[name], by_set[name], by_set[best["name"]])
            figures[name][teachers.AGAINST] = best["nfe"]
    for row in figures.values():
        if metadata.get("guided") and row["sampler"] == "one_step":
            row["guided"] = _guided(folder, metadata, judging, expected)
    return Evaluation(figures, closest)


def _guided(
    folder: Path, metadata: Mapping[str, Any], judging: "Judging", shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Figures by guidance scale: of the flow in one step, then of the teacher, which is not at its best NFE.

    All are of the first set alone, so that they differ by w and model and by no prior draw. Above w = 1 the least FID
    is that of the solver that leads least: the teacher has its most evaluations at each w.
    """
    dtype, own = modalities.of(judging.reference.metadata).dtype, metadata["guidance"]
    at_own = next(s for s in metadata["samplers"] if s["sampler"] == "one_step")
    asked = sorted(
        [
            at_own | {"guidance": own},
            *(s for s in metadata["guided"] if s["model"] == "teacher" or s["guidance"] != own),
        ],
        key=lambda s: (s["model"], s["guidance"]),
    )
    images = [_load(folder, s["name"], shape, dtype)[: metadata["count"]] for s in asked]
    led = {s["guidance"]: x for s, x in zip(asked, images, strict=True) if s["model"] == "teacher"}
    rows = []
    for sampler, drawn in zip(asked, images, strict=True):
        row = _at_scale(judging.judge(sampler, drawn, seeds=1)[0], w := sampler["guidance"])
        if sampler["model"] == "flow" and w in led:
            row["endpoint_rms"] = endpoint_rms(drawn, led[w])
        rows.append(row)
    return rows


def _at_scale(row: Mapping[str, Any], w: float) -> dict[str, Any]:
    """A row's single figures under the name of its model and guidance scale."""
    kept = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    return kept | {"model": f"{row['model']}-w{w:g}", "guidance": w}


@dataclass(frozen=True)
class Judging:
    """What the samples of every sampler of a folder are judged with."""

    reference: Reference
    real: Real
    kind: str  # of data: images, points
    asked: np.ndarray | None  # the class that each sample was asked to be, int64 [n]; None: none was asked for
    labels: np.ndarray | None  # of the real images, int64 [m]
    accelerator: "Accelerator | None" = None

    def judge(
        self, sampler: Mapping[str, Any], images: np.ndarray, *, seeds: int
    ) -> tuple[dict[str, Any], list[dict[str, float | None]], Found]:
        """A sampler's row of figures, the figures of each of its `seeds` sets, and the features."""
        found = extract(self.reference.extractor, images, batch_size=BATCH, accelerator=self.accelerator)
        said, asked = _classes(self.reference, images), None if self.asked is None else self.asked[: len(images)]
        each, plain = len(images) // seeds, self.kind in PLAIN
        sets = [
            Comparison(found.part(s), self.real, images[s], said=_rows(said, s), asked=_rows(asked, s))
            for s in _sets(len(images), seeds)
        ]
        of_sets = [figures_of(one, self.kind) for one in sets]
        row = {key: sampler[key] for key in ("model", "sampler", "nfe")} | {"n_samples": each, "seeds": seeds}
        row |= over_sets(of_sets) | ({} if plain else fid_trend([one.found for one in sets], self.real))
        row |= self._of_classes(found, said, asked)
        row["warnings"] = _cautions(self.reference, None if plain else self.real, each)
        return row, of_sets, found

    def _of_classes(self, found: Found, said: np.ndarray | None, asked: np.ndarray | None) -> dict[str, Any]:
        """`class_figures`, and by class asked for the share of its samples in it, and FID; of all sets together."""
        figures: dict[str, Any] = {}
        if said is not None:
            shares = self.reference.class_shares
            count = len(self.reference.metadata["classes"] or self.reference.centres)
            figures |= class_figures(np.bincount(said, minlength=count), shares)
            if asked is not None:
                figures["asked_shares"] = shares_by_class(said, asked, classes=count)
        if asked is not None and self.labels is not None and self.kind not in PLAIN:
            count = len(self.reference.metadata["classes"])
            by_class = fids_by_class(found.features, asked, self.real.features, self.labels, classes=count)
            figures |= fid_figures(by_class, absent=set(range(count)) - set(self.labels.tolist()))
        return figures


def _rows(values: np.ndarray | None, rows: slice) -> np.ndarray | None:
    return None if values is None else values[rows]


def _of_real_data(reference: Reference, real: Real, kind: str, *, count: int) -> dict[str, dict[str, Any]]:
    """What real data have, as one more sampler: images that are not the reference, as far as there are two; `count`
    texts. Nothing of points.

    Of latents also what the reference's images have that went through the autoencoder: the floor of such models.
    """
    if kind == TEXT:
        return _of_real_texts(reference, real, count)
    if kind == POINTS:
        return {}
    other = "test" if reference.metadata["split"] == "train" else "train"
    found = Found(reference.splits[other])
    if len(found) < 2:
        return {}
    rows = {f"data-{other}": (other, found)}
    if reference.reconstructed is not None:
        rows[f"data-{RECONSTRUCTION}"] = (RECONSTRUCTION, Found(reference.reconstructed))
    return {name: _of_data(sampler, found, reference, real) for name, (sampler, found) in rows.items()}


def _of_data(sampler: str, found: Found, reference: Reference, real: Real) -> dict[str, Any]:
    row = {"model": "data", "sampler": sampler, "nfe": 0, "n_samples": len(found), "seeds": 1}
    row |= image_figures(found, dataclasses.replace(real, train=None))
    return row | {"warnings": _cautions(reference, real, len(found))}


def _of_real_texts(reference: Reference, real: Real, count: int) -> dict[str, dict[str, Any]]:
    """As many real texts as a set has, drawn: n-grams of the part that is not the reference against the reference,
    words and copies of held-out text against the training text.

    So the row is what another part of the text has, at the same number.
    """
    other = "test" if reference.metadata["split"] == "train" else "train"
    row = {"model": "data", "sampler": REAL_TEXT, "nfe": 0, "seeds": 1}
    for split, keys in ((other, OF_GRAMS), ("test", OF_WORDS)):
        features = reference.splits[split]
        rows = stream(0, "split", index=2).permutation(len(features))[:count]
        row["n_samples"] = min(len(rows), row.get("n_samples", count))
        found = figures_of(Comparison(Found(features[np.sort(rows)]), real), TEXT)
        row |= {key: found[key] for key in keys}
    return {REAL_TEXT: row | {"warnings": _cautions(reference, None, row["n_samples"])}}


def _cautions(reference: Reference, real: Real | None, samples: int) -> list[str]:
    """What speaks against the figures of sets of so many samples. real: of images; None: of points."""
    dimension = 0 if real is None else reference.metadata["dimension"]
    reason = None if real is None else without_neighbours(samples, real)
    of_samples = cautions.of_counts(samples, len(reference.features), dimension)
    return cautions.together([cautions.told(reference.metadata), of_samples, [reason] if reason else []])


def _add_ratio(row: dict[str, Any], values: list[float], of_teacher: list[float]) -> None:
    """The figures of each set over the teacher's; None where the teacher has no distance to divide by."""
    if min(of_teacher) > 0:
        row |= over_sets([{"ratio": a / b} for a, b in zip(values, of_teacher, strict=True)])
        return
    row["ratio"] = None
    row["warnings"].append("The ratio to the teacher is not computed: the teacher's distance is 0 in a set.")


def closest_pairs(samples: np.ndarray, train: np.ndarray) -> list[tuple[int, int]]:
    """The PAIRS samples that lie nearest to a training image, each with that image: (row, row), the nearest first."""
    distances, rows = nearest(samples, train)
    order = np.argsort(distances, kind="stable")[:PAIRS]
    return [(int(i), int(rows[i])) for i in order]


def _sets(count: int, seeds: int) -> list[slice]:
    each = count // seeds
    return [slice(i * each, (i + 1) * each) for i in range(seeds)]


def _asked(
    folder: Path, metadata: Mapping[str, Any], reference: Reference, arrays: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """The classes that the samples were asked to be: int64 [n]; None where nothing was asked. Raises UserError."""
    classes = (metadata.get("condition") or {}).get("classes")
    if classes is None:
        return None
    if classes != reference.metadata["classes"]:
        raise UserError(f"{folder}: samples of other classes than the reference's; {MEND}")
    asked = read_asked(folder, count=len(next(iter(arrays.values()))), classes=len(classes))
    for name, samples in arrays.items():
        if len(samples) != len(asked):
            raise UserError(f"{folder}: {name} has {len(samples)} samples, {LABELS} {len(asked)} labels; {MEND}")
    return asked


def _classes(reference: Reference, samples: np.ndarray) -> np.ndarray | None:
    """The class that the classifier sees in each image, of points the mode whose centre is nearest: int64 [n]."""
    if reference.centres is not None:
        return nearest_centres(np.asarray(samples), reference.centres)
    return None if reference.classifier is None else classify(reference.classifier, samples)


def endpoint_rms(images: np.ndarray, paired: np.ndarray) -> float:
    """Mean over samples of |x - y| / sqrt(N), for points or for uint8 images [n, C, H, W] read as [-1, 1]."""
    each = [_rms(images[i : i + BATCH], paired[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return float(mean(np.concatenate(each).tolist()))


def _rms(images: np.ndarray, paired: np.ndarray) -> np.ndarray:
    difference = images.astype(np.float64) - paired
    if images.dtype == np.uint8:
        difference /= 127.5
    return np.sqrt((difference**2).reshape(len(images), -1).mean(axis=1))


def _load(folder: Path, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The samples of one sampler: uint8 images [n >= 2, C, H, W] or float32 points [n >= 2, d], memory-mapped."""
    path = folder / f"{name}.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {MEND}") from error
    if images.dtype != np.dtype(dtype) or images.shape[1:] != shape or len(images) < 2:
        raise UserError(
            f"{path}: must be {dtype} [n >= 2, {', '.join(map(str, shape))}], "
            f"got {images.dtype} {list(images.shape)}; {MEND}"
        )
    return images
