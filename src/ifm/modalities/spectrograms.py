"""Sounds as arrays [C, F, T] and back: complex spectrograms with compressed magnitude, and log-mel spectrograms.

A frame has `fft` samples under a periodic Hann window, and the frames' centres lie `hop` apart, the first half a hop
after the beginning: so `samples` / `hop` frames, rounded up, cover all of a sound. Magnitudes are in units of a
full-scale tone's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ifm.errors import UserError

SPREAD = 0.5  # standard deviation of what is normalised, as EDM's sigma_data for images
DECADES = 3.0  # of the log-mel scale: 60 dB below a full-scale tone is taken for silence
GRIFFIN_LIM_ROUNDS = 40
MEL_ROUNDS = 60
MOMENTUM = 0.99  # of Griffin-Lim: Perraudin et al. 2013
QUIET = 0.02  # of the log-mel scale: what a model leaves below is silence
LARGEST = 6e4  # float16 ends at 65,504


@dataclass(frozen=True)
class Spectrograms:
    """How sounds of one length become arrays. kind: complex | logmel; mels: of logmel; power: of complex."""

    sample_rate: int
    samples: int
    kind: str
    fft: int
    hop: int
    mels: int
    power: float
    multiple: int  # frequencies and frames are padded with silence to a multiple of it

    @classmethod
    def of(cls, audio: Any) -> "Spectrograms":
        """As the section data.audio of params.yaml has it."""
        samples = round(audio.seconds * audio.sample_rate)
        return cls(
            audio.sample_rate,
            samples,
            audio.representation,
            audio.fft,
            audio.hop,
            audio.mels,
            audio.power,
            audio.multiple,
        )

    @property
    def channels(self) -> int:
        """Real and imaginary part, or one."""
        return 2 if self.kind == "complex" else 1

    @property
    def frequencies(self) -> int:
        """Before padding."""
        return self.fft // 2 + 1 if self.kind == "complex" else self.mels

    @property
    def frames(self) -> int:
        """Before padding."""
        return -(-self.samples // self.hop)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, F, T)."""
        padded = (-(-side // self.multiple) * self.multiple for side in (self.frequencies, self.frames))
        return self.channels, *padded

    def analyse(self, waves: np.ndarray) -> np.ndarray:
        """float [n, samples] in [-1, 1] -> float32 [n, C, F, T], not normalised; silence is 0."""
        spectra = self._stft(np.asarray(waves, np.float64))  # [n, fft/2 + 1, frames]
        if self.kind == "complex":
            compressed = _with_magnitude(spectra, self.power)
            parts = np.stack([compressed.real, compressed.imag], axis=1)
        else:
            mel = np.maximum(self._filters @ np.abs(spectra), 10**-DECADES)  # [n, mels, frames]
            parts = (np.log10(mel) / DECADES + 1)[:, None]
        out = np.zeros((len(waves), *self.shape), np.float32)
        out[:, :, : self.frequencies, : self.frames] = parts
        return out

    def waves(self, arrays: np.ndarray) -> np.ndarray:
        """The inverse: float [n, C, F, T] -> float32 [n, samples]. Exact for complex; logmel: Griffin and Lim 1984."""
        parts = np.asarray(arrays, np.float64)[:, :, : self.frequencies, : self.frames]
        if self.kind == "complex":
            return self._istft(_with_magnitude(parts[:, 0] + 1j * parts[:, 1], 1 / self.power)).astype(np.float32)
        scale = parts[:, 0].clip(0, 4 / DECADES)
        mel = np.where(scale < QUIET, 0, 10 ** (DECADES * (scale - 1)))
        return self._griffin_lim(self._of_mel(mel)).astype(np.float32)

    @cached_property
    def _window(self) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.fft) / self.fft)

    @property
    def _lead(self) -> int:
        """Samples of the first frame that lie before the sound."""
        return self.fft // 2 - self.hop // 2

    @property
    def _span(self) -> int:
        return (self.frames - 1) * self.hop + self.fft

    def _stft(self, waves: np.ndarray) -> np.ndarray:
        """[n, samples] -> complex [n, fft/2 + 1, frames]; a full-scale tone has magnitude 1."""
        after = self._span - self._lead - self.samples
        padded = np.pad(waves, ((0, 0), (self._lead, after)))
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft, axis=1)[:, :: self.hop]
        return np.fft.rfft(frames * self._window).transpose(0, 2, 1) * (2 / self.fft / 0.5)

    def _istft(self, spectra: np.ndarray) -> np.ndarray:
        """The least-squares inverse: [n, fft/2 + 1, frames] -> [n, samples]."""
        frames = np.fft.irfft(spectra.transpose(0, 2, 1) / (2 / self.fft / 0.5), n=self.fft) * self._window
        total = np.zeros((len(spectra), self._span))
        for i in range(self.frames):
            total[:, i * self.hop : i * self.hop + self.fft] += frames[:, i]
        return (total / self._overlap)[:, self._lead : self._lead + self.samples]

    @cached_property
    def _overlap(self) -> np.ndarray:
        """The sum of squared windows, [span]; 1 where there is none, outside of the sound."""
        total = np.zeros(self._span)
        for i in range(self.frames):
            total[i * self.hop : i * self.hop + self.fft] += self._window**2
        return np.where(total > 1e-8, total, 1)

    @cached_property
    def _filters(self) -> np.ndarray:
        """Triangles of height 1, even on the mel scale 2595 log10(1 + f / 700): [mels, fft/2 + 1].

        Neighbouring corners lie a bin apart at least, so that no filter is empty.
        """
        top = 2595 * math.log10(1 + self.sample_rate / 2 / 700)
        hertz = 700 * (10 ** (np.linspace(0, top, self.mels + 2) / 2595) - 1)
        corners = hertz * self.fft / self.sample_rate
        for i in range(1, len(corners)):
            corners[i] = max(corners[i], corners[i - 1] + 1)
        bins = np.arange(self.fft // 2 + 1)
        low, centre, high = (corners[i : i + self.mels, None] for i in range(3))
        return np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)

    def _of_mel(self, mel: np.ndarray) -> np.ndarray:
        """Magnitudes [n, fft/2 + 1, frames] >= 0 with about these mel magnitudes [n, mels, frames].

        By multiplicative updates of non-negative least squares (Lee and Seung 2001) from the filters' transpose.
        """
        filters = self._filters
        found = filters.T @ mel + 1e-12
        aim, gram = filters.T @ mel, filters.T @ filters
        for _ in range(MEL_ROUNDS):
            found *= aim / (gram @ found + 1e-12)
        return found

    def _griffin_lim(self, magnitudes: np.ndarray) -> np.ndarray:
        """Sounds with about these magnitudes: [n, samples]. The first phases are the same for every sound."""
        phases = np.random.default_rng(0).uniform(0, 2 * np.pi, magnitudes.shape[1:])
        spectra, before = magnitudes * np.exp(1j * phases), 0
        for _ in range(GRIFFIN_LIM_ROUNDS):
            consistent = self._stft(self._istft(spectra))
            ahead = consistent + MOMENTUM * (consistent - before)
            spectra, before = magnitudes * ahead / np.maximum(np.abs(ahead), 1e-12), consistent
        return self._istft(spectra)


def _with_magnitude(spectra: np.ndarray, power: float) -> np.ndarray:
    """The same phases with magnitudes to a power."""
    return spectra * np.maximum(np.abs(spectra), 1e-30) ** (power - 1)


@dataclass(frozen=True)
class Normalised:
    """Spectrograms at rest: float16, less the mean of each channel and frequency, with one standard deviation."""

    form: Spectrograms
    mean: np.ndarray  # [C, F]
    deviation: float

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON, which `read` reads: what metadata.json and ifm.json have under "sound"."""
        facts = {name: getattr(self.form, name) for name in Spectrograms.__dataclass_fields__}
        return facts | {"mean": self.mean.tolist(), "deviation": self.deviation}

    @classmethod
    def read(cls, described: Mapping[str, Any] | None) -> "Normalised":
        """The inverse. Raises UserError."""
        try:
            form = Spectrograms(**{name: described[name] for name in Spectrograms.__dataclass_fields__})
            found = cls(form, np.array(described["mean"], np.float64), float(described["deviation"]))
            if found.mean.shape != form.shape[:2] or not np.isfinite(found.mean).all() or not found.deviation > 0:
                raise ValueError("mean or deviation")
        except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise UserError(
                f"these spectrograms do not say how sounds become of them ({error}): the description beside them needs "
                "the key sound, as metadata.json of data/processed and ifm.json have it"
            ) from error
        return found

    def at_rest(self, arrays: np.ndarray) -> np.ndarray:
        """What `Spectrograms.analyse` gives, float32 [n, C, F, T] -> float16."""
        scaled = (arrays - self.mean[:, :, None]) * (SPREAD / self.deviation)
        return scaled.clip(-LARGEST, LARGEST).astype(np.float16)

    def waves(self, samples: np.ndarray) -> np.ndarray:
        """Samples at rest, or as a model makes them, [n, C, F, T] -> float32 [n, samples]."""
        return self.form.waves(np.asarray(samples, np.float64) * (self.deviation / SPREAD) + self.mean[:, :, None])


def pictures(samples: np.ndarray) -> np.ndarray:
    """Samples at rest [n, C, F, T] as grey pictures, uint8 [n, 1, H, W]: loud is light, low frequencies below."""
    values = np.asarray(samples, np.float32)
    light = np.hypot(values[:, :1], values[:, 1:]) / 2 if values.shape[1] == 2 else (values + 1) / 2.5
    grey = (light[:, :, ::-1].clip(0, 1) * 255).round().astype(np.uint8)
    larger = max(1, 64 // max(grey.shape[2:]))
    return grey.repeat(larger, axis=2).repeat(larger, axis=3)
