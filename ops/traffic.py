"""Which adapter answers whom: a monotone, sticky split. Pure.

A unit (end user, else conversation) falls into a bucket in [0, 1) that depends only on the rollout's salt
and the unit; the canary takes the buckets below its fraction. Raising the fraction moves units only towards
the canary, so nobody flips back and forth during a ramp.
"""

from datetime import datetime
from hashlib import blake2b

import msgspec

from ops.errors import UnknownAdapter


class TrafficTable(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets what. Replaced as a whole; `revision` only grows."""

    revision: int
    stable: str
    canary: str | None = None
    canary_fraction: float = 0.0
    salt: str = ""
    previous: str | None = None
    pinnable: tuple[str, ...] = ()
    """Further adapters that a client may ask for by name (loaded everywhere)."""
    changed_at: datetime | None = None
    """When the split became this; a canary step lasts from here."""


class Assignment(msgspec.Struct, frozen=True):
    adapter: str
    arm: str
    propensity: float


def bucket(salt: str, unit: str) -> float:
    """The unit's place in [0, 1)."""
    digest = blake2b(f"{salt}\x1f{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign(table: TrafficTable, unit: str) -> Assignment:
    if table.canary is None or table.canary_fraction <= 0.0:
        return Assignment(table.stable, "stable", 1.0)
    if bucket(table.salt, unit) < table.canary_fraction:
        return Assignment(table.canary, "canary", table.canary_fraction)
    return Assignment(table.stable, "stable", 1.0 - table.canary_fraction)


def other_arm(table: TrafficTable, given: Assignment) -> Assignment | None:
    """What the split gives those who are not in `given`'s arm; None while one arm has all the traffic."""
    if table.canary is None or not 0.0 < table.canary_fraction < 1.0:
        return None
    if given.arm == "stable":
        return Assignment(table.canary, "canary", table.canary_fraction)
    return Assignment(table.stable, "stable", 1.0 - table.canary_fraction)


def pin(table: TrafficTable, adapter: str) -> Assignment:
    """The adapter a client asked for by name.

    Raises: UnknownAdapter naming the ones that can be asked for.
    """
    names = [n for n in (table.stable, table.canary, table.previous, *table.pinnable) if n]
    if adapter not in names:
        raise UnknownAdapter(
            f"model {adapter!r} is not served; ask for 'ratchet' or one of {', '.join(names)}"
        )
    return Assignment(adapter, "pinned", 1.0)
