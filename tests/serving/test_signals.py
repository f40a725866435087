"""Feedback: checked against the turn it is about, durable before its answer."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.conversations import fold
from feedback.embedded import EmbeddedLog
from feedback.events import DIMENSIONS, SignalKind, SignalReceived, signal_event
from feedback.keyring import KeyRing
from feedback.privacy import pseudonym
from serving.app import build
from serving.auth import Role
from serving.config import Gateway
from serving.told import BATCH_EXAMPLES, EXAMPLES, Dimensions
from tests.serving.conftest import AT, SECRET, Running, serving


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


def signals_on(gateway: Running, about: str) -> list[SignalReceived]:
    """What the log holds on a reply, or on a conversation of acme's and its replies."""
    return [s for s in gateway.signals() if about in (s.response_id, s.conversation_id.removeprefix("acme/"))]


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
    ("kind", "said", "taken_back"),
    [
        (SignalKind.THUMB, {"value": 0}, {"value": None}),
        (SignalKind.RATING, {"value": 0.2}, {"value": None}),
        (SignalKind.RATING, {"dimensions": {"honest": 0.2}}, {"value": None}),
        (SignalKind.OUTCOME, {"value": 1}, {"value": None}),
        (SignalKind.COMPARISON, {"value": 0.9}, {"value": None}),
        (SignalKind.COMMENT, {"text": "Too long.", "value": 0}, {"text": None}),
        (SignalKind.EDIT, {"text": "Hold the button."}, {"text": None}),
        (SignalKind.COPY, {}, {"value": 0}),
    ],
)
def test_what_was_said_can_be_taken_back_and_said_again(
    shared: Running, kind: SignalKind, said: dict[str, Any], taken_back: dict[str, Any]
) -> None:
    """What the log then holds says nothing, and another word after it counts again."""
    fields: dict[str, Any] = {"response_id": reply(shared), "kind": kind}
    if kind is SignalKind.COMPARISON:
        fields["other_response_id"] = reply(shared)
    standing = []
    for word in (said, taken_back, said):
        assert feedback(shared, **fields, **word).status_code == 200
        standing.append(len(fold(map(signal_event, signals_on(shared, fields["response_id"]))).signals))
    assert standing == [1, 0, 1]
    assert len(signals_on(shared, fields["response_id"])) == 3


def test_a_rating_by_dimensions_is_worth_their_mean(shared: Running) -> None:
    """And by a value of its own where it has one: that is what labels are made of."""
    fields = {"response_id": reply(shared), "kind": "rating", "dimensions": {"helpful": 0.5, "honest": 1}}
    assert feedback(shared, **fields).status_code == 200
    assert feedback(shared, **fields, value=0.25).status_code == 200
    found = signals_on(shared, fields["response_id"])
    assert [s.value for s in found] == [0.75, 0.25]
    assert [s.dimensions for s in found] == [{"helpful": 0.5, "honest": 1.0}] * 2
    assert Dimensions.__struct_fields__ == DIMENSIONS


def test_feedback_on_a_conversation_is_kept_under_its_name(shared: Running) -> None:
    """Whoever began it is taken to say so: that stays the same, whoever goes on with it."""
    ask = {"metadata": {"conversation_id": "support-1"}}
    reply(shared, user="ann", **ask)
    reply(shared, user="bob", **ask)
    response = feedback(shared, conversation_id="support-1", kind="outcome", value=1)
    (signal,) = signals_on(shared, "support-1")
    assert response.json() == {
        "signal_id": signal.signal_id,
        "conversation_id": "support-1",
        "kind": "outcome",
    }
    assert (signal.conversation_id, signal.response_id) == ("acme/support-1", "")
    assert signal.user == pseudonym(SECRET, "acme", "ann")


def test_a_conversation_is_known_by_the_name_that_its_replies_carried(shared: Running) -> None:
    """Clients that name no conversation find it in `ratchet.conversation_id`."""
    asked = shared.ask("And my invoice?", user="ann").json()["ratchet"]
    said = {"conversation_id": asked["conversation_id"], "kind": "thumb", "value": 1}
    assert feedback(shared, **said).status_code == 200
    assert [s.kind for s in signals_on(shared, asked["conversation_id"])] == [SignalKind.THUMB]


def test_foreign_and_missing_conversations_are_answered_alike(shared: Running) -> None:
    """A name is its owner's own: the same one of another owner is another conversation."""
    reply(shared, metadata={"conversation_id": "support-2"})
    theirs = other_key(shared)
    said = {"kind": "thumb", "value": 1}
    foreign = feedback(shared, key=theirs, conversation_id="support-2", **said)
    missing = feedback(shared, key=theirs, conversation_id="support-none", **said)
    through = feedback(shared, key=theirs, conversation_id="../acme/support-2", **said)
    assert foreign.status_code == 404
    assert foreign.json()["error"]["code"] == "conversation_not_found"
    assert foreign.content == missing.content == through.content
    assert signals_on(shared, "support-2") == []


def test_a_conversation_that_strangers_may_share_takes_no_feedback(shared: Running) -> None:
    """Known by its first message alone, it may be anybody's: whose reply would the thumb be about?"""
    anybodys = shared.ask("Whose is this?").json()["ratchet"]["conversation_id"]
    response = feedback(shared, conversation_id=anybodys, kind="thumb", value=0)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "shared_conversation")
    assert signals_on(shared, anybodys) == []


def test_one_idempotency_key_serves_a_reply_and_its_conversation(shared: Running) -> None:
    """A key is unique within what it is about, as it is within its owner."""
    response_id = reply(shared, metadata={"conversation_id": "support-3"})
    said = {"kind": "thumb", "value": 1, "idempotency_key": "k"}
    for about in ({"response_id": response_id}, {"conversation_id": "support-3"}) * 2:
        assert feedback(shared, **about, **said).status_code == 200
    assert [s.response_id for s in signals_on(shared, "support-3")] == [response_id, ""]


def test_response_ids_cannot_be_guessed(shared: Running) -> None:
    """128 bits, each of which falls both ways: an id is what entitles a client's user to speak of a reply."""
    ids = [reply(shared) for _ in range(40)]
    drawn = [int(re.fullmatch(r"chatcmpl-([0-9a-f]{32})", i)[1], 16) for i in ids]
    ever, always = reduce(or_, drawn), reduce(and_, drawn)  # by chance: 256 / 2^40
    assert (ever, always) == (2**128 - 1, 0)


def test_replies_of_before_a_restart_take_feedback(gateway: Running, tmp_path: Path) -> None:
    """Any time later: all that is needed lies in the log."""
    response_id = reply(gateway, metadata={"conversation_id": "support-7"})
    gateway.log.close()
    keys = KeyRing(f"sqlite:///{tmp_path / 'state.db'}")
    with closing(EmbeddedLog(tmp_path / "log.db")) as log, closing(keys) as ring:
        app = build(
            Gateway(),
            log=log,
            registry=gateway.registry,
            keys=gateway.keys,
            ring=ring,
            queue=gateway.queue,
            secret=SECRET,
        )
        with serving(app) as url:
            restarted = replace(gateway, url=url, log=log, ring=ring)
            for about in ({"response_id": response_id}, {"conversation_id": "support-7"}):
                assert feedback(restarted, **about, kind="thumb", value=0).status_code == 200
            assert len(restarted.signals()) == 2


def batch(gateway: Running, *items: Any, key: str = "") -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key or gateway.key}"}
    body = {"feedback": list(items)}
    response = gateway.http.post(f"{gateway.url}/v1/feedback/batch", json=body, headers=headers)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    assert [r["index"] for r in results] == list(range(len(items)))
    return results


def test_every_item_of_a_batch_is_answered_on_its_own(shared: Running) -> None:
    """One mistake in a day's feedback must not cost the day."""
    response_id = reply(shared)
    said = {"response_id": response_id, "kind": "thumb"}
    found = batch(shared, {**said, "value": 1}, {**said, "value": 2}, 7, {**said, "kind": "copy"})
    assert [set(r) - {"index"} for r in found] == [{"accepted"}, {"error"}, {"error"}, {"accepted"}]
    assert found[0]["accepted"] == {
        "signal_id": signals_on(shared, response_id)[0].signal_id,
        "response_id": response_id,
        "kind": "thumb",
    }
    single = feedback(shared, **said, value=2)
    assert found[1]["error"] == single.json()["error"]
    assert [s.kind for s in signals_on(shared, response_id)] == [SignalKind.THUMB, SignalKind.COPY]


def test_a_batch_reaches_nobody_elses_replies(shared: Running) -> None:
    said = {"response_id": reply(shared), "kind": "thumb", "value": 1}
    label = {**said, "kind": "label"}
    codes = [r["error"]["code"] for r in batch(shared, said, label, key=other_key(shared))]
    assert codes == ["reply_not_found", "insufficient_role"]
    assert signals_on(shared, said["response_id"]) == []


def test_the_last_word_of_a_batch_is_the_last(shared: Running) -> None:
    """They arrive at once and count in the order in which they stand."""
    said = {"response_id": reply(shared), "kind": "thumb"}
    values = [0, 1, None, 1, 0, None, 0, 1, 1, 0, 1, None]
    batch(shared, *({**said, "value": value} for value in values))
    assert fold(map(signal_event, signals_on(shared, said["response_id"]))).signals == ()
    assert [
        s.value for s in sorted(signals_on(shared, said["response_id"]), key=lambda s: s.received_at)
    ] == values


def test_a_batch_may_be_sent_again(shared: Running) -> None:
    """With idempotency keys, also within one batch, and first come is first served."""
    said = {"response_id": reply(shared), "kind": "thumb"}
    items = [
        {**said, "value": 1, "idempotency_key": "a"},
        {**said, "value": 0, "idempotency_key": "a"},
        {**said, "value": 0, "idempotency_key": "b"},
        {**said, "value": 0, "idempotency_key": "b"},
    ]
    first, again = batch(shared, *items), batch(shared, *items)
    assert first == again
    assert [r.get("error", {}).get("code") for r in first] == [None, "idempotency_conflict", None, None]
    assert first[2]["accepted"] == first[3]["accepted"]
    assert sorted((s.value or 0.0) for s in signals_on(shared, said["response_id"])) == [0.0, 1.0]


def test_of_requests_that_race_for_one_key_one_wins(shared: Running) -> None:
    """Two that both looked before either wrote would both be answered 200, and one of them be lost."""
    said = {"response_id": reply(shared), "kind": "rating", "idempotency_key": "k"}
    with ThreadPoolExecutor(8) as browsers:
        answers = list(browsers.map(lambda n: feedback(shared, **said, value=n / 8), range(8)))
    (won,) = [n for n, answer in enumerate(answers) if answer.status_code == 200]
    assert [a.status_code for a in answers].count(409) == 7
    assert [s.value for s in signals_on(shared, said["response_id"])] == [won / 8]


def test_a_batch_without_a_log_says_so_of_each_item(gateway: Running) -> None:
    """An item that is answered `accepted` is durable; these are not."""
    said = {"response_id": reply(gateway), "kind": "copy"}
    gateway.log.close()
    assert [r["error"]["code"] for r in batch(gateway, said, said)] == ["not_recorded", "not_recorded"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "feedback"),
        ({"feedback": []}, "feedback"),
        ({"feedback": {}}, "feedback"),
        ({"feedback": [{}] * 101}, "feedback"),
        ({"feedback": [{}], "mood": 1}, "mood"),
        ([], None),
    ],
)
def test_an_unusable_batch_is_refused_as_a_whole(shared: Running, body: Any, param: str | None) -> None:
    response = shared.post("/v1/feedback/batch", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


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
        ({"response_id": "r", "kind": "outcome"}, "value"),
        ({"response_id": "r", "kind": "outcome", "value": -0.5}, "value"),
        ({"response_id": "r", "kind": "rating", "dimensions": {}}, "value"),
        ({"response_id": "r", "kind": "rating", "dimensions": {"honest": 1.5}}, "dimensions.honest"),
        ({"response_id": "r", "kind": "rating", "dimensions": {"brave": 1}}, "dimensions"),
        ({"response_id": "r", "kind": "rating", "value": None, "dimensions": {"honest": 1}}, "dimensions"),
        ({"response_id": "r", "kind": "thumb", "value": 1, "dimensions": {"honest": 1}}, "dimensions"),
        ({"response_id": "r", "kind": "comment", "text": None, "reasons": ["wrong"]}, "text"),
        ({"response_id": "r", "kind": "edit"}, "text"),
        ({"response_id": "r", "conversation_id": "c", "kind": "thumb", "value": 1}, "conversation_id"),
        ({"conversation_id": "c", "kind": "edit", "text": "All of it."}, "conversation_id"),
        ({"conversation_id": "c", "kind": "label", "value": 1}, "conversation_id"),
    ],
)
def test_unusable_feedback_names_the_field(shared: Running, fields: dict[str, Any], param: str) -> None:
    response = feedback(shared, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_documented_examples_are_accepted(gateway: Running) -> None:
    """What the API document shows must work when it is copied."""
    first, second = reply(gateway, metadata={"conversation_id": "page-19af"}), reply(gateway)
    document = gateway.http.get(f"{gateway.url}/openapi.json").json()
    for path, examples in (("/v1/feedback", EXAMPLES), ("/v1/feedback/batch", BATCH_EXAMPLES)):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert {name: example["value"] for name, example in body["examples"].items()} == examples
    ids = {"response_id": first, "other_response_id": second}
    for example in EXAMPLES.values():
        served = {**example, **{name: ids[name] for name in ids.keys() & example.keys()}}
        assert feedback(gateway, **served).status_code == 200
    for example in BATCH_EXAMPLES.values():
        items = [{**i, **({"response_id": first} if "response_id" in i else {})} for i in example["feedback"]]
        assert all("accepted" in result for result in batch(gateway, *items))
    assert "/v1/chat/completions" in document["paths"]
    assert any(example["value"] is None for example in EXAMPLES.values() if "value" in example)
    assert {"Feedback", "Accepted", "Batch", "Results", "ErrorBody"} <= set(document["components"]["schemas"])
