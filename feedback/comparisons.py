"""Comparisons by design: what people said of two replies that the gateway put side by side. Pure.

Sides are drawn by lot, so that a preference for a place is no preference for a reply; what else could have
decided (place, length, speed) is kept, so that it can be measured.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from feedback.conversations import Conversation, Signal, Turn
from feedback.events import Draw, SignalKind
from feedback.intervals import Z_TWO_SIDED_95, wilson
from feedback.text import plain

FASTEST_READING_WORDS_PER_S = 10.0
"""Nobody has read a reply faster. People read 4 words a second (238 a minute: Brysbaert 2019,
doi:10.1016/j.jml.2019.104047), so this lets them leave more than half of it unread."""
TOO_FAST = "too fast to have been read"

Side = Literal["left", "right"]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One answer about two replies side by side."""

    comparison_id: str
    """Id of the signal's event."""
    left: str
    right: str
    """Response ids."""
    left_better: float
    """Probability that the left reply is the better one, as stated."""
    longer: Side | None
    """The one with more words."""
    sooner: Side | None
    """The one that was whole first, counted from the request."""
    asked_for: Side
    """The one that the traffic split gave, which a stream shows first."""
    draw: Draw
    """Where the other one came from."""
    decided_s: float
    """From showing both to the answer."""
    dropped: str = ""
    """Why it counts for nothing; empty when it counts."""


class Wins(msgspec.Struct, frozen=True):
    """How often one of the two won, of the answers that preferred either; 1/2 if it made no difference."""

    won: int
    of: int

    @property
    def share(self) -> float:
        return self.won / self.of if self.of else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's."""
        return wilson(self.share, self.of, Z_TWO_SIDED_95)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """All comparisons by design, and what else than the better reply could have decided them."""

    counted: int = 0
    ties: int = 0
    """Of those, how many preferred neither."""
    dropped: dict[str, int] = {}
    """Left out, by reason."""
    wins: dict[str, Wins] = {}
    """Of `left`, `longer`, `sooner` and `asked for`."""


def by_design(conversation: Conversation, signal: Signal) -> Comparison | None:
    """The comparison as it was shown; None when the gateway did not offer these two to this user."""
    one, other = conversation.turn(signal.response_id), conversation.turn(signal.other_response_id)
    if signal.kind is not SignalKind.COMPARISON or signal.value is None or one is None or other is None:
        return None
    here, there = one.exposure, other.exposure
    if here is None or there is None or signal.user != one.user:
        return None
    if (here.partner, there.partner) != (other.response_id, one.response_id):
        return None
    on_left = here.side == "left"
    left, right = (one, other) if on_left else (other, one)
    asked_for, drawn = (one, there) if here.draw is Draw.ASSIGNED else (other, here)
    decided_s = (signal.at - here.shown_at).total_seconds()
    return Comparison(
        comparison_id=signal.event_ids[0],
        left=left.response_id,
        right=right.response_id,
        left_better=signal.value if on_left else 1.0 - signal.value,
        longer=_more(_words(left.reply), _words(right.reply)),
        sooner=_more(_latency_s(right), _latency_s(left)),
        asked_for="left" if asked_for is left else "right",
        draw=drawn.draw,
        decided_s=decided_s,
        dropped=_too_fast(right if asked_for is left else left, decided_s),
    )


def compared(conversation: Conversation, signals: Iterable[Signal]) -> list[Comparison]:
    """Every answer about an offered pair, also those that do not count."""
    found = (by_design(conversation, signal) for signal in signals)
    return [comparison for comparison in found if comparison is not None]


def hasty(signal: Signal, one: Turn, other: Turn) -> bool:
    """Whether a review came before anybody can have read both replies."""
    if signal.review is None:
        return False
    decided_s = (signal.at - signal.review.shown_at).total_seconds()
    return decided_s < (_words(one.reply) + _words(other.reply)) / FASTEST_READING_WORDS_PER_S


def tally(comparisons: Iterable[Comparison]) -> Tally:
    """Does not depend on order."""
    everything = list(comparisons)
    counted = [c for c in everything if not c.dropped]
    reasons = sorted(c.dropped for c in everything if c.dropped)
    return Tally(
        counted=len(counted),
        ties=sum(c.left_better == 0.5 for c in counted),
        dropped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        wins={
            "left": _wins(counted, lambda c: "left"),
            "longer": _wins(counted, lambda c: c.longer),
            "sooner": _wins(counted, lambda c: c.sooner),
            "asked for": _wins(counted, lambda c: c.asked_for),
        },
    )


def _wins(comparisons: Iterable[Comparison], which: Callable[[Comparison], Side | None]) -> Wins:
    decided = [(which(c), c.left_better) for c in comparisons if c.left_better != 0.5]
    told_apart = [(one, "left" if left_better > 0.5 else "right") for one, left_better in decided if one]
    return Wins(sum(one == winner for one, winner in told_apart), len(told_apart))


def _too_fast(second: Turn, decided_s: float) -> str:
    """The reason if the second reply cannot have been read; the first may have been, while it came."""
    return TOO_FAST if decided_s < _words(second.reply) / FASTEST_READING_WORDS_PER_S else ""


def _more(left: float, right: float) -> Side | None:
    if left == right:
        return None
    return "left" if left > right else "right"


def _words(text: str) -> int:
    return len(plain(text).split())


def _latency_s(turn: Turn) -> float:
    return (turn.ended_at - turn.started_at).total_seconds()
