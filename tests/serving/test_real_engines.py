"""The gateway before engines that really generate: what is recorded is what they made."""

import json
from typing import Any

import pytest

from ops.traffic import TrafficTable
from tests.engines import RunningEngine
from tests.serving.conftest import Running, Start

GREEDY = {"temperature": 0, "max_tokens": 12}


def check(gateway: Running, adapter: str) -> None:
    """Whole and streamed replies agree with each other and with their turns, token by token."""
    whole = gateway.ask("Hello", **GREEDY).json()
    said = whole["choices"][0]["message"]["content"]
    streamed: list[dict[str, Any]] = [
        json.loads(e.removeprefix("data: "))
        for e in gateway.ask("Hello", stream=True, **GREEDY).text.split("\n\n")
        if e and "[DONE]" not in e
    ]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in streamed) == said
    assert whole["model"] == streamed[-1]["model"] == adapter
    for turn in gateway.turns():
        assert turn.reply["content"] == said and turn.adapter == adapter
        assert 1 <= len(turn.token_ids) == len(turn.logprobs) <= 12
        assert len(turn.prompt_token_ids) == whole["usage"]["prompt_tokens"]
        assert all(p <= 0.0 for p in turn.logprobs)
    first, second = gateway.turns()
    assert first.token_ids == second.token_ids
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-3)


def before(start: Start, engine: RunningEngine) -> Running:
    return start(
        table=TrafficTable(revision=1, stable=engine.identity), replicas={engine.url: (engine.identity,)}
    )


def test_transformers_engine(start: Start, transformers_engine: RunningEngine) -> None:
    check(before(start, transformers_engine), transformers_engine.identity)


@pytest.mark.vllm
def test_vllm(start: Start, vllm_engine: RunningEngine) -> None:
    check(before(start, vllm_engine), vllm_engine.identity)


@pytest.mark.vllm
def test_vllms_refusal_is_in_its_own_words(start: Start, vllm_engine: RunningEngine) -> None:
    response = before(start, vllm_engine).ask("x" * 5000)
    assert response.status_code == 400 and "context length" in response.json()["error"]["message"]
