"""fetch: the images or points of `data.source`, in one raw form."""

from ifm.data import inputs
from ifm.data.fetching import fetch
from ifm.tracking import project_root
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def work(stage: Stage) -> None:
    """Brings the images of any source to data/raw: parquet files of encoded images, or points, and labels."""
    data, root = stage.config.data, project_root()
    local = inputs.look(data.model_dump(), root=root, memory=root / paths.SEEN)  # before they are read
    found = fetch(data, paths.RAW)
    inputs.note(paths.SOURCE, local or inputs.Inputs())
    print(f"fetch: {found.in_a_line()}", flush=True)
    counted = "bytes" if data.modality.name == "text" else data.modality.noun
    stage.run.log_metrics({f"{counted}.{split}": count for split, count in found.splits.items()})


if __name__ == "__main__":
    main(work, module="fetch", params=lambda stage: stage.sections("data"))
