"""Points of a known law (ifm.data.laws), drawn anew from data.split_seed."""

from ifm.data.sources.base import DataSection, Points, Source


def read(config: DataSection) -> Points:
    """`data.points.count` points of `data.points.law`; their classes are the law's modes."""
    from ifm.data.laws import CLASSES, draw_points

    law = config.points
    drawn = draw_points(law.law, count=law.count, dimensions=law.dimensions, seed=config.split_seed)
    modes = None if drawn.labels is None else CLASSES
    return Points(drawn.points, drawn.labels, modes)


SOURCE = Source(
    "points",
    read,
    modality="points",
    key="points.law",
    columns=False,
    test_split=False,
    count=lambda data: data.points.count,
    labelled=lambda data: data.points.law == "eight_gaussians",  # the law of modes
    labels_key=None,
    size_key="points.count",
)
