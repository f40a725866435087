"""The review queue: which pairs of replies people are asked about, in which order, and on which side. Pure.

An item is two replies of one conversation to one prompt state. Those that nobody answered yet are drawn by
*priority sampling*: item i of size w_i has a lot u_i, uniform in (0, 1] and fixed by its id, and the largest
w_i / u_i comes first. With τ the largest of the others, i was drawn with probability min(1, w_i / τ), and
sums over what was drawn, weighed by its inverse, are unbiased, whenever the raters stop.

    w = share + (1 - share) d        d in [0, 1]: how far the reward ensemble disagrees        share: `random`

Source: Duffield, Lund & Thorup 2007, doi:10.1145/1314690.1314696; disagreement as in arXiv:1706.03741, 2.2.4.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import chain, combinations, islice, takewhile
from math import fsum, inf

import msgspec

from feedback.comparisons import Side, hasty
from feedback.conversations import Conversation, Signal, Turn
from feedback.events import Drawn, SignalKind
from feedback.pairs import comparable
from feedback.text import canonical

REASONS_TO_PASS = ("cannot tell", "not my field", "another language", "personal data", "broken")
"""Why a rater may pass. A fixed list: words of their own might quote the user, and would outlive the user's
erasure."""
MAX_ITEMS_PER_PROMPT = 3
"""Pairs of replies to one prompt state that are worth people's time."""
MAX_REPLIES_PER_PROMPT = 8
"""Replies to one prompt state among which pairs are looked for."""
MAX_PASSES = 3
"""After so many raters passed and none answered, an item is given up."""
KNOWN, GIVEN_UP, UNASKED = "known", "given up", "0"
"""Stages of an item; those between are the number of answers that count."""

Ids = tuple[str, str]
"""Two response ids in order."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One rater's standing answer about an item; `value` is None for a pass."""

    rater: str
    value: float | None
    counts: bool
    """Neither a pass nor faster than anybody reads."""
    side: Side
    """Where `one` stood."""
    drawn: Drawn
    size: float
    threshold: float
    reasons: tuple[str, ...] = ()
    at: datetime


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Two replies to ask about. Holds no words: what a rater is shown is opened when it is shown."""

    one: str
    other: str
    """Response ids in order."""
    users: tuple[str, ...]
    """Whose replies they are: nobody reviews their own."""
    known: float | None = None
    """Probability that `one` is the better one, as operators labelled the pair."""
    answers: tuple[Answer, ...] = ()
    """In order of rater."""

    @property
    def item_id(self) -> str:
        return item_id(self.one, self.other)

    @property
    def lot(self) -> float:
        """u, uniform in (0, 1]."""
        return _uniform("lot", self.one, self.other)

    @property
    def counted(self) -> int:
        """How many raters' answers count."""
        return sum(a.counts for a in self.answers)

    @property
    def stage(self) -> str:
        """What the queue is read by: KNOWN, GIVEN_UP, or the number of answers that count."""
        if self.known is not None:
            return KNOWN
        passes = sum(a.value is None for a in self.answers)
        return GIVEN_UP if passes >= MAX_PASSES and not self.counted else str(self.counted)

    def is_for(self, rater: str) -> bool:
        """Whether this rater can be asked: neither their own replies nor asked before."""
        return rater not in self.users and all(a.rater != rater for a in self.answers)


Scored = tuple[Item, float | None]
"""An item and its disagreement, None while the reward ensemble has not scored it."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How the queue is worked off."""

    raters: int
    """Answers wanted for each item."""
    random: float
    """`share` above, in (0, 1]."""
    calibration: float
    """Share of questions whose answer is known."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """An item for one rater, and why they get it."""

    item: Item
    drawn: Drawn
    size: float = 1.0
    threshold: float = 0.0
    disagreement: float | None = None


def items(conversation: Conversation, signals: Iterable[Signal]) -> list[Item]:
    """What can be asked about a conversation: at most MAX_ITEMS_PER_PROMPT a prompt state.

    Those that somebody answered come first, then by response ids. Nothing that came after a turn withheld
    from learning: clients resend the history, and with it what was withheld.
    """
    by_state: dict[str, list[Turn]] = defaultdict(list)
    for turn in takewhile(lambda turn: turn.learn, conversation.turns):
        if turn.usable:
            by_state[turn.digest].append(turn)
    several = [turns for turns in by_state.values() if len(turns) > 1]
    if not several:
        return []
    answers, labels = _said(signals)
    asked = answers.keys() | labels.keys()
    return [
        Item(
            one=one.response_id,
            other=other.response_id,
            users=tuple(sorted({one.user, other.user})),
            known=labels.get((one.response_id, other.response_id)),
            answers=tuple(
                _answer(s, one, other)
                for s in sorted(answers.get((one.response_id, other.response_id), ()), key=lambda s: s.user)
            ),
        )
        for turns in several
        for one, other in _of_one_state(turns, asked)
    ]


def choose(
    rater: str, waiting: Sequence[Scored], begun: Iterable[Item], done: Iterable[Item], rules: Rules
) -> Question | None:
    """What to ask this rater next; None when there is nothing.

    Items that others began come before new ones, those with the most answers first; now and then, by lot, a
    question whose answer is known takes the place. The same state gives the same question.
    Args: waiting, items nobody answered with their disagreement, None if unknown; begun, with too few answers
    yet; done, with an answer known or enough of them.
    """
    found = _begun(rater, begun) or _sampled(rater, waiting, rules.random)
    if found is None:
        return None
    test = min((i for i in done if i.is_for(rater)), key=lambda i: (i.known is None, i.lot), default=None)
    if test and _uniform("calibration", rater, test.item_id, found.item.item_id) <= rules.calibration:
        return Question(item=test, drawn=Drawn.CALIBRATION)
    return found


def sizes(disagreements: Sequence[float | None], random: float) -> list[float]:
    """w of each item; one that was not scored counts as an average one."""
    scored = [d for d in disagreements if d is not None]
    usual = fsum(scored) / len(scored) if scored else 0.0
    return [random + (1.0 - random) * (usual if d is None else d) for d in disagreements]


def propensities(answered: Iterable[Item]) -> dict[str, float]:
    """By item id, the probability with which an item has been drawn by now; without those that were not.

        p_i = min(1, w_i / τ)        τ: the smallest threshold from i's own drawing on

    since whatever is drawn later would have let i in as well.
    """
    draws = [
        (min(sampled, key=lambda a: a.at), item.item_id)
        for item in answered
        if (sampled := [a for a in item.answers if a.drawn is Drawn.SAMPLED])
    ]
    found: dict[str, float] = {}
    threshold = inf
    for draw, name in sorted(draws, key=lambda d: d[0].at, reverse=True):
        threshold = min(threshold, draw.threshold)
        found[name] = min(1.0, draw.size / threshold) if threshold else 1.0
    return found


def side_of_one(item: Item, rater: str, secret: bytes) -> Side:
    """Drawn for each rater, and the same however often they reload."""
    return "left" if _uniform("side", item.item_id, rater, secret.hex()) <= 0.5 else "right"


def item_id(one: str, other: str) -> str:
    """Names two replies, whichever comes first."""
    return f"item-{blake2b(canonical(sorted((one, other))), digest_size=12).hexdigest()}"


def _begun(rater: str, begun: Iterable[Item]) -> Question | None:
    mine = [item for item in begun if item.is_for(rater)]
    found = min(mine, key=lambda i: (-i.counted, i.lot), default=None)
    return None if found is None else Question(item=found, drawn=Drawn.SHARED)


def _sampled(rater: str, waiting: Sequence[Scored], random: float) -> Question | None:
    weighed = zip(waiting, sizes([d for _, d in waiting], random), strict=True)
    ranked = sorted(
        ((size / item.lot, size, item, d) for (item, d), size in weighed if item.is_for(rater)),
        key=lambda found: (-found[0], found[2].item_id),
    )
    if not ranked:
        return None
    _, size, item, disagreement = ranked[0]
    return Question(
        item=item,
        drawn=Drawn.SAMPLED,
        size=size,
        threshold=ranked[1][0] if len(ranked) > 1 else 0.0,
        disagreement=disagreement,
    )


def _said(signals: Iterable[Signal]) -> tuple[dict[Ids, list[Signal]], dict[Ids, float]]:
    """Reviews, and the mean of operators' labels, by the pair they speak of."""
    reviews: dict[Ids, list[Signal]] = defaultdict(list)
    labels: dict[Ids, list[float]] = defaultdict(list)
    for signal in signals:
        ids = _ids(signal)
        if signal.kind is SignalKind.REVIEW:
            reviews[ids].append(signal)
        elif signal.kind is SignalKind.LABEL and signal.other_response_id and signal.value is not None:
            labels[ids].append(signal.value if ids[0] == signal.response_id else 1.0 - signal.value)
    return reviews, {ids: fsum(values) / len(values) for ids, values in labels.items()}


def _ids(signal: Signal) -> Ids:
    one, other = sorted((signal.response_id, signal.other_response_id))
    return one, other


def _of_one_state(turns: Sequence[Turn], asked: Collection[Ids]) -> list[tuple[Turn, Turn]]:
    by_id = {t.response_id: t for t in sorted(turns, key=lambda t: t.response_id)}
    known = ((one, other) for one, other in sorted(asked) if one in by_id and other in by_id)
    new = combinations(islice(by_id, MAX_REPLIES_PER_PROMPT), 2)
    pairs = ((by_id[one], by_id[other]) for one, other in dict.fromkeys(chain(known, new)))
    return list(islice((pair for pair in pairs if comparable(*pair)), MAX_ITEMS_PER_PROMPT))


def _answer(signal: Signal, one: Turn, other: Turn) -> Answer:
    shown = signal.review
    turned = signal.response_id != one.response_id
    value = None if signal.value is None else 1.0 - signal.value if turned else signal.value
    side: Side = "left" if shown is None or (shown.side == "left") != turned else "right"
    return Answer(
        rater=signal.user,
        value=value,
        counts=value is not None and not hasty(signal, one, other),
        side=side,
        drawn=Drawn.SHARED if shown is None else shown.drawn,
        size=1.0 if shown is None else shown.size,
        threshold=0.0 if shown is None else shown.threshold,
        reasons=signal.reasons,
        at=signal.at,
    )


def _uniform(what: str, *names: str) -> float:
    """In (0, 1], fixed by the names."""
    digest = blake2b(canonical([what, *names]), digest_size=8, person=b"review").digest()
    return (int.from_bytes(digest, "big") + 1) / 2**64
