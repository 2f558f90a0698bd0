"""Latents: encoded as diffusers encodes, drawn by the posterior, decoded back; mistakes are one line."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from ifm import latents, modalities
from ifm.data.arrays import ImageSet
from ifm.data.fetching import fetch
from ifm.data.preprocessing import preprocess
from ifm.data.splits import open_split, open_states
from ifm.errors import UserError
from ifm.hardware.devices import RowReader
from ifm.latents import encoding
from ifm.latents.autoencoder import Autoencoder
from ifm.modalities.images import to_uint8, to_unit
from ifm.objectives.pairs import draw_pairs, mean_over_reference
from ifm.random import Streams
from pipeline.tools import stand_ins
from tests.support.autoencoders import config, exact_tiny, small_dc, small_kl

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Raw digits, and autoencoders of them: a random KL and an exact one."""
    root = tmp_path_factory.mktemp("latents")
    fetch(config(), root / "raw")
    small_kl(root / "kl")
    exact_tiny(root / "tiny")
    return root


def made(root: Path, out: Path, encoder: str, *, accelerator=None, **changes) -> Path:
    """data/processed with latents."""
    given = config(encoder=str(root / encoder), **changes)
    found = latents.look_up(given.encoder, revision=None, root=root)

    def add(folder: Path) -> None:
        images = {split: ImageSet.open(folder, split) for split in ("train", "test")}
        shards = encoding.encode(images, found, out.with_name("work"), accelerator=accelerator or Accelerator(cpu=True))
        encoding.finish(images, found, shards, folder)

    preprocess(given, root / "raw", out, add=add)
    return out


@pytest.fixture(scope="module")
def processed(folders, tmp_path_factory):
    return made(folders, tmp_path_factory.mktemp("made") / "processed", "kl", random_flip=True)


def test_latents_are_what_diffusers_encodes(folders, processed):
    """Mean and deviation of the image and of its mirror image, scaled, to float16."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folders / "kl")
    images, states = open_split(processed, "test"), open_states(processed, "test")
    assert (images.shape, states.shape, states.array.shape[1:]) == ((1, 8, 8), (2, 4, 4), (2, 2, 2, 4, 4))
    assert (images.random_flip, states.random_flip, len(states)) == (True, True, len(images))
    rows = np.arange(len(images))
    x, at_rest = to_unit(images[rows]), torch.from_numpy(states[rows])
    for i, each in enumerate((x, x.flip(-1))):
        with torch.no_grad():
            law = vae.encode(each).latent_dist
        wanted = torch.stack([(law.mean - 0.1) * 0.7, law.std * 0.7], dim=1)
        torch.testing.assert_close(at_rest[:, i].float(), wanted, rtol=2e-3, atol=1e-4)
    mean = modalities.at_work(at_rest)
    with torch.no_grad():
        there = vae.decode(mean / 0.7 + 0.1).sample
    again = Autoencoder.read(latents.find(states.decoder, named="decoder")).decode(mean)
    torch.testing.assert_close(again, there, rtol=1e-5, atol=1e-5)


def test_autoencoder_dc_gives_points_and_decodes_as_diffusers(folders, tmp_path):
    vae = small_dc(folders / "dc")
    states = open_states(made(folders, tmp_path / "processed", "dc"), "test")
    images = open_split(tmp_path / "processed", "test")
    assert (states.shape, states.array.shape[1:]) == ((4, 4, 4), (1, 1, 4, 4, 4))
    rows = np.arange(len(images))
    with torch.no_grad():
        wanted = vae.encode(to_unit(images[rows])).latent * 0.4
    mean = modalities.at_work(torch.from_numpy(states[rows]))
    torch.testing.assert_close(mean, wanted, rtol=2e-3, atol=1e-4)
    with torch.no_grad():
        there = vae.decode(mean / 0.4).sample
    again = Autoencoder.read(latents.find(states.decoder, named="decoder")).decode(mean)
    torch.testing.assert_close(again, there, rtol=1e-5, atol=1e-5)


def test_recorded_statistics_are_those_of_what_training_draws(processed):
    states = open_states(processed, "train")
    at_rest = torch.from_numpy(states[np.arange(len(states))]).double()  # [n, 2, 2, c, h, w]
    mean, sd = at_rest[:, :, 0], at_rest[:, :, 1]
    told = states.metadata.latents
    np.testing.assert_allclose(told.mean, mean.mean(dim=(0, 1, 3, 4)), rtol=1e-12)
    second = (mean**2 + sd**2).mean(dim=(0, 1, 3, 4))
    np.testing.assert_allclose(told.std, (second - mean.mean(dim=(0, 1, 3, 4)) ** 2).sqrt(), rtol=1e-9)
    total = (second.mean() - mean.mean() ** 2).sqrt()
    assert states.sigma_data == pytest.approx(float(total), rel=1e-3)
    assert told.weights == encoding.digest(latents.find(states.decoder, named="decoder"))


@pytest.mark.parametrize(("size", "levels"), [(8, 1), (16, 2), (64, 3), (256, 4)])
def test_the_round_trip_of_blocks_is_exact(size, levels, tmp_path):
    """Images of equal blocks come back to the byte, float16 in between; a latent is the block's (x + 1) / 2."""
    exact_tiny(tmp_path / "tiny", channels=3, levels=levels)
    found = latents.look_up("tiny", revision=None, root=tmp_path)
    side = size // found.factor
    assert found.shape((3, size, size)) == (3, side, side)
    small = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, side, side), np.uint8))
    images = small.repeat_interleave(found.factor, 2).repeat_interleave(found.factor, 3)
    autoencoder = Autoencoder.read(found)
    at_rest = autoencoder.encode(to_unit(images.numpy())).half().unsqueeze(1)
    torch.testing.assert_close(modalities.at_work(at_rest), small / 255, rtol=0, atol=6e-4)
    assert np.array_equal(to_uint8(autoencoder.decode(modalities.at_work(at_rest))), images.numpy())


@pytest.mark.slow
def test_a_trained_autoencoder_at_64_and_at_256_pixels(tmp_path):
    """Trained at 64 pixels; images of both sizes, as `preprocess` encodes them, come back nearer than their mean."""
    fetch(config(max_images=24), tmp_path / "raw")
    preprocess(config(max_images=24, image_size=64), tmp_path / "raw", tmp_path / "plain")
    plain = ImageSet.open(tmp_path / "plain", "train")
    small = to_unit(plain[np.arange(len(plain))])
    stand_ins.train_autoencoder(small, tmp_path / "vae", steps=40, batch_size=8)
    for size in (64, 256):
        out = made(tmp_path, tmp_path / f"at-{size}", "vae", max_images=24, image_size=size)
        images, states = open_split(out, "test"), open_states(out, "test")
        assert states.shape == (stand_ins.LATENT_CHANNELS, size // 2, size // 2)
        rows = np.arange(len(images))
        x = to_unit(images[rows])
        again = Autoencoder.read(latents.find(states.decoder, named="vae")).decode(
            modalities.at_work(torch.from_numpy(states[rows]))
        )
        assert float((again - x).square().mean()) < 0.3 * float(x.var())


def test_a_step_draws_from_the_posterior(processed):
    """x_0 = mean + deviation * eps of (seed, row, step), of the mirror image where it is shown; whoever asks."""
    from ifm import dynamics

    states, accelerator = open_states(processed, "train"), Accelerator(cpu=True)
    ve = dynamics.build("ve", t_min=0.002, t_max=20.0)
    common = {"random_flip": True, "batch_size": 8, "seed": 5}
    draw = draw_pairs(accelerator, ve, RowReader(states, CPU), **common)
    rows = np.array([3, 1, 4, 15, 9, 2, 6, 5])
    at = draw(rows, 7, Streams(5, "anchor", range(8), step=7))
    eps = Streams(5, "posterior", rows, step=7).normal((2, 4, 4))
    law = torch.from_numpy(states[rows]).float()
    own = law[torch.arange(8), at.mirrored.long()]
    torch.testing.assert_close(at.x_0, own[:, 0] + own[:, 1] * eps, rtol=0, atol=0)
    assert at.mirrored.any()
    assert not at.mirrored.all()
    again = draw(rows, 8, Streams(5, "anchor", range(8), step=8))
    assert not torch.equal(again.x_0, at.x_0)
    # The mean over the data holds the pair's own x_0: at a low noise level it is that one.
    mean = mean_over_reference(accelerator, ve, states, size=len(states), **common)(7)
    t = torch.full((8,), 1e-4)
    torch.testing.assert_close(mean(at.x_0 + 1e-4 * at.z, t), at.x_0, rtol=0, atol=1e-6)


def test_images_without_an_encoder_have_no_latents(folders, tmp_path):
    preprocess(config(), folders / "raw", tmp_path / "plain")
    assert isinstance(open_states(tmp_path / "plain", "train"), ImageSet)
    assert "latents" not in (tmp_path / "plain" / "metadata.json").read_text()


def refused(folder: Path, said: str, shape=(1, 8, 8)) -> None:
    with pytest.raises(UserError, match=said):
        latents.look_up(str(folder), revision=None, root=folder.parent).shape(shape)


def test_mistakes_are_one_line(folders, tmp_path):
    refused(folders / "kl", "takes 1 channels, the data have 3; see data.channels", (3, 8, 8))
    refused(folders / "kl", "stands for 2 x 2 pixels, which do not divide data.image_size = 9", (1, 9, 9))
    refused(folders / "nothing", "there is no such folder|no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no config.json of diffusers, neither itself nor in vae")
    pickled = tmp_path / "pickled"
    small_kl(pickled)
    (pickled / "diffusion_pytorch_model.safetensors").rename(pickled / "diffusion_pytorch_model.bin")
    refused(pickled, "holds pickled weights")
    other = tmp_path / "other"
    small_kl(other)
    told = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(told | {"_class_name": "VQModel"}))
    refused(other, "the autoencoder is of class VQModel; known: AutoencoderKL")
    (other / "config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "scaling_factor"}))
    old = latents.look_up(str(other), revision=None, root=tmp_path)  # as before diffusers wrote it
    assert old.scaling[0] == inspect.signature(AutoencoderKL.__init__).parameters["scaling_factor"].default
    (other / "config.json").write_text(json.dumps(told | {"latents_mean": [0.0, 0.0]}))
    refused(other, "has latents_mean")
    (other / "config.json").write_text(json.dumps(told | {"block_out_channels": [8, 16]}))
    found = latents.look_up(str(other), revision=None, root=tmp_path)
    with pytest.raises(UserError, match=r"the weights are .* numbers, config\.json asks for"):
        Autoencoder.read(found)
    with pytest.raises(UserError, match=r"data\.encoder_revision = 'v1' is for the Hub's models"):
        latents.look_up(str(folders / "kl"), revision="v1", root=tmp_path)


def test_a_pipelines_folder_has_it_in_vae(tmp_path):
    small_kl(tmp_path / "pipeline" / "vae")
    assert latents.look_up("pipeline", revision=None, root=tmp_path).folder == tmp_path / "pipeline" / "vae"
