"""POST /v1/feedback, also in batches: checked against what was served, durable before the answer."""

import asyncio
import secrets
from collections.abc import Awaitable, Collection, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TypeVar

import msgspec
from prometheus_client import Counter

from feedback.eventlog import Topic
from feedback.events import IdentitySource, SignalKind, SignalReceived, TurnRecorded
from feedback.privacy import pseudonym
from feedback.redaction import Personal, redact_signal
from serving.asked import conversation_key
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
from serving.told import Feedback, dimensions_of

SIGNALS = Counter("ratchet_serving_signals_total", "Signals accepted, by kind", ["kind"])

T = TypeVar("T")


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


class Signals:
    """Takes feedback in."""

    def __init__(self, recorder: Recorder, secret: bytes, redact: Collection[Personal]) -> None:
        self._recorder = recorder
        self._secret = secret
        self._redact = redact

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
            said
            if isinstance(said, ServingError)
            else await _caught(self._signal(said, principal, now + timedelta(microseconds=n)))
            for n, said in enumerate(given)
        ]
        return await asyncio.gather(
            *(_caught(self._record(said, signal)) for said, signal in zip(given, signals, strict=True))
        )

    async def _signal(self, said: Feedback, principal: Principal, now: datetime) -> SignalReceived:
        """Without its words where the turn's are withheld, and without what is redacted."""
        if said.kind is SignalKind.LABEL and principal.role < Role.OPERATOR:
            raise Forbidden("labels need a key with the role operator")
        if principal.replies is not None and said.user:
            raise Forbidden("with a feedback token the user who was answered speaks; leave `user` out")
        turn = await self._target(said, principal)
        if said.other_response_id:
            await self._turn(said.other_response_id, "other_response_id", principal, said.kind)
        signal = SignalReceived(
            signal_id=_signal_id(said, principal),
            response_id=said.response_id or "",
            conversation_id=turn.conversation_id,
            principal=principal.owner,
            user=self._rater(said, turn, principal),
            kind=said.kind,
            value=said.value,
            text=said.text if turn.learn else None,
            reasons=tuple(said.reasons) if turn.learn else (),
            other_response_id=said.other_response_id,
            dimensions=dimensions_of(said),
            received_at=now,
        )
        return redact_signal(signal, self._redact)

    async def _target(self, feedback: Feedback, principal: Principal) -> TurnRecorded:
        """The turn it is about, or the first one of the conversation."""
        if feedback.conversation_id is None:
            return await self._turn(feedback.response_id or "", "response_id", principal, feedback.kind)
        return await self._opening(feedback.conversation_id, principal)

    async def _turn(
        self, response_id: str, param: str, principal: Principal, kind: SignalKind
    ) -> TurnRecorded:
        if principal.replies is not None and response_id not in principal.replies:
            raise UnknownReply(f"{param}: not the reply that this feedback token is for", param=param)
        event = await self._recorder.find(Topic.TURNS, f"turn-{response_id}")
        labels = kind is SignalKind.LABEL  # operators label anybody's replies
        if event is None or not isinstance(event.data, TurnRecorded):
            raise UnknownReply(f"{param}: no such reply", param=param)
        if event.data.principal != principal.owner and not labels:
            raise UnknownReply(f"{param}: no such reply", param=param)
        return event.data

    async def _opening(self, conversation: str, principal: Principal) -> TurnRecorded:
        if principal.replies is not None:
            raise Forbidden("a feedback token is for a reply; a conversation needs an API key")
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

    async def _record(self, said: Feedback | ServingError, signal: SignalReceived | ServingError) -> Accepted:
        if isinstance(said, ServingError):
            raise said
        if isinstance(signal, ServingError):
            raise signal
        await self._recorder.signal(signal)
        if said.idempotency_key is None or await is_new(self._recorder, signal, "idempotency_key"):
            SIGNALS.labels(signal.kind.value).inc()
        return _accepted(signal)


async def is_new(recorder: Recorder, signal: SignalReceived, param: str) -> bool:
    """Whether the log kept just this one: it keeps the first signal of an id.

    Raises: Conflict, naming `param`, when that said something else; NotRecorded.
    """
    kept = await recorder.find(Topic.SIGNALS, f"signal-{signal.signal_id}")
    if kept is None or not isinstance(kept.data, SignalReceived):
        raise NotRecorded("the event log does not show what it took; try again later")
    if msgspec.structs.replace(kept.data, received_at=signal.received_at) != signal:
        raise Conflict(f"{param}: used before for other feedback", param=param)
    return kept.data.received_at == signal.received_at


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
