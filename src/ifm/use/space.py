"""A folder that runs as a Space of the Hugging Face Hub: the demo's page, its model and the package's own source.

app.py needs what requirements.txt pins, the versions that are installed here, and nothing else: `ifm` lies beside it.
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

from ifm.errors import UserError
from ifm.files import write_text
from ifm.pretrained import DESCRIPTION, WEAKER, copy_decoder, decoder_of
from ifm.use.card import escape
from ifm.use.shipped import copy_code

MODEL = "model"  # holds flow/ and, where it is asked for, teacher/
COPIED = ("config.json", DESCRIPTION, "*.safetensors", "*.safetensors.index.json")
APP = '''"""Noise becomes a sample in one step: the page of `ifm demo`, for the model beside this file."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent)

from ifm.demo import page
from ifm.demo.models import Models

page.build(Models(["model/flow"])).launch(theme=page.theme(), css=page.CSS, ssr_mode=False, footer_links=[])
'''
ABOUT = """An integration flow ([arXiv 2504.20179](https://arxiv.org/abs/2504.20179)): noise becomes a sample in one
evaluation of its network. "New noise" draws another seed; the same seed gives the same samples.

`app.py` starts the page, here too: `pip install -r requirements.txt gradio=={gradio}`, then `python app.py`. The model
is in `model/flow`; `ifm/` is the package's source.
"""


def write_folder(model: Path, folder: Path, *, title: str, license_id: str | None, teacher: Path | None = None) -> None:
    """Writes everything into an empty folder. model, teacher: folders that `ifm.use.loading.find` found.

    Raises UserError where gradio is not installed, whose version is pinned.
    """
    for name, source in (("flow", model), ("teacher", teacher)):
        if source is not None:
            parts = [source, *([source / WEAKER] if (source / WEAKER).is_dir() else [])]  # which autoguidance asks
            for part in parts:
                (there := folder / MODEL / name / part.relative_to(source)).mkdir(parents=True)
                for file in sorted(file for pattern in COPIED for file in part.glob(pattern)):
                    shutil.copyfile(file, there / file.name)
            copy_decoder(decoder_of(source), folder / MODEL / name)
    copy_code(folder)
    write_text(folder / "app.py", APP)
    write_text(folder / "requirements.txt", "".join(f"{name}=={version(name)}\n" for name in needed()))
    text = ABOUT.format(gradio=version("gradio"))
    write_text(folder / "README.md", f"---\n{front_matter(title, license_id)}\n---\n\n# {escape(title)}\n\n{text}")


def needed() -> list[str]:
    """The packages that the package's core asks for."""
    found = [re.match(r"[\w.-]+", one)[0] for one in importlib.metadata.requires("ifm") or () if "extra ==" not in one]
    return sorted(found, key=str.lower)


def version(name: str) -> str:
    """Of an installed package, without what a build adds (+cpu). Raises UserError."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"--space: {name} is not installed; pip install 'ifm[demo]'") from error


def front_matter(title: str, license_id: str | None) -> str:
    """The YAML by which the Hub starts a Space."""
    from huggingface_hub import SpaceCardData

    return SpaceCardData(
        title=title,
        emoji="🎲",
        colorFrom="indigo",
        colorTo="gray",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        pinned=False,
        tags=["integration-flow", "one-step-generation"],
        **({} if license_id is None else {"license": license_id}),
    ).to_yaml()
