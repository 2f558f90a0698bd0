"""Damaged and hostile files: each ends in success or in one documented error, in bounded time and memory."""

import copy
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ifm import dynamics, pretrained
from ifm.config import ConfigError, DataConfig, EvaluateConfig, load, parse, read_params
from ifm.data import decoding, local
from ifm.data.arrays import DataError, ProcessedMetadata
from ifm.data.fetching import fetch, fetch_points
from ifm.data.points import preprocess_points
from ifm.data.preprocessing import preprocess
from ifm.data.raw import checked
from ifm.data.sources import Encoded, FetchError
from ifm.data.splits import open_split
from ifm.data.trajectories import TrajectoryMetadata
from ifm.errors import UserError
from ifm.exact import ExactTeacher
from ifm.files import FileError
from ifm.metrics.reference import build_reference, load_reference
from ifm.networks import build_network
from pipeline.runner.records import read_record, read_timings, train_seconds
from tests.support.small_models import NETWORK, small_flow, small_teacher

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"
VALUES = read_params(PARAMS)
MANY = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(MANY, max_examples=30)
NASTY = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd"]
PRINTABLE = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=5)
JSONISH = st.sampled_from([*NASTY, [], {}, [[]], {"a": 1}, "a\nb", "\0", "<script>", ["../x"], [1, 2]]) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def said_by(action: Callable[[], object], kind: type[UserError] | tuple[type[UserError], ...] = UserError) -> str:
    """ "" at success, the message of a documented error, which is one line; any other exception is the test's."""
    try:
        action()
    except kind as error:
        said = str(error)
        assert said.strip()
        assert len(said.splitlines()) == 1, said
        assert len(said) < 2500
        return said
    return ""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flipped bits, overwritten fields, bytes taken out, put in or repeated."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
        match int(rng.integers(7)):
            case 0:
                del out[at:]
            case 1 if at < len(out):
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + length] = rng.bytes(length)
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = rng.bytes(length)
            case 5:
                out[at : at + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"][int(rng.integers(3))]
            case _:
                out[at:at] = out[: int(rng.integers(len(out) + 1))]
    return bytes(out)


def paths_in(value: Any, prefix: tuple = ()) -> Iterator[tuple]:
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*prefix, key))


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """The value with one or two places replaced, taken away or given a further key."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        *above, last = draw(st.sampled_from([p for p in paths_in(value) if p] or [("x",)]))
        inner = value
        for key in above:
            inner = inner[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace" or not isinstance(inner, dict | list):
            inner[last] = copy.deepcopy(draw(JSONISH))
        elif action == "remove":
            inner.pop(last)
        elif isinstance(inner, dict):
            inner[draw(PRINTABLE)] = copy.deepcopy(draw(JSONISH))
        if not isinstance(value, dict) or not value:
            break
    return value


# --- params.yaml ----------------------------------------------------------------------------------------------------


def faults_of(action: Callable[[], object], source: str) -> list[str]:
    """The lines of a ConfigError, each of which begins with the file's name; none at success."""
    try:
        action()
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith(f"{source}: ") for line in lines), lines
        return lines
    return []


@MANY
@given(changed_json(VALUES))
def test_params_with_other_values_are_accepted_or_explained_a_line_a_fault(values):
    lines = faults_of(lambda: parse(values), "params.yaml")
    assert len(set(lines)) == len(lines)


@FEW
@given(st.integers(0, 2**32 - 1))
def test_params_with_other_bytes_are_accepted_or_explained(tmp_path, seed):
    path = tmp_path / "params.yaml"
    path.write_bytes(mutated(PARAMS.read_bytes(), np.random.default_rng(seed)))
    faults_of(lambda: load(path), str(path))


# --- images ---------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def seeds_of_images() -> list[bytes]:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (12, 9), np.uint8), rng.integers(0, 256, (12, 9, 4), np.uint8)
    g, rgb, rgba = Image.fromarray(grey), Image.fromarray(colour[..., :3]), Image.fromarray(colour)
    text, turned = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("note", "x" * 50, zip=True)
    turned[0x0112] = 6
    return [
        encoded(g, "PNG"),
        encoded(rgba, "PNG", pnginfo=text),
        encoded(rgb.quantize(16), "PNG", transparency=3),
        encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        encoded(rgb, "JPEG", exif=turned),
        encoded(g, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgba, "WEBP", lossless=True),
        encoded(rgb, "WEBP", exif=turned),
        encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        encoded(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(90)], compression="tiff_lzw"),
        encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
        encoded(rgb, "AVIF" if "AVIF" in decoding.FORMATS else "BMP"),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_images_are_read_or_have_a_fault():
    """2,240 files; most are refused, some are still images."""
    rng = np.random.default_rng(0)
    faults = []
    for data in seeds_of_images():
        assert checked(Encoded(data, "whole")).fault is None
        for _ in range(160):
            fault = checked(Encoded(mutated(data, rng), "x.png")).fault
            assert fault is None or (fault and len(fault.splitlines()) == 1 and len(fault) < 400)
            faults.append(fault)
    assert len(faults) == 2240
    assert 500 < sum(fault is not None for fault in faults) < 2240


def data_config(**changes: Any) -> DataConfig:
    return DataConfig(**(VALUES["data"] | {"test_fraction": 0.25} | changes))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_image_of_a_damaged_folder_is_lost(tmp_path):
    """Each file is either in the raw form, with its bytes as they were, or counted and named as skipped."""
    rng = np.random.default_rng(1)
    seeds = seeds_of_images()
    given = {f"{i:03d}.png": mutated(data, rng) if i % 2 else data for i, data in enumerate(seeds * 6)}
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in given.items():
        (folder / name).write_bytes(data)
    config = data_config(source="imagefolder", path=str(folder), label_column=None, on_bad_image="skip")
    result = fetch(config, tmp_path / "raw")
    rows = pq.read_table(tmp_path / "raw" / "train-00000.parquet").column("image").to_pylist()
    assert all(row["bytes"] == given[row["path"]] for row in rows)
    assert {f"{i:03d}.png" for i in range(0, len(given), 2)} <= {row["path"] for row in rows}
    assert len(rows) + result.skipped == len(given)
    assert 0 < result.skipped < 40
    made = preprocess(config, tmp_path / "raw", tmp_path / "out")
    assert sum(split.count for split in made.splits.values()) == len(rows)


BOMBS = """
    import io, resource, struct, sys, zlib
    from PIL import Image, PngImagePlugin
    from ifm.data.decoding import FORMATS
    from ifm.data.raw import checked
    from ifm.data.sources import Encoded

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width, height, *more, rows=None):
        zeros = zlib.compressobj(9)
        packed = b"".join(zeros.compress(bytes(2**20)) for _ in range(rows or 120)) + zeros.flush()
        head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        chunks = [chunk(b"IHDR", head), *more, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
        return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunks)

    def encoded(kind, size=(16, 16)):
        out = io.BytesIO()
        Image.new("RGB", size).save(out, kind)
        return bytearray(out.getvalue())

    if "AVIF" in FORMATS:
        avif = encoded("AVIF"); at = avif.index(b"ispe") + 8; avif[at : at + 8] = struct.pack(">II", 60000, 60000)
    else:
        avif = b""
    big = 2**28
    zeros = zlib.compress(bytes(big), 9)
    jpeg = encoded("JPEG"); at = jpeg.index(b"\\xff\\xc0"); jpeg[at + 5 : at + 9] = b"\\xff\\xdc\\xff\\xdc"
    gif = encoded("GIF"); gif[6:10] = b"\\xff\\xff\\xff\\xff"
    bmp = encoded("BMP"); bmp[18:26] = struct.pack("<ii", 60000, 60000)
    webp = b"VP8X" + struct.pack("<I", 10) + b"\\0\\0\\0\\0" + (16382).to_bytes(3, "little") * 2
    webp += bytes(encoded("WEBP")[12:])
    tiff = encoded("TIFF")
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1)); tiff[at + 8 : at + 12] = struct.pack("<I", 2**20)
    bombs = {
        "png": png(30000, 30000),
        "png strip": png(2**31 - 1, 1, rows=300),
        "png text": png(8, 8, chunk(b"zTXt", b"a\\0\\0" + zeros), rows=1),
        "png itxt": png(8, 8, chunk(b"iTXt", b"a\\0\\1\\0\\0\\0" + zeros), rows=1),
        "png profile": png(8, 8, chunk(b"iCCP", b"a\\0\\0" + zeros), rows=1),
        "jpeg": bytes(jpeg), "gif": bytes(gif), "bmp": bytes(bmp), "tiff": bytes(tiff), "avif": bytes(avif),
        "webp": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
        "ppm": b"P6 100000 100000 255\\n" + bytes(100),
    }
    checked(Encoded(bytes(encoded("PNG")), None))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in bombs.items():
        before = peak()
        fault = checked(Encoded(data, name)).fault
        print(name, len(data), (peak() - before) // 1024, fault, sep="\\t")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_decompression_bombs_take_neither_time_nor_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(BOMBS)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in done.stdout.splitlines())}
    assert len(rows) == 12
    for name, (size, megabytes, fault) in rows.items():
        assert int(size) < 600_000, name
        assert int(megabytes) < 150, name
        assert fault != "None" or name.startswith("png "), name  # what only decorates the pixels may be left out


# --- parquet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    images = [encoded(Image.new("L", (8, 8), i), "PNG") for i in range(12)]
    cells = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"image": cells, "label": pa.array([i % 3 for i in range(12)])}), path)
    return path


def test_mutated_parquet_is_read_or_named(tmp_path, table):
    rng, whole = np.random.default_rng(0), table.read_bytes()
    file, out = tmp_path / "x.parquet", tmp_path / "raw"
    config = data_config(source="parquet", path=str(file), on_bad_image="skip")
    said = []
    for _ in range(250):
        file.write_bytes(mutated(whole, rng))
        said.append(said_by(lambda: fetch(config, out), FetchError))
        assert not said[-1] or str(file) in said[-1] or "data." in said[-1], said[-1]
        assert out.is_dir() or said[-1]
    assert 100 < sum(map(bool, said)) < 250
    assert {path.name for path in tmp_path.iterdir()} <= {"x.parquet", "raw"}


def test_a_mutated_raw_form_is_read_or_named_and_the_processed_one_stays(tmp_path):
    config = data_config(max_images=12)
    fetch(config, tmp_path / "raw")
    preprocess(config, tmp_path / "raw", tmp_path / "out")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    file, rng = tmp_path / "raw" / "train-00000.parquet", np.random.default_rng(0)
    whole = file.read_bytes()
    for _ in range(120):
        file.write_bytes(mutated(whole, rng))
        said = said_by(lambda: preprocess(config, tmp_path / "raw", tmp_path / "out"), DataError)
        if said:
            assert "dvc repro fetch" in said
            assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept
        else:
            preprocess_again = ProcessedMetadata.read(tmp_path / "out")
            assert sum(split.count for split in preprocess_again.splits.values()) == 12
            kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": pa.array([0, 1])}, "has no column image"),
        ({"image": pa.array([b"", b""])}, "has no column image of struct"),
        ({"image": None}, "has no column label of int64"),
        ({"image": None, "label": pa.array([0.0, 1.0])}, "has no column label of int64"),
        ({"image": None, "label": pa.array([0, 10])}, "has labels 0..10, not 0..9"),
        ({"image": None, "label": pa.array([0, None])}, "has labels 0..0 (1 missing), not 0..9"),
    ],
)
def test_raw_rows_of_another_form(tmp_path, columns, said):
    config = data_config(max_images=2)
    fetch(config, tmp_path / "raw")
    file = tmp_path / "raw" / "train-00000.parquet"
    image = pq.read_table(file).column("image")
    pq.write_table(pa.table({k: image if v is None else v for k, v in columns.items()}), file)
    found = said_by(lambda: preprocess(config, tmp_path / "raw", tmp_path / "out"), DataError)
    assert f"{file}: {said}" in found
    assert "run `dvc repro fetch` again" in found


# --- arrays and what describes them ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processed")
    config = data_config(max_images=20)
    fetch(config, folder / "raw")
    preprocess(config, folder / "raw", folder / "out")
    return folder


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    config = data_config(source="points", points=VALUES["data"]["points"] | {"count": 20, "law": "eight_gaussians"})
    fetch_points(config, folder / "raw")
    preprocess_points(config, folder / "raw", folder / "out")
    return folder


def read_all(folder: Path) -> None:
    """All that a stage takes from a split."""
    for name in ("train", "test"):
        split = open_split(folder, name)
        batches = list(split.batches(7))
        assert sum(len(batch) for batch in batches) == len(split)
        assert all(batch.shape[1:] == split.shape for batch in batches)
        assert split.labels is None or len(split.labels) == len(split)


def with_file(path: Path, data: bytes, action: Callable[[], object], kind: type[UserError] = UserError) -> str:
    """`said_by` with other bytes in a file, which is put back."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        return said_by(action, kind)
    finally:
        path.write_bytes(whole)


HEADERS = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000000, 1, 8, 8), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-15, 1, 8, 8), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (15, 1, 8, 8), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 1, 8, 8), }",
    "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (15, 1, 8, 8), }",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (15,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9**9,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').system('false'), }",
    "(" * 9000,
    "[" * 9000 + "]" * 9000,
    "{'a': " * 3000,
    "-" * 9000 + "1",
    "'''",
    "\\",
    "\0",
]


@pytest.mark.parametrize("form", ["processed", "points"])
def test_mutated_shards_are_read_or_named(form, request):
    folder, rng = request.getfixturevalue(form) / "out", np.random.default_rng(0)
    for name in ("train-00000.npy", "train-labels.npy"):
        path = folder / name
        whole = path.read_bytes()
        heads = [b"\x93NUMPY\1\0" + len(h).to_bytes(2, "little") + h.encode() + whole[128:] for h in HEADERS]
        heads += [b"PK\3\4" + whole, b"PK\5\6" + bytes(18), b"", b"\x93NUMPY\3\0\xff\xff\xff\xff" + whole]
        for data in heads + [mutated(whole[:128], rng) + whole[128:] for _ in range(150)]:
            said = with_file(path, data, lambda: read_all(folder), DataError)
            assert not said or (str(folder) in said and "dvc repro preprocess" in said)
        assert all(with_file(path, data, lambda: read_all(folder), DataError) for data in heads)
    read_all(folder)


def test_mutated_raw_points_are_read_or_named(points, tmp_path):
    config = data_config(source="points", points=VALUES["data"]["points"] | {"count": 20, "law": "eight_gaussians"})
    rng = np.random.default_rng(0)
    for name in ("points.npy", "labels.npy"):
        path = points / "raw" / name
        whole = path.read_bytes()
        for data in [b"PK\3\4", b"", *(mutated(whole, rng) for _ in range(100))]:
            said = with_file(path, data, lambda: preprocess_points(config, points / "raw", tmp_path / "out"), DataError)
            assert not said or (str(path) in said and "dvc repro fetch" in said)


@pytest.mark.parametrize("form", ["processed", "points"])
@MANY
@given(data=st.data())
def test_metadata_with_other_values_is_refused_by_name_or_usable(form, data, request):
    path = request.getfixturevalue(form) / "out" / "metadata.json"
    other = json.dumps(data.draw(changed_json(json.loads(path.read_text())))).encode("utf-8", "surrogatepass")
    said = with_file(path, other, lambda: read_all(path.parent), DataError)
    assert not said or (str(path.parent) in said and "dvc repro preprocess" in said) or "has no split" in said


def test_metadata_cut_anywhere_or_no_json_at_all(processed, points):
    for folder in (processed / "out", points / "out"):
        path = folder / "metadata.json"
        whole = path.read_bytes().rstrip()
        cut = [whole[:n] for n in np.linspace(0, len(whole) - 1, 120, dtype=int)]
        for data in [*cut, b"[" * 100_000, b"9" * 10_000, b"\xff\xfe", b"null", b"{}", b'{"splits": NaN}']:
            said = with_file(path, data, lambda folder=folder: read_all(folder), DataError)
            assert f"{path}: " in said
            assert "dvc repro preprocess" in said


@pytest.mark.parametrize("name", ["../train-00000.npy", "/etc/passwd", "..", "", "a/b.npy", "a\\b.npy", "a\0.npy"])
def test_shards_lie_in_their_folder(processed, name, tmp_path):
    path = processed / "out" / "metadata.json"
    values = json.loads(path.read_text())
    values["splits"]["train"]["shards"] = [name]
    said = with_file(path, json.dumps(values).encode(), lambda: read_all(path.parent), DataError)
    assert f"{path}: " in said
    assert "is no plain file name" in said
    trajectories(tmp_path, shards=[name])
    assert "is no plain file name" in said_by(lambda: TrajectoryMetadata.read(tmp_path))


def trajectories(folder: Path, **changes: Any) -> Path:
    values = {
        "dynamics": "ve", "count": 3, "times": [80.0, 1.0, 0], "solver_steps": 2, "rho": 7.0, "nfe": 3, "seed": 0,
        "teacher": "ab", "shards": ["shard-00000.npy"], "image_shape": [1, 8, 8], "sha256": "cd",
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(values | changes))
    return folder / "metadata.json"


@MANY
@given(data=st.data())
def test_trajectory_metadata_with_other_values_is_refused_by_name_or_usable(data, tmp_path):
    path = trajectories(tmp_path)
    path.write_bytes(json.dumps(data.draw(changed_json(json.loads(path.read_text())))).encode())

    def read() -> None:
        found = TrajectoryMetadata.read(tmp_path)
        assert all(file.parent == tmp_path for file in found.paths(tmp_path))
        assert all(isinstance(t, int | float) and np.isfinite(t) for t in found.times)
        assert isinstance(found.count + found.nfe + found.seed + found.solver_steps, int)

    said = said_by(read)
    assert not said or (str(tmp_path) in said and "dvc repro trajectories" in said)


@MANY
@given(data=st.data())
def test_raw_metadata_with_other_values_is_refused_by_name_or_usable(data, processed, points, tmp_path):
    at = data.draw(st.sampled_from([processed, points])) / "raw"
    source = "points" if at.parent == points else "digits"
    config = data_config(source=source, points=VALUES["data"]["points"] | {"count": 20, "law": "eight_gaussians"})
    make = preprocess_points if source == "points" else preprocess
    other = json.dumps(data.draw(changed_json(json.loads((at / "metadata.json").read_text())))).encode()

    def work() -> None:
        make(config, at, tmp_path / "out")
        read_all(tmp_path / "out")

    said = with_file(at / "metadata.json", other, work, DataError)
    assert not said or (str(at) in said and "dvc repro fetch" in said)


# --- records of runs ------------------------------------------------------------------------------------------------

RECORD = {
    "version": 1, "stage": "flow-ve", "run_id": "1", "tracking_uri": None, "started": 1.5,
    "timings": {"train_seconds": 2.0}, "params": {"a": 1}, "metrics": {"loss": 0.5}, "tags": {"x": "y"},
}  # fmt: skip


@MANY
@given(changed_json(RECORD))
def test_a_run_record_is_refused_by_name_or_usable(tmp_path, values):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))

    def use() -> None:
        found = read_record(path)
        assert all(float(value) + 0 == value for value in (found["metrics"] | found["timings"]).values())
        assert int(found["started"] * 1000) is not None
        assert {"a": "b"} | found["tags"]
        assert read_timings(path) == found["timings"]

    for said in (said_by(use, FileError), said_by(lambda: train_seconds(path), FileError)):
        assert not said or (str(path) in said and "run `dvc repro` again" in said)


def test_a_run_record_that_is_no_json_or_not_there(tmp_path):
    path = tmp_path / "run.json"
    for data in (None, b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000, b"[]", b"{}"):
        if data is not None:
            path.write_bytes(data)
        said = said_by(lambda: read_record(path), FileError)
        assert said.startswith(f"{path}: ")
        assert "run `dvc repro` again" in said


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pretrained.save_model(small_flow(shape=(2,)), folder / "points", record={"image_shape": [2]})
    pretrained.save_model(small_teacher(), folder / "unet", record={"image_shape": [1, 8, 8]})
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8))
    pretrained.save_exact_teacher(ExactTeacher(data, dynamics.build("ve")), folder / "exact", record={})
    return folder


def load_model(folder: Path) -> None:
    model = (pretrained.load_flow if folder.name == "points" else pretrained.load_teacher)(folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["points", "unet", "exact"])
def test_a_model_folder_cut_anywhere_is_one_error_that_names_it(models, kind):
    """Every file of the folder, cut at its ends and at 60 places between: at least 100 for each model."""
    folder, cuts = models / kind, 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        end = len(whole.rstrip()) if path.suffix == ".json" else len(whole)
        for length in np.unique(np.linspace(0, end - 1, 62, dtype=int)):
            said = with_file(path, whole[:length], lambda: load_model(folder), pretrained.ModelError)
            assert str(folder) in said, (path.name, length)
            assert pretrained.MEND in said
            cuts += 1
        path.rename(folder / "gone")
        assert str(folder) in said_by(lambda: load_model(folder), pretrained.NoModelError)
        (folder / "gone").rename(path)
    assert cuts >= 100
    load_model(folder)


@pytest.mark.parametrize("kind", ["points", "unet", "exact"])
def test_mutated_weights_are_read_or_named(models, kind):
    path = next((models / kind).glob("*.safetensors"))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    given = [mutated(whole[:head], rng) + whole[head:] for _ in range(60)]
    given += [b"\xff" * 8 + whole[8:], b"PK\3\4" + whole, b"\x80\4K\1.", (2**40).to_bytes(8, "little") + whole[8:]]
    said = [with_file(path, data, lambda: load_model(path.parent), pretrained.ModelError) for data in given]
    assert all(str(path.parent) in each for each in said if each)
    assert all(said[-4:])


@pytest.mark.parametrize(("kind", "file"), [("points", "ifm.json"), ("points", "config.json"), ("exact", "ifm.json")])
@FEW
@given(data=st.data())
def test_a_models_description_is_refused_by_name_or_usable(kind, file, data, models):
    path = models / kind / file
    other = json.dumps(data.draw(changed_json(json.loads(path.read_text())))).encode()
    said = with_file(path, other, lambda: load_model(path.parent), pretrained.ModelError)
    assert not said or str(path.parent) in said


@FEW
@given(data=st.data())
def test_a_unets_configuration_is_refused_by_name_or_usable(data, models):
    path = models / "unet" / "config.json"
    other = json.dumps(data.draw(changed_json(json.loads(path.read_text())))).encode()
    said = with_file(path, other, lambda: load_model(path.parent), pretrained.ModelError)
    assert not said or str(path.parent) in said


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("points", {"layers": 10**9}),
        ("points", {"width": 10**9}),
        ("points", {"frequencies": 10**12}),
        ("points", {"input_frequencies": 10**12}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"block_out_channels": [2**20, 2**20]}),
        ("unet", {"_class_name": "os"}),
        ("unet", {"_class_name": "DiffusionPipeline"}),
        ("unet", {"_class_name": ["UNet2DModel"]}),
    ],
)
def test_a_configuration_that_asks_for_too_much_takes_no_memory(models, kind, change):
    """The weights' file says what there is: nothing larger is ever made."""
    path = models / kind / "config.json"
    other = json.dumps(json.loads(path.read_text()) | change).encode()
    assert str(path.parent) in with_file(path, other, lambda: load_model(path.parent), pretrained.ModelError)


def test_foreign_weights_are_refused(models):
    """diffusers alone would fill what a file does not hold with random numbers, and say so in a warning."""
    from safetensors.torch import load_file, save

    path = next((models / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    some = next(name for name in tensors if name.endswith("conv_in.weight"))
    fewer = {name: tensor for name, tensor in tensors.items() if name != some}
    renamed = fewer | {"model." + some: tensors[some]}
    torch.manual_seed(0)
    wider = build_network(kind="unet", shape=(1, 8, 8), takes_anchor=True, **NETWORK).model.state_dict()
    for other in (fewer, renamed, dict(wider), {}, {some: tensors[some].flip(0)}):
        said = with_file(path, save(other), lambda: load_model(path.parent), pretrained.ModelError)
        assert "config.json asks for" in said
    assert tensors[some].equal(pretrained.load_teacher(path.parent).network.model.conv_in.weight)


# --- the reference --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(processed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    train, test = (open_split(processed / "out", name) for name in ("train", "test"))
    build_reference(pixels(), train=train, test=test, out=out, device=torch.device("cpu"))
    return out


def pixels() -> EvaluateConfig:
    return EvaluateConfig(**(VALUES["evaluate"] | {"extractor": "pixels"}))


def use_reference(folder: Path) -> None:
    found = load_reference(folder, pixels(), device=torch.device("cpu"))
    assert found.features.shape[1] == found.metadata["dimension"]
    assert tuple(found.metadata["image_shape"])


@MANY
@given(data=st.data())
def test_a_references_metadata_is_refused_by_name_or_usable(data, reference):
    path = reference / "metadata.json"
    other = json.dumps(data.draw(changed_json(json.loads(path.read_text())))).encode()
    said = with_file(path, other, lambda: use_reference(reference))
    assert not said or (str(reference) in said and "dvc repro" in said)


def test_a_references_features_are_refused_by_name_or_usable(reference):
    path, rng = reference / "features-train.npy", np.random.default_rng(0)
    whole = path.read_bytes()
    for data in [b"", b"PK\3\4", *(mutated(whole[:128], rng) + whole[128:] for _ in range(100))]:
        said = with_file(path, data, lambda: use_reference(reference))
        assert not said or (str(path) in said and "dvc repro --force reference" in said)


def test_a_pipe_among_images_is_passed_over(tmp_path):
    """Reading one would wait for ever."""
    (tmp_path / "a.png").write_bytes(encoded(Image.new("L", (8, 8)), "PNG"))
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "d.png")
    found = local.image_files(tmp_path)
    assert [path.name for path in found.paths] == ["a.png"]
    assert found.passed_over == {local.LINKS: 3}
