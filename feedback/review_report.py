"""`ratchet review`: how far the queue is, how far raters agree, and how each of them answers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import fsum

import msgspec
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback import consensus, database, review, review_queue, store
from feedback.comparisons import Wins
from feedback.consensus import Agreement, Reliability
from feedback.events import SignalKind
from feedback.review import BOTH_BAD, Answer, Item


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A share of answered pairs, and of all pairs."""

    among_answered: float
    among_all: float
    """Each pair weighed by the inverse of the probability with which it was drawn."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The queue as a whole."""

    waiting: int
    begun: int
    done: int
    given_up: int
    scored: int
    """Waiting items that the reward ensemble has scored; the others count as average ones."""
    answers: int
    """That count."""
    too_fast: int
    passes: dict[str, int]
    """By reason."""
    left: Wins
    """Of the answers that prefer one: how often it was the left."""
    ties: Estimate
    both_bad: Estimate
    agreement: tuple[Agreement, ...]


class Rater(msgspec.Struct, frozen=True, kw_only=True):
    """How one rater works."""

    rater: str
    answers: int
    too_fast: int
    passes: int
    reliability: Reliability | None
    """None while no answer counts."""
    known: Wins
    """Of the answers about pairs that operators labelled, ties aside: how many say what the label says."""


def status(state: sa.Engine, wanted: int) -> Status:
    """Args: wanted, answers for each item. Raises: StateUnavailable."""
    with database.reading(state) as tx:
        items = list(store.derived_rows(tx, "item"))
        lengths = review_queue.lengths(tx, wanted)
        scored = store.disagreements(tx, [i.item_id for i in items if i.stage == review.UNASKED])
        _, report = consensus.settle(store.derived_rows(tx, "pair", SignalKind.REVIEW))
    answers = [a for item in items for a in item.answers]
    counted = [a for a in answers if a.counts]
    return Status(
        waiting=lengths.waiting,
        begun=lengths.begun,
        done=lengths.done,
        given_up=lengths.given_up,
        scored=len(scored),
        answers=len(counted),
        too_fast=_too_fast(answers),
        passes=dict(sorted(Counter(a.reasons[0] for a in answers if a.value is None).items())),
        left=_left(counted),
        ties=_estimate(items, lambda a: a.value == 0.5),
        both_bad=_estimate(items, lambda a: BOTH_BAD in a.reasons),
        agreement=report.agreement,
    )
