"""`ratchet data erase`: one end user out of log, state and snapshots, and a flag on what learned from them.

The steps are `feedback.erasure`'s; here is their order. Killed between any two of them, it is done by running
it again: only the last step says that it is finished.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime

import msgspec
import sqlalchemy as sa

from feedback import database, erasure, snapshots, store
from feedback.config import Deployment, Pipeline
from feedback.embedded import EmbeddedLog
from feedback.keyring import Erasure
from ops.registry import Registry


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure found and did."""

    erasure: Erasure
    events: int
    """Events removed from the state; in the log they are unreadable."""
    sealed: int
    """Unsealed entries of an older release's log that were sealed under a key that nobody has."""
    snapshots: tuple[str, ...]
    """Snapshots removed."""
    adapters: dict[str, str]
    """Every adapter that learned from an erased snapshot, whoever was erased, and why it is flagged."""


def erase(
    deployment: Deployment, pipeline: Pipeline, user: str, *, by: str, clock: Callable[[], datetime]
) -> Report:
    """Erase the user with this pseudonym. Weights that learned from them stay: the operator decides.

    Raises: UnknownUser, StateUnavailable, SnapshotError, LogError, RegistryUnavailable; then run it again.
    """
    folder = deployment.snapshots_dir
    with _state(deployment) as state:
        begun = erasure.shred(state, user, by, clock())
        sealed = erasure.seal_old_entries(state, deployment.log_path, user, clock())
        with snapshots.alone(folder):
            with database.reading(state) as tx:
                found = erasure.belongings(tx, user)
            removed = snapshots.erase(folder, found.traces(user, begun.requested_at), begun.requested_at)
            erasure.forget(state, found, retry_window_s=pipeline.retry_window_s)
        with closing(EmbeddedLog(deployment.log_path)) as log:
            erasure.announce(state, log, begun)
        with closing(Registry(deployment.state)) as registry:
            flagged = registry.flag_snapshots(snapshots.erased(folder), by=by, at=begun.requested_at)
        done = erasure.finish(state, begun, clock())
    return Report(
        erasure=done,
        events=sum(map(len, found.events.values())),
        sealed=sealed,
        snapshots=tuple(removed),
        adapters=flagged,
    )


@contextmanager
def _state(deployment: Deployment) -> Iterator[sa.Engine]:
    state = store.open_state(deployment.state, durable=True)
    try:
        yield state
    finally:
        state.dispose()
