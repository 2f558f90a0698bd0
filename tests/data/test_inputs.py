"""Local files as inputs of the graph, what `fetch` says of a source, names and formats as people have them."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, features

from ifm import watched
from ifm.cli.options import local_path
from ifm.config import DataConfig, parse, read_params
from ifm.data import inputs
from ifm.data.decoding import decode, to_array
from ifm.data.fetching import fetch
from ifm.data.sources import SOURCES, FetchError
from ifm.errors import UserError
from ifm.files import readable
from pipeline.runner.stage import data_name, placed
from pipeline.stages import source as source_stage
from pipeline.tools import preset
from tests.support.project import Project, clone_of_this, edit

ROOT = Path(__file__).parents[2]
VALUES = read_params(ROOT / "params.yaml")
RNG = np.random.default_rng(0)


def picture(path: Path, value: int = 0, kind: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((8, 8), value, np.uint8))
    image.save(path, format=kind, **options)
    return path


def folder(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        picture(root / name, i)
    return root


def config(**changes: Any) -> DataConfig:
    return DataConfig(**(VALUES["data"] | {"source": "imagefolder", "label_column": None} | changes))


# --- the digest ----------------------------------------------------------------------------------------------------


def look(path: Path, memory: Path | None = None, **changes: Any) -> inputs.Inputs:
    key = "name" if changes.get("source") == "hub" else "path"
    return inputs.look(config(**{key: str(path)} | changes).model_dump(), root=Path("/nowhere"), memory=memory)


def parquet_set(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(("train-a", "train-b", "validation")):
        pq.write_table(pa.table({"image": [bytes([i])]}), root / f"{name}.parquet")
    return root


SETS = {
    "imagefolder": (lambda root: folder(root, "a/0.png", "a/1.png", "b/0.tif"), "a/1.png"),
    "parquet": (parquet_set, "train-b.parquet"),
    "hub": (lambda root: folder(root, "train/a/0.png", "train/b/0.png"), "train/b/0.png"),
}


@pytest.mark.parametrize("source", SETS)
def test_the_digest_is_of_names_and_contents_not_of_times_or_places(tmp_path, source):
    make, one = SETS[source]
    at = make(tmp_path / "here")
    first = look(at, source=source)
    assert first.watched == [SOURCES[source].watched]
    shutil.copytree(at, tmp_path / "there")
    for path in (tmp_path / "there").rglob("*"):
        os.utime(path, (1, 1))
    assert look(tmp_path / "there", source=source) == first

    def changed(action) -> inputs.Inputs:
        shutil.rmtree(tmp_path / "there")
        shutil.copytree(at, tmp_path / "there")
        action(tmp_path / "there" / one)
        return look(tmp_path / "there", source=source)

    def other_bytes(path: Path) -> None:  # as many of them
        path.write_bytes(path.read_bytes()[:-1] + b"\1")

    actions = [
        other_bytes,
        Path.unlink,
        lambda path: path.rename(path.with_stem(path.stem + "-new")),
        lambda path: shutil.copy(path, path.with_stem(path.stem + "-copy")),
    ]
    found = [changed(action).sha256 for action in actions]
    assert len({first.sha256, *found}) == 5


def test_what_is_not_read_does_not_count(tmp_path):
    at = folder(tmp_path, "train/a/0.png", "val/a/0.png")
    first = look(at)
    assert first.files == 1
    folder(at, "val/a/1.png", "train/.hidden/x.png", "train/a/.x.png")
    (at / "train" / "notes.txt").write_text("x")
    assert look(at) == first
    assert look(at, test_split="val").files == 3
    at = parquet_set(tmp_path / "p")
    first = look(at, source="parquet")
    (at / "validation.parquet").write_bytes(b"other")
    assert look(at, source="parquet") == first
    assert look(at / "train-a.parquet", source="parquet").files == 1


def test_files_that_have_not_changed_are_not_read_again(tmp_path, monkeypatch):
    at, memory = folder(tmp_path / "a", "0.png", "1.png"), tmp_path / "seen.json"
    first = look(at, memory)
    monkeypatch.setattr(watched, "_content", lambda path: pytest.fail(f"{path} was read"))
    assert look(at, memory) == first
    monkeypatch.undo()
    before = (at / "0.png").stat()
    (at / "0.png").write_bytes((at / "0.png").read_bytes()[:-1] + b"\1")
    os.utime(at / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` leaves a replaced file
    assert look(at, memory).sha256 not in (None, first.sha256)
    for damaged in ("", "[]", '{"seen": 1}'):
        memory.write_text(damaged)
        assert look(at, memory) == look(at)


def test_sources_without_local_files_have_no_digest(tmp_path):
    for changes in ({"source": "digits"}, {"source": "points"}, {"source": "hub", "name": "uoft-cs/cifar10"}):
        data = config(**changes).model_dump()
        assert inputs.look(data, root=tmp_path) == inputs.Inputs()
    for changes in ({"path": "gone"}, {"source": "hub", "name": str(tmp_path / "gone")}):
        assert inputs.look(config(**changes).model_dump(), root=tmp_path) is None


def test_default_results_have_none():
    assert (
        json.loads((ROOT / "data/source.json").read_text())["watched"] == inputs.look(VALUES["data"], root=ROOT).watched
    )


# --- stage source --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """params.yaml alone; photos are beside it, called `no`, as YAML 1.1 would call false."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    edit(tmp_path / "params.yaml", {"data.source": "imagefolder", "data.path": "no"})
    folder(tmp_path / "no", "a/0.png", "a/1.png")
    (tmp_path / "data").mkdir()
    return tmp_path


def noted() -> dict[str, Any]:
    return json.loads(Path("data/source.json").read_text())


def test_stage_source_notes_what_the_files_are(project, capsys):
    source_stage.main()
    first = noted()
    assert (first["watched"], first["files"]) == (["path"], 2)
    folder(project / "no", "b/0.png")
    source_stage.main()
    assert noted()["sha256"] != first["sha256"]
    assert capsys.readouterr() == ("", "")


def test_where_the_files_are_not_the_note_stands(project, capsys):
    source_stage.main()
    first = noted()
    shutil.rmtree(project / "no")
    source_stage.main()
    assert noted() == first
    assert capsys.readouterr().err == "data.path = 'no': not on this machine; what was made of it stands\n"
    edit(Path("params.yaml"), {"data.source": "digits"})
    source_stage.main()
    assert noted() == {"watched": [], "files": None, "sha256": None}


@pytest.mark.parametrize("text", ["data: [", "x: 1", "data: 3", "\0", "data: {source: imagefolder}"])
def test_broken_params_are_left_to_fetch(project, text):
    Path("params.yaml").write_text(text)
    source_stage.main()
    assert not Path("data/source.json").exists()


def test_stage_source_imports_nothing_heavy():
    heavy = ("numpy", "pydantic", "ruamel", "PIL", "mlflow")
    code = f"import sys, pipeline.stages.source; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# --- the graph -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Project:
    """A clone with the first stages alone, of digits."""
    made = clone_of_this(tmp_path_factory.mktemp("graph") / "ifm")
    dvc = yaml.safe_load((made.folder / "dvc.yaml").read_text())
    dvc["stages"] = {name: dvc["stages"][name] for name in ("source", "fetch")}
    (made.folder / "dvc.yaml").write_text(yaml.safe_dump(dvc))
    (made.folder / "data" / "source.json").write_text('{"watched": [], "files": null, "sha256": null}')
    made.env |= {"IFM_TRACKING": "off"}
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    return made


def test_a_changed_folder_is_noticed_and_nobody_else_needs_it(graph, tmp_path):
    photos = folder(tmp_path / "photos", "0.png", "1.png")
    mine = {"source": "imagefolder", "path": str(photos), "label_column": None}
    edit(graph.folder / "params.yaml", {f"data.{k}": v for k, v in mine.items()} | {"evaluate.extractor": "pixels"})
    out = graph.run("dvc", "repro")
    assert "fetch: 2 images" in out
    assert "source@" not in out
    assert graph.repro() == ["source@path"]
    picture(photos / "2.png", 9)
    (photos / "0.png").unlink()
    picture(photos / "3.png", 8)
    assert graph.repro("fetch") == ["source@path", "fetch"]
    assert graph.json("data/raw/metadata.json")["splits"] == {"train": 3}
    assert "up to date" in graph.run("dvc", "status", "fetch")

    graph.run("git", "add", "-A")
    graph.run("git", "commit", "-qm", "photos")
    clone = Project(tmp_path / "clone")
    clone.env |= {"IFM_TRACKING": "off"}
    graph.run("git", "clone", "-q", str(graph.folder), str(clone.folder))
    photos.rename(tmp_path / "elsewhere")
    out = clone.run("dvc", "repro", "--dry", "--allow-missing")
    assert "Running stage 'fetch'" not in out
    shutil.copytree(graph.folder / ".dvc/cache", clone.folder / ".dvc/cache")
    clone.run("dvc", "checkout", "-q")
    out = clone.run("dvc", "repro")
    assert "not on this machine; what was made of it stands" in out
    assert "Stage 'fetch' didn't change" in out
    assert clone.run("git", "status", "--short") == ""


def test_embedded_sources_have_no_stage_source(graph):
    shutil.copy(ROOT / "params.yaml", graph.folder)
    graph.run("dvc", "repro")  # after a folder of pictures, `source` runs once more: there is nothing to watch now
    assert graph.json("data/source.json")["watched"] == []
    assert graph.repro() == []
    assert "up to date" in graph.run("dvc", "status")


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("фото 1 é", "фото 1 é"),
        (os.fsdecode(b"cl\xe9s"), "cl\\xe9s"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("new\nline\t\x1b[2J", "new\\nline\\t\\x1b[2J"),
        ("a\u2028b\u202ec\x85", "a\\u2028b\\u202ec\\x85"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_readable_name_is_one_line_of_utf8(name, text):
    assert readable(name) == text
    assert text.encode("utf-8").isascii() or name == text


def raw_folder(root: Path, *names: bytes) -> Path:
    for i, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
        buffer = io.BytesIO()
        Image.new("L", (8, 8), i).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    return root


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_classes_and_files_in_other_encodings_are_taken(tmp_path, on_bad_image):
    at = raw_folder(
        tmp_path / "p", b"caf\xe9/\xe9t\xe9.png", b"caf\xe9/1.png", b"line\nbreak/\x07.png", b"\xb2\xe2/x.png"
    )
    chosen = config(path=str(at), label_column="label", on_bad_image=on_bad_image)
    found = fetch(chosen, tmp_path / "raw")
    assert found.splits == {"train": 4}
    assert found.classes == ["caf\\xe9", "line\\nbreak", "\\xb2\\xe2"]
    assert "caf\\xe9" in found.in_a_line()
    rows = pq.read_table(tmp_path / "raw" / "train-00000.parquet").to_pylist()
    assert {row["image"]["path"] for row in rows} >= {"caf\\xe9/\\xe9t\\xe9.png", "line\\nbreak/\\x07.png"}
    assert [row["label"] for row in rows] == [0, 0, 1, 2]
    assert json.loads((tmp_path / "raw" / "metadata.json").read_text("utf-8"))["classes"] == found.classes


def test_bad_names_in_messages(tmp_path):
    at = raw_folder(tmp_path / "p", b"a\n\xff.png", b"b/0.png")
    Path(os.fsdecode(os.fsencode(at) + b"/bad\xe9\n.png")).write_bytes(b"")
    for changes in ({}, {"label_column": "label"}):
        with pytest.raises(FetchError) as error:
            fetch(config(path=str(at), **changes), tmp_path / "raw")
        assert len(str(error.value).splitlines()) == 1
        str(error.value).encode("utf-8")
    assert "bad\\xe9\\n.png" in str(error.value)
    strange = tmp_path / "q"
    strange.mkdir()
    Path(os.fsdecode(os.fsencode(strange) + b"/train\xe9\n.parquet")).write_bytes(b"PAR1")
    for changes in ({}, {"train_split": "other"}):
        with pytest.raises(FetchError, match=r"train\\xe9\\n\.parquet") as error:
            fetch(config(source="parquet", path=str(strange), **changes), tmp_path / "raw")
        assert len(str(error.value).splitlines()) == 1


def test_a_folder_reached_by_a_link_gives_its_readable_name(tmp_path):
    at = raw_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xeate")), b"0.png", b"1.png")
    (tmp_path / "link").symlink_to(at)
    fetch(config(path=str(tmp_path / "link")), tmp_path / "raw")
    assert json.loads((tmp_path / "raw/metadata.json").read_text("utf-8"))["name"] == "f\\xeate"
    values = VALUES | {"data": VALUES["data"] | {"source": "imagefolder", "path": str(tmp_path / "link")}}
    assert data_name(parse(values)) == "f\\xeate"


def test_a_terminal_without_the_letters_gets_escapes(project):
    shutil.rmtree(project / "no")
    raw_folder(project / "no", "日本/0.png".encode(), b"\xe9/1.png")
    env = os.environ | {"PYTHONIOENCODING": "ascii", "IFM_TRACKING": "off", "PYTHONPATH": str(ROOT)}
    shutil.copy(ROOT / "dvc.yaml", project)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.fetch"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fetch: 2 images; 2 classes: \\u65e5\\u672c, \\xe9\n"


# --- what fetch says -----------------------------------------------------------------------------------------------


def said(root: Path, capsys, **changes: Any) -> tuple[str, str]:
    found = fetch(config(path=str(root), **changes), root.parent / "raw")
    return found.in_a_line(), capsys.readouterr().err.removeprefix(f"warning: data.path = {str(root)!r}: ").strip()


def test_other_files_are_counted_by_suffix(tmp_path, capsys):
    at = folder(tmp_path / "p", "a/0.png", "a/1.JPG")
    for name in ("x.heic", "a/y.HEIC", "z.txt", "README", "a/.DS_Store"):
        (at / name).write_bytes(b"x")
    line, warning = said(at, capsys)
    assert line.startswith("2 images; no classes (data.label_column: null); passed over: 2 .heic, ")
    assert all(part in line for part in ("1 .txt", "1 without a suffix", "1 hidden"))
    assert warning == ""
    line, _ = said(folder(tmp_path / "q", "b/0.png", "a/1.png", "a/2.png"), capsys, label_column="label", max_images=2)
    assert line == "2 of 3 images; 2 classes: a, b"


LAYOUTS = [
    (["train/0.png", "val/0.png"], {}, ["train"], "not val; to test on one of them set data.test_split, e.g. val"),
    (["train/a/0.png", "dev/a/0.png", "test/a/0.png"], {}, ["train"], "set data.test_split, e.g. test"),
    (["TRAIN/0.png", "Val/0.png"], {}, ["TRAIN"], "only its folder TRAIN is read"),
    (
        ["train/0.png", "plane/0.png", "car/1.png"],
        {},
        ["train"],
        "not car, plane; to take the whole folder set data.tra",
    ),
    (["train/0.png", "plane/0.png"], {"train_split": "."}, ["plane", "train"], "folders train look like splits"),
    (["Train/0.png", "Plane/0.png"], {}, ["Plane", "Train"], "folders Train look like splits"),
    (
        ["training/0.png", "testing/0.png", "validation/1.png"],
        {"label_column": "label"},
        ["testing", "training", "validation"],
        "classes called testing, training, validation look like splits, and are read as one set; if they are splits, "
        "set data.train_split: training and data.test_split: testing",
    ),
    (
        ["set/train/0.png", "set/valid/0.png"],
        {},
        ["set"],
        "folders set/train, set/valid look like splits, and are read as one set; if they are splits, set data.path to "
        "its folder set, set data.train_split: train and data.test_split: valid",
    ),
    (["cat/train/0.png", "dog/train/0.png", "dog/test/1.png"], {}, ["cat", "dog"], "move the images into one folder"),
    (["train/0.png", "test/0.png"], {"test_split": "test"}, ["train", "test"], ""),
    (["Train/0.png", "TEST/0.png"], {"test_split": "test"}, ["Train", "TEST"], ""),
    (["cats/0.png", "dogs/1.png"], {}, ["cats", "dogs"], ""),
]


@pytest.mark.parametrize(("files", "changes", "read", "text"), LAYOUTS)
def test_folders_that_look_like_splits(tmp_path, capsys, files, changes, read, text):
    at = folder(tmp_path / "p", *files)
    line, warning = said(at, capsys, **changes)
    inside = sum(name.split("/")[0] in read for name in files)
    assert line.startswith(f"{inside} images")
    assert text in warning
    assert bool(text) == bool(warning)
    assert len(warning.splitlines()) <= 1
    beside = sorted({name.split("/")[0] for name in files} - {*read})
    assert ("not used: " + ", ".join(beside) in line) if beside else ("not used" not in line)


def test_parquet_files_that_are_not_read_are_named(tmp_path):
    at = parquet_set(tmp_path / "p")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    for file in at.glob("train*"):
        pq.write_table(pa.table({"image": [buffer.getvalue()]}), file)
    (at / "notes.csv").write_text("x")
    line = fetch(config(source="parquet", path=str(at)), tmp_path / "raw").in_a_line()
    assert line.endswith("passed over: 1 .csv; not used: validation.parquet")


# --- formats -------------------------------------------------------------------------------------------------------

FORMATS = {
    ".png": "PNG", ".JPG": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".gif": "GIF",
    ".bmp": "BMP", ".tif": "TIFF", ".TIFF": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
}  # fmt: skip
if features.check("avif"):
    FORMATS[".avif"] = "AVIF"


def test_formats_that_pillow_reads_are_taken(tmp_path):
    for suffix, kind in FORMATS.items():
        picture(tmp_path / "p" / f"x-{kind}{suffix}", 200, kind)
    found = fetch(config(path=str(tmp_path / "p")), tmp_path / "raw")
    assert found.splits == {"train": len(FORMATS)}
    for cell in pq.read_table(tmp_path / "raw/train-00000.parquet").column("image").to_pylist():
        np.testing.assert_allclose(np.asarray(decode(cell["bytes"]).convert("L")).astype(int), 200, atol=2)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken_and_counted(tmp_path, kind):
    frames = [Image.new("L", (8, 8), value) for value in (10, 90, 200)]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "many.png").write_bytes(data)
    picture(tmp_path / "p" / "one.png")
    assert (to_array(decode(data), size=8, channels=1, resample="box") == 10).all()
    line = fetch(config(path=str(tmp_path / "p")), tmp_path / "raw").in_a_line()
    assert "1 with several frames, of which the first is taken" in line


@pytest.mark.parametrize(("highest", "told"), [(4095, "12 bits, multiply them by 16"), (1000, "10 bits"), (40000, "")])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_that_are_hardly_used_are_told(tmp_path, capsys, highest, told, kind):
    at = tmp_path / "p"
    at.mkdir()
    for i in range(2):
        deep = RNG.integers(0, highest, (8, 8)).astype(np.uint16)
        deep[0, i] = highest
        (at / f"{i}.tif").write_bytes(encoded(Image.fromarray(deep), kind))
    _, warning = said(at, capsys)
    assert told in warning
    assert bool(told) == bool(warning)


def test_tiffs_that_cannot_be_read_right_are_refused_with_the_reason():
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    whole = encoded(deep, "TIFF")
    at = whole.index((262).to_bytes(2, "little") + b"\3\0\1\0\0\0")  # PhotometricInterpretation, one SHORT
    white_is_zero = whole[: at + 8] + b"\0\0" + whole[at + 10 :]
    with pytest.raises(ValueError, match="whose zero is white"):
        decode(white_is_zero)
    with pytest.raises(ValueError, match=r"pixel mode F is not supported.*save it with 8 or 16 bits"):
        to_array(decode(encoded(Image.new("F", (8, 8)), "TIFF")), size=8, channels=1, resample="box")
    at = whole.index((258).to_bytes(2, "little") + b"\3\0\1\0\0\0")  # BitsPerSample
    with pytest.raises(ValueError, match="a TIFF with pixels of a kind that Pillow does not read"):
        decode(whole[: at + 8] + (24).to_bytes(2, "little") + whole[at + 10 :])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "an empty file"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"<html>404</html>", "no known image format"),
    ],
)
def test_what_is_no_image_is_named(data, text):
    with pytest.raises(ValueError, match=text):
        decode(data)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])])
def test_orientation_is_applied_once_in_other_formats(kind):
    colour = np.zeros((16, 8, 3), np.uint8)
    colour[:8] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the upper half is the right one then
    data = encoded(Image.fromarray(colour), kind, exif=exif)
    found = to_array(decode(data), size=8, channels=1, resample="box")
    upright = np.rot90(colour[..., 0], -1)[:, 4:12]
    np.testing.assert_allclose(found[0].astype(int), upright, atol=12)


# --- places --------------------------------------------------------------------------------------------------------


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "photos", "0.png", "1.png")
    values = VALUES | {
        "data": VALUES["data"] | {"source": "imagefolder", "path": "~/photos"},
        "evaluate": VALUES["evaluate"] | {"inception_path": "~/w/x.pt", "dinov2_path": "w/dinov2"},
    }
    found = placed(parse(values), Path("/project"))
    assert found.data.path == str(tmp_path / "photos")
    assert found.evaluate.inception_path == str(tmp_path / "w/x.pt")
    assert found.evaluate.dinov2_path == "/project/w/dinov2"
    assert inputs.look(values["data"], root=Path("/project")).files == 2
    hub = values | {"data": VALUES["data"] | {"source": "hub", "name": "~/photos"}}
    assert placed(parse(hub), Path("/project")).data.name == str(tmp_path / "photos")
    hub["data"]["name"] = "uoft-cs/cifar10"
    assert placed(parse(hub), Path("/project")).data.name == "uoft-cs/cifar10"
    assert local_path("~/out.json") == tmp_path / "out.json"
    preset.check_data("imagefolder", "~/photos")


def test_a_preset_looks_at_its_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"x")
    parquet_set(tmp_path / "p")
    preset.check_data("cifar10-jpeg", str(tmp_path / "p"))
    preset.check_data("cifar10-jpeg", str(tmp_path / "p" / "train-a.parquet"))
    for name, data, text in (
        ("imagefolder", "/nowhere", "DATA=/nowhere: no such folder"),
        ("imagefolder", str(tmp_path / "file.png"), "no such folder"),
        ("imagefolder", str(tmp_path / "empty"), "holds no .png, .jpg"),
        ("imagefolder", str(tmp_path / "p"), "holds no .png, .jpg"),
        ("cifar10-jpeg", "/nowhere", "no .parquet file"),
        ("cifar10-jpeg", str(tmp_path / "empty"), "no .parquet file"),
        ("imagefolder", os.fsdecode(b"/caf\xe9"), r"DATA=/caf\\xe9: a name that params.yaml cannot hold"),
    ):
        with pytest.raises(UserError, match=text):
            preset.check_data(name, data)
