"""Encoding a processed data set once, by any number of processes: the same files, whatever their number."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ifm.data.arrays import DataError, ImageSet, ShardedArray
from ifm.data.latents import LatentMetadata, LatentSplit
from ifm.diffusers_files import CONFIG, WEIGHTS
from ifm.files import atomic_path, joint_sha256, warn_of_space, write_json
from ifm.latents import DECODER, Found
from ifm.latents.autoencoder import PIXELS, Autoencoder
from ifm.modalities.images import to_unit
from ifm.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARD_BYTES = 2**28
_BLOCK_ROWS = 256


def encode(
    images: dict[str, ImageSet], found: Found, work: Path, *, accelerator: "Accelerator"
) -> dict[str, list[Path]]:
    """The latents' shards of every split, written to `work` where they are not there yet; by split.

    images: by split, of one size. Each process writes every num_processes-th shard, batch by batch: memory is bounded
    by one batch and its activations, whatever the number of images. A killed run goes on with its first missing shard.
    Raises DataError where a latent does not fit float16.
    """
    autoencoder = Autoencoder.read(found)
    of_split = {name: _shards(split, found, work / f"{name}-latents") for name, split in images.items()}
    todo = [(images[name], *shard) for name, shards in of_split.items() for shard in shards]
    if accelerator.is_main_process:
        missing = sum(_bytes(split, found, len(rows)) for split, path, rows in todo if not path.is_file())
        warn_of_space(work, missing, what="latents")
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    with progress(label="encode", unit="img", total=sum(len(rows) for _, _, rows in mine)) as bar:
        for split, path, rows in mine:
            if not path.is_file():
                _write(path, split, rows, autoencoder, accelerator.device, bar)
            else:
                bar.update(len(rows))
    accelerator.wait_for_everyone()
    return {name: [path for path, _ in shards] for name, shards in of_split.items()}


def finish(images: dict[str, ImageSet], found: Found, shards: dict[str, list[Path]], folder: Path) -> LatentMetadata:
    """Moves shards beside the processed images in `folder`, with the autoencoder and latents.json."""
    read = {name: _Read(paths, _row_shape(images[name], found)) for name, paths in shards.items()}
    scaling, shift = found.scaling
    metadata = LatentMetadata(
        encoder=found.config["_class_name"],
        origin=dict(found.origin),
        weights=digest(found),
        scaling_factor=scaling,
        shift_factor=shift,
        shape=list(found.shape(images["train"].shape)),
        mirrored=images["train"].random_flip,
        posterior=found.kind.posterior,
        splits={
            name: LatentSplit(len(images[name]), [path.name for path in paths], read[name].sha256)
            for name, paths in shards.items()
        },
        mean=read["train"].mean.tolist(),
        std=read["train"].std.tolist(),
    )
    if not min(metadata.std) > 0:
        raise DataError(f"{found.named}: a channel of its latents is the same for all training images")
    for paths in shards.values():
        for path in paths:
            shutil.move(path, folder / path.name)
    copy_autoencoder(found, folder / DECODER)
    metadata.write(folder)
    return metadata


def digest(found: Found) -> str:
    """sha256 of its weights."""
    return joint_sha256(found.folder.glob(f"{WEIGHTS}*.safetensors"))


def copy_autoencoder(found: Found, out: Path) -> None:
    """Its config and weights alone, into a new folder."""
    out.mkdir()
    named = {key: value for key, value in found.config.items() if key == "_class_name" or not key.startswith("_")}
    write_json(out / CONFIG, named)
    for file in sorted(found.folder.glob(f"{WEIGHTS}*")):
        if file.suffix in (".safetensors", ".json"):
            shutil.copyfile(file, out / file.name)


def _row_shape(images: ImageSet, found: Found) -> tuple[int, ...]:
    return 1 + images.random_flip, 1 + found.kind.posterior, *found.shape(images.shape)


def _bytes(images: ImageSet, found: Found, rows: int) -> int:
    return 2 * rows * int(np.prod(_row_shape(images, found)))


def _shards(images: ImageSet, found: Found, start: Path) -> list[tuple[Path, range]]:
    """Of one split: each shard's file and rows."""
    each = max(1, SHARD_BYTES // _bytes(images, found, 1))
    ranges = [range(i, min(i + each, len(images))) for i in range(0, len(images), each)]
    return [(start.with_name(f"{start.name}-{i:05d}.npy"), rows) for i, rows in enumerate(ranges)]


def _write(path: Path, images: ImageSet, rows: range, autoencoder: Autoencoder, device: torch.device, bar) -> None:
    found, size = autoencoder.found, max(1, PIXELS // int(np.prod(images.shape[1:])))
    shape = (len(rows), *_row_shape(images, found))
    with atomic_path(path, size=2 * int(np.prod(shape))) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for start in range(rows.start, rows.stop, size):
            members = np.arange(start, min(start + size, rows.stop))
            x = to_unit(images[members]).to(device)
            both = [x, x.flip(-1)] if images.random_flip else [x]
            latents = torch.stack([autoencoder.encode(each) for each in both], dim=1).half().cpu()
            if not bool(latents.isfinite().all()):
                raise DataError(f"{found.named}: gives latents that float16 does not hold; see its scaling_factor")
            file.write(latents.numpy().tobytes())
            bar.update(len(members))


class _Read:
    """Shards read once, a block at a time: digest, and each channel's mean and deviation of what training draws."""

    def __init__(self, paths: list[Path], row_shape: tuple[int, ...]) -> None:
        whole, first, second, n = hashlib.sha256(), 0.0, 0.0, 0
        for block in ShardedArray(paths, stage="preprocess", row_shape=row_shape, dtype="<f2").batches(_BLOCK_ROWS):
            whole.update(block)
            law = block.astype(np.float64)  # [n, m, s, c, h, w]
            squares = (law**2).sum(axis=2)  # mean^2 + deviation^2: E[x_0^2]
            first = first + law[:, :, 0].sum(axis=(0, 1, 3, 4))
            second = second + squares.sum(axis=(0, 1, 3, 4))
            n += squares[:, :, 0].size
        self.sha256, self.mean = whole.hexdigest(), first / n
        self.std = np.sqrt(np.maximum(second / n - self.mean**2, 0))
