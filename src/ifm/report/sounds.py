"""Samples as they sound: players of flow and teacher side by side, embedded in the page."""

import base64
import io
import wave
from collections.abc import Mapping
from typing import Any

from ifm.report import names
from ifm.report.contents import Heard
from ifm.report.samples import picture_of

HEADER_BYTES = 44  # of a WAV file
SOUND_BYTES = 1_000_000  # of all players; base64 adds a third, and the page stays under 5 MB


def players(sounds: Mapping[str, Heard]) -> list[dict[str, Any]]:
    """A table for each dynamics: a row for each draw, a player for each model.

    Fewer rows where they take too much, and where one row does, the starts of its sounds.
    """
    shown = max((len(heard.names) for heard in sounds.values()), default=0)
    while shown > 1 and sum(_size(heard, shown) for heard in sounds.values()) > SOUND_BYTES:
        shown -= 1
    each = SOUND_BYTES // max(1, sum(len(heard.models) for heard in sounds.values()))  # of one row
    return [_table(key, sounds[key], shown, most=each) for key in names.ordered(sounds)]


def _size(heard: Heard, shown: int) -> int:
    return sum(len(sound) for _, wavs, _ in heard.models for sound in wavs[:shown])


def started(data: bytes, most: int) -> tuple[bytes, float | None]:
    """A WAV file of at most so many bytes: the start of a longer one, and its seconds; None: it is whole."""
    if len(data) <= most:
        return data, None
    buffer = io.BytesIO()
    with wave.open(io.BytesIO(data)) as whole, wave.open(buffer, "wb") as start:
        start.setparams(whole.getparams())
        frames = max(1, (most - HEADER_BYTES) // (whole.getsampwidth() * whole.getnchannels()))
        start.writeframes(whole.readframes(frames))
        seconds = frames / whole.getframerate()
    return buffer.getvalue(), seconds


def _table(key: str, heard: Heard, shown: int, *, most: int) -> dict[str, Any]:
    name = names.DYNAMICS.get(key, key)
    rows = []
    for i, title in enumerate(heard.names[:shown]):
        played = [(caption, *started(wavs[i], most)) for caption, wavs, _ in heard.models]
        cut = [seconds for _, _, seconds in played if seconds is not None]
        told = f"{title}, the first {max(cut):.1f} s" if cut else title
        cells = [
            {"label": f"{name}, {caption}: {told}", "uri": "data:audio/wav;base64," + _base64(sound)}
            for caption, sound, _ in played
        ]
        rows.append({"title": told, "cells": cells})
    return {
        "name": name,
        "colour": names.css_colour(key),
        "models": [caption for caption, _, _ in heard.models],
        "pictures": [picture_of(f"spectrograms, {caption}", png, name) for caption, _, png in heard.models],
        "rows": rows,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
