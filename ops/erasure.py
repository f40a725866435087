"""`ratchet data erase`: one end user out of log, state and snapshots, and a flag on what learned from them.

The steps are `feedback.erasure`'s; here is their order. Killed between any two of them, it is done by running
it again: only the last step says that it is finished.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import sqlalchemy as sa
from rich.console import Console

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
    adapters: Mapping[str, str]
    """Every adapter that learned from an erased snapshot, whoever was erased, and why it is flagged."""


@dataclass
class Job:
    """One erasure under way: what it works on, and what its steps found."""

    deployment: Deployment
    pipeline: Pipeline
    state: sa.Engine
    erasure: Erasure
    clock: Callable[[], datetime]
    events: int = 0
    sealed: int = 0
    removed: tuple[str, ...] = ()
    flagged: Mapping[str, str] = field(default_factory=dict)


def erase(
    deployment: Deployment, pipeline: Pipeline, user: str, *, by: str, clock: Callable[[], datetime]
) -> Report:
    """Erase the user with this pseudonym. Weights that learned from them stay: the operator decides.

    Raises: UnknownUser, StateUnavailable, SnapshotError, LogError, RegistryUnavailable; then run it again.
    """
    with begun(deployment, pipeline, user, by, clock) as job:
        for step in STEPS:
            step(job)
        return Report(
            erasure=job.erasure,
            events=job.events,
            sealed=job.sealed,
            snapshots=job.removed,
            adapters=job.flagged,
        )


@contextmanager
def begun(
    deployment: Deployment, pipeline: Pipeline, user: str, by: str, clock: Callable[[], datetime]
) -> Iterator[Job]:
    """The keys are destroyed, durably; the steps are to do. Raises: UnknownUser, StateUnavailable."""
    state = store.open_state(deployment.state, durable=True)
    try:
        yield Job(deployment, pipeline, state, erasure.shred(state, user, by, clock()), clock)
    finally:
        state.dispose()


def seal_old_entries(job: Job) -> None:
    job.sealed = erasure.seal_old_entries(job.state, job.deployment.log_path, job.erasure.user, job.clock())


def remove(job: Job) -> None:
    """Snapshots first: what the state holds is how they are found again after a crash."""
    folder, done = job.deployment.snapshots_dir, job.erasure
    with snapshots.alone(folder):
        with database.reading(job.state) as tx:
            found = erasure.belongings(tx, done.user)
        traces = found.traces(done.user, done.requested_at)
        job.removed = tuple(snapshots.erase(folder, traces, done.requested_at))
        erasure.forget(job.state, found, retry_window_s=job.pipeline.retry_window_s)
    job.events = sum(map(len, found.events.values()))


def announce(job: Job) -> None:
    with closing(EmbeddedLog(job.deployment.log_path)) as log:
        erasure.announce(job.state, log, job.erasure)


def flag(job: Job) -> None:
    erased = snapshots.erased(job.deployment.snapshots_dir)
    with closing(Registry(job.deployment.state)) as registry:
        job.flagged = registry.flag_snapshots(erased, by=job.erasure.by, at=job.erasure.requested_at)


def finish(job: Job) -> None:
    job.erasure = erasure.finish(job.state, job.erasure, job.clock())


STEPS: tuple[Callable[[Job], None], ...] = (seal_old_entries, remove, announce, flag, finish)


def print_report(report: Report, console: Console) -> None:
    lines = [
        f"{report.erasure.user} is erased: keys destroyed, {report.events} events removed from the state",
        f"snapshots removed: {', '.join(report.snapshots) or 'none'}",
    ]
    if report.sealed:
        lines.append(f"{report.sealed} unsealed entries of an older release were made unreadable in the log")
    lines += [f"{name} {why}" for name, why in report.adapters.items()]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if report.adapters:
        console.print("These adapters serve on; retire them with `ratchet adapters`, or train anew.")
