"""A public model as F of every Gaussian dynamics: asked at the time of equal noise level, answered in ifm's terms."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ifm.adapters import MODELS, entry_of, schedules
from ifm.adapters.clocks import CLOCKS
from ifm.adapters.fits import check_model, layer_counts
from ifm.adapters.predictions import PREDICTIONS
from ifm.conditions.base import Condition, ConditionKind
from ifm.dynamics.base import expand
from ifm.files import write_json
from ifm.networks.base import CONFIG, Network, check_weights, described, kind_of, read_config
from ifm.schema import load

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' own name
LEAST = 1e-12  # stands for sin(phi) = 0, as at t = 0 of rf, which consistency asks at
# Noise levels in units of sigma_data: above the first a flow asks its model at lower ones, which rise to the second.
FLOW_TOP, FLOW_CEILING = 2.5, 5.0  # docs/teachers.md


class AdaptedNetwork(Network):
    """F: (y = x_t / lambda [B, C, H, W], c_noise [B]) -> sin(theta) x_0_hat / s_d - cos(theta) z_hat.

    This is what EDM's preconditioning asks of a network: c_skip x_t + c_out F is then x_0_hat, for every dynamics whose
    c_skip, c_out and c_in are `Dynamics.teacher_preconditioning`'s. theta comes from c_noise by `clock`; the model is
    asked at tan(phi) = s_d tan(theta), with w = cos(phi) x_0 + sin(phi) z as its state.

    Noise levels that the model was not trained for are answered from the nearest one: above, the state is scaled onto
    it (the same z), for a flow onto one a little higher (`_asked`); below, x_0_hat = w / cos(phi) - tan(phi) z_hat.
    Where the scheduler says clip_sample, x_0_hat is clipped: an error of epsilon is 1 / cos(phi) times as large in it.
    A second half of the output, a learned variance, is cut off. With `takes_anchor` the inputs have the anchor's
    channels after y's.
    """

    class_names = ("AdaptedNetwork",)
    two_times = False

    def __init__(
        self,
        model: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        clock: str,
        takes_anchor: bool = False,
        top: float | None = None,
        ceiling: float | None = None,
        clips: bool = True,
        condition: ConditionKind | None = None,
    ) -> None:
        """scheduler: the content of scheduler_config.json; shape: (C, H, W) of the data; top: a noise level above which
        the model is asked at lower ones, which rise on to `ceiling`, or stay at top where that is None; clips: whether
        clip_sample holds (see `for_flow`).
        """
        super().__init__()
        self.model, self.scheduler = model, dict(scheduler)
        self.schedule, self.prediction = schedules.read(scheduler)
        self.clips, self.clip = clips, schedules.clip_of(scheduler) if clips else None
        self.shape, self.sigma_data, self.clock, self.top = tuple(shape), sigma_data, clock, top
        self._ceiling = ceiling
        self.takes_anchor, self.condition_kind = takes_anchor, condition
        self.entry = entry_of(MODELS, type(model).__name__, what="the model")
        self.first_layer = f"model.{self.entry.first_layer}"
        self.low = self.schedule.low
        self.high = self.schedule.high if top is None else min(self.schedule.high, math.atan(top))
        self.ceiling = self.high if ceiling is None else min(self.schedule.high, math.atan(ceiling))
        check_model(model.config, self.entry, shape=shape, takes_anchor=takes_anchor, condition=condition)
        if clock not in CLOCKS:
            raise ValueError(f"unknown clock {clock!r}; known: {', '.join(CLOCKS)}")

    @classmethod
    def build(cls, **options: Any) -> Self:
        raise ValueError("a public model is read (teacher.kind: pretrained), not built")

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.shape

    def forward(self, inputs: Tensor, c_noise: Tensor, *, condition: Condition | None = None) -> Tensor:
        self.check(c_end=None, condition=condition)
        channels = self.shape[0]
        y, anchor = inputs[:, :channels], inputs[:, channels:]
        theta = CLOCKS[self.clock](c_noise, self.sigma_data)
        phi = torch.atan2(self.sigma_data * theta.sin(), theta.cos())
        asked = self._asked(phi)
        above, below = expand(phi > self.high, y) > 0, expand(phi < self.low, y) > 0
        cos, sin = expand(phi.cos(), y), expand(phi.sin(), y)
        near, far = expand(asked.cos(), y), expand(asked.sin(), y)

        w = y * expand((theta.sin() ** 2 + (theta.cos() / self.sigma_data) ** 2).rsqrt(), y)
        state = w * torch.where(above, far / sin, near / cos)
        out = self._ask(state * expand(self.schedule.scale(asked), y), anchor, asked, condition).to(y.dtype)
        x_0, z = PREDICTIONS[self.prediction](state, out, near, far, self.schedule.sigma_data)
        x_0 = torch.where(below, (w - sin * z) / cos, x_0)
        if self.clip is not None:
            x_0 = x_0.clamp(-self.clip, self.clip)
            above = torch.ones_like(above)  # z follows from the clipped x_0
        z = torch.where(above, (w - cos * x_0) / sin.clamp_min(LEAST), z)  # at t = 0 any z will do, but no NaN
        return expand(theta.sin(), y) * x_0 / self.sigma_data - expand(theta.cos(), y) * z

    def _asked(self, phi: Tensor) -> Tensor:
        """The angle of the level that the model is asked at, where the state's is phi.

        From `high` to pi / 2 it rises on to `ceiling`, the level evenly in the angle: a flow must tell times apart
        there, too.
        """
        if self.ceiling == self.high:
            return phi.clamp(self.low, self.high)
        beyond = (phi - self.high).clamp_min(0) / (math.pi / 2 - self.high)
        level = math.tan(self.high) + beyond * (math.tan(self.ceiling) - math.tan(self.high))
        return torch.where(beyond > 0, torch.atan(level), phi.clamp(self.low, self.high))

    def _ask(self, x: Tensor, anchor: Tensor, phi: Tensor, condition: Condition | None) -> Tensor:
        """The model's output without a learned variance: [B, C, H, W]."""
        labels = None if condition is None else condition.labels
        if labels is None and self.entry.null_class:
            labels = torch.full((len(x),), self.model.config[self.entry.classes], device=x.device)
        told = {} if labels is None else {"class_labels": labels}
        x = torch.cat([x, anchor.to(x.dtype)], dim=1) if self.takes_anchor else x
        return self.model(self.cast(x), self.schedule.time(phi), return_dict=False, **told)[0][:, : self.shape[0]]

    def for_flow(self, *, takes_anchor: bool, top: float | None, ceiling: float | None = None) -> "AdaptedNetwork":
        """A network with these weights for a flow; the anchor's channels start small (`Network.start_from`).

        top, ceiling: noise levels, see `__init__`.

        It does not clip: what is trained needs a gradient where x_0_hat is out of range too.
        """
        config = dict(self.model.config)
        config["out_channels"] = config["out_channels"] or config["in_channels"]
        config["in_channels"] = self.shape[0] * (2 if takes_anchor else 1)
        own = {"takes_anchor": takes_anchor, "top": top, "ceiling": ceiling, "clips": False}
        made = AdaptedNetwork(silent(type(self.model).from_config(config)), **own, **self._around())
        made.start_from(self)
        return made

    def in_a_line(self) -> str:
        """What it is, and the noise levels that it knows."""
        low, high = math.tan(self.low), math.tan(self.high)
        levels = f"{low:.3g} and more" if high > 1e9 else f"{low:.3g} to {high:.3g}"
        said = f"{type(self.model).__name__}, {self.scheduler['_class_name']}, {self.prediction}"
        return f"{said}, noise levels {levels}"

    def _around(self) -> dict[str, Any]:
        return {
            "scheduler": self.scheduler, "shape": self.shape, "sigma_data": self.sigma_data, "clock": self.clock,
            "condition": self.condition_kind,
        }  # fmt: skip

    def save(self, folder: Path) -> list[Path]:
        """config.json, in which the model's and the scheduler's are parts, and diffusers' weights. Both are digested:
        the same weights under another schedule are another network.
        """
        config = {key: value for key, value in self.model.config.items() if not key.startswith("_")}
        told = self._around() | {"shape": list(self.shape), "condition": described(self.condition_kind)}
        told |= {
            "_class_name": self.class_names[0],
            "takes_anchor": self.takes_anchor,
            "top": self.top,
            "ceiling": self._ceiling,
            "clips": self.clips,
        }
        told["model"] = {"_class_name": type(self.model).__name__, **config}
        write_json(folder / CONFIG, told)
        save_file(
            {name: x.detach().cpu().contiguous() for name, x in self.model.state_dict().items()}, folder / WEIGHTS
        )
        return [folder / WEIGHTS, folder / CONFIG]

    @classmethod
    def load(cls, folder: Path) -> Self:
        told = read_config(folder)
        told.pop("_class_name")
        config = told.pop("model")
        kind = load(entry_of(MODELS, config.get("_class_name"), what="the model").model)
        check_weights(folder / WEIGHTS, lambda: kind.from_config(config), counts=layer_counts(config))
        model = silent(kind.from_config(config))
        model.load_state_dict(load_file(folder / WEIGHTS))
        condition = kind_of(told.pop("condition"))
        return cls(model, told.pop("scheduler"), condition=condition, **told | {"shape": tuple(told["shape"])})

    def in_class_slot(self) -> nn.Module:
        """`UNet.in_class_slot` has what an exported pipeline of diffusers needs; here there is no such form."""
        raise ValueError("a flow that started from a public model has no such form")


def silent(model: nn.Module) -> nn.Module:
    """Without a random dropping of labels, which is for training a teacher."""
    for module in model.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0
    return model
