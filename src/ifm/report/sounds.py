"""Samples as they sound: players of flow and teacher side by side, embedded in the page."""

import base64
from collections.abc import Mapping
from typing import Any

from ifm.report import names
from ifm.report.contents import Heard
from ifm.report.samples import picture_of

SOUND_BYTES = 1_000_000  # of all players; base64 adds a third, and the page stays under 5 MB


def players(sounds: Mapping[str, Heard]) -> list[dict[str, Any]]:
    """A table for each dynamics: a row for each draw, a player for each model; fewer rows where they take too much."""
    shown = max((len(heard.names) for heard in sounds.values()), default=0)
    while shown > 1 and sum(_size(heard, shown) for heard in sounds.values()) > SOUND_BYTES:
        shown -= 1
    return [_table(key, sounds[key], shown) for key in names.ordered(sounds)]


def _size(heard: Heard, shown: int) -> int:
    return sum(len(sound) for _, wavs, _ in heard.models for sound in wavs[:shown])


def _table(key: str, heard: Heard, shown: int) -> dict[str, Any]:
    name = names.DYNAMICS.get(key, key)
    rows = []
    for i, title in enumerate(heard.names[:shown]):
        cells = [
            {"label": f"{name}, {caption}: {title}", "uri": "data:audio/wav;base64," + _base64(wavs[i])}
            for caption, wavs, _ in heard.models
        ]
        rows.append({"title": title, "cells": cells})
    return {
        "name": name,
        "colour": names.css_colour(key),
        "models": [caption for caption, _, _ in heard.models],
        "pictures": [picture_of(f"spectrograms, {caption}", png, name) for caption, _, png in heard.models],
        "rows": rows,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
