"""Events to bytes and back: CloudEvents 1.0 in structured JSON mode. Old versions are upcast here."""

from datetime import datetime

import msgspec

from feedback.errors import CodecError, UnknownEventType
from feedback.events import Data, Event

SPEC_VERSION = "1.0"


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    specversion: str
    id: str
    source: str
    type: str
    time: datetime
    partitionkey: str
    data: msgspec.Raw
    datacontenttype: str = "application/json"


_NO_EVENT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What bytes raise that are no JSON of ours; the last, when they are nested too deeply to be read."""
_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(_Envelope)
_data = msgspec.json.Decoder(Data)
_KNOWN_TYPES = frozenset(t.__struct_config__.tag for t in Data.__args__)


def encode(event: Event) -> bytes:
    """One event as a CloudEvents JSON object."""
    return _encoder.encode(
        _Envelope(
            specversion=SPEC_VERSION,
            id=event.id,
            source=event.source,
            type=str(event.data.__struct_config__.tag),
            time=event.time,
            partitionkey=event.key,
            data=msgspec.Raw(_encoder.encode(event.data)),
        )
    )


def decode(raw: bytes) -> Event:
    """The event in `raw`.

    Raises: UnknownEventType for a type or major version this release does not know; CodecError for bytes
    that are no event at all. Both say what was found.
    """
    try:
        envelope = _envelopes.decode(raw)
    except _NO_EVENT as e:
        raise CodecError(f"not a CloudEvents {SPEC_VERSION} JSON object ({e}): {raw[:80]!r}") from e
    if envelope.specversion != SPEC_VERSION:
        raise CodecError(f"specversion {envelope.specversion!r}, expected {SPEC_VERSION!r}")
    if envelope.type not in _KNOWN_TYPES:
        raise UnknownEventType(f"event type {envelope.type!r} is not one of {sorted(map(str, _KNOWN_TYPES))}")
    try:
        data = _data.decode(envelope.data)
    except _NO_EVENT as e:
        raise CodecError(f"{envelope.type} {envelope.id!r}: {e}") from e
    return Event(
        id=envelope.id, source=envelope.source, time=envelope.time, key=envelope.partitionkey, data=data
    )
