"""evaluate@d: the figures of every sampler."""

import numpy as np

from ifm.data.splits import open_split
from ifm.files import fresh_folder, read_json, write_json
from ifm.hardware.processes import make_accelerator
from ifm.metrics import cautions
from ifm.metrics.comparison import Measures
from ifm.metrics.evaluation import Evaluation, evaluate_samples
from ifm.metrics.reference import load_reference
from ifm.modalities.pictures import save_grid
from ifm.progress import progress
from pipeline.runner import paths
from pipeline.runner.headline import headline
from pipeline.runner.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "evaluate")


def work(stage: Stage) -> None:
    """Judges data/samples/{dynamics} against the reference, into reports/metrics, over all sampling seeds.

    The figures are those of ifm.metrics.catalogue that such data have; images have the nearest training images too.
    """
    config, d = stage.config, stage.dynamics
    accelerator = make_accelerator("no", seed=config.seed)
    how = config.evaluate
    found = evaluate_samples(
        paths.samples(d),
        load_reference(paths.REFERENCE, how, device=accelerator.device),
        measures=Measures(
            kid_subsets=how.kid_subsets,
            kid_subset_size=how.kid_subset_size,
            neighbours=how.neighbours,
            neighbour_samples=how.neighbour_samples,
            sliced_projections=how.sliced_projections,
            seed=config.seed,
        ),
        labels=real_labels(stage),
        accelerator=accelerator,
        progress=lambda items: progress(items, label=f"evaluate {d}", unit="sampler"),
    )
    if not accelerator.is_main_process:
        return
    write_json(paths.METRICS / f"{d}.json", found.figures)
    write_json(paths.headline(d), {d: headline(found.figures)})  # by name: DVC shows ve.fid, whatever the file
    picture_pairs(stage, found)
    rows = dict(found.figures)
    for row in found.figures.values():
        rows |= {f"{s['model']}-nfe{s['nfe']:03d}": s for s in row.get("guided", ())}
    stage.run.log_metrics(
        {f"{name}.{key}": v for name, row in rows.items() for key, v in row.items() if isinstance(v, int | float)}
    )
    stage.warn(cautions.together(map(cautions.told, found.figures.values())))


def real_labels(stage: Stage) -> np.ndarray | None:
    """Of the reference's images, int64 [m], where samples were asked for by class."""
    if "condition" not in read_json(paths.samples(stage.dynamics) / "metadata.json"):
        return None
    return open_split(paths.PROCESSED, stage.config.evaluate.reference_split).labels


def picture_pairs(stage: Stage, found: Evaluation) -> None:
    """data/pairs/{dynamics}: the one-step flow's samples that lie nearest to a training image, above that image."""
    folder = paths.pairs(stage.dynamics)
    with fresh_folder(folder) as out:
        train = open_split(paths.PROCESSED, "train")
        for name, pairs in found.closest.items():
            samples = np.load(paths.samples(stage.dynamics) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            shown = [np.asarray(samples[[i for i, _ in pairs]]), train[np.array([j for _, j in pairs])]]
            save_grid(train.modality.pictures(np.concatenate(shown)), out / f"{name}.png", columns=len(pairs))
            stage.run.log_artifact(out / f"{name}.png", "pairs")
        write_json(out / "pairs.json", {name: [list(pair) for pair in pairs] for name, pairs in found.closest.items()})


if __name__ == "__main__":
    main(work, module="evaluate", params=params, per_dynamics=True, parallel=True)
