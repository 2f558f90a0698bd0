"""fetch: the images or points of `data.source`, in one raw form."""

from ifm.data.points import fetch_points
from ifm.data.sources import fetch
from ifm.tracking import project_root
from pipeline import paths
from pipeline.stage import Stage, main


def work(stage: Stage) -> None:
    """Brings the images of any source to data/raw: parquet files of encoded images and labels; or draws points."""
    data = stage.config.data
    if data.path:
        # Relative to the main checkout: a DVC experiment runs in a folder of its own.
        data = data.model_copy(update={"path": str(project_root() / data.path)})
    splits = fetch_points(data, paths.RAW) if data.source == "points" else fetch(data, paths.RAW).splits
    kind = "points" if data.source == "points" else "images"
    stage.run.log_metrics({f"{kind}.{split}": count for split, count in splits.items()})


if __name__ == "__main__":
    main(work, module="fetch", params=lambda stage: stage.sections("data"))
