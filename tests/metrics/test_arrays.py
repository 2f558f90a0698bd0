"""`ifm evaluate` of points: the stage's figures, from every file that `ifm sample` writes, and refusals in one line."""

import json

import numpy as np
import pytest
import torch

from ifm.cli.main import main
from ifm.data.laws import draw_points
from ifm.metrics.points import energy_distance, sliced_wasserstein
from ifm.modalities import files
from ifm.modalities.alphabet import Alphabet
from ifm.modalities.points import POINTS
from ifm.modalities.text import TEXT
from ifm.modalities.units import Units
from pipeline.runner import paths
from pipeline.stages import evaluate, sample
from tests.support.judged import one_thread, refused, saved  # noqa: F401
from tests.support.stages import points, run_graph, run_stage

VALUES = points(dynamics=["ve"], sample__seeds=2, sample__flow_steps=[1])


def judged(*arguments):
    main(["evaluate", *map(str, arguments), "--device", "cpu", "--out", "figures.json"])
    return json.loads(open("figures.json").read())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of the graph with samples in two sets, and what the stage says of them."""
    folder = tmp_path_factory.mktemp("graph")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_graph(VALUES, up_to=sample)
        run_stage(evaluate, VALUES, "ve")
    return folder


def test_figures_are_the_stages_from_the_array_and_from_the_table(made, monkeypatch):
    monkeypatch.chdir(made)
    row = json.loads((paths.METRICS / "ve.json").read_text())["flow-one_step-nfe001"]
    array = paths.samples("ve") / "flow-one_step-nfe001.npy"
    drawn = np.load(array)
    files.write_table(made / "points.csv", [(range(len(drawn)), drawn)], len(drawn), (2,))
    how = ["--reference", paths.REFERENCE, "--sets", 2]
    how += ["--sliced-projections", VALUES["evaluate"]["sliced_projections"]]
    found = judged("--samples", array, *how)
    assert {"sliced_wasserstein", "sliced_wasserstein_sd", "energy_distance", "missing_classes"} <= found[
        "figures"
    ].keys()
    assert all(found["figures"][key] == row[key] for key in found["figures"])
    assert set(row) - set(found["figures"]) <= {
        "model", "sampler", "nfe", "n_samples", "seeds", "warnings", "ratio", "ratio_sd", "teacher_nfe", "endpoint_rms",
        "endpoint_rms_sd",
    }  # fmt: skip
    assert found["warnings"] == row["warnings"]
    assert found["protocol"]["samples"] == {"path": str(array), "count": 200, "shape": [2]}
    assert judged("--samples", "points.csv", *how)["figures"] == found["figures"]


def test_two_files_of_points_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = (draw_points("two_moons", count=n, dimensions=2, seed=n).points.astype(np.float32) for n in (300, 400))
    found = judged("--samples", saved(tmp_path / "a.npy", a), "--reference", saved(tmp_path / "b.npy", b.astype(float)))
    assert found["figures"] == {
        "sliced_wasserstein": sliced_wasserstein(a, b, projections=256), "energy_distance": energy_distance(a, b)
    }  # fmt: skip
    assert "300 points of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--samples wide.npy --reference b.npy", r"--samples wide.npy: holds points [3], --reference b.npy points [2]"),
        ("--samples images.npy --reference b.npy", "points are float32 [n, d]"),
        ("--samples a.npy --reference b.npy --extractor pixels", "--extractor: is for images, and --reference b.npy"),
        ("--samples a.npy --reference b.npy --train b.npy", "--train: is for images"),
        ("--samples a.npy --reference b.npy --sets 3", "--sets 3: 10 samples cannot be cut into 3 equal sets"),
        ("--samples nan.npy --reference b.npy", "nan.npy: holds NaN or infinity"),
        ("--samples torn.csv --reference b.npy", "--samples torn.csv: cannot be read as points"),
        ("--reference b.npy --write-statistics s.npz", "--samples is missing"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    for name, shape in (("a", (10, 2)), ("b", (12, 2)), ("wide", (10, 3)), ("images", (10, 1, 8, 8))):
        np.save(f"{name}.npy", np.random.default_rng(0).normal(size=shape).astype(np.float32))
    np.save("nan.npy", np.full((4, 2), np.nan, np.float32))
    (tmp_path / "torn.csv").write_text("x_0,x_1\n1,2\n3\n")
    assert said in refused([*words.split(), "--device", "cpu"], capsys)


def test_a_table_without_names_reads_too(tmp_path):
    expected = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).numpy()
    files.write_table(tmp_path / "named.csv", [(range(5), expected)], 5, (2,))
    (tmp_path / "bare.csv").write_text("".join((tmp_path / "named.csv").read_text().splitlines(True)[1:]))
    for name in ("named", "bare"):
        np.testing.assert_array_equal(files.read(tmp_path / f"{name}.csv", POINTS), expected)


def test_the_columns_of_a_table_are_told_by_their_names(tmp_path):
    """Names that look like numbers, as pandas writes those of embeddings, and another order."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).numpy()
    said = {"points": Units.of(10 + 3 * x, ["0", "1"]).described()}
    own = POINTS.own(x, said)
    files.writers("points", said)[".csv"](tmp_path / "a.csv", [(range(5), own)], 5, (2,))
    np.savetxt(tmp_path / "b.csv", own[:, ::-1], delimiter=",", header="1,0", comments="", fmt="%.17g")
    np.savetxt(tmp_path / "c.csv", own, delimiter=",", header="height,0", comments="")
    for name in ("a.csv", "b.csv"):
        np.testing.assert_allclose(files.read(tmp_path / name, POINTS, said), x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="it has the columns height, 0, the data 0, 1"):
        files.read(tmp_path / "c.csv", POINTS, said)


def test_samples_in_the_datas_own_form_are_brought_to_rest(tmp_path):
    """What `ifm sample` writes of columns in their units, and of texts, is read as the stage's arrays are."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).numpy()
    said = {"points": Units.of(10 + 3 * x, ["height", "weight"]).described()}
    own = POINTS.own(x, said)
    files.writers("points", said)[".csv"](tmp_path / "a.csv", [(range(5), own)], 5, (2,))
    np.save(tmp_path / "own.npy", own)
    np.save(tmp_path / "rest.npy", x)
    for name in ("a.csv", "own.npy", "rest.npy"):
        np.testing.assert_allclose(files.read(tmp_path / name, POINTS, said), x, rtol=1e-6, atol=1e-6)
    alphabet = Alphabet("characters", "bits", "\n abc\u2028")
    rest = alphabet.encoded(np.random.default_rng(0).integers(0, 6, (4, 6)))
    described = {"text": alphabet.described()}
    texts = TEXT.own(rest, described)
    files.write_json_lines(tmp_path / "a.jsonl", [(range(4), texts)], 4, rest.shape[1:])
    np.save(tmp_path / "texts.npy", texts)
    np.save(tmp_path / "rest-of-text.npy", rest)
    for name in ("a.jsonl", "texts.npy", "rest-of-text.npy"):
        np.testing.assert_array_equal(files.read(tmp_path / name, TEXT, described), rest)
    for content, said in (
        ("", "holds no texts"),
        ('{"text": "xyz"}', "'x' is no symbol"),
        ('{"text": "a"}\n{"text": "ab"}', "1 to 2 symbols"),
    ):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(ValueError, match=said):
            files.read(tmp_path / "bad.jsonl", TEXT, described)
