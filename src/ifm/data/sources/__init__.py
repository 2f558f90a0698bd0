"""Where data sets come from: the table of `data.source`, one file each."""

from ifm.data.sources import array, audiofolder, digits, hub, imagefolder, parquet, points, text
from ifm.data.sources.base import Encoded, FetchError, Images, Points, Source, Split, Texts

__all__ = ["SOURCES", "Encoded", "FetchError", "Images", "Points", "Source", "Split", "Texts"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        digits.SOURCE,
        hub.SOURCE,
        parquet.SOURCE,
        imagefolder.SOURCE,
        audiofolder.SOURCE,
        points.SOURCE,
        array.SOURCE,
        text.SOURCE,
        text.HUB,
    )
}
