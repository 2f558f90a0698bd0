"""Feature extractors: uint8 images [n, C, H, W] (or float32 points [n, d]) -> float32 features [n, d]."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ifm.errors import UserError
from ifm.files import file_sha256
from ifm.images import to_unit
from ifm.metrics.classifier import Classifier

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_FOLDER = Path("/tmp")  # clean-fid's own choice


class ExtractorError(UserError, RuntimeError):
    """The extractor cannot be built; the message says which file or setting mends it."""


class Extractor(ABC):
    """A fixed map from images to features, with a checksum of what it computes."""

    name: ClassVar[str]
    checksum: str
    device: torch.device

    @abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, C, H, W] -> float32 [n, d]."""


class ClassifierExtractor(Extractor):
    """The last hidden layer of the classifier that the reference stage trains."""

    name = "classifier"

    def __init__(self, model: Classifier, *, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.checksum = _weights_checksum(model.state_dict())

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.model.features(to_unit(images).to(self.device)).cpu().numpy()


class PixelExtractor(Extractor):
    """The pixels themselves in [-1, 1]: a baseline that needs nothing."""

    name = "pixels"
    checksum = "identity"

    def __init__(self, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return to_unit(images).flatten(1).numpy()


class CoordinateExtractor(Extractor):
    """Points are their own features: float32 [n, d]."""

    name = "coordinates"
    checksum = "identity"

    def __init__(self, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(images, np.float32)


class InceptionExtractor(Extractor):
    """clean-fid's Inception-v3 with clean-fid's own bicubic resizing to 299 x 299 (mode "clean")."""

    name = "inception"

    def __init__(self, file: Path, *, device: torch.device) -> None:
        from cleanfid.resize import build_resizer

        try:
            self.layers = torch.jit.load(file, map_location=device).eval().layers
        except (RuntimeError, ValueError, AttributeError) as error:  # cut short, or another network without `layers`
            reason = (str(error).splitlines() or ["?"])[0]
            raise ExtractorError(f"{file}: not a TorchScript Inception ({reason}); fetch {INCEPTION_FILE}") from error
        self.resize, self.device = build_resizer("clean"), device
        self.checksum = file_sha256(file)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        colour = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)  # [n, H, W, 3]
        resized = torch.from_numpy(np.stack([self.resize(image) for image in colour])).permute(0, 3, 1, 2)
        features = self.layers.forward((resized.to(self.device) - 128) / 128)
        return features.flatten(1).float().cpu().numpy()  # [n, 2048]


def find_inception(path: str | None) -> Path:
    """The TorchScript file: at `evaluate.inception_path`, or where clean-fid keeps (and fetches) it.

    Raises ExtractorError that says which file to put where.
    """
    if path is not None:
        file = Path(path).expanduser()
        file = file / INCEPTION_FILE if file.is_dir() else file
        if not file.is_file():
            raise ExtractorError(f"evaluate.inception_path = {path!r}: no such file; put {INCEPTION_FILE} there")
        return file
    from cleanfid.downloads_helper import check_download_inception

    usual = INCEPTION_FOLDER / INCEPTION_FILE
    try:
        return Path(check_download_inception(fpath=str(INCEPTION_FOLDER)))
    except Exception as error:
        usual.unlink(missing_ok=True)  # no half a download
        raise ExtractorError(
            f"the Inception weights are not at {usual} and could not be fetched "
            f"({type(error).__name__}); put {INCEPTION_FILE} there or name it in evaluate.inception_path, then run "
            "`dvc repro` again (nothing else is lost), or use evaluate.extractor: classifier or pixels"
        ) from error


def features(extractor: Extractor, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Features of all batches: float32 [n, d]. Raises ValueError where one is not finite."""
    out = np.concatenate([extractor(batch) for batch in batches])
    if not np.isfinite(out).all():
        raise ValueError(f"the {extractor.name} extractor gave features that are not finite")
    return out


def _weights_checksum(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
