"""The judge's endpoint over HTTP: what is asked of it, and what each of its failures becomes."""

import threading

import pytest
from prometheus_client import REGISTRY

from learner import judge
from learner.constitution import Constitution, Principle
from learner.errors import JudgeError, JudgeRefused
from learner.judge import Limits, Said
from learner.judge_endpoint import TOP_LOGPROBS, Endpoint
from tests.engines import RunningEngine
from tests.learner.scripted_judge import Answer, Says, judging_at, letter, said_of

CHAT = [
    {"role": "system", "content": 'Lines that begin with "=== 00" are fences.'},
    {"role": "user", "content": "A or B?"},
]


def in_turn(*answers: Answer) -> Says:
    """These answers one after another, the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def failures(kind: str) -> float:
    return REGISTRY.get_sample_value("ratchet_learner_judge_failures_total", {"kind": kind}) or 0.0


def ask(url: str, *, logprobs: bool = True, **more):
    endpoint = Endpoint(url, "judge-1", pause_s=0.0, **{"timeout_s": 5.0, **more})
    return endpoint(CHAT, max_tokens=8, logprobs=logprobs)


def test_the_answer_comes_back_with_its_probabilities():
    with judging_at(lambda _: letter(0.75)) as peer:
        said = ask(peer.url, api_key="k-1")
    assert said == letter(0.75)
    (request,) = peer.requests
    assert request.body == {
        "model": "judge-1",
        "messages": CHAT,
        "max_tokens": 8,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert peer.keys == ["Bearer k-1"]


def test_without_a_key_none_is_sent():
    with judging_at(lambda _: letter(0.5)) as peer:
        ask(peer.url, logprobs=False)
    assert peer.keys == [""] and "logprobs" not in peer.requests[0].body


def test_an_endpoint_that_refuses_logprobs_is_asked_without_from_then_on():
    def says(request) -> Answer:
        refusal = b'{"error": {"message": "logprobs are not supported"}}'
        return (400, refusal) if "logprobs" in request.body else said_of("A")

    with judging_at(says) as peer:
        endpoint = Endpoint(peer.url, "judge-1", pause_s=0.0)
        for _ in range(2):
            assert endpoint(CHAT, max_tokens=8, logprobs=True).text == "A"
    assert ["logprobs" in r.body for r in peer.requests] == [True, False, False]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(status):
    before = failures("status")
    with judging_at(in_turn(status, status, said_of("B"))) as peer:
        assert ask(peer.url).text == "B"
    assert (len(peer.requests), failures("status") - before) == (3, 2.0)


@pytest.mark.parametrize(
    ("answer", "error", "words", "requests"),
    [
        (503, JudgeError, "answered 503: .*scripted 503", 3),
        (401, JudgeError, "answered 401: .*api_key_env", 1),
        (404, JudgeError, "answered 404", 1),
        (400, JudgeRefused, "answered 400: .*scripted 400", 1),
        (413, JudgeRefused, "answered 413", 1),
        (b"<html>", JudgeError, "no chat completion .*<html>", 1),
        (b'{"choices": []}', JudgeError, "no chat completion", 1),
        (b'{"object": "list"}', JudgeError, "no chat completion", 1),
    ],
)
def test_a_failure_that_stays_is_told_in_the_endpoints_words(answer, error, words, requests):
    with judging_at(lambda _: answer) as peer, pytest.raises(JudgeError, match=words) as raised:
        ask(peer.url)
    assert type(raised.value) is error
    assert len(peer.requests) == requests


def test_a_judge_that_is_not_there_is_named(free_port):
    before = failures("unreachable")
    with pytest.raises(JudgeError, match=rf"127\.0\.0\.1:{free_port}/v1/chat/completions does not answer"):
        ask(f"http://127.0.0.1:{free_port}/v1")
    assert failures("unreachable") - before == 3.0


def test_a_silent_judge_is_given_up():
    released = threading.Event()

    def says(_) -> Answer:
        released.wait(5.0)
        return said_of("A")

    with judging_at(says) as peer:
        with pytest.raises(JudgeError, match="does not answer: timed out"):
            ask(peer.url, timeout_s=0.05)
        released.set()


def test_a_cut_answer_says_so():
    cut = b'{"choices": [{"message": {"content": "Open the"}, "finish_reason": "length"}]}'
    with judging_at(lambda _: cut) as peer:
        said = ask(peer.url)
    assert (said.text, said.whole) == ("Open the", False)


# --- engines that really generate; a model of random weights has nothing to say, but says it by the protocol


def test_the_transformers_engine_answers_and_tells_what_is_too_long(transformers_engine: RunningEngine):
    endpoint = Endpoint(f"{transformers_engine.url}/v1", transformers_engine.identity)
    said = endpoint(CHAT, max_tokens=3, logprobs=True)
    assert 1 <= len(said.tokens) <= 3 and said.tokens[0].logprob <= 0.0
    with pytest.raises(JudgeRefused, match="do not fit max_model_len=256"):
        endpoint([{"role": "user", "content": "x" * 300}], max_tokens=3)


@pytest.mark.vllm
def test_vllm_gives_the_probabilities_of_the_alternatives(vllm_engine: RunningEngine):
    """Asked as a judge is, in both orders."""
    endpoint, heard = Endpoint(f"{vllm_engine.url}/v1", vllm_engine.identity), []

    def ask(messages, *, max_tokens, logprobs=False) -> Said:
        heard.append(endpoint(messages, max_tokens=max_tokens, logprobs=logprobs))
        return heard[-1]

    by = Constitution(version="t", principle=(Principle(id="kind", name="Kind", question="?"),))
    judge.compare(ask, by, CHAT, "Yes.", "No.", Limits(answer_tokens=3))
    assert len(heard) == 2
    for said in heard:
        assert all(len(token.top_logprobs) == TOP_LOGPROBS for token in said.tokens)
        assert said.tokens[0].logprob == pytest.approx(max(a.logprob for a in said.tokens[0].top_logprobs))
