"""Which adapter and which replica answer a request, from the registry's last good tables.

`Routes` is a frozen value made from what the registry says; `Router` polls, keeps the last good one while
the registry is down, and counts what is in flight on each replica.
"""

import time
from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec
from prometheus_client import Gauge

from ops.errors import UnknownAdapter
from ops.traffic import Assignment, TrafficTable, assign, pin
from serving.asked import DEFAULT_MODEL
from serving.errors import NoEngine, UnknownModel

ROUTES_AGE = Gauge("ratchet_serving_routes_age_seconds", "Time since the registry was last read, seconds")
TRAFFIC_REVISION = Gauge("ratchet_serving_traffic_revision_count", "Revision of the traffic table in use")

RESTING_S = 1.0
"""A replica that just failed gets no request for so long, if another one is ready."""


class RoutingSource(Protocol):
    """The part of `ops.registry.Registry` that routing reads. Blocking."""

    def traffic(self) -> TrafficTable | None: ...

    def readiness(self) -> dict[str, frozenset[str]]: ...


class Routes(msgspec.Struct, frozen=True):
    """One reading of the registry: what may be chosen at this moment."""

    table: TrafficTable
    replicas: Mapping[str, tuple[str, ...]]
    """Adapter → base URLs of the replicas that are ready with it."""


def routes(table: TrafficTable, readiness: Mapping[str, frozenset[str]]) -> Routes:
    """A canary that no replica is ready with gets no traffic: its users stay with stable until one is."""
    replicas: dict[str, tuple[str, ...]] = {}
    for url in sorted(readiness):
        for adapter in readiness[url]:
            replicas[adapter] = (*replicas.get(adapter, ()), url)
    if table.canary is not None and table.canary not in replicas:
        table = msgspec.structs.replace(table, canary=None, canary_fraction=0.0)
    return Routes(table, replicas)


def choose(known: Routes, model: str, unit: str) -> Assignment:
    """Raises: UnknownModel."""
    if model == DEFAULT_MODEL:
        return assign(known.table, unit)
    try:
        return pin(known.table, model)
    except UnknownAdapter as e:
        raise UnknownModel(str(e), param="model") from e


def served_models(known: Routes) -> list[str]:
    """Names a client may ask for, the split first."""
    table = known.table
    named = [n for n in (table.stable, table.canary, table.previous, *table.pinnable) if n in known.replicas]
    return [DEFAULT_MODEL, *dict.fromkeys(n for n in named if n)]


class Router:
    def __init__(self, source: RoutingSource) -> None:
        self._source = source
        self._routes: Routes | None = None
        self._read_at = time.monotonic()
        self._in_flight: dict[str, int] = {}
        self._resting_until: dict[str, float] = {}
        self._last_used: dict[str, float] = {}
        ROUTES_AGE.set_function(lambda: time.monotonic() - self._read_at)

    def refresh(self) -> None:
        """Read the registry. Blocking. Raises: RegistryUnavailable; the last good routes stay then."""
        table = self._source.traffic()
        if table is None:
            return
        self._routes = routes(table, self._source.readiness())
        self._read_at = time.monotonic()
        TRAFFIC_REVISION.set(table.revision)

    def current(self) -> Routes:
        """Raises: NoEngine before the first adapter serves."""
        if self._routes is None:
            raise NoEngine("no adapter is serving yet")
        return self._routes

    def ready(self) -> bool:
        """The stable adapter has a replica."""
        return self._routes is not None and self._routes.table.stable in self._routes.replicas

    def replica(self, adapter: str, avoid: Collection[str] = ()) -> str:
        """The ready replica with the least in flight, then the one that has waited longest; one in `avoid`
        or resting only if there is no other.

        Raises: NoEngine.
        """
        ready = self.current().replicas.get(adapter)
        if not ready:
            raise NoEngine(f"no replica is ready with {adapter}")
        if len(ready) == 1:
            return ready[0]
        now = time.monotonic()

        def reluctance(url: str) -> tuple[bool, bool, int, float]:
            resting = self._resting_until.get(url, 0.0) > now
            return url in avoid, resting, self._in_flight.get(url, 0), self._last_used.get(url, 0.0)

        return min(ready, key=reluctance)

    def rest(self, url: str) -> None:
        """`url` just failed."""
        self._resting_until[url] = time.monotonic() + RESTING_S

    def occupy(self, url: str) -> None:
        self._last_used[url] = time.monotonic()
        self._in_flight[url] = self._in_flight.get(url, 0) + 1

    def vacate(self, url: str) -> None:
        self._in_flight[url] -= 1
