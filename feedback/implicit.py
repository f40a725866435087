"""What the traffic itself says: the OpenAI protocol resends the history, so it shows what became of a reply.

Reads one conversation and returns signals; judges nothing (`grades`, `pairs`), and leaves what a message says
to `reactions`. Precision goes before recall: whatever a client, a network or a second user could have done
without anybody disliking a reply is no signal.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise

from feedback.conversations import Conversation, Signal, Spoken, Turn
from feedback.events import IdentitySource, SignalKind
from feedback.reactions import reaction
from feedback.text import distance, plain

REGENERATION_HORIZON_S = 3600.0
"""The same history asked again later than this is a new visit."""
MAX_EDIT_DISTANCE = 0.6
"""A message that shares less with the reply is a summary or somebody else's text, not an edit of it."""
MIN_EDIT_DISTANCE = 0.02
"""An edit that changes less is a signal, but neither a pair nor a demonstration."""
REWRITING_CLIENT_REPLIES = 3
"""From so many resent replies on, a client that altered all of them alters them by itself."""
TYPING_S = 1.0
"""Nobody answers a whole reply sooner: such a request is a program's, for a title or for suggestions."""
UNMISTAKABLE_WORDS = 5
"""A reply with so many words is known by its wording, wherever a shortened history puts it."""

_LETTERS = re.compile(r"[^\W_]+")
_FENCE = re.compile(r"```\w*")
_LIST_NUMBER = re.compile(r"(?:^|(?<=[.:!?] ))\d{1,2}[.)] ")
_ELLIPSIS = re.compile(r"\s*[\[(]?\s*\.\.\.\s*[\])]?\s*")


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
            by_question[turn.question, turn.instructions].append(turn)
    for turns in by_question.values():
        for at, (first, second) in enumerate(pairwise(turns)):
            if not _asked_again(first, second, retry_window_s) or served.in_two_tabs(first, second):
                continue
            instead = next((t for t in turns[at + 1 :] if t.complete), second)
            yield _inferred(SignalKind.REGENERATION, first, second, other=instead.response_id)


def _asked_again(first: Turn, second: Turn, retry_window_s: float) -> bool:
    """Whether one person, having had the first reply, wanted another."""
    pause_s = (second.started_at - first.ended_at).total_seconds()
    return (
        first.complete
        and retry_window_s <= pause_s <= REGENERATION_HORIZON_S
        and first.user == second.user
        and not _shared_opening(first, second)
        and first.exposure is None  # of two side by side nobody knows which one did not please
        and first.learn
        and second.learn
    )


def _shared_opening(first: Turn, second: Turn) -> bool:
    """Whether two strangers may be behind it: nothing but a first question tells them apart."""
    return IdentitySource.HISTORY in (first.identity, second.identity) and not any(
        spoken.role == "assistant" for spoken in second.dialogue
    )


def _branches(served: "_Served") -> Iterator[Signal]:
    """Replies whose question was asked differently afterwards. An opening may be a new chat: left out."""
    by_place: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    for turn in served.turns:
        asked = next((s for s in reversed(turn.dialogue) if s.role == "user"), None)
        opening = all(s.role != "assistant" for s in turn.dialogue)
        if asked and turn.reply and turn.complete and not opening and not served.by_a_program(turn):
            by_place[asked.thread, turn.user].append(turn)
    for turns in by_place.values():
        for first, second in pairwise(turns):
            asked_otherwise = first.question != second.question and first.ended_at <= second.started_at
            if asked_otherwise and first.learn and second.learn and not served.lives_on_beside(first, second):
                yield _inferred(SignalKind.BRANCH, first, second)


def _reactions(served: "_Served", edited: Collection[str]) -> Iterator[Signal]:
    """What the next message made of a reply. To one that was edited it says nothing: it follows the edit."""
    reacted = set(edited)
    for turn in served.turns:
        if not turn.learn or served.by_a_program(turn):
            continue
        question = ""
        for answer, following in pairwise(turn.dialogue):
            question = answer.text if answer.role == "user" else question
            if (answer.role, following.role) != ("assistant", "user") or not question:
                continue
            source = served.source(answer, turn)
            if source is None or source.response_id in reacted:
                continue
            reacted.add(source.response_id)
            yield _inferred(reaction(question, source.reply, following.text), source, turn)


def _edits(served: "_Served") -> list[Signal]:
    """Replies that came back in other words. The last wording of each counts.

    People edit the reply before them; a request that alters an older one was put together by a program.
    """
    altered: dict[tuple[str, str], bool] = {}
    edits: dict[str, Signal] = {}
    added: set[str] = set()
    for turn in served.turns:
        resent = [s for s in turn.dialogue if s.role == "assistant" and s.comparable]
        for spoken in resent:
            place = (spoken.thread, plain(spoken.text))
            if place in altered or not served.before(spoken, turn):
                continue
            altered[place] = served.as_resent(spoken, turn) is None
            newest = spoken is resent[-1]
            if altered[place] and newest and turn.learn and (edit := _edit(spoken, served, turn)):
                edits[edit.response_id] = edit
                if _only_adds(spoken, served, turn):
                    added.add(edit.response_id)
    if _rewrites_by_itself(altered.values()):
        return []
    one_client = all(turn.identity is not IdentitySource.HISTORY for turn in served.turns)
    faithful = one_client and not all(altered.values())
    return [edit for edit in edits.values() if faithful or edit.response_id not in added]


def _rewrites_by_itself(altered: Collection[bool]) -> bool:
    """Whether a client altered every one of many replies; a person lets some stand."""
    return len(altered) >= REWRITING_CLIENT_REPLIES and all(altered)


def _edit(spoken: Spoken, served: "_Served", turn: Turn) -> Signal | None:
    original = served.nearest(spoken, turn)
    same_words = _letters(original.reply) == _letters(spoken.text)
    if same_words or not (original.learn and original.complete) or _cut(original.reply, spoken.text):
        return None
    if distance(original.reply, spoken.text) > MAX_EDIT_DISTANCE:
        return None
    return _inferred(SignalKind.EDIT, original, turn, text=spoken.text)


def _letters(text: str) -> str:
    """What a change of meaning changes: no punctuation, no language of a code fence, no numbers of a list."""
    return "".join(_LETTERS.findall(_LIST_NUMBER.sub("", plain(_FENCE.sub(" ", text))))).casefold()


def _cut(reply: str, resent: str) -> bool:
    """Whether a client shortened it: pieces joined by an ellipsis, or one that ends in mid-sentence."""
    whole, left = plain(reply), plain(resent)
    pieces = _ELLIPSIS.split(left)
    if any(piece.rstrip(". ") not in whole for piece in pieces):
        return False
    before, _, after = whole.partition(left)
    at_sentences = (
        left in whole and (not before or before.rstrip()[-1] in ".!?:") and (not after or left[-1] in ".!?:")
    )
    return len(pieces) > 1 or not at_sentences


def _only_adds(spoken: Spoken, served: "_Served", turn: Turn) -> bool:
    """Whether all it does is put something under the reply, as footers do."""
    return _letters(spoken.text).startswith(_letters(served.nearest(spoken, turn).reply))


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
        self._by_wording: dict[tuple[str, str], list[Turn]] = defaultdict(list)
        self._anywhere: dict[str, list[Turn]] = defaultdict(list)
        for turn in conversation.turns:
            if turn.reply:
                wording = plain(turn.reply)
                self._by_thread[turn.thread].append(turn)
                self._by_wording[turn.thread, wording].append(turn)
                self._anywhere[wording].append(turn)
        self._resent: dict[str, Turn] = {}
        for turn in conversation.turns:
            newest = _newest_reply(turn)
            source = newest and self.as_resent(newest, turn)
            if source:
                self._resent.setdefault(turn.event_id, source)
        self._gone_on_with = {
            source.response_id
            for turn in conversation.turns
            if (source := self._resent.get(turn.event_id)) and not self.by_a_program(turn)
        }

    def before(self, place: Spoken, later: Turn) -> list[Turn]:
        """What had been served at this place."""
        return _earlier(self._by_thread.get(place.thread, []), later)

    def nearest(self, place: Spoken, later: Turn) -> Turn:
        """The reply served at this place that is most like what came back."""
        return min(self.before(place, later), key=lambda t: (distance(t.reply, place.text), t.event_id))

    def as_resent(self, spoken: Spoken, later: Turn) -> Turn | None:
        """The latest turn before `later` that served this wording, at this place if it can be told."""
        wording = plain(spoken.text)
        here = _earlier(self._by_wording.get((spoken.thread, wording), []), later)
        if not here and len(wording.split()) >= UNMISTAKABLE_WORDS:
            here = _earlier(self._anywhere.get(wording, []), later)
        return here[-1] if here else None

    def source(self, spoken: Spoken, later: Turn) -> Turn | None:
        """The turn that served this reply, although a client may have cut or decorated it since."""
        if found := self.as_resent(spoken, later):
            return found
        here = self.before(spoken, later)
        return here[-1] if here else None

    def by_a_program(self, turn: Turn) -> bool:
        """Whether the request came sooner after the reply that it resends than anybody types."""
        source = self._resent.get(turn.event_id)
        return source is not None and (turn.started_at - source.ended_at).total_seconds() < self._typing_s

    def in_two_tabs(self, first: Turn, second: Turn) -> bool:
        """Whether the same was asked in two chats. An opening that was gone on with was not asked again."""
        named = IdentitySource.EXPLICIT in (first.identity, second.identity)
        opening = all(spoken.role != "assistant" for spoken in second.dialogue)
        kept = not named and opening and first.response_id in self._gone_on_with
        return kept or self.lives_on_beside(first, second)

    def lives_on_beside(self, first: Turn, second: Turn) -> bool:
        """Whether both replies were gone on with, as in two tabs: neither took the other's place."""
        return {first.response_id, second.response_id} <= self._gone_on_with


def _newest_reply(turn: Turn) -> Spoken | None:
    return next((s for s in reversed(turn.dialogue) if s.role == "assistant" and s.comparable), None)


def _earlier(turns: list[Turn], later: Turn) -> list[Turn]:
    return turns[: bisect_left(turns, later.started_at, key=lambda t: t.started_at)]
