"""CLAP's embedding of sounds: what Fréchet distances of audio are measured by, where its weights are at hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifm.data.recordings import resampled
from ifm.files import read_json
from ifm.metrics.extractors import Extractor, class_of_transformers, of_transformers
from ifm.metrics.weights import ExtractorError
from ifm.modalities.spectrograms import Normalised

BATCH = 32  # sounds at a time: bounds the memory of ten seconds at 48 kHz each
PARTS = ("audio_model.", "audio_projection.")  # of a whole CLAP's weights; the others embed texts
PREPROCESSOR = "preprocessor_config.json"  # beside the weights; without it ClapFeatureExtractor's own values


class ClapExtractor(Extractor):
    """The projected audio embedding, of length 1 (Wu et al. 2023), by transformers' ClapAudioModelWithProjection.

    The figures are a Fréchet audio distance of CLAP embeddings, as in Gui et al. 2024 ("Adapting Frechet Audio Distance
    for generative music evaluation"). Spectrograms become sounds first, those of the data too: what Griffin-Lim costs
    is on both sides. A sound shorter than the network's ten seconds is repeated; of a longer one the first ten count.
    """

    name = "clap"
    resizing = "to sounds, band-limited resampling to the network's rate, repeated or cut to its length"
    rounding = "float16 spectrograms, float32 sounds, nothing rounded after"

    def __init__(self, file: Path, *, sound: Normalised, device: torch.device, sha256: str) -> None:
        """file: model.safetensors, its config.json beside it. sound: how the samples become sounds.

        Raises ExtractorError without transformers, before a file of another digest is loaded, and at another network.
        """
        model_class = clap_class()
        preparer = class_of_transformers("ClapFeatureExtractor", extractor=self.name)
        self.checksum, self.sound, self.device = sha256, sound, device
        allowed = {"kinds": ("clap", "clap_audio_model"), "called": "CLAP", "parts": PARTS}
        model = of_transformers(file, model_class, sha256=sha256, **allowed)
        fused = model.config.enable_fusion
        beside = file.parent / PREPROCESSOR
        values = read_json(beside) if beside.is_file() else {}
        if not isinstance(values, dict):
            raise ExtractorError(f"{beside}: no JSON object; fetch it again, or remove it")
        # Neither way of cutting is at random here, because nothing longer than the network's seconds is given.
        self.prepare = preparer.from_dict(values | {"truncation": "fusion" if fused else "rand_trunc"})
        self.model = model.to(device)
        self.dimension = model.config.projection_dim

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = [self._embedded(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate(parts)

    def _embedded(self, samples: np.ndarray) -> np.ndarray:
        """float [n, C, F, T] -> float32 [n, d]."""
        rate, longest = self.prepare.sampling_rate, self.prepare.nb_max_samples
        waves = self.sound.waves(samples)
        waves = [resampled(wave, self.sound.form.sample_rate, rate)[:longest] for wave in waves]
        given = self.prepare(waves, sampling_rate=rate, return_tensors="pt")
        features = given["input_features"].float().to(self.device)
        # The library calls one short sound of a batch long, at random. None is.
        longer = torch.zeros(len(samples), 1, dtype=torch.bool, device=self.device)
        found = self.model(input_features=features, is_longer=longer).audio_embeds
        return torch.nn.functional.normalize(found, dim=1).cpu().numpy()

    def describe(self) -> dict[str, Any]:
        """With the sounds' rate and what computes it."""
        import transformers

        rates = {"sample_rate": self.sound.form.sample_rate, "network": {"sample_rate": self.prepare.sampling_rate}}
        return super().describe() | rates | {"library": f"transformers {transformers.__version__}"}


def clap_class() -> type:
    """transformers' class. Raises ExtractorError that names the extra where transformers is not installed."""
    return class_of_transformers("ClapAudioModelWithProjection", extractor="clap")
