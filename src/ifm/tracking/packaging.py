"""A flow as an MLflow model that draws images, for mlflow.pyfunc.load_model and `mlflow models serve`.

Nothing is pickled. The model consists of `serving.py` (MLflow's models from code), a copy of the flow's folder, and a
copy of this package.
"""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

from ifm import modalities
from ifm.errors import UserError
from ifm.files import read_json

REQUIREMENTS = ("torch", "diffusers", "safetensors", "numpy", "pandas", "pydantic", "accelerate", "mlflow")


def package(model: Path, out: Path) -> None:
    """Writes the MLflow model `out` of the flow in the folder `model`. Raises UserError for any other folder."""
    description = _description(model)
    if out.exists():
        raise UserError(f"--out {out}: is there; remove it or name another folder")
    from ifm.tracking import store

    store.quiet()
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    from ifm.tracking.serving import CLASS, DEFAULTS, GUIDANCE
    from ifm.use.shipped import copy_code

    # A model without classes has the last two as well: MLflow drops unknown columns without a word.
    columns = {name: (DataType.long, value) for name, value in DEFAULTS.items()}
    columns |= {CLASS: (DataType.string, None), GUIDANCE: (DataType.double, None)}
    shape = tuple(description["image_shape"])
    drawn = TensorSpec(np.dtype(modalities.of(description).dtype), (-1, *shape), name=None)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.pyfunc.save_model(
            out,
            python_model=str(here / "serving.py"),
            artifacts={"flow": str(model)},
            code_paths=[str(copy_code(Path(temporary)))],
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            signature=ModelSignature(
                inputs=Schema([ColSpec(kind, name, required=False) for name, (kind, _) in columns.items()]),
                outputs=Schema([drawn]),
                params=ParamSchema([ParamSpec(name, kind, value) for name, (kind, value) in columns.items()]),
            ),
            input_example=pd.DataFrame([DEFAULTS]),
            metadata={"ifm": json.dumps(description)},
        )


def _description(model: Path) -> dict[str, Any]:
    """The ifm.json of a flow's folder."""
    try:
        description = read_json(model / "ifm.json")
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: is no model's folder (no ifm.json); name e.g. models/flow/ve") from error
    if description.get("kind") != "flow":
        raise UserError(f"--model {model}: is a {description.get('kind')}; only a flow draws samples in one evaluation")
    return description
