"""Replicas that fail, canaries that are not loaded, a registry that goes away."""

import socket
import time
from pathlib import Path

import pytest

from ops.errors import RegistryUnavailable
from ops.traffic import TrafficTable
from serving.errors import NoEngine
from serving.routing import Router, Routes, choose, routes, served_models
from tests.serving.conftest import AT, CANARY, STABLE, Start, serving
from tests.serving.scripted_engine import Script, ScriptedEngine

SPLIT = TrafficTable(revision=1, stable=STABLE, canary=CANARY, canary_fraction=1.0, salt="s")


class Table:
    """A registry in memory."""

    def __init__(self, readiness: dict[str, frozenset[str]]) -> None:
        self.ready = readiness
        self.down = False

    def traffic(self) -> TrafficTable | None:
        if self.down:
            raise RegistryUnavailable("down")
        return TrafficTable(revision=1, stable=STABLE)

    def readiness(self) -> dict[str, frozenset[str]]:
        return self.ready


def closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_canary_nobody_is_ready_with_gets_no_traffic() -> None:
    """Its users stay with stable, with stable's propensity."""
    known = routes(SPLIT, {"http://a": frozenset({STABLE})})
    assert choose(known, "ratchet", "u").adapter == STABLE
    assert choose(known, "ratchet", "u").propensity == 1.0
    assert choose(routes(SPLIT, {"http://a": frozenset({STABLE, CANARY})}), "ratchet", "u").adapter == CANARY


def test_only_what_is_ready_is_listed() -> None:
    assert served_models(routes(SPLIT, {"http://a": frozenset({STABLE, "learner-1"})})) == ["ratchet", STABLE]
    assert served_models(Routes(SPLIT, {})) == ["ratchet"]


def test_replica_with_the_least_in_flight_is_chosen() -> None:
    router = Router(Table({"http://a": frozenset({STABLE}), "http://b": frozenset({STABLE})}))
    router.refresh()
    chosen = []
    for _ in range(4):
        chosen.append(router.replica(STABLE))
        router.occupy(chosen[-1])
    assert chosen == ["http://a", "http://b", "http://a", "http://b"]
    router.vacate("http://b")
    assert router.replica(STABLE) == "http://b"
    assert router.replica(STABLE, avoid=["http://b"]) == "http://a"


def test_replica_that_failed_rests() -> None:
    """The dead one always has the least in flight: it would attract every request."""
    router = Router(Table({"http://a": frozenset({STABLE}), "http://b": frozenset({STABLE})}))
    router.refresh()
    router.rest("http://a")
    router.occupy("http://b")
    assert router.replica(STABLE) == "http://b"


def test_last_good_routes_stay_while_the_registry_is_down() -> None:
    source = Table({"http://a": frozenset({STABLE})})
    router = Router(source)
    with pytest.raises(NoEngine, match="no adapter"):
        router.current()
    router.refresh()
    source.down = True
    with pytest.raises(RegistryUnavailable):
        router.refresh()
    assert router.replica(STABLE) == "http://a"


@pytest.mark.parametrize("stream", [False, True])
def test_dead_replica_is_retried_on_another_before_the_first_byte(
    start: Start, engine_url: str, stream: bool
) -> None:
    gateway = start(replicas={closed_port(): (STABLE,), engine_url: (STABLE,)})
    for _ in range(6):
        assert gateway.ask(stream=stream).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Script(status=500), Script(status=404), Script(break_after=0)])
def test_failing_replica_is_retried_on_another(
    start: Start, engine_url: str, fault: Script, stream: bool
) -> None:
    with serving(ScriptedEngine(fault)) as failing:
        gateway = start(replicas={failing: (STABLE,), engine_url: (STABLE,)})
        for _ in range(3):
            assert gateway.ask(stream=stream).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_no_engine_is_503_at_once(start: Start, stream: bool) -> None:
    """Never a hang: OpenAI's clients retry on 503, and Retry-After says when."""
    gateway = start(replicas={closed_port(): (STABLE,)})
    began = time.monotonic()
    response = gateway.ask(stream=stream)
    assert time.monotonic() - began < 2.0
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert response.headers["retry-after"] == "2"


@pytest.mark.slow
def test_hanging_engine_is_given_up(start: Start, engine_url: str) -> None:
    gateway = start(stall_timeout_s=0.2, reply_timeout_s=0.3)
    gateway.engine.script = Script(first_delay_s=30)
    for stream in (False, True):
        response = gateway.ask(stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "engine_too_slow")
    assert len(gateway.engine.requests) == 2


def test_new_table_is_picked_up_while_serving(start: Start) -> None:
    gateway = start()
    assert gateway.ask().json()["model"] == STABLE
    gateway.registry.set_traffic(TrafficTable(revision=2, stable=CANARY), expected_revision=1, at=AT)
    deadline = time.monotonic() + 1.0
    while gateway.ask().json()["model"] != CANARY:
        assert time.monotonic() < deadline, "the new table was not used within a second"


def test_chat_goes_on_without_the_state_database(start: Start, tmp_path: Path) -> None:
    """Keys and routes were read; the file is gone."""
    gateway = start()
    assert gateway.ask().status_code == 200
    for file in tmp_path.glob("state.db*"):
        file.rename(file.with_suffix(".gone"))
    (tmp_path / "state.db").mkdir()
    time.sleep(0.3)
    assert gateway.ask().status_code == 200


def test_readyz_tells_whether_a_request_would_be_answered(start: Start, engine_url: str) -> None:
    gateway = start(replicas={engine_url: (CANARY,)})
    assert gateway.http.get(f"{gateway.url}/readyz").status_code == 503
    gateway.registry.report_replica(engine_url, {STABLE: "probe"}, AT)
    deadline = time.monotonic() + 2.0
    while gateway.http.get(f"{gateway.url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
