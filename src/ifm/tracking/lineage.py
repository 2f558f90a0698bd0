"""A run's origin and its use of resources: Git, DVC, the machine."""

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ifm.tracking.store import project_root

TAG_LENGTH = 5000  # the most that every MLflow takes


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into one level with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def digest(value: Any) -> str:
    """A short content hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def as_tag(texts: Sequence[str]) -> str:
    """Joins sentences into one tag, within MLflow's limit of length."""
    return " ".join(texts)[:TAG_LENGTH]


def lineage_tags() -> dict[str, str]:
    """A run's origin as tags: Git commit, DVC experiment, host and process."""
    tags = {
        "ifm.root": str(project_root()),
        "ifm.host": socket.gethostname(),
        "ifm.pid": str(os.getpid()),
        "ifm.python": platform.python_version(),
    }
    named = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV", "dvc.stage": "DVC_STAGE"}
    tags |= {tag: os.environ[variable] for tag, variable in named.items() if os.environ.get(variable)}
    commit = git_commit()
    if not commit:
        return tags
    dirty = {"git.uncommitted": "true"} if " " in commit else {}
    return tags | {"mlflow.source.git.commit": commit.split()[0]} | dirty


def git_commit() -> str | None:
    """The checked-out commit, with " + uncommitted changes" if there are any; None outside Git."""
    import subprocess

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        # Outputs that Git holds (dvc.lock, metrics) change while the pipeline runs: they are no change of the source.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (commit + (" + uncommitted changes" if changed else "")) if commit else None


def peak_memory() -> dict[str, float]:
    """The peak memory of this process in MB: `peak_memory_mb`, and with a GPU in use `peak_gpu_memory_mb`."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    found = {"peak_memory_mb": most / (1e6 if sys.platform == "darwin" else 1e6 / 1024)}
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_initialized():
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


class SystemMonitor:
    """Utilization of the machine, under the names that MLflow's tab of system metrics shows."""

    def __init__(self) -> None:
        self._before = _busy_and_all()

    def sample(self) -> dict[str, float]:
        """Utilization since the last sample and memory in use; nothing without psutil."""
        try:
            import psutil
        except ImportError:
            return {}
        before, self._before = self._before, _busy_and_all()
        busy, passed = (now - then for now, then in zip(self._before, before, strict=True))
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_utilization_percentage": 100 * busy / passed if passed > 0 else 0.0,
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        }
        return found | _gpu_metrics()


def _busy_and_all() -> tuple[float, float]:
    """Seconds that all cores together were busy, and all their seconds."""
    try:
        import psutil
    except ImportError:
        return 0.0, 0.0
    times = psutil.cpu_times()._asdict()
    counted = sum(times[k] for k in times if k not in ("guest", "guest_nice"))  # those are in user and nice too
    return counted - times["idle"] - times.get("iowait", 0.0), counted


def _gpu_metrics() -> dict[str, float]:
    """Metrics of the GPUs that this process uses. A query of another GPU would take memory on it."""
    torch, found = sys.modules.get("torch"), {}
    if torch is None or not torch.cuda.is_initialized():
        return found
    for i in range(torch.cuda.device_count()):
        if not torch.cuda.memory_reserved(i):
            continue
        free, total = torch.cuda.mem_get_info(i)
        found[f"system/gpu_{i}_memory_usage_megabytes"] = (total - free) / 1e6
        try:
            found[f"system/gpu_{i}_utilization_percentage"] = float(torch.cuda.utilization(i))
        except (ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py
            continue
    return found
