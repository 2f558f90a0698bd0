"""Encodes and measures digits in however many processes it is launched in: python latent_worker.py FOLDER OUT."""

import os
import sys
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from ifm import latents, modalities
from ifm.config import read_params
from ifm.config.sections import EvaluateConfig
from ifm.data.arrays import ImageSet
from ifm.data.splits import open_split, open_states
from ifm.files import fresh_folder
from ifm.hardware.processes import PATIENCE, make_accelerator
from ifm.latents import encoding
from ifm.latents.autoencoder import Autoencoder
from ifm.metrics.reference import build_reference
from ifm.random import posterior

ROOT = Path(__file__).parents[2]


def main(folder: Path, out: Path) -> None:
    """folder: processed/, digits in their splits, and kl/. Writes latents/ and reference/ in `out`."""
    accelerator = make_accelerator("no", seed=0, patience=PATIENCE)
    encoding.SHARD_BYTES = 2**13  # many shards
    found = latents.look_up("kl", revision=None, root=folder)
    images = {split: ImageSet.open(folder / "processed", split) for split in ("train", "test")}
    shards = encoding.encode(images, found, out / "work", accelerator=accelerator)
    if accelerator.is_main_process:
        with fresh_folder(out / "latents") as fresh:
            for file in (folder / "processed").glob("*"):
                os.link(file, fresh / file.name)
            encoding.finish(images, found, shards, fresh)
    broadcast_object_list([None])
    train, test = (open_split(out / "latents", split) for split in ("train", "test"))
    states = open_states(out / "latents", "train")
    decoder = Autoencoder.read(latents.find(states.decoder, named="decoder"))

    def reconstruct(members: range):
        at_rest = torch.from_numpy(states[list(members)])
        return modalities.at_rest(decoder.decode(modalities.shown(at_rest, posterior(0, members, step=0))))

    values = read_params(ROOT / "params.yaml")["evaluate"]
    values |= {"extractor": "classifier", "classifier": values["classifier"] | {"width": 8, "steps": 10}}
    build_reference(
        EvaluateConfig(**values),
        train=train,
        test=test,
        out=out / "reference",
        device=accelerator.device,
        reconstruct=reconstruct,
        accelerator=accelerator,
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
