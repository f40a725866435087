"""What a worker lately read of the conversations that still go on: bounded in bytes and time, never needed.

A conversation that is not here any more is read from the state, so what comes late joins it all the same.
Only what is committed may be noted, since the state never has two contents under one id. Who uses it asks for
the keys anew each time: the words of a user who was erased may lie here for a while, and are not used.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

import msgspec

from feedback.conversations import Heard

MAX_BYTES = 32 << 20
"""What the noted events took as they lay in the log; as objects they take about as much."""
KEPT_FOR = timedelta(hours=1)


class Known(msgspec.Struct, frozen=True, gc=False):
    """A stored event as derivation reads it."""

    heard: Heard
    key_id: str | None
    """The data key that it is sealed under."""
    size: int
    """Bytes in the log."""


class Recent:
    """Known events by id. Not for several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES, kept_for: timedelta = KEPT_FOR) -> None:
        self._max_bytes = max_bytes
        self._kept_for = kept_for
        self._known: OrderedDict[str, tuple[Known, datetime]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def among(self, event_ids: Iterable[str]) -> dict[str, Known]:
        """Those of the events that are here."""
        return {i: found[0] for i in event_ids if (found := self._known.get(i)) is not None}

    def note(self, known: Collection[Known], now: datetime) -> None:
        """These were committed or read; the longest unused go."""
        for one in known:
            self._drop(one.heard.id)
            self._known[one.heard.id] = (one, now)
            self._bytes += one.size
        while self._known:
            event_id, (_, noted) = next(iter(self._known.items()))
            if self._bytes <= self._max_bytes and now - noted <= self._kept_for:
                return
            self._drop(event_id)

    def _drop(self, event_id: str) -> None:
        if (found := self._known.pop(event_id, None)) is not None:
            self._bytes -= found[0].size
