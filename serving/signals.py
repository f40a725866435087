"""POST /v1/feedback: what somebody did about a reply, checked against its turn, durable before the 200."""

import secrets
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec
from prometheus_client import Counter

from feedback.eventlog import Topic
from feedback.events import VALUED, SignalKind, SignalReceived, TurnRecorded
from feedback.privacy import pseudonym
from serving.asked import decode_object
from serving.auth import Principal, Role
from serving.errors import BadRequest, Conflict, Forbidden, UnknownReply
from serving.recording import Recorder

SIGNALS = Counter("ratchet_serving_signals_total", "Signals accepted, by kind", ["kind"])

READ_FROM_TRAFFIC = frozenset({SignalKind.BRANCH})
"""Only histories show these: a client that says so tells nothing that could be counted."""
MAX_REASONS = 16
MAX_REASON_CHARS = 200


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/feedback."""

    response_id: str
    """Id of the reply, from its `id` or `ratchet.response_id`."""
    kind: SignalKind
    value: float | None = None
    """thumb: 1 up, 0 down. rating and label: 0 to 1. comparison: probability that `response_id` is the better
    reply. These kinds need one; null takes the earlier signal back."""
    text: str | None = None
    """comment: its text. edit: the reply as the user would have it."""
    reasons: list[str] = []
    """Short labels, such as `wrong` or `too long`."""
    other_response_id: str | None = None
    """comparison: the other reply. regeneration: the one that came instead of `response_id`'s."""
    idempotency_key: str | None = None
    """The same key again records nothing new."""
    user: str | None = None
    """The end user who says so; without it, the one whose reply it was."""


class Accepted(msgspec.Struct, frozen=True):
    """The answer: the signal is in the log."""

    signal_id: str
    response_id: str
    kind: SignalKind


EXAMPLES: dict[str, dict[str, Any]] = {
    "thumb up": {"response_id": "chatcmpl-3f0c…", "kind": "thumb", "value": 1},
    "thumb down with reasons": {
        "response_id": "chatcmpl-3f0c…",
        "kind": "thumb",
        "value": 0,
        "reasons": ["wrong", "too long"],
    },
    "thumb taken back": {"response_id": "chatcmpl-3f0c…", "kind": "thumb", "value": None},
    "edit": {"response_id": "chatcmpl-3f0c…", "kind": "edit", "text": "The reply as it should have been."},
    "comparison": {
        "response_id": "chatcmpl-3f0c…",
        "kind": "comparison",
        "other_response_id": "chatcmpl-91ab…",
        "value": 0.9,
    },
}


def parse(body: bytes, max_text_chars: int) -> Feedback:
    """Raises: BadRequest naming the field in `param`."""
    raw = decode_object(body, nulls=frozenset({"value"}))
    for name in ("response_id", "kind"):
        if name not in raw:
            raise BadRequest(f"{name}: required", param=name, code="missing_required_parameter")
    if isinstance(raw.get("value"), bool):
        raw["value"] = float(raw["value"])
    unknown = sorted(raw.keys() - set(Feedback.__struct_fields__))
    if unknown:
        raise BadRequest(f"{unknown[0]}: not a field of feedback", param=unknown[0], code="unknown_parameter")
    try:
        feedback = msgspec.convert(raw, Feedback)
    except msgspec.ValidationError as e:
        name = str(e).rpartition("`$.")[2].partition("`")[0].partition("[")[0]
        raise BadRequest(str(e), param=name or None) from e
    if feedback.kind in VALUED and "value" not in raw:
        raise BadRequest(
            f"value: a {feedback.kind} needs one; null takes the earlier {feedback.kind} back",
            param="value",
            code="missing_required_parameter",
        )
    _check(feedback, max_text_chars)
    return feedback


def _check(feedback: Feedback, max_text_chars: int) -> None:
    value, kind = feedback.value, feedback.kind
    if kind in READ_FROM_TRAFFIC:
        raise BadRequest(
            f"kind: a {kind} is read from the history alone", param="kind", code="unsupported_value"
        )
    if kind is SignalKind.THUMB and value not in (0.0, 1.0, None):
        raise BadRequest("value: a thumb is 1 (up), 0 (down) or null (taken back)", param="value")
    if value is not None and not 0.0 <= value <= 1.0:
        raise BadRequest(f"value: {value} is not between 0 and 1", param="value")
    if kind in (SignalKind.COMMENT, SignalKind.EDIT) and not (feedback.text or "").strip():
        raise BadRequest(f"text: {'an' if kind is SignalKind.EDIT else 'a'} {kind} needs one", param="text")
    if kind is SignalKind.COMPARISON and not feedback.other_response_id:
        raise BadRequest("other_response_id: a comparison needs the other reply", param="other_response_id")
    if feedback.text is not None and len(feedback.text) > max_text_chars:
        raise BadRequest(f"text: at most {max_text_chars} characters", param="text", code="string_too_long")
    if len(feedback.reasons) > MAX_REASONS or any(len(r) > MAX_REASON_CHARS for r in feedback.reasons):
        raise BadRequest(
            f"reasons: at most {MAX_REASONS} of {MAX_REASON_CHARS} characters each",
            param="reasons",
            code="string_too_long",
        )


class Signals:
    """Takes feedback in."""

    def __init__(self, recorder: Recorder, secret: bytes) -> None:
        self._recorder = recorder
        self._secret = secret

    async def accept(self, feedback: Feedback, principal: Principal, now: datetime) -> Accepted:
        """The signal is durable when this returns.

        Raises: Forbidden; UnknownReply; Conflict when its idempotency key stands for another signal;
        NotRecorded.
        """
        if feedback.kind is SignalKind.LABEL and principal.role < Role.OPERATOR:
            raise Forbidden("labels need a key with the role operator")
        turn = await self._turn(feedback.response_id, "response_id", principal, feedback.kind)
        if feedback.other_response_id:
            await self._turn(feedback.other_response_id, "other_response_id", principal, feedback.kind)
        signal = self._signal(feedback, turn, principal, now)
        if feedback.idempotency_key is None or not await self._known(signal):
            await self._recorder.signal(signal)
            SIGNALS.labels(feedback.kind.value).inc()
        return Accepted(signal.signal_id, signal.response_id, signal.kind)

    async def _turn(
        self, response_id: str, param: str, principal: Principal, kind: SignalKind
    ) -> TurnRecorded:
        event = await self._recorder.find(Topic.TURNS, f"turn-{response_id}")
        labels = kind is SignalKind.LABEL  # operators label anybody's replies
        if event is None or not isinstance(event.data, TurnRecorded):
            raise UnknownReply(f"{param}: no such reply", param=param)
        if event.data.principal != principal.owner and not labels:
            raise UnknownReply(f"{param}: no such reply", param=param)
        return event.data

    def _signal(
        self, feedback: Feedback, turn: TurnRecorded, principal: Principal, now: datetime
    ) -> SignalReceived:
        rater = pseudonym(self._secret, principal.owner, feedback.user) if feedback.user else turn.user
        if feedback.kind is SignalKind.LABEL and not feedback.user:
            rater = pseudonym(self._secret, principal.owner)
        return SignalReceived(
            signal_id=_signal_id(feedback, principal),
            response_id=turn.response_id,
            conversation_id=turn.conversation_id,
            principal=principal.owner,
            user=rater,
            kind=feedback.kind,
            value=feedback.value,
            text=feedback.text,
            reasons=tuple(feedback.reasons),
            other_response_id=feedback.other_response_id,
            received_at=now,
        )

    async def _known(self, signal: SignalReceived) -> bool:
        """This very signal was received before. Raises: Conflict when another one was, under its key."""
        event = await self._recorder.find(Topic.SIGNALS, f"signal-{signal.signal_id}")
        if event is None or not isinstance(event.data, SignalReceived):
            return False
        if msgspec.structs.replace(event.data, received_at=signal.received_at) != signal:
            raise Conflict("idempotency_key: used before for other feedback", param="idempotency_key")
        return True


def _signal_id(feedback: Feedback, principal: Principal) -> str:
    if feedback.idempotency_key is None:
        return secrets.token_hex(16)
    named = f"{principal.owner}\x1f{feedback.response_id}\x1f{feedback.idempotency_key}"
    return blake2b(named.encode("utf-8", "surrogatepass"), digest_size=16, person=b"signal").hexdigest()
