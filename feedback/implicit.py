"""What the traffic itself says: the OpenAI protocol resends the history, so it shows what became of a reply.

Reads one conversation and returns signals; judges nothing (`grades`, `pairs`). Precision goes before recall:
whatever a client, a network or a second user could have done without anybody disliking a reply is no signal.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise

from feedback.conversations import Conversation, Signal, Spoken, Turn
from feedback.events import IdentitySource, SignalKind
from feedback.text import content_words, distance, overlap, plain

REGENERATION_HORIZON_S = 3600.0
"""The same history asked again later than this is a new visit."""
MAX_EDIT_DISTANCE = 0.6
"""A message that shares less with the reply is a summary or somebody else's text, not an edit of it."""
MIN_EDIT_DISTANCE = 0.02
REPHRASE_OVERLAP = 0.5
"""Two questions are one rephrased when they share more than this of their content words."""
REWRITING_CLIENT_REPLIES = 3
"""From so many resent replies on, a client that altered more than half of them alters them by itself."""

_POLITE_NO = re.compile(
    r"^(no|nope|nah)\W+(thanks|thank you|problem|worries|need|nothing|more|further"
    r"|that'?s (all|it|fine|great|good|ok|okay|perfect|everything)|that is (all|it|fine|great|good|perfect)"
    r"|i'?m (good|fine|done|all set)|it'?s (fine|ok|okay|great|good))",
    re.IGNORECASE,
)
_OBJECTION = re.compile(
    r"\b(that'?s|that is|that was|this is|it'?s|it is|you'?re|you are)( just| still| simply| completely)?"
    r" (wrong|incorrect|not (what|right|correct|true|it)\b)"
    r"|\bnot what i (asked|meant|wanted|said|need)"
    r"|\b(that|this|it|your (answer|reply|suggestion))( still)? (did|does)(n'?t| not) (work|help|answer)"
    r"|\byou got (me|it|that) wrong"
    r"|\b(that'?s|that is|that was|this is|it'?s|it is)( far| much| way)? too"
    r" (long|short|wordy|verbose|vague|general|generic|complicated|technical|rude|harsh)\b"
    r"|^(please )?(be|keep it|make it)( a bit| more| less)*"
    r" (brief|short|shorter|concise|specific|friendly|friendlier|polite|formal|simple|simpler)\b"
    r"|\byou (misunderstood|misread|didn'?t (answer|understand|read)|did not (answer|understand|read))"
    r"|^(no\W+|nope\W+|actually\W+|sorry\W+)?(i|what i) (meant|mean|was asking|asked|said)\b"
    r"|^(wrong|incorrect)\b",
    re.IGNORECASE,
)
_BARE_NO = re.compile(r"^(no|nope|nah)\s*[,.!:;-]+\s*\w+", re.IGNORECASE)


def infer(conversation: Conversation, *, retry_window_s: float = 2.0) -> list[Signal]:
    """Every signal the traffic shows.

    Args: retry_window_s, an identical request sooner after the reply's end is the network's, not the user's.
    """
    served = _Served(conversation)
    return [
        *_regenerations(conversation, retry_window_s),
        *_reactions(conversation, served),
        *_edits(conversation, served),
    ]


def _regenerations(conversation: Conversation, retry_window_s: float) -> Iterator[Signal]:
    by_state: dict[str, list[Turn]] = defaultdict(list)
    for turn in conversation.turns:
        if turn.complete:
            by_state[turn.digest].append(turn)
    for turns in by_state.values():
        for first, second in pairwise(turns):
            if _asked_again(first, second, retry_window_s):
                yield Signal(
                    kind=SignalKind.REGENERATION,
                    response_id=first.response_id,
                    other_response_id=second.response_id,
                    user=second.user,
                    at=second.started_at,
                    event_ids=(first.event_id, second.event_id),
                    inferred=True,
                )


def _asked_again(first: Turn, second: Turn, retry_window_s: float) -> bool:
    """Whether one person, having had the first reply, wanted another."""
    pause_s = (second.started_at - first.ended_at).total_seconds()
    shared_opening = IdentitySource.HISTORY in (first.identity, second.identity) and not any(
        spoken.role == "assistant" for spoken in second.dialogue
    )
    return (
        retry_window_s <= pause_s <= REGENERATION_HORIZON_S
        and first.user == second.user
        and not shared_opening
        and first.learn
        and second.learn
    )


def _reactions(conversation: Conversation, served: "_Served") -> Iterator[Signal]:
    """What the next message made of a reply: corrected it, asked again in other words, or went on."""
    reacted: set[str] = set()
    for turn in conversation.turns:
        if not turn.learn:
            continue
        for question, answer, following in zip(
            turn.dialogue, turn.dialogue[1:], turn.dialogue[2:], strict=False
        ):
            if (question.role, answer.role, following.role) != ("user", "assistant", "user"):
                continue
            source = served.as_resent(answer, turn)
            if source is None or source.response_id in reacted:
                continue
            reacted.add(source.response_id)
            yield Signal(
                kind=reaction(question.text, answer.text, following.text),
                response_id=source.response_id,
                user=turn.user,
                at=turn.started_at,
                event_ids=(source.event_id, turn.event_id),
                inferred=True,
            )


def reaction(question: str, answer: str, following: str) -> SignalKind:
    """What a user's message says of the answer before it."""
    if _corrects(answer, plain(following)):
        return SignalKind.CORRECTION
    return SignalKind.REPHRASE if _rephrases(question, following) else SignalKind.CONTINUATION


def _corrects(answer: str, following: str) -> bool:
    if _POLITE_NO.match(following):
        return False
    if _OBJECTION.search(following[:200]):
        return True
    answers_a_question = plain(answer).endswith("?")
    return bool(_BARE_NO.match(following)) and not answers_a_question


def _rephrases(question: str, following: str) -> bool:
    """Whether it asks the same thing; the same words about another number are another question."""
    before, after = content_words(question), content_words(following)
    figures_before = {w for w in before if any(c.isdigit() for c in w)}
    figures_after = {w for w in after if any(c.isdigit() for c in w)}
    another_figure = bool(figures_before) and bool(figures_after) and figures_before != figures_after
    return len(before & after) >= 2 and overlap(before, after) > REPHRASE_OVERLAP and not another_figure


def _edits(conversation: Conversation, served: "_Served") -> list[Signal]:
    """Replies that came back in other words. The last wording of each counts.

    People edit the reply before them; a request that alters an older one was put together by a program.
    """
    altered: dict[tuple[str, str], bool] = {}
    edits: dict[str, Signal] = {}
    for turn in conversation.turns:
        resent = [s for s in turn.dialogue if s.role == "assistant" and s.comparable]
        for spoken in resent:
            place = (spoken.thread, plain(spoken.text))
            if place in altered or not served.anything(spoken, turn):
                continue
            altered[place] = served.as_resent(spoken, turn) is None
            newest = spoken is resent[-1]
            if altered[place] and newest and turn.learn and (edit := _edit(spoken, served, turn)):
                edits[edit.response_id] = edit
    return [] if _rewrites_by_itself(altered.values()) else list(edits.values())


def _rewrites_by_itself(altered: Collection[bool]) -> bool:
    """Whether a client alters so many of the replies it resends that no person can be behind it."""
    return len(altered) >= REWRITING_CLIENT_REPLIES and 2 * sum(altered) > len(altered)


def _edit(spoken: Spoken, served: "_Served", turn: Turn) -> Signal | None:
    original = min(served.before(spoken, turn), key=lambda t: (distance(t.reply, spoken.text), t.event_id))
    apart = distance(original.reply, spoken.text)
    cut_by_client = plain(spoken.text).rstrip(". ") in plain(original.reply)
    if cut_by_client or not original.usable or not MIN_EDIT_DISTANCE <= apart <= MAX_EDIT_DISTANCE:
        return None
    return Signal(
        kind=SignalKind.EDIT,
        response_id=original.response_id,
        user=turn.user,
        at=turn.started_at,
        event_ids=(original.event_id, turn.event_id),
        inferred=True,
        text=spoken.text,
    )


class _Served:
    """A conversation's replies by their place in the dialogue; turns come in order of time."""

    def __init__(self, conversation: Conversation) -> None:
        self._by_thread: dict[str, list[Turn]] = defaultdict(list)
        self._by_wording: dict[tuple[str, str], list[Turn]] = defaultdict(list)
        for turn in conversation.turns:
            self._by_thread[turn.thread].append(turn)
            self._by_wording[turn.thread, plain(turn.reply)].append(turn)

    def anything(self, place: Spoken, later: Turn) -> bool:
        """Whether any reply had been served at this place."""
        return any(t.started_at < later.started_at for t in self._by_thread.get(place.thread, ())[:1])

    def before(self, place: Spoken, later: Turn) -> list[Turn]:
        return [t for t in self._by_thread.get(place.thread, ()) if t.started_at < later.started_at]

    def as_resent(self, spoken: Spoken, later: Turn) -> Turn | None:
        """The latest turn before `later` that served this wording at this place."""
        same = self._by_wording.get((spoken.thread, plain(spoken.text)), ())
        at = bisect_left(same, later.started_at, key=lambda t: t.started_at)
        return same[at - 1] if at else None
