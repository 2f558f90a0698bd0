"""Runs in MLflow: one for every stage that executes, one parent for every state of the pipeline.

This is the only package that imports mlflow, and only when a run starts. If mlflow is not installed, or with
IFM_TRACKING=off, everything here does nothing, with a notice. Tracking never stops or delays the work: entries go into
a local log first (`locallog`), and from there to the store (`delivery`), at once or when a store is available again.
"""

from ifm.tracking.lineage import as_tag, digest, flatten, git_commit, lineage_tags
from ifm.tracking.registry import cache_uri
from ifm.tracking.runs import StageRun, stage_run
from ifm.tracking.states import ModelRecord, PipelineState
from ifm.tracking.store import project_root, tracking_uri, unavailable, without_secrets
from ifm.tracking.sync import track_state

__all__ = [
    "ModelRecord",
    "PipelineState",
    "StageRun",
    "as_tag",
    "cache_uri",
    "digest",
    "flatten",
    "git_commit",
    "lineage_tags",
    "project_root",
    "stage_run",
    "track_state",
    "tracking_uri",
    "unavailable",
    "without_secrets",
]
