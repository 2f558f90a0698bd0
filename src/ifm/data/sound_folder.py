"""A folder of recordings that are judged, prepared as those of the data were."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np

from ifm.data.ahead import Workers
from ifm.data.local import SOUNDS, image_files
from ifm.data.recordings import prepared, soundfile
from ifm.data.sound import PREPARED, PREPARES
from ifm.data.sources.base import few
from ifm.errors import UserError, in_a_line
from ifm.files import readable
from ifm.modalities.spectrograms import Normalised
from ifm.progress import progress

ROWS = 256  # recordings at a time
SHOWN = 5  # faults in a message


def read_folder(folder: Path, described: Mapping[str, Any] | None) -> np.ndarray:
    """The recordings below a folder, sorted by path: float16 [n, C, F, T], prepared and normalised as the data's were.

    described: what metadata.json of the data, or of what was made of them, has under "sound". Raises ValueError where
    there are no recordings or some cannot be used, in one message for all; UserError without soundfile.
    """
    soundfile()  # said before any work
    form, prepares = Normalised.read(described), (described or {}).get(PREPARED)
    if not isinstance(prepares, Mapping) or not prepares.keys() >= set(PREPARES):
        raise UserError("--reference: does not say how the data's recordings were prepared; make it again: `dvc repro`")
    paths = image_files(folder, SOUNDS).paths
    if not paths:
        raise ValueError(f"it has no {', '.join(SOUNDS)} files")
    groups = (paths[i : i + ROWS] for i in range(0, len(paths), ROWS))
    one = partial(_one, folder=folder, audio=SimpleNamespace(**prepares))
    samples, faults, start = np.empty((len(paths), *form.form.shape), np.float16), [], 0
    with Workers(len(paths)) as workers, progress(total=len(paths), label="read", unit="sound") as bar:
        for members, sounds in workers.each(one, groups, size=lambda group: len(group) * 8 * form.form.samples):
            faults += [f"{readable(str(p))} {s}" for p, s in zip(members, sounds, strict=True) if isinstance(s, str)]
            if not faults:
                samples[start : start + len(sounds)] = form.at_rest(form.form.analyse(np.stack(sounds)))
            start += len(sounds)
            bar.update(len(sounds))
    if faults:
        raise ValueError(f"{len(faults)} of {len(paths)} recordings cannot be used: {few(faults, SHOWN)}")
    return samples


def _one(path: PurePath, *, folder: Path, audio: Any) -> np.ndarray | str:
    """One recording, float64 [samples]; or why it cannot be used."""
    try:
        return prepared((folder / path).read_bytes(), audio)
    except OSError as error:
        return f"cannot be read ({in_a_line(error)})"
    except ValueError as error:
        return str(error)
