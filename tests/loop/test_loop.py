"""The whole loop with a toy model, in memory: from conversations to a better adapter, and back."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback import pipeline, snapshots, store
from feedback.config import Deployment, Pipeline, Review
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from feedback.events import SignalReceived, TurnRecorded
from feedback.keyring import KeyRing
from feedback.review_queue import ReviewQueue
from learner import turn as turns
from learner.config import Eval, Judge
from learner.examination import examination
from ops import operators, vllm_adapters
from ops import store as adapter_files
from ops.adapters import Adapter, AdapterState, adapter_name
from ops.config import Rollout
from ops.evaluation import EvalReport
from ops.reconcile import Controller, ensure_identity, reconcile
from ops.registry import Registry
from ops.transformers_engine import Engine, create_app
from ops.transformers_model import ModelThread
from serving.app import build
from serving.auth import Keys, Role
from serving.config import Gateway
from tests.engines import make_adapter
from tests.loop.people import People, said
from tests.loop.processes import ready, wait_until
from tests.loop.toy import CONTEXT, GOOD, LEARNER, QUESTIONS
from tests.serving.conftest import serving

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
pytestmark = pytest.mark.slow
PIPELINE = Pipeline(retry_window_s=0.0, heldout_fraction=0.3, account_cap=1.0)
ROLLOUT = Rollout(
    canary_steps=[0.5], step_s=10.0, step_turns=8, drain_s=5.0, min_prompts=5, min_reward_model_pairs=3
)


@dataclass
class Loop:
    """Every part of the service, running in this process."""

    deployment: Deployment
    base_dir: Path
    engine_url: str
    people: People
    log: EmbeddedLog
    ring: KeyRing
    registry: Registry
    controller: Controller
    identity: str
    passes: int = field(default=0)

    def reconcile(self, times: int = 1) -> None:
        """Passes of the controller, ten seconds apart."""
        for _ in range(times):
            self.passes += 1
            reconcile(self.controller, NOON + timedelta(seconds=10 * self.passes))

    def fold(self) -> None:
        """Everything that is in the log so far."""
        state = store.open_state(self.deployment.state)
        while pipeline.step(self.log, state, PIPELINE, now=datetime.now(UTC)).records:
            pass
        state.dispose()

    def state_of(self, adapter: str) -> AdapterState:
        return self.registry.get(adapter).state

    def setting(self) -> turns.Setting:
        return turns.Setting(
            deployment=self.deployment,
            pipeline=PIPELINE,
            learner=LEARNER,
            base_dir=self.base_dir,
            engine_urls=[self.engine_url],
            examination=examination(self.deployment, Eval(), Judge()),
        )


@pytest.fixture
def loop(toy_base: Path, tmp_path: Path) -> Iterator[Loop]:
    """The service after its first start: the base model's own adapter serves everybody."""
    deployment = Deployment(data_dir=tmp_path / "data", base_model=str(toy_base))
    deployment.data_dir.mkdir()
    with ExitStack() as stack:
        thread = ModelThread(toy_base, "float32", 32, 32)
        stack.callback(thread.close)
        replica = Engine(toy_base, served="base", max_model_len=CONTEXT, thread=thread)
        engine_url = stack.enter_context(serving(create_app(replica)))
        log = stack.enter_context(closing(EmbeddedLog(deployment.log_path)))
        registry = stack.enter_context(closing(Registry(deployment.state)))
        keys = stack.enter_context(closing(Keys(deployment.state)))
        ring = stack.enter_context(closing(KeyRing(deployment.state)))
        identity = ensure_identity(registry, toy_base, deployment.adapters_dir, NOON)
        controller = Controller(registry, [engine_url], ROLLOUT, identity.base_sha256, log, log)
        key = keys.create("acme", Role.CHAT, NOON)
        queue = ReviewQueue(deployment.state, Review())
        stack.callback(queue.close)
        gateway = build(
            Gateway(poll_s=0.05),
            log=log,
            registry=registry,
            keys=keys,
            ring=ring,
            queue=queue,
            secret=b"s" * 32,
        )
        url = stack.enter_context(serving(gateway))
        sdk = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
        people = People(sdk, like=lambda reply: reply == GOOD, improve=lambda reply: GOOD, max_tokens=16)
        made = Loop(deployment, toy_base, engine_url, people, log, ring, registry, controller, identity.name)
        made.reconcile(3)
        wait_until(lambda: ready(url), "the base model's adapter serves")
        yield made


def test_a_turn_of_the_loop(loop: Loop) -> None:
    """People prefer good to bad and say so; what they said makes the adapter that then serves them."""
    before = loop.people.chat([f"user-{n}" for n in range(12)], QUESTIONS, judging=True)
    loop.fold()
    run = turns.take_turn(loop.setting(), lambda: NOON)
    candidate = str(run.adapter)
    assert loop.state_of(candidate) is AdapterState.REGISTERED

    loop.reconcile(3)
    assert loop.state_of(candidate) is AdapterState.CANARY, loop.registry.get(candidate).reason
    wait_until(lambda: candidate in served_by(loop), "the canary serves")
    during = loop.people.chat([f"visitor-{n}" for n in range(len(QUESTIONS))], QUESTIONS)
    assert {reply.ratchet["adapter"] for reply in during} == {loop.identity, candidate}
    assert all((r.ratchet["arm"] == "canary") == (r.ratchet["adapter"] == candidate) for r in during)

    loop.reconcile(3)
    assert loop.state_of(candidate) is AdapterState.STABLE, loop.registry.get(candidate).reason
    wait_until(lambda: served_by(loop)[1] == candidate, "the new adapter serves everybody")
    after = loop.people.chat([f"guest-{n}" for n in range(24)], QUESTIONS[:24])
    assert {reply.ratchet["adapter"] for reply in after} == {candidate}
    assert share_good(after) >= share_good(before) + 0.2

    check_lineage(loop, after[0])

    operators.roll_back(loop.registry, by="operator:ann", reason="a test", clock=lambda: NOON)
    wait_until(lambda: served_by(loop)[1] == loop.identity, "the base model's adapter serves again")
    assert loop.people.chat(["user-0"], QUESTIONS[:1])[0].ratchet["adapter"] == loop.identity
    loop.reconcile(2)
    assert loop.state_of(candidate) is AdapterState.ROLLED_BACK
    assert candidate not in vllm_adapters.listed(loop.engine_url)


def test_a_bad_adapter_never_serves(loop: Loop, tmp_path: Path) -> None:
    """Evidence of a loss: rejected by the gate, never loaded, never routed to, not to be had by name."""
    made = make_adapter(loop.base_dir, tmp_path / "bad", seed=1, scale=1.0)
    sha256, path = adapter_files.put(made, loop.deployment.adapters_dir, base_dir=loop.base_dir)
    bad = adapter_name("run-0666", sha256)
    loop.registry.register(
        Adapter(
            name=bad,
            sha256=sha256,
            path=str(path),
            base_sha256=adapter_files.base_digest(loop.base_dir),
            run_id="run-0666",
            parent=loop.identity,
            report=worse(loop.identity),
            created_at=NOON,
            changed_at=NOON,
        )
    )
    loop.reconcile(4)
    assert loop.state_of(bad) is AdapterState.REJECTED
    assert "reward_gain fail" in loop.registry.get(bad).reason
    assert bad not in vllm_adapters.listed(loop.engine_url)
    assert {r.ratchet["adapter"] for r in loop.people.chat(["ann", "bob"], QUESTIONS[:8])} == {loop.identity}
    with pytest.raises(openai.NotFoundError, match=bad):
        loop.people.sdk.chat.completions.create(
            model=bad, messages=[{"role": "user", "content": "Is the fig ripe?"}]
        )


def worse(baseline: str) -> EvalReport:
    """A candidate that is sound but for its replies: a reward model we trust likes them less."""
    return EvalReport(
        prompts=64,
        samples=256,
        reward_gain=-0.8,
        reward_gain_low=-1.0,
        reward_gain_high=-0.6,
        kl_root_nats=9.0,
        kl_parent_nats=9.0,
        mean_tokens=11.0,
        baseline_mean_tokens=11.0,
        well_formed=1.0,
        baseline_well_formed=1.0,
        reward_model_accuracy=0.9,
        reward_model_pairs=60,
        baseline=baseline,
    )


def share_good(replies: Sequence[Any]) -> float:
    return sum(said(reply) == GOOD for reply in replies) / len(replies)


def served_by(loop: Loop) -> list[str]:
    """The names that the gateway serves at this moment: `ratchet`, the stable adapter, a canary, …"""
    return [model.id for model in loop.people.sdk.models.list()]


def check_lineage(loop: Loop, reply: Any) -> None:
    """From a served reply to its adapter, to that one's snapshot, to its pairs, to events in the log."""
    served = loop.ring.decode(loop.log.find(Topic.TURNS, f"turn-{reply.id}") or b"").data
    assert isinstance(served, TurnRecorded)
    assert served.reply["content"] == said(reply)
    adapter = loop.registry.get(served.adapter)
    assert adapter.parent == loop.identity
    snapshot = snapshots.load(loop.deployment.snapshots_dir / str(adapter.snapshot))
    assert {pair.kind for pair in snapshot.pairs} >= {"regeneration", "edit", "thumb"}
    for pair in snapshot.pairs:
        assert (pair.chosen, pair.rejected)[0] == GOOD
        events = [find(loop, event_id) for event_id in pair.event_ids]
        about = {event.response_id for event in events}
        assert pair.rejected_response_id in about
        assert {event.user for event in events} <= {pair.user, *pair.raters}


def find(loop: Loop, event_id: str) -> TurnRecorded | SignalReceived:
    raw = loop.log.find(Topic.TURNS, event_id) or loop.log.find(Topic.SIGNALS, event_id)
    assert raw is not None, f"{event_id} is not in the log"
    data = loop.ring.decode(raw).data
    assert isinstance(data, TurnRecorded | SignalReceived)
    return data
