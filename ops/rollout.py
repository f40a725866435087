"""Rollouts: which state changes and which traffic split come next. Pure: values in, a plan out.

    LOADED → CANARY at each of `canary_steps` → STABLE; the old stable one stays loaded as `previous`.

A plan is made whole or not at all (`Registry.apply`), so a crash between passes changes nothing: the next
pass computes the same plan again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from ops.adapters import IDENTITY_RUN, LIVE, Adapter, AdapterState, Change
from ops.config import Rollout
from ops.errors import TransitionRefused, UnknownAdapter
from ops.traffic import TrafficTable

MIN_FAILURES = 3
"""Fewer failed turns than this never roll a canary back."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Changes to make together. `table` carries the revision it was computed from."""

    changes: tuple[Change, ...]
    table: TrafficTable | None
    """The new split; None keeps the present one."""
    reason: str


class CanaryCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of the canary's turns."""

    adapter: str = ""
    revision: int = 0
    """Of the traffic table that `step_turns` counts from."""
    turns: int = 0
    failed: int = 0
    step_turns: int = 0


def count(counts: CanaryCounts, table: TrafficTable, adapter: str, *, failed: bool) -> CanaryCounts:
    """`counts` after one more turn of `adapter`; a new canary starts from zero, a new step its own count."""
    if table.canary is None or adapter != table.canary:
        return counts
    if counts.adapter != table.canary:
        counts = CanaryCounts(adapter=table.canary, revision=table.revision)
    step_turns = counts.step_turns if counts.revision == table.revision else 0
    return msgspec.structs.replace(
        counts,
        revision=table.revision,
        turns=counts.turns + 1,
        failed=counts.failed + failed,
        step_turns=step_turns + 1,
    )


def plan(
    adapters: Sequence[Adapter],
    table: TrafficTable | None,
    ready: frozenset[str],
    counts: CanaryCounts,
    rollout: Rollout,
    now: datetime,
) -> Plan | None:
    """What to do next; None: nothing.

    Args: every adapter in registration order; `ready`, those that all replicas serve and agree on.
    """
    loaded = _newly_loaded(adapters, ready)
    if loaded is not None:
        return loaded
    if table is None:
        return _first(adapters, now)
    if table.canary is not None:
        return _next_step(adapters, table, ready, counts, rollout, now)
    return _start(adapters, table, ready, rollout, now)


def promotion(
    adapters: Sequence[Adapter], table: TrafficTable | None, name: str, now: datetime, reason: str
) -> Plan:
    """All traffic to `name`; the stable one becomes `previous`, a canary in the way is rolled back.

    Raises: UnknownAdapter; TransitionRefused for an adapter whose gates did not pass or that is not loaded.
    """
    known = {a.name: a for a in adapters}
    if name not in known:
        raise UnknownAdapter(f"no adapter named {name!r} is registered")
    if table is None:
        raise TransitionRefused("nothing serves yet: the controller starts with the base model's adapter")
    state = known[name].state
    if state is AdapterState.STABLE:
        raise TransitionRefused(f"{name} is stable already")
    if state is AdapterState.EVALUATED:
        raise TransitionRefused(f"{name} is not loaded on every replica yet: try again in a moment")
    if state not in LIVE:
        raise TransitionRefused(f"{name} is {state} ({known[name].reason}): only gates that pass promote")
    moves = {name: AdapterState.STABLE, table.stable: AdapterState.SUPERSEDED}
    if table.canary not in (None, name):
        moves[str(table.canary)] = AdapterState.ROLLED_BACK
    older = table.previous
    if older not in (None, name) and not _is_identity(known[str(older)]):
        moves[str(older)] = AdapterState.RETIRED
    return _plan(known, moves, table, now, reason, stable=name, previous=table.stable)


def rollback(adapters: Sequence[Adapter], table: TrafficTable | None, now: datetime, reason: str) -> Plan:
    """Away with the canary; without one, back from the stable adapter to the one before it.

    Needs no evidence. Raises: TransitionRefused when only the base model's own adapter is left.
    """
    known = {a.name: a for a in adapters}
    if table is None:
        raise TransitionRefused("nothing serves yet, so there is nothing to roll back")
    if table.canary is not None:
        moves = {table.canary: AdapterState.ROLLED_BACK}
        return _plan(known, moves, table, now, reason, stable=table.stable, previous=table.previous)
    target = table.previous or _identity(adapters)
    if target is None or target == table.stable:
        raise TransitionRefused(f"{table.stable} is the base model itself: there is nothing behind it")
    left = AdapterState.SUPERSEDED if _is_identity(known[table.stable]) else AdapterState.ROLLED_BACK
    moves = {table.stable: left, target: AdapterState.STABLE}
    return _plan(known, moves, table, now, reason, stable=target, previous=None)


def to_unload(
    adapters: Sequence[Adapter], listed: frozenset[str], drain_s: float, now: datetime
) -> list[str]:
    """Registered adapters on a replica that no table has routed to for `drain_s`."""
    known = {a.name: a for a in adapters}
    gone = (AdapterState.RETIRED, AdapterState.ROLLED_BACK, AdapterState.REJECTED)
    return sorted(
        name
        for name in listed & known.keys()
        if known[name].state in gone and now - known[name].changed_at >= timedelta(seconds=drain_s)
    )


def too_many_failures(counts: CanaryCounts, rollout: Rollout) -> bool:
    return counts.failed >= MIN_FAILURES and counts.failed > rollout.max_error_rate * counts.turns


def _newly_loaded(adapters: Sequence[Adapter], ready: frozenset[str]) -> Plan | None:
    changes = tuple(
        _change(a, AdapterState.LOADED, "every replica serves it and they agree")
        for a in adapters
        if a.state is AdapterState.EVALUATED and a.name in ready
    )
    return Plan(changes=changes, table=None, reason="loaded") if changes else None


def _first(adapters: Sequence[Adapter], now: datetime) -> Plan | None:
    identity = next((a for a in adapters if _is_identity(a) and a.state is AdapterState.LOADED), None)
    if identity is None:
        return None
    table = TrafficTable(revision=0, stable=identity.name, changed_at=now)
    reason = "first start: the base model serves"
    return Plan(changes=(_change(identity, AdapterState.STABLE, reason),), table=table, reason=reason)


def _start(
    adapters: Sequence[Adapter], table: TrafficTable, ready: frozenset[str], rollout: Rollout, now: datetime
) -> Plan | None:
    """The oldest loaded candidate becomes the canary; evidence against another stable one is stale."""
    known = {a.name: a for a in adapters}
    waiting = [
        a for a in adapters if a.state is AdapterState.LOADED and a.name in ready and not _is_identity(a)
    ]
    if not waiting:
        return None
    candidate = waiting[0]
    baseline = candidate.report.baseline if candidate.report else None
    if baseline not in (None, table.stable):
        reason = f"measured against {baseline}, but {table.stable} serves now: evaluate again"
        change = _change(candidate, AdapterState.REJECTED, reason)
        return Plan(changes=(change,), table=None, reason=reason)
    if not rollout.canary_steps:
        return promotion(adapters, table, candidate.name, now, "no canary steps are configured")
    fraction = rollout.canary_steps[0]
    return _plan(
        known,
        {candidate.name: AdapterState.CANARY},
        table,
        now,
        f"canary at {fraction:.0%}",
        stable=table.stable,
        previous=table.previous,
        canary=candidate.name,
        fraction=fraction,
    )


def _next_step(
    adapters: Sequence[Adapter],
    table: TrafficTable,
    ready: frozenset[str],
    counts: CanaryCounts,
    rollout: Rollout,
    now: datetime,
) -> Plan | None:
    canary = str(table.canary)
    seen = counts if counts.adapter == canary else CanaryCounts()
    if too_many_failures(seen, rollout):
        return rollback(adapters, table, now, f"{seen.failed} of the canary's {seen.turns} turns failed")
    step_turns = seen.step_turns if seen.revision == table.revision else 0
    since = now - (table.changed_at or now)
    if canary not in ready or step_turns < rollout.step_turns or since < timedelta(seconds=rollout.step_s):
        return None
    higher = [f for f in rollout.canary_steps if f > table.canary_fraction]
    if higher:
        known = {a.name: a for a in adapters}
        return _plan(
            known,
            {},
            table,
            now,
            f"canary at {higher[0]:.0%} after {seen.turns} turns, {seen.failed} failed",
            stable=table.stable,
            previous=table.previous,
            canary=canary,
            fraction=higher[0],
        )
    if not rollout.auto_promote:
        return None
    return promotion(adapters, table, canary, now, f"canary done: {seen.turns} turns, {seen.failed} failed")


def _plan(
    known: Mapping[str, Adapter],
    moves: Mapping[str, AdapterState],
    table: TrafficTable,
    now: datetime,
    reason: str,
    *,
    stable: str,
    previous: str | None,
    canary: str | None = None,
    fraction: float = 0.0,
) -> Plan:
    """The plan that makes `moves` and routes accordingly; the base model's adapter stays pinnable."""
    states = {name: moves.get(name, a.state) for name, a in known.items()}
    named = {stable, previous, canary}
    pinnable = tuple(
        sorted(n for n, a in known.items() if _is_identity(a) and states[n] in LIVE and n not in named)
    )
    new = TrafficTable(
        revision=table.revision,
        stable=stable,
        canary=canary,
        canary_fraction=fraction,
        salt=canary or "",
        previous=previous,
        pinnable=pinnable,
        changed_at=now,
    )
    changes = tuple(_change(known[name], to, reason) for name, to in moves.items())
    return Plan(changes=changes, table=new, reason=reason)


def _change(adapter: Adapter, to: AdapterState, reason: str) -> Change:
    return Change(name=adapter.name, revision=adapter.revision, to=to, reason=reason)


def _identity(adapters: Sequence[Adapter]) -> str | None:
    return next((a.name for a in adapters if _is_identity(a) and a.state in LIVE), None)


def _is_identity(adapter: Adapter) -> bool:
    return adapter.run_id == IDENTITY_RUN
