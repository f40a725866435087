"""What a client tells of a reply or a conversation: the bodies of feedback, checked and understood. Pure."""

from statistics import fmean
from typing import Annotated, Any

import msgspec

from feedback.events import OF_CONVERSATIONS, VALUED, SignalKind
from serving.asked import decode_object, without_nulls
from serving.errors import BadRequest

NOT_FROM_CLIENTS = {
    SignalKind.BRANCH: "a branch is read from the history alone",
    SignalKind.JUDGEMENT: "a judgement is a machine's, made by `ratchet learn judge`",
    SignalKind.REVIEW: "a review answers a question of the queue; send it to POST /v1/review",
}
"""Kinds that no client may send, and why."""
WORDED = frozenset({SignalKind.COMMENT, SignalKind.EDIT})
"""Kinds that say something by their text; null takes the earlier one back."""
MAX_REASONS = 16
MAX_REASON_CHARS = 200
MAX_BATCH = 100

_RETRACTING = frozenset({"value", "text"})
"""Fields in which null means something."""
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


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


def parse_batch(body: bytes, max_text_chars: int) -> list[Feedback | BadRequest]:
    """Each item, or what is wrong with it. Raises: BadRequest when the batch as a whole cannot be used."""
    raw = decode_object(body)
    _refuse_unknown(raw, Batch, "a batch")
    items = raw.get("feedback")
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH:
        raise BadRequest(f"feedback: a list of 1 to {MAX_BATCH} items is needed", param="feedback")
    return [_item(item, max_text_chars) for item in items]


def dimensions_of(feedback: Feedback) -> dict[str, float]:
    """What a rating tells apart; empty when it does not."""
    return {} if feedback.dimensions is None else msgspec.to_builtins(feedback.dimensions)


def _item(raw: Any, max_text_chars: int) -> Feedback | BadRequest:
    if not isinstance(raw, dict):
        return BadRequest("an item must be a JSON object", code="invalid_type")
    try:
        return _understood(raw, max_text_chars)
    except BadRequest as e:
        return e


def _understood(said: dict[str, Any], max_text_chars: int) -> Feedback:
    raw = without_nulls(said, keep=_RETRACTING)
    _refuse_unknown(raw, Feedback, "feedback")
    feedback = _typed(raw)
    _check_target(feedback)
    _check_kind(feedback)
    _check_value(feedback, given="value" in raw)
    _check_text(feedback, given="text" in raw)
    _check_length(feedback, max_text_chars)
    return feedback


def _refuse_unknown(raw: dict[str, Any], body: type[msgspec.Struct], what: str) -> None:
    unknown = sorted(raw.keys() - set(body.__struct_fields__))
    if unknown:
        raise BadRequest(f"{unknown[0]}: not a field of {what}", param=unknown[0], code="unknown_parameter")


def _typed(raw: dict[str, Any]) -> Feedback:
    """A rating by dimensions alone is worth their mean."""
    if "kind" not in raw:
        raise BadRequest("kind: required", param="kind", code="missing_required_parameter")
    if isinstance(raw.get("value"), bool):
        raw = {**raw, "value": float(raw["value"])}
    try:
        feedback = msgspec.convert(raw, Feedback)
    except msgspec.ValidationError as e:
        name = str(e).rpartition("`$.")[2].partition("`")[0].partition("[")[0]
        raise BadRequest(str(e), param=name or None) from e
    told_apart = dimensions_of(feedback)
    if "value" in raw or not told_apart:
        return feedback
    return msgspec.structs.replace(feedback, value=fmean(told_apart.values()))


def _check_target(feedback: Feedback) -> None:
    if feedback.response_id is None and feedback.conversation_id is None:
        raise BadRequest(
            "response_id: required, or conversation_id",
            param="response_id",
            code="missing_required_parameter",
        )
    if feedback.response_id is not None and feedback.conversation_id is not None:
        raise BadRequest(
            "conversation_id: feedback is about a reply or about a conversation; send one of the two ids",
            param="conversation_id",
        )
    if feedback.conversation_id is not None and feedback.kind not in OF_CONVERSATIONS:
        raise BadRequest(
            f"conversation_id: {_a(feedback.kind)} is about a reply; send its response_id",
            param="conversation_id",
        )


def _check_kind(feedback: Feedback) -> None:
    kind = feedback.kind
    if kind in NOT_FROM_CLIENTS:
        raise BadRequest(f"kind: {NOT_FROM_CLIENTS[kind]}", param="kind", code="unsupported_value")
    if kind is SignalKind.COMPARISON and not feedback.other_response_id:
        raise BadRequest("other_response_id: a comparison needs the other reply", param="other_response_id")
    if kind is not SignalKind.RATING and feedback.dimensions is not None:
        raise BadRequest("dimensions: only a rating has them", param="dimensions")


def _check_value(feedback: Feedback, *, given: bool) -> None:
    value, kind = feedback.value, feedback.kind
    if kind in VALUED and value is None and not given:
        raise _missing("value", kind)
    if value is None and dimensions_of(feedback):
        raise BadRequest("dimensions: null takes the rating back; leave them out", param="dimensions")
    if kind is SignalKind.THUMB and value not in (0.0, 1.0, None):
        raise BadRequest("value: a thumb is 1 (up), 0 (down) or null (taken back)", param="value")
    if value is not None and not 0.0 <= value <= 1.0:
        raise BadRequest(f"value: {value} is not between 0 and 1", param="value")


def _check_text(feedback: Feedback, *, given: bool) -> None:
    text, kind = feedback.text, feedback.kind
    if kind not in WORDED or (text or "").strip():
        return
    if text is not None or not given:
        raise _missing("text", kind)
    if feedback.value is not None or feedback.reasons:
        raise BadRequest(f"text: null takes the {kind} back; leave value and reasons out", param="text")


def _missing(param: str, kind: SignalKind) -> BadRequest:
    return BadRequest(
        f"{param}: {_a(kind)} needs one; null takes the earlier {kind} back",
        param=param,
        code="missing_required_parameter",
    )


def _a(kind: SignalKind) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _check_length(feedback: Feedback, max_text_chars: int) -> None:
    if feedback.text is not None and len(feedback.text) > max_text_chars:
        raise BadRequest(f"text: at most {max_text_chars} characters", param="text", code="string_too_long")
    if len(feedback.reasons) > MAX_REASONS or any(len(r) > MAX_REASON_CHARS for r in feedback.reasons):
        raise BadRequest(
            f"reasons: at most {MAX_REASONS} of {MAX_REASON_CHARS} characters each",
            param="reasons",
            code="string_too_long",
        )
