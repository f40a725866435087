"""Events leave the state, and their conversations are derived anew from what is left there."""

from collections.abc import Mapping

import sqlalchemy as sa

from feedback import database, keyring, store
from feedback.derivation import derive

Events = Mapping[str, tuple[str, ...]]
"""Event ids by conversation."""

_TOGETHER = 200


def forget_all(state: sa.Engine, events: Events, *, retry_window_s: float) -> None:
    """A few conversations in each transaction. Raises: StateUnavailable; what was forgotten stays so."""
    conversation_ids = list(events)
    for start in range(0, len(conversation_ids), _TOGETHER):
        some = {c: events[c] for c in conversation_ids[start : start + _TOGETHER]}
        with database.writing(state) as tx:
            store.hold(tx)
            forget(tx, some, retry_window_s=retry_window_s)


def forget(tx: sa.Connection, events: Events, *, retry_window_s: float) -> None:
    """In the caller's transaction. Erased users' events, which cannot be read, count as gone."""
    store.remove_events(tx, [event_id for ids in events.values() for event_id in ids])
    stored = store.payloads_of(tx, events)
    left = {c: keyring.opened(tx, stored.get(c, ())) for c in events}
    store.replace_derived(tx, {c: derive(said, retry_window_s=retry_window_s) for c, said in left.items()})
