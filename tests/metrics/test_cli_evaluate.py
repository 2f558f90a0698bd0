"""ifm evaluate: its figures are the library's own, and what is wrong with its input is one line before any work."""

import dataclasses
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from PIL import Image
from torch import Tensor, nn

import ifm
from ifm.cli.main import main
from ifm.config import EvaluateConfig, read_params
from ifm.data.decoding import to_array
from ifm.data.local import SUFFIXES
from ifm.files import file_sha256
from ifm.metrics.collections import Images, Resize, inspected
from ifm.metrics.evaluation import closest_pairs, evaluate_samples
from ifm.metrics.extractors import InceptionExtractor, PixelExtractor
from ifm.metrics.figures import Found, Measures, Real, fid_trend, image_figures, over_sets
from ifm.metrics.reference import build_reference, load_reference
from ifm.metrics.stored import open_pictures
from tests.support import warm
from tests.support.judged import HOW, OPTIONS, Layers, folder_of, noise, one_thread, refused, saved  # noqa: F401
from tests.support.on_cpus import on_cpus

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MEASURES = Measures(kid_subsets=3, kid_subset_size=8, neighbours=3, neighbour_samples=30, sliced_projections=1, seed=4)


def run(*arguments: Any) -> dict[str, Any]:
    """The command's JSON."""
    out = Path(str(arguments[1])).parent / "out" / "figures.json"
    main(["evaluate", *map(str, arguments), *HOW, "--out", str(out)])
    return json.loads(out.read_text())


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_librarys_functions(tmp_path, capsys):
    samples, real, train, unseen = (noise(n, seed=i) for i, n in enumerate((24, 30, 26, 14)))
    paths = [saved(tmp_path / f"{i}.npy", x) for i, x in enumerate((samples, real, train, unseen))]
    options = [x for pair in zip(("--samples", "--reference", "--train", "--unseen"), paths, strict=True) for x in pair]
    made = run(*options, "--extractor", "pixels", "--sets", 2)
    extractor = PixelExtractor(device=CPU)
    known = Real(extractor(real), MEASURES, train=extractor(train), unseen=extractor(unseen))
    sets = [Found(extractor(part)) for part in (samples[:12], samples[12:])]
    assert made["figures"] == over_sets([image_figures(s, known) for s in sets]) | fid_trend(sets, known)
    assert "train_distance_auc" in made["figures"]
    assert made["protocol"]["samples"] == {"path": str(paths[0]), "count": 24, "shape": [1, 8, 8], "passed_over": 0}
    assert (made["protocol"]["sets"], made["protocol"]["samples_per_set"], made["protocol"]["seed"]) == (2, 12, 4)
    printed = capsys.readouterr().out
    assert printed.index("protocol") < printed.index("figures")
    fid, sd = made["figures"]["fid"], made["figures"]["fid_sd"]
    assert f"{fid:.4g} ± {sd:.2g}" in next(line for line in printed.splitlines() if line.startswith("  fid "))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_of_the_same_images_has_the_same_figures(tmp_path, channels):
    samples, real = noise(12, seed=0, channels=channels), noise(14, seed=1, channels=channels)
    last = samples.transpose(0, 2, 3, 1)
    forms = [folder_of(tmp_path / "png", samples), saved(tmp_path / "first.npy", samples)]
    forms += [saved(tmp_path / "last.npy", last), saved(tmp_path / "fortran.npy", np.asfortranarray(last))]
    np.savez(tmp_path / "adm.npz", last)
    np.savez_compressed(tmp_path / "small.npz", arr_0=last, labels=np.arange(12))
    forms += [tmp_path / "adm.npz", tmp_path / "small.npz"]
    if channels == 1:
        forms.append(saved(tmp_path / "grey.npy", samples[:, 0]))
    floats = samples.astype(np.float32) / 255
    np.save(tmp_path / "unit.npy", floats)
    np.save(tmp_path / "signed.npy", (2 * floats.astype(np.float64) - 1))
    reference = ["--reference", folder_of(tmp_path / "real", real), "--extractor", "pixels"]
    found = [run("--samples", form, *reference)["figures"] for form in forms]
    found += [run("--samples", tmp_path / f"{r}.npy", *reference, "--range", r)["figures"] for r in ("unit", "signed")]
    assert all(figures == found[0] for figures in found)


def test_a_folder_gives_its_images_in_order_and_resized_as_the_pipeline_resizes(tmp_path):
    colour, grey = noise(5, seed=0, channels=3, size=9), noise(1, seed=2, size=12)
    folder_of(tmp_path / "images" / "b", colour)
    folder_of(tmp_path / "images" / "a", grey)
    (tmp_path / "images" / "notes.txt").write_text("passed over")
    (tmp_path / "images" / "link.png").symlink_to(folder_of(tmp_path / "outside", grey) / "0000.png")
    pictures = open_pictures(tmp_path / "images", value_range=None)
    assert (len(pictures), pictures.passed_over) == (6, 2)
    images = inspected(pictures, resize=Resize(6, "bicubic"))
    assert images.shape == (3, 6, 6)  # a grey image among colour ones is repeated
    first, *_, last = (Image.open(file) for file in sorted((tmp_path / "images").glob("?/*.png")))
    for row, picture in ((0, first), (5, last)):
        assert np.array_equal(images[row : row + 1][0], to_array(picture, size=6, channels=3, resample="bicubic"))
    assert images[2:4].shape == (2, 3, 6, 6)
    assert len(images[4:99]) == 2


def test_images_are_decoded_a_batch_at_a_time(tmp_path, monkeypatch):
    reference = saved(tmp_path / "r.npy", noise(20, seed=1))
    asked, take = [], Images.take
    monkeypatch.setattr(Images, "take", lambda self, rows: asked.append(len(rows)) or take(self, rows))
    folder = folder_of(tmp_path / "s", noise(20, seed=0))
    run("--samples", folder, "--reference", reference, "--extractor", "pixels", "--batch-size", 6)
    assert asked == [6, 6, 6, 2] * 2


class StandIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("weights") / "stand-in.pt"
    torch.jit.script(StandIn()).save(str(file))
    return file, file_sha256(file)


def test_fid_is_that_of_clean_fids_command_on_the_same_folders(tmp_path, inception, monkeypatch):
    file, digest = inception
    folders = [folder_of(tmp_path / name, noise(40, seed=i, channels=3, size=16)) for i, name in enumerate("sr")]
    monkeypatch.setattr(InceptionExtractor, "dimension", 24)
    found = run(
        "--samples", folders[0], "--reference", folders[1], "--extractor", "inception", "--weights", file,
        "--weights-sha256", digest,
    )  # fmt: skip
    layers = Layers()
    theirs = cleanfid.compute_fid(
        *map(str, folders),
        custom_feat_extractor=lambda batch: layers((batch - 128) / 128),
        mode="clean",
        num_workers=0,
        device=CPU,
        verbose=False,
        batch_size=16,
    )
    assert found["figures"]["fid"] == pytest.approx(theirs, rel=1e-6)
    assert found["protocol"]["checksum"] == digest


@dataclasses.dataclass
class Split:
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ("dark", "bright")
    shape: tuple[int, ...] = (1, 8, 8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        return (self.images[i : i + size] for i in range(0, len(self), size))


def split(n: int, *, seed: int) -> Split:
    labels = np.arange(n) % 2
    images = np.random.default_rng(seed).integers(0, 100, (n, 1, 8, 8)) + 150 * labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels)


def evaluate_config(**changes: Any) -> EvaluateConfig:
    values = read_params(ROOT / "params.yaml")["evaluate"]
    classifier = {"width": 8, "steps": 60, "batch_size": 32, "lr": 2e-2, "seed": 3}
    return EvaluateConfig(**(values | {"classifier": classifier} | changes))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "reference"
    build_reference(evaluate_config(), train=split(60, seed=0), test=split(21, seed=1), out=folder, device=CPU)
    return folder


def test_figures_against_a_reference_folder_are_those_of_the_stage(tmp_path, built):
    samples = split(24, seed=2).images
    saved(tmp_path / "flow-1.npy", samples)
    described = {"name": "flow-1", "model": "flow", "sampler": "one_step", "nfe": 1}
    metadata = {"image_shape": [1, 8, 8], "seeds": 2, "samplers": [described]}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    reference = load_reference(built, evaluate_config(), device=CPU)
    row = evaluate_samples(tmp_path, reference, measures=MEASURES).figures["flow-1"]
    found = run("--samples", tmp_path / "flow-1.npy", "--reference", built, "--sets", 2)
    assert found["figures"] == {key: row[key] for key in found["figures"]}
    assert row.keys() - found["figures"].keys() <= {"model", "sampler", "nfe", "n_samples", "seeds", "warnings"}
    assert found["protocol"]["extractor"] == "classifier"
    assert found["protocol"]["checksum"] == reference.extractor.checksum


def test_the_picture_of_closest_pairs_shows_samples_above_their_training_images(tmp_path, built):
    train = split(60, seed=0).images
    samples = split(24, seed=2).images
    samples[5] = train[17]
    paths = [saved(tmp_path / "s.npy", samples), saved(tmp_path / "t.npy", train)]
    run("--samples", paths[0], "--reference", built, "--train", paths[1], "--pairs", tmp_path / "pairs.png")
    reference = load_reference(built, evaluate_config(), device=CPU)
    assert closest_pairs(reference.extractor(samples), reference.splits["train"])[0] == (5, 17)
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))  # tiles of 8 x 8, each pixel 4 wide, 2 between them
    assert np.array_equal(picture[0:32:4, 0:32:4, 0], train[17, 0])
    assert np.array_equal(picture[34:66:4, 0:32:4, 0], train[17, 0])


def test_two_processes_give_the_same_json(tmp_path):
    samples, real = folder_of(tmp_path / "s", noise(23, seed=0)), saved(tmp_path / "r.npy", noise(25, seed=1))
    broken = folder_of(tmp_path / "broken", noise(23, seed=0))
    (broken / "0011.png").write_bytes(b"no image")
    env = on_cpus(PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1")
    env = {key: value for key, value in env.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def launched(words: list[str], folder: Path, out: Path) -> subprocess.CompletedProcess:
        options = ["--samples", folder, "--reference", real, "--extractor", "pixels", "--batch-size", "4"]
        command = [warm.python(), *words, "-m", "ifm", "evaluate", *map(str, options), *HOW, "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)

    one, two = launched([], samples, tmp_path / "1.json"), launched(launcher, samples, tmp_path / "2.json")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr[-2000:] + two.stderr[-2000:]
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert one.stdout == two.stdout
    failed = launched(launcher, broken, tmp_path / "3.json")
    assert failed.returncode != 0
    assert failed.stderr.count("0011.png: is no readable image (no known image format)") == 1
    assert not (tmp_path / "3.json").exists()


# --- what is wrong with the input -----------------------------------------------------------------------------------


def changed_folder(path: Path, change: Callable[[Path], object]) -> Path:
    folder_of(path, noise(12, seed=0))
    change(path)
    return path


def bytes_at(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


class Creates:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled_archive(path: Path, creates: Path) -> Path:
    np.savez(path, np.array([Creates(creates)], dtype=object))
    return path


def one_bad(value: float) -> np.ndarray:
    x = noise(12, seed=0).astype(np.float32) / 255
    x[7, 0, 3, 3] = value
    return x


def like(folder: Path, **changes: Any) -> Path:
    """A reference folder with other metadata; a value of None takes the key away."""
    folder.mkdir()
    values = {
        "extractor": "pixels", "checksum": "identity", "dimension": 64, "split": "train", "n_train": 30, "n_test": 9,
        "image_shape": [1, 8, 8], "class_shares": None, "classes": None,
    } | changes  # fmt: skip
    for name in ("train", "test"):
        np.save(folder / f"features-{name}.npy", np.zeros((30, 64), np.float32))
    kept = {key: value for key, value in values.items() if value is not None or key == "class_shares"}
    (folder / "metadata.json").write_text(json.dumps(kept))
    return folder


def good(folder: Path) -> Path:
    return saved(folder / "x.npy", GOOD)


GOOD = noise(12, seed=0)
OTHER = "ab" * 32
# What is given as --samples (made in a folder), more options, what is said.
BAD_SAMPLES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "missing": (lambda t: t / "none", "", "--samples {t}/none: no such file or folder"),
    "missing array": (lambda t: t / "none.npy", "", "--samples {t}/none.npy: no such file or folder"),
    "video": (lambda t: bytes_at(t / "a.mp4", b"x"), "", "a.mp4: is no set of images; give a folder of .png"),
    "empty folder": (
        lambda t: (t / "e").mkdir() or t / "e",
        "",
        f"e: no {', '.join(SUFFIXES)} files (0 other files)",
    ),
    "arrays in a folder": (lambda t: saved(t / "x.npy", GOOD).parent, "", "name one of its arrays: "),
    "corrupt image": (
        lambda t: changed_folder(t / "f", lambda f: (f / "0003.png").write_bytes(b"\x89PNG\r\n")),
        "",
        "f/0003.png: is no readable image (no known image format); mend or remove it",
    ),
    "cut image": (
        lambda t: changed_folder(t / "f", lambda f: (f / "0003.png").write_bytes((f / "0004.png").read_bytes()[:-30])),
        "",
        "f/0003.png: is no readable image",
    ),
    "mixed sizes": (
        lambda t: changed_folder(t / "f", lambda f: Image.new("L", (9, 5)).save(f / "0003.png")),
        "",
        "images of several sizes, {t}/f/0000.png is 8 x 8 pixels, {t}/f/0003.png 9 x 5 pixels; say what to resize",
    ),
    "pickle": (lambda t: bytes_at(t / "p.npy", pickle.dumps(Creates(t / "ran"))), "", "p.npy: cannot be read"),
    "pickled npy": (
        lambda t: saved(t / "p.npy", np.array([Creates(t / "ran")], dtype=object)),
        "",
        "p.npy: holds pickled Python objects, which can run code; save uint8 images",
    ),
    "pickled npz": (lambda t: pickled_archive(t / "p.npz", t / "ran"), "", "p.npz: holds pickled Python objects"),
    "no npz": (lambda t: bytes_at(t / "p.npz", b"PK"), "", "p.npz: cannot be read (File is not a zip file)"),
    "several arrays": (
        lambda t: archive(t / "p.npz", a=GOOD, b=GOOD),
        "",
        "p.npz: must hold one array, or images as arr_0; it has a, b",
    ),
    "cut npy": (
        lambda t: bytes_at(t / "c.npy", saved(t / "x.npy", GOOD).read_bytes()[:-1]),
        "",
        "c.npy: has 895 bytes, its header says 896; write or copy it again",
    ),
    "no images": (lambda t: saved(t / "x.npy", GOOD[:0]), "", "x.npy: holds no images, shape [0, 1, 8, 8]"),
    "integers": (
        lambda t: saved(t / "x.npy", GOOD.astype(int)),
        "",
        "x.npy: holds int64; save uint8 in 0..255, or floats",
    ),
    "floats": (
        lambda t: saved(t / "x.npy", one_bad(0)),
        "",
        "holds float32, whose white is not known; say --range unit",
    ),
    "range without floats": (good, "--range unit", "--range unit: is for arrays of floats"),
    "nan": (lambda t: saved(t / "x.npy", one_bad(np.nan)), "--range unit", "x.npy, image 7: holds NaN or infinity"),
    "infinite": (
        lambda t: saved(t / "x.npy", one_bad(-np.inf)),
        "--range unit",
        "x.npy, image 7: holds NaN or infinity",
    ),
    "out of range": (
        lambda t: saved(t / "x.npy", one_bad(1.5)),
        "--range unit",
        "1.5] are outside --range unit, which is [0, 1]; give the range they have, or clip them",
    ),
    "unit taken for signed": (
        lambda t: saved(t / "x.npy", one_bad(0.5)),
        "--range signed",
        "x.npy: --range signed, but no value is below 0; values in [0, 1] are --range unit",
    ),
    "one image": (
        lambda t: saved(t / "x.npy", noise(1, seed=0, channels=3)[0].transpose(1, 2, 0)),
        "",
        "shape [8, 8, 3]; images are",
    ),
    "channels": (
        lambda t: saved(t / "x.npy", noise(12, seed=0, channels=4)),
        "",
        "shape [12, 4, 8, 8]; images are [n, C, H, W]",
    ),
    "which channels": (lambda t: saved(t / "x.npy", GOOD[:, :, :, :3]), "", "shape [12, 1, 8, 3]; images are"),
    "colour": (
        lambda t: saved(t / "x.npy", noise(12, seed=0, channels=3)),
        "",
        "--samples {t}/x.npy is colour, --reference {t}/real.npy is grey; convert one of them",
    ),
    "other size": (
        lambda t: saved(t / "x.npy", noise(12, seed=0, size=9)),
        "",
        "x.npy has images of 9 x 9 pixels, --reference {t}/real.npy of 8 x 8 pixels; say what to resize both to with "
        "--image-size",
    ),
    "all the same": (lambda t: saved(t / "x.npy", np.repeat(GOOD[:1], 12, 0)), "", "x.npy: all 12 images are the same"),
    "constant colours": (
        lambda t: saved(t / "x.npy", np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None], GOOD.shape)),
        "",
        "x.npy: every image is one constant colour",
    ),
    "too few": (
        lambda t: saved(t / "x.npy", GOOD[:5]),
        "",
        "--samples {t}/x.npy: 5 images, the figures need 6; give more, or lower",
    ),
    "too few a set": (good, "--sets 3", "x.npy: 4 images in a set, the figures need 6"),
    "uneven sets": (good, "--sets 5", "--sets 5: 12 samples cannot be cut into 5 equal sets"),
    "processed folder": (lambda t: like(t / "p"), "", "p: is a folder of the pipeline (metadata.json), not of images"),
    "unseen alone": (good, "--unseen {t}/real.npy", "give --train too"),
    "train alone": (good, "--train {t}/real.npy", "--train alone changes no figure"),
    "pairs alone": (good, "--pairs {t}/p.png", "give them by --train"),
    "pairs name": (good, "--pairs {t}/p.jpg", "--pairs {t}/p.jpg: must be a file named *.png"),
    "out name": (good, "--out {t}", "--out {t}: must be a file named *.json"),
    "out under a file": (good, "--out {t}/x.npy/a.json", "x.npy is no folder that can be written to"),
    "classifier": (good, "--extractor classifier", "needs the classifier of a reference folder"),
    "weights": (good, "--weights {t}/w.pt", "--weights {t}/w.pt: no such file or folder"),
    "digest": (good, "--weights-sha256 ab", "must be a sha256, 64 digits 0-9 and a-f, got 'ab'"),
    "other weights": (good, "--extractor inception --weights {t}/real.npy", "is meant, set --weights-sha256 "),
    "neighbour samples": (good, "--neighbour-samples 3", "must be above --neighbours 3"),
    "no number": (good, "--sets 0", "--sets: must be a whole number from 1 on, got '0'"),
    "unknown option": (good, "--kid", "unrecognized arguments: --kid"),
    "device": (good, "--device tpu9x", "--device tpu9x: is no device; use cpu"),
    "too many pixels": (
        good,
        "--image-size 200",
        "40000 features an image, 12288 are the most",
    ),
}

BAD_REFERENCES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "missing": (lambda t: t / "none", "", "--reference {t}/none: no such file or folder"),
    "too few": (lambda t: saved(t / "r.npy", GOOD[:3]), "", "--reference {t}/r.npy: 3 images, the figures need 6"),
    "the same": (lambda t: saved(t / "r.npy", np.repeat(GOOD[:1], 12, 0)), "", "r.npy: all 12 images are the same"),
    "other extractor": (
        lambda t: like(t / "r", extractor="inception"),
        "",
        "{t}/r was made with inception; leave the option out",
    ),
    "other checksum": (lambda t: like(t / "r"), f"--weights-sha256 {OTHER}", "{t}/r was made with identity; leave"),
    "points": (
        lambda t: like(t / "r", image_shape=[2]),
        "",
        "--extractor: is for images, and --reference {t}/r holds po",
    ),
    "neither": (
        lambda t: like(t / "r", extractor="coordinates"),
        "",
        "has the extractor of points and the shape of im",
    ),
    "other shape": (
        lambda t: like(t / "r", image_shape=[1, 16, 16]),
        "",
        "of 16 x 16 pixels; resize to the reference's with --image-size 16",
    ),
    "colour": (lambda t: like(t / "r", image_shape=[3, 8, 8]), "", "x.npy is grey, --reference {t}/r is colour"),
    "few features": (lambda t: like(t / "r", n_train=5), "", "--reference {t}/r: 5 images, the figures need 6"),
    "a key missing": (
        lambda t: like(t / "r", split=None),
        "",
        "r/metadata.json: has no split; run `dvc repro --force reference`",
    ),
    "a file missing": (
        lambda t: (like(t / "r") / "features-test.npy").unlink() or t / "r",
        "",
        "r/features-test.npy: cannot be read (",
    ),
    "no JSON": (lambda t: bytes_at(like(t / "r") / "metadata.json", b"{").parent, "", "metadata.json: not valid JSON"),
}


@pytest.fixture
def no_features(monkeypatch) -> None:
    def taken(*arguments: Any, **options: Any) -> None:
        raise AssertionError("features were taken before the input was refused")

    monkeypatch.setattr("ifm.metrics.scoring.extract", taken)


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_and_options_are_refused_in_one_line(tmp_path, capsys, no_features, case):
    make, more, expected = BAD_SAMPLES[case]
    saved(tmp_path / "real.npy", noise(12, seed=1))
    more = more.format(t=tmp_path).split()
    extractor = [] if "--extractor" in more else ["--extractor", "pixels"]
    given = ["--samples", make(tmp_path), "--reference", tmp_path / "real.npy", *extractor, *HOW, *more]
    assert expected.format(t=tmp_path) in refused(list(map(str, given)), capsys)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_bad_references_are_refused_in_one_line(tmp_path, capsys, no_features, case):
    make, more, expected = BAD_REFERENCES[case]
    samples = saved(tmp_path / "x.npy", noise(12, seed=0))
    given = ["--samples", samples, "--reference", make(tmp_path), "--extractor", "pixels", *HOW, *more.split()]
    assert expected.format(t=tmp_path) in refused(list(map(str, given)), capsys)


def test_weights_of_another_digest_than_the_reference_folders(tmp_path, capsys, no_features, inception):
    folder = like(tmp_path / "r", extractor="inception", checksum=OTHER)
    samples = saved(tmp_path / "x.npy", noise(12, seed=0))
    given = ["--samples", str(samples), "--reference", str(folder), "--weights", str(inception[0]), *HOW]
    assert f"sha256 is {inception[1]}, --reference {folder} was made with {OTHER}" in refused(given, capsys)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(tmp_path, capsys, no_features, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    given = ["--samples", str(folder_of(tmp_path / "f", GOOD)), "--reference", str(tmp_path / "f"), *HOW]
    assert "64 pixels are more than the limit of 63" in refused([*given, "--extractor", "pixels"], capsys)


def test_an_archive_that_lies_about_its_array_is_refused(tmp_path, capsys, no_features):
    """The header of the member speaks of more images than the member has."""
    np.save(tmp_path / "x.npy", GOOD)
    data = (tmp_path / "x.npy").read_bytes().replace(b"(12, 1, 8, 8)", b"(92, 1, 8, 8)")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as made:
        made.writestr("arr_0.npy", data)
    given = ["--samples", str(tmp_path / "x.npz"), "--reference", str(tmp_path / "x.npy"), *HOW]
    assert "x.npz: has 896 bytes, its header says 6016" in refused([*given, "--extractor", "pixels"], capsys)


def test_the_version_and_a_light_start():
    code = "import sys, ifm.cli.main; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "ifm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ifm {ifm.__version__}\n"
