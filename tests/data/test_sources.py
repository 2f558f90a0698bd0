"""The table of sources: what params.yaml may name, and sources defined here that the stages run with."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifm.config import Config, ConfigError, parse, read_params
from ifm.data import inputs
from ifm.data.arrays import ImageSet
from ifm.data.local import relative, walk
from ifm.data.points import PointSet
from ifm.data.sources import SOURCES, Encoded, FetchError, Images, Points, Source, Split
from ifm.data.splits import open_split
from pipeline.runner import paths
from pipeline.runner.stage import Stage, data_name
from pipeline.stages import fetch, preprocess
from pipeline.tools import preset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def letters(config: Any) -> Images:
    """Text files of "." and "#", each a picture; the first letter of its name is its class."""
    files = sorted(Path(config.path).glob("*.txt"))
    if not files:
        raise FetchError(f"data.path = {config.path!r}: holds no .txt")

    def encoded(rows: np.ndarray):
        for i in rows:
            lines = files[i].read_text().split()
            pixels = np.array([[255 * (c == "#") for c in line] for line in lines], np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, format="PNG")
            yield Encoded(data.getvalue(), files[i].name)

    return Images({"train": Split(len(files), [file.name[0] for file in files], encoded)})


def ring(config: Any) -> Points:
    """Points on the unit circle; which half they lie in is their class."""
    angle = np.linspace(0, 2 * np.pi, config.max_images, endpoint=False)
    labels = (np.sin(angle) < 0).astype(np.int64)
    return Points(np.stack([np.cos(angle), np.sin(angle)], axis=1), labels, ["upper", "lower"])


def text_files(place: Path, data: Any):
    return relative(place, (file.relative_to(place) for file in walk(place) if file.suffix == ".txt"))


LETTERS = Source("letters", letters, key="path", columns=False, labelled=True, test_split=False, files=text_files)
RING = Source("ring", ring, modality="points", labelled=True, columns=False)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr("ifm.tracking.project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(fetch, "project_root", lambda: tmp_path / "project")


@pytest.fixture
def _registered(monkeypatch):
    for source in (LETTERS, RING):
        monkeypatch.setitem(SOURCES, source.name, source)


def config(of: str = "digits", **changes: Any) -> Config:
    values = preset.parse_yaml(preset.apply(of, TEXT))
    values["data"] |= changes
    return parse(values)


def run(module: Any, config: Config) -> Stage:
    stage = Stage(module.__name__.rpartition(".")[2], "", config, config.model_dump(), None)
    module.work(stage)
    return stage


def write_letters(folder: Path, count: int = 24) -> np.ndarray:
    """Pictures [n, 1, 8, 8], all different, of the classes a, b, c in turn."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (count, 8, 8))
    folder.mkdir()
    for i, picture in enumerate(bits):
        text = "\n".join("".join(".#"[bit] for bit in row) for row in picture)
        (folder / f"{'abc'[i % 3]}{i:02d}.txt").write_text(text)
    order = sorted(range(count), key=lambda i: f"{'abc'[i % 3]}{i:02d}")
    return (255 * bits[order])[:, None].astype(np.uint8)


@pytest.mark.usefixtures("_registered")
def test_the_stages_run_with_a_source_of_images_that_is_registered_here(tmp_path):
    pictures = write_letters(tmp_path / "letters")
    chosen = config(source="letters", path=str(tmp_path / "letters"), test_fraction=0.5)
    run(fetch, chosen)
    raw = json.loads((paths.RAW / "metadata.json").read_text())
    assert (raw["source"], raw["name"], raw["classes"]) == ("letters", "letters", ["a", "b", "c"])
    assert json.loads(paths.SOURCE.read_text())["watched"] == ["path"]
    assert json.loads(paths.SOURCE.read_text())["files"] == 24
    run(preprocess, chosen)
    train, test = (open_split(paths.PROCESSED, split) for split in ("train", "test"))
    assert isinstance(train, ImageSet)
    assert (len(train), len(test), train.shape) == (12, 12, (1, 8, 8))
    found = np.concatenate([one[np.arange(12)] for one in (train, test)])
    assert sorted(map(bytes, found)) == sorted(map(bytes, pictures))
    labels = {bytes(picture): "abc".index("aaaaaaaabbbbbbbbcccccccc"[i]) for i, picture in enumerate(pictures)}
    assert [labels[bytes(picture)] for picture in train[np.arange(12)]] == train.labels.tolist()
    assert data_name(chosen) == "letters"


@pytest.mark.usefixtures("_registered")
def test_the_stages_run_with_a_source_of_points_that_is_registered_here():
    chosen = config("points", source="ring", max_images=60)
    run(fetch, chosen)
    assert json.loads(paths.SOURCE.read_text()) == {"watched": [], "files": None, "sha256": None}
    run(preprocess, chosen)
    train = open_split(paths.PROCESSED, "train")
    assert isinstance(train, PointSet)
    assert train.metadata.source == train.metadata.name == "ring"
    assert train.classes == ["upper", "lower"]
    x = train[np.arange(len(train))]
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    assert ((x[:, 1] < -1e-6) <= (train.labels == 1)).all()
    assert train.gaussian is None


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("of", "changes", "said"),
    [
        ("digits", {"source": "letters"}, "data: source: letters needs path to be set, got null"),
        ("digits", {"source": "letters", "path": "x", "test_split": "test"}, "data: test_split: test does not fit"),
        ("digits", {"source": "ring"}, "network.kind: unet does not fit data.source: ring; use mlp"),
        ("points", {"source": "ring", "random_flip": True}, "data: random_flip: true does not fit source: ring"),
        (
            "digits",
            {"source": "numbers"},
            "data.source = 'numbers' is not allowed; allowed: 'digits', 'hub', 'parquet'",
        ),
        ("digits", {"source": "numbers"}, "'points', 'array', 'text', 'text_hub', 'letters', 'ring'"),
        (
            "digits",
            {"source": 3},
            "data.source = 3 is not allowed; allowed: 'digits', 'hub', 'parquet', 'imagefolder', 'audiofolder'",
        ),
    ],
)
def test_the_rules_follow_from_the_table(of, changes, said):
    with pytest.raises(ConfigError) as caught:
        config(of, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_registered")
def test_a_sources_own_fault_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError, match=r"holds no \.txt"):
        run(fetch, config(source="letters", path=str(tmp_path / "empty")))
    assert not paths.RAW.exists()


@pytest.mark.usefixtures("_registered")
def test_local_files_of_a_registered_source_are_watched(tmp_path):
    write_letters(tmp_path / "letters", 3)
    section = config(source="letters", path=str(tmp_path / "letters")).data.model_dump()
    first = inputs.look(section, root=tmp_path)
    (tmp_path / "letters" / "notes.md").write_text("beside")
    assert inputs.look(section, root=tmp_path) == first
    (tmp_path / "letters" / "a00.txt").write_text("changed")
    assert inputs.look(section, root=tmp_path) != first


def test_every_source_of_the_table_is_whole():
    """A source is called as its key, says what it gives, and names keys that there are."""
    data = SimpleNamespace(**read_params(ROOT / "params.yaml")["data"])
    data.points = SimpleNamespace(**data.points)
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.origin(data).startswith("data.")
        assert source.count is None or source.count(data) > 0
        assert (source.label(data) is None) == (source.watched is not None)
