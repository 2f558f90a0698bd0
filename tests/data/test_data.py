"""The data path, from any source to mapped arrays: pixels, splits and bytes are exact, faults have names."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ifm.config import DataConfig, read_params
from ifm.data import ahead, decoding, fetching, preprocessing, raw
from ifm.data.arrays import ImageSet, ProcessedMetadata, ShardedArray
from ifm.data.decoding import decode, to_array
from ifm.data.fetching import fetch
from ifm.data.preprocessing import preprocess
from ifm.data.sources import FetchError
from ifm.random import stream

ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10-jpeg"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), np.uint8)


def config(**changes: Any) -> DataConfig:
    return DataConfig(**(read_params(ROOT / "params.yaml")["data"] | changes))


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def array(image: Image.Image | bytes, *, size: int = 8, channels: int = 3, resample: str = "box") -> np.ndarray:
    image = decode(image) if isinstance(image, bytes) else image
    return to_array(image, size=size, channels=channels, resample=resample)


def planes(pixels: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [3, H, W]."""
    return np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)).transpose(2, 0, 1)


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601-2 in 16 fractional bits, [H, W, 3] -> [H, W]."""
    return ((pixels.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16).astype(np.uint8)


def raw_table(out: Path, split: str = "train") -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob(f"{split}-*.parquet")))


def raw_bytes(out: Path, split: str = "train") -> list[bytes]:
    return [cell["bytes"] for cell in raw_table(out, split).column("image").to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def image_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def grey_images(n: int, size: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (n, size, size), np.uint8))


def write_parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def cells(images: list[bytes | None]) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": data, "path": None} for data in images], kind)


# One image


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_keeps_its_pixels(kind, channels):
    grey, colour = encoded(GREY), encoded(COLOUR, kind, lossless=True)

    np.testing.assert_array_equal(array(colour), planes(COLOUR))
    np.testing.assert_array_equal(array(colour, channels=1), luma(COLOUR)[None])
    np.testing.assert_array_equal(array(grey, channels=channels), planes(GREY)[:channels])
    assert array(grey).dtype == np.uint8
    assert array(grey).flags.c_contiguous


def test_jpeg_is_what_the_decoder_gives():
    data = encoded(COLOUR, "JPEG", quality=90)
    np.testing.assert_array_equal(array(data), planes(np.asarray(Image.open(io.BytesIO(data)))))
    grey = encoded(GREY, "JPEG")
    np.testing.assert_array_equal(array(grey, channels=1)[0], np.asarray(Image.open(io.BytesIO(grey))))


# EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored picture belong.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = planes(ORIENTATIONS[orientation](COLOUR))

    image = decode(encoded(COLOUR, "PNG", exif=exif))
    np.testing.assert_array_equal(array(image), expected)
    np.testing.assert_array_equal(array(decoding.flatten(image)), expected)


def test_broken_exif_leaves_the_pixels():
    image = Image.fromarray(COLOUR)
    np.testing.assert_array_equal(array(encoded(image, "PNG", exif=b"Exif\0\0no tags here")), planes(COLOUR))


@pytest.mark.parametrize("channels", [1, 3])
def test_palette(channels):
    colours = np.array([[255, 0, 0], [0, 128, 0], [7, 8, 9], [250, 250, 250]], np.uint8)
    index = np.random.default_rng(2).integers(0, 4, (8, 8)).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    assert decode(encoded(image)).mode == "P"

    expected = planes(colours[index]) if channels == 3 else luma(colours[index])[None]
    np.testing.assert_array_equal(array(encoded(image), channels=channels), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency_lies_on_white(kind):
    colours = np.array([[255, 0, 0], [0, 128, 0], [7, 8, 9], [250, 250, 250]], np.uint8)
    index = np.random.default_rng(2).integers(0, 4, (8, 8)).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())

    expected = np.where((index == 1)[..., None], 255, colours[index])
    np.testing.assert_array_equal(array(encoded(image, kind, transparency=1)), planes(expected))


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The exact composite, float."""
    a = alpha.astype(float)[..., None] / 255
    return np.atleast_3d(colour) * a + 255 * (1 - a)


@pytest.mark.parametrize("levels", [[0, 255], range(256)])
def test_alpha_lies_on_white(levels):
    alpha = np.random.default_rng(3).choice(levels, (8, 8)).astype(np.uint8)
    # Whole numbers: exact where opaque or clear, to one step in between.
    slack = 0 if len(levels) == 2 else 1

    rgba = array(encoded(np.dstack([COLOUR, alpha])))
    np.testing.assert_allclose(rgba.astype(float), planes(on_white(COLOUR, alpha)), atol=slack)
    la = encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]))
    assert decode(la).mode == "LA"
    for channels in (1, 3):
        expected = planes(on_white(GREY, alpha)[..., 0])[:channels]
        np.testing.assert_allclose(array(la, channels=channels).astype(float), expected, atol=slack)
    pa_image = Image.fromarray(GREY).convert("P")
    pa_image.putalpha(Image.fromarray(alpha))
    assert pa_image.mode == "PA"
    np.testing.assert_allclose(array(pa_image).astype(float), planes(on_white(GREY, alpha)[..., 0]), atol=slack)


def test_a_transparent_colour_is_white():
    colour = COLOUR.copy()
    colour[2, 3] = (1, 2, 3)
    expected = colour.copy()
    expected[2, 3] = 255
    np.testing.assert_array_equal(array(encoded(colour, transparency=(1, 2, 3))), planes(expected))


DEEP = np.concatenate([[0, 65535, 257, 128, 129, 32768], RNG.integers(0, 65536, 58)]).reshape(8, 8)


@pytest.mark.parametrize("source", ["png", "tiff", "I", "I;16B"])
def test_sixteen_bits_are_scaled(source):
    if source == "I":
        image = Image.fromarray(DEEP.astype(np.int32))
    elif source == "I;16B":
        image = Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes())
    else:
        image = decode(encoded(DEEP.astype(np.uint16), source))
        assert image.mode.startswith("I")
    expected = np.round(DEEP / 257).astype(np.uint8)

    np.testing.assert_array_equal(array(image), planes(expected))
    np.testing.assert_array_equal(array(image, channels=1)[0], expected)


def test_a_transparent_deep_grey_is_white():
    expected = np.where(DEEP == 32768, 255, np.round(DEEP / 257))
    data = encoded(DEEP.astype(np.uint16), transparency=32768)
    np.testing.assert_array_equal(array(data, channels=1)[0], expected)


def test_whole_numbers_outside_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match=r"mode I holds 0\.\.65536"):
        array(Image.fromarray(np.array([[0, 65536]], np.int32)))


def test_cmyk_becomes_rgb():
    cmyk = np.dstack([COLOUR, np.zeros((8, 8), np.uint8)])
    image = Image.frombytes("CMYK", (8, 8), cmyk.tobytes())
    np.testing.assert_array_equal(array(encoded(image, "TIFF")), planes(255 - COLOUR))
    black = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert (array(black) == 0).all()


def test_one_bit_is_black_and_white():
    bits = GREY > 127
    data = encoded(Image.fromarray(bits))
    assert decode(data).mode == "1"
    np.testing.assert_array_equal(array(data, channels=1)[0], np.where(bits, 255, 0))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=rf"pixel mode {mode} is not supported; allowed: 1, L"):
        array(Image.new(mode, (8, 8)))


def test_crop_is_the_largest_centred_square():
    wide = np.arange(4 * 9, dtype=np.uint8).reshape(4, 9)
    np.testing.assert_array_equal(array(encoded(wide), size=4, channels=1)[0], wide[:, 2:6])
    np.testing.assert_array_equal(array(encoded(wide.T.copy()), size=4, channels=1)[0], wide.T[2:6])


def test_resizing_is_antialiased():
    checks = np.indices((16, 16)).sum(0) % 2 * 200
    blocks = GREY.astype(float).reshape(4, 2, 4, 2).mean((1, 3))

    # Two passes, each rounded to whole numbers.
    np.testing.assert_allclose(array(encoded(GREY), size=4, channels=1)[0].astype(float), blocks, atol=1)
    for resample in ("lanczos", "bicubic", "box"):
        small = array(encoded(checks.astype(np.uint8)), size=4, channels=1, resample=resample)
        np.testing.assert_allclose(small.astype(float), 100, atol=2 if resample == "box" else 12)
        assert (array(Image.new("L", (5, 7), 77), size=16, channels=1, resample=resample) == 77).all()


def truncated(kind: str) -> bytes:
    data = encoded(np.random.default_rng(4).integers(0, 256, (32, 32, 3), np.uint8), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize("data", [b"", b"no image", truncated("PNG"), truncated("JPEG"), truncated("WEBP")])
def test_undecodable_bytes_raise_value_error(data):
    with pytest.raises(ValueError, match=r".+") as error:
        decode(data)
    assert "0x" not in str(error.value)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="64 pixels are more than the limit of 60"),
    ):
        decode(encoded(GREY))


# Sources


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    result = fetch(config(), tmp_path / "raw")
    bunch = load_digits()
    table = raw_table(tmp_path / "raw")

    assert result.splits == {"train": 1797}
    assert result.classes == [str(i) for i in range(10)]
    assert table.column("label").to_pylist() == bunch.target.tolist()
    for i in (0, 1000, 1796):
        image = decode(table.column("image")[i]["bytes"].as_py())
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.round(bunch.images[i] * 255 / 16))
    metadata = json.loads((tmp_path / "raw" / "metadata.json").read_text())
    assert metadata["name"] == "digits"
    assert metadata["sha256"] == result.sha256


def test_digits_have_no_test_split(tmp_path):
    with pytest.raises(FetchError, match=r"data\.test_split = 'test'.*set it to null"):
        fetch(config(test_split="test"), tmp_path / "raw")


def test_max_images_is_a_seeded_subset_in_order(tmp_path):
    fetch(config(), tmp_path / "all")
    fetch(config(max_images=20, split_seed=3), tmp_path / "some")

    rows = np.sort(stream(3, "split", index=1).permutation(1797)[:20])
    everything = raw_table(tmp_path / "all")
    assert raw_table(tmp_path / "some").equals(everything.take(rows).combine_chunks())


def test_files_are_cut_and_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "ROWS_PER_FILE", 500)
    fetch(config(), tmp_path / "raw")
    names = sorted(path.name for path in (tmp_path / "raw").glob("*.parquet"))
    assert names == [
        "train-00000.parquet",
        "train-00001.parquet",
        "train-00002.parquet",
        "train-00003.parquet",
    ]
    assert len(raw_table(tmp_path / "raw")) == 1797


def labelled_folder(root: Path, *, n: int = 4) -> Path:
    images = grey_images(2 * n)
    files = {f"cat/{i}.png": encoded(images[i]) for i in range(n)}
    return image_folder(root, files | {f"ant/deep/{i}.PNG": encoded(images[n + i]) for i in range(n)})


def test_imagefolder_classes_are_its_subfolders(tmp_path):
    root = labelled_folder(tmp_path / "pictures")
    image_folder(root, {"notes.txt": b"x", ".hidden/h.png": b"x", "cat/._0.png": b"x"})
    result = fetch(config(source="imagefolder", path=str(root)), tmp_path / "raw")
    table = raw_table(tmp_path / "raw")

    assert result.classes == ["ant", "cat"]
    assert result.ignored == 2  # a hidden folder is not entered
    assert table.column("label").to_pylist() == [0] * 4 + [1] * 4
    paths = [cell["path"] for cell in table.column("image").to_pylist()]
    assert paths == [f"ant/deep/{i}.PNG" for i in range(4)] + [f"cat/{i}.png" for i in range(4)]
    assert raw_bytes(tmp_path / "raw") == [(root / path).read_bytes() for path in paths]
    assert str(tmp_path) not in (tmp_path / "raw" / "metadata.json").read_text()


def test_imagefolder_splits_are_subfolders(tmp_path):
    labelled_folder(tmp_path / "p" / "train")
    labelled_folder(tmp_path / "p" / "val", n=2)
    named = config(source="imagefolder", path=str(tmp_path / "p"), test_split="val")
    assert fetch(named, tmp_path / "raw").splits == {"train": 8, "test": 4}

    alone = config(source="imagefolder", path=str(tmp_path / "p"))
    assert fetch(alone, tmp_path / "raw").splits == {"train": 8}

    with pytest.raises(FetchError, match=r"data\.test_split = 'nope': no such folder"):
        fetch(config(source="imagefolder", path=str(tmp_path / "p"), test_split="nope"), tmp_path / "raw")


def test_imagefolder_without_labels_takes_every_image(tmp_path):
    root = labelled_folder(tmp_path / "p")
    image_folder(root, {"loose.webp": encoded(COLOUR, "WEBP"), "loose.jpeg": encoded(COLOUR, "JPEG")})
    result = fetch(config(source="imagefolder", path=str(root), label_column=None), tmp_path / "raw")
    assert (result.splits, result.classes) == ({"train": 10}, None)
    assert raw_table(tmp_path / "raw").column_names == ["image"]

    with pytest.raises(FetchError, match=r"2 images lie in no class folder: loose\.jpeg, loose\.webp"):
        fetch(config(source="imagefolder", path=str(root)), tmp_path / "raw")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = image_folder(tmp_path / "outside", {"x.png": encoded(GREY)})
    root = labelled_folder(tmp_path / "p")
    (root / "cat" / "escape.png").symlink_to(outside / "x.png")
    (root / "ant" / "inside.png").symlink_to(root / "cat" / "0.png")
    (root / "dog").symlink_to(outside, target_is_directory=True)

    result = fetch(config(source="imagefolder", path=str(root)), tmp_path / "raw")
    assert (result.splits, result.classes, result.ignored) == ({"train": 9}, ["ant", "cat"], 2)
    assert encoded(GREY) not in raw_bytes(tmp_path / "raw")


CLASS_LABEL = {
    "img": {"_type": "Image"},
    "label": {"names": ["sun", "moon", "star"], "_type": "ClassLabel"},
}


def test_parquet_honours_class_names(tmp_path):
    images = [encoded(a) for a in grey_images(9)]
    folder = tmp_path / "p"
    write_parquet(folder / "train-b.parquet", {"img": cells(images[3:6]), "label": [2, 0, 2]}, CLASS_LABEL)
    write_parquet(folder / "train-a.parquet", {"img": cells(images[:3]), "label": [0, 0, 2]}, CLASS_LABEL)
    write_parquet(folder / "test.parquet", {"img": cells(images[6:]), "label": [2, 2, 0]}, CLASS_LABEL)
    chosen = config(source="parquet", path=str(folder), image_column="img", test_split="test")
    result = fetch(chosen, tmp_path / "raw")

    assert result.classes == ["sun", "moon", "star"]
    assert result.splits == {"train": 6, "test": 3}
    assert raw_bytes(tmp_path / "raw") == images[:6]
    assert raw_bytes(tmp_path / "raw", "test") == images[6:]
    assert raw_table(tmp_path / "raw").column("label").to_pylist() == [0, 0, 2, 2, 0, 2]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [([7, 3, 7], ["3", "7"], [1, 0, 1]), (["b", "a", "b"], ["a", "b"], [1, 0, 1])],
)
def test_plain_labels_are_numbered_in_order(tmp_path, labels, classes, numbers):
    # A column of plain bytes does as well.
    images = [encoded(a) for a in grey_images(3)]
    path = write_parquet(tmp_path / "one.parquet", {"image": images, "label": labels})
    result = fetch(config(source="parquet", path=str(path)), tmp_path / "raw")
    assert result.classes == classes
    assert raw_table(tmp_path / "raw").column("label").to_pylist() == numbers
    assert raw_bytes(tmp_path / "raw") == images


def test_paths_in_parquet_are_read_beside_it_and_nowhere_else(tmp_path):
    image_folder(tmp_path, {"p/in.png": encoded(GREY), "out.png": encoded(GREY)})
    path = write_parquet(tmp_path / "p" / "train.parquet", {"image": ["in.png", "../out.png"]})
    chosen = {"source": "parquet", "path": str(path), "label_column": None}
    with pytest.raises(FetchError, match=r"1 of 2 images cannot be read: out\.png \(no bytes\)"):
        fetch(config(**chosen), tmp_path / "raw")
    assert fetch(config(**chosen, on_bad_image="skip"), tmp_path / "raw").splits == {"train": 1}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 2], r"1 of 3 images of the train split have no usable label \(row 1: None"),
        ([0, -1, 2], r"\(row 1: -1; allowed: 0\.\.2\)"),
        ([0, 1, 3], r"\(row 2: 3; allowed: 0\.\.2\)"),
        ([0.5, 1.0, 2.0], r"must be whole numbers or strings, the train split holds float"),
    ],
)
def test_unusable_labels_are_an_error(tmp_path, labels, message):
    images = cells([encoded(a) for a in grey_images(3)])
    path = write_parquet(tmp_path / "one.parquet", {"img": images, "label": labels}, CLASS_LABEL)
    chosen = config(source="parquet", path=str(path), image_column="img", on_bad_image="skip")
    with pytest.raises(FetchError, match=rf"data\.label_column = 'label'.*{message}"):
        fetch(chosen, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_minus_one_is_no_class_of_plain_numbers(tmp_path):
    images = [encoded(a) for a in grey_images(2)]
    path = write_parquet(tmp_path / "one.parquet", {"image": images, "label": [-1, 1]})
    with pytest.raises(FetchError, match=r"row 0: -1; null, -1 and the empty string are no labels"):
        fetch(config(source="parquet", path=str(path)), tmp_path / "raw")


def test_parquet_faults_have_names(tmp_path):
    images = [encoded(a) for a in grey_images(2)]
    folder = tmp_path / "p"
    write_parquet(folder / "train.parquet", {"img": cells(images), "label": [0, 1]}, CLASS_LABEL)

    def message(**changes: Any) -> str:
        with pytest.raises(FetchError) as error:
            fetch(config(**{"source": "parquet", "path": str(folder), "image_column": "img"} | changes), out)
        assert not out.exists()
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    out = tmp_path / "raw"
    assert "data.image_column = 'image': no such column" in message(image_column="image")
    assert "has ['img', 'label']" in message(image_column="image")
    assert "data.label_column = 'y': no such column" in message(label_column="y")
    assert "data.image_column = 'label': holds int64, not encoded images" in message(image_column="label")
    assert "no test*.parquet" in message(test_split="test")
    assert "it has train.parquet" in message(test_split="test")
    assert "both take train.parquet" in message(train_split="tr", test_split="tra")
    assert "is the same as data.train_split" in message(test_split="train")
    assert "no such file or folder" in message(path=str(tmp_path / "gone"))
    assert "is one file" in message(path=str(folder / "train.parquet"), test_split="test")
    other = CLASS_LABEL | {"label": {"names": ["moon", "sun", "star"], "_type": "ClassLabel"}}
    write_parquet(folder / "test.parquet", {"img": cells(images), "label": [0, 1]}, other)
    assert "disagree on the class names" in message(test_split="test")
    write_parquet(folder / "test.parquet", {"img": cells([]), "label": pa.array([], pa.int64())}, CLASS_LABEL)
    assert "the test split is empty" in message(test_split="test")
    (folder / "test.parquet").write_bytes(b"PAR1 and nothing else")
    assert "cannot be read as parquet" in message(test_split="test")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: image_folder(p, {"a.txt": b""})])
def test_imagefolder_with_nothing_in_it(tmp_path, make):
    make(tmp_path / "p")
    chosen = config(source="imagefolder", path=str(tmp_path / "p"), label_column=None)
    with pytest.raises(FetchError, match=r"data\.path = .*no "):
        fetch(chosen, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def bad_folder(root: Path) -> Path:
    files = {f"bad{i}.png": b"nothing" for i in range(6)} | {
        "cut.jpg": truncated("JPEG"),
        "cut.png": truncated("PNG"),
    }
    return image_folder(root, files | {"good.png": encoded(GREY), "float.png": b""})


def test_bad_images_stop_or_are_left_out(tmp_path, capsys):
    root = bad_folder(tmp_path / "p")
    chosen = {"source": "imagefolder", "path": str(root), "label_column": None}
    with pytest.raises(FetchError) as error:
        fetch(config(**chosen), tmp_path / "raw")
    message = str(error.value)
    assert "9 of 10 images cannot be read: bad0.png (no known image format); bad1.png" in message
    assert "bad4.png" in message
    assert "bad5.png" not in message
    assert message.endswith("Set data.on_bad_image: skip to leave them out")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]

    result = fetch(config(**chosen, on_bad_image="skip"), tmp_path / "raw")
    assert (result.splits, result.skipped) == ({"train": 1}, 9)
    assert json.loads((tmp_path / "raw" / "metadata.json").read_text())["skipped"] == 9
    assert raw_bytes(tmp_path / "raw") == [encoded(GREY)]
    warning = capsys.readouterr().err.strip()
    assert warning.startswith("warning: ")
    assert "9 of 10" in warning
    assert len(warning.splitlines()) == 1


def test_no_readable_image_is_an_error_whatever_the_choice(tmp_path):
    root = bad_folder(tmp_path / "p")
    (root / "good.png").unlink()
    chosen = config(source="imagefolder", path=str(root), label_column=None, on_bad_image="skip")
    with pytest.raises(FetchError, match="No image is left in the train split"):
        fetch(chosen, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_failure_keeps_what_was_there(tmp_path):
    fetch(config(max_images=2), tmp_path / "raw")
    before = contents(tmp_path / "raw")
    bad = bad_folder(tmp_path / "p")
    with pytest.raises(FetchError):
        fetch(config(source="imagefolder", path=str(bad), label_column=None), tmp_path / "raw")
    assert contents(tmp_path / "raw") == before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets` with a cache of its own, and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_hub_from_a_local_folder_of_images(hub):
    images = grey_images(6)
    names = [
        "train/b/0.png",
        "train/a/1.png",
        "train/b/2.png",
        "test/a/3.png",
        "test/b/4.png",
        "test/a/5.png",
    ]
    root = image_folder(hub / "set", dict(zip(names, map(encoded, images), strict=True)))
    result = fetch(config(source="hub", name=str(root), test_split="test"), hub / "raw")

    assert result.splits == {"train": 3, "test": 3}
    assert result.classes == ["a", "b"]
    for split in ("train", "test"):
        table = raw_table(hub / "raw", split)
        for cell, label in zip(*(table.column(c).to_pylist() for c in ("image", "label")), strict=True):
            path = f"{split}/{'ab'[label]}/{cell['path']}"
            assert cell["bytes"] == (root / path).read_bytes()


def test_hub_from_local_parquet(hub):
    images = [encoded(a) for a in grey_images(70)]
    labels = [i % 3 for i in range(70)]
    write_parquet(hub / "set" / "train.parquet", {"img": cells(images), "label": labels}, CLASS_LABEL)
    chosen = config(source="hub", name=str(hub / "set"), image_column="img", max_images=66)
    result = fetch(chosen, hub / "raw")

    rows = np.sort(stream(0, "split", index=1).permutation(70)[:66])
    assert result.classes == ["sun", "moon", "star"]
    assert raw_bytes(hub / "raw") == [images[i] for i in rows]
    assert raw_table(hub / "raw").column("label").to_pylist() == [labels[i] for i in rows]


def test_hub_faults_have_names(hub):
    write_parquet(hub / "set" / "train.parquet", {"img": cells([encoded(GREY)]), "label": [0]}, CLASS_LABEL)
    with pytest.raises(FetchError, match=r"data\.name = '.*': cannot load split 'train'.*Check the name"):
        fetch(config(source="hub", name=str(hub / "nothing")), hub / "raw")
    with pytest.raises(FetchError, match=r"cannot load split 'valid'.*valid"):
        fetch(config(source="hub", name=str(hub / "set"), train_split="valid"), hub / "raw")
    with pytest.raises(
        FetchError, match=r"data\.image_column = 'image': no such column; data\.name.*\['img', 'label'\]"
    ):
        fetch(config(source="hub", name=str(hub / "set")), hub / "raw")
    assert not (hub / "raw").exists()


# Preprocessing


def test_a_seeded_split_holds_every_image_once(tmp_path):
    chosen = config(split_seed=5, test_fraction=0.3)
    fetch(chosen, tmp_path / "raw")
    metadata = preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    table = raw_table(tmp_path / "raw")
    pixels = np.stack([array(cell["bytes"], channels=1) for cell in table.column("image").to_pylist()])
    labels = table.column("label").to_numpy()
    order = stream(5, "split").permutation(1797)
    tests = round(0.3 * 1797)

    for split, rows in {"test": order[:tests], "train": order[tests:]}.items():
        images = ImageSet.open(tmp_path / "out", split)
        assert len(images) == len(rows) == metadata.splits[split].count
        np.testing.assert_array_equal(images[np.arange(len(rows))], pixels[rows])
        np.testing.assert_array_equal(images.labels, labels[rows])
        assert metadata.splits[split].class_counts == np.bincount(labels[rows], minlength=10).tolist()
    unit = pixels[order[tests:]] / 127.5 - 1
    np.testing.assert_allclose(metadata.mean, unit.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(metadata.std, unit.std((0, 2, 3)), rtol=1e-12)
    assert ProcessedMetadata.read(tmp_path / "out") == metadata


def test_the_sources_own_test_split_is_kept(tmp_path):
    train, test = grey_images(6)[:4], grey_images(6)[4:]
    files = {f"train/{i}.png": encoded(a) for i, a in enumerate(train)}
    root = image_folder(tmp_path / "p", files | {f"test/{i}.png": encoded(a) for i, a in enumerate(test)})
    chosen = config(source="imagefolder", path=str(root), label_column=None, test_split="test")
    fetch(chosen, tmp_path / "raw")
    metadata = preprocess(chosen, tmp_path / "raw", tmp_path / "out")

    for split, expected in {"train": train, "test": test}.items():
        images = ImageSet.open(tmp_path / "out", split)
        np.testing.assert_array_equal(np.concatenate(list(images.batches(3)))[:, 0], expected)
        assert images.labels is None
        assert images.classes is None
    assert metadata.splits["train"].class_counts is None
    assert sorted(contents(tmp_path / "out")) == ["metadata.json", "test-00000.npy", "train-00000.npy"]


def test_mixed_sizes_and_modes_become_one_array(tmp_path):
    pictures = {
        "a.png": encoded(np.full((9, 12), 40, np.uint8)),
        "b.jpg": encoded(np.full((20, 5, 3), 200, np.uint8), "JPEG"),
        "c.webp": encoded(np.full((8, 8, 3), 90, np.uint8), "WEBP", lossless=True),
        "d.png": encoded(np.full((3, 3), 257 * 17, np.uint16)),
        "e.png": encoded(np.zeros((30, 31, 4), np.uint8)),
    }
    root = image_folder(tmp_path / "p", pictures)
    chosen = config(source="imagefolder", path=str(root), label_column=None, channels=3, test_fraction=0.1)
    fetch(chosen, tmp_path / "raw")
    preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    sets = [ImageSet.open(tmp_path / "out", split) for split in ("train", "test")]
    assert [len(images) for images in sets] == [4, 1]
    everything = np.concatenate([images[np.arange(len(images))] for images in sets])
    assert everything.shape == (5, 3, 8, 8)
    assert sorted(image.flat[0] for image in everything) == [17, 40, 90, 200, 255]
    assert all((image == image.flat[0]).all() for image in everything)


@pytest.mark.parametrize(("count", "fraction", "tests"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2), (11, 0.5, 6)])
def test_both_sides_of_a_split_have_images(tmp_path, count, fraction, tests):
    chosen = config(max_images=count, test_fraction=fraction)
    fetch(chosen, tmp_path / "raw")
    splits = preprocess(chosen, tmp_path / "raw", tmp_path / "out").splits
    assert (splits["train"].count, splits["test"].count) == (count - tests, tests)


def test_one_image_cannot_be_split(tmp_path):
    root = image_folder(tmp_path / "p", {"a.png": encoded(GREY)})
    chosen = config(source="imagefolder", path=str(root), label_column=None)
    fetch(chosen, tmp_path / "raw")
    with pytest.raises(ValueError, match="need at least 2 images, the data set has 1"):
        preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch):
    chosen = config(max_images=300)
    fetch(chosen, tmp_path / "raw1")
    preprocess(chosen, tmp_path / "raw1", tmp_path / "out1")
    monkeypatch.setattr(preprocessing, "WORKERS", 1)
    monkeypatch.setattr(fetching, "WORKERS", 1)
    fetch(chosen, tmp_path / "raw2")
    preprocess(chosen, tmp_path / "raw2", tmp_path / "out2")
    assert contents(tmp_path / "raw1") == contents(tmp_path / "raw2")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")

    monkeypatch.setattr(ahead, "MANY", 1)  # processes, with a few groups ahead
    monkeypatch.setattr(ahead, "PROCESSES", 2)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 2**14)
    monkeypatch.setattr(fetching, "_CHUNK_ROWS", 40)
    fetch(chosen, tmp_path / "raw3")
    preprocess(chosen, tmp_path / "raw3", tmp_path / "out3")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out3")

    again = fetch(config(max_images=300, split_seed=1), tmp_path / "raw2")
    assert again.sha256 != json.loads((tmp_path / "raw1" / "metadata.json").read_text())["sha256"]


def test_preprocess_names_a_missing_or_damaged_input(tmp_path):
    chosen = config(max_images=10)
    with pytest.raises(ValueError, match=r"metadata\.json: is missing; run `dvc repro fetch`"):
        preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    fetch(chosen, tmp_path / "raw")
    file = tmp_path / "raw" / "train-00000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"train-00000\.parquet: is damaged .*run `dvc repro fetch` again"):
        preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    file.unlink()
    with pytest.raises(ValueError, match="counts 10 train images, the files hold 0"):
        preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    file.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(ValueError, match=r"image '\d+\.png': .*run `dvc repro fetch` again"):
        preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


# Arrays


@pytest.fixture
def processed(tmp_path, monkeypatch):
    """50 digits in shards of 7 rows, 38 to train."""
    monkeypatch.setattr(preprocessing, "SHARD_BYTES", 7 * 64 + 10)
    chosen = config(max_images=50, test_fraction=0.24, random_flip=True)
    fetch(chosen, tmp_path / "raw")
    preprocess(chosen, tmp_path / "raw", tmp_path / "out")
    return tmp_path / "out"


def test_gathering_across_shards_is_indexing(processed):
    images = ImageSet.open(processed, "train")
    files = sorted(processed.glob("train-0*.npy"))
    whole = np.concatenate([np.load(path, allow_pickle=False) for path in files])
    rows = np.random.default_rng(0).integers(0, 38, 200)

    assert len(files) == 6
    assert images.shape == (1, 8, 8)
    assert images.nbytes == whole.nbytes
    assert images.random_flip
    np.testing.assert_array_equal(images[rows], whole[rows])
    assert images[np.array([], np.int64)].shape == (0, 1, 8, 8)
    batches = list(images.batches(5))
    assert [len(batch) for batch in batches] == [5] * 7 + [3]
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    # A copy: what is done to it does not reach the files.
    images[rows][:] = 0
    np.testing.assert_array_equal(images[rows], whole[rows])


def test_sharding_does_not_change_the_rows(processed, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "SHARD_BYTES", 2**30)
    chosen = config(max_images=50, test_fraction=0.24, random_flip=True)
    one = preprocess(chosen, tmp_path / "raw", tmp_path / "one")
    many = ProcessedMetadata.read(processed)
    assert {k: v.sha256 for k, v in one.splits.items()} == {k: v.sha256 for k, v in many.splits.items()}
    assert (one.mean, one.std) == (many.mean, many.std)


def test_rows_outside_are_refused(processed):
    images = ImageSet.open(processed, "train")
    for rows in ([38], [-1], [0, 38]):
        with pytest.raises(IndexError, match=r"rows must be in 0\.\.37"):
            images[np.array(rows)]
    for rows in (np.array([0.0]), np.array([True]), np.array(3), np.zeros((2, 2), int)):
        with pytest.raises(TypeError, match="rows must be whole numbers"):
            images[rows]
    with pytest.raises(ValueError, match="size must be at least 1"):
        list(images.batches(0))


def test_sharded_array_of_another_kind(tmp_path):
    rows = np.random.default_rng(0).standard_normal((5, 4, 1, 2, 2)).astype(np.float16)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    np.save(paths[0], rows[:2])
    np.save(paths[1], rows[2:])
    sharded = ShardedArray(paths, stage="trajectories@ve")

    assert (len(sharded), sharded.shape, sharded.dtype) == (5, (5, 4, 1, 2, 2), np.float16)
    np.testing.assert_array_equal(sharded[np.array([4, 0, 2, 2])], rows[[4, 0, 2, 2]])
    packed = pickle.dumps(sharded)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed)[np.arange(5)], rows)

    with pytest.raises(ValueError, match=r"a\.npy: holds float16 .*not float32 .*`dvc repro trajectories@ve` again"):
        ShardedArray(paths, stage="trajectories@ve", dtype=np.float32)
    with pytest.raises(ValueError, match=r"a\.npy: holds float16 \[2, 4, 1, 2, 2\], not float16 \[n, 3\]"):
        ShardedArray(paths, stage="trajectories@ve", row_shape=(3,))
    with pytest.raises(ValueError, match="no shards"):
        ShardedArray([], stage="trajectories@ve")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "is missing"),
        (lambda p: p.write_bytes(b""), "is damaged"),
        (lambda p: p.write_bytes(b"not an array at all"), "is damaged"),
        (lambda p: os.truncate(p, p.stat().st_size - 1), "is damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "is longer than its header says"),
        (
            lambda p: np.save(p, np.load(p).astype(np.int16)),
            r"holds int16 \[7, 1, 8, 8\], not uint8 \[n, 1, 8, 8\]",
        ),
        (lambda p: np.save(p, np.load(p)[:, :, :4]), r"holds uint8 \[7, 1, 4, 8\]"),
        (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "is damaged"),
    ],
)
def test_a_damaged_shard_is_named(processed, spoil, message):
    spoil(processed / "train-00003.npy")
    with pytest.raises(ValueError, match=rf"train-00003\.npy: {message}.*run `dvc repro preprocess` again"):
        ImageSet.open(processed, "train")
    assert len(ImageSet.open(processed, "test")) == 12


def test_other_damage_is_named(processed):
    shard, labels, metadata = (processed / n for n in ("train-00002.npy", "train-labels.npy", "metadata.json"))
    again = r".*run `dvc repro preprocess` again"
    whole = np.load(shard)
    np.save(shard, whole[:6])
    with pytest.raises(ValueError, match=r"metadata\.json: counts 38 train images, the shards hold 37" + again):
        ImageSet.open(processed, "train")
    np.save(shard, whole)
    np.save(labels, np.load(labels) + 9)
    with pytest.raises(ValueError, match=r"train-labels\.npy: holds labels .*not 0\.\.9" + again):
        ImageSet.open(processed, "train")
    np.save(labels, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"train-labels\.npy: holds int64 \[3\], not int64 \[38\]" + again):
        ImageSet.open(processed, "train")
    with pytest.raises(ValueError, match=r"has no split 'valid'; it has \['test', 'train'\]"):
        ImageSet.open(processed, "valid")
    metadata.write_text('{"splits": {}}')
    with pytest.raises(ValueError, match=r"metadata\.json: does not describe a processed data set" + again):
        ImageSet.open(processed, "train")
    metadata.unlink()
    with pytest.raises(ValueError, match=r"metadata\.json: is missing" + again):
        ImageSet.open(processed, "train")


# A real data set


@pytest.mark.skipif(not CIFAR.is_dir(), reason="shared/data/cifar10-jpeg is not beside this checkout")
def test_cifar10_jpeg(tmp_path):
    chosen = config(
        source="parquet",
        path=str(CIFAR),
        image_column="img",
        test_split="test",
        max_images=200,
        image_size=32,
        channels=3,
    )
    result = fetch(chosen, tmp_path / "raw")
    metadata = preprocess(chosen, tmp_path / "raw", tmp_path / "out")

    assert result.splits == {"train": 200, "test": 200}
    assert " ".join(result.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    rows = np.sort(stream(0, "split", index=1).permutation(10000)[:200])
    original = pq.read_table(CIFAR / "test.parquet").take(rows)
    test = ImageSet.open(tmp_path / "out", "test")
    np.testing.assert_array_equal(test.labels, original.column("label").to_numpy())
    for i in (0, 77, 199):
        picture = Image.open(io.BytesIO(original.column("img")[i]["bytes"].as_py()))
        np.testing.assert_array_equal(test[np.array([i])][0], np.asarray(picture).transpose(2, 0, 1))
    assert metadata.name == "cifar10-jpeg"
    assert all(0.3 < std < 0.7 for std in metadata.std)
