"""Erasing a user from the log, the state and the snapshots: each step may be repeated, none undone.

The order matters: first the erasure is written down and the keys are destroyed, in one transaction, so that
from then on nobody derives anything from the user's events; then everything goes that was derived before.
`ops.erasure` puts the steps together. What a killed erasure left is done by the next one of the same user.
"""

from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

import msgspec
import sqlalchemy as sa

from feedback import codec, database, embedded, forgetting, keyring, store
from feedback.embedded import EmbeddedLog
from feedback.errors import CodecError, LogUnavailable, UnknownUser
from feedback.eventlog import Topic, topic_of
from feedback.events import UserErased, erased_event
from feedback.keyring import Erasure
from feedback.sealing import DataKey
from feedback.snapshots import Traces

_APPEND_TIMEOUT_S = 30.0


class Belongings(msgspec.Struct, frozen=True, kw_only=True):
    """What the state holds of a user that nobody may read any more."""

    events: forgetting.Events
    prompt_digests: frozenset[str]
    """Prompt states that the user asked there."""
    dead_letters: tuple[store.DeadLetter, ...]

    def traces(self, user: str, at: datetime) -> Traces:
        event_ids = frozenset(event_id for ids in self.events.values() for event_id in ids)
        return Traces(user=user, at=at, event_ids=event_ids, prompt_digests=self.prompt_digests)


def shred(state: sa.Engine, user: str, by: str, now: datetime) -> Erasure:
    """Write the erasure down and destroy the user's keys. Raises: UnknownUser; StateUnavailable."""
    with database.reading(state) as tx:
        known = keyring.is_known(tx, user) or bool(belongings(tx, user).events)
    if not known:
        raise UnknownUser(f"nothing is stored of {user}: check --user and --principal, the owner of the key")
    with database.writing(state) as tx:
        erasure = keyring.note_erasure(tx, user, by, now)
        keyring.destroy(tx, user, now)
    return erasure


def belongings(tx: sa.Connection, user: str) -> Belongings:
    """Reads every stored event once; memory holds the user's ids alone."""
    erased = frozenset(keyring.erased_keys(tx, user))
    marks = [mark.encode() for mark in (user, *erased)]
    events: dict[str, tuple[str, ...]] = {}
    for event_id, conversation_id, raw in store.stored_events(tx):
        if any(mark in raw for mark in marks) and _is_of(raw, user, erased):
            events[conversation_id] = (*events.get(conversation_id, ()), event_id)
    letters = store.load_dead_letters(tx)
    return Belongings(
        events=events,
        prompt_digests=frozenset(a.prompt_digest for a in store.asked_in(tx, events) if a.user == user),
        dead_letters=tuple(d for d in letters if _is_of(d.value, user, erased)),
    )


def forget(state: sa.Engine, found: Belongings, *, retry_window_s: float) -> None:
    """Remove them from the state, and derive their conversations anew from what others said there.

    Raises: StateUnavailable.
    """
    forgetting.forget_all(state, found.events, retry_window_s=retry_window_s)
    with database.writing(state) as tx:
        store.remove_dead_letters(tx, [letter.place for letter in found.dead_letters])


def follow(tx: sa.Connection, told: UserErased, *, retry_window_s: float) -> bool:
    """Destroy keys that the log says were destroyed, and forget what they opened; False if they are gone.

    The erasure stays unfinished: files that this state does not know of may hold more.
    """
    if not keyring.destroy(tx, told.user, told.at, told.keys):
        return False
    keyring.note_erasure(tx, told.user, told.by, told.at)
    forgetting.forget(tx, belongings(tx, told.user).events, retry_window_s=retry_window_s)
    return True


def seal_old_entries(state: sa.Engine, log_path: Path, user: str, now: datetime) -> int:
    """Seal what an older release wrote unsealed into the embedded log, under a key that nobody has.

    Returns: how many. Raises: LogUnavailable, StateUnavailable.
    """
    if not log_path.exists():
        return 0

    @cache
    def key() -> DataKey:
        with database.writing(state) as tx:
            return keyring.bury(tx, user, now)

    def change(raw: bytes) -> bytes | None:
        return _resealed(raw, user, key)

    return sum(embedded.rewrite(log_path, t, user.encode(), change) for t in (Topic.TURNS, Topic.SIGNALS))


def announce(state: sa.Engine, log: EmbeddedLog, erasure: Erasure) -> None:
    """Put the erasure into the log, for states that are restored from a backup. Raises: LogError."""
    with database.reading(state) as tx:
        keys = keyring.erased_keys(tx, erasure.user)
    event = erased_event(UserErased(user=erasure.user, keys=keys, by=erasure.by, at=erasure.requested_at))
    try:
        durable = log.append(topic_of(event), event.key, event.id, codec.encode(event))
        durable.result(_APPEND_TIMEOUT_S)
    except TimeoutError as e:
        raise LogUnavailable(f"the log did not take the erasure within {_APPEND_TIMEOUT_S:g} s") from e


def finish(state: sa.Engine, erasure: Erasure, now: datetime) -> Erasure:
    """Wipe the state's files, then note that nothing is left. Raises: StateUnavailable."""
    database.scrub(state, store.metadata, keyring.metadata)
    with database.writing(state) as tx:
        return keyring.finish(tx, erasure, now)


def _is_of(raw: bytes, user: str, erased: frozenset[str]) -> bool:
    """Whether this is an event of the user, from before the erasure: theirs, or sealed under their key."""
    try:
        written = codec.read(raw)
    except CodecError:
        return False
    return written.user == user if written.key_id is None else written.key_id in erased


def _resealed(raw: bytes, user: str, key: Callable[[], DataKey]) -> bytes | None:
    try:
        written = codec.read(raw)
        if written.key_id is not None or written.user != user:
            return None
        return codec.encode(codec.opened(written, {}), key())
    except CodecError:
        return None
