"""The whole loop on real parts: `ratchet up` with vLLM and Kafka, a swap under traffic, and back."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback import codec, database, store
from feedback.admission import SOURCES
from feedback.config import Deployment, section
from feedback.eventlog import EventLog, Topic
from feedback.events import TurnRecorded
from feedback.logs import open_log
from ops import base_model
from ops.errors import NoBaseModel
from ops.registry import Registry
from ops.simulation import helpdesk
from serving.auth import Keys, Role
from tests.kafka_broker import Broker
from tests.loop.conftest import Launch
from tests.loop.people import People, said
from tests.loop.processes import Process, free_ports, ready, run, wait_until, write_config

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SHORT_WORDS = 16
LEARNER = {
    "min_new_weight": 1e9,  # the test says when a turn begins
    "max_reply_tokens": 64,
    "reward_epochs": 1,
    "reward_heads": 2,
    "root_samples": 32,
    "policy_steps": 3,
    "prompts_per_step": 8,
    "eval_prompts": 16,
    "eval_samples": 2,
    "metrics_port": 0,
}
ROLLOUT = {
    "canary_steps": [0.5],
    "step_s": 2.0,
    "step_turns": 8,
    "drain_s": 2.0,
    "min_prompts": 1,
    # how much better a turn makes it is the demo's business: here every candidate gets traffic
    "min_reward_gain": -1e6,
    "min_reward_model_pairs": 1,
    "min_reward_model_accuracy": -1.0,
    "max_kl_root_nats": 1e6,
    "max_length_ratio": 1e6,
    "max_well_formed_loss": 2.0,
    "min_win_rate": 0.0,
    "max_capability_loss": 1.0,
    "max_refusal_rise": 1.0,
    "max_sycophancy_rise": 1.0,
    "max_canary_shift": 2.0,
    "metrics_port": 0,
}

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.kafka]


@dataclass
class Service:
    config: Path
    deployment: Deployment
    url: str
    key: str
    up: Process


@pytest.fixture
def embedded_base() -> Path:
    """The embedded base model, as `make base` leaves it."""
    try:
        return base_model.resolve(section({}, "deployment", Deployment))
    except NoBaseModel as e:
        pytest.skip(str(e))


@pytest.fixture
def service(launch: Launch, embedded_base: Path, kafka_broker: Broker, tmp_path: Path) -> Iterator[Service]:
    """`ratchet up`, ready, with nothing changed but ports, Kafka and the size of a turn."""
    port, engine_port = free_ports(2)
    placed = Deployment(
        data_dir=tmp_path / "data",
        base_model=str(embedded_base),
        log="kafka",
        kafka_servers=kafka_broker.servers,
        kafka_prefix=f"real-{port}",
    )
    config = write_config(
        tmp_path,
        deployment={
            f: getattr(placed, f) for f in ("data_dir", "base_model", "log", "kafka_servers", "kafka_prefix")
        },
        gateway={"port": port},
        engine={"port": engine_port, "max_model_len": 512},
        pipeline={"retry_window_s": 0.0, "heldout_fraction": 0.3, "metrics_port": 0},
        learner=LEARNER,
        rollout=ROLLOUT,
    )
    url = f"http://127.0.0.1:{port}"
    made = key(placed)
    up = launch(config, "up")
    wait_until(lambda: not up.running or ready(url), "the service is ready", else_show=up.tail, timeout_s=200)
    assert up.running, up.tail()
    yield Service(config, placed, url, made, up)
    assert up.stop(60) == 0


def test_a_turn_and_a_swap_on_real_parts(service: Service) -> None:
    """Requests flow while the adapter that their judgements made takes over: none fails, none is mixed."""
    placed = service.deployment
    with (
        closing(Registry(placed.state)) as registry,
        closing(open_log(placed)) as log,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as sdk,
    ):
        people = People(sdk, like=is_short, improve=first_sentence, max_tokens=64)
        base = stable(registry)
        base_words = greedy(people, base)
        questions = helpdesk.questions("seen")[:100]
        people.chat([f"user-{n}" for n in range(30)], questions, judging=True, threads=16)
        wait_until(lambda: caught_up(placed, log), "everything is in Kafka and folded")

        turned = run(service.config, "learn", "turn", timeout_s=200)
        assert turned.returncode == 0, turned.stderr
        candidate = turned.stdout.strip()
        with talking(people, questions) as replies:
            wait_until(lambda: canary(registry) == candidate, "a canary", else_show=lambda: why(registry))
            wait_until(lambda: served(people, candidate), "the gateway knows the canary")
            canary_words = greedy(people, candidate)
            wait_until(lambda: stable(registry) == candidate, "the canary is promoted")
            time.sleep(1.0)
        assert greedy(people, candidate) == canary_words != base_words
        assert greedy(people, base) == base_words
        assert {reply.ratchet["adapter"] for reply in replies} == {base, candidate}
        check_records(log, placed, replies)

        assert run(service.config, "adapters", "rollback").returncode == 0
        wait_until(lambda: adapter_of(people) == base, "the base model's adapter serves again")
        print(f"\n{len(replies)} replies while {candidate} took over from {base}: 0 failed, 0 mixed")


def is_short(reply: str) -> bool:
    return len(reply.split()) <= SHORT_WORDS


def first_sentence(reply: str) -> str:
    return reply.split(". ")[0].rstrip(".") + "."


def key(placed: Deployment) -> str:
    with closing(Keys(placed.state)) as keys:
        return keys.create("acme", Role.CHAT, NOON)


def stable(registry: Registry) -> str:
    table = registry.traffic()
    assert table is not None
    return table.stable


def canary(registry: Registry) -> str | None:
    table = registry.traffic()
    return table.canary if table else None


def why(registry: Registry) -> str:
    return "\n".join(f"{adapter.name} {adapter.state}: {adapter.reason}" for adapter in registry.list())


def served(people: People, adapter: str) -> bool:
    return adapter in [model.id for model in people.sdk.models.list()]


def adapter_of(people: People) -> str:
    return str(people.ask("somebody", "How do I reset my password?", 0).ratchet["adapter"])


def greedy(people: People, adapter: str) -> list[str]:
    """What an adapter says when nothing is left to chance."""
    asked = helpdesk.questions("heldout")[:10]
    return [said(people.ask("ann", question, 0, model=adapter, temperature=0.0)) for question in asked]


@contextmanager
def talking(people: People, questions: Sequence[str]) -> Iterator[list[Any]]:
    """Four users after another chat all the while; yields the list that their replies go into."""
    stop, numbers, replies = threading.Event(), count(), []

    def talk() -> None:
        while not stop.is_set():
            n = next(numbers)
            replies.append(people.ask(f"visitor-{n}", questions[n % len(questions)], n))

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(talk) for _ in range(4)]
        try:
            yield replies
        finally:
            stop.set()
        for future in futures:
            future.result()


def caught_up(placed: Deployment, log: EventLog) -> bool:
    """Everything that the gateway recorded is on Kafka, and the pipeline has folded it."""
    from feedback.embedded import EmbeddedLog

    state = store.open_state(placed.state)
    with database.reading(state) as tx:
        offsets = store.load_offsets(tx)
    state.dispose()
    with closing(EmbeddedLog(placed.log_path)) as outbox:
        for topic in SOURCES:
            ends = {(topic, p): log.end(topic, p) for p in log.partitions(topic)}
            if sum(ends.values()) < outbox.end(topic, 0):
                return False
            if any(offsets.get(place, 0) < end for place, end in ends.items()):
                return False
    return True


def check_records(log: EventLog, placed: Deployment, replies: Sequence[Any]) -> None:
    """Every reply is on Kafka, by the one adapter that its user was told."""
    wait_until(lambda: caught_up(placed, log), "everything is in Kafka and folded")
    recorded: dict[str, set[str]] = {}
    for partition in log.partitions(Topic.TURNS):
        offset, end = 0, log.end(Topic.TURNS, partition)
        while offset < end:
            records = log.read(Topic.TURNS, partition, offset, timeout_s=5.0)
            offset = records[-1].position.offset + 1
            for turn in (codec.outline(record.value).data for record in records):
                assert isinstance(turn, TurnRecorded)
                recorded.setdefault(turn.response_id, set()).add(turn.adapter)
    for reply in replies:
        assert recorded.get(reply.id) == {reply.ratchet["adapter"]} == {reply.model}
