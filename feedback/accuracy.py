"""How often each kind of signal is right, fitted against the gold slice; the priors where there is no gold.

Gold is what people said when asked side by side, by design, or as reviewers: `gold`. It tells which of two
replies is better, not whether either is good. So a reply is taken to be good with probability π, the base
rate, what a signal says of it to be true with probability a, and gold to prefer the good one, or either of
two alike:

    P(gold prefers the reply | a signal likes it)    = 1/2 + (a - π) / 2
    P(gold prefers the other | a signal dislikes it) = 1/2 + (a - (1 - π)) / 2

Likes and dislikes together tell a from π: gold's mean verdict, -1 to 1, on what is liked exceeds that on what
is disliked by 2a - 1, whatever π is and however often people press up by habit. That is the signal's
markedness (Powers 2011, arXiv:2010.16061): a is the mean of how often its likes and how often its dislikes
are true. All kinds share π, so that those of dislikes alone are measured, too. Functions of a whole
snapshot's rows, whatever their order.

Legend: A accuracies, B base rates.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from math import fsum
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

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
_NODES = 384
"""Of the quadrature over a and over π: closer together than the posteriors of 10,000 answers are wide."""
_RATE_NODES = 128
_VERDICT_DIGITS = 3

Floats = NDArray[np.float64]

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
    """A beta posterior: how often signals of one kind, from users of one tier, are right."""

    kind: SignalKind
    tier: Tier
    prior: float
    agreed: float
    """Of the replies, or pairs, that gold speaks of, how many the signals are expected to be right about."""
    disagreed: float
    """The others of them."""
    mean: float
    """(PRIOR_STRENGTH * prior + agreed) / (PRIOR_STRENGTH + agreed + disagreed)"""
    base_rate: float | None = None
    """π, of all kinds together; None in fits of before it was known."""


Fit = tuple[Accuracy, ...]


class _Gold(NamedTuple):
    account: str
    lean: float
    """-1 (surely the worse, or bad) to 1 (surely the better, or good)."""
    weight: float


_Reply = tuple[str, str]
"""Prompt digest and wording: rows that share both speak of the same reply."""


class _Ruler(NamedTuple):
    labels: dict[_Reply, list[_Gold]]
    """Of a reply as such."""
    replies: dict[_Reply, list[_Gold]]
    """Of a reply against another one."""
    pairs: dict[tuple[_Reply, _Reply], list[_Gold]]
    """Of the first reply against the second; each pair lies here in both orders."""


class _Answer(NamedTuple):
    """What gold makes of the signals of one kind on one reply, or of one pair.

    Their likelihood is 1 + liked (a - π) + disliked (a - (1 - π)) + outright (2a - 1), up to a factor.
    """

    liked: float = 0.0
    """How far gold prefers the reply, -1..1, times the share of the signals that like it."""
    disliked: float = 0.0
    """How far gold prefers the others to it, times the share that dislike it."""
    outright: float = 0.0
    """How far it agrees that the reply is good or bad as such, or which of two is better, -1..1."""


def fit(grades: Iterable[Grade], pairs: Iterable[Pair]) -> Fit:
    """One posterior for every fitted kind and tier, and the base rate that all of them share.

    A grade is measured by labels of the same reply, else by its comparisons with others; a pair by what gold
    prefers of the same two. Gold counts by its confidence, |2p - 1|, and what it says of a reply counts once,
    however many grades that reply got. No account is measured by its own gold.
    """
    graded = sorted(grades, key=lambda g: g.grade_id)
    paired = sorted(pairs, key=lambda p: p.pair_id)
    ruler, tiers = _ruler(graded, paired), tiers_of([*graded, *paired])
    seen: dict[tuple[SignalKind, Tier], list[_Answer]] = defaultdict(list)
    of_reply: dict[tuple[SignalKind, Tier, _Reply], list[_Answer]] = defaultdict(list)
    for g in graded:
        if g.kind in PRIORS and g.p != 0.5:
            reply = g.prompt_digest, plain(g.reply)
            of_reply[g.kind, tiers[g.user], reply].append(_answer(g, reply, ruler))
    for (kind, tier, _), answers in of_reply.items():
        seen[kind, tier].append(_Answer(*(fsum(said) / len(answers) for said in zip(*answers, strict=True))))
    for p in paired:
        if p.kind in PRIORS and not gold(p):
            verdict = _verdict(ruler.pairs.get(_sides(p), ()), p.user)
            seen[p.kind, tiers[p.user]].append(_Answer(outright=verdict))
    return _posteriors({place: [a for a in answers if any(a)] for place, answers in seen.items()})


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
    """All gold by what it speaks of. Only comparisons are users', and share an account's allowance."""
    labels = [g for g in grades if g.kind in (SignalKind.LABEL, SignalKind.REVIEW)]
    golden = [p for p in pairs if gold(p)]
    answers = Counter(p.user for p in golden if p.by_design)
    ruler = _Ruler(defaultdict(list), defaultdict(list), defaultdict(list))
    for g in labels:
        ruler.labels[g.prompt_digest, plain(g.reply)].append(_Gold(g.user, 2.0 * g.p - 1.0, g.weight))
    for p in golden:
        weight = min(1.0, GOLD_PER_ACCOUNT / answers[p.user]) if answers[p.user] else 1.0
        better, worse = _sides(p)
        lean = 2.0 * p.p - 1.0
        for one, other, sign in ((better, worse, 1.0), (worse, better, -1.0)):
            ruler.pairs[one, other].append(_Gold(p.user, sign * lean, weight))
            ruler.replies[one].append(_Gold(p.user, sign * lean, weight))
    return ruler


def _answer(grade: Grade, reply: _Reply, ruler: _Ruler) -> _Answer:
    likes = grade.p > 0.5
    if label := _verdict(ruler.labels.get(reply, ()), grade.user):
        return _Answer(outright=label if likes else -label)
    verdict = _verdict(ruler.replies.get(reply, ()), grade.user)
    return _Answer(liked=verdict) if likes else _Answer(disliked=-verdict)


def _sides(pair: Pair) -> tuple[_Reply, _Reply]:
    return (pair.prompt_digest, plain(pair.chosen)), (pair.prompt_digest, plain(pair.rejected))


def _verdict(known: Iterable[_Gold], user: str) -> float:
    """What others' gold says, -1..1: its weighted sum, of which at most one answer's worth counts."""
    said = fsum(g.lean * g.weight for g in known if g.account != user)
    return min(1.0, max(-1.0, said))


def _posteriors(seen: Mapping[tuple[SignalKind, Tier], Sequence[_Answer]]) -> Fit:
    """By quadrature over accuracies and base rates: every rate is as likely before gold has spoken."""
    rate_B, weight_B = _quadrature(_RATE_NODES)
    log_B = np.log(weight_B)
    means_B: dict[tuple[SignalKind, Tier], Floats] = {}
    for place in sorted(seen):
        if seen[place]:
            means_B[place], evidence_B = _given_rate(PRIORS[place[0]], seen[place], rate_B)
            log_B = log_B + evidence_B
    share_B = np.exp(log_B - log_B.max())
    share_B /= share_B.sum()
    rate = round(float(share_B @ rate_B), DIGITS)
    return tuple(
        _accuracy(
            kind,
            tier,
            float(share_B @ means_B[kind, tier]) if (kind, tier) in means_B else PRIORS[kind],
            len(seen.get((kind, tier), ())),
            rate,
        )
        for kind in sorted(PRIORS)
        for tier in ("new", "established")
    )


def _given_rate(prior: float, answers: Iterable[_Answer], rate_B: Floats) -> tuple[Floats, Floats]:
    """The posterior mean of a for each base rate, and the log of the answers' probability."""
    right_A, weight_A = _quadrature(_NODES)
    log_BA = np.tile(
        np.log(weight_A)
        + (PRIOR_STRENGTH * prior - 1.0) * np.log(right_A)
        + (PRIOR_STRENGTH * (1.0 - prior) - 1.0) * np.log1p(-right_A),
        (len(rate_B), 1),
    )
    over_BA = right_A[None, :] - rate_B[:, None]
    under_BA = right_A[None, :] - (1.0 - rate_B[:, None])
    rounded = Counter(tuple(round(said, _VERDICT_DIGITS) for said in answer) for answer in answers)
    for (liked, disliked, outright), times in sorted(rounded.items()):
        log_BA += times * np.log1p(liked * over_BA + disliked * under_BA + outright * (2.0 * right_A - 1.0))
    top_B = log_BA.max(axis=1)
    share_BA = np.exp(log_BA - top_B[:, None])
    total_B = share_BA.sum(axis=1)
    return share_BA @ right_A / total_B, np.log(total_B) + top_B


@cache
def _quadrature(nodes: int) -> tuple[Floats, Floats]:
    """Gauss and Legendre's nodes and weights on [0, 1]."""
    at, weight = np.polynomial.legendre.leggauss(nodes)
    return (at + 1.0) / 2.0, weight / 2.0


def _accuracy(kind: SignalKind, tier: Tier, mean: float, answers: int, rate: float) -> Accuracy:
    """With the expected number of right ones that this mean stands for: it solves the mean's formula."""
    agreed = mean * (PRIOR_STRENGTH + answers) - PRIORS[kind] * PRIOR_STRENGTH
    return Accuracy(
        kind=kind,
        tier=tier,
        prior=PRIORS[kind],
        agreed=round(agreed, DIGITS) + 0.0,
        disagreed=round(answers - agreed, DIGITS) + 0.0,
        mean=round(mean, DIGITS),
        base_rate=rate,
    )
