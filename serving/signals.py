"""POST /v1/feedback: what somebody did about a reply or a conversation, checked, durable before the 200."""

import asyncio
import secrets
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from statistics import fmean
from typing import Annotated, Any, TypeVar

import msgspec
from prometheus_client import Counter

from feedback.eventlog import Topic
from feedback.events import (
    OF_CONVERSATIONS,
    VALUED,
    IdentitySource,
    SignalKind,
    SignalReceived,
    TurnRecorded,
)
from feedback.privacy import pseudonym
from serving.asked import conversation_key, decode_object, without_nulls
from serving.auth import Principal, Role
from serving.errors import (
    BadRequest,
    Conflict,
    ErrorDetail,
    Forbidden,
    NotRecorded,
    ServingError,
    UnknownConversation,
    UnknownReply,
    detail_of,
)
from serving.recording import Recorder

SIGNALS = Counter("ratchet_serving_signals_total", "Signals accepted, by kind", ["kind"])

READ_FROM_TRAFFIC = frozenset({SignalKind.BRANCH})
"""Only histories show these: a client that says so tells nothing that could be counted."""
WORDED = frozenset({SignalKind.COMMENT, SignalKind.EDIT})
"""Kinds that say something by their text; null takes the earlier one back."""
MAX_REASONS = 16
MAX_REASON_CHARS = 200
MAX_BATCH = 100

_RETRACTING = frozenset({"value", "text"})
"""Fields in which null means something."""
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
T = TypeVar("T")


class Dimensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a rating tells apart, each from 0 to 1. Whatever was not judged is left out."""

    helpful: _Share | None = None
    honest: _Share | None = None
    harmless: _Share | None = None


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/feedback: about a reply, or about a conversation."""

    response_id: str | None = None
    """Id of the reply, from its `id` or `ratchet.response_id`. Either this or `conversation_id`."""
    conversation_id: str | None = None
    """The conversation, as `ratchet.conversation_id` names it; for thumb, rating, comment and outcome."""
    kind: SignalKind
    value: float | None = None
    """thumb: 1 up, 0 down. rating and label: 0 to 1. outcome: 0 to 1, 1 when the user's task was done.
    comparison: probability that `response_id` is the better reply. These kinds need one; null takes the
    earlier signal back."""
    dimensions: Dimensions | None = None
    """rating: what it tells apart. `value` may then be left out: it is their mean."""
    text: str | None = None
    """comment: its text. edit: the reply as the user would have it. Null takes the earlier one back."""
    reasons: list[str] = []
    """Short labels, such as `wrong` or `too long`."""
    other_response_id: str | None = None
    """comparison and regeneration: the other reply."""
    idempotency_key: str | None = None
    """The same key again records nothing new."""
    user: str | None = None
    """The end user who says so; without it, the one whose reply it was, or who began the conversation."""


class Batch(msgspec.Struct, frozen=True):
    """The body of POST /v1/feedback/batch: taken in order, each answered on its own."""

    feedback: Annotated[list[Feedback], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer: the signal is in the log."""

    signal_id: str
    kind: SignalKind
    response_id: str | None = None
    conversation_id: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item of a batch: it is in the log, or why not."""

    index: int
    """Its place in the batch, from 0."""
    accepted: Accepted | None = None
    error: ErrorDetail | None = None


class Results(msgspec.Struct, frozen=True):
    """The answer to a batch: a result for each item, in its order."""

    results: list[Result]


EXAMPLES: dict[str, dict[str, Any]] = {
    "thumb up": {"response_id": "chatcmpl-3f0c…", "kind": "thumb", "value": 1},
    "thumb down with reasons": {
        "response_id": "chatcmpl-3f0c…",
        "kind": "thumb",
        "value": 0,
        "reasons": ["wrong", "too long"],
    },
    "thumb taken back": {"response_id": "chatcmpl-3f0c…", "kind": "thumb", "value": None},
    "rating in several dimensions": {
        "response_id": "chatcmpl-3f0c…",
        "kind": "rating",
        "dimensions": {"helpful": 0.9, "honest": 1, "harmless": 1},
    },
    "task done": {"response_id": "chatcmpl-3f0c…", "kind": "outcome", "value": 1},
    "task of a conversation failed": {"conversation_id": "page-19af", "kind": "outcome", "value": 0},
    "edit": {"response_id": "chatcmpl-3f0c…", "kind": "edit", "text": "The reply as it should have been."},
    "edit taken back": {"response_id": "chatcmpl-3f0c…", "kind": "edit", "text": None},
    "comparison": {
        "response_id": "chatcmpl-3f0c…",
        "kind": "comparison",
        "other_response_id": "chatcmpl-91ab…",
        "value": 0.9,
    },
}
BATCH_EXAMPLES: dict[str, dict[str, Any]] = {
    "a day's feedback": {
        "feedback": [
            {"response_id": "chatcmpl-3f0c…", "kind": "copy", "idempotency_key": "day-7-1"},
            {"conversation_id": "page-19af", "kind": "outcome", "value": 1, "idempotency_key": "day-7-2"},
        ]
    }
}


def parse(body: bytes, max_text_chars: int) -> Feedback:
    """Raises: BadRequest naming the field in `param`."""
    return _understood(decode_object(body), max_text_chars)


def parse_batch(body: bytes, max_text_chars: int) -> list[Feedback | ServingError]:
    """Each item, or what is wrong with it. Raises: BadRequest when the batch as a whole cannot be used."""
    raw = decode_object(body)
    _refuse_unknown(raw, Batch, "a batch")
    items = raw.get("feedback")
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH:
        raise BadRequest(f"feedback: a list of 1 to {MAX_BATCH} items is needed", param="feedback")
    return [_item(item, max_text_chars) for item in items]


def _item(raw: Any, max_text_chars: int) -> Feedback | ServingError:
    if not isinstance(raw, dict):
        return BadRequest("an item must be a JSON object", code="invalid_type")
    try:
        return _understood(raw, max_text_chars)
    except BadRequest as e:
        return e


def _understood(said: dict[str, Any], max_text_chars: int) -> Feedback:
    raw = without_nulls(said, keep=_RETRACTING)
    _refuse_unknown(raw, Feedback, "feedback")
    for name in ("response_id", "kind"):
        if name not in raw and not (name == "response_id" and "conversation_id" in raw):
            raise BadRequest(f"{name}: required", param=name, code="missing_required_parameter")
    if isinstance(raw.get("value"), bool):
        raw["value"] = float(raw["value"])
    try:
        feedback = msgspec.convert(raw, Feedback)
    except msgspec.ValidationError as e:
        name = str(e).rpartition("`$.")[2].partition("`")[0].partition("[")[0]
        raise BadRequest(str(e), param=name or None) from e
    feedback = _with_mean(feedback, raw)
    _check_meaning(feedback, raw)
    _check_target(feedback)
    _check_value(feedback)
    _check_length(feedback, max_text_chars)
    return feedback


def _refuse_unknown(raw: dict[str, Any], body: type[msgspec.Struct], what: str) -> None:
    unknown = sorted(raw.keys() - set(body.__struct_fields__))
    if unknown:
        raise BadRequest(f"{unknown[0]}: not a field of {what}", param=unknown[0], code="unknown_parameter")


def _with_mean(feedback: Feedback, raw: dict[str, Any]) -> Feedback:
    """A rating by dimensions alone is worth their mean."""
    told_apart = _dimensions(feedback)
    if feedback.kind is not SignalKind.RATING or "value" in raw or not told_apart:
        return feedback
    return msgspec.structs.replace(feedback, value=fmean(told_apart.values()))


def _check_meaning(feedback: Feedback, raw: dict[str, Any]) -> None:
    """That it says something, or takes something back and says nothing else."""
    kind = feedback.kind
    if kind in READ_FROM_TRAFFIC:
        raise BadRequest(
            f"kind: a {kind} is read from the history alone", param="kind", code="unsupported_value"
        )
    if feedback.dimensions is not None and kind is not SignalKind.RATING:
        raise BadRequest("dimensions: only a rating has them", param="dimensions")
    if kind in VALUED and feedback.value is None:
        if "value" not in raw:
            raise _missing("value", kind)
        if _dimensions(feedback):
            raise BadRequest("dimensions: null takes the rating back; leave them out", param="dimensions")
    if kind in WORDED and not (feedback.text or "").strip():
        if "text" not in raw or feedback.text is not None:
            raise _missing("text", kind)
        if kind is SignalKind.COMMENT and (feedback.value is not None or feedback.reasons):
            raise BadRequest("text: null takes the comment back; leave value and reasons out", param="text")
    if kind is SignalKind.COMPARISON and not feedback.other_response_id:
        raise BadRequest("other_response_id: a comparison needs the other reply", param="other_response_id")


def _missing(param: str, kind: SignalKind) -> BadRequest:
    article = "an" if kind.value[0] in "aeiou" else "a"
    return BadRequest(
        f"{param}: {article} {kind} needs one; null takes the earlier {kind} back",
        param=param,
        code="missing_required_parameter",
    )


def _check_target(feedback: Feedback) -> None:
    if feedback.conversation_id is None:
        return
    if feedback.response_id is not None:
        raise BadRequest(
            "conversation_id: feedback is about a reply or about a conversation; send one of the two ids",
            param="conversation_id",
        )
    if feedback.kind not in OF_CONVERSATIONS:
        raise BadRequest(
            f"conversation_id: a {feedback.kind} is about a reply; send its response_id",
            param="conversation_id",
        )


def _check_value(feedback: Feedback) -> None:
    value = feedback.value
    if feedback.kind is SignalKind.THUMB and value not in (0.0, 1.0, None):
        raise BadRequest("value: a thumb is 1 (up), 0 (down) or null (taken back)", param="value")
    if value is not None and not 0.0 <= value <= 1.0:
        raise BadRequest(f"value: {value} is not between 0 and 1", param="value")


def _check_length(feedback: Feedback, max_text_chars: int) -> None:
    if feedback.text is not None and len(feedback.text) > max_text_chars:
        raise BadRequest(f"text: at most {max_text_chars} characters", param="text", code="string_too_long")
    if len(feedback.reasons) > MAX_REASONS or any(len(r) > MAX_REASON_CHARS for r in feedback.reasons):
        raise BadRequest(
            f"reasons: at most {MAX_REASONS} of {MAX_REASON_CHARS} characters each",
            param="reasons",
            code="string_too_long",
        )


def _dimensions(feedback: Feedback) -> dict[str, float]:
    return {} if feedback.dimensions is None else msgspec.to_builtins(feedback.dimensions)


class Signals:
    """Takes feedback in."""

    def __init__(self, recorder: Recorder, secret: bytes) -> None:
        self._recorder = recorder
        self._secret = secret

    async def accept(self, feedback: Feedback, principal: Principal, now: datetime) -> Accepted:
        """The signal is durable when this returns.

        Raises: Forbidden; UnknownReply; UnknownConversation; BadRequest for a conversation that several
        people may share; Conflict when its idempotency key stands for another signal; NotRecorded.
        """
        (answer,) = await self.accept_all([feedback], principal, now)
        if isinstance(answer, ServingError):
            raise answer
        return answer

    async def accept_all(
        self, given: Sequence[Feedback | ServingError], principal: Principal, now: datetime
    ) -> list[Accepted | ServingError]:
        """An answer to each; everything accepted is durable when this returns.

        Each counts as said a microsecond after the one before it, so that the last word is the last.
        """
        signals = [
            await _caught(self._signal(said, principal, now + timedelta(microseconds=n)))
            for n, said in enumerate(given)
        ]
        return await asyncio.gather(*(_caught(self._record(signal)) for signal in signals))

    async def _signal(
        self, said: Feedback | ServingError, principal: Principal, now: datetime
    ) -> SignalReceived:
        if isinstance(said, ServingError):
            raise said
        if said.kind is SignalKind.LABEL and principal.role < Role.OPERATOR:
            raise Forbidden("labels need a key with the role operator")
        turn = await self._target(said, principal)
        if said.other_response_id:
            await self._turn(said.other_response_id, "other_response_id", principal, said.kind)
        return SignalReceived(
            signal_id=_signal_id(said, principal),
            response_id=said.response_id or "",
            conversation_id=turn.conversation_id,
            principal=principal.owner,
            user=self._rater(said, turn, principal),
            kind=said.kind,
            value=said.value,
            text=said.text,
            reasons=tuple(said.reasons),
            other_response_id=said.other_response_id,
            dimensions=_dimensions(said),
            received_at=now,
        )

    async def _target(self, feedback: Feedback, principal: Principal) -> TurnRecorded:
        """The turn it is about, or the first one of the conversation."""
        if feedback.conversation_id is None:
            return await self._turn(feedback.response_id or "", "response_id", principal, feedback.kind)
        return await self._opening(feedback.conversation_id, principal)

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

    async def _opening(self, conversation: str, principal: Principal) -> TurnRecorded:
        event = await self._recorder.first_turn(conversation_key(principal.owner, conversation))
        if (
            event is None
            or not isinstance(event.data, TurnRecorded)
            or event.data.principal != principal.owner
        ):
            raise UnknownConversation("conversation_id: no such conversation", param="conversation_id")
        if event.data.identity is IdentitySource.HISTORY:
            raise BadRequest(
                "conversation_id: only its first message names this conversation, and several people may "
                "have sent that; send `user` or `metadata.conversation_id` with chats, or a response_id here",
                param="conversation_id",
                code="shared_conversation",
            )
        return event.data

    def _rater(self, feedback: Feedback, turn: TurnRecorded, principal: Principal) -> str:
        if feedback.user:
            return pseudonym(self._secret, principal.owner, feedback.user)
        return pseudonym(self._secret, principal.owner) if feedback.kind is SignalKind.LABEL else turn.user

    async def _record(self, signal: SignalReceived | ServingError) -> Accepted:
        """The log keeps the first signal of an id: what it kept tells retries from conflicts."""
        if isinstance(signal, ServingError):
            raise signal
        await self._recorder.signal(signal)
        kept = await self._recorder.find(Topic.SIGNALS, f"signal-{signal.signal_id}")
        if kept is None or not isinstance(kept.data, SignalReceived):
            raise NotRecorded("the event log does not show what it took; try again later")
        if msgspec.structs.replace(kept.data, received_at=signal.received_at) != signal:
            raise Conflict("idempotency_key: used before for other feedback", param="idempotency_key")
        if kept.data.received_at == signal.received_at:
            SIGNALS.labels(signal.kind.value).inc()
        return _accepted(signal)


def results(answers: Sequence[Accepted | ServingError]) -> Results:
    """Answers to a batch as they are sent."""
    return Results(
        [
            Result(index=n, error=detail_of(answer))
            if isinstance(answer, ServingError)
            else Result(index=n, accepted=answer)
            for n, answer in enumerate(answers)
        ]
    )


async def _caught(step: Awaitable[T]) -> T | ServingError:
    try:
        return await step
    except ServingError as e:
        return e


def _accepted(signal: SignalReceived) -> Accepted:
    if signal.response_id:
        return Accepted(signal_id=signal.signal_id, kind=signal.kind, response_id=signal.response_id)
    name = signal.conversation_id.removeprefix(conversation_key(signal.principal, ""))
    return Accepted(signal_id=signal.signal_id, kind=signal.kind, conversation_id=name)


def _signal_id(feedback: Feedback, principal: Principal) -> str:
    if feedback.idempotency_key is None:
        return secrets.token_hex(16)
    about = feedback.response_id or f"conversation/{feedback.conversation_id}"
    named = f"{principal.owner}\x1f{about}\x1f{feedback.idempotency_key}"
    return blake2b(named.encode("utf-8", "surrogatepass"), digest_size=16, person=b"signal").hexdigest()
