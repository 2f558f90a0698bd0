"""A flow of two times as diffusers' own classes, without code: it computes what ours does, or says why not."""

import re

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from ifm.cli.main import main
from ifm.errors import UserError
from ifm.pretrained import save_model
from ifm.steps import sample_chained
from ifm.use import flowmap
from ifm.use.models import IntegrationFlow
from tests.support.judged import one_thread  # noqa: F401
from tests.support.small_models import KINDS, small_flow

HAS = hasattr(diffusers, flowmap.SCHEDULER)
needs = pytest.mark.skipif(not HAS, reason=f"diffusers {diffusers.__version__} has no {flowmap.SCHEDULER}")


@needs
@pytest.mark.parametrize("kind", ["ve-interval", "trig-interval", "rf-interval"])
def test_the_cards_code_makes_what_chain_makes(kind, tmp_path, monkeypatch):
    """The code as the card prints it, from the folder alone: without ifm, without trust_remote_code."""
    flow = small_flow(**KINDS.get(kind, {"name": "rf", "two_times": True, "takes_anchor": False}))
    save_model(flow, tmp_path / "model", record={"image_shape": [1, 8, 8]})
    monkeypatch.chdir(tmp_path)
    main(["export", "--model", "model", "--format", "flowmap", "--out", "exported"])
    assert not list((tmp_path / "exported").rglob("*.py"))
    card = ModelCard.load(tmp_path / "exported/README.md")
    assert card.data.library_name == "diffusers"
    (code, _) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    assert "ifm" not in code
    space = {}
    torch.manual_seed(3)
    exec(code, space)
    d = flow.dynamics
    x_T = d.coefficients(torch.tensor([d.t_max])).b * space["z"]
    for steps in (1, 3):
        told = flowmap.constants(flow) | {"anchor": space.get("anchor")}
        found = space["generate"](space["unet"], space["scheduler"], space["z"], steps=steps, **told)
        expected = sample_chained(flow, x_T, x_anchor=space.get("anchor"), steps=steps)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert steps > 1 or torch.equal(found, space["images"])
    mine, theirs = (IntegrationFlow.from_pretrained(one).sample(4) for one in ("model", "exported"))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ve", "is for flows of two times"),
        ("rf-interval-cross", "is for U-Nets without cross-attention"),
        ("pfgmpp-interval-none", "starts from other noise"),
    ],
)
def test_what_it_cannot_hold_is_one_line(kind, said, tmp_path):
    with pytest.raises(UserError, match=f"^flowmap: .*{said}.*; use --format diffusers"):
        flowmap.check(small_flow(**KINDS[kind]))


def test_a_diffusers_without_the_scheduler_is_named(monkeypatch):
    monkeypatch.setattr(flowmap, "SCHEDULER", "NotThereYet")
    with pytest.raises(UserError, match=r"has no NotThereYet, 0[.]42 has; use --format diffusers"):
        flowmap.check(small_flow(**KINDS["ve-interval"]))
