"""What tests/method/test_parallel.py runs in one and in several processes: samples drawn, their features
taken, a sampler chosen."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ifm import dynamics
from ifm.metrics.classifier import Classifier
from ifm.metrics.extraction import extract
from ifm.metrics.extractors import ClassifierExtractor
from ifm.model import IntegrationFlow
from ifm.networks.unet import build_unet
from ifm.sampling import draw_samples, flow_sampler
from ifm.selection import select


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    unet = build_unet(
        image_size=8, in_channels=2, out_channels=1, channels=[8, 8], layers_per_block=1, attention=[False, False],
        dropout=0.0, norm_groups=4,
    )  # fmt: skip
    flow = IntegrationFlow(unet, dynamics.build("ve"), scheme="edm", takes_anchor=True).eval()
    rank, file = accelerator.process_index, out / "samples.npy"
    kept = np.lib.format.open_memmap(file, "w+", np.uint8, (23, 1, 8, 8)) if accelerator.is_main_process else None
    drawn = draw_samples(
        flow_sampler(flow, kind="renoise", steps=2), dynamics=flow.dynamics, shape=(1, 8, 8), count=23, batch_size=4,
        seed=3, device=accelerator.device, out=kept, accelerator=accelerator,
    )  # fmt: skip
    if kept is not None:
        kept.flush()
    extractor = ClassifierExtractor(
        Classifier(channels=1, image_size=8, classes=3, width=6), device=torch.device("cpu")
    )
    worked, plain = [], extractor.features_and_probabilities
    extractor.features_and_probabilities = lambda images: worked.append(len(images)) or plain(images)
    found = extract(extractor, drawn.images, batch_size=5, accelerator=accelerator)
    how = {"steps": [2, 4], "levels": 3, "count": 11, "batch_size": 4, "seed": 3, "accelerator": accelerator}
    chosen = select(flow, (1, 8, 8), lambda samples: float(samples.mean()), device=accelerator.device, **how)
    digests = [hashlib.sha256(x.tobytes()).hexdigest() for x in (drawn.images, found.features, found.probabilities)]
    digests.append(repr(chosen))
    (out / f"digests-{rank}.json").write_text(json.dumps({"digests": digests, "worked": worked}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
