"""fetch: the images of `data.source`, in one raw form."""

from ifm.data.sources import fetch
from pipeline import paths
from pipeline.stage import Stage, main


def work(stage: Stage) -> None:
    """Brings the images of any source to data/raw: parquet files of encoded images and labels."""
    result = fetch(stage.config.data, paths.RAW)
    stage.run.log_metrics({f"images.{split}": count for split, count in result.splits.items()})


if __name__ == "__main__":
    main(work, module="fetch", params=lambda stage: stage.sections("data"))
