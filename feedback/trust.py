"""Whose word counts: accounts that oppose all others, flood a subject or press like clockwork count less.

Functions of a whole snapshot's rows, whatever their order. Nothing is deleted: rows are weighed down, or
their account waits in quarantine with a reason, until the evidence changes or an operator trusts it. Who
speaks against the others, everywhere or about one subject, is found by `dissent`.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from math import fsum, sqrt
from statistics import median
from typing import NamedTuple

import msgspec

from feedback.dissent import Place, Vote, believe
from feedback.pairs import cluster_of
from feedback.raters import WEIGHT_DIGITS
from feedback.records import Demonstration, Grade, Pair
from feedback.text import content_words

QUARANTINE_ODDS = 0.99
"""An account as surely opposed as this waits in quarantine, if it has cast QUARANTINE_VOTES."""
QUARANTINE_VOTES = 10.0
TELLING = 0.4
"""nats from which a vote is on an account's record: agreeing with what all approve of earns none."""
DOUBT = 0.5
"""A row that counts less than this says why."""
DOUBTED_SUBJECTS = 20
NEWCOMER_TIMES = 4.0
"""An account without a record weighs at most this many times the median account."""
RAMP_VOTES = 20.0
"""Votes more in agreement than not after which only the account cap limits an account."""
SUBJECT_TIMES = 2.0
"""An account weighs on one subject at most this many times what accounts usually weigh on a subject, unless
the subject has no more of the account's weight than it has of everybody's voices."""
BURST_S = 60.0
BURST_SIGNALS = 30
"""Signals of one account within BURST_S that nobody calls a burst."""
BURST_TIMES = 10.0
"""A burst has so many times the signals of the busiest minute of 95 % of accounts."""
CLOCKWORK_SIGNALS = 20
CLOCKWORK_SPREAD = 0.05
"""Clockwork: pauses whose standard deviation is less than this share of their mean."""
NEWCOMER_WEIGHT = 2.0
"""An account may weigh this much whatever the median is."""
_SUBJECT_ROUNDS = 8
"""Times that subjects are cut: each cut raises the share of those not cut."""
_SUBJECTS = 6
_WORDS = 48

Rated = Grade | Pair | Demonstration


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """An account whose rows are kept out of a snapshot; they stay in the state."""

    account: str
    reason: str
    rows: int
    weight: float


class Doubted(msgspec.Struct, frozen=True, kw_only=True):
    """A subject on which accounts are believed by less than DOUBT; each of their rows says so, too."""

    subject: str
    accounts: int
    rows: int
    weight: float
    """What doubt took from those rows."""


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows say of the accounts behind them."""

    honest: dict[str, float]
    """Probability that an account is not opposed, 0..1."""
    on_subject: dict[Place, float]
    """The same of an account on one subject alone."""
    record: dict[str, tuple[float, float]]
    """Votes that agreed and disagreed with what all others would predict; n near-duplicates count √n."""
    suspended: dict[str, str]
    """Accounts in quarantine, with the reason."""


class Weighed(NamedTuple):
    grades: list[Grade]
    pairs: list[Pair]
    demonstrations: list[Demonstration]
    quarantined: list[Quarantined]
    doubted: list[Doubted]
    """The DOUBTED_SUBJECTS that lost most."""


def assess(grades: Iterable[Grade], pairs: Iterable[Pair], *, trusted: Collection[str] = ()) -> Trust:
    """Who agrees with the others and who opposes them, from rows with one rater each.

    Args: trusted, accounts that an operator vouches for: never opposed, never in quarantine.
    """
    graded, paired = sorted(grades, key=lambda g: g.grade_id), sorted(pairs, key=lambda p: p.pair_id)
    votes = _votes(graded, paired)
    rows: list[Grade | Pair] = [*graded, *paired]
    found = believe(votes, trusted)
    honest = {row.user: 1.0 for row in rows} | found.honest
    record = _record(votes, found.evidence)
    suspended = {**_opposed(honest, record), **_hasty(rows)}
    return Trust(
        honest=honest,
        on_subject=found.on_subject,
        record=record,
        suspended={account: why for account, why in sorted(suspended.items()) if account not in trusted},
    )


def weigh(
    grades: Sequence[Grade],
    pairs: Sequence[Pair],
    demonstrations: Sequence[Demonstration],
    trust: Trust,
    *,
    subject_cap: float,
) -> Weighed:
    """The rows by what their account's word counts, without those in quarantine.

    Accounts are held to what is usual on one subject (SUBJECT_TIMES), newcomers to NEWCOMER_TIMES the median
    account, and what is left counts as far as it is believed: the other way round the loud would buy back
    what doubt takes. Rows believed by less than DOUBT say so in their reason. No subject has more than
    `subject_cap` of the weight, or its share of the voices. Account caps are `raters.cap_accounts`' work.
    """
    rows: list[Grade | Pair | Demonstration] = [*grades, *pairs, *demonstrations]
    kept = [row for row in rows if row.user not in trust.suspended]
    subjects = [subjects_of(row) for row in kept]
    shares = _shares_of_voices(kept, subjects, trust)
    weights = _one_subject(kept, subjects, [row.weight for row in kept], shares)
    weights = _newcomers(kept, weights, trust)
    beliefs = [_belief(trust, row.user, about) for row, about in zip(kept, subjects, strict=True)]
    doubted = _doubted(kept, weights, beliefs)
    weights = [weight * belief.share for weight, belief in zip(weights, beliefs, strict=True)]
    weights = _whole_subjects(subjects, weights, shares, subject_cap)
    made = [
        _weighed(row, round(weight, WEIGHT_DIGITS), belief)
        for row, weight, belief in zip(kept, weights, beliefs, strict=True)
    ]
    return Weighed(
        [row for row in made if isinstance(row, Grade)],
        [row for row in made if isinstance(row, Pair)],
        [row for row in made if isinstance(row, Demonstration)],
        _quarantined(rows, trust),
        doubted,
    )


def subjects_of(row: Grade | Pair | Demonstration) -> tuple[str, ...]:
    """What the prompt is about: the words that name its near-duplicate cluster."""
    return tuple(cluster_of(row.prompt).split()[:_SUBJECTS])


def _votes(grades: Sequence[Grade], pairs: Sequence[Pair]) -> list[Vote]:
    found: list[tuple[Grade | Pair, dict[str, float], float]] = []
    for g in grades:
        if g.p != 0.5:
            found.append((g, dict.fromkeys(_words(g.reply), 1.0), 1.0 if g.p > 0.5 else -1.0))
    for p in pairs:
        chosen, rejected = _words(p.chosen), _words(p.rejected)
        signs = {w: 1.0 for w in chosen - rejected} | {w: -1.0 for w in rejected - chosen}
        found.append((p, signs if p.p > 0.5 else {}, 1.0))
    clusters = Counter((row.user, cluster_of(row.prompt)) for row, signs, _ in found if signs)
    return [
        Vote(
            account=row.user,
            subjects=subjects_of(row),
            words=dict(sorted(signs.items())),
            side=side,
            graded=isinstance(row, Grade),
            share=1.0 / sqrt(clusters[row.user, cluster_of(row.prompt)]),
        )
        for row, signs, side in found
        if signs
    ]


def _words(text: str) -> frozenset[str]:
    return frozenset(sorted(content_words(text))[:_WORDS])


def _record(votes: Sequence[Vote], evidence: Sequence[float]) -> dict[str, tuple[float, float]]:
    record: dict[str, tuple[float, float]] = {}
    for vote, odds in zip(votes, evidence, strict=True):
        agreed, disagreed = record.get(vote.account, (0.0, 0.0))
        record[vote.account] = (
            agreed + vote.share * (odds > TELLING * vote.share),
            disagreed + vote.share * (odds < -TELLING * vote.share),
        )
    return record


def _opposed(honest: Mapping[str, float], record: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {
        account: f"opposes the others: {disagreed:.0f} of {agreed + disagreed:.0f} votes disagree"
        for account, (agreed, disagreed) in record.items()
        if honest[account] <= 1.0 - QUARANTINE_ODDS and agreed + disagreed >= QUARANTINE_VOTES
    }


def _hasty(rows: Iterable[Grade | Pair]) -> dict[str, str]:
    """Accounts much quicker than everybody's busiest minute, or as regular as no person is."""
    times: dict[str, set[datetime]] = defaultdict(set)
    for row in rows:
        times[row.user].add(row.at)
    ordered = {account: sorted(at) for account, at in times.items()}
    busiest = {account: _busiest(at) for account, at in ordered.items()}
    usual = _median(busiest.values())
    found = {
        account: f"clockwork: {len(at)} signals at even pauses"
        for account, at in ordered.items()
        if _is_clockwork(at)
    }
    return found | {
        account: f"burst: {n} signals within {BURST_S:.0f} s, others {usual:.0f}"
        for account, n in busiest.items()
        if n > max(BURST_SIGNALS, BURST_TIMES * usual)
    }


def _busiest(at: Sequence[datetime]) -> int:
    """The most signals that fall into BURST_S. `at` ascends."""
    return max(bisect_right(at, t + timedelta(seconds=BURST_S)) - n for n, t in enumerate(at))


def _is_clockwork(at: Sequence[datetime]) -> bool:
    pauses = [(b - a).total_seconds() for a, b in pairwise(at)]
    if len(at) < CLOCKWORK_SIGNALS:
        return False
    mean = fsum(pauses) / len(pauses)
    return sqrt(fsum((p - mean) ** 2 for p in pauses) / len(pauses)) < CLOCKWORK_SPREAD * mean


def _least(on_subject: Mapping[tuple[str, str], float], account: str, subjects: Iterable[str]) -> float:
    return min((on_subject.get((account, s), 1.0) for s in subjects), default=1.0)


def _one_subject(
    rows: Sequence[Rated],
    subjects: Sequence[tuple[str, ...]],
    weights: Sequence[float],
    shares: Mapping[str, float],
) -> list[float]:
    """See SUBJECT_TIMES. With v the subject's share of voices and R the account's weight elsewhere:

    W <= max(SUBJECT_TIMES * usual, R v / (1 - v))        no limit for v = 1, what everybody speaks of
    """
    account: dict[str, list[float]] = defaultdict(list)
    place: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, about, weight in zip(rows, subjects, weights, strict=True):
        account[row.user].append(weight)
        for subject in about:
            place[row.user, subject].append(weight)
    totals = {where: fsum(found) for where, found in place.items()}
    usual = SUBJECT_TIMES * _median(totals.values())
    scale: dict[Place, float] = {}
    for (who, subject), total in totals.items():
        rest, share = fsum(account[who]) - total, shares[subject]
        if share < 1.0 and total > (allowed := max(usual, rest * share / (1.0 - share))):
            scale[who, subject] = allowed / total
    return [w * _least(scale, row.user, about) for row, about, w in zip(rows, subjects, weights, strict=True)]


def _newcomers(rows: Sequence[Rated], weights: Sequence[float], trust: Trust) -> list[float]:
    """An account's weight is at most NEWCOMER_TIMES the median's, / (1 - its record's part of RAMP_VOTES)."""
    parts: dict[str, list[float]] = defaultdict(list)
    for row, weight in zip(rows, weights, strict=True):
        parts[row.user].append(weight)
    totals = {account: fsum(found) for account, found in parts.items()}
    newcomer = max(NEWCOMER_WEIGHT, NEWCOMER_TIMES * _median(totals.values()))
    scale: dict[str, float] = {}
    for account, total in totals.items():
        agreed, disagreed = trust.record.get(account, (0.0, 0.0))
        ramp = min(1.0, max(0.0, agreed - disagreed) / RAMP_VOTES)
        scale[account] = 1.0 if total * (1.0 - ramp) <= newcomer else newcomer / (1.0 - ramp) / total
    return [weight * scale[row.user] for row, weight in zip(rows, weights, strict=True)]


def _whole_subjects(
    subjects: Sequence[tuple[str, ...]], weights: Sequence[float], shares: Mapping[str, float], cap: float
) -> list[float]:
    """No subject has more of the weight than its share of the voices, or `cap` where that is more."""
    allowed = {subject: max(cap, share) for subject, share in shares.items()}
    found = list(weights)
    for _ in range(_SUBJECT_ROUNDS):
        by_subject: dict[str, list[float]] = defaultdict(list)
        for about, weight in zip(subjects, found, strict=True):
            for subject in about:
                by_subject[subject].append(weight)
        everything = fsum(found)
        scale: dict[Place, float] = {}
        for subject, parts in by_subject.items():
            share, total = allowed[subject], fsum(parts)
            rest = everything - total
            if total * (1.0 - share) > share * rest:
                scale["", subject] = share * rest / (1.0 - share) / total
        if not scale:
            break
        found = [w * _least(scale, "", about) for about, w in zip(subjects, found, strict=True)]
    return found


def _shares_of_voices(
    rows: Sequence[Rated], subjects: Sequence[tuple[str, ...]], trust: Trust
) -> dict[str, float]:
    """Share of the accounts that speak of each subject, 0..1, each account as far as it is honest."""
    speakers = {(row.user, s): None for row, about in zip(rows, subjects, strict=True) for s in about}
    voices: dict[str, list[float]] = defaultdict(list)
    for account, subject in speakers:
        voices[subject].append(trust.honest.get(account, 1.0))
    everybody = fsum(trust.honest.get(a, 1.0) for a in {row.user for row in rows}) or 1.0
    return {subject: min(1.0, fsum(found) / everybody) for subject, found in voices.items()}


class _Belief(NamedTuple):
    share: float
    """How far a row counts, 0..1."""
    subject: str
    """What its account is least believed about; "" when it is believed as far about anything."""


def _belief(trust: Trust, account: str, subjects: Iterable[str]) -> _Belief:
    share, subject = min(((trust.on_subject.get((account, s), 1.0), s) for s in subjects), default=(1.0, ""))
    return _Belief(trust.honest.get(account, 1.0) * share, subject if share < 1.0 else "")


def _weighed(row: Rated, weight: float, belief: _Belief) -> Rated:
    if belief.share >= DOUBT or isinstance(row, Demonstration):
        return msgspec.structs.replace(row, weight=weight)
    about = f" about {belief.subject!r}" if belief.subject else ""
    why = f"{row.reason}; its account speaks against the others{about}: counts {belief.share:.0%}"
    return msgspec.structs.replace(row, weight=weight, reason=why)


def _doubted(rows: Sequence[Rated], weights: Sequence[float], beliefs: Sequence[_Belief]) -> list[Doubted]:
    lost: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row, weight, belief in zip(rows, weights, beliefs, strict=True):
        if belief.share < DOUBT:
            lost[belief.subject].append((row.user, weight * (1.0 - belief.share)))
    found = [
        Doubted(
            subject=subject,
            accounts=len({account for account, _ in parts}),
            rows=len(parts),
            weight=round(fsum(weight for _, weight in parts), WEIGHT_DIGITS),
        )
        for subject, parts in lost.items()
    ]
    return sorted(found, key=lambda d: (-d.weight, d.subject))[:DOUBTED_SUBJECTS]


def _quarantined(rows: Iterable[Rated], trust: Trust) -> list[Quarantined]:
    held: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.user in trust.suspended:
            held[row.user].append(row.weight)
    return [
        Quarantined(
            account=account,
            reason=trust.suspended[account],
            rows=len(found),
            weight=round(fsum(found), WEIGHT_DIGITS),
        )
        for account, found in sorted(held.items())
    ]


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return float(median(found)) if found else 0.0
