"""The demo's page, in Gradio. Nothing on it is fetched from elsewhere."""

import os
import secrets
from collections.abc import Iterator
from typing import Any

from ifm.demo import drawing
from ifm.demo.drawing import Asked
from ifm.demo.models import Models, Pair

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

SEEDS = 2**31
ANY = "any"
TITLE = "Noise becomes a sample in one step"
ABOUT = (
    "The flow maps noise to data in one evaluation of its network. The teacher solves an ODE from the same noise. "
    "The same seed gives the same samples."
)
CSS = ".pictures img {image-rendering: pixelated;} footer {display: none !important;}"
FONT = ("system-ui", "sans-serif")


def theme() -> Any:
    """The reader's own fonts."""
    return gr.themes.Base(font=FONT, font_mono=("ui-monospace", "monospace"))


def build(models: Models) -> gr.Blocks:
    """The page over some models."""
    first = models[models.names[0]]
    with gr.Blocks(title="ifm demo", analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n\n{ABOUT}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                name = gr.Dropdown(models.names, value=models.names[0], label="Model", elem_id="model")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, elem_id="seed")
                again = gr.Button("New noise", variant="primary", elem_id="new-noise")
                count = gr.Slider(1, 256, value=drawing.usual_count(first), step=1, label="Samples")
                steps = gr.Slider(1, 8, value=1, step=1, label="Steps of the flow", elem_id="steps")
                nfe = gr.Slider(1, 63, value=17, step=2, label="Evaluations of the teacher")
                label = gr.Dropdown([ANY, *first.classes], value=ANY, label="Class", visible=bool(first.classes))
                guidance = guiding(first)
            with gr.Column(scale=3, min_width=300):
                with gr.Row():
                    with gr.Column(min_width=280):
                        flow_time = gr.Markdown("**Flow**", elem_id="flow-time")
                        flow = _picture("Flow", "flow")
                    with gr.Column(min_width=280):
                        teacher_time = gr.Markdown("**Teacher**", elem_id="teacher-time")
                        teacher = _picture("Teacher", "teacher")
                with gr.Accordion("Between two seeds", open=False):
                    with gr.Row():
                        other = gr.Number(1, label="To seed", precision=0, minimum=0, maximum=SEEDS - 1)
                        frames = gr.Slider(2, 16, value=8, step=1, label="Samples on the way")
                        go = gr.Button("From the seed to this one", elem_id="interpolate")
                    way = _picture("From one seed to the other", "way")
        chosen = [name, seed, count, steps, nfe, label, guidance]
        shown = [flow, flow_time, teacher, teacher_time]

        def draw(*values: Any) -> Iterator[tuple]:
            yield from answers(models, *values)

        drawn = {"fn": draw, "inputs": chosen, "outputs": shown, "show_progress": "hidden"}
        page.load(**drawn)
        # A new seed in the box draws by itself: seed.change.
        again.click(lambda: secrets.randbelow(SEEDS), outputs=seed, show_progress="hidden")
        for part in (seed, count, steps, nfe, label, guidance):
            part.change(**drawn, trigger_mode="always_last")
        name.change(lambda one: options(models[one]), inputs=name, outputs=[label, guidance]).then(**drawn)
        # Gradio counts the arguments of a function: these have but one, *values.
        go.click(lambda *values: interpolation(models, *values), inputs=[*chosen, other, frames], outputs=way)
    return page


def _picture(label: str, name: str) -> gr.Image:
    """A picture that can be downloaded as PNG."""
    return gr.Image(
        label=label, show_label=False, format="png", type="pil", interactive=False, buttons=["download", "fullscreen"],
        elem_id=name, elem_classes="pictures", alt_text=f"samples: {label}",
    )  # fmt: skip


def options(pair: Pair) -> tuple[Any, Any]:
    """What can be chosen with this model: classes and guidance."""
    return gr.Dropdown([ANY, *pair.classes], value=ANY, visible=bool(pair.classes)), guiding(pair)


def guiding(pair: Pair) -> gr.Slider:
    """The guidance scales that the flow takes, beginning at 1 or nearest to it."""
    low, high = drawing.scale_of(pair) or (0.0, 1.0)
    there = drawing.scale_of(pair) is not None
    return gr.Slider(low, high, value=min(max(1.0, low), high), step=0.1, label="Guidance", visible=there)


def asked_for(
    pair: Pair, seed: float | None, count: float, steps: float, nfe: float, label: str | None, guidance: float
) -> Asked:
    """The page's values, of which those that this model does not have are left out."""
    return Asked(
        seed=int(seed or 0),
        count=int(count),
        steps=int(steps),
        nfe=int(nfe),
        label=pair.classes.index(label) if label in pair.classes else None,
        guidance=float(guidance) if drawing.scale_of(pair) else None,
    )


def answers(models: Models, name: str, *values: Any) -> Iterator[tuple]:
    """The flow's picture as soon as it is there, then the teacher's beside it."""
    pair = models[name]
    asked = asked_for(pair, *values)
    columns = max(1, round(asked.count**0.5))
    flow = drawing.flow(pair, asked)
    ours = drawing.picture(flow.samples, columns=columns, modality=flow.modality), f"**Flow**: {flow.time}"
    yield *ours, gr.skip(), gr.skip()
    teacher = drawing.teacher(pair, asked)
    if teacher is None:
        yield *ours, None, "**Teacher**: none beside this model"
        return
    ratio = f"; {teacher.seconds / flow.seconds:.0f} times the flow's" if flow.seconds else ""
    yield (
        *ours,
        drawing.picture(teacher.samples, columns=columns, modality=teacher.modality),
        f"**Teacher**: {teacher.time}{ratio}",
    )


def interpolation(models: Models, name: str, *values: Any) -> Any:
    """One row of samples from one seed to the other; values: as of `answers`, then the other seed and how many."""
    *asked, last, frames = values
    pair = models[name]
    found = drawing.between(pair, asked_for(pair, *asked), int(last or 0), frames=int(frames))
    return drawing.picture(found.samples, columns=int(frames), modality=found.modality)
