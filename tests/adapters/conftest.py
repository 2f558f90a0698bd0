"""One small DDPM, trained once for all tests here."""

import pytest

from tests.support.public_model import train_ddpm


@pytest.fixture(scope="session")
def ddpm(tmp_path_factory):
    """A folder as `DDPMPipeline.save_pretrained` writes it, of a UNet2DModel that knows the digits roughly."""
    return train_ddpm(tmp_path_factory.mktemp("public") / "ddpm", steps=160)
