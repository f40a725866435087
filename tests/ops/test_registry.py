"""The registry on SQLite and on a real PostgreSQL: one contract."""

import math
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from ops.adapters import TRANSITIONS, Adapter, AdapterState, Change, adapter_name
from ops.errors import (
    InvalidAdapter,
    RegistryUnavailable,
    RevisionConflict,
    TransitionRefused,
    UnknownAdapter,
)
from ops.registry import Registry
from ops.traffic import TrafficTable
from tests.ops.reports import GOOD as REPORT

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


def candidate(letter: str = "a", **more: object) -> Adapter:
    sha256 = letter * 64
    adapter = Adapter(
        name=adapter_name("run", sha256),
        sha256=sha256,
        path=f"/adapters/{sha256}",
        base_sha256="b" * 64,
        run_id="run",
        created_at=NOW,
        changed_at=NOW,
    )
    return msgspec.structs.replace(adapter, **more)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: str = request.getfixturevalue("postgres_url")
    return server


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = Registry(url)
    yield registry
    registry.close()


def test_a_candidate_comes_back_as_it_was(registry: Registry) -> None:
    """Lineage and evidence must survive the database, times with their zone."""
    adapter = candidate(parent="base-00000000", snapshot="snapshot-1", reward_model="rm-1", report=REPORT)
    assert registry.register(adapter) == adapter
    assert registry.get(adapter.name) == adapter


def test_evidence_with_nan_is_kept_as_it_is(registry: Registry) -> None:
    """One broken report must not make the whole registry unreadable: its gates say ERROR."""
    broken = msgspec.structs.replace(REPORT, reward_gain=math.nan, kl_root_nats=-math.inf)
    registry.register(candidate(report=broken))
    (listed,) = registry.list()
    assert listed.report is not None
    assert math.isnan(listed.report.reward_gain)
    assert listed.report.kl_root_nats == -math.inf
    assert listed.report.prompts == 40


def test_registering_twice_changes_nothing(registry: Registry) -> None:
    """A learner that crashed after registering registers again."""
    registry.register(candidate())
    moved = registry.transition(
        candidate().name, AdapterState.EVALUATED, revision=0, by="t", reason="ok", at=LATER
    )
    assert registry.register(candidate()) == moved
    assert [e.after for e in registry.audit()] == ["registered", "evaluated"]


def test_a_name_never_gets_other_weights(registry: Registry) -> None:
    registry.register(candidate())
    other = candidate(sha256="a" * 8 + "c" * 56)
    with pytest.raises(InvalidAdapter, match="belongs to other weights"):
        registry.register(other)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "run-ffffffff"},
        {"name": "../run-aaaaaaaa"},
        {"name": "<b>-aaaaaaaa"},
        {"path": "relative/folder"},
        {"sha256": "aaaaaaaa"},
    ],
)
def test_malformed_adapters_do_not_get_in(registry: Registry, change: dict[str, str]) -> None:
    """Names end up in paths, URLs and web pages; a relative path would be looked up on a hub."""
    with pytest.raises(InvalidAdapter):
        registry.register(candidate(**change))
    assert registry.list() == []


@pytest.mark.parametrize("start", AdapterState)
@pytest.mark.parametrize("to", AdapterState)
def test_only_transitions_of_the_state_machine_happen(
    tmp_path: Path, start: AdapterState, to: AdapterState
) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'state.db'}")
    adapter = registry.register(candidate())
    for step in ROUTES[start]:
        adapter = registry.transition(
            adapter.name, step, revision=adapter.revision, by="t", reason="", at=LATER
        )
    if to in TRANSITIONS[start]:
        moved = registry.transition(adapter.name, to, revision=adapter.revision, by="t", reason="r", at=LATER)
        assert (moved.state, moved.revision, moved.changed_at) == (to, adapter.revision + 1, LATER)
    else:
        with pytest.raises(TransitionRefused, match="it can become"):
            registry.transition(adapter.name, to, revision=adapter.revision, by="t", reason="r", at=LATER)
        assert registry.get(adapter.name) == adapter
    registry.close()


S = AdapterState
ROUTES: dict[AdapterState, list[AdapterState]] = {
    S.REGISTERED: [],
    S.EVALUATED: [S.EVALUATED],
    S.LOADED: [S.EVALUATED, S.LOADED],
    S.CANARY: [S.EVALUATED, S.LOADED, S.CANARY],
    S.STABLE: [S.EVALUATED, S.LOADED, S.CANARY, S.STABLE],
    S.SUPERSEDED: [S.EVALUATED, S.LOADED, S.CANARY, S.STABLE, S.SUPERSEDED],
    S.RETIRED: [S.EVALUATED, S.LOADED, S.CANARY, S.STABLE, S.SUPERSEDED, S.RETIRED],
    S.REJECTED: [S.REJECTED],
    S.ROLLED_BACK: [S.EVALUATED, S.LOADED, S.CANARY, S.ROLLED_BACK],
}


def test_a_stale_revision_is_refused(registry: Registry) -> None:
    """Two controllers, or a controller and an operator: the second must read again and decide again."""
    registry.register(candidate())
    registry.transition(candidate().name, S.EVALUATED, revision=0, by="one", reason="", at=LATER)
    with pytest.raises(RevisionConflict, match="revision 1"):
        registry.transition(candidate().name, S.REJECTED, revision=0, by="two", reason="", at=LATER)
    assert registry.get(candidate().name).state is S.EVALUATED


def test_one_of_many_racers_wins(url: str, registry: Registry) -> None:
    """Compare-and-swap under real concurrency, each racer with its own connections."""
    registry.register(candidate())
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def race(number: int) -> None:
        own = Registry(url)
        start.wait()
        try:
            own.transition(candidate().name, S.EVALUATED, revision=0, by=f"r{number}", reason="", at=LATER)
            outcomes.append("won")
        except RevisionConflict:
            outcomes.append("lost")
        finally:
            own.close()

    racers = [threading.Thread(target=race, args=(n,)) for n in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    assert [e.after for e in registry.audit()] == ["registered", "evaluated"]


def test_changes_and_traffic_happen_together_or_not_at_all(registry: Registry) -> None:
    """A crash or a conflict in between must not leave a stable adapter that nobody is routed to."""
    for letter in "ac":
        registry.register(candidate(letter))
    changes = [
        Change(name=candidate("a").name, revision=0, to=S.EVALUATED, reason="ok"),
        Change(name=candidate("c").name, revision=7, to=S.EVALUATED, reason="stale"),
    ]
    table = TrafficTable(revision=0, stable=candidate("a").name, changed_at=NOW)
    with pytest.raises(RevisionConflict):
        registry.apply(changes, by="t", at=LATER, table=table)
    assert registry.get(candidate("a").name).state is S.REGISTERED
    assert registry.traffic() is None
    assert [e.after for e in registry.audit()] == ["registered", "registered"]


def test_every_change_says_who_and_why(registry: Registry) -> None:
    registry.register(candidate(), by="learner")
    registry.transition(candidate().name, S.REJECTED, revision=0, by="ann", reason="too long", at=LATER)
    last = registry.audit(candidate().name)[-1]
    assert (last.by, last.reason, last.before, last.after, last.at) == (
        "ann",
        "too long",
        "registered",
        "rejected",
        LATER,
    )


def test_traffic_revisions_only_grow(registry: Registry) -> None:
    table = TrafficTable(revision=0, stable="x", changed_at=NOW)
    assert registry.set_traffic(table, expected_revision=0).revision == 1
    with pytest.raises(RevisionConflict):
        registry.set_traffic(table, expected_revision=0)
    assert registry.set_traffic(table, expected_revision=1).revision == 2
    assert registry.traffic() == msgspec.structs.replace(table, revision=2)


def test_a_replica_report_replaces_the_one_before(registry: Registry) -> None:
    """After a restart a replica has nothing: what it had must not be routed to."""
    registry.report_replica("http://one", {"a": "f1", "b": "f2"}, NOW)
    registry.report_replica("http://one", {"b": "f2"}, LATER)
    registry.report_replica("http://two", {}, LATER)
    assert registry.readiness() == {"http://one": frozenset({"b"}), "http://two": frozenset()}
    registry.forget_replica("http://two")
    assert registry.readiness() == {"http://one": frozenset({"b"})}


def test_notes_attach_evidence_without_a_transition(registry: Registry) -> None:
    """An inconclusive candidate waits; its operator sees why, and more evidence can arrive."""
    registry.register(candidate())
    noted = registry.note(candidate().name, revision=0, by="t", reason="8 prompts", at=LATER, report=REPORT)
    assert (noted.state, noted.revision, noted.reason, noted.report) == (S.REGISTERED, 1, "8 prompts", REPORT)
    with pytest.raises(RevisionConflict):
        registry.note(candidate().name, revision=0, by="t", reason="x", at=LATER)


def test_memos_are_kept(registry: Registry) -> None:
    assert registry.recall("counts") is None
    registry.remember("counts", b"1")
    registry.remember("counts", b"2")
    assert registry.recall("counts") == b"2"


def test_unknown_names_are_named(registry: Registry) -> None:
    with pytest.raises(UnknownAdapter, match="'nobody'"):
        registry.get("nobody")
    with pytest.raises(UnknownAdapter, match="'nobody'"):
        registry.transition("nobody", S.EVALUATED, revision=0, by="t", reason="", at=NOW)


@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:////proc/nowhere/state.db",
        "postgresql+psycopg://u:secret@127.0.0.1:9/x?connect_timeout=1",
        "nosuchdb://x",
        "not a url",
    ],
)
def test_a_database_out_of_reach_is_one_clear_error(bad: str) -> None:
    """And the password in the URL stays out of it."""
    with pytest.raises(RegistryUnavailable) as caught:
        Registry(bad)
    assert "secret" not in str(caught.value)
