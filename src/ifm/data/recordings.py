"""One encoded recording to a sound of one rate and length: decode, mix to mono, trim, resample, crop or pad, level.

Decoding is soundfile's (libsndfile: WAV, FLAC, OGG, MP3), which is one small package without a dependency on a version
of torch or on FFmpeg.
"""

import functools
import io
import re
from fractions import Fraction
from typing import Any

import numpy as np

from ifm.data.found import Encoded
from ifm.data.raw import Checked
from ifm.errors import UserError, in_a_line

HIGHEST = 1_000_000  # Hz
LONGEST = 3600  # seconds of one recording
PEAK, LOUDNESS = 0.95, 0.1  # what levels are brought to: -0.4 dB, -20 dB of full scale
PIECE = 2**20  # frames
FRAME = 0.01  # seconds over which silence is measured
FILTER = ("kaiser", 9.0)  # about 90 dB of attenuation outside of the band
TAPS = 64  # of the filter to each side, at the lower of both rates; and where it halves the amplitude, in units of
EDGE = 0.955  # that rate's Nyquist frequency: the band is kept up to 0.91 of it, and nothing is left from it on
UNKNOWN = (0, 0xFFFFFFFF)  # sizes that encoders write who do not know how long a sound will be


def soundfile() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: no libsndfile
        raise UserError(
            f"sounds need soundfile ({in_a_line(error)}); install it with `pip install -e '.[audio]'`"
        ) from error
    return soundfile


def decode(data: bytes) -> tuple[np.ndarray, int]:
    """Encoded bytes -> mono float64 [n], and the sample rate. Raises ValueError with the reason where that fails."""
    library = soundfile()
    if not data:
        raise ValueError("an empty file")
    try:
        with library.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            if not 1 <= rate <= HIGHEST:
                raise ValueError(f"has a sample rate of {rate} Hz")
            if file.frames > LONGEST * rate:
                raise ValueError(f"is longer than {LONGEST} s; cut it into parts")
            if cut := re.search(r"^data *: *(\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
                said, there = map(int, cut.groups())
                if said not in UNKNOWN and there < said:
                    raise ValueError(f"is cut off: {there} of {said} bytes of sound are there")
            parts = []  # mixed piece by piece: an hour of many channels would not fit into memory
            while len(piece := file.read(PIECE, dtype="float64", always_2d=True)):  # [n, channels]
                parts.append(piece.mean(axis=1))
    except library.LibsndfileError as error:
        raise ValueError(f"no known audio format, or damaged ({in_a_line(error)})") from error
    except (RuntimeError, TypeError, OSError, MemoryError) as error:
        raise ValueError(in_a_line(error)) from error
    if not parts:
        raise ValueError("holds no samples")
    sound = np.concatenate(parts)
    if not np.isfinite(sound).all():
        raise ValueError("holds NaN or infinity")
    return sound, rate


def heard(data: bytes, audio: Any) -> tuple[np.ndarray, int]:
    """What is to be used of a recording, at its own rate. Raises ValueError where it is silent, too short or too long.

    audio: the section data.audio of params.yaml.
    """
    sound, rate = decode(data)
    if not sound.any():
        raise ValueError("is silent: all of its samples are 0, its channels mixed")
    if audio.trim_db is not None:
        sound = trimmed(sound, rate, decibels=audio.trim_db)
    seconds = len(sound) / rate
    if seconds < audio.shortest:
        cut = " without the silence at its ends" if audio.trim_db is not None else ""
        raise ValueError(f"has {seconds:.3g} s{cut}, less than data.audio.shortest = {audio.shortest:g}")
    if audio.longer == "error" and seconds > audio.seconds:
        raise ValueError(f"has {seconds:.3g} s, more than data.audio.seconds = {audio.seconds:g}")
    if audio.shorter == "error" and seconds < audio.seconds:
        raise ValueError(f"has {seconds:.3g} s, less than data.audio.seconds = {audio.seconds:g}")
    return sound, rate


def prepared(data: bytes, audio: Any) -> np.ndarray:
    """An encoded recording -> float64 [samples] of the rate and length that data.audio asks for. Raises ValueError."""
    sound, rate = heard(data, audio)
    sound = resampled(sound, rate, audio.sample_rate)
    return fitted(levelled(sound, audio.normalise), round(audio.seconds * audio.sample_rate), audio)


def checked(recording: Encoded, *, audio: Any) -> Checked:
    """Decodes a recording to see whether it can be used."""
    if recording.data is None:
        return Checked("no bytes")
    try:
        sound, rate = heard(recording.data, audio)
    except ValueError as error:
        return Checked(str(error))
    return Checked(seconds=len(sound) / rate, rate=rate)


def trimmed(sound: np.ndarray, rate: int, *, decibels: float) -> np.ndarray:
    """Without what lies before and after the frames that are at most so many decibels softer than the loudest."""
    frame = max(1, round(FRAME * rate))
    starts = np.arange(0, len(sound), frame)
    power = np.add.reduceat(sound**2, starts) / np.diff(np.append(starts, len(sound)))
    loud = np.flatnonzero(power >= power.max() * 10 ** (-decibels / 10))
    return sound[starts[loud[0]] : starts[loud[-1]] + frame]


def resampled(sound: np.ndarray, rate: int, to: int) -> np.ndarray:
    """At another rate, by a linear-phase low-pass filter at the lower of both Nyquist frequencies (polyphase)."""
    if rate == to:
        return sound
    from scipy.signal import resample_poly

    ratio = Fraction(to, rate)
    return resample_poly(sound, ratio.numerator, ratio.denominator, window=_low_pass(max(ratio.as_integer_ratio())))


@functools.cache
def _low_pass(most: int) -> np.ndarray:
    """The filter [2 TAPS most + 1] at `most` times the lower of both rates."""
    from scipy.signal import firwin

    return firwin(2 * TAPS * most + 1, EDGE / most, window=FILTER)


def levelled(sound: np.ndarray, how: str) -> np.ndarray:
    """At one level: by its peak, or by its root mean square as far as the peak allows; none: as it is."""
    peak = np.abs(sound).max(initial=0)
    if how == "none" or not peak:
        return sound
    loudness = np.sqrt((sound**2).mean())
    return sound * (PEAK / peak if how == "peak" else min(LOUDNESS / loudness, PEAK / peak))


def fitted(sound: np.ndarray, samples: int, audio: Any) -> np.ndarray:
    """Cropped or padded to a length, as data.audio.longer and data.audio.shorter say."""
    extra = len(sound) - samples
    if extra > 0:
        first = {"start": 0, "centre": extra // 2}.get(audio.longer)
        if first is None:  # loudest
            energy = np.concatenate([[0], np.cumsum(sound**2)])
            first = int(np.argmax(energy[samples:] - energy[: extra + 1]))
        return sound[first : first + samples]
    if audio.shorter == "repeat":
        return np.resize(sound, samples)
    before = -extra // 2 if audio.shorter == "centre" else 0
    return np.pad(sound, (before, -extra - before))
