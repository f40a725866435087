"""Feedback: checked against the turn it is about, durable before its answer."""

import time
from typing import Any

import httpx
import pytest

from feedback.conversations import fold
from feedback.events import SignalKind, signal_event
from feedback.privacy import pseudonym
from serving.auth import Role
from serving.signals import EXAMPLES
from tests.serving.conftest import AT, SECRET, Running


def other_key(gateway: Running, role: Role = Role.CHAT, owner: str = "globex") -> str:
    key = gateway.keys.create(owner, role, AT)
    deadline = time.monotonic() + 5
    headers = {"Authorization": f"Bearer {key}"}
    while gateway.http.get(f"{gateway.url}/v1/models", headers=headers).status_code == 401:
        assert time.monotonic() < deadline, "the new key was not noticed"
        time.sleep(0.02)
    return key


def feedback(gateway: Running, *, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or gateway.key}"}
    return gateway.http.post(f"{gateway.url}/v1/feedback", json=fields, headers=headers)


def reply(gateway: Running, **more: Any) -> str:
    return str(gateway.ask(**more).json()["id"])


def test_signal_answered_200_is_in_the_log_with_its_turns_conversation(gateway: Running) -> None:
    response_id = reply(gateway, user="ann")
    response = feedback(gateway, response_id=response_id, kind="thumb", value=0, reasons=["wrong"])
    (signal,), turn = gateway.signals(), gateway.turn()
    assert response.status_code == 200
    assert response.json() == {"signal_id": signal.signal_id, "response_id": response_id, "kind": "thumb"}
    assert (signal.kind, signal.value, signal.reasons) == (SignalKind.THUMB, 0.0, ("wrong",))
    assert signal.conversation_id == turn.conversation_id
    assert signal.user == turn.user == pseudonym(SECRET, "acme", "ann")


def test_rater_may_be_somebody_else_than_the_one_who_asked(gateway: Running) -> None:
    feedback(gateway, response_id=reply(gateway, user="ann"), kind="thumb", value=1, user="bob")
    assert gateway.signals()[0].user == pseudonym(SECRET, "acme", "bob")


def test_foreign_and_missing_replies_are_answered_alike(gateway: Running) -> None:
    """A different answer would tell whose replies exist."""
    theirs = other_key(gateway)
    foreign = feedback(gateway, key=theirs, response_id=reply(gateway), kind="thumb", value=1)
    missing = feedback(gateway, key=theirs, response_id="chatcmpl-none", kind="thumb", value=1)
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content
    assert gateway.signals() == []


def test_comparison_needs_both_replies_to_be_ones_own(gateway: Running) -> None:
    first, second = reply(gateway), reply(gateway)
    fields = {"kind": "comparison", "value": 0.9, "response_id": first}
    assert feedback(gateway, **fields, other_response_id="chatcmpl-none").status_code == 404
    assert feedback(gateway, **fields, other_response_id=second).status_code == 200
    assert gateway.signals()[0].other_response_id == second


def test_same_idempotency_key_records_nothing_new(gateway: Running) -> None:
    """A browser that retries must not vote twice; a key used for something else is a mistake."""
    fields = {"response_id": reply(gateway), "kind": "thumb", "idempotency_key": "k"}
    first, again = feedback(gateway, **fields, value=1), feedback(gateway, **fields, value=1)
    other = feedback(gateway, **fields, value=0)
    assert first.json() == again.json()
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert len(gateway.signals()) == 1


@pytest.mark.parametrize(
    "kind,value", [(SignalKind.THUMB, 0), (SignalKind.RATING, 0.2), (SignalKind.COMPARISON, 0.9)]
)
def test_null_takes_the_earlier_signal_back(gateway: Running, kind: SignalKind, value: float) -> None:
    """What the log then holds grades nothing, and another word after it counts again."""
    fields = {"response_id": reply(gateway), "kind": kind}
    if kind is SignalKind.COMPARISON:
        fields["other_response_id"] = reply(gateway)
    standing = []
    for said in (value, None, value):
        assert feedback(gateway, **fields, value=said).status_code == 200
        standing.append([s.value for s in fold(map(signal_event, gateway.signals())).signals])
    assert standing == [[value], [], [value]]
    assert [s.value for s in gateway.signals()] == [value, None, value]


def test_labels_need_an_operator_who_may_label_anybodys_replies(gateway: Running) -> None:
    label = {"response_id": reply(gateway), "kind": "label", "value": 1}
    refused = feedback(gateway, **label)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_role")
    assert feedback(gateway, key=other_key(gateway, Role.OPERATOR), **label).status_code == 200
    assert gateway.signals()[0].user == pseudonym(SECRET, "globex")


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"kind": "thumb", "value": 1}, "response_id"),
        ({"response_id": "r"}, "kind"),
        ({"response_id": "r", "kind": "applause"}, "kind"),
        ({"response_id": "r", "kind": "branch"}, "kind"),
        ({"response_id": "r", "kind": "judgement", "value": 1, "other_response_id": "s"}, "kind"),
        ({"response_id": "r", "kind": "thumb"}, "value"),
        ({"response_id": "r", "kind": "label"}, "value"),
        ({"response_id": "r", "kind": "rating", "reasons": ["wrong"]}, "value"),
        ({"response_id": "r", "kind": "thumb", "value": 0.5}, "value"),
        ({"response_id": "r", "kind": "rating", "value": 1.5}, "value"),
        ({"response_id": "r", "kind": "rating", "value": "good"}, "value"),
        ({"response_id": "r", "kind": "comment"}, "text"),
        ({"response_id": "r", "kind": "edit", "text": "  "}, "text"),
        ({"response_id": "r", "kind": "edit", "text": "x" * 20_001}, "text"),
        ({"response_id": "r", "kind": "comparison", "value": 1}, "other_response_id"),
        ({"response_id": "r", "kind": "copy", "reasons": ["x"] * 17}, "reasons"),
        ({"response_id": "r", "kind": "copy", "reasons": ["x" * 201]}, "reasons"),
        ({"response_id": "r", "kind": "copy", "mood": 1}, "mood"),
    ],
)
def test_unusable_feedback_names_the_field(shared: Running, fields: dict[str, Any], param: str) -> None:
    response = feedback(shared, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_documented_examples_are_accepted(gateway: Running) -> None:
    """What the API document shows must work when it is copied."""
    first, second = reply(gateway), reply(gateway)
    document = gateway.http.get(f"{gateway.url}/openapi.json").json()
    shown = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ]
    assert {name: example["value"] for name, example in shown.items()} == EXAMPLES
    for example in EXAMPLES.values():
        ids = {"response_id": first} | (
            {"other_response_id": second} if "other_response_id" in example else {}
        )
        assert feedback(gateway, **{**example, **ids}).status_code == 200
    assert "/v1/chat/completions" in document["paths"]
    assert any(example["value"] is None for example in EXAMPLES.values() if "value" in example)
    assert {"Feedback", "Accepted", "ErrorBody"} <= set(document["components"]["schemas"])
