"""The controller on a real engine, registry and log: load, judge, roll out, roll back, recover."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from feedback.codec import decode, encode
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from feedback.events import AdapterTransitioned, IdentitySource, TurnRecorded, TurnStatus, turn_event
from ops import operators, store, vllm_adapters
from ops.adapters import Adapter, AdapterState, adapter_name
from ops.config import Rollout
from ops.errors import RegistryUnavailable, TransitionRefused
from ops.evaluation import EvalReport
from ops.reconcile import Controller, View, agreement, ensure_identity, look_after, reconcile
from ops.registry import Registry
from tests.engines import RunningEngine, make_adapter
from tests.ops.reports import GOOD

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROLLOUT = Rollout(canary_steps=[0.1, 0.5], step_s=10.0, step_turns=3, drain_s=5.0)
S = AdapterState


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def controller(transformers_engine: RunningEngine, tmp_path: Path) -> Iterator[Controller]:
    """A controller of its own over the session's engine, with the base's adapter registered."""
    engine = transformers_engine
    registry = Registry(f"sqlite:///{tmp_path / 'state.db'}")
    log = EmbeddedLog(tmp_path / "log.db")
    identity = ensure_identity(registry, engine.base_dir, tmp_path / "adapters", NOW)
    yield Controller(registry, [engine.url], ROLLOUT, identity.base_sha256, log, log)
    for name in vllm_adapters.listed(engine.url) - {engine.identity}:
        vllm_adapters.unload(engine.url, name)
    log.close()
    registry.close()


@pytest.fixture
def engine(transformers_engine: RunningEngine) -> RunningEngine:
    return transformers_engine


def candidate(
    controller: Controller,
    engine: RunningEngine,
    folder: Path,
    report: EvalReport | None = GOOD,
    seed: int = 1,
) -> Adapter:
    made = make_adapter(engine.base_dir, folder / f"candidate-{seed}", seed=seed)
    sha256, path = store.put(made, folder / "adapters", base_dir=engine.base_dir)
    return controller.registry.register(
        Adapter(
            name=adapter_name("run", sha256),
            sha256=sha256,
            path=str(path),
            base_sha256=controller.base_sha256,
            run_id="run",
            report=report,
            created_at=after(1),
            changed_at=after(1),
        )
    )


def record_turns(
    controller: Controller, adapter: str, number: int, status: TurnStatus = TurnStatus.COMPLETE
) -> None:
    for _ in range(number):
        at = controller.turns.end(Topic.TURNS, 0)
        turn = TurnRecorded(
            response_id=f"chatcmpl-{at:032d}",
            conversation_id=f"c{at}",
            identity=IdentitySource.EXPLICIT,
            principal="p",
            user="u",
            adapter=adapter,
            arm="canary",
            propensity=0.1,
            messages=({"role": "user", "content": "hi"},),
            reply={"role": "assistant", "content": "hello"},
            status=status,
            started_at=NOW,
        )
        event = turn_event(turn)
        controller.turns.append(Topic.TURNS, event.key, event.id, encode(event)).result(timeout=10)


def state(controller: Controller, adapter: Adapter) -> AdapterState:
    return controller.registry.get(adapter.name).state


def passes(controller: Controller, *seconds: float) -> None:
    for at in seconds:
        reconcile(controller, after(at))


def to_canary(controller: Controller, engine: RunningEngine, folder: Path) -> Adapter:
    """The base serves, and a good candidate has become the canary at 10 %."""
    passes(controller, 0, 0.5)
    new = candidate(controller, engine, folder)
    passes(controller, 2, 3)
    assert state(controller, new) is S.CANARY
    return new


def test_first_start_serves_the_base_model(controller: Controller, engine: RunningEngine) -> None:
    passes(controller, 0, 0.5)
    table = controller.registry.traffic()
    assert table is not None
    assert (table.revision, table.stable, table.canary) == (1, engine.identity, None)
    assert controller.registry.readiness() == {engine.url: frozenset({engine.identity})}


def test_a_good_candidate_goes_all_the_way(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    """Loaded, canary at 10 %, at 50 %, stable: each step only after its time and its turns."""
    new = to_canary(controller, engine, tmp_path)
    assert new.name in controller.registry.readiness()[engine.url]
    passes(controller, 14)
    table = controller.registry.traffic()
    assert table is not None and table.canary_fraction == 0.1  # time, but no turns
    record_turns(controller, new.name, 3)
    passes(controller, 15)
    table = controller.registry.traffic()
    assert table is not None and table.canary_fraction == 0.5
    record_turns(controller, new.name, 3)
    passes(controller, 26)
    table = controller.registry.traffic()
    assert table is not None
    assert (table.stable, table.previous, table.canary) == (new.name, engine.identity, None)
    assert state(controller, new) is S.STABLE


def test_a_failing_canary_goes_and_is_unloaded_after_the_drain(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    new = to_canary(controller, engine, tmp_path)
    record_turns(controller, new.name, 2)
    record_turns(controller, new.name, 3, TurnStatus.FAILED)
    passes(controller, 4)
    assert state(controller, new) is S.ROLLED_BACK
    table = controller.registry.traffic()
    assert table is not None and table.canary is None
    passes(controller, 8.9)
    assert new.name in vllm_adapters.listed(engine.url)
    passes(controller, 9.1)
    assert new.name not in vllm_adapters.listed(engine.url)


def test_aborted_turns_are_no_failures(controller: Controller, engine: RunningEngine, tmp_path: Path) -> None:
    """A user who closes the tab says nothing about the adapter."""
    new = to_canary(controller, engine, tmp_path)
    record_turns(controller, new.name, 10, TurnStatus.ABORTED)
    passes(controller, 4)
    assert state(controller, new) is S.CANARY


def test_an_operator_rolls_back_and_promotes(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    new = to_canary(controller, engine, tmp_path)
    operators.promote(controller.registry, new.name, by="ann", reason="urgent", clock=lambda: after(4))
    assert state(controller, new) is S.STABLE
    operators.roll_back(controller.registry, by="ann", reason="worse", clock=lambda: after(5))
    assert state(controller, new) is S.ROLLED_BACK
    table = controller.registry.traffic()
    assert table is not None and table.stable == engine.identity
    assert controller.registry.get(new.name).reason == "worse"
    with pytest.raises(TransitionRefused):
        operators.promote(controller.registry, new.name, by="ann", reason="", clock=lambda: after(6))


@pytest.mark.parametrize(
    "report,expected,said",
    [
        (None, S.REJECTED, "no evaluation report"),
        (msgspec.structs.replace(GOOD, kl_root_nats=99.0), S.REJECTED, "kl_root fail"),
        (msgspec.structs.replace(GOOD, reward_gain_low=-0.1), S.REGISTERED, "reward_gain inconclusive"),
        (msgspec.structs.replace(GOOD, reward_gain=float("nan")), S.REJECTED, "reward_gain is nan"),
    ],
)
def test_gates_decide_and_say_why(
    controller: Controller,
    engine: RunningEngine,
    tmp_path: Path,
    report: EvalReport | None,
    expected: AdapterState,
    said: str,
) -> None:
    new = candidate(controller, engine, tmp_path, report)
    passes(controller, 2, 3)
    judged = controller.registry.get(new.name)
    assert judged.state is expected
    assert said in judged.reason
    assert new.name not in vllm_adapters.listed(engine.url)
    assert len(controller.registry.audit(new.name)) == 2  # the second pass had nothing to add


def test_more_evidence_frees_a_waiting_candidate(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    new = candidate(controller, engine, tmp_path, msgspec.structs.replace(GOOD, prompts=3))
    passes(controller, 2)
    waiting = controller.registry.get(new.name)
    controller.registry.note(
        new.name, revision=waiting.revision, by="learner", reason="40 prompts", at=after(3), report=GOOD
    )
    passes(controller, 4)
    assert state(controller, new) is S.LOADED


def test_an_adapter_for_another_base_is_rejected(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    controller.base_sha256 = "f" * 64
    new = candidate(controller, engine, tmp_path)
    other = msgspec.structs.replace(new, base_sha256="e" * 64, name=new.name.replace("run-", "other-"))
    controller.registry.register(other)
    passes(controller, 2)
    assert state(controller, other) is S.REJECTED
    assert "it is for base eeeeeeeeeeee" in controller.registry.get(other.name).reason


def test_files_changed_after_registering_never_load(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    new = candidate(controller, engine, tmp_path)
    weights = Path(new.path) / store.WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
    passes(controller, 2, 3)
    assert state(controller, new) is S.REJECTED
    assert "files were changed" in controller.registry.get(new.name).reason
    assert new.name not in vllm_adapters.listed(engine.url)


def test_a_replica_that_lost_its_adapters_gets_them_back(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    """A restart forgets everything loaded at run time."""
    new = to_canary(controller, engine, tmp_path)
    vllm_adapters.unload(engine.url, new.name)
    passes(controller, 5)
    assert new.name in vllm_adapters.listed(engine.url)
    assert new.name in controller.registry.readiness()[engine.url]


def test_a_dead_replica_is_ready_for_nothing_and_stops_the_ramp(
    controller: Controller, engine: RunningEngine, tmp_path: Path, free_port: int
) -> None:
    new = to_canary(controller, engine, tmp_path)
    dead = f"http://127.0.0.1:{free_port}"
    controller.urls = [engine.url, dead]
    record_turns(controller, new.name, 9)
    passes(controller, 30)
    assert controller.registry.readiness()[dead] == frozenset()
    assert new.name in controller.registry.readiness()[engine.url]
    table = controller.registry.traffic()
    assert table is not None and table.canary_fraction == 0.1


def test_a_new_controller_goes_on_where_the_old_one_died(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    """Counts and log position live in the registry: no turn counts twice or is lost."""
    new = to_canary(controller, engine, tmp_path)
    record_turns(controller, new.name, 2)
    passes(controller, 5)
    log = controller.turns
    second = Controller(controller.registry, [engine.url], ROLLOUT, controller.base_sha256, log, log)
    record_turns(second, new.name, 1)
    passes(second, 14)
    table = second.registry.traffic()
    assert table is not None and table.canary_fraction == 0.5


def test_learner_adapters_are_left_alone_until_they_are_stale(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    folder = make_adapter(engine.base_dir, tmp_path / "learner", seed=9)
    vllm_adapters.load(engine.url, "learner-7", folder)
    passes(controller, 0, 3599)
    assert "learner-7" in vllm_adapters.listed(engine.url)
    passes(controller, 3601)
    assert "learner-7" not in vllm_adapters.listed(engine.url)


def test_every_state_change_is_announced_once(
    controller: Controller, engine: RunningEngine, tmp_path: Path
) -> None:
    new = to_canary(controller, engine, tmp_path)
    operators.roll_back(controller.registry, by="ann", reason="no", clock=lambda: after(4))
    passes(controller, 5, 6)
    controller.announcements.append(Topic.DEAD_LETTERS, "k", "barrier", b"").result(timeout=10)
    said = [decode(r.value).data for r in controller.announcements.read(Topic.ADAPTERS, 0, 0)]
    moves = [e for e in said if isinstance(e, AdapterTransitioned) and e.adapter == new.name]
    mine = [(e.to_state, e.by) for e in moves]
    assert mine == [
        ("registered", "learner"),
        ("evaluated", "controller"),
        ("loaded", "controller"),
        ("canary", "controller"),
        ("rolled_back", "ann"),
    ]


def test_replicas_that_disagree_are_not_used_for_that_adapter() -> None:
    """The same weights must say the same; the odd one out has something wrong with it."""
    views = [
        View("a", True, fingerprints={"x": "1", "y": "1"}),
        View("b", True, fingerprints={"x": "2", "y": "1"}),
        View("c", True, fingerprints={"x": "1"}),
    ]
    assert agreement(views) == {"a": {"x": "1", "y": "1"}, "b": {"y": "1"}, "c": {"x": "1"}}


def test_a_replica_that_is_down_has_nothing(free_port: int) -> None:
    assert look_after(f"http://127.0.0.1:{free_port}", [], None).healthy is False


def test_a_registry_out_of_reach_ends_the_pass(controller: Controller, tmp_path: Path) -> None:
    """And `run` tries again; the gateways keep their last table."""
    controller.registry.close()
    (tmp_path / "state.db").unlink()
    (tmp_path / "state.db").mkdir()
    with pytest.raises(RegistryUnavailable):
        reconcile(controller, NOW)
