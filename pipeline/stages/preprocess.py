"""preprocess: decoded, cropped, resized, split: uint8 arrays that are memory-mapped (points: float32)."""

from functools import partial

from ifm.data import needs
from ifm.data.arrays import duplicates_in_words
from ifm.data.preprocessing import preprocess
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def work(stage: Stage) -> None:
    """Makes data/processed, uint8 arrays [n, C, H, W] or float32 [n, d] by split, from data/raw.

    What later stages need of the data is checked here, before anything is decoded or trained.
    """
    data = stage.config.data
    check = partial(needs.check, stage.config, where=paths.RAW)
    made, kind = preprocess(data, paths.RAW, paths.PROCESSED, check=check), data.modality.noun
    counts = {name: split.count for name, split in made.splits.items()}
    stage.run.log_metrics({f"{kind}.{name}": count for name, count in counts.items()})
    stage.run.log_metrics({f"duplicates.{name}": count for name, count in made.duplicates.items()})
    if any(made.duplicates.values()):
        print(f"{stage.name}: {duplicates_in_words(made.duplicates, counts, noun=kind)}", flush=True)


if __name__ == "__main__":
    main(work, module="preprocess", params=lambda stage: stage.sections("data"))
