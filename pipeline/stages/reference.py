"""reference: the evaluation extractor and its statistics of the real data."""

from ifm.data import needs
from ifm.data.splits import open_split
from ifm.files import write_json
from ifm.metrics.reference import build_reference
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def work(stage: Stage) -> None:
    """Builds (for `classifier`: trains) the extractor and writes its features of the real data."""
    train, test = (open_split(paths.PROCESSED, name) for name in ("train", "test"))
    counts = {"train": len(train), "test": len(test)}
    described = train.metadata.splits["train"].class_counts
    # `preprocess` has checked this; params that it does not list may have changed since.
    needs.check(stage.config, needs.Counts(counts, train.classes, described), where=paths.PROCESSED)
    figures = build_reference(
        stage.config.evaluate,
        train=train,
        test=test,
        out=paths.REFERENCE,
        device=stage.device,
        on_log=stage.run.log_row,
        duplicates=train.metadata.duplicates,
    )
    write_json(paths.METRICS / "reference.json", figures)
    stage.run.log_metrics({key: value for key, value in figures.items() if isinstance(value, int | float)})
    stage.warn(figures["warnings"])


if __name__ == "__main__":
    main(
        work,
        module="reference",
        params=lambda s: s.sections(
            "evaluate.extractor",
            "evaluate.inception_path",
            "evaluate.dinov2_path",
            "evaluate.weights_sha256",
            "evaluate.classifier",
            "evaluate.reference_split",
            "evaluate.sliced_projections",
        ),
    )
