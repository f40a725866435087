"""What the gateway writes down of a person: sealed, or with consent withheld not at all; gone once erased."""

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feedback import database, keyring
from feedback.eventlog import Topic
from feedback.privacy import pseudonym
from tests.serving.conftest import SECRET, Running, Start
from tests.serving.test_signals import feedback, reply

ANN = pseudonym(SECRET, "acme", "ann")


def raw(gateway: Running) -> bytes:
    """Everything in the log, as it lies there."""
    return b"".join(r.value for topic in Topic for r in gateway.log.read(topic, 0, 0))


def erase(gateway: Running, folder: Path, user: str) -> None:
    """As `ratchet data erase` begins, in another process."""
    engine = database.connect(f"sqlite:///{folder / 'state.db'}", keyring.metadata)
    with database.writing(engine) as tx:
        keyring.note_erasure(tx, user, "operator:eve", datetime.now(UTC))
        assert keyring.destroy(tx, user, datetime.now(UTC)) == 1
    engine.dispose()
    deadline = time.monotonic() + 5
    while gateway.ring.of(user) is not None:
        assert time.monotonic() < deadline, "the gateway did not notice"
        time.sleep(0.01)


def test_no_word_lies_readable_in_the_log(gateway: Running) -> None:
    """Neither what was asked and answered nor what was said about it; with the key all of it is there."""
    response_id = reply(gateway, text="How do I feed ocelots?", user="ann")
    feedback(gateway, response_id=response_id, kind="comment", text="Too curt.", reasons=["meanness"])
    for word in (b"ocelots", b"Reset it", b"curt", b"meanness"):
        assert word not in raw(gateway)
    (turn,), (signal,) = gateway.turns(), gateway.signals()
    assert turn.messages[0]["content"] == "How do I feed ocelots?"
    assert "Reset it" in turn.reply["content"] and turn.token_ids
    assert (signal.text, signal.reasons) == ("Too curt.", ("meanness",))


def test_a_gateway_that_starts_anew_has_the_same_keys(start: Start, tmp_path: Path) -> None:
    """One live key per user, whichever process asks for it first."""
    gateway = start()
    reply(gateway, user="ann")
    with closing(keyring.KeyRing(f"sqlite:///{tmp_path / 'state.db'}")) as other:
        made = gateway.ring.of(ANN)
        assert made is not None
        assert other.of(ANN) is None
        assert (other.obtain(ANN).id, other.obtain(ANN).secret) == (made.id, made.secret)


def test_without_the_state_database_only_new_users_go_unrecorded(start: Start, tmp_path: Path) -> None:
    """Served by policy, and visibly; who has a key in memory is recorded as ever."""
    gateway = start(log_timeout_s=0.3)
    reply(gateway, user="ann")
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert gateway.ask("I am new", user="bob").status_code == 200
        assert gateway.http.get(f"{gateway.url}/healthz").json()["recording"] == "off"
        assert gateway.ask("Me again", user="ann").status_code == 200
        assert [t.user for t in gateway.turns()] == [ANN, ANN]
        assert gateway.http.get(f"{gateway.url}/healthz").json()["recording"] == "on"
        other.execute("ROLLBACK")


def test_who_was_erased_gets_a_fresh_key(gateway: Running, tmp_path: Path) -> None:
    """The running gateway notices by itself: nothing new is sealed under a destroyed key."""
    reply(gateway, user="ann")
    old = gateway.ring.of(ANN)
    erase(gateway, tmp_path, ANN)
    reply(gateway, text="Me again", user="ann")
    new = gateway.ring.of(ANN)
    assert old is not None and new is not None and new.id != old.id
    assert [gateway.ring.find(r.value) is None for r in gateway.log.read(Topic.TURNS, 0, 0)] == [True, False]


def test_feedback_on_an_erased_reply_finds_no_reply(gateway: Running, tmp_path: Path) -> None:
    """It is gone for everybody."""
    response_id = reply(gateway, user="ann")
    erase(gateway, tmp_path, ANN)
    answer = feedback(gateway, response_id=response_id, kind="thumb", value=1)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "response_id: no such reply")


@pytest.mark.parametrize(
    "body,header,learns",
    [
        ({}, None, True),
        ({}, "true", True),
        ({}, "False", False),
        ({"store": False}, None, False),
        ({"store": False}, "true", False),
        ({"store": True}, "false", False),
    ],
)
def test_either_the_body_or_the_header_withholds_consent(
    gateway: Running, body: dict[str, bool], header: str | None, learns: bool
) -> None:
    """A proxy sets the header for all that passes it; nobody's wish overrules another's refusal."""
    headers = {} if header is None else {"X-Ratchet-Learn": header}
    messages = [{"role": "user", "content": "my secret"}]
    assert gateway.post("/v1/chat/completions", {"messages": messages, **body}, **headers).status_code == 200
    turn = gateway.turn()
    assert turn.learn is learns
    assert (turn.messages == (), turn.token_ids == (), turn.reply["content"] == "") == (not learns,) * 3


def test_a_header_that_is_neither_is_refused(shared: Running) -> None:
    """`no` must not be taken for consent."""
    messages = [{"role": "user", "content": "my secret"}]
    answer = shared.post("/v1/chat/completions", {"messages": messages}, **{"X-Ratchet-Learn": "no"})
    assert answer.status_code == 400
    assert "X-Ratchet-Learn is true or false, not 'no'" in answer.json()["error"]["message"]


def test_an_owner_can_be_kept_out_of_learning(start: Start) -> None:
    """For all requests with this owner's keys, whatever they say."""
    gateway = start(unlearned_owners=["acme"])
    gateway.ask("my secret", store=True)
    turn = gateway.turn()
    assert not turn.learn and turn.messages == ()


def test_feedback_on_a_withheld_turn_is_kept_without_its_words(gateway: Running) -> None:
    """A comment quotes the reply: the value counts for the adapter, the words are nobody's to keep."""
    response_id = reply(gateway, store=False)
    feedback(
        gateway, response_id=response_id, kind="rating", value=0.5, text="About my secret", reasons=["x"]
    )
    (signal,) = gateway.signals()
    assert (signal.value, signal.text, signal.reasons) == (0.5, None, ())


def test_numbers_are_redacted_in_the_log_and_nowhere_else(gateway: Running) -> None:
    """By default those with check digits; the engine answers what was asked."""
    text = "Charge 4111 1111 1111 1111 and mail ann@example.org"
    response_id = reply(gateway, text=text)
    said = {"response_id": response_id, "kind": "comment", "text": text, "idempotency_key": "k1"}
    assert [feedback(gateway, **said).status_code for _ in range(2)] == [200, 200]
    kept = "Charge [card] and mail ann@example.org"
    assert gateway.engine.requests[0]["messages"][0]["content"] == text
    assert (gateway.turn().messages[0]["content"], gateway.turn().token_ids) == (kept, ())
    assert [s.text for s in gateway.signals()] == [kept]


def test_redaction_can_be_chosen(start: Start) -> None:
    gateway = start(redact=["email"])
    gateway.ask("Charge 4111 1111 1111 1111 and mail ann@example.org")
    assert gateway.turn().messages[0]["content"] == "Charge 4111 1111 1111 1111 and mail [email]"


def test_an_idempotent_signal_is_recognised_though_it_is_sealed(gateway: Running) -> None:
    """The same again is one event; another under the same key is refused."""
    response_id = reply(gateway)
    said = {"response_id": response_id, "kind": "comment", "text": "Good.", "idempotency_key": "k1"}
    assert [feedback(gateway, **said).status_code for _ in range(2)] == [200, 200]
    assert feedback(gateway, **{**said, "text": "Bad."}).status_code == 409
    assert len(gateway.signals()) == 1
