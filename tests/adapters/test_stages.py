"""`teacher.kind: pretrained` in params.yaml and in the graph: from a public model to one step."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from diffusers import DDPMPipeline, DDPMScheduler

from ifm import pretrained
from ifm.adapters.network import FLOW_TOP, AdaptedNetwork
from ifm.config import ConfigError, parse
from ifm.errors import UserError
from pipeline.stages import evaluate, fetch, flow, preprocess, reference, sample, select, teacher, trajectories
from pipeline.tools import preset
from tests.support.project import TINY
from tests.support.public_model import small_unet
from tests.support.stages import ROOT, changed, run_stage

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
PUBLIC = {"teacher.kind": "pretrained", "teacher.path": "public", "dynamics": ["ve"]}


def digits(**changes):
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return changed(preset.parse_yaml(preset.apply("digits", TEXT)), TINY | PUBLIC | named)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher__path": None}, "teacher: kind: pretrained needs path, a folder in diffusers' form or a Hub id"),
        ({"dynamics": ["ve", "pfgmpp"]}, "dynamics: pfgmpp does not fit teacher.kind: pretrained: public models learn"),
        ({"anchor__input": "cross_attention"}, "anchor.input: cross_attention does not fit flow.init: teacher"),
        ({"flow__scheme": "paper"}, "flow.scheme: paper does not fit flow.init: teacher"),
    ],
)
def test_rules(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse(digits(**changes))
    parse(digits())
    parse(digits(anchor__input="cross_attention", flow__init="scratch"))


def test_points_have_no_public_models():
    values = changed(preset.parse_yaml(preset.apply("points", TEXT)), PUBLIC)
    with pytest.raises(ConfigError, match=r"teacher\.kind: pretrained is for images, and data\.source is points"):
        parse(values)


def test_a_public_model_becomes_a_one_step_one(tmp_path, monkeypatch):
    """teacher, trajectories, flow, select, sample and evaluate of two branches, from one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained("public")
    values = digits(dynamics=["ve", "rf"], trajectories__count=32)
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for module in (fetch, preprocess, reference):
        run_stage(module, values)
    rest = (select, sample, evaluate)
    for d in values["dynamics"]:
        for module in (teacher, trajectories, flow, *(rest if d == "ve" else ())):
            run_stage(module, values, d)
        adapted = pretrained.load_teacher(Path("models/teacher", d)).network
        made = pretrained.load_flow(Path("models/trained", d)).network
        assert isinstance(adapted, AdaptedNetwork)
        assert made.top == FLOW_TOP * values["ode"]["sigma_data"]
        moved = made.model.conv_in.weight[:, :1] - adapted.model.conv_in.weight
        assert 0 < moved.abs().max() < 0.2  # trained on from the public weights
    assert np.load("data/samples/ve/flow-one_step-nfe001.npy").shape[1:] == (1, 8, 8)
    assert "flow-one_step-nfe001" in Path("reports/metrics/ve.json").read_text()
    DDPMPipeline(small_unet(sample_size=16), DDPMScheduler()).save_pretrained("public")
    with pytest.raises(UserError, match="'public': is for 16 x 16 pixels, the data have 8 x 8"):
        run_stage(teacher, values, "ve")
