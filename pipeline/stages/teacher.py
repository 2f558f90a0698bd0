"""teacher@d: the denoiser whose ODE is to be integrated."""

from ifm import dynamics, pretrained
from ifm.data.splits import open_split
from ifm.model import Teacher
from ifm.networks import build_network
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import make_accelerator
from ifm.training.loop import TrainSettings, write_curve
from ifm.training.teacher import train_teacher
from pipeline import paths
from pipeline.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "ode.sigma_data", f"ode.{stage.dynamics}", "network", "teacher")


def work(stage: Stage) -> None:
    """Trains the teacher of one dynamics on data/processed."""
    config, d = stage.config, stage.dynamics
    images = open_split(paths.PROCESSED, "train")
    accelerator = make_accelerator(config.teacher.precision, seed=config.seed)
    network = build_network(shape=images.shape, takes_anchor=False, **config.network.model_dump())
    teacher = Teacher(network, dynamics.build(d, **config.ode.options(d)))
    inputs = {"images": images.metadata.splits["train"].sha256}
    checkpoints = Checkpoints(stage.work_folder(params=params(stage), inputs=inputs))
    result = train_teacher(
        accelerator,
        teacher,
        images,
        settings=TrainSettings.from_config(config.teacher),
        random_flip=images.random_flip,
        seed=config.seed,
        checkpoints=checkpoints,
        on_log=stage.run.log_row,
    )
    if not accelerator.is_main_process:
        return
    train_images = config.teacher.steps * config.teacher.batch_size
    record = {"image_shape": list(images.shape), "train_images": train_images, "trained_on": inputs}
    pretrained.save_model(teacher, paths.teacher(d), record=record)
    write_curve(paths.curve(stage.name), result.history)
    stage.run.timings["train_seconds"] = result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})
    stage.run.log_model(stage.name, folder=paths.teacher(d), description=pretrained.describe(paths.teacher(d)))
    checkpoints.clear()


if __name__ == "__main__":
    main(work, module="teacher", params=params, per_dynamics=True, parallel=True)
