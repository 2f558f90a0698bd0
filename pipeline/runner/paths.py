"""The stages' outputs, relative to the project's folder."""

from pathlib import Path

PARAMS = Path("params.yaml")
SOURCE = Path("data/source.json")  # digest of the local data files, an input of the graph
SEEN = Path(".ifm/source.json")  # sizes and times of these files at the last reading
PUBLIC = Path("data/public.json")  # digest of a public teacher's local files, an input of the graph
SEEN_PUBLIC = Path(".ifm/public.json")
ENCODER = Path("data/encoder.json")  # digest of an encoder's local files, an input of the graph
SEEN_ENCODER = Path(".ifm/encoder.json")
RAW = Path("data/raw")
PROCESSED = Path("data/processed")
REFERENCE = Path("data/reference")
REPORTS = Path("reports")
METRICS = REPORTS / "metrics"
CURVES = REPORTS / "curves"
RUNS = REPORTS / "runs"  # every stage's run.json: cached by DVC, not in Git


def trajectories(dynamics: str) -> Path:
    return Path("data/trajectories") / dynamics


def samples(dynamics: str) -> Path:
    return Path("data/samples") / dynamics


def pairs(dynamics: str) -> Path:
    """Samples beside their nearest training images."""
    return Path("data/pairs") / dynamics


def teacher(dynamics: str) -> Path:
    return Path("models/teacher") / dynamics


def trained(dynamics: str) -> Path:
    """The flow as it was trained, without the samplers that `select` records."""
    return Path("models/trained") / dynamics


def flow(dynamics: str) -> Path:
    return Path("models/flow") / dynamics


def diagnostics(dynamics: str) -> Path:
    return REPORTS / "diagnostics" / f"{dynamics}.json"


def headline(dynamics: str) -> Path:
    """The figures of a dynamics that DVC shows."""
    return REPORTS / "headline" / f"{dynamics}.json"


def curve(stage: str) -> Path:
    """The training curve of a stage called e.g. teacher-ve."""
    return CURVES / f"{stage}.csv"


def run_record(stage: str) -> Path:
    """Links a stage's outputs to its MLflow run. The report reads the others' folder, so its own file is outside."""
    return REPORTS / "report-run.json" if stage == "report" else RUNS / f"{stage}.json"
