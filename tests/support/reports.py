"""Made-up results as the report and its pages take them: a summary, diagnostics, a whole report."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

from ifm.modalities.pictures import grid_png
from ifm.report.contents import Report
from ifm.report.summary import summary_columns

TEACHER_FID = {1: 313.2, 3: 68.5, 5: 17.1, 9: 3.21, 17: 1.14, 35: 0.8721236789}
FLOW_FID = {
    ("one_step", 1): 1.94,
    ("anchor", 2): 1.71,
    ("anchor", 4): 1.66,
    ("renoise", 2): 1.32,
    ("renoise", 4): 1.18,
}


def summary_of(*dynamics, objective="trajectory", anchor="self", seed=0, factor=1.0):
    common = {
        "data": "digits", "extractor": "classifier", "checksum": "0123456789ab",
        "reference": "train split (1,438 images)", "seed": seed, "n_samples": 1000, "seeds": 3, "precision": 0.71,
        "precision_sd": 0.01, "recall": 0.62, "density": 0.8, "coverage": 0.75, "inception_score": 8.5,
        "seconds_batch_1": 4.2e-3, "peak_memory_mb": 33.0,
    }  # fmt: skip
    rows = []
    for name in dynamics:
        mine = {**common, "dynamics": name}
        rows += [
            {
                **mine,
                "model": "teacher",
                "sampler": "heun",
                "nfe": nfe,
                "fid": fid * factor,
                "kid": fid / 900 - 4e-4,
                "seconds_per_image": 2.1e-4 * nfe,
                "parameters": 1_482_113,
                "train_images": 166_400,
                "train_seconds": 151.27,
            }
            for nfe, fid in TEACHER_FID.items()
        ]
        rows += [
            {
                **mine,
                "model": "flow",
                "objective": objective,
                "anchor": anchor,
                "sampler": sampler,
                "nfe": nfe,
                "fid": fid * factor,
                "kid": fid / 900,
                "seconds_per_image": 2.1e-4 * nfe,
                "parameters": 1_482_689,
                "train_images": 192_000,
                "train_seconds": 173.5,
                "fid_sd": 0.04,
                "ratio": 2.2,
                "ratio_sd": 0.0321,
                "fid_pooled": fid * factor - 0.2,
                "fid_extrapolated": fid * factor - 0.3,
                "train_distance_auc": 0.4812,
                "train_distance_auc_sd": 0.0111,
                "near_copies": 0.0621,
                "near_copies_sd": 0.0054,
                "missing_classes": 0,
                "class_chi2": 2.345,
                "class_p": 0.0123,
                "endpoint_rms": 0.0912,
                "min_class_share": 0.0795,
            }
            for (sampler, nfe), fid in FLOW_FID.items()
        ]
    real = {**common, "model": "data", "sampler": "test", "nfe": 0, "seeds": 1, "n_samples": 359, "fid": 0.61}
    rows.append({**real, "kid": 1e-4, "precision": 0.9})
    return pd.DataFrame(rows, columns=summary_columns())


def curve(scale):
    step = np.arange(50, 1501, 50)
    return pd.DataFrame({"step": step, "loss": scale * step**-0.35, "grad_norm": 1.0, "lr": 1e-3})


@cache
def picture(seed, size, channels):
    images = np.random.default_rng(seed).integers(0, 256, (64, channels, size, size), np.uint8)
    return grid_png(images, columns=8)


def pictures(seed, size=8, channels=1):
    png = picture(seed, size, channels)
    return [(caption, png) for caption in ("Flow, one step", "Teacher, 35 NFE", "Teacher, 1 NFE")]


def diagnostics_of(name, *, anchor=True, whole=True):
    """What `ifm.diagnostics.diagnose` gives, and the stage's `reference`."""
    quantiles = {"rms": 1.44, "low": 0.5, "median": 1.0, "high": 2.7}
    return {
        "dynamics": name,
        "paths": 64,
        "times": [1.0, 0.5, 0.1, 0.0],
        "spread": 0.52,
        "non_intersection": {"ratio": 0.877, "teacher_ratio": 0.9, "spacing": 0.25, "closest": [0.24, 0.22, 0.23]},
        "jacobian": {
            "whole": whole, "directions": None if whole else 8, "least": 2.43e-4, "folded": 0.625 if whole else None,
            "times": [1.0, 0.1], "smallest": [0.002, 0.9], "smallest_least": [2.43e-4, 0.8], "largest": [9.0, 1.1],
            "folded_profile": [0.625, 0.0] if whole else None,
        },
        "stability": {"x_T": quantiles, "t": quantiles} | ({"anchor": quantiles} if anchor else {}),
        "anchor": {"contraction": 0.144, "last": 2e-7, "steps": [5e-3, 1e-4, 0.0]} if anchor else None,
        "straightness": {
            "teacher": 0.109, "flow": 0.1397, "teacher_profile": [0.1, 0.2, 0.3], "flow_profile": [0.1, 0.0, 0.8],
        },
        "error": {
            "one_step": 0.186, "profile": [0.186, 0.1, 0.05],
            "training": {"one_step": 0.0908, "times": [1.0, 0.5], "profile": [0.0908, 0.05]},
        },
        "reference": "teacher",
    }  # fmt: skip


def full_report(**changes):
    dynamics = ("ve", "rf", "pfgmpp")
    complete = Report(
        summary=summary_of(*dynamics),
        params_text="seed: 0\ndata:\n  source: digits  # a < b & c\n",
        data="digits",
        seed=0,
        git_commit="3f9c2a7e41d0b86f5a1c9e2d7b4f8a6035c1de92 + uncommitted changes",
        created="2025-11-03 14:20 UTC",
        curves={(stage, name): curve(i + 1.0) for stage in ("teacher", "flow") for i, name in enumerate(dynamics)},
        grids={name: pictures(i) for i, name in enumerate(dynamics)},
        real=("train split", pictures(9)[0][1]),
        pairs={name: pictures(i)[0][1] for i, name in enumerate(dynamics)},
        batch_seconds={name: {1: 4.2e-3, 64: 2.1e-4, 256: 2.5e-4} for name in dynamics},
        class_shares={name: [0.08, *[0.92 / 9] * 9] for name in dynamics},
        real_shares=[0.1] * 10,
        classes=[str(i) for i in range(10)],
        diagnostics={name: diagnostics_of(name) for name in dynamics},
        reference={
            "extractor": "classifier",
            "dimension": 64,
            "n_train": 1438,
            "n_test": 359,
            "accuracy": 0.98,
            "floor_fid": 0.6123,
            "split": "train",
        },
        versions={"ifm": "0.1.0", "torch": "2.6.0"},
    )
    return replace(complete, **changes)
