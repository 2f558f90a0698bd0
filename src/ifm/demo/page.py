"""The demo's page, in Gradio. Nothing on it is fetched from elsewhere."""

import os
import secrets
from collections.abc import Iterator
from typing import Any

from ifm.demo import drawing
from ifm.demo.drawing import Answer, Asked
from ifm.demo.models import Models, Pair
from ifm.demo.shown import Shown, show

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from gradio import processing_utils

SEEDS = 2**31
ANY = "any"
TITLE = "Noise becomes a sample in one step"
ABOUT = (
    "The flow maps noise to data in one evaluation of its network. The teacher solves an ODE from the same noise. "
    "The same seed gives the same samples."
)
CSS = (
    ".pictures img {image-rendering: pixelated;} .texts textarea {font-family: var(--font-mono);} "
    "footer {display: none !important;}"
)
KEPT = 3600  # seconds for which a file to download is kept
FONT = ("system-ui", "sans-serif")


def theme() -> Any:
    """The reader's own fonts."""
    return gr.themes.Base(font=FONT, font_mono=("ui-monospace", "monospace"))


def build(models: Models) -> gr.Blocks:
    """The page over some models."""
    first = models[models.names[0]]
    with gr.Blocks(title="ifm demo", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
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
                        flow = Panel("Flow", "flow")
                    with gr.Column(min_width=280):
                        teacher_time = gr.Markdown("**Teacher**", elem_id="teacher-time")
                        teacher = Panel("Teacher", "teacher")
                with gr.Accordion("Between two seeds", open=False):
                    with gr.Row():
                        other = gr.Number(1, label="To seed", precision=0, minimum=0, maximum=SEEDS - 1)
                        frames = gr.Slider(2, 16, value=8, step=1, label="Samples on the way")
                        go = gr.Button("From the seed to this one", elem_id="interpolate")
                    way = Panel("From one seed to the other", "way")
        chosen = [name, seed, count, steps, nfe, label, guidance]
        shown = [*flow.parts, flow_time, *teacher.parts, teacher_time]

        def draw(*values: Any) -> Iterator[tuple]:
            yield from answers(models, flow, teacher, *values)

        drawn = {"fn": draw, "inputs": chosen, "outputs": shown, "show_progress": "hidden"}
        page.load(**drawn)
        # A new seed in the box draws by itself: seed.change.
        again.click(lambda: secrets.randbelow(SEEDS), outputs=seed, show_progress="hidden")
        for part in (seed, count, steps, nfe, label, guidance):
            part.change(**drawn, trigger_mode="always_last")
        name.change(lambda one: options(models[one]), inputs=name, outputs=[label, guidance]).then(**drawn)
        # Gradio counts the arguments of a function: these have but one, *values.
        go.click(
            lambda *values: interpolation(models, way, *values), inputs=[*chosen, other, frames], outputs=way.parts
        )
    return page


class Panel:
    """Where samples are shown: a picture, a player and texts, of which the model's modality shows what it has.

    Each can be downloaded: PNG, WAV, TXT.
    """

    def __init__(self, label: str, name: str) -> None:
        """name: the first part of the downloads' names, and of the parts' ids."""
        hidden = {"label": label, "show_label": False, "interactive": False, "visible": False}
        self._name = name
        self.parts = [
            gr.Image(
                **hidden | {"visible": True}, format="png", type="pil", buttons=["download", "fullscreen"],
                elem_id=name, elem_classes="pictures", alt_text=f"samples: {label}",
            ),
            gr.Audio(**hidden, format="wav", type="filepath", buttons=["download"], elem_id=f"{name}-sound"),
            gr.Textbox(
                **hidden, lines=8, max_lines=24, buttons=["copy"], elem_id=f"{name}-texts", elem_classes="texts"
            ),
            gr.DownloadButton("Download TXT", visible=False, size="sm", elem_id=f"{name}-txt"),
        ]  # fmt: skip

    def values(self, shown: Shown) -> tuple:
        """Of the parts, with what there is to see, to hear or to read."""
        read = None if shown.txt is None else shown.txt.decode()
        return (
            gr.Image(shown.picture, visible=shown.picture is not None),
            gr.Audio(self._kept(shown.wav, "wav"), visible=shown.wav is not None),
            gr.Textbox(read, visible=read is not None),
            gr.DownloadButton(value=self._kept(shown.txt, "txt"), visible=read is not None),
        )

    def waits(self) -> tuple:
        """The parts stay as they are."""
        return tuple(gr.skip() for _ in self.parts)

    def _kept(self, data: bytes | None, suffix: str) -> str | None:
        """A file's path in Gradio's cache, which the page clears."""
        if data is None:
            return None
        return processing_utils.save_bytes_to_cache(data, f"{self._name}.{suffix}", self.parts[0].GRADIO_CACHE)


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
        label=pair.classes.get(label),
        guidance=float(guidance) if drawing.scale_of(pair) else None,
    )


def answers(models: Models, ours: Panel, theirs: Panel, name: str, *values: Any) -> Iterator[tuple]:
    """The flow's samples as soon as they are there, then the teacher's beside them."""
    pair = models[name]
    asked = asked_for(pair, *values)
    flow = drawing.flow(pair, asked)
    first = (*ours.values(_shown(flow)), f"**Flow**: {flow.time}")
    yield *first, *theirs.waits(), gr.skip()
    teacher = drawing.teacher(pair, asked)
    if teacher is None:
        yield *first, *theirs.values(Shown()), "**Teacher**: none beside this model"
        return
    ratio = f"; {teacher.seconds / flow.seconds:.0f} times the flow's" if flow.seconds else ""
    yield *first, *theirs.values(_shown(teacher)), f"**Teacher**: {teacher.time}{ratio}"


def _shown(answer: Answer) -> Shown:
    return show(answer, columns=max(1, round(len(answer.samples) ** 0.5)))


def interpolation(models: Models, panel: Panel, name: str, *values: Any) -> tuple:
    """One row of samples from one seed to the other; values: as of `answers`, then the other seed and how many."""
    *asked, last, frames = values
    pair = models[name]
    found = drawing.between(pair, asked_for(pair, *asked), int(last or 0), frames=int(frames))
    return panel.values(show(found, columns=int(frames)))
