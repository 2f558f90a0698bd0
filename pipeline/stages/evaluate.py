"""evaluate@d: the figures of every sampler."""

from ifm.files import write_json
from ifm.metrics.evaluation import evaluate_samples
from ifm.metrics.reference import load_reference
from ifm.progress import progress
from pipeline import paths
from pipeline.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "evaluate")


def work(stage: Stage) -> None:
    """Distances to the reference, end-point error and class shares of data/samples/{dynamics}, into reports/metrics.

    Images have FID and KID, points sliced Wasserstein and energy distance.
    """
    config, d = stage.config, stage.dynamics
    reference = load_reference(paths.REFERENCE, config.evaluate, device=stage.device)
    figures = evaluate_samples(
        paths.samples(d),
        reference,
        kid_subsets=config.evaluate.kid_subsets,
        kid_subset_size=config.evaluate.kid_subset_size,
        sliced_projections=config.evaluate.sliced_projections,
        seed=config.seed,
        progress=lambda items: progress(items, label=f"evaluate {d}", unit="sampler"),
    )
    write_json(paths.METRICS / f"{d}.json", figures)
    stage.run.log_metrics(
        {f"{name}.{key}": v for name, row in figures.items() for key, v in row.items() if isinstance(v, int | float)}
    )


if __name__ == "__main__":
    main(work, module="evaluate", params=params, per_dynamics=True)
