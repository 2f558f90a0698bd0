"""What the core of the package does without any extra: trains from Python, saves, loads again, samples.

Run by the Python of an environment that has the core alone: python -m tests.support.core_worker FOLDER.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ifm import IntegrationFlow, Teacher, extras, objectives, pretrained, schema
from ifm.cli.main import main as command
from ifm.training import flow  # noqa: F401  it imports
from ifm.training.loop import TrainSettings
from ifm.training.teacher import train_teacher
from tests.support.small_models import small_flow, small_teacher

# These come with torch, accelerate and diffusers.
ALSO_OF_THE_CORE = {"filelock", "jinja2", "psutil", "yaml"}


def main(folder: Path) -> None:
    """Ends with an error where something of the core needs an extra."""
    torch.set_num_threads(1)
    there = {name for name in extras.PIPELINE if importlib.util.find_spec(name)}
    assert there <= ALSO_OF_THE_CORE, there
    assert all(callable(schema.load(each.phase)) for each in objectives.OBJECTIVES.values())
    for shape in ((1, 8, 8), (2,)):
        name = "x".join(map(str, shape))
        data = np.random.default_rng(0).integers(0, 256, (16, *shape), np.uint8)
        teacher = small_teacher(shape).train()
        before = {key: value.clone() for key, value in teacher.state_dict().items()}
        settings = TrainSettings(
            steps=2, batch_size=8, lr=1e-3, lr_decay="none", warmup_steps=0, ema_decay=0.0, clip_grad_norm=1.0,
            log_every=1, checkpoint_every=2,
        )  # fmt: skip
        samples = data if len(shape) == 3 else data.astype(np.float32) / 255
        train_teacher(Accelerator(cpu=True), teacher, samples, settings=settings, random_flip=False, seed=1)
        assert any(not torch.equal(before[key], value) for key, value in teacher.state_dict().items())
        pretrained.save_model(teacher, folder / f"teacher-{name}", record={"image_shape": list(shape)})
        assert Teacher.from_pretrained(folder / f"teacher-{name}").sample(2, nfe=3).shape == (2, *shape)
        pretrained.save_model(small_flow(shape=shape), folder / f"flow-{name}", record={"image_shape": list(shape)})
        drawn = IntegrationFlow.from_pretrained(folder / f"flow-{name}").sample(3)
        assert drawn.shape == (3, *shape)
        command(["sample", "--model", f"{folder}/flow-{name}", "--n", "3", "--out", f"{folder}/{name}.npy"])
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), drawn)
    command(["sample", "--model", f"{folder}/flow-1x8x8", "--n", "3", "--out", f"{folder}/grid.png"])
    command(["export", "--model", f"{folder}/flow-1x8x8", "--out", f"{folder}/exported"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
