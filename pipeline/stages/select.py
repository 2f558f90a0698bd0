"""select@d: the finished flow, with the sampler that measured best for each number of evaluations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ifm import modalities, pretrained, recorded, selection
from ifm.hardware.processes import make_accelerator
from ifm.metrics import catalogue
from ifm.metrics.comparison import Comparison, Measures
from ifm.metrics.extraction import extract
from ifm.metrics.metric import Better
from ifm.metrics.reference import BATCH, load_reference
from ifm.model import IntegrationFlow
from ifm.progress import progress
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main

# Of figures that are not computed here.
UNUSED = {"kid_subsets": 1, "kid_subset_size": 2, "neighbours": 1, "neighbour_samples": 2}


def params(stage: Stage) -> dict:
    return stage.sections(
        "seed",
        "select",
        "sample.flow_steps",
        "sample.batch_size",
        "evaluate.extractor",
        "evaluate.inception_path",
        "evaluate.dinov2_path",
        "evaluate.weights_sha256",
        "evaluate.classifier",
        "evaluate.sliced_projections",
    )


def work(stage: Stage) -> None:
    """Writes models/flow/{dynamics}: the trained weights, and in ifm.json the samplers that measured best."""
    config, d = stage.config, stage.dynamics
    accelerator = make_accelerator("no", seed=config.seed)
    source, record = paths.trained(d), {}
    if config.select.count:
        source, record = selected(stage, accelerator)
    elif accelerator.is_main_process:
        print(f"{stage.name}: select.count is 0: nothing to choose", flush=True)
    if not accelerator.is_main_process:
        return
    pretrained.save_again(source, paths.flow(d), record=record)
    stage.run.log_model(f"flow-{d}", folder=paths.flow(d), description=pretrained.describe(paths.flow(d)))


def selected(stage: Stage, accelerator: Accelerator) -> tuple[Path, dict[str, Any]]:
    """The folder of the average that is best in one step, and what ifm.json says of it.

    That is: the best sampler by number of evaluations, and how they were measured.
    """
    config, d = stage.config, stage.dynamics
    described = pretrained.describe(paths.trained(d))
    shape = pretrained.state_shape(described)
    reference = load_reference(paths.REFERENCE, config.evaluate, device=accelerator.device)
    projections = config.evaluate.sliced_projections
    real = reference.real(Measures(**UNUSED, sliced_projections=projections, seed=config.seed))
    judge = catalogue.judge(modalities.of(described).figures)
    higher = judge.better is Better.HIGHER

    def measure(samples: np.ndarray) -> float:
        found = extract(reference.extractor, samples, batch_size=BATCH, accelerator=accelerator)
        return judge.compute(Comparison(found, real, samples))

    def flow_and_draws(folder: Path) -> tuple[IntegrationFlow, dict[str, Any]]:
        flow = pretrained.load_flow(folder).to(accelerator.device, memory_format=torch.channels_last)
        return flow, common | {"condition": flow.condition_kind}

    common = {"count": config.select.count, "batch_size": config.sample.batch_size, "seed": config.seed}
    common |= {"device": accelerator.device, "accelerator": accelerator}
    folders = pretrained.averages_of(paths.trained(d))
    with progress(label=f"select {d}", unit="sampler") as bar:
        values = {}
        for folder in folders if len(folders) > 1 else ():
            flow, draws = flow_and_draws(folder)
            values[folder] = selection.one_step(flow, shape, measure, **draws)
            bar.update()
        best = min(values, key=lambda folder: -values[folder] if higher else values[folder], default=folders[0])
        flow, draws = flow_and_draws(best)
        found = selection.select(
            flow,
            shape,
            measure,
            steps=config.sample.flow_steps,
            levels=config.select.levels,
            higher=higher,
            on_measured=lambda *measured: bar.update(),
            **draws,
        )
    if accelerator.is_main_process:
        tell(stage, found, judge.key)
    how = {"metric": judge.key, "count": config.select.count, "seed": config.seed, "first_draw": selection.FIRST}
    protocol = {key: reference.metadata[key] for key in ("extractor", "checksum", "split")}
    decays = {str(pretrained.describe(folder)["ema_decay"]): value for folder, value in values.items()}
    choices = {str(n): recorded_choice(choice, judge.key) for n, choice in found.best.items()}
    record = {recorded.KEY: choices, "selected_on": how | protocol}
    return best, record | ({"ema_decays_in_one_step": decays} if decays else {})


def recorded_choice(choice: selection.Choice, metric: str) -> dict[str, Any]:
    """An entry of ifm.json."""
    gain = choice.best_of_fewer
    note = {} if gain is None else {"note": f"no gain beyond {gain} evaluation{'s' * (gain > 1)}"}
    return choice.way.describe() | {"metric": metric, "value": choice.value} | note


def tell(stage: Stage, found: selection.Selection, metric: str) -> None:
    """The choices in a few lines, and everything that was measured in the stage's run."""
    for n, choice in found.best.items():
        note = recorded_choice(choice, metric).get("note")
        print(f"{stage.name}: {n} NFE: {choice.way.title}, {metric} {choice.value:.3g}{f' ({note})' if note else ''}")
    stage.run.log_metrics({f"{metric}/{n}nfe": choice.value for n, choice in found.best.items()})
    stage.run.log_metrics({
        f"tried/{n}nfe-{'-'.join([way.sampler, *(f'{t:g}' for t in (way.times or ())[1:])])}": value
        for n, measured in found.tried.items()
        for way, value in measured
    })  # fmt: skip


if __name__ == "__main__":
    main(work, module="select", params=params, per_dynamics=True, parallel=True)
