"""How often each kind of signal is right, fitted against the gold slice; the priors where there is no gold.

Gold is what people said when asked side by side, by design, or as reviewers: `gold`. Functions of a whole
snapshot's rows, whatever their order.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import fsum
from typing import Literal, NamedTuple

import msgspec

from feedback.events import SignalKind
from feedback.grades import (
    CONTINUATION,
    COPY,
    CORRECTION,
    EDIT_P,
    JUDGEMENT,
    OUTCOME,
    RATING,
    REGENERATION,
    REPHRASE,
    THANKS,
    THUMB_UP,
    VOLUNTEERED,
)
from feedback.records import Grade, Pair
from feedback.text import canonical, plain

Tier = Literal["new", "established"]

ESTABLISHED_SIGNALS = 20
"""From so many signals on an account is established."""
PRIOR_STRENGTH = 20.0
"""A prior counts as if it had been seen to hold on this many gold answers."""
GOLD_PER_ACCOUNT = 5.0
"""The gold answers of one account weigh at most this much together, so that nobody owns the ruler."""
DIGITS = 6

PRIORS = {
    SignalKind.THUMB: THUMB_UP.p,
    SignalKind.RATING: RATING[1].p,
    SignalKind.COMMENT: RATING[1].p,
    SignalKind.OUTCOME: OUTCOME[1].p,
    SignalKind.CORRECTION: 1.0 - CORRECTION.p,
    SignalKind.REPHRASE: 1.0 - REPHRASE.p,
    SignalKind.COPY: COPY.p,
    SignalKind.CONTINUATION: CONTINUATION.p,
    SignalKind.THANKS: THANKS.p,
    SignalKind.REGENERATION: REGENERATION.p,
    SignalKind.EDIT: EDIT_P,
    SignalKind.JUDGEMENT: JUDGEMENT.p,
    SignalKind.COMPARISON: VOLUNTEERED.p,
}
"""Probability that the signal points the right way. What is gold is not fitted."""


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """A beta posterior: how often signals of one kind, from users of one tier, agree with gold."""

    kind: SignalKind
    tier: Tier
    prior: float
    agreed: float
    """Gold answers that the signals agreed with, each counted by its confidence."""
    disagreed: float
    mean: float
    """(PRIOR_STRENGTH * prior + agreed) / (PRIOR_STRENGTH + agreed + disagreed)"""


Fit = tuple[Accuracy, ...]


class _Gold(NamedTuple):
    account: str
    lean: float
    """-1 (surely the worse, or bad) to 1 (surely the better, or good)."""
    weight: float


_Reply = tuple[str, str]
"""Prompt digest and wording: rows that share both speak of the same reply."""


class _Ruler(NamedTuple):
    replies: dict[_Reply, list[_Gold]]
    pairs: dict[tuple[_Reply, _Reply], list[_Gold]]
    """Of the first reply against the second; each pair lies here in both orders."""


def fit(grades: Iterable[Grade], pairs: Iterable[Pair]) -> Fit:
    """One posterior for every fitted kind and tier.

    A grade agrees with gold when it likes the better or dislikes the worse reply, a pair when it prefers the
    same one. Gold counts by its confidence, |2p - 1|, and what it says of a reply counts once, however many
    grades that reply got. No account is measured by its own gold.
    """
    graded = sorted(grades, key=lambda g: g.grade_id)
    paired = sorted(pairs, key=lambda p: p.pair_id)
    ruler, tiers = _ruler(graded, paired), tiers_of([*graded, *paired])
    seen: dict[tuple[SignalKind, Tier], list[float]] = defaultdict(list)
    of_reply: dict[tuple[SignalKind, Tier, _Reply], list[float]] = defaultdict(list)
    for g in graded:
        if g.kind in PRIORS and g.p != 0.5:
            side, reply = 1.0 if g.p > 0.5 else -1.0, (g.prompt_digest, plain(g.reply))
            verdict = side * _verdict(ruler.replies.get(reply, ()), g.user)
            of_reply[g.kind, tiers[g.user], reply].append(verdict)
    for (kind, tier, _), verdicts in of_reply.items():
        seen[kind, tier].append(fsum(verdicts) / len(verdicts))
    for p in paired:
        if p.kind in PRIORS and not gold(p):
            seen[p.kind, tiers[p.user]].append(_verdict(ruler.pairs.get(_sides(p), ()), p.user))
    return tuple(
        _posterior(kind, tier, seen[kind, tier]) for kind in sorted(PRIORS) for tier in ("new", "established")
    )


def relabel_grades(grades: Iterable[Grade], accuracies: Fit, tiers: Mapping[str, Tier]) -> list[Grade]:
    """Soft labels as the fit has them; see `soft_label`."""
    mean = {(a.kind, a.tier): a.mean for a in accuracies}
    return [
        msgspec.structs.replace(g, p=soft_label(g.p, PRIORS[g.kind], mean[g.kind, tiers[g.user]]))
        if g.kind in PRIORS
        else g
        for g in grades
    ]


def relabel_pairs(pairs: Iterable[Pair], accuracies: Fit, tiers: Mapping[str, Tier]) -> list[Pair]:
    """As `relabel_grades`, for pairs that conversations show."""
    mean = {(a.kind, a.tier): a.mean for a in accuracies}
    return [
        msgspec.structs.replace(p, p=soft_label(p.p, PRIORS[p.kind], mean[p.kind, tiers[p.user]]))
        if p.kind in PRIORS and not gold(p)
        else p
        for p in pairs
    ]


def gold(pair: Pair) -> bool:
    """Whether it is a ruler for others: a comparison by design, a review, or an operator's label. Volunteered
    ones are not: who picks what to compare, or invents users who do, would own the ruler."""
    return pair.by_design or pair.kind in (SignalKind.LABEL, SignalKind.REVIEW)


def soft_label(p: float, prior: float, mean: float) -> float:
    """The label that a signal of accuracy `prior` got, had its accuracy been `mean`.

        p' - 1/2 = (p - 1/2) (2 mean - 1) / (2 prior - 1)

    It fades to 1/2 for signals that are right no more often than a coin; it never crosses over.
    """
    stretch = max(0.0, 2.0 * mean - 1.0) / (2.0 * prior - 1.0)
    return round(min(1.0, max(0.0, 0.5 + (p - 0.5) * stretch)), DIGITS)


def tiers_of(rows: Iterable[Grade | Pair]) -> dict[str, Tier]:
    """Each account's tier by the number of its grades and pairs."""
    signals = Counter(row.user for row in rows)
    return {user: "established" if n >= ESTABLISHED_SIGNALS else "new" for user, n in signals.items()}


def hash_of(accuracies: Fit) -> str:
    """SHA-256 of the fit; 64 hex digits."""
    return sha256(canonical(msgspec.to_builtins(accuracies))).hexdigest()


def _ruler(grades: Sequence[Grade], pairs: Sequence[Pair]) -> _Ruler:
    """All gold by what it speaks of. Labels are operators'; only comparisons share an account's allowance."""
    labels = [g for g in grades if g.kind is SignalKind.LABEL]
    golden = [p for p in pairs if gold(p)]
    answers = Counter(p.user for p in golden if p.by_design)
    ruler = _Ruler(defaultdict(list), defaultdict(list))
    for g in labels:
        ruler.replies[g.prompt_digest, plain(g.reply)].append(_Gold(g.user, 2.0 * g.p - 1.0, 1.0))
    for p in golden:
        weight = min(1.0, GOLD_PER_ACCOUNT / answers[p.user]) if answers[p.user] else 1.0
        better, worse = _sides(p)
        lean = 2.0 * p.p - 1.0
        for one, other, sign in ((better, worse, 1.0), (worse, better, -1.0)):
            ruler.pairs[one, other].append(_Gold(p.user, sign * lean, weight))
            ruler.replies[one].append(_Gold(p.user, sign * lean, weight))
    return ruler


def _sides(pair: Pair) -> tuple[_Reply, _Reply]:
    return (pair.prompt_digest, plain(pair.chosen)), (pair.prompt_digest, plain(pair.rejected))


def _verdict(known: Iterable[_Gold], user: str) -> float:
    """What others' gold says, -1..1: its weighted sum, of which at most one answer's worth counts."""
    said = fsum(g.lean * g.weight for g in known if g.account != user)
    return min(1.0, max(-1.0, said))


def _posterior(kind: SignalKind, tier: Tier, verdicts: Iterable[float]) -> Accuracy:
    found = sorted(verdicts)
    agreed, disagreed = fsum(v for v in found if v > 0.0), fsum(-v for v in found if v < 0.0)
    mean = (PRIOR_STRENGTH * PRIORS[kind] + agreed) / (PRIOR_STRENGTH + agreed + disagreed)
    return Accuracy(
        kind=kind,
        tier=tier,
        prior=PRIORS[kind],
        agreed=round(agreed, DIGITS),
        disagreed=round(disagreed, DIGITS),
        mean=round(mean, DIGITS),
    )
