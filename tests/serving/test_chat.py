"""Chat completions as OpenAI's SDK sees them, and the turns they leave in the log."""

import json
import threading
import time

import httpx
import openai
import pytest

from feedback.events import IdentitySource, TurnStatus
from feedback.privacy import pseudonym
from ops.traffic import TrafficTable
from serving.auth import Role
from tests.serving.conftest import AT, CANARY, SECRET, STABLE, Running, Start
from tests.serving.scripted_engine import Script

QUESTION = [{"role": "user", "content": "How do I reset it?"}]


def events(response: httpx.Response) -> list[str]:
    return [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]


def test_sdk_gets_a_whole_reply(gateway: Running) -> None:
    """Any OpenAI client works by changing its base URL."""
    reply = gateway.sdk().chat.completions.create(model="ratchet", messages=QUESTION)
    assert reply.choices[0].message.content == "Reset it in the settings."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == STABLE
    assert reply.usage is not None and reply.usage.completion_tokens == 3


def test_sdk_gets_a_stream(gateway: Running) -> None:
    chunks = list(
        gateway.sdk().chat.completions.create(
            model="ratchet", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    said = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert said == ["Reset it", " in the", " settings."]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["ratchet"]["adapter"] == STABLE


@pytest.mark.parametrize("stream", [False, True])
def test_turn_is_recorded_with_all_that_made_it(gateway: Running, stream: bool) -> None:
    """The reward model and PPO need the very tokens, not text that is tokenised again."""
    gateway.ask(stream=stream, temperature=0.7, user="ann", stop="END", seed=7)
    turn = gateway.turn()
    assert turn.messages == ({"role": "user", "content": "How do I reset it?"},)
    assert turn.reply == {"role": "assistant", "content": "Reset it in the settings."}
    assert turn.prompt_token_ids == (1, 2, 3)
    assert turn.token_ids == (100, 101, 102)
    assert turn.logprobs == (-0.5, -0.5, -0.5)
    assert (turn.sampling.temperature, turn.sampling.seed, turn.sampling.stop) == (0.7, 7, ("END",))
    assert (turn.adapter, turn.arm, turn.propensity) == (STABLE, "stable", 1.0)
    assert turn.principal == "acme"
    assert turn.user == pseudonym(SECRET, "acme", "ann")
    assert turn.status is TurnStatus.COMPLETE and turn.finish_reason == "stop" and turn.learn
    assert (turn.first_token_s is not None) == stream
    assert turn.duration_s > 0


@pytest.mark.parametrize("stream", [False, True])
def test_client_sees_nothing_that_only_the_learner_needs(gateway: Running, stream: bool) -> None:
    text = gateway.ask(stream=stream).text
    assert "token_ids" not in text and "stop_reason" not in text and "-0.5" not in text
    assert "Reset it" in text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_reach_the_client_that_asks_for_them(gateway: Running, stream: bool) -> None:
    text = gateway.ask(stream=stream, logprobs=True, top_logprobs=2).text
    assert "-0.5" in text and "token_ids" not in text
    assert gateway.engine.requests[0]["top_logprobs"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_reply_carries_our_id_and_extras(gateway: Running, stream: bool) -> None:
    """Feedback refers to a reply by this id; the engine was told it too."""
    response = gateway.ask(stream=stream)
    last = json.loads(events(response)[-2]) if stream else response.json()
    turn = gateway.turn()
    assert last["id"] == turn.response_id == response.headers["x-request-id"]
    assert turn.conversation_id == f"acme/{last['ratchet']['conversation_id']}"
    assert last["ratchet"]["response_id"] == turn.response_id
    assert last["ratchet"]["adapter"] == STABLE and last["ratchet"]["arm"] == "stable"
    assert gateway.engine.headers[0]["x-request-id"] == turn.response_id.removeprefix("chatcmpl-")


def test_a_streams_bytes_come_as_the_engine_makes_them(gateway: Running) -> None:
    """The first piece must not wait for the second."""
    gateway.engine.script = Script(piece_delay_s=1.0)
    body = {"messages": QUESTION, "stream": True}
    began = time.monotonic()
    with httpx.stream(
        "POST", f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.auth
    ) as response:
        first = next(response.iter_bytes())
    assert b"Reset it" in first and time.monotonic() - began < 1.0


def test_tool_calls_are_passed_on_and_recorded(gateway: Running) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "reset", "arguments": '{"now":true}'}}
    gateway.engine.script = Script(pieces=(), tool_calls=(call,), finish_reason="tool_calls")
    tools = [{"type": "function", "function": {"name": "reset", "parameters": {"type": "object"}}}]
    for stream in (False, True):
        text = gateway.ask(stream=stream, tools=tools, tool_choice="auto").text
        assert "call-1" in text
    assert gateway.engine.requests[0]["tools"] == tools
    whole, streamed = gateway.turns()
    assert whole.reply["tool_calls"] == streamed.reply["tool_calls"] == [call]
    assert whole.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_store_false_leaves_no_word_behind(gateway: Running, stream: bool) -> None:
    """Withheld consent: counted, never learned from, and its text is nowhere."""
    gateway.ask("my secret", stream=stream, store=False)
    turn = gateway.turn()
    assert not turn.learn
    assert turn.messages == () and turn.reply == {"role": "assistant", "content": ""}
    assert turn.token_ids == turn.prompt_token_ids == turn.logprobs == ()
    assert turn.finish_reason == "stop"


def test_conversation_is_explicit_by_header_or_metadata(gateway: Running) -> None:
    gateway.post("/v1/chat/completions", {"messages": QUESTION}, **{"x-ratchet-conversation": "c-1"})
    gateway.ask(metadata={"conversation_id": "c-1"})
    first, second = gateway.turns()
    assert first.conversation_id == second.conversation_id == "acme/c-1"
    assert first.identity is second.identity is IdentitySource.EXPLICIT


def test_conversation_is_recognised_by_its_first_message(gateway: Running) -> None:
    """The OpenAI protocol resends the history: a product that sends no id is followed all the same."""
    gateway.ask("Hello", user="ann")
    grown = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, *QUESTION]
    gateway.post("/v1/chat/completions", {"messages": grown, "user": "ann"})
    gateway.ask("Hello", user="bob")
    gateway.ask("Hello")
    ann, again, bob, nobody = gateway.turns()
    assert ann.conversation_id == again.conversation_id
    assert len({ann.conversation_id, bob.conversation_id, nobody.conversation_id}) == 3
    assert ann.identity is IdentitySource.USER and nobody.identity is IdentitySource.HISTORY


def test_one_owners_conversations_are_not_anothers(gateway: Running) -> None:
    other = gateway.keys.create("globex", Role.CHAT, AT)
    time.sleep(0.3)  # keys are read every 0.05 s here
    for key in (gateway.key, other):
        headers = {"Authorization": f"Bearer {key}", "x-ratchet-conversation": "c-1"}
        httpx.post(
            f"{gateway.url}/v1/chat/completions", json={"messages": QUESTION, "user": "ann"}, headers=headers
        )
    ours, theirs = gateway.turns()
    assert ours.conversation_id != theirs.conversation_id and ours.user != theirs.user
    salts = [r["cache_salt"] for r in gateway.engine.requests]
    assert salts[0] != salts[1]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_ends_the_engines_work(gateway: Running, stream: bool) -> None:
    """An abandoned reply costs no more tokens, and what was sent is recorded as aborted."""
    gateway.engine.script = Script(pieces=("one", "two", "three"), piece_delay_s=1.0)
    body = {"messages": QUESTION, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.auth, timeout=0.5)
    assert gateway.engine.gone.wait(2.0)
    turn = gateway.turn()
    assert turn.status is TurnStatus.ABORTED
    assert turn.reply["content"] == ("one" if stream else "")


@pytest.mark.parametrize("fault", [{"break_after": 1}, {"error_after": 1}])
def test_engine_failing_in_mid_stream_is_told_and_recorded(gateway: Running, fault: dict[str, int]) -> None:
    """After HTTP 200 only an error event can say it; OpenAI's SDK raises on that."""
    gateway.engine.script = Script(**fault)
    with pytest.raises(openai.APIError, match="engine"):
        list(gateway.sdk().chat.completions.create(model="ratchet", messages=QUESTION, stream=True))
    turn = gateway.turn()
    assert turn.status is TurnStatus.FAILED and turn.reply["content"] == "Reset it"
    assert "[DONE]" not in gateway.ask(stream=True).text


def test_stream_broken_after_its_reply_was_whole_is_complete(gateway: Running) -> None:
    """Only the end mark is missing: the gateway adds it."""
    finish = {"choices": [{"index": 0, "delta": {"content": "Yes."}, "finish_reason": "stop"}]}
    gateway.engine.script = Script(raw=b"data: " + json.dumps(finish).encode() + b"\n\n")
    response = gateway.ask(stream=True)
    assert events(response)[-1] == "[DONE]"
    assert gateway.turn().status is TurnStatus.COMPLETE


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"data: nonsense\n\n",
        b'data: {"choices": 3}\n\n',
        b'{"choices":[]}',
        b"data: [DONE]\n\n",
    ],
)
def test_engine_talking_nonsense_is_a_clear_failure(gateway: Running, raw: bytes, stream: bool) -> None:
    gateway.engine.script = Script(raw=raw)
    response = gateway.ask(stream=stream)
    assert "engine" in response.text and '"code":"engine_broke"' in response.text
    assert gateway.turn().status is TurnStatus.FAILED


def test_reply_is_durable_before_its_last_byte(gateway: Running) -> None:
    """The invariant itself, at the moment when the client holds the whole reply."""
    for n in range(20):
        gateway.ask(f"question {n}", stream=n % 2 == 0)
        assert len(gateway.turns()) == n + 1


def test_many_streams_at_once_stay_apart(gateway: Running) -> None:
    gateway.engine.script = Script(pieces=tuple(f"{i} " for i in range(20)), piece_delay_s=0.005)
    replies: list[str] = []

    def ask() -> None:
        deltas = [json.loads(e)["choices"][0]["delta"] for e in events(gateway.ask(stream=True))[:-1]]
        replies.append("".join(d.get("content", "") for d in deltas))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["".join(f"{i} " for i in range(20))] * 16
    assert len({t.response_id for t in gateway.turns()}) == 16


def test_adapter_asked_for_by_name_is_pinned(start: Start) -> None:
    gateway = start(table=TrafficTable(revision=1, stable=STABLE, previous=CANARY))
    assert gateway.ask(model=CANARY).json()["model"] == CANARY
    assert gateway.turn().arm == "pinned"


def test_models_lists_what_can_be_asked_for(start: Start) -> None:
    gateway = start(table=TrafficTable(revision=1, stable=STABLE, canary=CANARY, canary_fraction=0.1))
    assert [m.id for m in gateway.sdk().models.list()] == ["ratchet", STABLE, CANARY]


@pytest.mark.slow
def test_traffic_splits_by_user_and_stays(start: Start) -> None:
    """Half of 60 users: fewer than 12 or more than 48 in the canary happens once in 10⁵ salts."""
    gateway = start(
        table=TrafficTable(revision=1, stable=STABLE, canary=CANARY, canary_fraction=0.5, salt="s")
    )
    arms = {}
    for user in range(60):
        arms[user] = gateway.ask(user=f"u{user}").json()["ratchet"]["arm"]
    assert 12 <= list(arms.values()).count("canary") <= 48
    for user in range(0, 60, 7):
        assert gateway.ask("Something else", user=f"u{user}").json()["ratchet"]["arm"] == arms[user]
    assert {t.propensity for t in gateway.turns()} == {0.5}
