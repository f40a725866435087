"""Events to bytes and back: CloudEvents 1.0 in structured JSON mode. Old versions are upcast here.

What is personal in an event is sealed under its user's data key and travels as the extension attributes
`sealkey` and `sealed`; the envelope and what routing and counting need stay readable. An event written
without a key decodes all the same.
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from feedback.errors import CodecError, KeyErased, KeyUnknown, UnknownEventType
from feedback.events import Data, Event, SignalReceived, TurnRecorded
from feedback.sealing import DataKey

SPEC_VERSION = "1.0"
PERSONAL: dict[type, tuple[str, ...]] = {
    TurnRecorded: ("messages", "reply", "prompt_token_ids", "token_ids", "logprobs"),
    SignalReceived: ("value", "text", "reasons", "dimensions", "position_gaps"),
}
"""What is sealed of each event."""

Keys = Mapping[str, DataKey | None]
"""Data keys by id; None for one that was erased."""


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    time: datetime
    partitionkey: str
    data: msgspec.Raw
    datacontenttype: str = "application/json"
    sealkey: str | UnsetType = UNSET
    sealed: bytes | UnsetType = UNSET


class Written(msgspec.Struct, frozen=True, gc=False):
    """An event as it lies in the log: read, not opened."""

    envelope: _Envelope

    @property
    def type(self) -> str:
        """The event type, one of those that this release knows."""
        return self.envelope.type

    @property
    def time(self) -> datetime:
        """When it happened, as the envelope says."""
        return self.envelope.time

    @property
    def key_id(self) -> str | None:
        """Of the data key that it is sealed under; None when it is not sealed."""
        return self.envelope.sealkey or None

    @property
    def user(self) -> str:
        """The pseudonym of whom it belongs to; empty when it belongs to nobody."""
        try:
            return _owners.decode(self.envelope.data).user
        except _NO_EVENT:
            return ""


class _Owner(msgspec.Struct, frozen=True):
    user: str = ""


_NO_EVENT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What bytes raise that are no JSON of ours; the last, when they are nested too deeply to be read."""
_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(_Envelope)
_owners = msgspec.json.Decoder(_Owner)
_data = msgspec.json.Decoder(Data)
_KNOWN_TYPES = frozenset(t.__struct_config__.tag for t in Data.__args__)
_BLANK = _encoder.encode({"messages": (), "reply": {"role": "assistant", "content": ""}})


def encode(event: Event, key: DataKey | None = None) -> bytes:
    """One event as a CloudEvents JSON object, what is personal in it sealed under `key`, if there is one."""
    tag = str(event.data.__struct_config__.tag)
    data, box = (_encoder.encode(event.data), UNSET) if key is None else _sealed(event, tag, key)
    return _encoder.encode(
        _Envelope(
            specversion=SPEC_VERSION,
            id=event.id,
            source=event.source,
            type=tag,
            time=event.time,
            partitionkey=event.key,
            data=msgspec.Raw(data),
            sealkey=UNSET if key is None else key.id,
            sealed=box,
        )
    )


def read(raw: bytes) -> Written:
    """The event in `raw`, before it is opened.

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
    return Written(envelope)


def opened(written: Written, keys: Keys) -> Event:
    """The whole event.

    Raises: KeyErased when its user was erased; KeyUnknown when its key is not among `keys`; CodecError for
    data or a box that is not what it should be.
    """
    envelope, key_id = written.envelope, written.key_id
    if key_id is None:
        return _event(envelope, envelope.data)
    if key_id not in keys:
        raise KeyUnknown(f"{envelope.id!r} is sealed under the key {key_id!r}, which is not at hand")
    key = keys[key_id]
    if key is None:
        raise KeyErased(f"{envelope.id!r} belongs to a user who was erased")
    return _event(envelope, _joined(envelope.data, key.open(envelope.sealed or b"", envelope.id.encode())))


def decode(raw: bytes, keys: Keys | None = None) -> Event:
    """`read` and `opened` in one. Raises as they do."""
    return opened(read(raw), keys or {})


def outline(raw: bytes) -> Event:
    """The event without what is sealed in it: whose, when, by which adapter, how it ended. Needs no key.

    Raises: CodecError.
    """
    written = read(raw)
    data = written.envelope.data
    return _event(written.envelope, _joined(data, _BLANK) if written.key_id else data)


def _sealed(event: Event, tag: str, key: DataKey) -> tuple[bytes, bytes]:
    """What stays readable of the event's data, and the box with the rest."""
    fields = msgspec.structs.asdict(event.data)
    personal = {name: fields.pop(name) for name in PERSONAL[type(event.data)]}
    readable = _encoder.encode({"type": tag, **fields})
    return readable, key.seal(_encoder.encode(personal), event.id.encode())


def _joined(readable: bytes | msgspec.Raw, personal: bytes) -> bytes:
    """Two JSON objects as one; neither is empty."""
    return bytes(readable).rstrip()[:-1] + b"," + personal[1:]


def _event(envelope: _Envelope, data: bytes | msgspec.Raw) -> Event:
    try:
        found = _data.decode(data)
    except _NO_EVENT as e:
        raise CodecError(f"{envelope.type} {envelope.id!r}: {e}") from e
    return Event(
        id=envelope.id, source=envelope.source, time=envelope.time, key=envelope.partitionkey, data=found
    )
