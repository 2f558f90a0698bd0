"""fetch: the images or points of `data.source`, in one raw form."""

from ifm.data import local
from ifm.data.points import fetch_points
from ifm.data.sources import fetch
from ifm.tracking import project_root
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def work(stage: Stage) -> None:
    """Brings the images of any source to data/raw: parquet files of encoded images and labels; or draws points."""
    data, root = stage.config.data, project_root()
    inputs = local.look(data.model_dump(), root=root, memory=root / paths.SEEN)  # before they are read
    if data.source == "points":
        kind, splits = "points", fetch_points(data, paths.RAW)
        said = f"{sum(splits.values())} points of the law {data.points.law}"
    else:
        found = fetch(data, paths.RAW)
        kind, splits, said = "images", found.splits, found.in_a_line()
    local.note(paths.SOURCE, inputs or local.Inputs())
    print(f"fetch: {said}", flush=True)
    stage.run.log_metrics({f"{kind}.{split}": count for split, count in splits.items()})


if __name__ == "__main__":
    main(work, module="fetch", params=lambda stage: stage.sections("data"))
