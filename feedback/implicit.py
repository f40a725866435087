"""What the traffic itself says: the OpenAI protocol resends the history, so it shows what became of a reply.

Reads one conversation and returns signals; judges nothing (`grades`, `pairs`), and leaves what a message says
to `reactions`. Precision goes before recall: whatever a client, a network or a second user could have done
without anybody disliking a reply is no signal.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from feedback.alterations import Alteration, Change, Way, alteration
from feedback.conversations import Conversation, Signal, Spoken, Turn
from feedback.events import IdentitySource, SignalKind
from feedback.frames import Frames
from feedback.reactions import reaction
from feedback.text import distance, said

REGENERATION_HORIZON_S = 3600.0
"""The same history asked again later than this is a new visit."""
OPENING_HORIZON_S = 600.0
"""So is an opening asked again later than this, where no client names the conversation."""
AT_ONCE_S = 20.0
"""Where only a first question is known, whoever asks it again later than this may be somebody else."""
MAX_COINCIDENCES = 0.05
"""… or sooner, if so many others are to be expected in that time."""
VISIT_S = 3600.0
"""The least time over which it is counted how often a first question is asked."""
MAX_EDIT_DISTANCE = 0.6
"""A message that shares less with the reply is a summary or somebody else's text, not an edit of it."""
MAX_STRANGE_DISTANCE = 0.3
"""So it is from here on where strangers may have been given similar replies."""
MAX_LOST_DISTANCE = 0.2
"""Where a client changed the history before it, so that nothing tells its place, a reply is known by this."""
MOST_LOST = 4
"""The latest replies among which such a one is looked for."""
MIN_EDIT_DISTANCE = 0.02
"""An edit that changes less is a signal, but neither a pair nor a demonstration."""
REWRITING_CLIENT_REPLIES = 3
"""From so many resent replies on, a client that reworded all of them rewords them by itself."""
TIMED_REQUESTS = 3
"""So many equal requests at equal intervals are a program's."""
TIMER_S = 30.0
"""The least interval of a timer; people who want another reply ask sooner."""
TIMER_JITTER = 0.15
"""By this share the longest of its intervals may exceed the shortest."""
REPEATED_WORDS = 3
"""A client that put these many words into two replies, the same both times, does so by itself."""
COURTESY_WORDS = 6
"""So many words say at most that one is glad to help."""
TYPING_S = 1.0
"""Nobody answers a whole reply sooner: such a request is a program's, for a title or for suggestions."""
TYPED_CHARS = 40
"""Nor does anybody type more than this in that time."""
UNMISTAKABLE_WORDS = 5
"""A reply with so many words is known by its wording, wherever a shortened history puts it."""

_SOURCE_WORDS = frozenset("citation citations footnotes further reference references source sources".split())
_TOOL_WORDS = frozenset(
    "arguments call called calling function invoked result results tool tools used using".split()
)


def infer(conversation: Conversation, *, retry_window_s: float = 2.0) -> list[Signal]:
    """Every signal the traffic shows.

    Args: retry_window_s, an identical request sooner after the reply's end is the network's, not the user's.
    """
    served = _Served(conversation, typing_s=min(TYPING_S, retry_window_s))
    edits = _edits(served)
    return [
        *_regenerations(served, retry_window_s),
        *_branches(served),
        *_reactions(served, {signal.response_id for signal in edits}),
        *edits,
    ]


def _regenerations(served: "_Served", retry_window_s: float) -> Iterator[Signal]:
    by_question: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    for turn in served.turns:
        if turn.reply or not turn.complete:
            by_question[served.asked(turn), turn.instructions].append(turn)
    for turns in by_question.values():
        turns = [turn for turn in turns if not served.at_a_programs_pace(turn)]
        if served.on_a_timer(turns):
            continue
        for at, (first, second) in enumerate(pairwise(turns)):
            again = _asked_again(first, second, retry_window_s) and served.by_one_person(first, second)
            if not again or served.in_two_tabs(first, second):
                continue
            instead = next((t for t in turns[at + 1 :] if t.complete), second)
            yield _inferred(SignalKind.REGENERATION, first, second, other=instead.response_id)


def _asked_again(first: Turn, second: Turn, retry_window_s: float) -> bool:
    """Whether one person, having had the first reply, wanted another."""
    unnamed_opening = second.opens and IdentitySource.EXPLICIT not in (first.identity, second.identity)
    horizon_s = OPENING_HORIZON_S if unnamed_opening else REGENERATION_HORIZON_S
    return (
        first.complete
        and retry_window_s <= (second.started_at - first.ended_at).total_seconds() <= horizon_s
        and first.user == second.user
        and first.exposure is None  # of two side by side nobody knows which one did not please
        and first.learn
        and second.learn
    )


def _branches(served: "_Served") -> Iterator[Signal]:
    """Replies whose question was asked differently afterwards. An opening may be a new chat: left out."""
    by_place: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    for turn in served.turns:
        if turn.reply and turn.complete and not turn.opens and not served.by_a_program(turn):
            by_place[served.place(turn), turn.user].append(turn)
    for turns in by_place.values():
        for first, second in pairwise(turns):
            asked_otherwise = (
                served.asked(first) != served.asked(second) and first.ended_at <= second.started_at
            )
            if asked_otherwise and first.learn and second.learn and not served.lives_on_beside(first, second):
                yield _inferred(SignalKind.BRANCH, first, second)


class Answered(NamedTuple):
    """A reply and the user's next message, both without what clients put around them."""

    question: str
    source: Turn
    following: str
    by: Turn
    """The request that shows it."""


def answered(conversation: Conversation, *, retry_window_s: float = 2.0) -> Iterator[Answered]:
    """Each reply that a person went on from, once; what the message makes of it is not judged."""
    return _answered(_Served(conversation, typing_s=min(TYPING_S, retry_window_s)))


def _answered(served: "_Served") -> Iterator[Answered]:
    known, frames = set(), Frames(served.turns)
    for turn in served.turns:
        if not turn.learn or served.by_a_program(turn):
            continue
        question = ""
        for answer, following in pairwise(turn.dialogue):
            question = frames.own(answer) if answer.role == "user" else question
            if (answer.role, following.role) != ("assistant", "user") or not question:
                continue
            source = served.source(answer, turn)
            if source and source.response_id not in known:
                known.add(source.response_id)
                yield Answered(question, source, frames.own(following), turn)


def _reactions(served: "_Served", edited: Collection[str]) -> Iterator[Signal]:
    """What the next message made of a reply. To one that was edited it says nothing: it follows the edit."""
    for one in _answered(served):
        if one.source.response_id not in edited:
            kind = reaction(one.question, one.source.reply, one.following)
            if kind:
                yield _inferred(kind, one.source, one.by)


class _Resent(NamedTuple):
    """A reply as it came back, for the first time in these words, before a user's next message."""

    by: Turn
    text: str
    original: Turn
    alteration: Alteration


def _edits(served: "_Served") -> list[Signal]:
    """Replies that a person put right. The last wording of each counts.

    People edit the reply before them; a request that alters an older one was put together by a program.
    """
    resent = list(_resent(served))
    by_strand: dict[str, list[_Resent]] = defaultdict(list)
    for one in resent:
        by_strand[served.strand(one.by)].append(one)
    edits = {
        one.original.response_id: _inferred(SignalKind.EDIT, one.original, one.by, text=one.text)
        for strand in by_strand.values()
        for one in strand
        if _by_hand(one, strand) and one.by.learn and one.original.learn and one.original.complete
    }
    return list(edits.values())


def _resent(served: "_Served") -> Iterator[_Resent]:
    known: set[tuple[str, ...]] = set()
    for turn in served.turns:
        older = [s for s in turn.dialogue if s.role == "assistant" and s.comparable]
        newest, original = turn.newest_reply, served.origin(turn)
        by_a_program = any(
            served.reworded(s, turn) for s in older if s is not newest and said(s.text) not in known
        )
        if newest and original and not by_a_program and said(newest.text) not in known:
            yield _Resent(turn, newest.text, original, alteration(original.reply, newest.text))
        known.update(said(spoken.text) for spoken in older)


def _by_hand(one: _Resent, strand: Collection[_Resent]) -> bool:
    """Whether no habit of a client explains it, as far as its other requests show its habits."""
    ways = [other.alteration.way for other in strand]
    again = Counter(change for other in strand for change in other.alteration.changes)
    own = [change for change in one.alteration.changes if again[change] == 1 or not _habitual(change)]
    match one.alteration.way:
        case Way.REWORDED if any(not change.at_end or change.replaces for change in own):
            return len(ways) < REWRITING_CLIENT_REPLIES or set(ways) != {Way.REWORDED}
        case Way.MORE if own:
            return Way.NONE in ways and not any(_by_a_program(change, one.original) for change in own)
        case Way.LESS if not any(_is_courtesy(change) for change in own):
            at_end = any(change.at_end for change in own)
            whole = [len(other.text) for other in strand if other.alteration.way is Way.NONE]
            out_of_the_middle = len(ways) == 1 and not any(c.at_start or c.at_end for c in own)
            if out_of_the_middle or not whole:
                return out_of_the_middle
            return not at_end or (Way.CUT not in ways and max(whole) >= len(one.text))
    return False


def _habitual(change: Change) -> bool:
    """Whether a client would do it to one reply after another: the same around it, or instead of it."""
    around = change.at_start or change.at_end
    return (around or change.replaces) and len(change.old) + len(change.new) >= REPEATED_WORDS


def _is_courtesy(change: Change) -> bool:
    """Whether only a short opening or closing went: programs strip what greets and what offers more."""
    return (change.at_start or change.at_end) and len(change.old) <= COURTESY_WORDS


def _by_a_program(added: Change, to: Turn) -> bool:
    """Whether it lists sources, or tells of the tools that were used for the reply."""
    results = {word for spoken in to.dialogue if spoken.role == "tool" for word in said(spoken.text)}
    of_tools = results and not (results | _TOOL_WORDS).isdisjoint(added.new)
    return bool(of_tools) or not _SOURCE_WORDS.isdisjoint(added.new[:2])


def _inferred(
    kind: SignalKind, about: Turn, shown_by: Turn, *, other: str = "", text: str | None = None
) -> Signal:
    return Signal(
        kind=kind,
        response_id=about.response_id,
        other_response_id=other,
        user=shown_by.user,
        at=shown_by.started_at,
        event_ids=(about.event_id, shown_by.event_id),
        inferred=True,
        text=text,
    )


class _Served:
    """A conversation's replies by their place in the dialogue; turns come in order of time."""

    def __init__(self, conversation: Conversation, *, typing_s: float) -> None:
        self.turns = conversation.turns
        self._typing_s = typing_s
        self._by_thread: dict[str, list[Turn]] = defaultdict(list)
        self._by_question: dict[tuple[str, ...], list[Turn]] = defaultdict(list)
        self._by_words: dict[tuple[str, ...], list[Turn]] = defaultdict(list)
        self._replied = [turn for turn in conversation.turns if turn.reply]
        for turn in conversation.turns:
            if turn.reply:
                self._by_thread[turn.thread].append(turn)
                self._by_question[_asked(turn)].append(turn)
                self._by_words[said(turn.reply)].append(turn)
        self._origin: dict[str, Turn] = {}
        self._strand: dict[str, str] = {}
        self._gone_on_with: dict[str, datetime] = {}
        self._asked: dict[str, str] = {}
        self._by_programs: set[str] = set()
        for turn in conversation.turns:
            self._follow(turn)

    def _follow(self, turn: Turn) -> None:
        """Find out what it goes on from; turns come in order."""
        origin = self._newest_origin(turn)
        self._asked[turn.event_id] = turn.question
        if origin:
            self._origin[turn.event_id] = origin
            self._asked[turn.event_id] = f"{origin.response_id} {' '.join(_asked(turn))}"
            if self._sooner_than_typed(turn, origin):
                self._by_programs.add(turn.event_id)
            else:
                self._gone_on_with.setdefault(origin.response_id, turn.started_at)
        alone = turn.identity is IdentitySource.HISTORY
        begun = self._strand[origin.event_id] if origin else turn.event_id
        self._strand[turn.event_id] = begun if alone else ""

    def _newest_origin(self, turn: Turn) -> Turn | None:
        newest = turn.newest_reply
        if newest is None:
            return None
        if same := self._as_resent(newest, turn):
            return same
        before = turn.dialogue[: turn.dialogue.index(newest)]
        candidates = _earlier(self._by_thread.get(newest.thread, []), turn) or _earlier(
            self._by_question.get(_last_said(before), []), turn
        )
        if not candidates:
            return self._by_wording_alone(newest, turn)
        ranked = sorted((distance(c.reply, newest.text), c.event_id, c) for c in candidates if c.reply)
        strange = turn.identity is not IdentitySource.EXPLICIT and len(ranked) > 1
        limit = MAX_STRANGE_DISTANCE if strange else MAX_EDIT_DISTANCE
        cut = [
            c for _, _, c in ranked if alteration(c.reply, newest.text).way in (Way.NONE, Way.CUT, Way.LESS)
        ]
        if cut:
            return cut[-1]
        return ranked[0][2] if ranked and ranked[0][0] <= limit else None

    def _by_wording_alone(self, newest: Spoken, later: Turn) -> Turn | None:
        """The recent reply that it hardly differs from, wherever in the dialogue it was served."""
        words = len(said(newest.text))
        recent = [t for t in _earlier(self._replied, later)[-MOST_LOST:] if t.user == later.user]
        ranked = sorted((distance(t.reply, newest.text), t.event_id, t) for t in recent)
        near = words >= UNMISTAKABLE_WORDS and bool(ranked) and ranked[0][0] <= MAX_LOST_DISTANCE
        return ranked[0][2] if near else None

    def _as_resent(self, spoken: Spoken, later: Turn) -> Turn | None:
        """The latest turn before `later` that served these words, at this place if it can be told."""
        words = said(spoken.text)
        same = _earlier(self._by_words.get(words, []), later)
        here = [t for t in same if t.thread == spoken.thread]
        if not here and len(words) >= UNMISTAKABLE_WORDS:
            here = same
        return here[-1] if here else None

    def origin(self, turn: Turn) -> Turn | None:
        """The turn that served the newest reply that this one resends, altered or not."""
        return self._origin.get(turn.event_id)

    def strand(self, turn: Turn) -> str:
        """Names the turns that one client sent one after another, where nothing else tells clients apart."""
        return self._strand[turn.event_id]

    def place(self, turn: Turn) -> str:
        """Names what its question follows: a reply, or else the dialogue before it."""
        origin = self.origin(turn)
        if turn.asked_at is None:
            return turn.thread
        return origin.response_id if origin else turn.dialogue[turn.asked_at].thread

    def asked(self, turn: Turn) -> str:
        """Names its question at its place. Tool calls and their results do not change it."""
        return self._asked[turn.event_id]

    def source(self, spoken: Spoken, later: Turn) -> Turn | None:
        """The turn that served this reply, although a client may have cut or decorated it since."""
        if found := self._as_resent(spoken, later):
            return found
        if spoken is later.newest_reply:
            return self.origin(later)
        here = _earlier(self._by_thread.get(spoken.thread, []), later)
        return here[-1] if here else None

    def reworded(self, spoken: Spoken, later: Turn) -> bool:
        """Whether a reply served at this place came back in other words."""
        here = _earlier(self._by_thread.get(spoken.thread, []), later)
        return bool(here) and all(alteration(t.reply, spoken.text).way is Way.REWORDED for t in here)

    def by_a_program(self, turn: Turn) -> bool:
        """Whether the request came sooner after the reply that it resends than anybody types."""
        return turn.event_id in self._by_programs

    def _sooner_than_typed(self, turn: Turn, origin: Turn) -> bool:
        pause_s = (turn.started_at - origin.ended_at).total_seconds()
        typed = turn.dialogue[turn.asked_at].text if turn.asked_at is not None else ""
        return pause_s < self._typing_s * max(1.0, len(typed) / TYPED_CHARS)

    def in_two_tabs(self, first: Turn, second: Turn) -> bool:
        """Whether the same was asked in two chats. An opening that was gone on with was not asked again."""
        gone_on = self._gone_on_with.get(first.response_id)
        named = IdentitySource.EXPLICIT in (first.identity, second.identity)
        if gone_on and (gone_on <= second.started_at or (second.opens and not named)):
            return True
        return self.lives_on_beside(first, second)

    def by_one_person(self, first: Turn, second: Turn) -> bool:
        """Whether no stranger can be behind the second; only a first question tells strangers apart.

        Where nobody is named, whoever drops a reply and asks the same at once is taken for one person if the
        question is so rare that chance would hardly bring two at that time.
        """
        if IdentitySource.HISTORY not in (first.identity, second.identity):
            return True
        if not second.opens:
            return said(first.reply) != said(second.reply)  # a cold sampler tells two people the same
        pause_s = (second.started_at - first.ended_at).total_seconds()
        openings = sum(turn.opens for turn in self.turns) - 1
        span_s = max(VISIT_S, (self.turns[-1].started_at - self.turns[0].started_at).total_seconds())
        dropped = first.response_id not in self._gone_on_with and second.response_id in self._gone_on_with
        return dropped and pause_s <= AT_ONCE_S and openings * pause_s / span_s <= MAX_COINCIDENCES

    def at_a_programs_pace(self, turn: Turn) -> bool:
        """Whether it came right after a reply to another question: nobody reads one and asks on so soon."""
        at = bisect_left(self.turns, turn.started_at, key=lambda t: t.started_at)
        before = self.turns[at - 1] if at else None
        if before is None or before.user != turn.user or self.asked(before) == self.asked(turn):
            return False
        pause_s = (turn.started_at - before.ended_at).total_seconds()
        return 0.0 <= pause_s < self._typing_s and not self.by_a_program(before)

    def on_a_timer(self, turns: Sequence[Turn]) -> bool:
        """Whether a program asks this at fixed intervals and nobody goes on from any reply."""
        if len(turns) < TIMED_REQUESTS or any(t.response_id in self._gone_on_with for t in turns):
            return False
        gaps_s = [(b.started_at - a.started_at).total_seconds() for a, b in pairwise(turns)]
        return min(gaps_s) >= TIMER_S and max(gaps_s) <= (1.0 + TIMER_JITTER) * min(gaps_s)

    def lives_on_beside(self, first: Turn, second: Turn) -> bool:
        """Whether both replies were gone on with, as in two tabs: neither took the other's place."""
        return self._gone_on_with.keys() >= {first.response_id, second.response_id}


def _asked(turn: Turn) -> tuple[str, ...]:
    """The words of the question."""
    return said(turn.dialogue[turn.asked_at].text) if turn.asked_at is not None else ()


def _last_said(dialogue: Collection[Spoken]) -> tuple[str, ...]:
    """The words of the last user's message."""
    return next((said(s.text) for s in reversed(tuple(dialogue)) if s.role == "user"), ())


def _earlier(turns: list[Turn], later: Turn) -> list[Turn]:
    return turns[: bisect_left(turns, later.started_at, key=lambda t: t.started_at)]
