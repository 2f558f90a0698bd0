"""CLAP as the extractor of sounds: transformers' own embedding of the sounds, the reference folder, mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifm.config import ConfigError, EvaluateConfig, parse, read_params
from ifm.data.recordings import resampled
from ifm.files import file_sha256
from ifm.metrics.clap import PREPROCESSOR, ClapExtractor
from ifm.metrics.reference import build_reference, load_reference
from ifm.metrics.weights import ExtractorError, find_clap
from ifm.modalities.spectrograms import Normalised, Spectrograms

transformers = pytest.importorskip("transformers", reason="extractor clap needs transformers: the extra dinov2")

VALUES = read_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
RATE = 8000
FORM = Spectrograms(RATE, samples=4800, kind="complex", fft=128, hop=64, mels=32, power=0.5, multiple=8)
SOUND = Normalised(FORM, np.zeros(FORM.shape[:2]), deviation=0.1)


def made(folder: Path, *, fused: bool) -> Any:
    """A CLAP with random weights, texts included, of one of the two published kinds; saved in `folder`."""
    torch.manual_seed(0)
    audio = {
        "depths": [1, 1], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16,
        "projection_dim": 6, "num_hidden_layers": 2, "enable_fusion": fused,
        **({"fusion_type": "aff_2d"} if fused else {}),
    }  # fmt: skip
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text |= {"vocab_size": 20, "projection_dim": 6}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=6)
    model = transformers.ClapModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    made(folder, fused=False)
    return folder


def waves(n: int, *, seed: int = 0) -> np.ndarray:
    """Tones of n pitches: float64 [n, samples]."""
    pitch = np.linspace(200, 1500, n)[:, None] * (1 + 0.1 * seed)
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(FORM.samples) / RATE)


def at_rest(n: int, *, seed: int = 0) -> np.ndarray:
    return SOUND.at_rest(FORM.analyse(waves(n, seed=seed)))


def clap(folder: Path) -> ClapExtractor:
    file = find_clap(str(folder))
    return ClapExtractor(file, sound=SOUND, sha256=file_sha256(file), device=CPU)


@pytest.mark.parametrize("fused", [False, True])
def test_features_are_the_librarys_own_embedding_of_the_sounds(fused: bool, tmp_path: Path):
    """Of length 1, a sound at a time, which the extractor must not mix up."""
    model, samples = made(tmp_path, fused=fused), at_rest(3)
    found = clap(tmp_path)(samples)
    assert (found.shape, found.dtype) == ((3, 6), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    prepare = transformers.ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc")
    for row, wave in zip(found, SOUND.waves(samples), strict=True):
        at_48k = resampled(wave, RATE, 48_000)
        given = prepare(at_48k, sampling_rate=48_000, return_tensors="pt")["input_features"].float()
        with torch.no_grad():
            wanted = model.get_audio_features(given, is_longer=torch.zeros(1, 1, dtype=torch.bool))
        wanted = getattr(wanted, "pooler_output", wanted)
        wanted = torch.nn.functional.normalize(wanted, dim=1)[0].numpy()
        np.testing.assert_allclose(row, wanted, atol=1e-5)


def test_batches_and_calls_change_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    extractor, samples = clap(tiny), at_rest(3)
    whole = extractor(samples)
    monkeypatch.setattr("ifm.metrics.clap.BATCH", 2)
    np.testing.assert_allclose(extractor(samples), whole, atol=1e-6)


def test_the_preprocessor_beside_the_weights_counts(tiny: Path, tmp_path: Path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"sampling_rate": 24_000}))
    assert clap(tmp_path).describe()["network"] == {"sample_rate": 24_000}
    (tmp_path / PREPROCESSOR).write_text("[]")
    with pytest.raises(ExtractorError, match=r"preprocessor_config\.json: no JSON object"):
        clap(tmp_path)


class Split:
    """Sounds of ten pitches as a split of processed data."""

    shape, classes, labels = FORM.shape, None, None
    recorded = {"modality": "sound", "sound": SOUND.describe()}  # noqa: RUF012

    def __init__(self, n: int, seed: int) -> None:
        self._rows = at_rest(n, seed=seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._rows[rows]

    def batches(self, size: int):
        yield from (self._rows[i : i + size] for i in range(0, len(self), size))


def test_a_reference_of_clap_features(tiny: Path, tmp_path: Path):
    sha256 = file_sha256(find_clap(str(tiny)))
    given = VALUES["evaluate"] | {"extractor": "clap", "clap_path": str(tiny), "weights_sha256": sha256}
    config = EvaluateConfig(**given)
    train, test = Split(10, 0), Split(6, 1)
    made = build_reference(config, train=train, test=test, out=tmp_path / "r", device=CPU)
    assert (made["extractor"], made["checksum"], made["dimension"]) == ("clap", sha256, 6)
    assert made["floor_fid"] > 0
    again = load_reference(tmp_path / "r", config, device=CPU)
    np.testing.assert_allclose(again.features, again.extractor(at_rest(10)), atol=1e-6)


def test_mistakes_are_one_line(tiny: Path, tmp_path: Path):
    file = find_clap(str(tiny))
    with pytest.raises(ExtractorError, match="sha256 is"):
        ClapExtractor(file, sound=SOUND, sha256="0" * 64, device=CPU)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ExtractorError, match=r"config\.json: no configuration of a CLAP \(model_type: clap\)"):
        clap(tmp_path)
    with pytest.raises(ExtractorError, match=r"evaluate\.clap_path = '.*nowhere': no such file or folder"):
        find_clap(str(tmp_path / "nowhere"))
    with pytest.raises(ExtractorError, match=r"evaluate\.clap_path is missing"):
        find_clap(None)


def test_params_ask_for_folder_and_digest_and_for_sounds():
    sounds = VALUES["data"] | {"source": "audiofolder", "path": "x", "label_column": None}
    evaluate = VALUES["evaluate"] | {"extractor": "clap"}
    with pytest.raises(ConfigError, match=r"evaluate\.extractor: clap needs evaluate\.clap_path"):
        parse(VALUES | {"data": sounds, "evaluate": evaluate})
    evaluate |= {"clap_path": "clap", "weights_sha256": "0" * 64}
    assert parse(VALUES | {"data": sounds, "evaluate": evaluate}).evaluate.clap_path == "clap"
    with pytest.raises(ConfigError, match=r"evaluate\.extractor: clap does not fit data\.source: digits"):
        parse(VALUES | {"evaluate": evaluate})
