"""Feedback tokens: a browser tells of one reply, as the one who was answered, and of nothing else."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from typing import Any

import httpx
import pytest

from serving.auth import Authenticator, Keys, Role
from serving.errors import Unauthenticated
from serving.feedback_tokens import FeedbackTokens
from tests.serving.conftest import AT, SECRET, Running, Start

HOUR_S = 3600.0
PAGE = "https://app.example.com"


@pytest.fixture
def keys(tmp_path: Any) -> Keys:
    return Keys(f"sqlite:///{tmp_path / 'state.db'}")


@pytest.fixture
def tokens(keys: Keys) -> FeedbackTokens:
    keys.create("acme", Role.CHAT, AT)
    return made(keys)


def made(keys: Keys, secret: bytes = SECRET) -> FeedbackTokens:
    authenticator = Authenticator(keys)
    authenticator.refresh()
    return FeedbackTokens(secret, authenticator, HOUR_S)


def bearing(token: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {token}".encode()}


def tell(gateway: Running, token: str, **fields: Any) -> httpx.Response:
    body = {"kind": "thumb", "value": 0, **fields}
    return gateway.http.post(f"{gateway.url}/v1/feedback", json=body, headers=authorized(token))


def authorized(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_names_its_owner_and_replies_until_it_expires(tokens: FeedbackTokens) -> None:
    token = tokens.issue("acme", ["chatcmpl-1", "chatcmpl-2"], AT)
    allowed = tokens.principal(bearing(token), AT + timedelta(seconds=HOUR_S - 1))
    assert (allowed.owner, allowed.role, allowed.replies) == ("acme", Role.CHAT, {"chatcmpl-1", "chatcmpl-2"})
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.principal(bearing(token), AT + timedelta(seconds=HOUR_S))


def test_no_bit_of_a_token_can_be_changed(tokens: FeedbackTokens) -> None:
    """Not the reply, not the time, not the signature; neither can it be cut or made up."""
    raw = urlsafe_b64decode(tokens.issue("acme", ["chatcmpl-1"], AT).removeprefix("ft-") + "==")
    forged = [raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :] for n in range(len(raw))]
    for attempt in [*forged, raw[:-1], raw[:32], b"", b"nonsense"]:
        with pytest.raises(Unauthenticated, match="no feedback token"):
            tokens.principal(bearing("ft-" + urlsafe_b64encode(attempt).decode().rstrip("=")), AT)


def test_another_deployments_token_is_refused(tokens: FeedbackTokens, keys: Keys) -> None:
    elsewhere = made(keys, secret=b"t" * 32)
    with pytest.raises(Unauthenticated, match="no feedback token"):
        tokens.principal(bearing(elsewhere.issue("acme", ["chatcmpl-1"], AT)), AT)


def test_tokens_end_with_their_owners_last_key(keys: Keys) -> None:
    first, second = (keys.create("acme", Role.CHAT, AT) for _ in range(2))
    token = made(keys).issue("acme", ["chatcmpl-1"], AT)
    keys.revoke(first[:10], AT)
    assert made(keys).principal(bearing(token), AT).owner == "acme"
    keys.revoke(second[:10], AT)
    with pytest.raises(Unauthenticated, match="revoked"):
        made(keys).principal(bearing(token), AT)


def test_whoever_holds_a_replys_token_speaks_as_its_user(gateway: Running) -> None:
    told = gateway.ask(user="ann").json()["ratchet"]
    response = tell(gateway, told["feedback_token"], response_id=told["response_id"])
    assert response.status_code == 200, response.text
    (signal,) = gateway.signals()
    assert (signal.user, signal.response_id) == (gateway.turn().user, told["response_id"])


def test_a_stream_brings_its_token_in_its_last_chunk(gateway: Running) -> None:
    *_, last = gateway.sdk().chat.completions.create(
        model="ratchet", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    told = (last.model_extra or {})["ratchet"]
    assert tell(gateway, told["feedback_token"], response_id=told["response_id"]).status_code == 200


def test_a_token_is_good_for_nothing_else(gateway: Running) -> None:
    other = gateway.ask().json()["id"]
    told = gateway.ask(user="ann", metadata={"conversation_id": "c1"}).json()["ratchet"]
    token, mine = told["feedback_token"], told["response_id"]
    refused = [
        tell(gateway, token, response_id=other),
        tell(gateway, token, response_id=mine, kind="comparison", value=1, other_response_id=other),
        tell(gateway, token, response_id=mine, kind="label"),
        tell(gateway, token, response_id=mine, user="bob"),
        tell(gateway, token, conversation_id="c1"),
    ]
    assert [r.status_code for r in refused] == [404, 404, 403, 403, 403], [r.text for r in refused]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for path in ("/v1/chat/completions", "/v1/review"):
        answer = gateway.http.post(f"{gateway.url}{path}", json=chat, headers=authorized(token))
        assert answer.status_code == 401
    assert gateway.signals() == []


def test_browsers_of_allowed_origins_may_send_feedback(start: Start) -> None:
    """The browser asks first, and only a page of that origin gets yes."""
    gateway = start(allowed_origins=[PAGE])

    def preflight(origin: str) -> httpx.Response:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization, content-type"
        return gateway.http.options(f"{gateway.url}/v1/feedback", headers=asked)

    assert preflight(PAGE).headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-origin" not in preflight("https://evil.example.com").headers
