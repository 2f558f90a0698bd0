"""What the tests of `ifm evaluate` share: options, samples, a stand-in of an extractor's layers, refusals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ifm.cli.main import main

OPTIONS = "--kid-subsets 3 --kid-subset-size 8 --neighbours 3 --neighbour-samples 30 --seed 4 --device cpu"
HOW = OPTIONS.split()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(n: int, *, seed: int, channels: int = 1, size: int = 8) -> np.ndarray:
    """uint8 [n, C, S, S], darker for odd seeds."""
    return np.random.default_rng(seed).integers(0, 256 - 80 * (seed % 2), (n, channels, size, size), np.uint8)


def folder_of(path: Path, images: np.ndarray) -> Path:
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path / f"{i:04d}.png")
    return path


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


class Layers(nn.Module):
    """[n, 3, 299, 299] -> [n, 24]: features in enough directions for a covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(3 * 23 * 23, 24, generator=torch.Generator().manual_seed(0)) / 40)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::13, ::13].flatten(1) @ self.weight


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    said = f"{caught.value.code}" if isinstance(caught.value.code, str) else capsys.readouterr().err
    assert caught.value.code not in (None, 0, 2)
    assert "\n" not in said.strip()
    return said
