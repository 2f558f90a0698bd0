"""A flow as a folder of diffusers: unet/, model_index.json and a pipeline that needs torch and diffusers alone."""

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ifm.conditions.classes import WAVES, Classes
from ifm.dynamics.rectified import PATH_T_MIN
from ifm.errors import UserError
from ifm.files import write_json
from ifm.latents import INNER
from ifm.latents.autoencoder import decoded
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.networks import unet
from ifm.pretrained import DESCRIPTION, copy_decoder, decoder_of
from ifm.steps import RENOISE_RHO, sample
from ifm.use.graphs import TOLERANCE, example_draws
from ifm.use.loading import EXPORTED

if TYPE_CHECKING:
    from ifm.use.diffusers_embedding import FlowEmbedding

EMBEDDING = "embedding"
PIPELINE = Path(__file__).with_name("diffusers_pipeline.py")
COPIED = ("config.json", DESCRIPTION, "*.safetensors", "*.safetensors.index.json")


def write_folder(flow: IntegrationFlow, model: Path, folder: Path) -> float:
    """Writes the folder from `model` (which holds `flow`), loads it with diffusers and compares one evaluation.

    Returns the largest difference. Raises UserError where it is above the tolerance. unet/ is the model's own folder,
    ifm.json included, so that `IntegrationFlow.from_pretrained` reads an exported folder too. vae/ is the decoder of a
    flow of latents; unet/ holds it once more, as every model's folder does.
    """
    embedding = _embedding(flow)
    try:
        network = flow.network.in_class_slot() if embedding is None else flow.network.model
    except ValueError as error:
        raise UserError(f"diffusers: {error}; use --format onnx or pt2") from error
    own = flow.condition_kind is not None or isinstance(flow, IntervalFlow)
    write_network(network if own else None, model, folder / EXPORTED)
    shutil.copyfile(PIPELINE, folder / "pipeline.py")
    index = _index(flow)
    if embedding is not None:
        embedding.save_pretrained(folder / EMBEDDING, safe_serialization=True)
        shutil.copyfile(inspect.getfile(type(embedding)), folder / EMBEDDING / f"{EMBEDDING}.py")
        index[EMBEDDING] = [EMBEDDING, type(embedding).__name__]
    if flow.decoder is not None:
        shutil.copytree(decoder_of(model), folder / INNER)
        copy_decoder(decoder_of(model), folder / EXPORTED)
        index[INNER] = ["diffusers", type(flow.decoder.model).__name__]
    write_json(folder / "model_index.json", index)
    difference = _compare(flow, folder)
    if not difference <= TOLERANCE:
        raise UserError(f"diffusers: the written pipeline differs by {difference:.2g}, more than {TOLERANCE}")
    return difference


def write_network(network: torch.nn.Module | None, model: Path, folder: Path) -> None:
    """unet/: the model's own files, and diffusers' network over them where it is not the same."""
    folder.mkdir()
    for pattern in COPIED:
        for file in model.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    if network is not None:
        network.save_pretrained(folder, safe_serialization=True)


def _embedding(flow: IntegrationFlow) -> "FlowEmbedding | None":
    """What the U-Net is told, as a part of its own, where diffusers' class slot cannot hold it: more than one thing."""
    kind, end = flow.condition_kind, getattr(flow.network, "end", None)  # a public model's network has none
    if not isinstance(kind, Classes) or (end is None and kind.scale is None):
        return None
    from ifm.use.diffusers_embedding import FlowEmbedding

    told = flow.network.condition
    low, high = kind.scale or (None, None)
    made = FlowEmbedding(
        width=told.table.embedding_dim,
        labels=told.table.num_embeddings,
        low=low,
        high=high,
        waves=WAVES,
        end_features=None if end is None else end.linear_1.in_features,
    )
    ends = {} if end is None else {f"end.{name}": x for name, x in end.state_dict().items()}
    made.load_state_dict(told.state_dict() | ends)
    return made.eval()


def _index(flow: IntegrationFlow) -> dict[str, Any]:
    """model_index.json: which classes, and the constants that the pipeline's constructor takes."""
    import diffusers

    dynamics, two_times = flow.dynamics, isinstance(flow, IntervalFlow)
    kind = {} if flow.condition_kind is None else flow.condition_kind.options
    scale, usual = (flow.guidance or {"scale": 1.0})["scale"], getattr(flow.condition_kind, "usual_scale", None)
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
        "guidance_range": kind.get("scale"),
        "guidance_scale": scale if usual is None else usual,
        "samplers": {str(n): way.describe() for n, way in flow.samplers.items()} or None,
    }


def _compare(flow: IntegrationFlow, folder: Path) -> float:
    """The largest difference of x_0_hat, the flow's and the written pipeline's, from the same x_T and anchor.

    Of a flow of latents the images count too.
    """
    draws = example_draws(flow, 3)
    x_T, x_anchor = draws.x_T, draws.x_anchor if flow.takes_anchor else None
    labels, w = (None, None) if draws.condition is None else (draws.condition.labels, draws.condition.w)
    with quiet_diffusers():
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        one = None if w is None else float(w[0])  # the pipeline takes one scale for all
        found = pipe(latents=x_T, anchor=x_anchor, class_labels=labels, guidance_scale=one, output_type="latent").images
        shown = pipe.decode(found)
    device = next(flow.parameters()).device
    condition = None if draws.condition is None else draws.condition.to(device)
    condition = condition if w is None else replace(condition, w=torch.full_like(condition.w, one))
    given = {"x_anchor": None if x_anchor is None else x_anchor.to(device), "condition": condition}
    expected = sample(flow, x_T.to(device), **given)
    return max(_apart(found, expected), _apart(shown, decoded(flow, expected)))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b.cpu().to(torch.float32)).abs().max())


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
