"""What a worker remembers of conversations: bounded in bytes and time, and not believed too long."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import database, keyring, pipeline, store
from feedback.config import Pipeline
from feedback.conversations import hear
from feedback.embedded import EmbeddedLog
from feedback.keyring import KeyRing
from feedback.recent import Known, Recent
from tests.feedback.builders import NOON, append, append_sealed, thumb, turn

CONFIG = Pipeline(metrics_port=0)
ASKED = turn("r1", "How?", "So.")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "log.db")) as log:
        yield log


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url: str) -> Iterator[sa.Engine]:
    with store.opened(url) as engine:
        yield engine


def known(name: str, size: int) -> Known:
    return Known(hear(turn(name, "How?", "So.")), None, size)


def grades(state: sa.Engine) -> list[str]:
    with database.reading(state) as tx:
        return [f"{g.response_id} {g.user}" for g in store.derived_rows(tx, "grade")]


def test_the_longest_unused_goes_when_there_are_too_many_bytes():
    """60 of 100 bytes are noted, then used again, then 60 more: the one that was not used goes."""
    recent = Recent(max_bytes=100)
    first, second, third = known("a", 30), known("b", 30), known("c", 60)
    recent.note([first, second], NOON)
    recent.note([first], NOON)
    recent.note([third], NOON)
    assert recent.among(["turn-a", "turn-b", "turn-c"]) == {"turn-a": first, "turn-c": third}


def test_what_is_noted_twice_counts_once():
    recent = Recent(max_bytes=100)
    for _ in range(5):
        recent.note([known("a", 60)], NOON)
    assert len(recent) == 1


def test_a_conversation_expires_with_time():
    """Memory follows the conversations that go on, not all there ever were."""
    recent = Recent(kept_for=timedelta(minutes=10))
    recent.note([known("a", 1)], NOON)
    recent.note([known("b", 1)], NOON + timedelta(minutes=9))
    recent.note([], NOON + timedelta(minutes=11))
    assert list(recent.among(["turn-a", "turn-b"])) == ["turn-b"]


def test_a_late_word_joins_a_conversation_that_expired(log, state):
    """From the state: forgetting costs time, never a grade."""
    recent = Recent(kept_for=timedelta(minutes=10))
    append(log, ASKED)
    pipeline.step(log, state, CONFIG, now=NOON, recent=recent)
    append(log, turn("r2", "Else?", "No.", conversation="c2"))
    pipeline.step(log, state, CONFIG, now=NOON + timedelta(hours=5), recent=recent)
    assert recent.among(["turn-r1"]) == {}
    append(log, thumb(ASKED, True, at=18_000))
    pipeline.step(log, state, CONFIG, now=NOON + timedelta(hours=6), recent=recent)
    assert grades(state) == ["r1 ann"]


def test_a_conversation_that_goes_on_is_not_read_again(log, state):
    """Its events were opened, decoded and read once."""
    recent = Recent()
    append(log, ASKED)
    pipeline.step(log, state, CONFIG, now=NOON, recent=recent)
    append(log, thumb(ASKED, True))
    statements = []
    sa.event.listen(state, "before_cursor_execute", lambda *a: statements.append(a[2]))
    pipeline.step(log, state, CONFIG, now=NOON, recent=recent)
    assert grades(state) == ["r1 ann"]
    assert not any("payload" in s and "feedback_events" in s and s.startswith("SELECT") for s in statements)


def test_the_words_of_an_erased_user_are_not_used_although_remembered(log, state, url):
    """The keys are asked for anew with every batch."""
    recent = Recent()
    with closing(KeyRing(url)) as ring:
        append_sealed(log, ring, ASKED, thumb(ASKED, False, who="bob"))
        pipeline.step(log, state, CONFIG, now=NOON, recent=recent)
        assert grades(state) == ["r1 bob"]
        with database.writing(state) as tx:
            keyring.destroy(tx, "bob", NOON)
        append_sealed(log, ring, thumb(ASKED, True, who="cid"))
        pipeline.step(log, state, CONFIG, now=NOON, recent=recent)
    assert grades(state) == ["r1 cid"]


def test_what_was_not_committed_is_not_noted(log, state):
    """Another worker may have stored other bytes under the id."""
    recent = Recent()
    append(log, ASKED)
    batch = pipeline.gather(log, state, CONFIG)
    pipeline.step(log, state, CONFIG, now=NOON)
    pipeline.fold(batch, state, CONFIG, now=NOON, recent=recent)
    assert len(recent) == 0
