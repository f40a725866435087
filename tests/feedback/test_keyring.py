"""The data keys of end users: one live key each, whoever asks, and nothing of it once it is destroyed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import codec, database, keyring
from feedback.errors import KeyErased, KeyUnknown, StateUnavailable
from feedback.keyring import KeyRing
from tests.feedback.builders import NOON, turn

ANN, BOB = "u-ann", "u-bob"
TURN = turn("r1", "How?", "So.", who=ANN)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("postgres_url"))


def test_processes_that_ask_at_once_get_one_key(url: str) -> None:
    """Two live keys would split a user: the second asks while the first has not committed yet."""
    engine = database.connect(url, keyring.metadata)
    with closing(KeyRing(url)) as other, ThreadPoolExecutor(1) as pool:
        with database.writing(engine) as tx:
            first = keyring.obtain(tx, ANN, NOON)
            second = pool.submit(other.obtain, ANN)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
        assert second.result(timeout=10) == first
    engine.dispose()


def test_a_destroyed_key_opens_nothing_and_the_next_is_another(url: str) -> None:
    """By any ring that has noticed, and at once by one that never had it in memory."""
    with closing(KeyRing(url)) as ring, closing(KeyRing(url)) as other:
        raw = codec.encode(TURN, ring.obtain(ANN))
        assert ring.decode(raw) == other.decode(raw) == TURN
        erase(url, ANN)
        with pytest.raises(KeyErased):
            other.decode(raw)
        assert ring.decode(raw) == TURN, "it still has the key in memory"
        ring.refresh()
        assert ring.of(ANN) is None and ring.find(raw) is None
        assert ring.obtain(ANN).id != codec.read(raw).key_id


def test_erasing_one_leaves_the_others(url: str) -> None:
    with closing(KeyRing(url)) as ring:
        kept = ring.obtain(BOB)
        ring.obtain(ANN)
        erase(url, ANN)
        ring.refresh()
        assert ring.of(BOB) is kept and ring.of(ANN) is None


def test_a_ring_notices_every_erasure_once(url: str) -> None:
    """An erasure of long ago must not take the key that the user got since."""
    with closing(KeyRing(url)) as ring:
        ring.obtain(ANN)
        erase(url, ANN)
        ring.refresh()
        fresh = ring.obtain(ANN)
        ring.refresh()
        assert ring.of(ANN) is fresh


def test_a_key_that_never_was_here_is_no_erased_one(url: str) -> None:
    with closing(KeyRing(url)) as ring, pytest.raises(KeyUnknown):
        ring.find(codec.encode(TURN, keyring.fresh_key()))


def test_nothing_of_a_destroyed_key_stays_in_the_table(url: str) -> None:
    """The row stays, so that what it sealed is known as erased."""
    with closing(KeyRing(url)) as ring:
        ring.obtain(ANN)
    erase(url, ANN)
    engine = database.connect(url)
    with database.reading(engine) as tx:
        rows = tx.execute(sa.select(keyring.metadata.tables["user_keys"])).all()
    engine.dispose()
    assert [(row.user, row.secret, row.erased_at) for row in rows] == [(ANN, None, NOON.isoformat())]


def test_a_key_is_there_again_after_a_restart(url: str) -> None:
    """It is committed before anything is sealed under it: else a crash would lose the turn for ever."""
    with closing(KeyRing(url)) as ring:
        raw = codec.encode(TURN, ring.obtain(ANN))
    with closing(KeyRing(url)) as ring:
        assert ring.decode(raw) == TURN


def test_a_database_out_of_reach_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable):
        KeyRing("sqlite:////proc/none/state.db")


def erase(url: str, user: str) -> None:
    engine = database.connect(url, keyring.metadata)
    with database.writing(engine) as tx:
        keyring.note_erasure(tx, user, "operator:eve", NOON)
        keyring.destroy(tx, user, NOON)
    engine.dispose()
