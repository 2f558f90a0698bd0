"""preprocess: decoded, cropped, resized, split: uint8 arrays that are memory-mapped."""

from ifm.data.preprocessing import preprocess
from pipeline import paths
from pipeline.stage import Stage, main


def work(stage: Stage) -> None:
    """Makes data/processed, uint8 arrays [n, C, H, W] by split, from data/raw."""
    made = preprocess(stage.config.data, paths.RAW, paths.PROCESSED)
    stage.run.log_metrics({f"images.{name}": split.count for name, split in made.splits.items()})


if __name__ == "__main__":
    main(work, module="preprocess", params=lambda stage: stage.sections("data"))
