"""sample@d: images or points from flow and teacher, all from the same prior draws."""

import numpy as np

from ifm import pretrained
from ifm.files import fresh_folder, write_json
from ifm.pictures import save_grid, side_by_side, side_by_side_choice
from ifm.progress import progress
from ifm.sampling import draw_samples, flow_sampler, teacher_sampler
from pipeline import paths
from pipeline.stage import Stage, main

COLUMNS = 8


def params(stage: Stage) -> dict:
    return stage.sections("seed", "sample", "evaluate.teacher_nfe")


def work(stage: Stage) -> None:
    """Draws sample.count samples with every sampler, times them, and lays some images out as grids."""
    config, d = stage.config, stage.dynamics
    device = stage.device
    teacher, flow = pretrained.load_both(teacher=paths.teacher(d), flow=paths.flow(d), device=device)
    shape = tuple(pretrained.describe(paths.flow(d))["image_shape"])

    samplers = [teacher_sampler(teacher, nfe=nfe) for nfe in sorted(config.evaluate.teacher_nfe) if teacher]
    for steps in sorted(config.sample.flow_steps):
        kinds = ["one_step"] if steps == 1 else config.sample.flow_samplers
        samplers += [flow_sampler(flow, kind=kind, steps=steps) for kind in kinds]

    with fresh_folder(paths.samples(d)) as out:
        pictures: dict[str, np.ndarray] = {}
        for sampler in progress(samplers, label=f"sample {d}", unit="sampler"):
            drawn = draw_samples(
                sampler,
                dynamics=flow.dynamics,
                shape=shape,
                count=config.sample.count,
                batch_size=config.sample.batch_size,
                seed=config.seed,
                device=device,
            )
            np.save(out / f"{sampler.name}.npy", drawn.images, allow_pickle=False)
            stage.run.timings[f"seconds_per_image.{sampler.name}"] = drawn.seconds_per_image
            if len(shape) == 3:
                pictures[sampler.name] = drawn.images[: config.sample.grid_images]
                save_grid(pictures[sampler.name], out / "grids" / f"{sampler.name}.png", columns=COLUMNS)
        described = [s.describe() for s in samplers]
        if pictures:
            titles = {s.name: s.title for s in samplers}
            panels = [(titles[s["name"]], pictures[s["name"]]) for s in side_by_side_choice(described)]
            side_by_side(panels, out / "grids" / "side_by_side.png", columns=COLUMNS)
        write_json(
            out / "metadata.json",
            {
                "dynamics": d,
                "seed": config.seed,
                "count": config.sample.count,
                "image_shape": list(shape),
                "samplers": described,
                "teacher": pretrained.describe(paths.teacher(d)).get("sha256"),
                "flow": pretrained.describe(paths.flow(d))["sha256"],
            },
        )
    if len(shape) == 3:
        stage.run.log_artifact(paths.samples(d) / "grids" / "side_by_side.png", "grids")


if __name__ == "__main__":
    main(work, module="sample", params=params, per_dynamics=True)
