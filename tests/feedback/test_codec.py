"""Events to bytes and back: CloudEvents, old bytes, foreign bytes."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.codec import decode, encode
from feedback.errors import CodecError, UnknownEventType
from feedback.events import (
    AdapterTransitioned,
    Draw,
    Event,
    Exposure,
    IdentitySource,
    Sampling,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    TurnStatus,
    adapter_event,
    signal_event,
    turn_event,
)

NOON = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)

TURN = turn_event(
    TurnRecorded(
        response_id="chatcmpl-1",
        conversation_id="c-1",
        identity=IdentitySource.EXPLICIT,
        principal="acme",
        user="u-1",
        adapter="lora-1",
        arm="canary",
        propensity=0.1,
        messages=(
            {"role": "user", "content": [{"type": "text", "text": "naïve?"}], "x_custom": {"a": [1, None]}},
        ),
        reply={"role": "assistant", "content": "Yes — «naïve» 😀"},
        prompt_token_ids=(1, 2, 3),
        token_ids=(4, 5),
        logprobs=(-0.125, -2.5),
        sampling=Sampling(temperature=0.7, max_tokens=64, stop=("\n",)),
        finish_reason="length",
        status=TurnStatus.ABORTED,
        started_at=NOON,
        first_token_s=0.05,
        duration_s=1.5,
        learn=False,
        exposure=Exposure(
            partner="chatcmpl-2", side="right", draw=Draw.OTHER_ARM, propensity=0.02, shown_at=NOON
        ),
    )
)
SIGNAL = signal_event(
    SignalReceived(
        signal_id="s-1",
        response_id="chatcmpl-1",
        conversation_id="c-1",
        principal="acme",
        user="u-1",
        kind=SignalKind.EDIT,
        value=0.25,
        text="No.",
        reasons=("wrong",),
        other_response_id="chatcmpl-2",
        dimensions={"tone": 0.5},
        received_at=NOON,
    )
)
ADAPTER = adapter_event(
    AdapterTransitioned(
        adapter="lora-1", from_state="canary", to_state="stable", by="controller", reason="PASS", at=NOON
    )
)


@pytest.mark.parametrize("event", [TURN, SIGNAL, ADAPTER], ids=lambda e: type(e.data).__name__)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    """Every field, with all types, defaults overridden."""
    assert decode(encode(event)) == event


def test_the_bytes_are_a_cloudevent_that_others_can_read() -> None:
    """CloudEvents 1.0, structured JSON mode: context attributes beside `data`, names in lower case."""
    envelope = json.loads(encode(SIGNAL))
    data = envelope.pop("data")
    assert envelope == {
        "specversion": "1.0",
        "id": "signal-s-1",
        "source": "ratchet/gateway",
        "type": "ratchet.signal.received.v1",
        "time": "2026-03-01T12:00:00.250000Z",
        "partitionkey": "c-1",
        "datacontenttype": "application/json",
    }
    assert data["response_id"] == "chatcmpl-1"
    assert data["kind"] == "edit"


def test_the_same_fact_has_the_same_bytes() -> None:
    """A retried append must be recognisable, and a snapshot's hash repeatable."""
    assert encode(decode(encode(TURN))) == encode(TURN)


def test_bytes_written_before_a_field_existed_still_decode() -> None:
    """A new field has a default: the turn as the first release wrote it, required fields only."""
    old = json.loads(encode(TURN))
    for field in (
        "exposure",
        "learn",
        "sampling",
        "logprobs",
        "status",
        "finish_reason",
        "first_token_s",
        "duration_s",
    ):
        del old["data"][field]
    turn = decode(json.dumps(old).encode()).data
    assert isinstance(turn, TurnRecorded)
    assert turn.exposure is None
    assert (turn.learn, turn.sampling, turn.logprobs, turn.status) == (
        True,
        Sampling(),
        (),
        TurnStatus.COMPLETE,
    )


def test_fields_of_a_later_release_are_passed_over() -> None:
    """A gateway may be newer than the pipeline for a while: additions must not stop the log."""
    newer = json.loads(encode(SIGNAL)) | {"traceparent": "00-abc-def-01"}
    newer["data"]["added_later"] = {"deep": [1]}
    assert decode(json.dumps(newer).encode()) == SIGNAL


def test_times_with_an_offset_are_the_same_instant() -> None:
    """Other producers may write local times."""
    written = json.loads(encode(SIGNAL)) | {"time": "2026-03-01T17:30:00.250+05:30"}
    assert decode(json.dumps(written).encode()).time == NOON
    assert NOON.astimezone(timezone(timedelta(hours=5, minutes=30))) == NOON


@pytest.mark.parametrize("type_", ["ratchet.turn.recorded.v2", "com.example.order", ""])
def test_an_unknown_type_is_told_apart_from_garbage(type_: str) -> None:
    """It goes to the dead letters with this name, for a later release to read."""
    foreign = json.loads(encode(TURN)) | {"type": type_}
    with pytest.raises(UnknownEventType, match=r"ratchet\.signal\.received\.v1") as error:
        decode(json.dumps(foreign).encode())
    assert repr(type_) in str(error.value)


def test_an_unknown_specversion_is_refused() -> None:
    """CloudEvents 2 would be another envelope."""
    with pytest.raises(CodecError, match=r"'2\.0'"):
        decode(json.dumps(json.loads(encode(TURN)) | {"specversion": "2.0"}).encode())


@pytest.mark.parametrize("missing", ["specversion", "id", "source", "type", "time", "partitionkey", "data"])
def test_a_missing_attribute_is_named(missing: str) -> None:
    """Whoever looks at the dead letter should see the fault without a debugger."""
    envelope = json.loads(encode(TURN))
    del envelope[missing]
    with pytest.raises(CodecError, match=missing):
        decode(json.dumps(envelope).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [("propensity", "high"), ("messages", "hello"), ("token_ids", [1, "2"]), ("started_at", "yesterday")],
)
def test_data_of_the_wrong_kind_is_named_with_its_event(field: str, value: object) -> None:
    """Type, event and field are in the message."""
    broken = json.loads(encode(TURN))
    broken["data"][field] = value
    with pytest.raises(CodecError, match=rf"ratchet.turn.recorded.v1 'turn-chatcmpl-1'.*{field}"):
        decode(json.dumps(broken).encode())


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(raw: bytes) -> None:
    """The pipeline sends CodecError to the dead letters; any other exception would stop it."""
    with pytest.raises(CodecError):
        decode(raw)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_an_event_or_a_codec_error(at: int, byte: int) -> None:
    """Damage in the middle of good bytes, invalid UTF-8 included."""
    raw = bytearray(encode(TURN))
    raw[at % len(raw)] = byte
    try:
        assert isinstance(decode(bytes(raw)), Event)
    except CodecError as e:
        assert str(e)
