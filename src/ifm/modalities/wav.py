"""Sounds as WAV files of 16 bits, by the standard library: to play samples needs no further package."""

import io
import re
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifm.files import atomic_path, fresh_folder
from ifm.modalities.spectrograms import Normalised

Batches = Iterable[tuple[range, np.ndarray]]
PAUSE = 0.25  # seconds between the sounds of one file


def wav_bytes(sound: np.ndarray, sample_rate: int) -> bytes:
    """A mono sound [n] in [-1, 1] as a WAV file; a louder one is made as much softer as it takes."""
    values = np.asarray(sound, np.float64) / max(1.0, float(np.abs(sound).max(initial=0)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((values * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def wavs(samples: np.ndarray, described: Mapping[str, Any]) -> list[bytes]:
    """Samples at rest [n, C, F, T] as WAV files. described: what the description beside them has under "sound"."""
    form = Normalised.read(described)
    return [wav_bytes(sound, form.form.sample_rate) for sound in form.waves(samples)]


def write_folder(
    out: Path,
    drawn: Batches,
    n: int,
    shape: tuple[int, ...],
    *,
    described: Mapping[str, Any] | None,
    names: Sequence[str] | None = None,
) -> None:
    """A folder with a WAV file of each sound. names: of the class of each, which end the files' names."""
    form = Normalised.read(described)
    with fresh_folder(out) as folder:
        for members, samples in drawn:
            for i, sound in zip(members, form.waves(samples), strict=True):
                end = "" if names is None else "-" + re.sub(r"[^\w.-]+", "_", names[i])
                (folder / f"{i:06d}{end}.wav").write_bytes(wav_bytes(sound, form.form.sample_rate))


def write_one(
    out: Path, drawn: Batches, n: int, shape: tuple[int, ...], *, described: Mapping[str, Any] | None
) -> None:
    """One WAV file of all sounds, one after the other."""
    form = Normalised.read(described)
    pause = np.zeros(round(PAUSE * form.form.sample_rate), np.float32)
    parts = [part for _, samples in drawn for sound in form.waves(samples) for part in (sound, pause)]
    with atomic_path(out) as temporary:
        temporary.write_bytes(wav_bytes(np.concatenate(parts[:-1]), form.form.sample_rate))
