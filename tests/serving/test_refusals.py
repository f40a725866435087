"""Bad input gets a clear error in OpenAI's shape, and loses nothing."""

from typing import Any

import httpx
import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.asked import parse
from serving.errors import BadRequest
from tests.serving.conftest import STABLE, Running, Start
from tests.serving.scripted_engine import Script

BAD = "invalid_value"
HELLO = {"role": "user", "content": "Hello"}


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(
    "body,param,code",
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "missing_required_parameter"),
        ({"messages": "Hello"}, "messages", "invalid_type"),
        ({"messages": [{"content": "Hello"}]}, "messages[0].role", BAD),
        ({"messages": [HELLO, {"role": "user", "content": 3}]}, "messages[1].content", "invalid_type"),
        ({"messages": [HELLO], "temperature": "hot"}, "temperature", "invalid_type"),
        ({"messages": [HELLO], "stream": 1}, "stream", "invalid_type"),
        ({"messages": [HELLO], "n": 2}, "n", "unsupported_value"),
        ({"messages": [HELLO], "user": "x" * 513}, "user", "string_too_long"),
        (
            {"messages": [HELLO], "metadata": {"conversation_id": "a b"}},
            "metadata.conversation_id",
            "invalid_value",
        ),
        (
            {"messages": [HELLO], "response_format": {"type": "structural_tag"}},
            "response_format",
            "invalid_value",
        ),
    ],
)
def test_unusable_field_is_named(shared: Running, body: Any, param: str, code: str) -> None:
    response = shared.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert (error(response)["param"], error(response)["code"]) == (param, code)
    assert shared.engine.requests == []


@pytest.mark.parametrize(
    "field",
    "chat_template chat_template_kwargs priority request_id cache_salt kv_transfer_params ec_transfer_params "
    "vllm_xargs return_token_ids prompt_logprobs echo add_generation_prompt continue_final_message "
    "structured_outputs mm_processor_kwargs media_io_kwargs documents allowed_token_ids use_beam_search "
    "stream_interval session_id return_mm_kwargs no_such_field".split(),
)
def test_fields_that_could_steer_the_engine_are_refused(shared: Running, field: str) -> None:
    response = shared.ask(**{field: {"x": 1}})
    assert (response.status_code, error(response)["param"]) == (400, field)
    assert shared.engine.requests == []


def test_nothing_of_the_clients_headers_reaches_the_engine(gateway: Running) -> None:
    steering = {
        "X-Request-Id": "mine",
        "X-Vllm-Priority": "-9",
        "X-data-parallel-rank": "1",
        "X-Session-ID": "s",
    }
    gateway.post("/v1/chat/completions", {"messages": [HELLO]}, **steering)
    sent = gateway.engine.headers[0]
    assert set(sent) == {"host", "content-type", "content-length", "x-request-id"}
    assert sent["x-request-id"] == gateway.turn().response_id.removeprefix("chatcmpl-")


def test_engine_gets_only_listed_fields(shared: Running) -> None:
    shared.ask(
        user="ann", store=True, metadata={"a": "b"}, service_tier="auto", max_completion_tokens=5, top_k=None
    )
    assert set(shared.engine.requests[0]) == {
        "model", "messages", "cache_salt", "max_completion_tokens", "temperature", "top_p", "top_k",
        "repetition_penalty", "stream", "logprobs", "top_logprobs", "return_token_ids",
    }  # fmt: skip


@pytest.mark.parametrize("url", ["http://127.0.0.1/latest", "file:///etc/passwd"])
def test_engines_are_not_sent_to_fetch_things(shared: Running, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    response = shared.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert response.status_code == 400 and "data:" in error(response)["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"messages": NaN}', b'"\\ud800"']
)
def test_malformed_json_is_400(shared: Running, path: str, body: bytes) -> None:
    headers = {**shared.auth, "content-type": "application/json"}
    response = shared.http.post(f"{shared.url}{path}", content=body, headers=headers)
    assert (response.status_code, error(response)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
def test_wrong_content_type_is_415(shared: Running, path: str) -> None:
    response = shared.http.post(f"{shared.url}{path}", content=b"a=1", headers=shared.auth)
    assert response.status_code == 415 and "application/json" in error(response)["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
@pytest.mark.parametrize("declared", [True, False])
def test_oversized_body_is_413(start: Start, path: str, declared: bool) -> None:
    """By its declared length, and while reading when it declares none."""
    gateway = start(max_body_bytes=1000)
    body = b'{"messages": "' + b"x" * 2000
    content = body if declared else iter([body[:900], body[900:]])
    headers = {**gateway.auth, "content-type": "application/json"}
    response = gateway.http.post(f"{gateway.url}{path}", content=content, headers=headers)
    assert (response.status_code, error(response)["code"]) == (413, "body_too_large")


def test_unknown_model_is_404_in_openais_words(shared: Running) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        shared.sdk().chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hi"}])
    assert raised.value.code == "model_not_found"
    assert STABLE in raised.value.message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback", "/v1/models"])
@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer rk-wrong", "Basic cms6eA=="])
def test_bad_key_is_401(shared: Running, path: str, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    method = "GET" if path == "/v1/models" else "POST"
    response = shared.http.request(method, f"{shared.url}{path}", headers=headers)
    assert (response.status_code, error(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


def test_engines_refusal_reaches_the_client(shared: Running) -> None:
    """Only the engine knows the context length."""
    shared.engine.script = Script(status=400, refusal="maximum context length is 1024 tokens")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens"):
        shared.sdk().chat.completions.create(model="ratchet", messages=[{"role": "user", "content": "Hi"}])
    assert len(shared.engine.requests) == 1


@pytest.mark.parametrize(
    "method,path", [("GET", "/v1/chat/completions"), ("GET", "/nowhere"), ("PUT", "/v1/feedback")]
)
def test_unknown_paths_and_methods_are_told_in_the_same_shape(
    shared: Running, method: str, path: str
) -> None:
    response = shared.http.request(method, f"{shared.url}{path}")
    assert response.status_code in (404, 405)
    assert error(response)["code"] == "unknown_url"


def test_one_request_too_many_is_503_at_once(start: Start) -> None:
    gateway = start(max_in_flight=0)
    response = gateway.ask()
    assert (response.status_code, error(response)["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] == "1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = "messages model stream stop user metadata temperature top_k tools response_format n".split()


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_any_json_object_is_understood_or_refused(body: dict[str, Any]) -> None:
    """No body, however odd, may end in a 500."""
    try:
        asked = parse(msgspec.json.encode(body), {})
    except BadRequest as e:
        assert e.message
    else:
        assert asked.messages
