"""Late delivery of the local logs to a store."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifm.errors import UserError
from ifm.tracking import delivery, locallog, places, states, store
from ifm.tracking.lineage import flatten, lineage_tags
from ifm.tracking.locallog import LocalLog, Pending
from ifm.tracking.states import PipelineState


@dataclass
class Synced:
    """The result for each log, by name."""

    delivered: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)  # still written by their stages
    elsewhere: dict[str, str] = field(default_factory=dict)  # meant for another store: its URI
    failed: dict[str, str] = field(default_factory=dict)  # why


def sync(*, elsewhere: bool = False) -> Synced:
    """Delivers every log that no running stage holds, oldest first. A refused log does not stop the others.

    elsewhere: also deliver logs that were meant for another store. Raises UserError if there is no store.
    """
    done = Synced()
    logs = locallog.all_logs()
    if not logs:
        return done
    try:
        client, experiment = store.connect()
        store.close_stale(client, experiment)
    except Exception as error:
        uri = store.without_secrets(store.tracking_uri())
        raise UserError(f"no store at {uri} ({store.brief(error)}); start it, or set MLFLOW_TRACKING_URI") from error
    for folder in logs:
        with locallog.opened(folder) as log:
            if log is None:
                done.running.append(folder.name)
                continue
            try:
                pending = locallog.read(folder)
                meant = _meant(pending.head)
                if meant != store.name_in_records():
                    if not elsewhere:
                        done.elsewhere[folder.name] = meant
                        continue
                    pending = Pending(folder, pending.entries, 0)
                deliver(pending, log)
            except Exception as error:  # of the store: the others may go through
                done.failed[folder.name] = store.brief(error)
                continue
            done.delivered.append(folder.name)
            log.remove()
    return done


def _meant(head: dict[str, Any]) -> str:
    """The store that a log was meant for. Earlier logs name the project's own store by its path at that time."""
    tags = head.get("tags") or head.get("state", {}).get("tags", {})
    own = f"sqlite:///{tags.get('ifm.root')}/{places.STORE}"
    return places.OWN if head["uri"] == own else head["uri"]


def deliver(pending: Pending, log: LocalLog) -> None:
    """Delivers one log. After every batch it records how far it came."""
    client, experiment = store.connect(pending.head["experiment"])
    if pending.head["op"] == "state":
        with store.locked():
            states.track(client, experiment, states.from_entry(pending.head, pending.folder))
        return
    receiver = delivery.Receiver(client, experiment, pending.id, pending.folder)
    delivered = pending.delivered if receiver.run_id else 0  # a run that was removed is made again, whole
    for batch in delivery.batches(pending.entries[delivered:]):
        receiver.take(batch)
        delivered += len(batch)
        log.mark(delivered)
    if not pending.ended:  # its process was killed
        client.set_terminated(receiver.run_id, "KILLED", end_time=last_time(pending.entries))


def last_time(entries: list[dict[str, Any]]) -> int:
    """The time of the last entry that has one."""
    return max(entry["time"] for entry in entries if "time" in entry)


def track_state(state: PipelineState) -> dict[str, Any]:
    """Makes (or finds) the parent run of a state and links the stages' runs to it. Returns {run_id, tracking_uri, ...}.

    Undelivered entries of earlier runs go first. Without a store the state is kept for `ifm track --sync`.
    """
    untracked = {"run_id": None, "tracking_uri": None, "state": state.key}
    reason = store.unavailable()
    if reason:
        store.notice(reason)
        return untracked
    state = replace(state, params=store.scrubbed_values(flatten(state.params)), tags=lineage_tags() | state.tags)
    try:
        client, experiment = store.connect()
        late = sync()
        for name, why in late.failed.items():
            store.notice(f"{name} is not delivered ({why})")
        with store.locked():  # experiments that run side by side share stages: each is recreated once
            return states.track(client, experiment, state)
    except Exception as error:
        uri, log = store.without_secrets(store.tracking_uri()), locallog.logs_folder() / locallog.new_id("track")
        later = f"kept in {locallog.shown(log)}; later: `ifm track --sync`"
        reason = str(error) if isinstance(error, UserError) else f"the store at {uri} failed ({store.brief(error)})"
        try:
            _keep(state, log)
        except OSError as full:
            later = f"and {log} cannot be written ({full.strerror or full}); later: `dvc repro --force track`"
        store.notice(f"{reason}; {later}")
    return untracked


def _keep(state: PipelineState, folder: Path) -> None:
    log = LocalLog(folder)
    try:
        log.append(states.to_entry(state, log))
    finally:
        log.close()
