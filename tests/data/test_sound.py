"""Sounds: recordings in, spectrograms and back, WAV files out. Tones and noise made here are the oracles."""

import base64
import copy
import io
import re
import struct
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ifm import modalities, pretrained
from ifm.cli.main import main
from ifm.conditions.classes import Classes
from ifm.config import ConfigError, parse
from ifm.data import recordings
from ifm.data.fetching import fetch
from ifm.data.preprocessing import preprocess
from ifm.data.sources import FetchError
from ifm.data.splits import open_split
from ifm.dynamics.rectified import RectifiedFlow
from ifm.errors import UserError
from ifm.modalities import files
from ifm.modalities.spectrograms import Normalised, Spectrograms, pictures
from ifm.modalities.wav import wav_bytes
from ifm.model import build_flow
from ifm.networks import build_network
from ifm.report.contents import Heard
from ifm.report.sounds import SOUND_BYTES, players
from ifm.sampling import asked_of
from pipeline.tools import preset
from tests.support.stages import values_of

soundfile = pytest.importorskip("soundfile")

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
RATE = 8000
COMPLEX = Spectrograms(RATE, 4000, "complex", 126, 50, 32, 0.5, 8)
MEL = Spectrograms(RATE, 6400, "logmel", 512, 200, 32, 0.5, 8)


def tone(hertz: float, rate: int = RATE, seconds: float = 0.5, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def encoded(sound: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def snr(found: np.ndarray, sound: np.ndarray) -> float:
    return 10 * np.log10((sound**2).sum() / ((found - sound) ** 2).sum())


def config(source: str = "audiofolder", path: Path | None = None, audio: dict | None = None, **changes):
    values = copy.deepcopy(values_of("digits"))
    values["data"] |= {"source": source, "path": None if path is None else str(path)} | changes
    values["data"]["audio"] |= {"seconds": 0.8, "multiple": 4} | (audio or {})
    return parse(values)


def audio(**changes):
    return config(path=Path("tones"), audio=changes).data.audio


# Spectrograms


def test_a_complex_spectrogram_is_inverted_exactly():
    sounds = np.stack([tone(440), np.random.default_rng(0).normal(size=4000) / 5, np.zeros(4000)])
    arrays = COMPLEX.analyse(sounds)
    assert arrays.shape == (3, *COMPLEX.shape) == (3, 2, 64, 80)
    back = COMPLEX.waves(arrays)
    assert min(snr(back[i], sounds[i]) for i in range(2)) > 120
    np.testing.assert_array_equal(back[2], 0)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_as_it_is_stored_a_complex_spectrogram_keeps_60_dB(power):
    form = Spectrograms(RATE, 4000, "complex", 256, 100, 32, power, 8)
    sound = np.random.default_rng(0).normal(size=(1, 4000)) / 5 + tone(700)
    arrays = form.analyse(sound)
    stored = Normalised(form, arrays.mean(axis=(0, 3)).astype(np.float64), float(arrays.std()))
    at_rest = stored.at_rest(arrays)
    assert (at_rest.dtype, at_rest.shape[1:]) == (np.float16, form.shape)
    assert snr(stored.waves(at_rest), sound) > 60
    again = Normalised.read(stored.describe())
    np.testing.assert_array_equal(again.at_rest(arrays), at_rest)


def test_a_tone_of_full_scale_has_magnitude_one_in_its_band():
    whole = Spectrograms(RATE, 4000, "complex", 160, 80, 32, 1.0, 1)
    arrays = whole.analyse(tone(1000, level=1.0)[None])
    magnitude = np.hypot(arrays[0, 0], arrays[0, 1])[:, 5:-5]  # bins of 50 Hz
    np.testing.assert_allclose(magnitude[20], 1, atol=1e-6)
    assert magnitude[30:].max() < 1e-3


def test_griffin_lim_gives_a_sound_with_the_same_mel_spectrogram():
    sounds = np.stack([tone(440, seconds=0.8), tone(1500, seconds=0.8, level=0.2), np.zeros(6400)])
    arrays = MEL.analyse(sounds)
    assert arrays.shape == (3, 1, 32, 32)
    back = MEL.waves(arrays)
    inner, again = arrays[:, :, :, 2:-2], MEL.analyse(back)[:, :, :, 2:-2]
    loud = inner > inner.max(axis=(1, 2, 3), keepdims=True) - 0.3  # 18 dB
    assert np.abs(again - inner)[loud].max() < 0.1  # 6 dB
    assert (again <= inner.max(axis=(1, 2, 3), keepdims=True) + 0.03).all()
    for sound, hertz in zip(back[:2], (440, 1500), strict=True):
        spectrum = np.abs(np.fft.rfft(sound[1000:-1000] * np.hanning(4400)))
        assert abs(spectrum.argmax() * RATE / 4400 - hertz) < 60
    np.testing.assert_array_equal(back[2], 0)
    np.testing.assert_array_equal(MEL.waves(arrays[:1]), back[:1])  # whatever else is in the batch


def test_pictures_have_low_frequencies_below():
    arrays = MEL.analyse(tone(100, seconds=0.8, level=1.0)[None])
    shown = pictures(arrays)
    assert (shown.dtype, shown.shape) == (np.uint8, (1, 1, 64, 64))
    assert shown[0, 0, 32:].mean() > shown[0, 0, :32].mean()


# Recordings


@pytest.mark.parametrize(("rate", "to"), [(44_100, 8000), (11_127, 8000), (8000, 16_000), (48_000, 44_100)])
def test_resampling_gives_the_same_tone(rate, to):
    found, wanted = recordings.resampled(tone(440, rate), rate, to), tone(440, to)
    middle = slice(to // 10, -to // 10)
    n = min(len(found), len(wanted))
    assert snr(found[:n][middle], wanted[:n][middle]) > 60


@pytest.mark.parametrize("rate", [44_100, 16_000])
@pytest.mark.parametrize("frequency", [4000, 4100, 4500, 6000])
def test_resampling_leaves_no_alias(rate, frequency):
    found = recordings.resampled(tone(frequency, rate), rate, 8000)[800:-800]
    assert np.abs(found).max() < 1e-4 * np.abs(tone(frequency, rate)).max()


def test_resampling_keeps_the_band():
    found, wanted = recordings.resampled(tone(3600, 44_100), 44_100, 8000), tone(3600, 8000)
    n = min(len(found), len(wanted))
    assert snr(found[:n][800:-800], wanted[:n][800:-800]) > 60


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-23), ("WAV", "FLOAT", 1e-7), ("FLAC", "PCM_24", 2**-23)],
)
def test_formats_are_read_exactly(kind, subtype, error):
    sound, rate = recordings.decode(encoded(tone(440), kind=kind, subtype=subtype))
    assert rate == RATE
    np.testing.assert_allclose(sound, tone(440), atol=error)


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_lossy_formats_are_read(kind):
    sound, rate = recordings.decode(encoded(tone(440, 16_000), 16_000, kind))
    spectrum = np.abs(np.fft.rfft(sound[:8000]))
    assert abs(spectrum.argmax() * rate / 8000 - 440) < 4


def test_stereo_is_mixed_to_mono():
    left, right = tone(440), tone(1000, level=0.1)
    sound, _ = recordings.decode(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(sound, (left + right) / 2, atol=1e-7)


HEADER = "<4sI4s4sIHHIIHH4sI2h"
ABSURD = struct.pack(HEADER, b"RIFF", 40, b"WAVE", b"fmt ", 16, 1, 1, 2**31 - 5, 0, 2, 16, b"data", 4, 1, 2)
FAULTS = {
    "nothing.wav": (b"", "an empty file"),
    "text.wav": (b"no sound", "no known audio format"),
    "header.wav": (encoded(np.zeros(0)), "holds no samples"),
    "silent.wav": (encoded(np.zeros(4000)), "is silent: all of its samples are 0"),
    "nan.wav": (encoded(np.full(4000, np.nan), subtype="FLOAT"), "holds NaN or infinity"),
    "rate.wav": (ABSURD, "has a sample rate of 2147483643 Hz"),
    "antiphase.wav": (
        encoded(np.stack([tone(440), -tone(440)], axis=1), subtype="FLOAT"),
        "all of its samples are 0, its channels mixed",
    ),
    "cut.wav": (encoded(tone(440))[:4044], "is cut off: 4000 of "),
    "short.wav": (encoded(tone(440, seconds=0.01)), "has 0.01 s, less than data.audio.shortest = 0.05"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_is_told(name):
    data, reason = FAULTS[name]
    with pytest.raises(ValueError, match=re.escape(reason)):
        recordings.prepared(data, audio(trim_db=None))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_recordings_are_read_in_pieces(kind, monkeypatch):
    """Whatever their length, with the bits of one piece; an MP3's decoder rounds otherwise between pieces."""
    sound = np.random.default_rng(0).normal(size=(5000, 2)) / 10
    data = encoded(sound, 8000, kind)
    whole, rate = recordings.decode(data)
    assert (rate, len(whole) >= 5000) == (8000, True)
    for piece in (len(whole), len(whole) - 1, 97):
        monkeypatch.setattr(recordings, "PIECE", piece)
        np.testing.assert_allclose(recordings.decode(data)[0], whole, rtol=0, atol=1e-7 if kind == "MP3" else 0)


def test_silence_at_both_ends_is_cut():
    sound = np.concatenate([np.zeros(800), tone(440), np.full(1600, 1e-4)])
    assert len(recordings.trimmed(sound, RATE, decibels=40)) == 4000
    assert len(recordings.trimmed(sound, RATE, decibels=80)) == 5600


def test_levels():
    assert np.abs(recordings.levelled(tone(440), "peak")).max() == pytest.approx(0.95)
    assert np.sqrt((recordings.levelled(tone(440), "rms") ** 2).mean()) == pytest.approx(0.1)
    click = np.eye(1, 4000)[0]
    assert recordings.levelled(click, "rms").max() == pytest.approx(0.95)  # no louder than the peak allows


def test_cropping_and_padding():
    ramp = np.arange(10.0)
    for how, wanted in {"start": [0, 1, 2], "centre": [3, 4, 5], "loudest": [7, 8, 9]}.items():
        assert recordings.fitted(ramp, 3, SimpleNamespace(longer=how)).tolist() == wanted
    short = np.array([1.0, 2.0])
    for how, wanted in {"end": [1, 2, 0, 0, 0], "centre": [0, 1, 2, 0, 0], "repeat": [1, 2, 1, 2, 1]}.items():
        assert recordings.fitted(short, 5, SimpleNamespace(shorter=how)).tolist() == wanted


# The whole way in


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve recordings of two classes, of several rates, widths, channels and lengths."""
    root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for name, hertz in {"low": 300, "high": 2000}.items():
        (root / name).mkdir()
        for i in range(6):
            rate, seconds = (8000, 11_025, 44_100)[i % 3], 0.3 + 0.2 * i
            sound = tone(hertz * (1 + 0.02 * i), rate, seconds) + rng.normal(size=round(seconds * rate)) / 50
            sound = np.stack([sound, sound], axis=1) if i % 2 else sound
            (root / name / f"{i}.wav").write_bytes(encoded(sound, rate, subtype=("PCM_16", "PCM_24")[i % 2]))
    return root


@pytest.fixture(scope="module")
def processed(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    data = config(path=folder).data
    told = fetch(data, out / "raw").in_a_line()
    assert "12 sounds; 2 classes: high, low; 0.3 to 1.3 s long" in told
    assert "(median 0.8), 6 longer than data.audio.seconds = 0.8; at 8000 Hz, 11025 Hz, 44100 Hz" in told
    preprocess(data, out / "raw", out / "processed")
    return out


def test_a_folder_becomes_normalised_spectrograms(folder, processed):
    train, test = (open_split(processed / "processed", split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape, train.modality.name) == (10, 2, (1, 32, 32), "sound")
    assert train.recorded.keys() == {"modality", "sound"}
    values = train[np.arange(10)]
    assert values.dtype == np.float16
    np.testing.assert_allclose(values.astype(np.float64).mean(axis=(0, 3)), 0, atol=1e-3)
    assert values.astype(np.float64).std() == pytest.approx(0.5, abs=1e-3)
    sounds = Normalised.read(train.recorded["sound"]).waves(values)
    peaks = np.abs(np.fft.rfft(sounds[:, :2000])).argmax(axis=1) * RATE / 2000
    for label, hertz in zip(train.labels, peaks, strict=True):
        assert (hertz > 1000) == (train.classes[label] == "high")


def test_the_same_recordings_give_the_same_bytes(folder, processed, tmp_path):
    data = config(path=folder).data
    fetch(data, tmp_path / "raw")
    preprocess(data, tmp_path / "raw", tmp_path / "processed")
    for name in ("metadata.json", "train-00000.npy", "train-labels.npy", "test-00000.npy"):
        assert (tmp_path / "processed" / name).read_bytes() == (processed / "processed" / name).read_bytes()


def test_faults_are_told_together_or_left_out(folder, tmp_path, capsys):
    for name, (data, _) in FAULTS.items():
        (tmp_path / "mixed" / "bad").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / "bad" / name).write_bytes(data)
    (tmp_path / "mixed" / "good").mkdir()
    (tmp_path / "mixed" / "good" / "a.flac").write_bytes(encoded(tone(440), kind="FLAC"))
    (tmp_path / "mixed" / "good" / "notes.txt").write_text("no recording")
    with pytest.raises(FetchError) as told:
        fetch(config(path=tmp_path / "mixed").data, tmp_path / "raw")
    assert "9 of 10 sounds cannot be read: bad/antiphase.wav (is silent: " in str(told.value)
    assert str(told.value).endswith("Set data.on_bad_image: skip to leave them out")
    found = fetch(config(path=tmp_path / "mixed", on_bad_image="skip").data, tmp_path / "raw")
    assert (found.splits, found.skipped, found.passed_over) == ({"train": 1}, 9, {".txt": 1})
    assert "left out" in capsys.readouterr().err


def test_a_table_of_recordings_is_read_by_its_column(tmp_path):
    cells = [{"bytes": encoded(tone(300 + 100 * i)), "path": f"{i}.wav"} for i in range(6)]
    table = pa.table({"audio": cells, "label": pa.array([0, 1] * 3), "image": pa.array(["no"] * 6)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    asked = config("parquet", tmp_path / "data", {"column": "audio"}).data
    assert asked.modality.name == "sound"
    assert fetch(asked, tmp_path / "raw").splits == {"train": 6}
    with pytest.raises(FetchError, match=re.escape("data.audio.column = 'sound': no such column")):
        fetch(config("parquet", tmp_path / "data", {"column": "sound"}).data, tmp_path / "raw")
    with pytest.raises(FetchError, match=re.escape("data.audio.column = 'label': holds int64, not encoded recordings")):
        fetch(config("parquet", tmp_path / "data", {"column": "label"}).data, tmp_path / "raw")


SPOKEN = ROOT.parent / "shared" / "data" / "spoken-digits"


@pytest.mark.skipif(not SPOKEN.is_dir(), reason="the spoken-digits parquet files are not beside the checkout")
def test_spoken_digits_by_their_preset(tmp_path):
    values = preset.parse_yaml(preset.apply("spoken-digits", TEXT, data=str(SPOKEN)))
    values["data"]["max_images"] = 40
    data = parse(values).data
    assert fetch(data, tmp_path / "raw").splits == {"train": 40, "test": 40}
    metadata = preprocess(data, tmp_path / "raw", tmp_path / "processed")
    assert (metadata.image_shape, metadata.classes[7]) == ((1, 32, 24), "seven")
    assert metadata.duplicates == {"train": 0, "test": 0, "test_in_train": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fft": 300, "hop": 200}, "data.audio: fft = 300 must be even and at least twice hop = 200"),
        ({"seconds": 0.001}, "data.audio: seconds = 0.001 is less than one hop of 200 samples"),
        ({"mels": 300}, "data.audio: mels = 300 are more than fft = 512 has frequencies for"),
        ({"mels": 33, "multiple": 3}, "set data.audio.multiple to a multiple of 4"),
        ({"column": "audio"}, "data: source: audiofolder has no columns of recordings; set data.audio.column to null"),
    ],
)
def test_what_does_not_fit_is_told(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(path=Path("tones"), audio=changes)


# The way out


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767, file.getframerate()


def test_a_wav_file_holds_the_sound():
    found, rate = read_wav(wav_bytes(tone(440), 11_025))
    assert rate == 11_025
    np.testing.assert_allclose(found, tone(440), atol=1 / 32767)
    assert np.abs(read_wav(wav_bytes(tone(440, level=3.0), RATE))[0]).max() == pytest.approx(1)


def test_a_model_writes_the_sounds_that_it_makes(processed, tmp_path, capsys):
    train = open_split(processed / "processed", "train")
    size = {"channels": [8, 8], "layers_per_block": 1, "attention": [False, False], "dropout": 0.0, "norm_groups": 4}
    network = build_network(kind="unet", shape=train.shape, modality="sound", takes_anchor=False, **size)
    flow = build_flow(network, RectifiedFlow(), scheme="edm", takes_anchor=False)
    pretrained.save_model(flow, tmp_path / "flow", record={"image_shape": list(train.shape), **train.recorded})
    sample = ["sample", "--model", str(tmp_path / "flow"), "--n", "3", "--device", "cpu", "--out"]
    for out in ("x.npy", "x.wav", "x.png", "x/"):
        main([*sample, f"{tmp_path}/{out}"])
    assert f"{tmp_path}/x: 3 sounds [1, 32, 32] of" in capsys.readouterr().out
    arrays = np.load(tmp_path / "x.npy")
    assert (arrays.dtype, arrays.shape) == (np.float16, (3, 1, 32, 32))
    names = sorted((tmp_path / "x").iterdir())
    assert [file.name for file in names] == ["000000.wav", "000001.wav", "000002.wav"]
    sounds = Normalised.read(train.recorded["sound"]).waves(arrays)
    for file, sound in zip(names, sounds, strict=True):
        found, rate = read_wav(file.read_bytes())
        assert (len(found), rate) == (6400, RATE)
        np.testing.assert_allclose(found, sound / max(1, np.abs(sound).max()), atol=1e-4)
    assert len(read_wav((tmp_path / "x.wav").read_bytes())[0]) == 3 * 6400 + 2 * 2000


def test_a_folder_of_recordings_is_read_as_the_data_were(folder, processed):
    train, test = (open_split(processed / "processed", split) for split in ("train", "test"))
    found = files.read(folder, modalities.of(train.recorded | {"shape": train.shape}), train.recorded)
    assert (found.dtype, found.shape) == (np.float16, (12, *train.shape))
    rows = sorted(x.tobytes() for split in (train, test) for x in split[np.arange(len(split))])
    assert sorted(x.tobytes() for x in found) == rows


def test_recordings_that_cannot_be_judged_are_named_all_at_once(folder, processed, tmp_path):
    recorded, sounds = open_split(processed / "processed", "train").recorded, modalities.MODALITIES["sound"]
    with pytest.raises(ValueError, match=r"^it has no \.wav, "):
        files.read(tmp_path, sounds, recorded)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/empty.wav").write_bytes(b"")
    (tmp_path / "good.wav").write_bytes((folder / "low/0.wav").read_bytes())
    (tmp_path / "silent.wav").write_bytes(encoded(np.zeros(4000), 8000))
    with pytest.raises(ValueError, match=r"^2 of 3 recordings .*: a/empty.wav an empty file, silent.wav is silent"):
        files.read(tmp_path, sounds, recorded)
    older = recorded | {"sound": {k: v for k, v in recorded["sound"].items() if k != "prepared"}}
    with pytest.raises(UserError, match="does not say how the data's recordings were prepared"):
        files.read(tmp_path, sounds, older)


def test_without_a_class_asked_for_files_are_named_by_the_class_drawn(processed, tmp_path):
    train = open_split(processed / "processed", "train")
    size = {"channels": [8, 8], "layers_per_block": 1, "attention": [False, False], "dropout": 0.0, "norm_groups": 4}
    kind = Classes(classes=["low", "high"], shares=[0.5, 0.5])
    network = build_network(
        kind="unet", shape=train.shape, modality="sound", takes_anchor=False, condition=kind, **size
    )
    flow = build_flow(network, RectifiedFlow(), scheme="edm", takes_anchor=False)
    pretrained.save_model(flow, tmp_path / "flow", record={"image_shape": list(train.shape), **train.recorded})
    main(
        [
            "sample",
            "--model",
            f"{tmp_path}/flow",
            "--n",
            "9",
            "--seed",
            "2",
            "--device",
            "cpu",
            "--out",
            f"{tmp_path}/x/",
        ]
    )
    drawn = asked_of(kind, range(9), seed=2).labels.tolist()
    expected = [f"{i:06d}-{kind.classes[label]}.wav" for i, label in enumerate(drawn)]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == expected
    assert set(drawn) == {0, 1}


def test_files_are_named_by_their_class(tmp_path):
    form = Normalised(MEL, np.zeros((1, 32)), 1.0)
    write = files.writers("sound", {"modality": "sound", "sound": form.describe()})["/"]
    samples = np.zeros((2, 1, 32, 32), np.float16)
    write(tmp_path / "out", [(range(2), samples)], 2, (1, 32, 32), names=["seven", "a/b c"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000-seven.wav", "000001-a_b_c.wav"]


def test_spectrograms_without_their_description_are_no_files(tmp_path):
    write = files.writers("sound", {"modality": "sound"})["/"]
    with pytest.raises(UserError, match="do not say how sounds become of them"):
        write(tmp_path / "out", [], 0, (1, 32, 32))


def test_the_players_of_a_page_are_bounded():
    sound = wav_bytes(tone(440), RATE)
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (8).to_bytes(4, "big") * 2
    heard = Heard([str(i) for i in range(300)], [("flow", [sound] * 300, png), ("teacher", [sound] * 300, png)])
    (table,) = players({"rf": heard})
    assert table["models"] == ["flow", "teacher"]
    assert 10 < len(table["rows"]) == SOUND_BYTES // (2 * len(sound))
    assert all(cell["uri"].startswith("data:audio/wav;base64,") for cell in table["rows"][0]["cells"])


def test_of_long_sounds_the_page_has_the_starts():
    sound = wav_bytes(tone(440, seconds=100), RATE)
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + (8).to_bytes(4, "big") * 2
    (table,) = players({"rf": Heard(["seven"], [("flow", [sound], png), ("teacher", [sound], png)])})
    (row,) = table["rows"]
    found, rate = read_wav(base64.b64decode(row["cells"][0]["uri"].partition(",")[2]))
    whole, _ = read_wav(sound)
    assert 2 * (2 * len(found) + 44) == pytest.approx(SOUND_BYTES, abs=4)
    assert row["title"] == f"seven, the first {len(found) / rate:.1f} s"
    np.testing.assert_array_equal(found, whole[: len(found)])
