"""One conversation as a pure function of the set of its events. Infers nothing; that is `implicit`'s work.

Two keys name what was asked. The *prompt digest* covers every message and names a prompt state: replies under
one digest can be compared. The *thread* leaves system messages out, because products put dates and user data
there, and looks at words alone: it finds the place in the dialogue at which a reply was served.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

import msgspec

from feedback.events import (
    DIMENSIONS,
    OF_CONVERSATIONS,
    VALUED,
    Event,
    Exposure,
    IdentitySource,
    Message,
    Review,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    TurnStatus,
)
from feedback.text import canonical, content_text, is_text_only, plain, remembered, said

_INSTRUCTIONS = ("system", "developer")
_DATED = re.compile(
    r"\d+|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b|\b(?:january|february|march|april|may|june|july|august"
    r"|september|october|november|december)\b",
    re.IGNORECASE,
)


class Spoken(msgspec.Struct, frozen=True, gc=False):
    """One message of the dialogue that a request resent."""

    role: str
    text: str
    thread: str
    """Names the dialogue before this message."""
    comparable: bool
    """Text only, and some: tool calls and images are not compared."""


class Turn(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A recorded turn with what the pipeline needs to know about it, worked out once."""

    event_id: str
    response_id: str
    identity: IdentitySource
    user: str
    adapter: str
    propensity: float
    """Probability with which the traffic split chose this adapter; 1 when the client named it."""
    exposure: Exposure | None
    started_at: datetime
    ended_at: datetime
    complete: bool
    learn: bool
    prompt: tuple[Message, ...]
    """Role and text of each message; empty when the prompt holds more than text."""
    digest: str
    dialogue: tuple[Spoken, ...]
    asked_at: int | None
    """Where in the dialogue the user's last message stands."""
    newest_reply: Spoken | None
    """The last reply that it resends, if a user's message follows."""
    opens: bool
    """Whether it resends no reply."""
    thread: str
    """Names the dialogue that was answered."""
    question: str
    """Names the dialogue up to the user's last message: tool calls and their results do not change it."""
    instructions: str
    """The system messages' wording without figures, days and months, which products fill in anew."""
    reply: str

    @property
    def usable(self) -> bool:
        """Whether its reply may be graded, chosen or rejected."""
        return self.learn and self.complete and bool(self.prompt) and bool(self.reply.strip())


class Heard(msgspec.Struct, frozen=True, gc=False):
    """An event with what can be worked out of it alone; not with what else the log holds, as token ids."""

    id: str
    time: datetime
    said: Turn | SignalReceived | None
    """None for what is no part of a conversation."""


class Signal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What somebody did about a reply: said by a client, or inferred from the traffic."""

    kind: SignalKind
    response_id: str
    """Empty while no complete reply is known that a word about the conversation could be about."""
    other_response_id: str = ""
    """comparison: the other reply. regeneration: the reply asked for instead, if the client named it."""
    user: str
    at: datetime
    event_ids: tuple[str, ...]
    inferred: bool
    value: float | None = None
    text: str | None = None
    reasons: tuple[str, ...] = ()
    dimensions: dict[str, float] = {}
    """rating: 0..1 by those of DIMENSIONS that it tells apart."""
    review: Review | None = None
    of_conversation: bool = False
    """Said about the conversation: `response_id` is its last complete reply at that time."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    turns: tuple[Turn, ...]
    """In order of (time, event id)."""
    signals: tuple[Signal, ...]
    """What clients said and still stand by."""
    by_response: dict[str, Turn]

    def turn(self, response_id: str) -> Turn | None:
        return self.by_response.get(response_id)


def hear(event: Event) -> Heard:
    """What it is to a conversation, whatever else is said there."""
    data = event.data
    if isinstance(data, TurnRecorded):
        return Heard(event.id, event.time, turn_of(event.id, data))
    return Heard(event.id, event.time, data if isinstance(data, SignalReceived) else None)


def fold(events: Iterable[Event]) -> Conversation:
    """The conversation that these events make, whatever their order and however often each comes."""
    return of_all_heard(map(hear, events))


def of_all_heard(events: Iterable[Heard]) -> Conversation:
    """As `fold`, for who has heard the events before."""
    unique = {event.id: event for event in events}
    ordered = sorted(unique.values(), key=lambda event: (event.time, event.id))
    turns = tuple(e.said for e in ordered if isinstance(e.said, Turn))
    return Conversation(
        turns=turns,
        by_response={turn.response_id: turn for turn in turns},
        signals=tuple(
            _signal(event_id, received, turns)
            for event_id, received in _standing(
                (e.id, e.said) for e in ordered if isinstance(e.said, SignalReceived)
            )
        ),
    )


def turn_of(event_id: str, turn: TurnRecorded) -> Turn:
    """A turn as the pipeline sees it."""
    messages = [_read(m) for m in turn.messages]
    dialogue, thread = _dialogue(messages)
    asked_at = next((n for n in range(len(dialogue) - 1, -1, -1) if dialogue[n].role == "user"), None)
    before = reversed(dialogue[: asked_at or 0])
    after_question = 0 if asked_at is None else asked_at + 1
    text_only = bool(messages) and all(m.text_only for m in messages)
    reply_is_text = not turn.reply.get("tool_calls") and not turn.reply.get("function_call")
    return Turn(
        event_id=event_id,
        response_id=turn.response_id,
        identity=turn.identity,
        user=turn.user,
        adapter=turn.adapter,
        propensity=turn.propensity,
        exposure=turn.exposure,
        started_at=turn.started_at,
        ended_at=turn.started_at + timedelta(seconds=turn.duration_s),
        complete=turn.status is TurnStatus.COMPLETE,
        learn=turn.learn,
        prompt=tuple({"role": m.role, "content": m.text} for m in messages) if text_only else (),
        digest=_digest(messages),
        dialogue=dialogue,
        asked_at=asked_at,
        newest_reply=next((s for s in before if s.role == "assistant" and s.comparable), None),
        opens=all(spoken.role != "assistant" for spoken in dialogue),
        thread=thread,
        question=dialogue[after_question].thread if after_question < len(dialogue) else thread,
        instructions="\n".join(_DATED.sub("", plain(m.text)) for m in messages if m.role == "system"),
        reply=content_text(turn.reply) if reply_is_text else "",
    )


def prompt_digest(messages: Iterable[Message]) -> str:
    """Names a prompt state: 32 hex digits; whitespace and markdown do not change it, anything else does."""
    return _digest(map(_read, messages))


class _Read(msgspec.Struct, frozen=True, gc=False):
    """One message, looked at once."""

    role: str
    text: str
    text_only: bool
    comparable: bool
    """Text only, and some."""
    wording: bytes
    """Changes with anything but whitespace and markdown."""
    words: bytes
    """Changes with the words alone."""


def _read(message: Message) -> _Read:
    role = "system" if message.get("role") in _INSTRUCTIONS else str(message.get("role"))
    text = content_text(message)
    if is_text_only(message):
        return _read_text(role, text)
    hashed = canonical({**message, "role": role}) + b"\x1e"
    return _Read(role, text, False, False, hashed, hashed)


@remembered(2048)
def _read_text(role: str, text: str) -> _Read:
    """A message of text alone."""
    forms = plain(text), " ".join(said(text)) or plain(text)
    wording, words = (f"{role}\x1f{form}\x1e".encode("utf-8", "surrogatepass") for form in forms)
    return _Read(role, text, True, bool(text.strip()), wording, words)


def _digest(messages: Iterable[_Read]) -> str:
    return blake2b(b"".join(message.wording for message in messages), digest_size=16).hexdigest()


def _dialogue(messages: Iterable[_Read]) -> tuple[tuple[Spoken, ...], str]:
    """The messages but for instructions, each with the key of what came before; and the key of them all."""
    digest = blake2b(digest_size=16)
    spoken = []
    for message in messages:
        if message.role != "system":
            spoken.append(Spoken(message.role, message.text, digest.hexdigest(), message.comparable))
            digest.update(message.words)
    return tuple(spoken), digest.hexdigest()


def _standing(received: Iterable[tuple[str, SignalReceived]]) -> list[tuple[str, SignalReceived]]:
    """The last word of each user per kind and reply, or conversation; without retracted ones.

    `received` is in order.
    """
    last: dict[tuple[str, SignalKind, tuple[str, ...]], tuple[str, SignalReceived]] = {}
    for event_id, signal in received:
        replies = tuple(sorted({signal.response_id, signal.other_response_id or signal.response_id}))
        last[signal.user, signal.kind, replies] = (event_id, signal)
    return [(event_id, signal) for event_id, signal in last.values() if not _retracts(signal)]


def _retracts(signal: SignalReceived) -> bool:
    """A kind that carries something, sent without it, takes the earlier one back; so does a deed of 0."""
    if signal.kind is SignalKind.REVIEW:
        return signal.value is None and not signal.reasons
    if signal.kind in VALUED:
        return signal.value is None
    if signal.kind is SignalKind.EDIT:
        return not (signal.text or "").strip()
    if signal.kind is SignalKind.COMMENT:
        return signal.value is None and not signal.text and not signal.reasons
    return signal.value == 0.0


def _signal(event_id: str, received: SignalReceived, turns: Sequence[Turn]) -> Signal:
    of_conversation = not received.response_id and received.kind in OF_CONVERSATIONS
    return Signal(
        kind=received.kind,
        response_id=_last_complete(turns, received.received_at) if of_conversation else received.response_id,
        other_response_id=received.other_response_id or "",
        user=received.user,
        at=received.received_at,
        event_ids=(event_id,),
        inferred=False,
        value=None if received.value is None else _within(received.value),
        text=received.text,
        reasons=received.reasons,
        dimensions={d: _within(received.dimensions[d]) for d in DIMENSIONS if d in received.dimensions},
        review=received.review,
        of_conversation=of_conversation,
    )


def _last_complete(turns: Sequence[Turn], at: datetime) -> str:
    """The id of the last reply that had ended whole by then; empty when there is none."""
    return next((t.response_id for t in reversed(turns) if t.complete and t.ended_at <= at), "")


def _within(value: float) -> float:
    return min(1.0, max(0.0, value))
