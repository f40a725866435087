"""`ratchet review`: how far the queue is, how far raters agree, and how each of them answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import fsum

import msgspec
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback import consensus, database, review, review_queue, store
from feedback.comparisons import Wins
from feedback.consensus import Agreement, Reliability
from feedback.events import BOTH_BAD, SignalKind
from feedback.review import Answer, Item


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
        *_, report = consensus.settle(store.derived_rows(tx, "pair", SignalKind.REVIEW))
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


def raters(state: sa.Engine) -> list[Rater]:
    """In order of name. Raises: StateUnavailable."""
    with database.reading(state) as tx:
        items = list(store.derived_rows(tx, "item"))
        others = list(store.derived_rows(tx, "pair", SignalKind.LABEL))
        *_, report = consensus.settle(store.derived_rows(tx, "pair", SignalKind.REVIEW), others)
    reliable = {r.rater: r for r in report.raters}
    names = sorted({a.rater for item in items for a in item.answers})
    return [_rater(name, items, reliable.get(name)) for name in names]


def _rater(name: str, items: Iterable[Item], reliability: Reliability | None) -> Rater:
    mine = [(item, a) for item in items for a in item.answers if a.rater == name]
    on_known = [
        (item.known, a.value)
        for item, a in mine
        if a.counts and a.value is not None and item.known is not None and 0.5 not in (item.known, a.value)
    ]
    return Rater(
        rater=name,
        answers=sum(a.counts for _, a in mine),
        too_fast=_too_fast(a for _, a in mine),
        passes=sum(a.value is None for _, a in mine),
        reliability=reliability,
        known=Wins(sum((known > 0.5) == (value > 0.5) for known, value in on_known), len(on_known)),
    )


def _too_fast(answers: Iterable[Answer]) -> int:
    return sum(a.value is not None and not a.counts for a in answers)


def _left(counted: Iterable[Answer]) -> Wins:
    preferred = [
        (a.value > 0.5) == (a.side == "left") for a in counted if a.value is not None and a.value != 0.5
    ]
    return Wins(sum(preferred), len(preferred))


def _estimate(items: Iterable[Item], is_so: Callable[[Answer], bool]) -> Estimate:
    """The mean over items of the share of answers that are so, plain and by Hájek's estimator.

    Σ (y_i / p_i) / Σ (1 / p_i)        p: `review.propensities`
    """
    answered = [item for item in items if item.counted]
    propensity = review.propensities(answered)
    share = {
        item.item_id: sum(is_so(a) for a in item.answers if a.counts) / item.counted
        for item in answered
        if item.item_id in propensity
    }
    weight = {name: 1.0 / propensity[name] for name in share}
    total = fsum(weight.values())
    return Estimate(
        among_answered=fsum(share.values()) / len(share) if share else 0.0,
        among_all=fsum(share[name] * weight[name] for name in share) / total if share else 0.0,
    )


def print_status(found: Status, console: Console) -> None:
    facts = Table(title="The review queue", show_header=False)
    for name, value in (
        ("waiting", f"{found.waiting} pairs nobody answered yet, {found.scored} of them scored"),
        ("begun", f"{found.begun} that want more answers"),
        ("done", f"{found.done}"),
        ("given up", f"{found.given_up}, because everybody passed"),
        ("answers", f"{found.answers} that count, {found.too_fast} too fast to have been read"),
        ("passed", ", ".join(f"{n} {reason}" for reason, n in found.passes.items()) or "never"),
        ("left preferred", _wins(found.left)),
        ("no difference", _shares(found.ties) if found.answers else "–"),
        ("both bad", _shares(found.both_bad) if found.answers else "–"),
    ):
        facts.add_row(name, Text(value))
    console.print(facts)
    if found.agreement:
        console.print(agreement(found.agreement))


def agreement(found: Sequence[Agreement]) -> Table:
    table = Table("dimension", "Krippendorff's alpha", "95 % interval", "pairs", "answers", title="Agreement")
    table.caption = "pairs: those with two answers or more"
    for a in found:
        if a.alpha is None or a.low is None or a.high is None:
            said, interval = "–", "–"
        else:
            said, interval = f"{a.alpha:.3f}", f"{a.low:.3f} to {a.high:.3f}"
        table.add_row(a.dimension, said, interval, f"{a.items}", f"{a.answers}")
    return table


def print_raters(found: Sequence[Rater], console: Console) -> None:
    table = Table(
        "rater", "answers", "passes", "too fast", "right", "contrary", "splits ties", "known answers"
    )
    for r in found:
        by = r.reliability
        habits = (
            ("–", "–", "–") if by is None else (f"{by.right:.2f}", f"{by.opposite:.2f}", f"{by.split:.2f}")
        )
        table.add_row(r.rater, f"{r.answers}", f"{r.passes}", f"{r.too_fast}", *habits, _wins(r.known))
    console.print(table)


def _wins(found: Wins) -> str:
    low, high = found.interval
    return f"{found.share:.2f} [{low:.2f}, {high:.2f}] of {found.of}" if found.of else "–"


def _shares(found: Estimate) -> str:
    return f"{found.among_answered:.1%} of answered pairs; estimated {found.among_all:.1%} of all"
