"""The leg itself: which stage when, for how long, and what is kept of it at once."""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.leg import plan, results
from benchmarks.leg.params import ROOT, Params
from benchmarks.leg.results import Results
from benchmarks.leg.workers import Job, Workers, newest
from ifm.config import parse
from ifm.errors import UserError
from ifm.files import read_json
from pipeline.runner import paths

NEEDED = ("dvc.yaml", "src", "pipeline", "benchmarks")
CHECKPOINTS = Path(".ifm/checkpoints")
CALIBRATION = 0.015  # of the whole time, at least so long is a training timed
TRAINED = ("teacher", "flow")
SPARE = 2  # processes that are warmed up while others work; none where these few cores are theirs


class Leg(Params):
    """One run of the stages for one dynamics in a folder of its own."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.began, self.total = time.time(), 60 * arguments.minutes
        super().__init__(arguments, work)
        self.d, self.earlier = arguments.dynamics, arguments.earlier
        for name in NEEDED:
            if not (work / name).exists():
                (work / name).symlink_to(ROOT / name)
        self.results = Results(
            arguments.out.resolve(),
            command="python -m benchmarks.leg",
            dynamics=self.d,
            minutes=arguments.minutes,
            data=arguments.data.resolve().name,
            goes_on_from=self.earlier and self.earlier.resolve().name,
            stages={},
        )
        self.stages: dict[str, Any] = {}
        self.starts: dict[str, Path] = {}  # folders with a first checkpoint, from an earlier leg
        self.ready = self.began  # when there are data
        self.many_cores = (os.cpu_count() or 1) >= 8
        self.workers = Workers(work, spare=SPARE if self.many_cores else 0)

    # --- time ---------------------------------------------------------------------------------------------------------

    def end(self, stage: str) -> float:
        """When a stage that begins now has to be done, on the clock: it has some time also where others were late."""
        at = self.ready + plan.ENDS[stage] * (self.began + self.total - self.ready)
        return max(at, time.time() + plan.LEAST_SHARE * self.total)

    def say(self, text: str) -> None:
        print(f"leg {time.time() - self.began:5.0f} s: {text}", file=sys.stderr, flush=True)

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Everything; whether it came to the report."""
        try:
            fetch = self.workers.run("fetch")
            self.results.put(params=self.told(), machine=machine())
            self.begin_with_earlier()
            self.need(self.close(fetch, until=self.began + self.total))
            self.need(self.one("preprocess"))
            self.ready = time.time()
            reference = self.workers.run("reference")
            self.need(self.train("teacher", beside=reference))
            self.results.model("teacher", self.work / paths.teacher(self.d))
            self.close(reference, until=self.end("flow"))
            self.paths()
            self.need(self.train("flow"))
            if "select" in self.values:
                self.select()
            self.results.model("flow", self.work / paths.flow(self.d))
            self.judge()
            return self.report()
        except UserError as error:
            self.say(f"ends early: {error}")
            return False
        finally:
            self.results.put(seconds=round(time.time() - self.began, 1), params=self.told())
            self.workers.close()

    def need(self, done: bool) -> None:
        """Raises UserError where a stage that all others build on has failed."""
        if not done:
            raise UserError(f"{next(reversed(self.stages))} has failed; the log says why")

    def one(self, stage: str, *words: str, until: float | None = None, **how: Any) -> bool:
        """A stage from start to end."""
        job = self.workers.run(stage, *words, **how)
        return self.close(job, until=self.began + self.total if until is None else until)

    def close(self, job: Job, *, until: float, **facts: Any) -> bool:
        """Waits for a stage, ends it where it is late, and notes how it went."""
        status = job.wait(until)
        if status is None:
            self.say(f"{job.name} is out of time")
            job.stop(patience=3.0)
        seconds = round(time.time() - job.began, 1)
        self.note(job.name, seconds=seconds, status="late" if status is None else status, **facts)
        return status == 0

    def note(self, name: str, **facts: Any) -> None:
        self.stages[name] = self.stages.get(name, {}) | facts
        self.results.put(stages=self.stages)
        self.say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))

    def begin_with_earlier(self) -> None:
        """The models of the earlier leg, as checkpoints of step 0."""
        for kind in TRAINED if self.earlier is not None else ():
            model, start = self.work / "earlier" / kind, self.work / "earlier" / f"{kind}-start"
            if results.restore(self.earlier, kind, model):
                decays = self.values[kind]["ema_decay"]
                results.first_checkpoint(kind, model, start, averages=len(decays) if isinstance(decays, list) else 1)
                self.starts[kind] = start

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, kind: str, *, beside: Job | None = None) -> bool:
        """Times the training's first steps, sets its steps to fit, goes on with them; in any case a model is left."""
        end = self.end(kind) - plan.FINISHING * self.total
        name, start = f"{kind}-{self.d}", self.starts.get(kind)
        if f"{kind}.steps" in self.fixed:
            return self.train_on(kind, start, end=end)
        self.change(**{f"{kind}__steps": plan.MANY_STEPS})
        job = self.workers.run(kind, self.d, start=start)
        rate = self.calibrate(job, beside=beside, end=end)
        if rate is None and job.runs and os.environ.get("IFM_COMPILE", "off") != "off":
            self.say(f"{name}: no step yet: once more without compiling")
            job.process.kill()
            job.process.wait()
            os.environ["IFM_COMPILE"] = "off"
            job = self.workers.run(kind, self.d, start=start, environment={"IFM_COMPILE": "off"})
            rate = self.calibrate(job, beside=beside, end=end)
        job.stop()
        found = newest(self.work / CHECKPOINTS, f"{name}-*/step-*.safetensors")
        if rate is None or found is None:
            self.note(name, status=job.process.returncode, planned="no steps were seen")
            return False
        done, weight = step_of(found), self.weight(kind)
        steps = plan.training_steps(rate, done=done, seconds=end - time.time(), weight=weight)
        self.change(**{f"{kind}__steps": steps})
        images = rate.steps * self.values[kind]["batch_size"]
        facts = {"images_per_second": round(images), "start_seconds": round(rate.start, 1), "calibrated_steps": done}
        self.note(name, planned_steps=steps, **facts)
        self.rate = images
        return self.train_on(kind, found.parent, end=end)

    def calibrate(self, job: Job, *, beside: Job | None, end: float) -> plan.Rate | None:
        """The rate of a training once its rows span long enough, nothing else at work beside it.

        None where no two rows came within half of the time that there is.
        """
        latest = job.began + 0.5 * (end - job.began)
        first = 0
        while job.runs and time.time() < latest:
            time.sleep(0.2)
            rows = job.rows()
            if beside is not None and beside.runs:
                first = len(rows)
                continue
            rows = rows[min(first, max(len(rows) - 1, 0)) :]
            if len(rows) > 1 and rows[-1]["time"] - rows[0]["time"] >= CALIBRATION * self.total:
                break
        rows = job.rows()
        if len(rows) < 2:
            return None
        timed = rows[min(first, len(rows) - 2) :]
        rate = plan.Rate.of(timed, began=job.began)
        return plan.Rate(rate.steps, max(0.0, rows[0]["time"] - job.began - rows[0]["step"] / rate.steps))

    def weight(self, kind: str) -> float:
        """The mean cost of a step over that of the first ones."""
        if kind == "teacher":
            return 1.0
        config = parse(self.values, source="the leg's params")
        anchored = config.anchor.self_probability if config.anchor.policy == "self" else 0.0
        return plan.step_weight(config.flow, anchored=anchored, guided=config.guidance.kind != "none")

    def train_on(self, kind: str, start: Path | None, *, end: float) -> bool:
        """The training proper. At its end in time it is stopped, and saved with the average of the step it came to."""
        name = f"{kind}-{self.d}"
        job = self.workers.run(kind, self.d, start=start)
        status = job.wait(end)
        reached = self.values[kind]["steps"]
        if status is None:
            job.stop()
        if status != 0:
            found = newest(self.work / CHECKPOINTS, f"{name}-*/step-*.safetensors")
            if found is None or not step_of(found):
                self.note(name, status=job.process.returncode, seconds=round(time.time() - job.began, 1))
                return False
            reached = step_of(found)
            self.fixed.discard(f"{kind}.steps")
            self.change(**{f"{kind}__steps": reached})
            last = self.workers.run(kind, self.d, start=found.parent)  # has nothing to train: saves the average
            status = last.wait(self.began + self.total)
        curve = results.curve(self.work / paths.curve(name))
        batch = self.values[kind]["batch_size"]
        facts = {"steps": reached, "images": reached * batch, "status": status}
        self.results.put(curves=self.results.values.get("curves", {}) | {name: curve})
        self.note(name, seconds=round(time.time() - job.began, 1), **facts)
        return status == 0

    # --- paths, samples, figures --------------------------------------------------------------------------------------

    def _path_costs(self) -> tuple[int, int]:
        """Evaluations of the denoiser in one of the teacher's paths, and of networks: a guided denoiser asks two."""
        from ifm import dynamics
        from ifm.guidance import Guidance, solver_evaluations
        from ifm.solver import solver_nfe

        config = parse(self.values, source="the leg's params")
        ode = dynamics.of_params(self.d, config.ode)
        times = ode.solver_times(config.trajectories.solver_steps, rho=config.trajectories.rho)
        return solver_nfe(len(times) - 1), solver_evaluations(ode, times, Guidance.of(config.guidance))

    def paths(self) -> None:
        """As many of the teacher's paths as there is time for; those that were solved, where it was too short."""
        name, (whole, nfe) = f"trajectories-{self.d}", self._path_costs()
        precision = self.values["trajectories"].get("precision", "no")
        rate = plan.FORWARD_A_STEP[precision] * getattr(self, "rate", 1000.0)
        end = self.end("trajectories")
        seconds = end - time.time()
        count, shard = plan.path_count(rate, seconds=seconds, nfe=nfe)
        self.change(trajectories__count=count, trajectories__shard_size=shard)
        job = self.workers.run("trajectories", self.d)
        done = self.close(job, until=end, paths=self.values["trajectories"]["count"])
        if not done:
            found = newest(self.work / CHECKPOINTS, f"{name}-*/shard-*.npy")
            kept = [] if found is None else sorted(found.parent.glob("shard-*.npy"))
            count = sum(len(np.load(file, mmap_mode="r", allow_pickle=False)) for file in kept)
            if not count:
                raise UserError(f"{name} has solved no shard")
            self.fixed -= {"trajectories.count", "trajectories.shard_size"}
            self.change(trajectories__count=count)
            self.need(self.one("trajectories", self.d, start=found.parent))
        count = self.values["trajectories"]["count"]
        seconds = max(self.stages[name]["seconds"], 1.0)
        self.evaluations = count * whole / seconds
        self.note(name, paths=count, evaluations_per_second=round(count * nfe / seconds))

    def select(self) -> None:
        """The best average and samplers; where there is no time for that, the flow as it was trained."""
        self.results.model("flow", self.work / paths.trained(self.d))
        if not self.one("select", self.d, until=self.end("select")):
            self.change(select__count=0)
            self.need(self.one("select", self.d))

    def judge(self) -> None:
        """Samples and figures, with as many images as there is time for; a second time with few where that fails."""
        end = self.end("sample")
        seconds = end - time.time()
        steps = self.values["sample"]["flow_steps"]
        fits = {"flow_steps": steps, "batch": self.values["sample"]["batch_size"]}
        self.change(**named(plan.sampling(self.evaluations, seconds=seconds, **fits)))
        beside = self.workers.run("diagnose", self.d) if self.many_cores else None
        if not self.one("sample", self.d, until=end + 0.02 * self.total):
            self.fixed -= {"sample.count", "evaluate.teacher_nfe"}
            self.change(**named({"sample.count": 1000, "sample.batch_size": 500, "evaluate.teacher_nfe": [9]}))
            self.need(self.one("sample", self.d))
        self.results.copy(self.work / paths.samples(self.d) / "grids" / "side_by_side.png", "grids.png")
        self.need(self.one("evaluate", self.d))
        figures = read_json(self.work / paths.METRICS / f"{self.d}.json")
        headline = read_json(self.work / paths.headline(self.d))
        self.results.put(
            figures=figures, headline=headline, reference=read_json(self.work / paths.METRICS / "reference.json")
        )
        for name, row in figures.items():
            self.say(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float)))
        if beside is None:
            self.one("diagnose", self.d)
        else:
            self.close(beside, until=self.began + self.total)

    def report(self) -> bool:
        """The pipeline's page."""
        done = self.one("report")
        self.results.copy(self.work / paths.REPORTS / "index.html", "report.html")
        return done


def named(values: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in values.items()}


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written at."""
    return int(checkpoint.stem.rpartition("-")[2])


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
