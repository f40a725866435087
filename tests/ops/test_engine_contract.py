"""What ratchet needs of an engine, asked of both: the transformers engine and a real vLLM."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ops import store, vllm_adapters
from ops.errors import EngineError, EngineUnavailable
from tests.engines import RunningEngine, make_adapter

EOS = 2
MESSAGES = [{"role": "user", "content": "hi"}]
# <|user|> h i </s> <|assistant|>, with bytes numbered after the six special tokens: 'h' is 71 + 6, 'i' 72 + 6
PROMPT_IDS = [3, 77, 78, 2, 4]


@pytest.fixture(
    params=[
        pytest.param("transformers", marks=pytest.mark.slow),
        pytest.param("vllm", marks=pytest.mark.vllm),
    ]
)
def engine(request: pytest.FixtureRequest) -> RunningEngine:
    running: RunningEngine = request.getfixturevalue(f"{request.param}_engine")
    return running


def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        headers = {"Content-Type": "application/json", "X-Request-Id": "abc"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    return response.status, json.loads(content) if content.startswith(b"{") else content.decode()


def chat(engine: RunningEngine, **more: Any) -> Any:
    body = {"model": engine.identity, "messages": MESSAGES, "max_tokens": 6, "temperature": 0.0} | more
    status, reply = post(engine.url, "/v1/chat/completions", body)
    assert status == 200, reply
    return reply


def stream(engine: RunningEngine, **more: Any) -> list[Any]:
    body = {"model": engine.identity, "messages": MESSAGES, "max_tokens": 6, "temperature": 0.0} | more
    status, text = post(engine.url, "/v1/chat/completions", body | {"stream": True})
    assert status == 200, text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def complete(engine: RunningEngine, **more: Any) -> Any:
    body = {"model": engine.identity, "prompt": PROMPT_IDS, "max_tokens": 6, "return_token_ids": True} | more
    status, reply = post(engine.url, "/v1/completions", body)
    assert status == 200, reply
    return reply


@pytest.fixture
def loaded(engine: RunningEngine, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A second adapter that says something else than the base, loaded."""
    sha256, path = store.put(make_adapter(engine.base_dir, tmp_path / "a", seed=1), engine.adapters_dir)
    name = f"candidate-{sha256[:8]}"
    vllm_adapters.load(engine.url, name, path)
    yield name, path
    if name in vllm_adapters.listed(engine.url):
        vllm_adapters.unload(engine.url, name)


def test_chat_returns_ids_and_logprobs_of_what_it_sampled(engine: RunningEngine) -> None:
    """PPO learns from exactly these: text cannot be tokenised again reliably."""
    reply = chat(engine, temperature=1.0, seed=3, return_token_ids=True, logprobs=True, top_logprobs=0)
    choice = reply["choices"][0]
    assert reply["id"] == "chatcmpl-abc"
    assert reply["prompt_token_ids"] == PROMPT_IDS
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == 6
    assert all(-20 < entry["logprob"] < 0 for entry in choice["logprobs"]["content"])
    assert choice["finish_reason"] == "length"
    usage = {k: reply["usage"][k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_stream_says_what_the_whole_reply_says(engine: RunningEngine) -> None:
    """A turn recorded from a stream must equal the turn recorded without one."""
    whole = chat(engine, return_token_ids=True, logprobs=True, top_logprobs=0)
    more = {"return_token_ids": True, "logprobs": True, "top_logprobs": 0}
    chunks = stream(engine, **more, stream_options={"include_usage": True})
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-abc"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[0]["prompt_token_ids"] == PROMPT_IDS
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    parts = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert (
        "".join(p["delta"].get("content") or "" for p in parts) == whole["choices"][0]["message"]["content"]
    )
    assert [t for p in parts for t in p.get("token_ids") or ()] == whole["choices"][0]["token_ids"]
    streamed = [e["logprob"] for p in parts for e in (p["logprobs"] or {}).get("content", ())]
    expected = [e["logprob"] for e in whole["choices"][0]["logprobs"]["content"]]
    assert streamed == pytest.approx(expected, abs=1e-4)
    assert [p["finish_reason"] for p in parts if p["finish_reason"]] == ["length"]


def test_logprobs_are_those_of_the_tempered_distribution(engine: RunningEngine) -> None:
    """PPO's ratio needs the probability with which a token was really drawn.

    At temperature T the log-probability of the likeliest token approaches 0 as T falls.
    """
    sharp = chat(engine, temperature=0.001, logprobs=True, top_logprobs=0)["choices"][0]["logprobs"][
        "content"
    ]
    flat = chat(engine, temperature=0.0, logprobs=True, top_logprobs=0)["choices"][0]["logprobs"]["content"]
    assert sharp[0]["logprob"] > -0.2
    assert flat[0]["logprob"] < -1.0  # an untrained model over 262 tokens: about -ln(262) = -5.6


def test_seed_repeats_a_reply(engine: RunningEngine) -> None:
    once = chat(engine, temperature=1.0, seed=11, return_token_ids=True)["choices"][0]["token_ids"]
    again = chat(engine, temperature=1.0, seed=11, return_token_ids=True)["choices"][0]["token_ids"]
    other = chat(engine, temperature=1.0, seed=12, return_token_ids=True)["choices"][0]["token_ids"]
    assert once == again != other


def test_end_of_sequence_is_one_of_the_tokens(engine: RunningEngine) -> None:
    """The decision to stop is an action like any other: it needs its id and its probability."""
    reply = chat(engine, logit_bias={str(EOS): 100}, return_token_ids=True, logprobs=True, top_logprobs=0)
    choice = reply["choices"][0]
    assert choice["token_ids"] == [EOS]
    assert len(choice["logprobs"]["content"]) == 1
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert choice["message"]["content"] in ("", None)


def test_stop_text_ends_a_reply_and_is_left_out(engine: RunningEngine) -> None:
    token = 6 + 65 - 33  # 'A' is the 33rd of the byte alphabet's printable characters, which start at '!'
    reply = chat(engine, logit_bias={str(token): 100}, stop=["AA"], return_token_ids=True)
    choice = reply["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "AA")
    assert choice["message"]["content"] == ""


def test_completions_take_token_ids_and_give_n_replies(engine: RunningEngine) -> None:
    """The learner's sampler: one request per prompt, its replies apart, logprobs beside the ids."""
    reply = complete(engine, n=3, temperature=1.0, logprobs=0, seed=5)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert {len(c["token_ids"]) for c in reply["choices"]} == {6}
    assert {len(c["logprobs"]["token_logprobs"]) for c in reply["choices"]} == {6}
    assert len({tuple(c["token_ids"]) for c in reply["choices"]}) == 3
    assert reply["choices"][0]["prompt_token_ids"] == PROMPT_IDS
    assert reply["usage"]["prompt_tokens"] == 5


def test_completions_take_several_prompts(engine: RunningEngine) -> None:
    reply = complete(engine, prompt=[PROMPT_IDS, [1, 40]], n=2, temperature=1.0)
    assert [c["prompt_token_ids"] for c in reply["choices"]] == [PROMPT_IDS, PROMPT_IDS, [1, 40], [1, 40]]


def test_identity_adapter_is_the_base_model(engine: RunningEngine) -> None:
    """The base arm is served through it, so it must say what the base says."""
    base = complete(engine, model="base", temperature=0.0)["choices"][0]["token_ids"]
    identity = complete(engine, temperature=0.0)["choices"][0]["token_ids"]
    assert identity == base


def test_adapters_answer_by_name_and_differ(engine: RunningEngine, loaded: tuple[str, Path]) -> None:
    name, _ = loaded
    assert vllm_adapters.listed(engine.url) == {engine.identity, name}
    assert vllm_adapters.probe(engine.url, name) != vllm_adapters.probe(engine.url, engine.identity)
    assert vllm_adapters.probe(engine.url, name) == vllm_adapters.probe(engine.url, name)


def test_both_engines_agree_on_an_adapter(engine: RunningEngine, loaded: tuple[str, Path]) -> None:
    """The greedy reply of this adapter, computed once with float32 transformers outside any engine."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name, path = loaded
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(engine.base_dir), path).eval()
    ids = torch.tensor([PROMPT_IDS])
    with torch.inference_mode():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = ids[0, len(PROMPT_IDS) :].tolist()
    assert (
        complete(engine, model=name, temperature=0.0, ignore_eos=True)["choices"][0]["token_ids"] == expected
    )


def test_mixed_adapters_in_flight_keep_apart(engine: RunningEngine, loaded: tuple[str, Path]) -> None:
    """One reply, one adapter: concurrent requests of two adapters say what each says alone."""
    name, _ = loaded
    names = [engine.identity, name] * 4
    alone = {n: complete(engine, model=n, temperature=0.0)["choices"][0]["token_ids"] for n in set(names)}

    async def together() -> list[Any]:
        calls = [asyncio.to_thread(complete, engine, model=n, temperature=0.0) for n in names]
        return await asyncio.gather(*calls)

    replies = asyncio.run(together())
    assert [r["choices"][0]["token_ids"] for r in replies] == [alone[n] for n in names]


def test_unloading_lets_a_running_reply_finish(engine: RunningEngine, loaded: tuple[str, Path]) -> None:
    """A swap aborts nobody."""
    name, _ = loaded
    whole = complete(engine, model=name, temperature=0.0, max_tokens=200, ignore_eos=True)
    answers: list[Any] = []

    def ask() -> None:
        answers.append(complete(engine, model=name, temperature=0.0, max_tokens=200, ignore_eos=True))

    running = threading.Thread(target=ask)
    running.start()
    threading.Event().wait(0.05)
    vllm_adapters.unload(engine.url, name)
    running.join(timeout=60)
    assert answers[0]["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]
    assert name not in vllm_adapters.listed(engine.url)
    with pytest.raises(EngineError, match="404"):
        vllm_adapters.probe(engine.url, name)


def test_a_name_loads_only_once(engine: RunningEngine, loaded: tuple[str, Path]) -> None:
    """Other weights under a known name would mix with its cached prefixes."""
    name, path = loaded
    with pytest.raises(EngineError, match="already been loaded"):
        vllm_adapters.load(engine.url, name, path)


@pytest.mark.parametrize(
    "body,status",
    [
        ({"lora_name": "x", "lora_path": "/nonexistent/adapter"}, 404),
        ({"lora_name": "", "lora_path": ""}, 400),
    ],
)
def test_bad_loads_are_refused(engine: RunningEngine, body: dict[str, str], status: int) -> None:
    assert post(engine.url, "/v1/load_lora_adapter", body)[0] == status
    assert vllm_adapters.listed(engine.url) == {engine.identity}


def test_engine_survives_a_corrupt_adapter(engine: RunningEngine, tmp_path: Path) -> None:
    folder = make_adapter(engine.base_dir, tmp_path / "corrupt", seed=2)
    (folder / store.WEIGHTS).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header....")
    with pytest.raises(EngineError, match="500"):
        vllm_adapters.load(engine.url, "corrupt-1", folder)
    assert vllm_adapters.listed(engine.url) == {engine.identity}
    assert complete(engine, temperature=0.0)["choices"][0]["token_ids"]


def test_engine_refuses_a_rank_above_its_limit(engine: RunningEngine, tmp_path: Path) -> None:
    folder = make_adapter(engine.base_dir, tmp_path / "wide", seed=2, rank=64)
    with pytest.raises(EngineError, match="rank"):
        vllm_adapters.load(engine.url, "wide-1", folder)
    assert complete(engine, temperature=0.0)["choices"][0]["token_ids"]


@pytest.mark.parametrize(
    "change,status",
    [
        ({"model": "nobody"}, 404),
        ({"max_tokens": 100_000}, 400),
        ({"messages": "hello"}, 400),
        ({"temperature": -1.0}, 400),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400),
    ],
)
def test_requests_that_cannot_be_served_say_so(
    engine: RunningEngine, change: dict[str, Any], status: int
) -> None:
    body = {"model": engine.identity, "messages": MESSAGES, "max_tokens": 6} | change
    answered, reply = post(engine.url, "/v1/chat/completions", body)
    assert answered == status
    assert reply["error"]["code"] == status
    assert reply["error"]["message"]


def test_token_ids_outside_the_vocabulary_are_refused(engine: RunningEngine) -> None:
    status, _ = post(engine.url, "/v1/completions", {"model": engine.identity, "prompt": [1, 9999]})
    assert status == 400
    assert complete(engine, temperature=0.0)["choices"][0]["token_ids"]


@pytest.mark.vllm
@pytest.mark.slow
def test_seeded_requests_with_long_prompts_leave_vllm_alive(vllm_engine: RunningEngine) -> None:
    """On a CPU, vLLM 0.32 dies of a seeded request whose prompt it prefills in chunks.

    12,000 tokens at once fit no step, so that only an engine told not to cut prompts cuts none.
    """
    prompts = [[token] * 3000 for token in range(100, 104)]
    reply = complete(vllm_engine, prompt=prompts, seed=7, max_tokens=2, ignore_eos=True)
    assert [len(choice["token_ids"]) for choice in reply["choices"]] == [2] * 4
    assert vllm_adapters.healthy(vllm_engine.url)


def test_a_client_that_hangs_up_frees_the_engine(engine: RunningEngine) -> None:
    """Otherwise a closed browser tab would hold a slot until the last token."""
    long = {"max_tokens": 240, "ignore_eos": True}
    begun = time.monotonic()
    chat(engine, **long)
    whole_s = time.monotonic() - begun
    connection = http.client.HTTPConnection(urlsplit(engine.url).netloc, timeout=60)
    body = json.dumps({"model": engine.identity, "messages": MESSAGES, "stream": True, **long})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(10)
    response.close()
    connection.close()
    begun = time.monotonic()
    chat(engine)
    assert time.monotonic() - begun < 0.6 * whole_s


def test_a_replica_that_is_not_there_is_unavailable(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    assert not vllm_adapters.healthy(url)
    with pytest.raises(EngineUnavailable):
        vllm_adapters.listed(url)


def test_relative_adapter_paths_never_leave_the_house() -> None:
    """vLLM would look a relative path up on a hub and download it."""
    with pytest.raises(EngineError, match="not absolute"):
        vllm_adapters.load("http://127.0.0.1:9", "x", "some/adapter")
