"""select@d: the finished flow, with the sampler that measured best for each number of evaluations."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator

from ifm import modalities, pretrained, recorded, selection
from ifm.hardware.devices import compiles
from ifm.hardware.processes import make_accelerator
from ifm.metrics import catalogue
from ifm.metrics.comparison import Comparison, Measures
from ifm.metrics.extraction import extract
from ifm.metrics.metric import Better, Metric
from ifm.metrics.reference import BATCH, load_reference
from ifm.model import IntegrationFlow
from ifm.networks.asking import prepare
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
        "evaluate.clap_path",
        "evaluate.weights_sha256",
        "evaluate.classifier",
        "evaluate.sliced_projections",
    )


@dataclass(frozen=True)
class Judge:
    """What flows are measured by here: the samples of `selection.one_step` and `select` against the reference."""

    metric: Metric
    measure: Callable[[np.ndarray], float]
    shape: tuple[int, ...]
    draws: dict[str, Any]  # of `selection`, but for how many
    protocol: dict[str, Any]

    @classmethod
    def of(cls, stage: Stage, accelerator: Accelerator) -> Self:
        config = stage.config
        described = pretrained.describe(paths.trained(stage.dynamics))
        shape = pretrained.state_shape(described)
        reference = load_reference(paths.REFERENCE, config.evaluate, device=accelerator.device)
        projections = config.evaluate.sliced_projections
        real = reference.real(Measures(**UNUSED, sliced_projections=projections, seed=config.seed))
        metric = catalogue.judge(modalities.of(described).figures)

        def measure(samples: np.ndarray) -> float:
            found = extract(reference.extractor, samples, batch_size=BATCH, accelerator=accelerator)
            return metric.compute(Comparison(found, real, samples))

        draws = {"batch_size": config.sample.batch_size, "seed": config.seed}
        draws |= {"device": accelerator.device, "accelerator": accelerator}
        protocol = {key: reference.metadata[key] for key in ("extractor", "checksum", "split")}
        return cls(metric, measure, shape, draws, protocol)

    @property
    def higher(self) -> bool:
        return self.metric.better is Better.HIGHER

    def load(self, folder: Path, *, count: int) -> tuple[IntegrationFlow, dict[str, Any]]:
        """A flow, and its draws."""
        flow = pretrained.load_flow(folder).to(self.draws["device"], memory_format=torch.channels_last)
        if not compiles():  # a minute for each candidate
            prepare(flow, "no", recorded=self.draws["accelerator"].num_processes == 1)
        return flow, self.draws | {"count": count, "condition": flow.condition_kind}

    def one_step(self, folder: Path, *, count: int) -> float:
        flow, draws = self.load(folder, count=count)
        found = selection.one_step(flow, self.shape, self.measure, **draws)
        if self.draws["device"].type == "cuda":
            del flow  # a prepared flow holds itself
            gc.collect()
        return found

    def best(self, values: dict[Any, float]) -> Any:
        """The key of the best value, the first of equals; values: not empty."""
        return min(values, key=lambda key: -values[key] if self.higher else values[key])


def work(stage: Stage) -> None:
    """Writes models/flow/{dynamics}: the trained weights, and in ifm.json the samplers that measured best."""
    config, d = stage.config, stage.dynamics
    accelerator = make_accelerator("no", seed=config.seed)
    source, record, states = paths.trained(d), {}, pretrained.states_of(paths.trained(d))
    judge = Judge.of(stage, accelerator) if config.select.count or states else None
    if states:
        source, record = by_step(stage, judge, states)
    if config.select.count:
        source, found = selected(stage, judge, source)
        record |= found
    elif accelerator.is_main_process:
        print(f"{stage.name}: select.count is 0: nothing to choose", flush=True)
    if not accelerator.is_main_process:
        return
    pretrained.save_again(source, paths.flow(d), record=record)
    stage.run.log_model(f"flow-{d}", folder=paths.flow(d), description=pretrained.describe(paths.flow(d)))


def by_step(stage: Stage, judge: Judge, states: dict[int, Path]) -> tuple[Path, dict[str, Any]]:
    """The folder that select.keep says, and what ifm.json says of it: the flow in one step after so many steps."""
    config, trained = stage.config, paths.trained(stage.dynamics)
    last = pretrained.describe(trained)["step"]
    folders, values = states | {last: trained}, {}
    with progress(total=len(folders), label=f"states {stage.dynamics}", unit="state") as bar:
        for step, folder in folders.items():
            values[step] = judge.one_step(folder, count=config.select.evaluate_count)
            bar.update()
            if judge.draws["accelerator"].is_main_process:
                stage.run.log_row({"step": step, f"{judge.metric.key}/by_step": values[step]})
    kept = judge.best(values) if config.select.keep == "best" else last
    told = {"metric": judge.metric.key, "count": config.select.evaluate_count, "seed": config.seed, "kept": kept}
    return folders[kept], {recorded.BY_STEP: told | {"values": {str(step): value for step, value in values.items()}}}


def selected(stage: Stage, judge: Judge, source: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the average that is best in one step, and what ifm.json says of it.

    That is: the best sampler by number of evaluations, and how they were measured. A state of before the end, `source`,
    has one average alone.
    """
    config, d = stage.config, stage.dynamics
    folders, count = pretrained.averages_of(source), config.select.count
    with progress(label=f"select {d}", unit="sampler") as bar:
        values = {}
        for folder in folders if len(folders) > 1 else ():
            values[folder] = judge.one_step(folder, count=count)
            bar.update()
        best = judge.best(values) if values else folders[0]
        flow, draws = judge.load(best, count=count)
        found = selection.select(
            flow,
            judge.shape,
            judge.measure,
            steps=config.sample.flow_steps,
            levels=config.select.levels,
            higher=judge.higher,
            on_measured=lambda *measured: bar.update(),
            **draws,
        )
    key = judge.metric.key
    if judge.draws["accelerator"].is_main_process:
        tell(stage, found, key)
    how = {"metric": key, "count": count, "seed": config.seed, "first_draw": selection.FIRST}
    decays = {str(pretrained.describe(folder)["ema_decay"]): value for folder, value in values.items()}
    choices = {str(n): recorded_choice(choice, key) for n, choice in found.best.items()}
    record = {recorded.KEY: choices, "selected_on": how | judge.protocol}
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
