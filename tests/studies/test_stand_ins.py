"""Small models of public form: what they learn, that ifm reads them, and the rows of diffusers' own sampling."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ifm import latents
from ifm.adapters import folder as folders
from ifm.config import parse, read_params
from ifm.latents.autoencoder import Autoencoder
from ifm.metrics.distances import fid, moments
from pipeline.tools import stand_ins
from pipeline.tools.results import TEACHERS
from tests.support.public_model import digits, small_unet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A project's folder with two small sets of samples, and images for data/processed."""
    config = parse(read_params(ROOT / "params.yaml"))
    sample = config.sample.model_copy(update={"seeds": 2, "count": 12})
    monkeypatch.setattr(stand_ins, "_config", lambda: config.model_copy(update={"sample": sample}))
    monkeypatch.setattr(stand_ins, "_images", digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["stand_ins", *words])
    stand_ins.main()


def test_the_ddpm_is_read_as_a_public_teacher(few, monkeypatch):
    command(monkeypatch, "ddpm", "made", "--steps", "2")
    found = folders.find(few / "made", named="made")
    network = folders.read(found, shape=(1, 8, 8), sigma_data=0.5, clock="quarter_log")
    assert network.data_shape == (1, 8, 8)


def test_the_autoencoder_learns_its_images_and_scales_its_latents(tmp_path):
    stand_ins.train_autoencoder(digits(), tmp_path / "vae", steps=40, batch_size=16)
    found = latents.find(tmp_path / "vae", named="vae")
    autoencoder = Autoencoder.read(found)
    encoded = autoencoder.encode(digits()[:500])
    assert encoded.shape == (500, 2, stand_ins.LATENT_CHANNELS, 4, 4)
    assert float(autoencoder.encode(digits())[:, 0].std()) == pytest.approx(1, rel=1e-3)
    error = (autoencoder.decode(encoded[:, 0]) - digits()[:500]).square().mean()
    assert error < 0.5 * digits().var()


def test_diffusers_own_sampling_is_judged_and_added(few, monkeypatch):
    """FID of features that are the pixels; a second call takes the rows' place."""
    stand_ins.train_ddpm(small_unet(), digits(), few / "made", steps=2)
    real = moments(digits().flatten(1).numpy())

    def unit(images):
        return images.reshape(len(images), -1) / 127.5 - 1

    extractor = SimpleNamespace(features_and_probabilities=lambda images: (unit(images), None))
    reference = SimpleNamespace(extractor=extractor, moments=real)
    monkeypatch.setattr(stand_ins, "load_reference", lambda *given, **options: reference)
    for _ in range(2):
        command(monkeypatch, "ddim", "made", "--nfe", "2", "3")
    rows = pd.read_csv(TEACHERS.csv)
    assert rows.nfe.tolist() == [2, 3]
    sets = [stand_ins.sample_ddim(few / "made", 12, nfe=3, seed=seed) for seed in (0, 1)]
    assert sets[0].dtype == "uint8"
    assert sets[0].shape == (12, 1, 8, 8)
    assert (sets[0] != sets[1]).any()
    wanted = sum(fid(moments(unit(images)), real) for images in sets) / 2
    assert rows.value.tolist()[1] == pytest.approx(wanted, rel=1e-4)
