"""`ifm track`, `ifm promote`, `ifm mlflow-model` and `ifm ui`, for the project that the current folder is in."""

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

from ifm import extras
from ifm.cli.options import at_least, local_path
from ifm.errors import UserError
from ifm.tracking import locallog, places, store


def _check_project(command: str) -> None:
    """Raises UserError outside of a project."""
    if not places.in_project():
        raise UserError(f"{command} works on a project, and this folder is in none; go to your clone and try again")


def _tracking_is(reason: str) -> str:
    """Why there is no tracking, with the mend where MLflow is not installed."""
    there = importlib.util.find_spec("mlflow") is not None
    return f"tracking is {reason}" if there else f"tracking is {reason}; {extras.MEND}"


def _check_store(command: str) -> None:
    """Raises UserError where there is no store to read: one that is read is not made."""
    reason = store.unavailable()
    if reason:
        raise UserError(_tracking_is(reason))
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _check_project(command)
    file = places.sqlite_file(store.tracking_uri())
    if file is not None and not file.is_file():
        raise UserError(f"{file}: there is no store yet; `dvc repro` makes it, and `make track` for results at hand")


def track(given: argparse.Namespace) -> None:
    """Deliver what was logged while the tracking server was away (--sync), or list it."""
    _check_project("track")
    if not given.sync:
        logs = locallog.all_logs()
        print(f"{len(logs)} logs wait in {locallog.logs_folder()}" + ("; deliver: ifm track --sync" if logs else ""))
        for folder in logs:
            entries = locallog.read(folder).entries
            print(f"  {folder.name}: {len(entries)} entries for {entries[0]['uri'] if entries else 'no store'}")
        return
    reason = store.unavailable()
    if reason:
        raise UserError(_tracking_is(reason))
    from ifm.tracking.sync import sync

    done = sync(elsewhere=given.elsewhere)
    uri = store.without_secrets(store.tracking_uri())
    print(f"{len(done.delivered)} logs delivered to {uri}")
    for name in done.delivered:
        print(f"  {name}")
    for name in done.running:
        print(f"  {name}: still written by its stage")
    for name, meant in done.elsewhere.items():
        print(f"  {name}: meant for {meant}; set MLFLOW_TRACKING_URI to it, or add --elsewhere")
    if done.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in done.failed.items())
        raise UserError(f"{len(done.failed)} logs are not delivered and stay: {reasons}")


def _add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sync", action="store_true", help="deliver the logs under .ifm/tracking, each exactly once")
    parser.add_argument("--elsewhere", action="store_true", help="those too that were meant for another server")


def promote(given: argparse.Namespace) -> None:
    """Move the alias `best` of each flow in the registry to the version with the best figure."""
    from ifm.dynamics import DYNAMICS

    if given.dynamics not in (None, *DYNAMICS):
        raise UserError(f"--dynamics {given.dynamics}: is none of {', '.join(DYNAMICS)}")
    _check_store("promote")
    from ifm.tracking.promotion import ALIAS
    from ifm.tracking.promotion import promote as promoted

    direction = True if given.lower else False if given.higher else None
    for made in promoted(given.metric, dynamics=given.dynamics, lower=direction):
        better = "lower" if made.lower else "higher"
        print(f"{made.model}: {len(made.candidates)} versions by {made.metric}, {better} is better; {made.about}")
        for candidate in made.candidates:
            value = f"{candidate.value:.6g}" if candidate.value is not None else candidate.why_not
            mark = f"  <- {ALIAS}" if candidate.version == made.after else ""
            print(f"  version {candidate.version}  {value}  {candidate.title}{mark}")
        was = f"version {made.before}" if made.before is not None else "none"
        moved = "stays" if made.before == made.after else f"{was} -> version {made.after}"
        print(f"  {ALIAS}: {moved}")


def _add_promote(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--metric", required=True, metavar="NAME", help="fid, recall, ... in one evaluation; or fid/4nfe-renoise")
    add("--dynamics", metavar="NAME", help="default: every registered flow")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--lower", action="store_true", help="less is better (known for the usual figures)")
    direction.add_argument("--higher", action="store_true", help="more is better")


def mlflow_model(given: argparse.Namespace) -> None:
    """Package a flow as an MLflow model that draws samples: mlflow.pyfunc.load_model, mlflow models serve."""
    from ifm.tracking.packaging import package

    registered = not Path(given.model).is_dir() and re.fullmatch(r"[\w-]+(@[\w-]+|/[0-9]+)", given.model)
    if registered:
        _check_store("mlflow-model")
        from ifm.tracking.cache import model_folder

        with model_folder(given.model) as folder:
            package(folder, given.out)
    else:
        package(Path(given.model), given.out)
    print(f"{given.out}: serve it with `mlflow models serve -m {given.out} --env-manager local --host 127.0.0.1`")


def _add_mlflow_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=os.path.expanduser,
        required=True,
        metavar="NAME",
        help="a flow: its folder, e.g. models/flow/ve, or ifm-flow-ve@best",
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="a new folder")


def ui(given: argparse.Namespace) -> None:
    """MLflow's pages of this project's runs, for this machine alone (127.0.0.1)."""
    reason = store.unavailable()
    if reason:
        raise UserError(_tracking_is(reason))
    _check_project("ui")
    root = places.project_root()
    os.chdir(root)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # what is shown is the project's own store
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    try:
        store.connect()
    except Exception as error:  # whatever the store raises: MLflow would try for minutes
        raise UserError(f"{places.STORE}: {store.brief(error)}; `ifm doctor` looks further") from error
    print(f"runs: http://127.0.0.1:{given.port}/#/experiments?workflowType=machine_learning", flush=True)
    address = places.address(root / places.STORE)
    server = ["ui", "--host", "127.0.0.1", "--port", str(given.port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *server, "--backend-store-uri", address])


def _add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=at_least(1), default=5000, metavar="N", help="default: %(default)s")


COMMANDS = {
    "ui": (_add_ui, ui),
    "track": (_add_track, track),
    "promote": (_add_promote, promote),
    "mlflow-model": (_add_mlflow_model, mlflow_model),
}
