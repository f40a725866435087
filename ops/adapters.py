"""Adapters as values: names, states and lineage. No I/O.

registered → evaluated → loaded → canary → stable → superseded → retired
     │           │                   │        │
     └── rejected ┘                  └─ rolled_back ┘
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec

from ops.evaluation import EvalReport

IDENTITY_RUN = "base"
"""Run id of the all-zero adapter that serves the base arm, so that both arms take the same path in vLLM."""


class AdapterState(StrEnum):
    REGISTERED = "registered"
    EVALUATED = "evaluated"
    """Its gates passed."""
    LOADED = "loaded"
    """Every replica's probe agrees."""
    CANARY = "canary"
    STABLE = "stable"
    SUPERSEDED = "superseded"
    """Was stable; stays loaded until the next promotion so that rolling back is a flip of the table."""
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA with a lineage. `name` ends in the first 8 hex digits of `sha256` and is never reused."""

    name: str
    sha256: str
    """`digest()` of its files."""
    path: str
    """Absolute, content-addressed folder with `adapter_config.json` and `adapter_model.safetensors`."""
    base_sha256: str
    run_id: str
    parent: str | None = None
    snapshot: str | None = None
    reward_model: str | None = None
    state: AdapterState = AdapterState.REGISTERED
    revision: int = 0
    """Counts transitions; every change is compare-and-swap on it."""
    report: EvalReport | None = None
    reason: str = ""
    """Why it is in this state."""
    created_at: datetime
    changed_at: datetime


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One state change to make, valid only while the adapter is still at `revision`."""

    name: str
    revision: int
    to: AdapterState
    reason: str
    report: EvalReport | None = None
    """Evidence to store with it; None keeps what is there."""


def adapter_name(run_id: str, sha256: str) -> str:
    return f"{run_id}-{sha256[:8]}"


def learned_from(adapters: Iterable[Adapter]) -> dict[str, tuple[str, ...]]:
    """The snapshots behind each adapter's weights: its own and those of the adapters that it started from."""
    by_name = {adapter.name: adapter for adapter in adapters}
    found: dict[str, tuple[str, ...]] = {}
    for name in by_name:
        taught: dict[str, None] = {}
        seen: set[str] = set()
        ancestor = by_name.get(name)
        while ancestor is not None and ancestor.name not in seen:
            seen.add(ancestor.name)
            if ancestor.snapshot:
                taught[ancestor.snapshot] = None
            ancestor = by_name.get(ancestor.parent or "")
        found[name] = tuple(taught)
    return found


LIVE = frozenset({AdapterState.LOADED, AdapterState.CANARY, AdapterState.STABLE, AdapterState.SUPERSEDED})
"""States in which every replica must have the adapter loaded."""

WANTED = LIVE | {AdapterState.EVALUATED}
"""States in which the controller sees to it that every replica loads the adapter."""

TRANSITIONS: dict[AdapterState, frozenset[AdapterState]] = {
    AdapterState.REGISTERED: frozenset({AdapterState.EVALUATED, AdapterState.REJECTED}),
    AdapterState.EVALUATED: frozenset({AdapterState.LOADED, AdapterState.REJECTED}),
    AdapterState.LOADED: frozenset({AdapterState.CANARY, AdapterState.STABLE, AdapterState.REJECTED}),
    AdapterState.CANARY: frozenset({AdapterState.STABLE, AdapterState.ROLLED_BACK}),
    AdapterState.STABLE: frozenset({AdapterState.SUPERSEDED, AdapterState.ROLLED_BACK}),
    AdapterState.SUPERSEDED: frozenset({AdapterState.STABLE, AdapterState.RETIRED}),
    AdapterState.RETIRED: frozenset(),
    AdapterState.REJECTED: frozenset(),
    AdapterState.ROLLED_BACK: frozenset({AdapterState.RETIRED}),
}
