"""Feature extractors: uint8 images [n, C, H, W] (or float32 points [n, d]) -> float32 features [n, d]."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ifm.errors import UserError
from ifm.files import read_json
from ifm.metrics.classifier import Classifier, unit_on
from ifm.metrics.weights import (
    DINOV2_SHA256,
    INCEPTION_FILE,
    INCEPTION_SHA256,
    TRANSFORMERS_CONFIG,
    ExtractorError,
    verified_bytes,
    verify,
)
from ifm.modalities import MODALITIES
from ifm.modalities.alphabet import Alphabet
from ifm.modalities.images import to_unit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_SIDE = 224
DINOV2_BATCH = 64  # bounds the memory of the enlarged images and of the network's activations


class FeatureError(UserError, ValueError):
    """The extractor makes nothing of some images."""


class Extractor(ABC):
    """A fixed map from images to features, with a checksum of what it computes.

    A figure means something only beside its protocol: `describe`.
    """

    name: ClassVar[str]
    resizing: ClassVar[str] = "none"
    rounding: ClassVar[str] = "uint8 images, x / 127.5 - 1 in float32, nothing rounded after"
    probabilities: str | None = None  # how class_probabilities come about; None: there are none
    checksum: str
    dimension: int | None  # None: that of the images
    device: torch.device

    @abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, C, H, W] -> float32 [n, d]."""

    def class_probabilities(self, images: np.ndarray) -> np.ndarray | None:
        """uint8 [n, C, H, W] -> float32 [n, K], rows that sum to 1; None where the extractor knows no classes."""
        return None

    def features_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Both of the above, in one pass of the network where they share one."""
        return self(images), self.class_probabilities(images)

    def describe(self) -> dict[str, Any]:
        """The facts to print beside figures: plain values for JSON."""
        return {
            "extractor": self.name,
            "checksum": self.checksum,
            "resize": self.resizing,
            "rounding": self.rounding,
            "dimension": self.dimension,
            "probabilities": self.probabilities,
        }


class ClassifierExtractor(Extractor):
    """The last hidden layer of the classifier that the reference stage trains."""

    name = "classifier"
    probabilities = "softmax of the classifier's logits"

    def __init__(self, model: Classifier, *, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.checksum = _weights_checksum(model.state_dict())
        self.dimension = model.head.in_features
        if model.modality is not None and not MODALITIES[model.modality].by_shape:
            kind = MODALITIES[model.modality]
            self.rounding = f"{kind.dtype} {kind.noun} [{', '.join(kind.axes)}] as they are at rest, in float32"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.model.features(unit_on(self.device, images, self.model.modality)).cpu().numpy()

    def class_probabilities(self, images: np.ndarray) -> np.ndarray:
        return self.features_and_probabilities(images)[1]

    @torch.inference_mode()
    def features_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self.model.features(unit_on(self.device, images, self.model.modality))  # [n, width]
        return features.cpu().numpy(), self.model.head(features).softmax(dim=1).cpu().numpy()


class PixelExtractor(Extractor):
    """The pixels themselves in [-1, 1]: a baseline that needs nothing."""

    name = "pixels"
    checksum = "identity"
    dimension = None

    def __init__(self, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8:  # spectrograms: as they are
            return np.asarray(images, np.float32).reshape(len(images), -1)
        return to_unit(images).flatten(1).numpy()


class CoordinateExtractor(Extractor):
    """Points are their own features: float32 [n, d]."""

    name = "coordinates"
    rounding = "float32 points, as they are"
    checksum = "identity"
    dimension = None

    def __init__(self, *, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(images, np.float32)


class SymbolExtractor(Extractor):
    """The number of each symbol of a text: float32 [n, L]."""

    name = "symbols"
    rounding = "the symbol whose code is nearest to the sample's values"
    checksum = "identity"
    dimension = None

    def __init__(self, alphabet: Alphabet, *, device: torch.device) -> None:
        self.alphabet, self.device = alphabet, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.alphabet.decoded(images).astype(np.float32)


class InceptionExtractor(Extractor):
    """clean-fid's Inception-v3 with clean-fid's own bicubic resizing to 299 x 299 (mode "clean").

    Class probabilities are those of StyleGAN2-ADA's inception score: the script's own forward with its own resizing and
    without the bias of the last layer, as in the first inception score's code. 1008 classes.
    """

    name = "inception"
    resizing = "clean-fid: PIL bicubic to 299x299, antialiased, each channel in float32"
    rounding = "uint8 before resizing, clipped to [0, 255] and not rounded after, (x - 128) / 128"
    dimension = 2048

    def __init__(self, file: Path, *, device: torch.device, sha256: str | None = None) -> None:
        """sha256: of the file; None: the published one. Raises ExtractorError before a file of another is loaded."""
        from cleanfid.resize import build_resizer

        self.checksum = sha256 or INCEPTION_SHA256
        data = verified_bytes(file, sha256=self.checksum)
        try:
            self.script = torch.jit.load(io.BytesIO(data), map_location=device).eval()
            self.layers = self.script.layers
        except (RuntimeError, ValueError, AttributeError) as error:  # cut short, or another network without `layers`
            reason = (str(error).splitlines() or ["?"])[0]
            raise ExtractorError(f"{file}: not a TorchScript Inception ({reason}); fetch {INCEPTION_FILE}") from error
        self.resize, self.device = build_resizer("clean"), device
        if _takes(self.script, "no_output_bias"):
            self.probabilities = (
                "softmax of the script's own forward on uint8 images, its own bilinear resizing, no bias in the last "
                "layer (as StyleGAN2-ADA's inception score)"
            )

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        colour = _three_channels(images).transpose(0, 2, 3, 1)  # [n, H, W, 3]
        resized = torch.from_numpy(np.stack([self.resize(image) for image in colour])).permute(0, 3, 1, 2)
        features = self.layers.forward((resized.to(self.device) - 128) / 128)
        return features.flatten(1).float().cpu().numpy()  # [n, 2048]

    @torch.inference_mode()
    def class_probabilities(self, images: np.ndarray) -> np.ndarray | None:
        if self.probabilities is None:
            return None
        colour = torch.from_numpy(np.array(_three_channels(images))).to(self.device)  # uint8 [n, 3, H, W]
        return self.script(colour, no_output_bias=True).float().cpu().numpy()


class Dinov2Extractor(Extractor):
    """DINOv2's class token after the final layer norm (ViT-L/14: 1024 features), by transformers' Dinov2Model.

    After Stein et al. 2023, "Exposing flaws of generative model evaluation metrics and their unfair treatment of
    diffusion models", whose dgm-eval resizes the same way: RGB, one PIL resize to uint8 at 224 x 224, ImageNet's mean
    and standard deviation. dgm-eval takes the network from torch.hub, which stretches the position embeddings to
    224 x 224 with a scale factor ("interpolate_offset") where transformers names the size: last digits differ.
    """

    name = "dinov2"
    resizing = "PIL bicubic to 224x224, antialiased"
    rounding = "uint8 before and after resizing, then x / 255 and ImageNet's mean and standard deviation in float32"

    def __init__(self, file: Path, *, device: torch.device, sha256: str | None = None) -> None:
        """file: model.safetensors, its config.json beside it. sha256: of the file; None: the published ViT-L/14's.

        Raises ExtractorError without transformers, before a file of another digest is loaded, and at another network.
        """
        self.checksum = sha256 or DINOV2_SHA256
        model_class = dinov2_class()
        model = of_transformers(file, model_class, sha256=self.checksum, kinds=("dinov2",), called="DINOv2")
        self.model, self.device = model.to(device), device
        self.dimension = model.config.hidden_size
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = [self._tokens(images[i : i + DINOV2_BATCH]) for i in range(0, len(images), DINOV2_BATCH)]
        return torch.cat(parts).numpy()

    def _tokens(self, images: np.ndarray) -> Tensor:
        """uint8 [n, C, H, W] -> float32 [n, d] on the CPU."""
        colour = _three_channels(images).transpose(0, 2, 3, 1)  # [n, H, W, 3]
        resized = np.stack([_resized(image, DINOV2_SIDE) for image in colour])
        x = torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2) / 255  # [n, 3, 224, 224]
        return self.model(pixel_values=(x - self.mean) / self.std).last_hidden_state[:, 0].cpu()

    def describe(self) -> dict[str, Any]:
        """With the network's shape, since smaller models of the family are allowed, and what computes it."""
        import transformers

        shape = {k: getattr(self.model.config, k) for k in ("num_hidden_layers", "num_attention_heads", "patch_size")}
        return super().describe() | {"network": shape, "library": f"transformers {transformers.__version__}"}


def dinov2_class() -> type:
    """transformers' Dinov2Model. Raises ExtractorError that names the extra where transformers is not installed."""
    return class_of_transformers("Dinov2Model", extractor="dinov2")


def class_of_transformers(name: str, *, extractor: str) -> type:
    """A class of transformers. Raises ExtractorError that names the extra where it is not installed."""
    try:
        import transformers

        return getattr(transformers, name)
    except ImportError as error:
        raise ExtractorError(
            f"evaluate.extractor: {extractor} needs transformers ({error}); install it with "
            "`pip install -e '.[dinov2]'`"
        ) from error


def of_transformers(
    file: Path, model_class: type, *, sha256: str, kinds: Sequence[str], called: str, parts: tuple[str, ...] = ("",)
) -> Any:
    """The network of a model.safetensors by the config.json beside it, on the CPU.

    kinds: the values of model_type that are allowed. called: how messages name such a network. parts: what the
    names of those weights begin with that count. Raises ExtractorError before a file of another digest is loaded, and
    at another network.
    """
    verify(file, sha256=sha256)
    config = file.parent / TRANSFORMERS_CONFIG
    values = read_json(config)
    if not isinstance(values, dict) or values.get("model_type") not in kinds:
        raise ExtractorError(f"{config}: no configuration of a {called} (model_type: {kinds[0]})")
    try:  # from_pretrained with a folder would let its config.json name another file of weights
        model, loading = model_class.from_pretrained(
            None,
            config=model_class.config_class.from_dict(values.get("audio_config", values)),
            state_dict={name: weight for name, weight in load_file(file).items() if name.startswith(parts)},
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, all of them a file that does not fit
        reason = (str(error).splitlines() or ["?"])[0]
        raise ExtractorError(f"{file}: not the weights that {TRANSFORMERS_CONFIG} describes ({reason})") from error
    if loading["missing_keys"]:  # transformers goes on, with random weights in their place
        missing = min(loading["missing_keys"])
        raise ExtractorError(f"{file}: not the weights that {TRANSFORMERS_CONFIG} describes (no {missing})")
    return model.float().eval()


def features(extractor: Extractor, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Features of all batches: float32 [n, d]. Raises FeatureError where one is not finite."""
    return finite(np.concatenate([extractor(batch) for batch in batches]), extractor)


def finite(found: np.ndarray, extractor: Extractor) -> np.ndarray:
    """The features. Raises FeatureError where one is not finite."""
    if np.isfinite(found).all():
        return found
    mend = "; lower evaluate.classifier.lr" if extractor.name == "classifier" else ""
    raise FeatureError(f"the {extractor.name} extractor gave features that are not finite{mend}")


def _three_channels(images: np.ndarray) -> np.ndarray:
    """Grey images repeated: uint8 [n, 1 or 3, H, W] -> [n, 3, H, W], a view."""
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [side, side, 3] by PIL, whose bicubic is antialiased."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.BICUBIC))


def _takes(script: torch.jit.ScriptModule, argument: str) -> bool:
    """Whether the script has a forward with this argument."""
    forward = getattr(script, "forward", None)
    return forward is not None and argument in {a.name for a in forward.schema.arguments}


def _weights_checksum(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
