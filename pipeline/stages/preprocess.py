"""preprocess: decoded, cropped, resized, split: uint8 arrays that are memory-mapped (points: float32)."""

from ifm.data.points import preprocess_points
from ifm.data.preprocessing import preprocess
from pipeline import paths
from pipeline.stage import Stage, main


def work(stage: Stage) -> None:
    """Makes data/processed, uint8 arrays [n, C, H, W] or float32 [n, d] by split, from data/raw."""
    data = stage.config.data
    points = data.source == "points"
    made = (preprocess_points if points else preprocess)(data, paths.RAW, paths.PROCESSED)
    kind = "points" if points else "images"
    stage.run.log_metrics({f"{kind}.{name}": split.count for name, split in made.splits.items()})


if __name__ == "__main__":
    main(work, module="preprocess", params=lambda stage: stage.sections("data"))
