"""A processed split, whatever it holds."""

from pathlib import Path

from ifm import modalities
from ifm.data.arrays import METADATA, DataError, ImageSet, SampleSet
from ifm.data.latents import METADATA as LATENTS
from ifm.data.latents import LatentSet
from ifm.data.points import PointSet
from ifm.data.sound import SoundSet
from ifm.data.text import TextSet
from ifm.files import read_json

SETS: dict[str, type[SampleSet]] = {  # by modality
    "images": ImageSet,
    "points": PointSet,
    "text": TextSet,
    "sound": SoundSet,
}


def open_split(folder: Path, split: str) -> SampleSet:
    """Images uint8 [n, C, H, W], points float32 [n, d], text uint8 [n, C, L] or sounds float16 [n, C, F, T].

    metadata.json says which. Raises DataError.
    """
    path = folder / METADATA
    try:
        kind = modalities.of(read_json(path)).name
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; run `dvc repro preprocess`") from error
    except (ValueError, OSError, TypeError) as error:
        raise DataError(f"{path}: does not describe a processed data set; run `dvc repro preprocess` again") from error
    return SETS[kind].open(folder, split)


def open_states(folder: Path, split: str) -> SampleSet:
    """What a model of the data has as its x_0: latents where there are any, else what `open_split` gives."""
    return (LatentSet.open if (folder / LATENTS).is_file() else open_split)(folder, split)
