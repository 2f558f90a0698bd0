"""Integration Flow (arXiv 2504.20179) for diffusers: noise becomes an image in one evaluation, or in a few.

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    images = pipe(batch_size=16).images

It needs torch and diffusers, nothing else. Everything about the model is in model_index.json and unet/.
"""

import math

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

SAMPLERS = ("one_step", "anchor", "renoise", "chain")
COSINE_TURN = math.pi / 2 / 1.008  # of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), with its offset 0.008
COSINE_START = COSINE_TURN * 0.008


class IntegrationFlowPipeline(DiffusionPipeline):
    """g(x_anchor, x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise, x_anchor), an estimate of x_0. Data are in [-1, 1].

    x_t = a(t) x_0 + b(t) z: `ve` has 1 and t, `pfgmpp` too with z multivariate Student-t of `augmented_dimensions`
    degrees of freedom, `rf` has 1 - t and t, `trig` cos t and sin t, `vp` the linear or cosine schedule of DDPM.
    With a `vae` all of this is on its scaled latents, and images are what its decoder makes of them.
    """

    model_cpu_offload_seq = "embedding->unet->vae"
    _optional_components = ["embedding", "vae"]  # noqa: RUF012, as diffusers has it
    _labels: torch.Tensor | None = None  # of the images that a call is making
    _w: torch.Tensor | None = None  # their guidance scales

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel,
        dynamics: str = "ve",
        t_min: float = 0.002,
        t_max: float = 80.0,
        sigma_data: float = 0.5,
        augmented_dimensions: float | None = None,
        schedule: str | None = None,
        beta_min: float | None = None,
        beta_max: float | None = None,
        classes: list[str] | None = None,
        shares: list[float] | None = None,
        scheme: str = "edm",
        takes_anchor: bool = True,
        anchor_input: str = "channels",
        two_times: bool = False,
        time_scale: float = 100.0,
        anchor_grid: int = 8,
        position_features: int = 8,
        renoise_t_min: float = 0.002,
        renoise_rho: float = 7.0,
        samplers: dict[str, dict] | None = None,
        guidance_range: list[float] | None = None,
        guidance_scale: float = 1.0,
        embedding: torch.nn.Module | None = None,
        vae: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, embedding=embedding, vae=vae)
        self.register_to_config(
            dynamics=dynamics,
            t_min=t_min,
            t_max=t_max,
            sigma_data=sigma_data,
            augmented_dimensions=augmented_dimensions,
            schedule=schedule,
            beta_min=beta_min,
            beta_max=beta_max,
            classes=classes,
            shares=shares,
            scheme=scheme,
            takes_anchor=takes_anchor,
            anchor_input=anchor_input,
            two_times=two_times,
            time_scale=time_scale,
            anchor_grid=anchor_grid,
            position_features=position_features,
            renoise_t_min=renoise_t_min,
            renoise_rho=renoise_rho,
            samplers=samplers,
            guidance_range=guidance_range,
            guidance_scale=guidance_scale,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sampler: str | None = None,
        times: list[float] | None = None,
        latents: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        noise: list[torch.Tensor] | None = None,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Images in `num_inference_steps` evaluations.

        sampler: for several steps `anchor` (x_T fixed, the estimate fed back as anchor), `renoise` (the estimate
        noised to the next smaller time) or `chain` (through sub-intervals; flows of two times). None: the one that
        measured best for so many steps (`config.samplers`), else chain, anchor or renoise, the first that the flow can
        do. times: of the evaluations of `renoise`, t_max first.
        latents: x_T [B, C, H, W] (of a vae's latents where there is one), scaled as `draw_prior` scales it; anchor:
        N(0, I), of the same shape; noise: for `renoise`, z of every step after the first. Each is drawn from
        `generator` where it is None.
        class_labels: numbers or names (`config.classes`) of a flow with classes, one for all images or in turn; None:
        drawn by the data's shares (`config.shares`). x_T and noise from a generator are the same whichever it is.
        guidance_scale: w of D_0 + w (D_c - D_0), which this one evaluation has inside, where the flow takes a range of
        it (`config.guidance_range`); None: `config.guidance_scale`.
        output_type: `pil`, `np` (float [B, H, W, C] in [0, 1]), `pt` (float [B, C, H, W] in [0, 1]) or `latent`
        (x_0_hat, not decoded and not clipped).
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"unknown output_type {output_type!r}; known: pil, np, pt, latent")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        sampler, times = self._sampler(sampler, num_inference_steps, times)
        numbers, w = self._class_numbers(class_labels), self._guidance(guidance_scale)
        x_T = self.draw_prior(batch_size, generator) if latents is None else latents
        x_T = x_T.to(self._execution_device, torch.float32)
        x_anchor = None
        if self.config.takes_anchor:
            x_anchor = randn_tensor(x_T.shape, generator=generator, device=x_T.device) if anchor is None else anchor
            x_anchor = x_anchor.to(x_T.device, torch.float32)
        self._labels = self._class_labels(numbers, len(x_T), generator)
        self._w = None if w is None else torch.full((len(x_T),), w, device=x_T.device)
        if sampler == "chain":
            x_0_hat = self._chain(x_T, x_anchor, num_inference_steps)
        elif sampler == "renoise":
            x_0_hat = self._renoise(x_T, x_anchor, times, generator, noise)
        else:
            x_0_hat = self._refine(x_T, x_anchor, num_inference_steps)
        images = self._finish(x_0_hat, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _class_numbers(self, given: int | str | list[int | str] | torch.Tensor | None) -> list[int] | None:
        """Of what `__call__` takes. Raises ValueError where they are no classes, or not wanted."""
        classes = self.config.classes
        if given is None:
            return None
        if classes is None:
            raise ValueError("this flow takes no class_labels")
        asked = given.tolist() if isinstance(given, torch.Tensor) else given
        asked = asked if isinstance(asked, list | tuple) else [asked]
        for c in asked:
            if isinstance(c, str) and classes.count(c) > 1:
                which = [i for i, name in enumerate(classes) if name == c]
                raise ValueError(f"{c!r} is the name of the classes {which}; ask by number")
        numbers = [classes.index(c) if isinstance(c, str) and c in classes else c for c in asked]
        wrong = [c for c in numbers if not isinstance(c, int) or not 0 <= c < len(classes)]
        if wrong or not numbers:
            raise ValueError(f"class_labels must be from 0 to {len(classes) - 1}, or names, got {wrong or given}")
        if absent := [classes[c] for c in numbers if not self.config.shares[c]]:
            raise ValueError(f"the training data have nothing of class {absent[0]!r}, so the flow did not learn it")
        return numbers

    def _guidance(self, given: float | None) -> float | None:
        """What the network is told; None where it takes no scale. Raises ValueError for what the flow does not take."""
        scales, usual = self.config.guidance_range, self.config.guidance_scale
        w = usual if given is None else given
        if scales is None and w != usual:
            raise ValueError(f"this flow has guidance_scale {usual:g} inside and takes no other, got {w}")
        if scales is not None and not scales[0] <= w <= scales[1]:
            raise ValueError(f"guidance_scale must be from {scales[0]:g} to {scales[1]:g}, got {w}")
        return None if scales is None else float(w)

    def _class_labels(self, numbers: list[int] | None, n: int, generator) -> torch.Tensor | None:
        """int64 [n]: the numbers in turn, or by the shares. One normal number each is drawn in either case."""
        if self.config.classes is None:
            return None
        z = randn_tensor((n, 1), generator=generator, device=self._execution_device)[:, 0].double()
        if numbers is not None:
            return torch.tensor(numbers, device=z.device)[torch.arange(n, device=z.device) % len(numbers)]
        ends = torch.tensor(self.config.shares, dtype=torch.float64, device=z.device).cumsum(0)
        u = torch.special.ndtr(z) * ends[-1]
        return torch.searchsorted(ends, u, right=True).clamp_max(len(ends) - 1)

    # --- samplers -------------------------------------------------------------------------------------------------

    def _sampler(self, sampler: str | None, steps: int, times: list[float] | None) -> tuple[str, list[float]]:
        """The sampler's name, and the times of `renoise`. Raises ValueError for what this flow cannot do."""
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        c = self.config
        if times is not None and (sampler != "renoise" or len(times) != steps or times[0] != c.t_max):
            raise ValueError(f"times are for sampler renoise: one for each of {steps} steps, the first {c.t_max:g}")
        if times is not None and not all(c.t_min <= t <= c.t_max for t in times):
            raise ValueError(f"times of renoise must be from {c.t_min:g} to {c.t_max:g}, got {times}")
        if sampler is None:
            return self._best(steps)
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
        can = {"chain": c.two_times, "anchor": c.takes_anchor, "renoise": True}
        others = ", ".join(name for name, is_able in can.items() if is_able)
        if sampler == "chain" and not c.two_times:
            raise ValueError(f"sampler chain needs a flow of two times; for several steps this one has {others}")
        if steps > 1 and (sampler == "one_step" or (sampler == "anchor" and not c.takes_anchor)):
            raise ValueError(f"{steps} steps of sampler {sampler} would repeat the first; this flow has {others}")
        return sampler, times or self._times(steps)

    def _best(self, steps: int) -> tuple[str, list[float]]:
        """What measured best for so many steps, with the times of `renoise`.

        Of a number that was not measured: the first times of the next larger one; else the largest smaller one, whose
        times go on down to the last time of the paths' grid, geometric in the noise level, or which has more steps.
        """
        c = self.config
        known = {int(n): way for n, way in (c.samplers or {}).items()}
        if steps in known:
            return known[steps]["sampler"], list(known[steps].get("times") or self._times(steps))
        if steps == 1:
            return "one_step", [c.t_max]
        larger = min((n for n in known if n > steps), default=None)
        if larger is not None and known[larger].get("times"):
            return "renoise", list(known[larger]["times"][:steps])
        smaller = max((n for n in known if 1 < n < steps), default=None)
        if smaller is None:
            return "chain" if c.two_times else "anchor" if c.takes_anchor else "renoise", self._times(steps)
        times = list(known[smaller].get("times") or [])
        if not times:
            return known[smaller]["sampler"], self._times(steps)
        least, more = c.renoise_t_min, steps - smaller
        high, low = (math.tan(self._angle(t)) for t in (max(times[-1], least), least))
        further = [self._time_at(math.atan(high * (low / high) ** (i / more))) for i in range(1, more)]
        return "renoise", [*times, *further, least]

    def _times(self, steps: int) -> list[float]:
        """EDM's grid of steps + 1 points from t_max (Karras et al. 2022, eq. 5), the last one left out.

        It is even in the noise level b / a, for rf in t.
        """
        rho = self.config.renoise_rho
        high, low = (self._level(t) ** (1 / rho) for t in (self.config.t_max, self.config.renoise_t_min))
        times = [self._time_of_level((high + i / steps * (low - high)) ** rho) for i in range(steps)]
        return [self.config.t_max, *times[1:]]

    def _refine(self, x_T: torch.Tensor, x_anchor: torch.Tensor | None, steps: int) -> torch.Tensor:
        x_0_hat = x_T
        for _ in self.progress_bar(range(steps)):
            x_0_hat = self.integrate(x_T, self.config.t_max, x_anchor)
            x_anchor = None if x_anchor is None else x_0_hat
        return x_0_hat

    def _renoise(self, x_T, x_anchor, times, generator, noise) -> torch.Tensor:
        """The estimate noised to each time after the first and mapped again, itself the anchor."""
        x_t = x_0_hat = x_T
        for i, t in enumerate(self.progress_bar(times)):
            if i:
                z = self.draw_noise(tuple(x_T.shape), generator) if noise is None else noise[i - 1]
                a, b = self._coefficients(t)
                x_t = a * x_0_hat + b * z.to(x_T.device, x_T.dtype)
            x_0_hat = self.integrate(x_t, t, x_anchor)
            x_anchor = None if x_anchor is None else x_0_hat
        return x_0_hat

    def _chain(self, x_T: torch.Tensor, x_anchor: torch.Tensor | None, steps: int) -> torch.Tensor:
        """Sub-intervals that are even in the angle arctan(b / (a sigma_data)), from t_max down to t_min."""
        widest = self._angle(self.config.t_max)
        times = [self._time_at(widest * (1 - i / steps)) for i in range(1, steps + 1)]
        x, t = x_T, self.config.t_max
        for s in self.progress_bar(times):
            x, t = self.integrate(x, t, x_anchor, s=s), s
        return x

    # --- the flow -------------------------------------------------------------------------------------------------

    def integrate(
        self, x_t: torch.Tensor, t: float, x_anchor: torch.Tensor | None, *, s: float | None = None
    ) -> torch.Tensor:
        """x_s_hat, by default x_0_hat, from x_t [B, C, H, W] at time t in one evaluation."""
        c_skip, c_out, c_in, c_noise, c_end = self._preconditioning(t, self.config.t_min if s is None else s)
        dtype, inputs, times = self.unet.dtype, c_in * x_t, {}
        if x_anchor is not None and self.config.anchor_input == "cross_attention":
            times["encoder_hidden_states"] = self._anchor_tokens(x_anchor).to(dtype)
        elif x_anchor is not None:
            inputs = torch.cat([inputs, x_anchor], dim=1)  # [B, 2 C, H, W]
        for name, value in (("timestep", c_noise), ("class_labels", c_end)):
            if value is not None:
                times[name] = torch.full((len(x_t),), self.config.time_scale * value, device=x_t.device)
        if self.embedding is not None:
            end = None if c_end is None else self.unet.time_proj(times["class_labels"])
            times["class_labels"] = self.embedding(self._labels, self._w, end)
        elif self._labels is not None:
            times["class_labels"] = self._labels
        F_x = self.unet(inputs.to(dtype), return_dict=False, **times)[0]
        return c_skip * x_t + c_out * F_x.to(x_t.dtype)

    def _preconditioning(self, t: float, s: float) -> tuple[float, float, float, float, float | None]:
        """c_skip, c_out, c_in, c_noise and, for flows of two times, what tells the network the end."""
        c = self.config
        s_d = c.sigma_data
        if c.two_times or c.dynamics in ("trig", "vp"):
            delta, here, there = self._angle(t) - self._angle(s), self._scale(t), self._scale(s)
            skip, out = there / here * math.cos(delta), there * math.sin(delta)
            return skip, out, 1 / here, self._angle(t), self._angle(s) if c.two_times else None
        if c.dynamics == "rf":
            if c.scheme == "paper":
                return 1.0, -t, 1.0, t, None
            scale = self._scale(t)
            return (1 - t) * s_d**2 / scale**2, t * s_d / scale, 1 / scale, t, None
        scale, since = self._scale(t), t - c.t_min
        if c.scheme == "paper":
            return c.t_min / t, 1 - c.t_min / t, 1 / scale, math.log(t) / 4, None
        return s_d**2 / (since**2 + s_d**2), s_d * since / scale, 1 / scale, math.log(t) / 4, None

    def _coefficients(self, t: float) -> tuple[float, float]:
        """a and b of x_t = a x_0 + b z."""
        c = self.config
        if c.dynamics == "rf":
            return 1 - t, t
        if c.dynamics == "trig":
            return math.cos(t), math.sin(t)
        if c.dynamics == "vp" and c.schedule == "linear":
            log_a = -c.beta_min / 2 * t - (c.beta_max - c.beta_min) / 4 * t**2
            return math.exp(log_a), math.sqrt(-math.expm1(2 * log_a))
        if c.dynamics == "vp":
            u = COSINE_START + COSINE_TURN * t
            b = math.sqrt(math.sin(COSINE_TURN * t) * math.sin(u + COSINE_START))
            return math.cos(u) / math.cos(COSINE_START), b / math.cos(COSINE_START)
        return 1.0, t

    def _level(self, t: float) -> float:
        """The noise level b / a; for rf t itself."""
        a, b = self._coefficients(t)
        return t if self.config.dynamics == "rf" else b / a

    def _time_of_level(self, level: float) -> float:
        """The inverse of `_level`."""
        c = self.config
        if c.dynamics == "trig":
            return math.atan(level)
        if c.dynamics == "vp" and c.schedule == "linear":
            slope, half = c.beta_max - c.beta_min, math.log1p(level**2) / 2
            return 2 * half / (c.beta_min / 2 + math.sqrt(c.beta_min**2 / 4 + slope * half))
        if c.dynamics == "vp":
            u = math.atan2(math.sqrt(level**2 + math.sin(COSINE_START) ** 2), math.cos(COSINE_START))
            return (u - COSINE_START) / COSINE_TURN
        return level

    def _scale(self, t: float) -> float:
        """The standard deviation of x_t for Gaussian noise."""
        a, b = self._coefficients(t)
        return math.hypot(a * self.config.sigma_data, b)

    def _angle(self, t: float) -> float:
        a, b = self._coefficients(t)
        return math.atan2(b, a * self.config.sigma_data)

    def _time_at(self, angle: float) -> float:
        """The inverse of `_angle`, within [t_min, t_max]."""
        noise = self.config.sigma_data * math.sin(angle)
        if self.config.dynamics == "rf":
            t = noise / (math.cos(angle) + noise)
        else:
            t = self._time_of_level(noise / math.cos(angle))
        return min(max(t, self.config.t_min), self.config.t_max)

    def _anchor_tokens(self, x_anchor: torch.Tensor) -> torch.Tensor:
        """Square patches of the anchor and where they lie: [B, L, C p^2 + 2 position_features]."""
        size, features = x_anchor.shape[-1], self.config.position_features
        divisors = [p for p in range(1, size + 1) if size % p == 0]
        patch = max(p for p in divisors if p == 1 or size // p >= self.config.anchor_grid)
        pixels = torch.nn.functional.unfold(x_anchor, patch, stride=patch).transpose(1, 2)
        side = size // patch
        centres = (torch.arange(side, device=pixels.device, dtype=torch.float32) + 0.5) / side
        angles = centres[:, None] * math.pi * 2.0 ** torch.arange(features // 2, device=pixels.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        places = torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)
        return torch.cat([pixels, places.expand(len(pixels), -1, -1)], dim=2)

    # --- noise and images -----------------------------------------------------------------------------------------

    def draw_noise(self, shape: tuple[int, ...], generator=None) -> torch.Tensor:
        """z: N(0, I), or for pfgmpp that over sqrt(chi2 / D), one chi2 of D degrees of freedom for each image."""
        z = randn_tensor(shape, generator=generator, device=self._execution_device)
        if self.config.dynamics != "pfgmpp":
            return z
        D = self.config.augmented_dimensions
        one_each = generator if isinstance(generator, list) else [generator] * shape[0]
        at = [torch.full((1,), D / 2, device=self._execution_device if g is None else g.device) for g in one_each]
        chi2 = [2 * torch._standard_gamma(a, generator=g) for a, g in zip(at, one_each, strict=True)]
        ratio = torch.cat([c.to(z.device) for c in chi2]) / D  # [B]
        return z * ratio.rsqrt()[:, None, None, None]

    def draw_prior(self, batch_size: int, generator=None) -> torch.Tensor:
        """x_T = b(t_max) z: [B, C, H, W]."""
        config = self.unet.config
        size = config.sample_size
        shape = (batch_size, config.out_channels, *([size, size] if isinstance(size, int) else size))
        return self._coefficients(self.config.t_max)[1] * self.draw_noise(shape, generator)

    @torch.no_grad()
    def decode(self, x_0_hat: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] in [-1, 1], of the vae's scaled latents where there is one."""
        if self.vae is None:
            return x_0_hat
        scale, shift = (getattr(self.vae.config, f"{name}_factor", None) for name in ("scaling", "shift"))
        return self.vae.decode(x_0_hat.to(self.vae.dtype) / (scale or 1.0) + (shift or 0.0), return_dict=False)[
            0
        ].float()

    def _finish(self, x_0_hat: torch.Tensor, output_type: str):
        if output_type == "latent":
            return x_0_hat
        images = self.decode(x_0_hat)
        if output_type in ("pt", "np"):
            unit = (images / 2 + 0.5).clamp(0, 1)
            return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()
        levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in levels]
