"""Latents: what an autoencoder makes of images, as the data of a model. Which of diffusers' classes are read.

The table names classes and does not import them. docs/latents.md has the whole way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifm.diffusers_files import CONFIG, check_files, in_one_line, read_object
from ifm.errors import UserError
from ifm.hub import folder_of

INNER = "vae"  # of a pipeline's folder
FILES = (
    CONFIG,
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.json",
    f"{INNER}/*.json",
    f"{INNER}/*.safetensors",
)
DECODER = "decoder"  # the autoencoder's folder, in that of a model and of processed data
KEYS = ("data.encoder", "data.encoder_revision")


@dataclass(frozen=True)
class Kind:
    """An autoencoder of diffusers: its class, the config's key that has an entry for each resolution."""

    model: str
    levels: str
    posterior: bool = False  # whether it gives a law of each image's latents, or one point
    scaling: float = 1.0  # scaling_factor where config.json has none: the class's own default


ENCODERS: dict[str, Kind] = {
    "AutoencoderKL": Kind("diffusers:AutoencoderKL", "block_out_channels", posterior=True, scaling=0.18215),
    "AutoencoderTiny": Kind("diffusers:AutoencoderTiny", "encoder_block_out_channels"),
    "AutoencoderDC": Kind("diffusers:AutoencoderDC", "encoder_block_out_channels"),
}


@dataclass(frozen=True)
class Found:
    """An autoencoder as it lies on disk. config: the content of config.json; origin: {"hub", "commit"} of the Hub."""

    folder: Path
    config: Mapping[str, Any]
    named: str  # how messages call it
    origin: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        return ENCODERS[self.config["_class_name"]]

    @property
    def factor(self) -> int:
        """Pixels to a side of a latent."""
        return 2 ** (len(self.config[self.kind.levels]) - 1)

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.config.get("in_channels", 3)

    @property
    def scaling(self) -> tuple[float, float]:
        """(scaling_factor, shift_factor): a model's latents are (the encoder's - shift) * scaling."""
        scaling, shift = self.config.get("scaling_factor"), self.config.get("shift_factor")
        return float(self.kind.scaling if scaling is None else scaling), float(shift or 0.0)

    def shape(self, images: tuple[int, ...]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images (C, H, W). Raises UserError where it is not for such images."""
        channels, *size = images
        if channels != self.channels:
            raise UserError(
                f"{self.named}: takes {self.channels} channels, the data have {channels}; see data.channels"
            )
        if any(side % self.factor for side in size):
            raise UserError(
                f"{self.named}: a latent stands for {self.factor} x {self.factor} pixels, which do not divide "
                f"data.image_size = {size[0]}; use a multiple of {self.factor}"
            )
        height, width = (side // self.factor for side in size)
        return self.config["latent_channels"], height, width

    def in_a_line(self, images: tuple[int, ...]) -> str:
        """What it is, and its latents of images (C, H, W)."""
        scaling, shift = self.scaling
        law = "with their posterior's deviation" if self.kind.posterior else "a point each"
        shape = " x ".join(map(str, self.shape(images)))
        return f"{self.config['_class_name']}, latents {shape}, {law}, scaling {scaling:g}, shift {shift:g}"


def look_up(path: str, *, revision: str | None, root: Path) -> Found:
    """The autoencoder of a folder (itself or its vae/) or of the Hub. Raises UserError.

    root: the folder that relative paths begin in.
    """
    folder, origin = folder_of(path, revision=revision, root=root, keys=KEYS, files=FILES)
    return find(folder, named=f"{KEYS[0]} = {path!r}", origin=origin)


def find(folder: Path, *, named: str, origin: Mapping[str, str] | None = None) -> Found:
    """The autoencoder of a folder, or of its vae/. Raises UserError for what is none that can be read."""
    place = next((place for place in (folder / INNER, folder) if (place / CONFIG).is_file()), None)
    if place is None:
        raise UserError(f"{named}: holds no {CONFIG} of diffusers, neither itself nor in {INNER}")
    with in_one_line(named):
        config = read_object(place / CONFIG)
        kind = config.get("_class_name")
        if kind not in ENCODERS:
            raise ValueError(f"the autoencoder is of class {kind}; known: {', '.join(ENCODERS)}")
        levels, channels = config.get(ENCODERS[kind].levels), config.get("latent_channels")
        if not isinstance(levels, list) or not levels or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"{CONFIG} needs latent_channels and {ENCODERS[kind].levels}, one for each resolution")
        for key in ("latents_mean", "latents_std"):
            if config.get(key) is not None:
                raise ValueError(
                    f"{CONFIG} has {key}, a scale for each channel; scaling_factor and shift_factor are read"
                )
        check_files(place)
    return Found(place, config, named, origin or {})
