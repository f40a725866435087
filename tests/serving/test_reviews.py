"""GET and POST /v1/review: who may ask, what they are shown, and what becomes of an answer."""

import time
from dataclasses import replace
from typing import Any

import pytest

from feedback import database, erasure, store
from feedback.events import Drawn
from feedback.privacy import pseudonym
from tests.serving.conftest import AT, NO, QUESTION, SECRET, YES, Desk, rivals

pytestmark = pytest.mark.slow  # a gateway for each

READING_S = 0.25
"""Two words at ten a second, and a little more."""


def side(question: dict[str, Any], reply: str) -> str:
    return "left" if question["left"] == reply else "right"


# --- who may


def test_a_key_that_only_chats_may_not_review(desk: Desk) -> None:
    """A reviewer reads what other people wrote."""
    rivals(desk)
    chatting = replace(desk, key=desk.gateway.key)
    for refused in (chatting.ask(), chatting.answer("00", "left")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_role")
        assert QUESTION not in refused.text


def test_nobody_may_without_a_key(desk: Desk) -> None:
    assert replace(desk, key="rk-made-up").ask().status_code == 401


def test_a_reviewer_may_not_label(desk: Desk) -> None:
    """A label is certain for the aggregation: only operators give it."""
    one, _ = rivals(desk)
    body = {"response_id": one, "kind": "label", "value": 1}
    refused = desk.gateway.http.post(f"{desk.gateway.url}/v1/feedback", json=body, headers=desk.auth)
    assert refused.status_code == 403


def test_feedback_takes_no_reviews(desk: Desk) -> None:
    """Whoever could send one unasked would pick what to compare."""
    one, other = rivals(desk)
    refused = desk.gateway.post(
        "/v1/feedback", {"response_id": one, "kind": "review", "value": 1, "other_response_id": other}
    )
    assert refused.status_code == 400 and "POST /v1/review" in refused.json()["error"]["message"]


# --- what is asked


def test_two_replies_to_one_question_are_shown_side_by_side(desk: Desk) -> None:
    rivals(desk)
    shown = desk.question()
    assert {shown["left"], shown["right"]} == {YES, NO}
    assert shown["prompt"] == [{"role": "user", "content": QUESTION}]
    assert (shown["waiting"], shown["dimensions"]) == (1, ["helpful", "honest", "harmless"])


def test_an_empty_queue_asks_nothing(desk: Desk) -> None:
    assert desk.question()["ticket"] is None


def test_reloading_shows_the_same_question_on_the_same_sides(desk: Desk) -> None:
    """Else a rater could reload until the side suits them."""
    rivals(desk)
    first, again = desk.question(), desk.question()
    assert (first["left"], first["right"]) == (again["left"], again["right"])


def test_turns_withheld_from_learning_are_shown_to_nobody(desk: Desk) -> None:
    rivals(desk, store=False)
    assert desk.items() == [] and desk.question()["ticket"] is None


def test_an_erased_user_is_shown_to_nobody_from_the_moment_the_keys_are_gone(desk: Desk) -> None:
    """The queue's rows are still there until the erasure comes to them: the words must not be."""
    rivals(desk)
    assert desk.question()["ticket"]
    erasure.shred(desk.state, pseudonym(SECRET, "acme", "ann"), "olga", AT)
    with database.reading(desk.state) as tx:
        assert len(list(store.derived_rows(tx, "item"))) == 1
    after = desk.ask()
    assert after.json()["ticket"] is None and YES not in after.text


def test_nobody_reviews_replies_to_themselves(desk: Desk) -> None:
    """Whoever asked is no blind rater."""
    asking = desk.of("acme")
    rivals(desk, user=None)
    assert asking.question()["ticket"] is None
    assert desk.question()["ticket"]


# --- what becomes of an answer


def test_an_answer_is_in_the_log_when_it_is_accepted(desk: Desk) -> None:
    one, other = sorted(rivals(desk))
    shown = desk.question()
    assert desk.answer(shown["ticket"], "left").status_code == 200
    (said,) = desk.reviews()
    assert (said.response_id, said.other_response_id, said.user) == (one, other, desk.rater)
    assert said.review is not None
    assert (said.review.drawn, said.review.size, said.review.threshold) == (Drawn.SAMPLED, 0.2, 0.0)


def test_what_is_recorded_is_the_reply_that_stood_on_the_side(desk: Desk) -> None:
    """Until both sides were drawn: YES is called better, NO the more honest one."""
    while len({s.review.side for s in desk.reviews() if s.review}) < 2:
        rivals(desk, f"c-{len(desk.reviews())}")
        shown = desk.question()
        yes, no = side(shown, YES), side(shown, NO)
        assert desk.answer(shown["ticket"], yes, dimensions={"honest": no}).status_code == 200
    replies = {t.response_id: t.reply["content"] for t in desk.gateway.turns()}
    for said in desk.reviews():
        yes_is_one = replies[said.response_id] == YES
        assert (said.value, said.dimensions["honest"]) == ((1.0, 0.0) if yes_is_one else (0.0, 1.0))


def test_answers_that_prefer_neither(desk: Desk) -> None:
    """Each replaces the one before; the last takes all back."""
    rivals(desk)
    ticket = desk.question()["ticket"]
    given: list[tuple[str | None, dict[str, str]]] = [
        ("tie", {}),
        ("both_bad", {}),
        ("pass", {"reason": "cannot tell"}),
        (None, {}),
    ]
    for revision, (verdict, more) in enumerate(given):
        assert desk.answer(ticket, verdict, revision=revision, **more).status_code == 200
    assert [(s.value, s.reasons) for s in desk.reviews()] == [
        (0.5, ()),
        (0.5, ("both bad",)),
        (None, ("cannot tell",)),
        (None, ()),
    ]


def test_the_same_answer_twice_is_one_and_another_under_its_revision_a_conflict(desk: Desk) -> None:
    """A page that lost the connection sends again."""
    rivals(desk)
    ticket = desk.question()["ticket"]
    assert [desk.answer(ticket, "left").status_code for _ in range(2)] == [200, 200]
    assert desk.answer(ticket, "right").json()["error"]["code"] == "idempotency_conflict"
    assert len(desk.reviews()) == 1


def test_an_answer_taken_back_and_given_anew_counts_as_the_last(desk: Desk) -> None:
    rivals(desk)
    ticket = desk.question()["ticket"]
    time.sleep(READING_S)
    for revision, verdict in enumerate(("left", None, "left")):
        assert desk.answer(ticket, verdict, revision=revision).status_code == 200
    (item,) = desk.items()
    assert [a.counts for a in item.answers] == [True]


def test_nobody_is_asked_twice_also_before_the_pipeline_knows(desk: Desk) -> None:
    rivals(desk)
    desk.answer(desk.question()["ticket"], "left")
    assert desk.question()["ticket"] is None
    desk.fold()
    assert desk.question()["ticket"] is None


def test_what_one_rater_began_another_goes_on_with_until_enough_have_answered(desk: Desk) -> None:
    rivals(desk)
    raters = [desk, desk.of("rob"), desk.of("roy")]
    for rater in raters[:2]:
        ticket = rater.question()["ticket"]
        time.sleep(READING_S)
        assert rater.answer(ticket, "tie").status_code == 200
        desk.fold()
    assert raters[2].question()["ticket"] is None
    assert [s.review.drawn for s in desk.reviews() if s.review] == [Drawn.SAMPLED, Drawn.SHARED]


def test_an_answer_too_fast_to_have_been_read_is_kept_and_does_not_count(desk: Desk) -> None:
    rivals(desk)
    desk.answer(desk.question()["ticket"], "left")
    (item,) = desk.items()
    assert (len(item.answers), item.counted) == (1, 0)


# --- what is refused


def test_a_ticket_of_another_rater_is_refused(desk: Desk) -> None:
    """Else one rater could answer for all of them, or choose among their questions."""
    rivals(desk)
    other = desk.of("rob")
    refused = other.answer(desk.question()["ticket"], "left")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "ticket")
    assert desk.reviews() == []


def test_a_ticket_tells_nothing(desk: Desk) -> None:
    """A rater who knew a test from work would answer the tests well."""
    one, _ = rivals(desk)
    ticket = bytes.fromhex(desk.question()["ticket"])
    assert one.encode() not in ticket and b"sampled" not in ticket


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"ticket": "00ff"}, "ticket"),
    ({"ticket": "no hex"}, "ticket"),
    ({"ticket": None}, "ticket"),
    ({"verdict": "both"}, "verdict"),
    ({"verdict": "pass"}, "reason"),
    ({"verdict": "pass", "reason": "I think Ann lives in Bonn"}, "reason"),
    ({"reason": "cannot tell"}, "reason"),
    ({"dimensions": {"polite": "left"}}, "dimensions"),
    ({"verdict": None, "dimensions": {"honest": "left"}}, "dimensions"),
    ({"revision": -1}, "revision"),
    ({"comment": "well"}, "comment"),
]


def test_an_answer_that_cannot_be_used_says_which_field(desk: Desk) -> None:
    rivals(desk)
    good = {"ticket": desk.question()["ticket"], "verdict": "left"}
    for change, param in UNUSABLE:
        refused = desk.send({**good, **change})
        assert (change, refused.status_code, refused.json()["error"]["param"]) == (change, 400, param)
    assert desk.reviews() == []


def test_an_answer_without_a_verdict_is_refused(desk: Desk) -> None:
    """Left out by mistake must not take anything back."""
    refused = desk.send({"ticket": "00ff"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "verdict")


def test_a_queue_out_of_reach_is_said_and_the_chat_goes_on(desk: Desk) -> None:
    rivals(desk)
    with database.writing(desk.state) as tx:
        store.derived.drop(tx)
    refused = desk.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert desk.gateway.ask(QUESTION).status_code == 200


# --- and whose it is


def test_an_erased_raters_answers_are_gone(desk: Desk) -> None:
    rivals(desk)
    ticket = desk.question()["ticket"]
    time.sleep(READING_S)
    desk.answer(ticket, "left")
    assert [a.rater for i in desk.items() for a in i.answers] == [desk.rater]
    erasure.shred(desk.state, desk.rater, "olga", AT)
    with database.reading(desk.state) as tx:
        found = erasure.belongings(tx, desk.rater)
    erasure.forget(desk.state, found, retry_window_s=2.0)
    assert [i.answers for i in desk.items()] == [()]
