"""Encoding and the reference are shared by processes: the same files from one, two and three."""

from pathlib import Path

import pytest

from ifm.data.fetching import fetch
from ifm.data.preprocessing import preprocess
from tests.support import latent_worker
from tests.support.autoencoders import config, small_kl
from tests.support.launch import one_process, torchrun


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The digits, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("shared")
    given = config(random_flip=True, max_images=700)
    fetch(given, folder / "raw")
    preprocess(given, folder / "raw", folder / "processed")
    small_kl(folder / "kl")
    with one_process():
        latent_worker.main(folder, folder / "one")
    return folder


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_makes_the_same_files(alone, processes, tmp_path):
    done = torchrun(latent_worker, processes, alone, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("latents", "reference"):
        one, several = content(alone / "one" / part), content(tmp_path / part)
        assert one.keys() == several.keys()
        assert [name for name in one if one[name] != several[name]] == []
    assert len(list((tmp_path / "latents").glob("train-latents-*"))) > 3
