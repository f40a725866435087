"""GET and POST /v1/review: a question of the review queue, and a rater's answer, durable when it is accepted.

A question comes with a ticket, sealed for its rater: what was asked, why, when and on which side. So answers
are only taken to what the queue asked, nobody picks what to compare, and no rater can tell a test from work.
"""

import asyncio
from collections import defaultdict
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
from prometheus_client import Counter

from feedback.comparisons import Side
from feedback.errors import CodecError, StateUnavailable
from feedback.events import BOTH_BAD, DIMENSIONS, Message, Review, SignalKind, SignalReceived
from feedback.privacy import pseudonym
from feedback.review import REASONS_TO_PASS, item_id, side_of_one
from feedback.review_queue import ReviewQueue, Shown
from feedback.sealing import DataKey
from serving.asked import decode_object
from serving.auth import Principal
from serving.errors import BadRequest, QueueUnavailable
from serving.recording import Recorder
from serving.signals import is_new

REVIEWS = Counter("ratchet_serving_reviews_total", "Answers of raters accepted, by verdict", ["verdict"])

Verdict = Literal["left", "right", "tie", "both_bad", "pass"]
Lean = Literal["left", "right", "tie"]
_LEFT_BETTER: dict[Lean, float] = {"left": 1.0, "right": 0.0, "tie": 0.5}
_REMEMBERED = 100
"""A rater's latest answers, which the pipeline may not have folded yet."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /v1/review."""

    ticket: str | None = None
    """To be sent with the answer. None: nothing is left for this rater."""
    prompt: tuple[Message, ...] = ()
    left: str = ""
    right: str = ""
    dimensions: tuple[str, ...] = DIMENSIONS
    """What can be told apart beside the verdict."""
    reasons_to_pass: tuple[str, ...] = REASONS_TO_PASS
    waiting: int = 0
    """Pairs of replies that want more answers, of this rater or of others."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/review."""

    ticket: str
    """From GET /v1/review."""
    verdict: Verdict | None = None
    """The better reply, `tie`, `both_bad`, or `pass` with a `reason`. Null takes the answer back."""
    dimensions: dict[Literal["helpful", "honest", "harmless"], Lean] = {}
    """The better reply by dimension; what was not judged is left out."""
    reason: str | None = None
    """pass: why, one of `reasons_to_pass`."""
    revision: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Counts up with each change of mind. The same revision again records nothing new."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is in the log."""

    signal_id: str


class _Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. `one` and `other` are response ids in order."""

    conversation_id: str
    one: str
    other: str
    review: Review


class Reviews:
    """Asks raters, and takes their answers in."""

    def __init__(self, recorder: Recorder, queue: ReviewQueue, secret: bytes) -> None:
        self._recorder = recorder
        self._queue = queue
        self._secret = secret
        self._seal = DataKey("tickets", blake2b(secret, digest_size=32, person=b"review tickets").digest())
        self._answered: dict[str, list[str]] = defaultdict(list)

    async def question(self, principal: Principal, now: datetime) -> Question:
        """What the queue asks this rater next. Raises: QueueUnavailable."""
        rater = pseudonym(self._secret, principal.owner)
        try:
            shown = await asyncio.to_thread(self._queue.next_for, rater, tuple(self._answered[rater]))
            lengths = await asyncio.to_thread(self._queue.lengths)
        except StateUnavailable as e:
            raise QueueUnavailable(str(e)) from e
        waiting = lengths.waiting + lengths.begun
        return Question(waiting=waiting) if shown is None else self._asked(shown, rater, waiting, now)

    async def answer(self, given: Answer, principal: Principal, now: datetime) -> Accepted:
        """The answer is durable when this returns.

        Raises: BadRequest for a ticket that was not given to this rater; Conflict; NotRecorded.
        """
        rater = pseudonym(self._secret, principal.owner)
        ticket = self._opened(given.ticket, rater)
        signal = _signal(given, ticket, principal.owner, rater, now)
        await self._recorder.signal(signal)
        if await is_new(self._recorder, signal, "revision"):
            REVIEWS.labels(given.verdict or "taken back").inc()
        self._remember(rater, item_id(ticket.one, ticket.other), answered=given.verdict is not None)
        return Accepted(signal_id=signal.signal_id)

    def _asked(self, shown: Shown, rater: str, waiting: int, now: datetime) -> Question:
        asked = shown.question
        side = side_of_one(asked.item, rater, self._secret)
        ticket = _Ticket(
            conversation_id=shown.conversation_id,
            one=shown.one.response_id,
            other=shown.other.response_id,
            review=Review(
                side=side,
                drawn=asked.drawn,
                size=asked.size,
                threshold=asked.threshold,
                disagreement=asked.disagreement,
                shown_at=now,
            ),
        )
        left, right = (shown.one, shown.other) if side == "left" else (shown.other, shown.one)
        box = self._seal.seal(msgspec.json.encode(ticket), rater.encode())
        return Question(
            ticket=box.hex(), prompt=shown.one.prompt, left=left.reply, right=right.reply, waiting=waiting
        )

    def _opened(self, ticket: str, rater: str) -> _Ticket:
        try:
            plain = self._seal.open(bytes.fromhex(ticket), rater.encode())
            return msgspec.json.decode(plain, type=_Ticket)
        except (CodecError, ValueError) as e:
            raise BadRequest("ticket: not one that the queue gave you", param="ticket") from e

    def _remember(self, rater: str, item: str, *, answered: bool) -> None:
        others = [i for i in self._answered[rater] if i != item]
        self._answered[rater] = [*others, item][-_REMEMBERED:] if answered else others


def parse(body: bytes) -> Answer:
    """Raises: BadRequest naming the field in `param`."""
    raw = decode_object(body)
    unknown = sorted(raw.keys() - set(Answer.__struct_fields__))
    if unknown:
        raise BadRequest(f"{unknown[0]}: not a field of a review", param=unknown[0], code="unknown_parameter")
    for name in ("ticket", "verdict"):
        if name not in raw:
            raise BadRequest(f"{name}: required", param=name, code="missing_required_parameter")
    try:
        given = msgspec.convert(raw, Answer)
    except msgspec.ValidationError as e:
        name = str(e).rpartition("`$.")[2].partition("`")[0].partition("[")[0]
        raise BadRequest(str(e), param=name or None) from e
    _check_reason(given)
    return given


def _check_reason(given: Answer) -> None:
    if given.verdict == "pass" and given.reason not in REASONS_TO_PASS:
        raise BadRequest(f"reason: to pass, give one of {', '.join(REASONS_TO_PASS)}", param="reason")
    if given.verdict != "pass" and given.reason is not None:
        raise BadRequest("reason: only with the verdict `pass`", param="reason")
    if given.verdict in ("pass", None) and given.dimensions:
        raise BadRequest("dimensions: only with a verdict about the replies", param="dimensions")


def _signal(given: Answer, ticket: _Ticket, owner: str, rater: str, now: datetime) -> SignalReceived:
    side = ticket.review.side
    return SignalReceived(
        signal_id=_signal_id(ticket, rater, given.revision),
        response_id=ticket.one,
        other_response_id=ticket.other,
        conversation_id=ticket.conversation_id,
        principal=owner,
        user=rater,
        kind=SignalKind.REVIEW,
        value=_value(given.verdict, side),
        dimensions={name: _of_one(_LEFT_BETTER[lean], side) for name, lean in given.dimensions.items()},
        reasons=_reasons(given),
        review=ticket.review,
        received_at=now,
    )


def _value(verdict: Verdict | None, side: Side) -> float | None:
    if verdict is None or verdict == "pass":
        return None
    return 0.5 if verdict == "both_bad" else _of_one(_LEFT_BETTER[verdict], side)


def _of_one(left_better: float, side: Side) -> float:
    return left_better if side == "left" else 1.0 - left_better


def _reasons(given: Answer) -> tuple[str, ...]:
    if given.verdict == "both_bad":
        return (BOTH_BAD,)
    return (given.reason,) if given.reason else ()


def _signal_id(ticket: _Ticket, rater: str, revision: int) -> str:
    """One for each change of mind about one showing of a question."""
    named = "\x1f".join((rater, ticket.one, ticket.other, ticket.review.shown_at.isoformat(), str(revision)))
    return blake2b(named.encode(), digest_size=16, person=b"review").hexdigest()
