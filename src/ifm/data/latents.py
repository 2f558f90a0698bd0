"""Latents beside the processed images that they are of: what a model trains on where data.encoder is set.

The folder of processed images then holds besides (see `ifm.data.arrays`):
    {split}-latents-{00000}.npy   float16 [n, m, s, c, h, w], see `ifm.modalities.latents`
    latents.json                  LatentMetadata
    decoder/                      the autoencoder
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ifm.data.arrays import DataError, ProcessedMetadata, ProcessedSplit, SampleSet, StoredMetadata
from ifm.files import read_dataclass, write_json
from ifm.latents import DECODER

METADATA = "latents.json"


@dataclass(frozen=True)
class LatentSplit:
    """One split: sha256 is over the latents' bytes in order."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    count: int
    shards: list[str]
    sha256: str


@dataclass(frozen=True)
class LatentMetadata:
    """latents.json. mean, std: of each channel over the train split, of what a training step draws; scaled."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}
    encoder: str  # its class
    origin: dict[str, str]  # {"hub", "commit"} of the Hub
    weights: str  # sha256
    scaling_factor: float  # the encoder's latents become (latents - shift_factor) scaling_factor
    shift_factor: float
    shape: list[int]  # [c, h, w]
    mirrored: bool  # m is 2: each image and its mirror image
    posterior: bool  # s is 2: mean and deviation
    splits: dict[str, LatentSplit]
    mean: list[float]
    std: list[float]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(m, s, c, h, w)."""
        return 1 + self.mirrored, 1 + self.posterior, *self.shape

    def write(self, folder: Path) -> None:
        """Writes latents.json."""
        write_json(folder / METADATA, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises DataError where the file is missing or has another form."""
        try:
            return read_dataclass(folder / METADATA, cls)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / METADATA}: describes no latents; run `dvc repro preprocess` again") from error


class LatentSet(SampleSet):
    """Latents: float16 [n, m, s, c, h, w]."""

    Metadata, dtype, noun = ProcessedMetadata, np.float16, "latents"

    @classmethod
    def open(cls, folder: Path, split: str) -> Self:
        """Maps the split and checks it against metadata.json and latents.json. Raises DataError."""
        images, latents = ProcessedMetadata.read(folder), LatentMetadata.read(folder)
        return cls.mapped(folder, split, _Both(images, latents))

    @property
    def random_flip(self) -> bool:
        """Whether training shows mirror images half of the time."""
        return self.metadata.latents.mirrored

    @property
    def decoder(self) -> Path:
        """The autoencoder's folder."""
        return self.array.paths[0].parent / DECODER

    @property
    def recorded(self) -> dict[str, Any]:
        """Nothing: what leaves a model of latents are images."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """What a model's ifm.json says of the data's shape."""
        return {"image_shape": list(self.metadata.images.image_shape), "latent_shape": list(self.shape)}


@dataclass(frozen=True)
class _Both(StoredMetadata):
    """What the two files say, as `SampleSet` asks for it."""

    images: ProcessedMetadata
    latents: LatentMetadata

    @cached_property
    def splits(self) -> dict[str, ProcessedSplit]:
        """sha256: of latents and labels, as that of images is."""
        described, splits = self.images.splits, {}
        for name, found in self.latents.splits.items():
            both = hashlib.sha256((found.sha256 + described[name].sha256).encode()).hexdigest()
            splits[name] = ProcessedSplit(found.count, found.shards, described[name].class_counts, both)
        return splits

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.latents.row_shape

    @property
    def classes(self) -> list[str] | None:
        return self.images.classes

    @property
    def mean(self) -> list[float]:
        return self.latents.mean

    @property
    def std(self) -> list[float]:
        return self.latents.std
