"""What an operator does with adapters from a terminal: list, show, promote, roll back."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec
from rich.console import Console
from rich.table import Table

from ops.adapters import Adapter
from ops.config import Rollout
from ops.errors import RevisionConflict
from ops.gates import GateResult, Verdict, judge
from ops.registry import AuditEntry, Registry
from ops.rollout import Plan, promotion, rollback
from ops.traffic import TrafficTable

ATTEMPTS = 5
"""Somebody else (the controller) may act in between: read again and decide again, this often."""
_COLOUR = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.ERROR: "red", Verdict.INCONCLUSIVE: "yellow"}


class Details(msgspec.Struct, frozen=True):
    """All there is to know of one adapter."""

    adapter: Adapter
    share: float
    gates: tuple[GateResult, ...]
    replicas: dict[str, str]
    """Replica → fingerprint."""
    history: Sequence[AuditEntry]
    flag: str
    """Why its weights hold what was erased since; empty when they do not."""


def share(table: TrafficTable | None, name: str) -> float:
    """The fraction of traffic that an adapter gets."""
    if table is None:
        return 0.0
    if name == table.canary:
        return table.canary_fraction
    return 1.0 - table.canary_fraction if name == table.stable else 0.0


def details(registry: Registry, name: str, rollout: Rollout) -> Details:
    """Raises: UnknownAdapter."""
    adapter = registry.get(name)
    gates = judge(adapter.report, rollout) if adapter.report is not None else ()
    replicas = {url: found[name] for url, found in registry.fingerprints().items() if name in found}
    flag = registry.flags().get(name, "")
    return Details(adapter, share(registry.traffic(), name), gates, replicas, registry.audit(name), flag)


def promote(registry: Registry, name: str, *, by: str, reason: str, clock: Callable[[], datetime]) -> Plan:
    """All traffic to `name` now. Raises: UnknownAdapter; TransitionRefused where no evidence says PASS."""
    return _act(
        registry, lambda now: promotion(registry.list(), registry.traffic(), name, now, reason), by, clock
    )


def roll_back(registry: Registry, *, by: str, reason: str, clock: Callable[[], datetime]) -> Plan:
    """Away with the canary, or else back to the adapter before the stable one. Raises: TransitionRefused."""
    return _act(registry, lambda now: rollback(registry.list(), registry.traffic(), now, reason), by, clock)


def _act(
    registry: Registry, decide: Callable[[datetime], Plan], by: str, clock: Callable[[], datetime]
) -> Plan:
    for attempt in range(ATTEMPTS):
        now = clock()
        step = decide(now)
        revision = step.table.revision if step.table else 0
        try:
            registry.apply(
                step.changes, by=by, at=now, table=step.table, expected_revision=revision, reason=step.reason
            )
            return step
        except RevisionConflict:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def print_list(
    adapters: Sequence[Adapter], table: TrafficTable | None, flags: Mapping[str, str], console: Console
) -> None:
    if not adapters:
        console.print("No adapters yet: `ratchet controller` registers the base model's when it starts.")
        return
    rows = Table("adapter", "state", "traffic", "gain", "KL", "changed", "why", box=None, pad_edge=False)
    for a in adapters:
        gain = f"{a.report.reward_gain:+.2f}" if a.report else ""
        kl = f"{a.report.kl_root_nats:.1f}" if a.report else ""
        part = share(table, a.name)
        traffic = f"{part:.0%}" if part else ""
        why = f"{a.reason}; {flags[a.name]}" if a.name in flags else a.reason
        name = f"{a.name} ⚑" if a.name in flags else a.name
        rows.add_row(name, a.state.value, traffic, gain, kl, f"{a.changed_at:%Y-%m-%d %H:%M:%S}", why)
    console.print(rows)


def print_details(found: Details, console: Console) -> None:
    a = found.adapter
    lines = {
        "state": f"{a.state.value} (revision {a.revision})",
        "why": a.reason,
        "flag": found.flag or "none",
        "traffic": f"{found.share:.0%}",
        "sha256": a.sha256,
        "base": a.base_sha256,
        "run": a.run_id,
        "parent": a.parent or "none",
        "snapshot": a.snapshot or "none",
        "reward model": a.reward_model or "none",
        "files": a.path,
        "replicas": ", ".join(f"{url} ({probe})" for url, probe in found.replicas.items()) or "none",
    }
    console.print(a.name, style="bold", highlight=False)
    for name, value in lines.items():
        console.print(f"  {name:<13} {value}", highlight=False, markup=False)
    if found.gates:
        gates = Table("gate", "verdict", "why", box=None, pad_edge=False)
        for g in found.gates:
            gates.add_row(g.name, f"[{_COLOUR[g.verdict]}]{g.verdict.value}[/]", g.reason)
        console.print(gates)
    history = Table("when", "by", "from", "to", "why", box=None, pad_edge=False)
    for entry in found.history:
        history.add_row(f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.by, entry.before, entry.after, entry.reason)
    console.print(history)
