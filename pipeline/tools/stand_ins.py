"""`python -m pipeline.tools.stand_ins`: small models in the form of public ones, trained on data/processed.

What docs/teachers.md and docs/latents.md measure where no published model can be downloaded: a DDPM by the loop of
diffusers' tutorial, an AutoencoderKL, and diffusers' own sampling of the DDPM.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ifm.config import Config, parse, read_params
from ifm.data.splits import open_split
from ifm.errors import UserError
from ifm.files import write_text
from ifm.metrics.distances import fid, moments
from ifm.metrics.reference import load_reference
from ifm.modalities.images import to_unit
from ifm.progress import progress
from pipeline.runner import paths
from pipeline.tools.results import TEACHERS, added, table

KL_WEIGHT = 1e-3  # of the posterior's divergence from N(0, I), beside the mean square error
LATENT_CHANNELS = 2
CPU = torch.device("cpu")


def descend(loss: Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step of the weights, with the gradient's norm at most 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def train_ddpm(
    model: Any, data: Tensor, folder: Path, *, steps: int, batch_size: int = 32, lr: float = 4e-3, **scheduler: Any
) -> Path:
    """diffusers' tutorial "Train a diffusion model", saved as its pipeline: unet/, scheduler/.

    data: images in [-1, 1] [n, C, S, S]. scheduler: options of DDPMScheduler besides its 1,000 steps.
    """
    from diffusers import DDPMPipeline, DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup

    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, **scheduler)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    generator = torch.Generator().manual_seed(1)
    for _ in progress(range(steps), label="DDPM", unit="step", total=steps):
        clean = data[torch.randint(len(data), (batch_size,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (batch_size,), generator=generator)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        loss = torch.nn.functional.mse_loss(model(noisy, timesteps, return_dict=False)[0], noise)
        descend(loss, model, optimizer)
        lr_scheduler.step()
    DDPMPipeline(model.eval(), noise_scheduler).save_pretrained(folder)
    return folder


def train_autoencoder(data: Tensor, folder: Path, *, steps: int, batch_size: int = 64, lr: float = 2e-3) -> Path:
    """An AutoencoderKL that halves both sides, saved with the scaling factor that gives latents of deviation 1.

    data: images in [-1, 1] [n, C, S, S]. Latents: [n, LATENT_CHANNELS, S / 2, S / 2].
    """
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=data.shape[1], out_channels=data.shape[1], latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32), norm_num_groups=8, sample_size=data.shape[-1],
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in progress(range(steps), label="autoencoder", unit="step", total=steps):
        images = data[torch.randint(len(data), (batch_size,), generator=generator)]
        posterior = model.encode(images).latent_dist
        found = model.decode(posterior.sample(generator=generator)).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = torch.nn.functional.mse_loss(found, images) + KL_WEIGHT * divergence
        descend(loss, model, optimizer)
        rates.step()
    with torch.no_grad():
        latents = torch.cat([model.eval().encode(part).latent_dist.mean for part in data.split(256)])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def sample_ddim(folder: Path, n: int, *, nfe: int, seed: int) -> np.ndarray:
    """Images of a DDPM's folder by diffusers' DDIM pipeline in `nfe` evaluations: uint8 [n, C, S, S]."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

    read = DDPMPipeline.from_pretrained(folder, local_files_only=True)
    pipeline = DDIMPipeline(read.unet, DDIMScheduler.from_config(read.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": nfe, "generator": torch.Generator().manual_seed(seed), "output_type": "np"}
    made = pipeline(batch_size=n, **how).images  # [n, S, S, C] in [0, 1]
    return np.round(made * 255).astype(np.uint8).transpose(0, 3, 1, 2)


def ddim_rows(folder: Path, steps: Sequence[int]) -> list[dict[str, Any]]:
    """A row of results for each number of evaluations: the mean FID over `sample.seeds` sets of `sample.count`."""
    config = _config()
    reference = load_reference(paths.REFERENCE, config.evaluate, device=CPU)
    rows = []
    for nfe in steps:
        found = []
        for seed in range(config.sample.seeds):
            images = sample_ddim(folder, config.sample.count, nfe=nfe, seed=seed)
            features, _ = reference.extractor.features_and_probabilities(images)
            found.append(fid(moments(features), reference.moments))
        print(f"diffusers' DDIM, {nfe} evaluations: FID {np.mean(found):.4g}", flush=True)
        key = {"data": config.data.source, "dynamics": "", "objective": "", "model": "diffusers-ddim", "nfe": nfe}
        rows.append({**key, "seed": config.seed, "metric": "fid", "value": float(f"{np.mean(found):.6g}")})
    return rows


def _config() -> Config:
    return parse(read_params(paths.PARAMS))


def _images() -> Tensor:
    """The training images of data/processed in [-1, 1]: [n, C, S, S]."""
    images = open_split(paths.PROCESSED, "train")
    return torch.cat([to_unit(batch) for batch in images.batches(4096)])


def _new_unet(data: Tensor) -> torch.nn.Module:
    """diffusers' own network of `network` in params.yaml."""
    from ifm.networks import build_network

    network = _config().network.model_dump() | {"kind": "unet"}
    return build_network(shape=tuple(data.shape[1:]), takes_anchor=False, **network).model


def main() -> None:
    """Trains a model and saves it in FOLDER, or samples and judges a DDPM there."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.stand_ins", description=main.__doc__)
    parser.add_argument("what", choices=("ddpm", "autoencoder", "ddim"))
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=900, help="of training, default: 900 of 128 images")
    parser.add_argument("--nfe", type=int, nargs="+", default=[10, 20, 50, 100], help="ddim: numbers of evaluations")
    given = parser.parse_args()
    try:
        if given.what == "ddim":
            csv = TEACHERS.csv
            old = pd.read_csv(csv) if csv.exists() else table([])
            rows = added(old, table(ddim_rows(given.folder, given.nfe)), TEACHERS)
            write_text(csv, rows.to_csv(index=False, lineterminator="\n"))
            return
        torch.manual_seed(0)
        data = _images()
        if given.what == "ddpm":
            train_ddpm(_new_unet(data), data, given.folder, steps=given.steps, batch_size=128, lr=2e-3)
        else:
            train_autoencoder(data, given.folder, steps=given.steps, batch_size=128)
        print(given.folder)
    except (UserError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
