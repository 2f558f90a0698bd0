"""A folder of recordings; with labels, the first-level subfolder of each is its class. As imagefolder reads images."""

from functools import partial

from ifm.data.local import SOUNDS
from ifm.data.sources import imagefolder
from ifm.data.sources.base import Source

SOURCE = Source(
    "audiofolder",
    partial(imagefolder.read, suffixes=SOUNDS, noun="sounds"),
    modality="sound",
    key="path",
    files=partial(imagefolder.files, suffixes=SOUNDS),
)
