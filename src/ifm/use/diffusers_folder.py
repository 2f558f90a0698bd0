"""A flow as a folder of diffusers: unet/, model_index.json and a pipeline that needs torch and diffusers alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ifm.dynamics.rectified import PATH_T_MIN
from ifm.errors import UserError
from ifm.files import write_json
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.networks import unet
from ifm.pretrained import DESCRIPTION
from ifm.steps import RENOISE_RHO, sample
from ifm.use.graphs import TOLERANCE, example_draws
from ifm.use.loading import EXPORTED

PIPELINE = Path(__file__).with_name("diffusers_pipeline.py")
COPIED = ("config.json", DESCRIPTION, "*.safetensors", "*.safetensors.index.json")


def write_folder(flow: IntegrationFlow, model: Path, folder: Path) -> float:
    """Writes the folder from `model` (which holds `flow`), loads it with diffusers and compares one evaluation.

    Returns the largest difference. Raises UserError where it is above the tolerance. unet/ is the model's own folder,
    ifm.json included, so that `IntegrationFlow.from_pretrained` reads an exported folder too.
    """
    (folder / EXPORTED).mkdir()
    try:
        network = flow.network.in_class_slot()
    except ValueError as error:
        raise UserError(f"diffusers: {error}; use --format onnx or pt2") from error
    for pattern in COPIED:
        for file in model.glob(pattern):
            shutil.copyfile(file, folder / EXPORTED / file.name)
    if flow.condition_kind is not None or isinstance(flow, IntervalFlow):
        network.save_pretrained(folder / EXPORTED, safe_serialization=True)
    shutil.copyfile(PIPELINE, folder / "pipeline.py")
    write_json(folder / "model_index.json", _index(flow))
    difference = _compare(flow, folder)
    if not difference <= TOLERANCE:
        raise UserError(f"diffusers: the written pipeline differs by {difference:.2g}, more than {TOLERANCE}")
    return difference


def _index(flow: IntegrationFlow) -> dict[str, Any]:
    """model_index.json: which classes, and the constants that the pipeline's constructor takes."""
    import diffusers

    dynamics, two_times = flow.dynamics, isinstance(flow, IntervalFlow)
    kind = {} if flow.condition_kind is None else flow.condition_kind.options
    return {
        "_class_name": ["pipeline", "IntegrationFlowPipeline"],  # of pipeline.py
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", type(flow.network.model).__name__],
        "dynamics": dynamics.name,
        "t_min": dynamics.t_min,
        "t_max": dynamics.t_max,
        "sigma_data": dynamics.sigma_data,
        **{
            name: getattr(dynamics, name, None) for name in ("augmented_dimensions", "schedule", "beta_min", "beta_max")
        },
        **{name: kind.get(name) for name in ("classes", "shares")},
        "scheme": flow.scheme,
        "takes_anchor": flow.takes_anchor,
        "anchor_input": flow.anchor_input,
        "two_times": two_times,
        "time_scale": unet.INTERVAL_TIME_SCALE if two_times else unet.TIME_SCALE,
        "anchor_grid": unet.ANCHOR_GRID,
        "position_features": unet.POSITION_FEATURES,
        "renoise_t_min": dynamics.t_min or PATH_T_MIN,
        "renoise_rho": RENOISE_RHO,
        "samplers": {str(n): way.describe() for n, way in flow.samplers.items()} or None,
    }


def _compare(flow: IntegrationFlow, folder: Path) -> float:
    """The largest difference of x_0_hat, the flow's and the written pipeline's, from the same x_T and anchor."""
    draws = example_draws(flow, 3)
    x_T, x_anchor = draws.x_T, draws.x_anchor if flow.takes_anchor else None
    labels = None if draws.condition is None else draws.condition.labels
    with quiet_diffusers():
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        found = pipe(latents=x_T, anchor=x_anchor, class_labels=labels, output_type="latent").images
    device = next(flow.parameters()).device
    condition = None if draws.condition is None else draws.condition.to(device)
    given = {"x_anchor": None if x_anchor is None else x_anchor.to(device), "condition": condition}
    expected = sample(flow, x_T.to(device), **given)
    return float((found - expected.cpu().to(torch.float32)).abs().max())


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without its warning about code that is our own, and its bars."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
