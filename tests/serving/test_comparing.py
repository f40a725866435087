"""Two replies to one request: who gets them, what is recorded of both, and what never holds a client up."""

import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from feedback import accuracy
from feedback.config import section
from feedback.derivation import derive
from feedback.errors import ConfigError
from feedback.events import Draw, Sampling, TurnRecorded, signal_event, turn_event
from ops.traffic import Assignment, TrafficTable
from serving import comparing
from serving.asked import Asked, parse
from serving.config import Gateway
from tests.serving.conftest import CANARY, STABLE, Running, Start, starting
from tests.serving.scripted_engine import Script, ScriptedEngine

OPTED_IN = {"ratchet": {"compare": True}}
SECOND = Script(pieces=("Press the", " button."))
SPLIT = TrafficTable(revision=1, stable=STABLE, canary=CANARY, canary_fraction=0.1, salt="s")


@pytest.fixture(scope="module")
def _eager(peer: tuple[ScriptedEngine, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with starting(*peer, tmp_path_factory.mktemp("eager")) as begin:
        yield begin(comparison_rate=1.0)


@pytest.fixture
def eager(_eager: Running, engine: ScriptedEngine) -> Running:
    """One gateway that compares whatever it can; its engine has forgotten everything."""
    return _eager


def turns_about(gateway: Running, response_id: str) -> list[TurnRecorded]:
    """The turn of that id, and the one it was shown beside."""
    return [
        t for t in gateway.turns() if response_id in (t.response_id, t.exposure.partner if t.exposure else "")
    ]


def seeded(asked: dict[str, Any]) -> Script | None:
    """The second reply of the same adapter is the one that is asked for with a seed."""
    return SECOND if "seed" in asked else None


def from_canary(asked: dict[str, Any]) -> Script | None:
    return SECOND if asked["model"] == CANARY else None


def outcomes() -> dict[str, float]:
    found = REGISTRY.collect()
    samples = [s for m in found if m.name == "ratchet_serving_comparisons" for s in m.samples]
    return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}


def counted(before: dict[str, float]) -> dict[str, float]:
    """What was counted since, once the gateway is through with it."""
    deadline = time.monotonic() + 2
    while (after := outcomes()) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    return {k: n - before.get(k, 0.0) for k, n in after.items() if n != before.get(k, 0.0)}


def extras(response: Any, stream: bool) -> dict[str, Any]:
    if not stream:
        return dict(response.json()["ratchet"])
    last = [e for e in response.text.split("\n\n") if e.startswith("data: {")][-1]
    return dict(json.loads(last.removeprefix("data: "))["ratchet"])


@pytest.mark.parametrize("stream", [False, True])
def test_both_replies_are_recorded_and_say_how_they_were_shown(eager: Running, stream: bool) -> None:
    """The gold slice: whoever reads the log knows the sides, the odds and where each reply came from."""
    eager.engine.other = seeded
    told = extras(eager.ask(stream=stream, user="ann", **OPTED_IN), stream)
    turns = {t.response_id: t for t in turns_about(eager, told["response_id"])}
    first, second = turns[told["response_id"]], turns[told["alternative"]["response_id"]]
    assert first.reply["content"] == "Reset it in the settings."
    assert second.reply["content"] == told["alternative"]["content"] == "Press the button."
    one, other = first.exposure, second.exposure
    assert one is not None and other is not None
    assert (one.partner, other.partner) == (second.response_id, first.response_id)
    assert {one.side, other.side} == {"left", "right"} and other.side == told["alternative"]["side"]
    assert (one.draw, other.draw) == (Draw.ASSIGNED, Draw.RESAMPLED)
    assert one.propensity == other.propensity == 1.0
    assert one.shown_at == other.shown_at >= first.started_at == second.started_at
    assert (first.conversation_id, first.user, first.messages) == (
        second.conversation_id,
        second.user,
        second.messages,
    )
    assert first.sampling.seed is None and second.sampling.seed is not None
    assert second.token_ids == (100, 101) and second.duration_s > 0


def test_sdk_opts_in_by_its_extra_body(eager: Running) -> None:
    """Unmodified OpenAI clients can send it, and no engine gets to see it."""
    eager.engine.other = seeded
    reply = eager.sdk().chat.completions.create(
        model="ratchet", messages=[{"role": "user", "content": "How?"}], extra_body=OPTED_IN
    )
    assert reply.model_extra is not None
    assert reply.model_extra["ratchet"]["alternative"]["content"] == "Press the button."
    assert len(eager.engine.requests) == 2
    assert all("ratchet" not in asked for asked in eager.engine.requests)


def test_the_other_arm_answers_while_there_is_a_canary(start: Start) -> None:
    gateway = start(comparison_rate=1.0, table=SPLIT)
    gateway.engine.other = from_canary
    for n in range(10):
        gateway.ask(user=f"u{n}", **OPTED_IN)
    turns = gateway.turns()
    pairs = {frozenset((t.response_id, t.exposure.partner)) for t in turns if t.exposure}
    arms = {t.response_id: (t.adapter, t.arm, t.propensity) for t in turns}
    assert len(turns) == 20 and len(pairs) == 10
    for both in pairs:
        assert {arms[r] for r in both} == {(STABLE, "stable", 0.9), (CANARY, "canary", 0.1)}
    assert {t.exposure.draw for t in turns if t.exposure} == {Draw.ASSIGNED, Draw.OTHER_ARM}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ratchet": {"compare": False}},
        {**OPTED_IN, "store": False},
        {**OPTED_IN, "model": STABLE},
        {**OPTED_IN, "temperature": 0},
        {**OPTED_IN, "tools": [{"type": "function", "function": {"name": "reset", "parameters": {}}}]},
    ],
    ids=["did not opt in", "opted out", "no consent", "pinned", "greedy", "tools"],
)
def test_these_turns_are_never_compared(eager: Running, more: dict[str, Any]) -> None:
    eager.engine.other = seeded
    told = eager.ask(**more).json()["ratchet"]
    assert "alternative" not in told
    assert [t.exposure for t in turns_about(eager, told["response_id"])] == [None]
    assert len(eager.engine.requests) == 1


def test_without_a_rate_nobody_is_compared(start: Start) -> None:
    gateway = start(comparison_rate=0.0)
    assert "alternative" not in gateway.ask(**OPTED_IN).json()["ratchet"]
    assert len(gateway.engine.requests) == 1


def test_a_first_token_never_waits_for_the_second_reply(start: Start) -> None:
    """The second takes 0.8 s; the first must begin at once, and its end wait no longer than the limit."""
    gateway = start(comparison_rate=1.0, comparison_wait_s=0.2)
    gateway.engine.other = lambda asked: Script(first_delay_s=0.8) if "seed" in asked else None
    before, began = outcomes(), time.monotonic()
    body = {"messages": [{"role": "user", "content": "How?"}], "stream": True, **OPTED_IN}
    with gateway.http.stream(
        "POST", f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.auth
    ) as response:
        pieces = response.iter_bytes()
        next(pieces)
        first_s = time.monotonic() - began
        rest = b"".join(pieces)
        whole_s = time.monotonic() - began
    assert first_s < 0.2 < whole_s < 0.7
    assert b"alternative" not in rest and b"[DONE]" in rest
    assert gateway.turn().exposure is None and gateway.turn().duration_s < 0.2
    assert counted(before) == {"late": 1.0}
    assert gateway.engine.gone.wait(2)


@pytest.mark.parametrize(
    "script,outcome",
    [
        (Script(status=500), "failed"),
        (Script(break_after=0), "failed"),
        (Script(raw=b"nonsense"), "failed"),
        (Script(pieces=("Reset it", " in  the **settings**.")), "alike"),
        (Script(pieces=()), "alike"),
    ],
    ids=["status", "broken", "nonsense", "same words", "nothing"],
)
def test_a_second_reply_that_is_no_use_is_dropped_and_counted(
    eager: Running, script: Script, outcome: str
) -> None:
    """The one who asked gets the first reply, as if nothing had been tried."""
    eager.engine.other = lambda asked: script if "seed" in asked else None
    before = outcomes()
    reply = eager.ask(**OPTED_IN)
    assert reply.status_code == 200 and "alternative" not in reply.json()["ratchet"]
    assert [t.exposure for t in turns_about(eager, reply.json()["id"])] == [None]
    assert counted(before) == {outcome: 1.0}


def test_a_first_reply_that_breaks_ends_the_second(eager: Running) -> None:
    eager.engine.script = Script(break_after=1)
    eager.engine.other = lambda asked: Script(first_delay_s=5.0) if "seed" in asked else None
    before = outcomes()
    assert "engine_broke" in eager.ask(stream=True, **OPTED_IN).text
    assert eager.engine.gone.wait(2)
    assert counted(before) == {"abandoned": 1.0}


def test_a_busy_gateway_serves_one_reply(start: Start) -> None:
    """One of one in flight is more than half: second replies must never crowd out first ones."""
    gateway = start(comparison_rate=1.0, max_in_flight=1)
    before = outcomes()
    assert "alternative" not in gateway.ask(**OPTED_IN).json()["ratchet"]
    assert len(gateway.engine.requests) == 1
    assert counted(before) == {"busy": 1.0}


def test_an_answer_through_the_api_is_gold(eager: Running) -> None:
    """From the request to the pair: what the gateway records is what the pipeline asks for."""
    eager.engine.other = seeded
    told = eager.ask(user="eve", **OPTED_IN).json()["ratchet"]
    answer = {
        "response_id": told["alternative"]["response_id"],
        "other_response_id": told["response_id"],
        "kind": "comparison",
        "value": 0.85,
    }
    time.sleep(0.31)  # three words at ten a second
    assert eager.post("/v1/feedback", answer).status_code == 200
    turns = turns_about(eager, told["response_id"])
    events = [*map(turn_event, turns), *map(signal_event, eager.signals())]
    made = derive(events, retry_window_s=2.0)
    (gold,), (kept,) = made.pairs, made.comparisons
    assert (gold.chosen, gold.by_design, gold.p) == ("Press the button.", True, 0.85)
    assert kept.dropped == "" and 0.3 < kept.decided_s < 5.0
    assert accuracy.gold(gold)


@pytest.mark.parametrize(
    "ratchet,param", [({"compare": 1}, "ratchet"), ({"compete": True}, "ratchet"), (True, "ratchet")]
)
def test_unusable_wishes_name_the_field(shared: Running, ratchet: object, param: str) -> None:
    response = shared.ask(ratchet=ratchet)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# --- the draw


def asked(**fields: Any) -> Asked:
    return parse(msgspec.json.encode({"messages": [{"role": "user", "content": "How?"}], **fields}), {})


def test_the_share_drawn_is_the_rate_and_the_sides_are_even() -> None:
    """20 000 ids: 2 % ± 0.1 % (one standard deviation), half ± 0.35 %; bounds at five deviations."""
    given, wants = Assignment(STABLE, "stable", 1.0), asked(**OPTED_IN)
    ids = [f"chatcmpl-{n:032x}" for n in range(20_000)]
    found = [i for i in ids if comparing.drawn(wants, given, i, 0.02)]
    assert 0.015 < len(found) / len(ids) < 0.025
    assert 0.482 < sum(comparing.side_of(i) == "left" for i in ids) / len(ids) < 0.518
    assert 0.38 < sum(comparing.side_of(i) == "left" for i in found) / len(found) < 0.62


@pytest.mark.parametrize("rate", [-0.1, 1.5, 2])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    """`2` for 2 % would compare every turn."""
    with pytest.raises(ConfigError, match=r"\[gateway\] comparison_rate .* must be a share, 0 to 1"):
        section({"gateway": {"comparison_rate": rate}}, "gateway", Gateway, {})


def test_a_client_that_gave_a_seed_gets_another_one() -> None:
    wants = asked(seed=7, stream=True, stream_options={"include_usage": True}, **OPTED_IN)
    table = TrafficTable(revision=1, stable=STABLE)
    planned = comparing.plan(wants, Assignment(STABLE, "stable", 1.0), table, "chatcmpl-1")
    assert planned is not None
    seed = planned.asked.sampling.seed
    assert planned.asked.sampling == Sampling(seed=seed) and seed not in (None, 7)
    assert planned.asked.engine_fields["seed"] == seed
    assert planned.asked.engine_fields["stream"] is False
    assert "stream_options" not in planned.asked.engine_fields
