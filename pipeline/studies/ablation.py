"""`make ablation`: what each part of the method contributes, one change at a time (see study.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ifm.dynamics import PAPER
from pipeline.studies import study
from pipeline.studies.pages import ablation as ablation_page
from pipeline.studies.study import METRICS, TEACHERS, Study, Task

KEY_COLUMNS = (
    "data", "extractor", "dynamics", "variant", "objective", "anchor", "scheme", "distance", "D", "seed", "sampler",
    "steps",
)  # fmt: skip
COLUMNS = (*KEY_COLUMNS, "train_steps", "n_samples", *METRICS, "endpoint_rms", "min_class_share", *TEACHERS, "warnings")


@dataclass(frozen=True)
class Variant:
    """One row of the table: the values that it sets, and the dynamics it concerns."""

    name: str
    objective: str
    anchor: str
    scheme: str
    distance: str
    D: float
    dynamics: tuple[str, ...] = PAPER
    more: Mapping[str, Any] = field(default_factory=dict)

    def params(self, preset_name: str) -> dict[str, Any]:
        return {
            "flow.objective": self.objective,
            "anchor.policy": self.anchor,
            "flow.scheme": self.scheme,
            "flow.distance": self.distance,
            "ode.pfgmpp.augmented_dimensions": self.D,
            **self.more,
        }

    def facts(self, task: Task, dynamics: str, records: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "variant": self.name,
            "objective": self.objective,
            "anchor": self.anchor,
            "scheme": self.scheme,
            "distance": self.distance,
            "D": self.D if dynamics == "pfgmpp" else None,
        }


# The first row is what the others are held against. Loss to the data from the teacher's weights and at the default's
# times is one change; `printed` is the whole algorithm as the paper has it.
# fmt: off
VARIANTS = (
    #       name                objective     anchor   scheme   distance          D
    Variant("trajectory-self",  "trajectory", "self",  "edm",   "pseudo_huber",   128.0),
    Variant("trajectory-none",  "trajectory", "none",  "edm",   "pseudo_huber",   128.0),
    Variant("trajectory-noise", "trajectory", "noise", "edm",   "pseudo_huber",   128.0),
    Variant("trajectory-bank",  "trajectory", "bank",  "edm",   "pseudo_huber",   128.0),
    Variant("data-self",        "data",       "self",  "edm",   "pseudo_huber",   128.0),
    Variant("data-none",        "data",       "none",  "edm",   "pseudo_huber",   128.0),
    Variant("data-noise",       "data",       "noise", "edm",   "pseudo_huber",   128.0),
    Variant("data-bank",        "data",       "bank",  "edm",   "pseudo_huber",   128.0),
    Variant("printed",          "data",       "bank",  "paper", "pseudo_huber",   128.0,
            more={"flow.init": "scratch", "flow.t_max_share": 0.0}),
    Variant("scheme-paper",     "trajectory", "self",  "paper", "pseudo_huber",   128.0),
    Variant("adaptive-huber",   "trajectory", "self",  "edm",   "adaptive_huber", 128.0),
    Variant("l2",               "trajectory", "self",  "edm",   "l2",             128.0),
    Variant("D-8",              "trajectory", "self",  "edm",   "pseudo_huber",   8.0,    dynamics=("pfgmpp",)),
    Variant("D-2048",           "trajectory", "self",  "edm",   "pseudo_huber",   2048.0, dynamics=("pfgmpp",)),
)
# fmt: on


STUDY = Study(
    name="ablation",
    variants=VARIANTS,
    variant_column="variant",
    key_columns=KEY_COLUMNS,
    columns=COLUMNS,
    budget=("train_steps", "n_samples"),
    render=ablation_page.render,
)


def main() -> None:
    """Runs the variants of the method that are not finished, and writes reports/ablation.csv and ablation.html."""
    study.main(STUDY, module="pipeline.studies.ablation", about=main.__doc__)


if __name__ == "__main__":
    main()
