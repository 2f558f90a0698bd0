"""Source `array`: what is read, standardised and written back, and one whole graph on a table of three columns."""

import json
import re
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ifm.cli.main import main as ifm
from ifm.config import parse
from ifm.data.arrays import DataError
from ifm.data.fetching import fetch
from ifm.data.inputs import look
from ifm.data.preprocessing import preprocess
from ifm.data.sources import SOURCES, FetchError
from ifm.data.splits import open_split
from ifm.modalities.units import Units
from ifm.random import stream
from tests.support.pages import draw_nothing
from tests.support.stages import points, run_graph

COLUMNS = ["height", "income", "when"]
MEAN, STD = np.array([1.7, 3e4, 1.6e9]), np.array([0.1, 1e4, 3.0])


def table(n: int = 400) -> np.ndarray:
    """Columns of very different units: float64 [n, 3]."""
    z = np.random.default_rng(0).normal(size=(n, 3))
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    return MEAN + STD * z


def save(file: Path, values: np.ndarray, **more: Any) -> str:
    pq.write_table(pa.table(dict(zip(COLUMNS, values.T, strict=True)) | more), file)
    return str(file)


def config(path: Path | str, **array: Any) -> Any:
    values = points(data__source="array", data__path=str(path))
    values["data"]["array"] = {"key": None, "columns": None, "labels": None} | array
    return parse(values).data


def read(path: Path | str, **array: Any) -> Any:
    return SOURCES["array"].read(config(path, **array))


def test_there_and_back_to_float_tolerance():
    values = table()
    units = Units.of(values, COLUMNS)
    x = units.standardised(values)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(units.original(x), values, rtol=0, atol=1e-6 * STD.max() + 1e-12 * MEAN.max())
    back = Units.read({"points": json.loads(json.dumps(units.described()))})
    np.testing.assert_array_equal(back.original(x), units.original(x))


@pytest.mark.parametrize("value", [1e200, 1e-170])
def test_a_deviation_beyond_float64_is_told(value):
    values = np.column_stack([np.arange(8.0), [0.0, value] * 4])
    with pytest.raises(ValueError, match=r"column far has values from 0 to .* scale it"):
        Units.of(values, ["near", "far"])


def test_test_values_beyond_float32_are_told(tmp_path):
    values = table()
    values[:, 1] *= 1e-20
    values[stream(0, "split").permutation(len(values))[0], 1] = 1e30  # a row of the test split
    save(tmp_path / "x.parquet", values)
    found = config(tmp_path / "x.parquet")
    fetch(found, tmp_path / "raw")
    with pytest.raises(DataError, match=f"column {COLUMNS[1]} has test values so far from the train split's"):
        preprocess(found, tmp_path / "raw", tmp_path / "processed")


def test_the_processed_form_is_standardised_by_the_train_split(tmp_path):
    made = config(save(tmp_path / "table.parquet", table()))
    fetch(made, tmp_path / "raw")
    preprocess(made, tmp_path / "raw", tmp_path / "processed")
    train, test = (open_split(tmp_path / "processed", name) for name in ("train", "test"))
    x = train[np.arange(len(train))]
    np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-5)
    units = Units.read(train.recorded)
    assert units.columns == COLUMNS
    both = np.concatenate([units.original(s[np.arange(len(s))]) for s in (train, test)])
    expected = table()
    np.testing.assert_allclose(both[np.argsort(both[:, 0])], expected[np.argsort(expected[:, 0])], rtol=1e-6)
    sha256 = train.metadata.splits["train"].sha256
    preprocess(made, tmp_path / "raw", tmp_path / "again")
    assert open_split(tmp_path / "again", "train").metadata.splits["train"].sha256 == sha256


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "lists", "folder"])
def test_what_is_read(tmp_path, kind):
    values, labels = table(12), np.arange(12) % 3
    if kind == "npy":
        np.save(tmp_path / "x.npy", values)
        np.save(tmp_path / "y.npy", labels)
        found = read(tmp_path / "x.npy", labels="y.npy")
    elif kind == "npz":
        np.savez(tmp_path / "x.npz", rows=values, extra=values[:, :1], y=labels)
        found = read(tmp_path / "x.npz", key="rows", labels="y")
    elif kind == "parquet":
        save(tmp_path / "x.parquet", values, y=labels, city=["a"] * 12)
        found = read(tmp_path / "x.parquet", columns=COLUMNS, labels="y")
    elif kind == "lists":
        pq.write_table(pa.table({"vector": list(map(list, values)), "y": labels}), tmp_path / "x.parquet")
        found = read(tmp_path / "x.parquet", labels="y")
        assert found.columns == ["vector_0", "vector_1", "vector_2"]
    else:
        save(tmp_path / "a.parquet", values[:5], y=labels[:5])
        save(tmp_path / "b.parquet", values[5:], y=labels[5:])
        found = read(tmp_path, labels="y")
    np.testing.assert_array_equal(found.points, values)
    assert found.classes == ["0", "1", "2"]
    np.testing.assert_array_equal(found.labels, labels)


def bad(column: int, value: float) -> np.ndarray:
    values = table(8)
    values[3, column] = value
    return values


@pytest.mark.parametrize(
    ("write", "array", "said"),
    [
        (lambda f: save(f, bad(1, np.nan)), {}, "column income holds NaN, null or infinity in 1 of 8 rows.* row 3"),
        (lambda f: save(f, bad(2, np.inf)), {}, "column when holds NaN, null or infinity"),
        (lambda f: save(f, table(8), one=[3.0] * 8), {}, r"column one is constant \(3\)"),
        (lambda f: save(f, table(8), city=list("abcdefgh")), {}, "column city holds string, not numbers"),
        (lambda f: save(f, table(8)), {"labels": ""}, "data.array.labels: .*no column ''"),
        (lambda f: save(f, table(8), n=[1, None] * 4), {}, "column n holds NaN, null or infinity in 4 of 8"),
        (lambda f: save(f, table(8)), {"columns": ["age"]}, "data.array.columns: .*no column 'age'; it has height, "),
        (lambda f: save(f, table(8)), {"labels": "kind"}, "data.array.labels: .*no column 'kind'"),
        (lambda f: save(f, table(8), kind=[0.5] * 8), {"labels": "kind"}, "must be whole numbers or strings.* float"),
        (
            lambda f: save(f, table(8), kind=["a", None, "b", ""] * 2),
            {"labels": "kind"},
            "4 of 8 rows have no label, the first is row 1",
        ),
        (lambda f: f.write_bytes(b"no"), {}, "x.parquet: cannot be read as parquet"),
        (
            lambda f: save(f, table(8), a=[[1.0, 2.0 + i] for i in range(8)], a_1=list(range(8))),
            {},
            "two columns .*a_1",
        ),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_column(tmp_path, write, array, said):
    write(tmp_path / "x.parquet")
    with pytest.raises(FetchError, match=said) as raised:
        read(tmp_path / "x.parquet", **array)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "array", "said"),
    [
        ({"a": table(8), "b": table(8)}, {}, r"data.array.key = None: .*x.npz has a, b; name one"),
        ({"a": table(8)}, {"key": "z"}, "data.array.key = 'z': .*has a"),
        ({"a": table(8)}, {"labels": "y"}, "data.array.labels = 'y': .*has no such array; it has a"),
        ({"a": table(8).astype(str)}, {}, "x.npz: a: holds <U"),
        ({"a": table(8).reshape(2, 4, 3)}, {}, r"must have shape \[n, d\], got \[2, 4, 3\]"),
        ({"a": table(8), "y": np.arange(3)}, {"labels": "y"}, "has 3 labels, .* has 8 rows"),
        ({"a": table(8), "y": np.array(3)}, {"labels": "y"}, r"has shape \[\], .* has 8 rows"),
        ({"a": table(8)}, {"columns": ["a"]}, "has no names of columns"),
    ],
)
def test_a_fault_of_an_archive_names_the_key(tmp_path, arrays, array, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FetchError, match=said):
        read(tmp_path / "x.npz", **array)


def test_of_an_archive_the_arrays_asked_for_alone_are_read(tmp_path):
    names = np.array(["a", "b"] * 4, dtype=object)
    np.savez(tmp_path / "x.npz", x=table(8), names=names, y=names.astype(str))
    np.testing.assert_array_equal(read(tmp_path / "x.npz", key="x").points, table(8))
    assert read(tmp_path / "x.npz", key="x", labels="y").classes == ["a", "b"]
    with pytest.raises(FetchError, match=re.escape("save text as np.array(names, dtype=str)")):
        read(tmp_path / "x.npz", key="x", labels="names")


def test_an_archive_by_another_name_is_told(tmp_path):
    np.savez(tmp_path / "x.npz", a=table(8))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(FetchError, match=re.escape("its content is not that of a .npy file")):
        read(tmp_path / "x.npy")


def test_labels_beside_an_array_are_watched(tmp_path):
    np.save(tmp_path / "x.npy", table(8))
    asked = {"source": "array", "path": "x.npy"}
    alone = look(asked, root=tmp_path).sha256
    np.save(tmp_path / "y.npy", np.arange(8) % 2)
    of_both = look(asked, root=tmp_path).sha256
    np.save(tmp_path / "y.npy", np.arange(8) % 3)
    assert len({alone, of_both, look(asked, root=tmp_path).sha256}) == 3


def test_points_of_a_law_have_no_units(tmp_path):
    made = parse(points()).data
    fetch(made, tmp_path / "raw")
    preprocess(made, tmp_path / "raw", tmp_path / "processed")
    assert not {"modality", "points"} & json.loads((tmp_path / "processed" / "metadata.json").read_text()).keys()
    assert open_split(tmp_path / "processed", "train").recorded == {}


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """All stages on the table, with the exact teacher."""
    folder = tmp_path_factory.mktemp("vectors")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        path = save(folder / "table.parquet", table())
        values = points(
            data__source="array", data__path=path, dynamics=["rf"], teacher__kind="exact", flow__init="scratch",
            ode__sigma_data=1.0, flow__steps=300, flow__batch_size=64, flow__log_every=100, flow__checkpoint_every=300,
        )  # fmt: skip
        run_graph(values)
    return folder


def test_samples_are_in_the_original_units(graph, capsys):
    model = str(graph / "models/flow/rf")
    for suffix in (".npy", ".csv", ".parquet"):
        ifm(["sample", "--model", model, "--n", "300", "--device", "cpu", "--out", str(graph / f"out{suffix}")])
    x = np.load(graph / "out.npy")
    assert (x.shape, x.dtype) == ((300, 3), np.float64)
    # Of the Gaussian that the table is drawn from, within what so short a training reaches.
    assert (np.abs(x.mean(axis=0) - MEAN) < 0.5 * STD).all()
    assert (np.abs(np.log(x.std(axis=0) / STD)) < 0.7).all()
    written = (graph / "out.csv").read_text().splitlines()
    assert written[0] == ",".join(COLUMNS)
    np.testing.assert_array_equal(np.loadtxt(written[1:], delimiter=","), x)
    stored = pq.read_table(graph / "out.parquet")
    assert stored.column_names == COLUMNS
    np.testing.assert_array_equal(np.stack([c.to_numpy() for c in stored.columns], axis=1), x)


def test_the_report_shows_the_columns(graph):
    page = (graph / "reports/index.html").read_text()
    assert "the first two of 3 coordinates" in page
    figures = json.loads((graph / "reports/metrics/rf.json").read_text())
    assert figures["flow-one_step-nfe001"]["sliced_wasserstein"] < 1


def test_the_samples_of_a_closed_form_gaussian_go_back(tmp_path):
    """The flow map of N(0, 1) data is linear: x_0 = x_T / sqrt(1 + t^2); in units it is mean + std x_0."""
    units = SimpleNamespace(columns=["a", "b"], mean=[3.0, -2.0], std=[2.0, 0.5])
    x_T = np.random.default_rng(1).normal(size=(200_000, 2)) * np.sqrt(1 + 20.0**2)
    x = Units(**vars(units)).original((x_T / np.sqrt(1 + 20.0**2)).astype(np.float32))
    np.testing.assert_allclose(x.mean(axis=0), units.mean, atol=0.02)
    np.testing.assert_allclose(x.std(axis=0), units.std, rtol=0.01)
