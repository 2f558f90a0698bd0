"""How to use an exported flow, as code for its model card."""

import torch

from ifm.conditions.classes import Classes
from ifm.model import IntegrationFlow
from ifm.use import flowmap
from ifm.use.drawing import data_shape, modality
from ifm.use.graphs import named_example

N = 16  # samples of the example

DIFFUSERS = """```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{id}", custom_pipeline="{id}", trust_remote_code=True)
images = pipe(batch_size={n}).images  # one evaluation; num_inference_steps=2, 4, ... for more
{classes}```

`pipeline.py` is short and needs torch and diffusers alone: read it before you trust it. With `ifm` installed:

```python
from ifm import IntegrationFlow

images = IntegrationFlow.from_pretrained("{id}").sample({asked})  # uint8 [{n}, C, H, W]
```"""
PIPE_CLASSES = "images = pipe(batch_size={n}, class_labels=[{c}]).images  # numbers or names in turn, else by shares\n"
PIPE_SCALE = "images = pipe(batch_size={n}, class_labels=[{c}], guidance_scale={w:g}).images\n"
ONNX = """```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
{inputs}
x_0_hat = session.run(None, {{{feed}}})[0]{range}
```"""
PT2 = """```python
import torch

model = torch.export.load("model.pt2").module()
{inputs}
x_0_hat = model({arguments}){range}
```"""


def code(form: str, flow: IntegrationFlow, *, where: str) -> str:
    """Markdown. form: of `ifm export --format`; where: the folder or Hub id that holds the files."""
    if form == "diffusers":
        has_classes = isinstance(flow.condition_kind, Classes)
        scale = flow.condition_kind.scale if has_classes else None
        first = flow.condition_kind.index("all")[0] if has_classes else None
        lines = PIPE_CLASSES.format(n=N, c=first) if has_classes else ""
        lines += "" if scale is None else PIPE_SCALE.format(n=N, c=first, w=scale[1])
        return DIFFUSERS.format(id=where, n=N, classes=lines, asked=f"{N}, classes={first}" if has_classes else N)
    if form == "flowmap":
        return flowmap.code(flow, where=where, shape=data_shape(flow))
    names, made_of = list(named_example(flow, 1)), modality(flow)
    made = _inputs(flow, "numpy" if form == "onnx" else "torch")
    return {"onnx": ONNX, "pt2": PT2}[form].format(
        inputs="\n".join(f"{name} = {made[name]}" for name in names),
        feed=", ".join(f'"{name}": {name}' for name in names),
        arguments=", ".join(names),
        range=f"  # {made_of.noun} in {made_of.range}" if made_of.range else "",
    )


def _inputs(flow: IntegrationFlow, library: str) -> dict[str, str]:
    """Code for each input of a graph, with a remark."""
    shape = (N, *data_shape(flow))
    draw = f"np.random.standard_normal({shape}).astype(np.float32)" if library == "numpy" else f"torch.randn{shape}"
    scale = float(flow.dynamics.coefficients(torch.tensor([flow.dynamics.t_max], dtype=torch.float64)).b)
    D = getattr(flow.dynamics, "augmented_dimensions", None)
    remark = f"  # then divide each sample by sqrt(chi2 / {D:g}), chi2 of {D:g} degrees of freedom" if D else ""
    found = {
        "x_T": f"{'' if scale == 1 else f'{scale:g} * '}{draw}{remark}",
        "x_anchor": f"{draw}  # the anchor starts as noise",
    }
    if isinstance(flow.condition_kind, Classes):
        short = "np" if library == "numpy" else "torch"
        learnt, known = flow.condition_kind.index("all"), len(flow.condition_kind.classes)
        turns = f"{short}.arange({N}) % {known}" if len(learnt) == known else f"{short}.full(({N},), {learnt[0]})"
        found["class_labels"] = f"{turns}  # int64: {'classes in turn' if len(learnt) == known else 'one class'}"
        low, high = flow.condition_kind.scale or (1, 1)
        w = flow.condition_kind.usual_scale
        full = "np.full({}, {}, np.float32)" if library == "numpy" else "torch.full(({},), {})"
        found["guidance"] = f"{full.format(N, w)}  # from {low:g} to {high:g}"
    return found
