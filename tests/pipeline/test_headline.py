"""The few figures that DVC shows, and what `dvc repro` ends with."""

from pathlib import Path

import pytest
import yaml

from ifm.config import read_params
from ifm.files import read_json
from pipeline.runner import stage
from pipeline.runner.headline import headline
from pipeline.stages import track

ROOT = Path(__file__).parents[2]
IMAGES = {
    "data-test": {"model": "data", "sampler": "test", "nfe": 0, "fid": 0.5},
    "teacher-1": {"model": "teacher", "sampler": "heun", "nfe": 1, "fid": 60.0, "recall": 0.1},
    "teacher-35": {"model": "teacher", "sampler": "heun", "nfe": 35, "fid": 0.4, "recall": 0.9},
    "flow-1": {"model": "flow", "sampler": "one_step", "nfe": 1, "fid": 0.6, "recall": 0.8, "ratio": 1.52, "kid": 0.1},
    "flow-2": {"model": "flow", "sampler": "renoise", "nfe": 2, "fid": 0.3, "recall": 0.7, "ratio": 0.8},
}
POINTS = {
    "teacher-63": {"model": "teacher", "sampler": "heun", "nfe": 63, "sliced_wasserstein": 0.02},
    "flow-1": {"model": "flow", "sampler": "one_step", "nfe": 1, "sliced_wasserstein": 0.03, "ratio": 1.5},
}
NO_TEACHER = {"flow-1": {"model": "flow", "sampler": "one_step", "nfe": 1, "fid": 0.6, "recall": 0.8}}
NULLS = {name: row | {"fid": None, "ratio": None, "recall": None} for name, row in IMAGES.items()}


def test_a_handful_of_figures_says_what_decides():
    assert headline(IMAGES) == {"fid": 0.6, "teacher_fid": 0.4, "teacher_nfe": 35, "ratio": 1.52, "recall": 0.8}
    assert headline(POINTS) == {
        "sliced_wasserstein": 0.03, "teacher_sliced_wasserstein": 0.02, "teacher_nfe": 63, "ratio": 1.5,
    }  # fmt: skip
    assert headline(NO_TEACHER) == {
        "fid": 0.6, "teacher_fid": None, "teacher_nfe": None, "ratio": None, "recall": 0.8,
    }  # fmt: skip
    assert headline(NULLS) == {"fid": None, "teacher_fid": None, "teacher_nfe": None, "ratio": None, "recall": None}


def test_the_last_stage_prints_them_and_where_the_page_is():
    assert track.closing({"ve": IMAGES, "rf": NO_TEACHER, "pfgmpp": NULLS}, ["ve", "rf", "pfgmpp"]) == [
        "        fid: flow, 1 NFE  teacher, best (NFE)  ratio",
        "    ve               0.6             0.4 (35)   1.52",
        "    rf               0.6                    -      -",
        "pfgmpp                 -                    -      -",
        "page: reports/index.html",
    ]
    points = track.closing({"ve": POINTS}, ["ve"])
    assert points[0] == "    sliced_wasserstein: flow, 1 NFE  teacher, best (NFE)  ratio"
    assert points[1].split() == ["ve", "0.03", "0.02", "(63)", "1.5"]
    assert track.closing({"ve": NO_TEACHER}, ["ve"])[1].split() == ["ve", "0.6", "-", "-"]


def test_dvc_shows_the_headline_and_nothing_else(tmp_path):
    """By DVC's own reading of dvc.yaml."""
    from dvc.repo import Repo

    graph = stage.of_dvc((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = read_params(ROOT / "params.yaml") | {"dynamics": ["ve", "rf"]}
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump({"vars": [{"watched": [], "public": [], "encoder": []}], "stages": graph})
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    of_teacher_alone = NULLS | {"teacher-35": IMAGES["teacher-35"]}
    for d in ("ve", "rf"):
        (tmp_path / "reports/headline").mkdir(parents=True, exist_ok=True)
        track.write_json(
            tmp_path / f"reports/headline/{d}.json", {d: headline(IMAGES if d == "ve" else of_teacher_alone)}
        )
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        shown = repo.metrics.show()[""]["data"]
        kept = {out.def_path: out.use_cache for out in repo.index.outs}
    found = {}
    for file in shown.values():
        found |= file["data"]
    assert found["ve"] == {"fid": 0.6, "teacher_fid": 0.4, "teacher_nfe": 35, "ratio": 1.52, "recall": 0.8}
    assert found["rf"] == {"teacher_fid": 0.4, "teacher_nfe": 35}
    assert len(shown) == 2
    for name in ("metrics/ve", "metrics/reference", "diagnostics/rf", "headline/ve"):  # data, and in Git
        assert kept[f"reports/{name}.json"] is False


@pytest.mark.parametrize("d", ["ve", "rf", "pfgmpp"])
def test_the_committed_figures_have_a_headline(d):
    """An earlier version's have no ratio against the teacher at its best; all else is there."""
    figures = read_json(ROOT / "reports" / "metrics" / f"{d}.json")
    found = headline(figures)
    assert len(found) <= 6
    if not any("teacher_nfe" in row for row in figures.values()):
        assert found.pop("ratio") is None
    assert all(isinstance(value, float | int) for value in found.values())
