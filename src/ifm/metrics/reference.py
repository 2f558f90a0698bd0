"""The real data's side of every figure: the extractor, its features of the real images, their moments."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ifm import modalities
from ifm.config import EvaluateConfig
from ifm.data.needs import check_classes
from ifm.errors import UserError, in_a_line
from ifm.files import fresh_folder, read_json, write_json
from ifm.hardware.parallel import shared_batches
from ifm.metrics import cautions
from ifm.metrics.classifier import Classifier, ClassifierSettings, classify, load_classifier, train_classifier
from ifm.metrics.comparison import Measures, Real
from ifm.metrics.distances import Moments, fid, moments
from ifm.metrics.extractors import (
    ClassifierExtractor,
    CoordinateExtractor,
    Dinov2Extractor,
    Extractor,
    InceptionExtractor,
    PixelExtractor,
    SymbolExtractor,
    dinov2_class,
    finite,
)
from ifm.metrics.language import Language
from ifm.metrics.points import energy_distance, sliced_wasserstein
from ifm.metrics.weights import find_clap, find_dinov2, find_inception
from ifm.modalities.alphabet import Alphabet
from ifm.modalities.spectrograms import Normalised

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

WEIGHTS, METADATA = "classifier.safetensors", "metadata.json"
RECONSTRUCTED = "features-reconstructed.npy"  # of the reference split's images, through the encoder and back
BATCH = 256
MEND = "run `dvc repro --force reference`"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int | float) and math.isfinite(x) for x in value)


# What the readers of metadata.json count on, by key.
FORM: dict[str, Callable[[Any], bool]] = {
    "extractor": lambda value: isinstance(value, str),
    "checksum": lambda value: isinstance(value, str),
    "dimension": _whole,
    "split": lambda value: value in ("train", "test"),
    "image_shape": lambda value: isinstance(value, list) and len(value) in (1, 2, 3) and all(map(_whole, value)),
    "classes": lambda value: value is None or (isinstance(value, list) and all(isinstance(c, str) for c in value)),
    "class_shares": lambda value: value is None or _numbers(value),
    "warnings": lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
}


class Labelled(Protocol):
    """A split of the data set: uint8 images [n, C, H, W] or float32 points [n, d], and labels int64 [n] or None."""

    shape: tuple[int, ...]
    labels: np.ndarray | None
    classes: list[str] | None

    def __len__(self) -> int: ...
    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...
    def batches(self, size: int) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Reference:
    """What samples are measured against."""

    extractor: Extractor
    splits: dict[str, np.ndarray]  # float32 [n, d], features of train and test
    classifier: Classifier | None
    class_shares: list[float] | None  # of the reference split
    centres: np.ndarray | None  # of points with modes: the mean of each in the train split, float64 [k, d]
    metadata: dict[str, Any]
    reconstructed: np.ndarray | None = None  # float32 [n, d], features of the reference split through an autoencoder

    @property
    def features(self) -> np.ndarray:
        """Of the reference split: float32 [n, d]."""
        return self.splits[self.metadata["split"]]

    @cached_property
    def moments(self) -> Moments:
        return moments(self.features)

    def real(self, measures: Measures) -> Real:
        """The side of the real data, as figures take it."""
        language = None
        if isinstance(self.extractor, SymbolExtractor):
            language = Language(self.extractor.alphabet, _numbers_of(self.features), _numbers_of(self.splits["train"]))
        return Real(self.features, measures, train=self.splits["train"], unseen=self.splits["test"], language=language)


def build_reference(
    config: EvaluateConfig,
    *,
    train: Labelled,
    test: Labelled,
    out: Path,
    device: torch.device,
    on_log: Callable[[dict[str, float]], None] | None = None,
    duplicates: Mapping[str, int] | None = None,
    reconstruct: Callable[[range], np.ndarray] | None = None,
    accelerator: "Accelerator | None" = None,
) -> dict[str, Any] | None:
    """Writes the folder `out` and returns its metadata: the extractor's protocol, the splits, accuracy, floor FID.

    The floor is the figure of the split that is not the reference: what real data themselves reach. Points have the
    floors of their own two distances, and no FID. reconstruct: rows of the reference split as an autoencoder gives them
    back, where models are of latents: their FID, reconstruction_fid, is the floor of such models. `warnings` are the
    sentences of ifm.metrics.cautions; duplicates: as the processed form counts them. Processes share the extraction;
    the main one trains the classifier and writes, the others return None. Raises UserError where the extractor gives
    nothing to judge by.
    """
    classifier = _from_main(lambda: _classifier(config, train, device=device, on_log=on_log), accelerator)
    extractor = _extractor(config, classifier, device=device, described=_recorded(train))
    splits, again = {"train": train, "test": test}, None
    found = {name: _features(extractor, split, accelerator) for name, split in splits.items()}
    if reconstruct is not None:
        again = _features(extractor, splits[config.reference_split], accelerator, make=reconstruct)
    if accelerator is not None and not accelerator.is_main_process:
        return None
    _check_spread(extractor, found[config.reference_split])
    with fresh_folder(out) as folder:
        if classifier is not None:
            save_file({k: v.contiguous() for k, v in classifier.state_dict().items()}, folder / WEIGHTS)
        said = classify(classifier, test[np.arange(len(test))]) if classifier else None
        other = "test" if config.reference_split == "train" else "train"
        for name in splits:
            np.save(folder / f"features-{name}.npy", found[name], allow_pickle=False)
        metadata = extractor.describe() | {
            "dimension": int(found["train"].shape[1]),
            "split": config.reference_split,
            "n_train": len(train),
            "n_test": len(test),
            "image_shape": list(train.shape),
            **_recorded(train),
            "classes": train.classes,
            "class_shares": _shares(splits[config.reference_split]),
            "accuracy": None if said is None else float((said == test.labels).mean()),
            "floor_fid": None,
            "duplicates": None if duplicates is None else dict(duplicates),
        }
        if config.extractor == "coordinates":
            metadata |= _of_points(config, train, found[other], found[config.reference_split])
        elif config.extractor != "symbols" and min(map(len, found.values())) > 1:
            metadata["floor_fid"] = fid(moments(found[other]), moments(found[config.reference_split]))
        if again is not None:
            np.save(folder / RECONSTRUCTED, again, allow_pickle=False)
            metadata["reconstruction_fid"] = fid(moments(again), moments(found[config.reference_split]))
        metadata["warnings"] = _cautions(metadata, said, train=train, test=test)
        write_json(folder / METADATA, metadata)
    return metadata


def load_reference(folder: Path, config: EvaluateConfig, *, device: torch.device) -> Reference:
    """Reads what `build_reference` wrote. Raises UserError where it is damaged or belongs to another extractor."""
    metadata = _read_metadata(folder)
    if metadata["extractor"] != config.extractor:
        raise UserError(
            f"{folder} was made with evaluate.extractor = {metadata['extractor']}, params.yaml asks for "
            f"{config.extractor}; run `dvc repro reference`"
        )
    classifier = None
    if (folder / WEIGHTS).is_file():
        try:
            channels, *sides = metadata["image_shape"]
            classifier = load_classifier(
                folder / WEIGHTS,
                channels=channels,
                image_size=min(sides),
                classes=len(metadata["classes"]),
                width=config.classifier.width,
                modality=metadata.get("modality"),
            ).to(device)
        except (
            RuntimeError,
            SafetensorError,
            TypeError,
            ValueError,
            OSError,
        ) as error:  # another evaluate.classifier.width, or a damaged file
            raise UserError(
                f"{folder / WEIGHTS}: no classifier of evaluate.classifier.width = {config.classifier.width}; run "
                "`dvc repro --force reference`"
            ) from error
    extractor = _extractor(config, classifier, device=device, described=metadata)
    if extractor.checksum != metadata["checksum"]:
        raise UserError(f"{folder}: made with other {extractor.name} weights; run `dvc repro --force reference`")
    splits = {
        name: _read_features(folder / f"features-{name}.npy", metadata["dimension"]) for name in ("train", "test")
    }
    centres = np.array(metadata["mode_centres"]) if metadata.get("mode_centres") else None
    again = folder / RECONSTRUCTED
    again = _read_features(again, metadata["dimension"]) if again.is_file() else None
    return Reference(extractor, splits, classifier, metadata["class_shares"], centres, metadata, again)


def _features(
    extractor: Extractor,
    split: Labelled,
    accelerator: "Accelerator | None",
    *,
    make: Callable[[range], np.ndarray] | None = None,
) -> np.ndarray:
    """Of a split's images, or of what `make` makes of its rows: float32 [n, d], in every process."""

    def work(members: range) -> np.ndarray:
        return extractor(split[np.array(members)] if make is None else make(members))

    parts = shared_batches(work, count=len(split), batch_size=BATCH, accelerator=accelerator)
    return finite(np.concatenate([part for _, part in parts]), extractor)


def _from_main(make: Callable[[], T], accelerator: "Accelerator | None") -> T:
    """What the main process makes, in every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    made = make() if accelerator.is_main_process else None
    made = made.cpu() if isinstance(made, torch.nn.Module) else made  # not to the main process's GPU
    return broadcast_object_list([made])[0]


def _read_metadata(folder: Path) -> dict[str, Any]:
    """What `build_reference` wrote into metadata.json. Raises UserError."""
    path = folder / METADATA
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({in_a_line(error.__cause__ or error)}); {MEND}") from error
    if isinstance(found, dict):
        found.setdefault("classes", None)
        found.setdefault("warnings", [])
    for key, fits in FORM.items():
        if not isinstance(found, dict) or key not in found or not fits(found[key]):
            raise UserError(f"{path}: does not describe a reference ({key} is missing or has another form); {MEND}")
    shape, classes, shares = found["image_shape"], found["classes"] or [], found["class_shares"]
    if shares is not None and len(shares) != len(classes):
        raise UserError(f"{path}: has {len(shares)} class_shares of {len(classes)} classes; {MEND}")
    centres = found.get("mode_centres")
    if centres and not (isinstance(centres, list) and all(_numbers(c) and len(c) == shape[0] for c in centres)):
        raise UserError(f"{path}: mode_centres must be points of {shape[0]} coordinates; {MEND}")
    return found


def _read_features(path: Path, dimension: int) -> np.ndarray:
    """float32 [n, dimension], memory-mapped. Raises UserError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy answers damaged headers with nearly any kind
        raise UserError(f"{path}: cannot be read ({in_a_line(error)}); {MEND}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape[1:] != (dimension,):
        raise UserError(f"{path}: must be an array of float32 [n, {dimension}]; {MEND}")
    return array


def _classifier(
    config: EvaluateConfig,
    train: Labelled,
    *,
    device: torch.device,
    on_log: Callable[[dict[str, float]], None] | None,
) -> Classifier | None:
    if config.extractor != "classifier":
        return None
    labelled = train.labels is not None and train.classes is not None
    counts = np.bincount(train.labels, minlength=len(train.classes)).tolist() if labelled else None
    fit = modalities.of({"image_shape": list(train.shape), **_recorded(train)}).extractors
    check_classes(train.classes if labelled else None, counts, where="data/processed", fit=fit)
    settings = ClassifierSettings(**config.classifier.model_dump())
    images = train[np.arange(len(train))]
    return train_classifier(
        images,
        train.labels,
        classes=len(train.classes),
        settings=settings,
        device=device,
        on_log=on_log,
        modality=_recorded(train).get("modality"),
    )


def _numbers_of(features: np.ndarray) -> np.ndarray:
    """Symbols' numbers as they are counted: float32 [n, L] -> int32."""
    return np.asarray(features).astype(np.int32)


def _extractor(
    config: EvaluateConfig, classifier: Classifier | None, *, device: torch.device, described: Mapping[str, Any]
) -> Extractor:
    """described: what the data or the reference's metadata record, for an alphabet."""
    if config.extractor == "inception":
        file = find_inception(config.inception_path, sha256=config.weights_sha256)
        return InceptionExtractor(file, sha256=config.weights_sha256, device=device)
    if config.extractor == "dinov2":
        dinov2_class()  # fails before a gigabyte is fetched
        return Dinov2Extractor(find_dinov2(config.dinov2_path), sha256=config.weights_sha256, device=device)
    if config.extractor == "clap":
        from ifm.metrics.clap import ClapExtractor

        given = {"sound": Normalised.read(described.get("sound")), "sha256": config.weights_sha256}
        return ClapExtractor(find_clap(config.clap_path), **given, device=device)
    if config.extractor == "pixels":
        return PixelExtractor(device=device)
    if config.extractor == "coordinates":
        return CoordinateExtractor(device=device)
    if config.extractor == "symbols":
        return SymbolExtractor(Alphabet.read(described), device=device)
    if classifier is None:
        raise UserError("the classifier's weights are missing; run `dvc repro --force reference`")
    return ClassifierExtractor(classifier, device=device)


def _of_points(
    config: EvaluateConfig, train: Labelled, other: np.ndarray, reference: np.ndarray
) -> dict[str, float | list | None]:
    """Floors of the distances between points, and the centres of the law's modes: the mean of each in `train`."""
    centres = None
    if train.labels is not None and train.classes is not None:
        points = train[np.arange(len(train))].astype(np.float64)
        centres = [points[train.labels == k].mean(axis=0).tolist() for k in range(len(train.classes))]
    return {
        "mode_centres": centres,
        "floor_sliced_wasserstein": sliced_wasserstein(other, reference, projections=config.sliced_projections),
        "floor_energy_distance": energy_distance(other, reference),
    }


def _check_spread(extractor: Extractor, found: np.ndarray) -> None:
    """Raises UserError where every image has the same features [n, d]: all samples would be alike."""
    if len(found) < 2 or (found != found[0]).any():
        return
    why = "its training has failed: lower evaluate.classifier.lr, or " if extractor.name == "classifier" else ""
    raise UserError(
        f"evaluate.extractor: {extractor.name} gives the same features for all {len(found)} reference examples, so it "
        f"cannot judge; {why}use another extractor, or data that differ"
    )


def _cautions(metadata: Mapping[str, Any], said: np.ndarray | None, *, train: Labelled, test: Labelled) -> list[str]:
    """What speaks against all figures with this reference. said: the classifier's answers on the test part."""
    reference = metadata[f"n_{metadata['split']}"]
    if metadata["extractor"] in ("coordinates", "symbols"):
        return cautions.of_counts(None, reference, 0)
    found = []
    if said is not None:
        of_train = np.bincount(train.labels, minlength=len(train.classes)).tolist()
        found += cautions.of_classifier(said, test.labels, of_train=of_train)
    found += cautions.of_duplicates(metadata["duplicates"], train=len(train), test=len(test))
    found += cautions.of_counts(None, reference, metadata["dimension"])
    return found + cautions.of_unseen(len(test))


def _recorded(images: Labelled) -> dict[str, Any]:
    """See `SampleSet.recorded`; of arrays that come without a description, nothing."""
    return getattr(images, "recorded", {})


def _shares(images: Labelled) -> list[float] | None:
    if images.labels is None or images.classes is None:
        return None
    return (np.bincount(images.labels, minlength=len(images.classes)) / len(images)).tolist()
