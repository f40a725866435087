"""The controller: desired adapters against actual ones on every replica, gates, the next rollout step.

One pass reads everything anew and makes at most one plan; whatever fails is looked at again by the next pass.
What to do is decided in `ops.gates` and `ops.rollout`; this file only looks and acts.
"""

import tempfile
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from feedback.codec import encode, outline
from feedback.errors import CodecError, LogError
from feedback.eventlog import EventLog, Topic
from feedback.events import AdapterTransitioned, TurnRecorded, TurnStatus, adapter_event
from ops import engine, store, vllm_adapters
from ops.adapters import IDENTITY_RUN, WANTED, Adapter, AdapterState, adapter_name
from ops.config import Rollout
from ops.errors import EngineError, EngineUnavailable, InvalidAdapter, RevisionConflict
from ops.gates import Verdict, explain, judge, overall
from ops.registry import Registry
from ops.rollout import CanaryCounts, count, plan, to_unload
from ops.telemetry import logger
from ops.traffic import TrafficTable

BY = "controller"
REPORT_EVERY_S = 10.0
"""A replica's unchanged readiness is written again after this long."""
STALE_LEARNER_S = 3600.0
"""A `learner-…` adapter seen for longer than this belongs to a learner that died."""

PASSES = Counter("ratchet_ops_passes_total", "Controller passes by outcome", ["outcome"])
PASS_SECONDS = Histogram("ratchet_ops_pass_seconds", "Time of one controller pass, seconds")
ADAPTERS = Gauge("ratchet_ops_adapters", "Registered adapters by state", ["state"])
READY = Gauge("ratchet_ops_replica_adapters", "Adapters that a replica serves and agrees on", ["replica"])
HEALTHY = Gauge("ratchet_ops_replica_healthy", "1 when the replica answers its health check", ["replica"])
LOAD_SECONDS = Histogram("ratchet_ops_adapter_load_seconds", "Loading and probing one adapter, seconds")
LOAD_FAILURES = Counter("ratchet_ops_adapter_load_failures_total", "Adapters that a replica refused to load")
DISAGREEMENTS = Counter(
    "ratchet_ops_probe_disagreements_total", "Probes that differed from those of the other replicas"
)
CANARY = Gauge("ratchet_ops_canary_fraction_ratio", "Share of traffic that the canary gets")
REVISION = Gauge("ratchet_ops_traffic_revision_number", "Revision of the traffic table")
TRANSITIONS_SEEN = Counter("ratchet_ops_transitions_total", "State changes of adapters, by new state", ["to"])


class View(msgspec.Struct, frozen=True):
    """What one replica looked like in one pass."""

    url: str
    healthy: bool
    listed: frozenset[str] = frozenset()
    fingerprints: dict[str, str] = {}
    """Of the wanted adapters that are loaded and probed."""
    refused: dict[str, str] = {}
    """Adapter → why it cannot be loaded, for good."""


class Observations(msgspec.Struct, frozen=True):
    """The canary's counts and how far the turns were read; kept together, so nothing counts twice."""

    counts: CanaryCounts = CanaryCounts()
    offsets: dict[int, int] = {}


@dataclass
class Controller:
    """What the passes share. `turns` is read, `announcements` written; they may be one log."""

    registry: Registry
    urls: Sequence[str]
    rollout: Rollout
    base_sha256: str
    turns: EventLog
    announcements: EventLog
    views: dict[str, View] = field(default_factory=dict)
    reported: dict[str, tuple[dict[str, str], datetime]] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    learner_since: dict[tuple[str, str], datetime] = field(default_factory=dict)


def run(controller: Controller, stop: threading.Event, clock: Callable[[], datetime]) -> None:
    """Passes until `stop` is set. No failure ends it: the next pass sees the world as it is then."""
    log = logger()
    while not stop.is_set():
        begun = time.monotonic()
        try:
            reconcile(controller, clock())
            PASSES.labels("done").inc()
        except RevisionConflict as e:
            PASSES.labels("conflict").inc()
            log.info("pass_overtaken", reason=str(e))
        except Exception as e:  # one of the three named places: the next pass runs
            PASSES.labels("failed").inc()
            log.warning("pass_failed", error=type(e).__name__, reason=str(e))
        PASS_SECONDS.observe(time.monotonic() - begun)
        stop.wait(controller.rollout.poll_s)


def reconcile(controller: Controller, now: datetime) -> None:
    """One pass: gates, replicas, observations, the next step, announcements.

    Raises: RegistryUnavailable; RevisionConflict when somebody else acted in between.
    """
    judge_candidates(controller, now)
    adapters = controller.registry.list()
    agreed = look_after_replicas(controller, adapters, now)
    table = controller.registry.traffic()
    observed = observe(controller, table)
    step = plan(adapters, table, agreed, observed.counts, controller.rollout, now)
    if step is not None:
        revision = table.revision if table else 0
        controller.registry.apply(
            step.changes, by=BY, at=now, table=step.table, expected_revision=revision, reason=step.reason
        )
        logger().info("rollout_step", reason=step.reason, adapters=[c.name for c in step.changes])
    announce(controller)
    _measure(controller.registry.list(), controller.registry.traffic())


def ensure_identity(registry: Registry, base_dir: Path, adapters_dir: Path, now: datetime) -> Adapter:
    """The base model's own adapter, made, stored and registered once; it needs no gate.

    Raises: InvalidAdapter for a base that we cannot make one for, RegistryUnavailable.
    """
    with tempfile.TemporaryDirectory(prefix="ratchet-identity-") as scratch:
        made = store.identity_adapter(base_dir, Path(scratch))
        sha256, path = store.put(made, adapters_dir, base_dir=base_dir)
    name = adapter_name(IDENTITY_RUN, sha256)
    adapter = Adapter(
        name=name,
        sha256=sha256,
        path=str(path),
        base_sha256=store.base_digest(base_dir),
        run_id=IDENTITY_RUN,
        created_at=now,
        changed_at=now,
        reason="the base model itself",
    )
    known = registry.register(adapter, by=BY)
    if known.state is not AdapterState.REGISTERED:
        return known
    reason = "the base model itself: what everything else is measured against"
    return registry.transition(
        name, AdapterState.EVALUATED, revision=known.revision, by=BY, reason=reason, at=now
    )


def judge_candidates(controller: Controller, now: datetime) -> None:
    """Registered adapters pass their gates, are rejected, or wait with the reason written down."""
    for adapter in controller.registry.list(frozenset({AdapterState.REGISTERED})):
        if adapter.run_id == IDENTITY_RUN:
            continue
        to, reason = _judgement(adapter, controller)
        name, revision = adapter.name, adapter.revision
        if to is not None:
            controller.registry.transition(name, to, revision=revision, by=BY, reason=reason, at=now)
        elif reason != adapter.reason:
            controller.registry.note(name, revision=revision, by=BY, reason=reason, at=now)


def _judgement(adapter: Adapter, controller: Controller) -> tuple[AdapterState | None, str]:
    if adapter.base_sha256 != controller.base_sha256:
        return AdapterState.REJECTED, (
            f"it is for base {adapter.base_sha256[:12]}…, served is {controller.base_sha256[:12]}…"
        )
    results = judge(adapter.report, controller.rollout)
    to = {
        Verdict.PASS: AdapterState.EVALUATED,
        Verdict.FAIL: AdapterState.REJECTED,
        Verdict.ERROR: AdapterState.REJECTED,
        Verdict.INCONCLUSIVE: None,
    }[overall(results)]
    return to, explain(results)


def look_after_replicas(controller: Controller, adapters: Sequence[Adapter], now: datetime) -> frozenset[str]:
    """Load what is wanted, unload what is over, report what is ready.

    Returns: the adapters that every replica serves and whose probes agree.
    """
    wanted = [a for a in adapters if a.state in WANTED]
    with ThreadPoolExecutor(max_workers=max(1, len(controller.urls))) as pool:
        views = list(
            pool.map(lambda url: look_after(url, wanted, controller.views.get(url)), controller.urls)
        )
    controller.views = {view.url: view for view in views}
    agreed = agreement(views)
    for view in views:
        _report(controller, view.url, agreed[view.url], now)
        _clean_up(controller, view, adapters, now)
    _reject_refused(controller, wanted, views, now)
    ready = [frozenset(names) for names in agreed.values()]
    return frozenset.intersection(*ready) if ready else frozenset()


def look_after(url: str, wanted: Sequence[Adapter], before: View | None) -> View:
    """Bring one replica to serve `wanted`; `before` spares the probe of what stayed loaded."""
    HEALTHY.labels(url).set(0)
    if not vllm_adapters.healthy(url):
        return View(url, False)
    fingerprints: dict[str, str] = {}
    refused: dict[str, str] = {}
    listed: frozenset[str] = frozenset()
    try:
        listed = vllm_adapters.listed(url)
        for adapter in wanted:
            known = before.fingerprints.get(adapter.name) if before and adapter.name in listed else None
            try:
                fingerprints[adapter.name] = known or _load(url, adapter)
            except InvalidAdapter as e:
                refused[adapter.name] = str(e)
            except EngineUnavailable:
                raise
            except EngineError as e:
                refused[adapter.name] = str(e)
    except EngineError as e:
        logger(replica=url).warning("replica_sick", reason=str(e))
        return View(url, False)
    HEALTHY.labels(url).set(1)
    for name, reason in refused.items():
        LOAD_FAILURES.inc()
        logger(replica=url, adapter=name).error("adapter_refused", reason=reason)
    return View(url, True, listed | frozenset(fingerprints), fingerprints, refused)


def _load(url: str, adapter: Adapter) -> str:
    """Check the files, load them, generate once. Returns: the fingerprint."""
    store.verify(Path(adapter.path), adapter.sha256)
    with LOAD_SECONDS.time():
        fingerprint = engine.warm_up(url, adapter.name, adapter.path)
    logger(replica=url, adapter=adapter.name).info("adapter_loaded", fingerprint=fingerprint)
    return fingerprint


def agreement(views: Sequence[View]) -> dict[str, dict[str, str]]:
    """Per replica: the adapters whose fingerprint is that of most replicas (the first ones, on a tie)."""
    votes: dict[str, Tally[str]] = {}
    for view in views:
        for name, fingerprint in view.fingerprints.items():
            votes.setdefault(name, Tally())[fingerprint] += 1
    most = {name: tally.most_common(1)[0][0] for name, tally in votes.items()}
    agreed: dict[str, dict[str, str]] = {}
    for view in views:
        agreed[view.url] = {n: f for n, f in view.fingerprints.items() if f == most[n]}
        for name in view.fingerprints.keys() - agreed[view.url].keys():
            DISAGREEMENTS.inc()
            logger(replica=view.url, adapter=name).error("probe_disagrees")
    return agreed


def _report(controller: Controller, url: str, ready: dict[str, str], now: datetime) -> None:
    READY.labels(url).set(len(ready))
    last = controller.reported.get(url)
    if last is None or last[0] != ready or (now - last[1]).total_seconds() >= REPORT_EVERY_S:
        controller.registry.report_replica(url, ready, now)
        controller.reported[url] = (ready, now)


def _clean_up(controller: Controller, view: View, adapters: Sequence[Adapter], now: datetime) -> None:
    """Unload what is over, and what a dead learner left. Failing to is no harm: the next pass tries again."""
    over = to_unload(adapters, view.listed, controller.rollout.drain_s, now)
    for name in (*over, *_left_behind(controller, view, now)):
        try:
            vllm_adapters.unload(view.url, name)
            logger(replica=view.url, adapter=name).info("adapter_unloaded")
        except EngineError as e:
            logger(replica=view.url, adapter=name).warning("unload_failed", reason=str(e))


def _left_behind(controller: Controller, view: View, now: datetime) -> list[str]:
    present = {(view.url, name) for name in view.listed if name.startswith("learner-")}
    since = controller.learner_since
    for key in [k for k in since if k[0] == view.url and k not in present]:
        del since[key]
    return sorted(
        name
        for url, name in present
        if (now - since.setdefault((url, name), now)).total_seconds() > STALE_LEARNER_S
    )


def _reject_refused(
    controller: Controller, wanted: Sequence[Adapter], views: Sequence[View], now: datetime
) -> None:
    """A candidate that a healthy replica cannot load is out; one that serves is an operator's case."""
    for adapter in wanted:
        reasons = [view.refused[adapter.name] for view in views if adapter.name in view.refused]
        if reasons and adapter.state is AdapterState.EVALUATED:
            controller.registry.transition(
                adapter.name,
                AdapterState.REJECTED,
                revision=adapter.revision,
                by=BY,
                reason=reasons[0],
                at=now,
            )


def observe(controller: Controller, table: TrafficTable | None) -> Observations:
    """Count the canary's turns since the last pass. A log out of reach counts nothing, and the ramp holds."""
    kept = controller.registry.recall("observations")
    known = msgspec.json.decode(kept, type=Observations) if kept else Observations()
    try:
        if table is None or table.canary is None:
            controller.offsets = _ends(controller.turns)
            return Observations(known.counts, {})
        if known.counts.adapter != table.canary:
            counts = CanaryCounts(adapter=table.canary, revision=table.revision)
            known = Observations(counts, controller.offsets or _ends(controller.turns))
        observed = _read_turns(controller.turns, known, table)
    except LogError as e:
        logger().warning("turns_unreadable", reason=str(e))
        return known
    if observed != known or kept is None:
        controller.registry.remember("observations", msgspec.json.encode(observed))
    return observed


def _ends(log: EventLog) -> dict[int, int]:
    return {partition: log.end(Topic.TURNS, partition) for partition in log.partitions(Topic.TURNS)}


def _read_turns(log: EventLog, known: Observations, table: TrafficTable) -> Observations:
    counts, offsets = known.counts, dict(known.offsets)
    for partition in log.partitions(Topic.TURNS):
        while records := log.read(Topic.TURNS, partition, offsets.get(partition, 0)):
            offsets[partition] = records[-1].position.offset + 1
            for record in records:
                counts = _count_record(counts, table, record.value)
    return Observations(counts, offsets)


def _count_record(counts: CanaryCounts, table: TrafficTable, raw: bytes) -> CanaryCounts:
    try:
        turn = outline(raw).data
    except CodecError:  # the pipeline sends it to the dead letters
        return counts
    if not isinstance(turn, TurnRecorded):
        return counts
    return count(counts, table, turn.adapter, failed=turn.status is TurnStatus.FAILED)


def announce(controller: Controller) -> None:
    """Put state changes, whoever made them, into the event log; best effort, the registry is the truth."""
    kept = controller.registry.recall("announced")
    last = int(kept) if kept else 0
    entries = controller.registry.audit(after=last)
    for entry in entries:
        if entry.subject == "traffic" or entry.before == entry.after:
            continue
        TRANSITIONS_SEEN.labels(entry.after).inc()
        moved = AdapterTransitioned(
            adapter=entry.subject,
            from_state=entry.before,
            to_state=entry.after,
            by=entry.by,
            reason=entry.reason,
            at=entry.at,
        )
        event = adapter_event(moved)
        controller.announcements.append(Topic.ADAPTERS, event.key, event.id, encode(event))
    if entries:
        controller.registry.remember("announced", str(entries[-1].number).encode())


def _measure(adapters: Sequence[Adapter], table: TrafficTable | None) -> None:
    states: Mapping[str, int] = Tally(a.state.value for a in adapters)
    for state in AdapterState:
        ADAPTERS.labels(state.value).set(states.get(state.value, 0))
    CANARY.set(table.canary_fraction if table else 0.0)
    REVISION.set(table.revision if table else 0)
