"""Whose word counts: accounts that oppose all others, flood a subject or press like clockwork count less.

Functions of a whole snapshot's rows, whatever their order. Nothing is deleted: rows are weighed down, or
their account waits in quarantine with a reason, until the evidence changes or an operator trusts it.

The evidence is what the *others* think. Each account has one voice on each word of a reply, and on each word
together with the subject it was said about; a vote is compared with what all other voices would predict.
Accounts are of two sorts, honest or opposed, and Bayes' rule tells which:

    log odds(honest) = log((1 - PRIOR) / PRIOR) + Σ ± log(q / (1 - q))      + agrees, - disagrees

q is how often everybody's votes agree with predictions of that confidence. Odd tastes agree as often as not
and keep their weight. The same is asked about each account and subject, for those who lie about one thing.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from math import exp, fsum, log, sqrt
from statistics import median
from typing import NamedTuple, TypeVar

import msgspec

from feedback.pairs import cluster_of
from feedback.raters import WEIGHT_DIGITS
from feedback.records import Demonstration, Grade, Pair
from feedback.text import content_words

PRIOR = 0.02
"""Share of accounts, and of accounts on a subject, that are taken to be opposed before any evidence."""
QUARANTINE_ODDS = 0.99
"""An account as surely opposed as this waits in quarantine, if it has cast QUARANTINE_VOTES."""
QUARANTINE_VOTES = 10.0
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
ROUNDS = 3
"""Times that voices are weighed by the honesty found with them."""
NEWCOMER_WEIGHT = 2.0
"""An account may weigh this much whatever the median is."""
_SUBJECT_ROUNDS = 8
"""Times that subjects are cut: each cut raises the share of those not cut."""
_SHRINKAGE = 3.0
"""A word's voices are averaged as if this many silent ones were among them."""
_BINS = 6
_BIN_PRIOR = 4.0
_SUBJECTS = 6
_WORDS = 48

K = TypeVar("K")
Rated = Grade | Pair | Demonstration

_Voices = dict[str, float]


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """An account whose rows are kept out of a snapshot; they stay in the state."""

    account: str
    reason: str
    rows: int
    weight: float


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows say of the accounts behind them."""

    honest: dict[str, float]
    """Probability that an account is not opposed, 0..1."""
    on_subject: dict[tuple[str, str], float]
    """The same of an account on one subject alone."""
    record: dict[str, tuple[float, float]]
    """Votes that agreed and disagreed with what all others would predict; n on one prompt state count √n."""
    suspended: dict[str, str]
    """Accounts in quarantine, with the reason."""


class Weighed(NamedTuple):
    grades: list[Grade]
    pairs: list[Pair]
    demonstrations: list[Demonstration]
    quarantined: list[Quarantined]


class _Vote(NamedTuple):
    account: str
    subjects: tuple[str, ...]
    signs: dict[str, float]
    """1 for each word the vote is for, -1 for each it is against."""
    voice: float
    """What it adds to each word's voices: less for what everybody does, more for what is rare."""
    share: float
    """1 / sqrt(the account's votes on this prompt state): near-duplicates are not so many witnesses."""


def assess(grades: Iterable[Grade], pairs: Iterable[Pair], *, trusted: Collection[str] = ()) -> Trust:
    """Who agrees with the others and who opposes them, from rows with one rater each.

    Args: trusted, accounts that an operator vouches for: never opposed, never in quarantine.
    """
    graded, paired = sorted(grades, key=lambda g: g.grade_id), sorted(pairs, key=lambda p: p.pair_id)
    votes = _votes(graded, paired)
    rows: list[Grade | Pair] = [*graded, *paired]
    accounts = {row.user for row in rows}
    honest = dict.fromkeys(accounts, 1.0)
    on_subject: dict[tuple[str, str], float] = {}
    agreements: list[float] = []
    for _ in range(ROUNDS):
        margins = _margins(votes, honest, on_subject)
        agreements = _log_odds(votes, margins)
        honest |= _posterior((vote.account, odds) for vote, odds in zip(votes, agreements, strict=True))
        on_subject = _posterior(
            ((vote.account, subject), odds)
            for vote, odds in zip(votes, agreements, strict=True)
            for subject in vote.subjects
        )
        honest |= dict.fromkeys(accounts & set(trusted), 1.0)
        on_subject = {place: 1.0 if place[0] in trusted else p for place, p in on_subject.items()}
    record = _record(votes, agreements)
    suspended = {**_opposed(honest, record), **_hasty(rows)}
    return Trust(
        honest=honest,
        on_subject=on_subject,
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

    Honesty first; then accounts are held to what is usual on one subject (SUBJECT_TIMES), newcomers to
    NEWCOMER_TIMES the median account, and no subject has more than `subject_cap` of the weight, or its
    share of the voices. Account caps are `raters.cap_accounts`' work.
    """
    rows: list[Grade | Pair | Demonstration] = [*grades, *pairs, *demonstrations]
    kept = [row for row in rows if row.user not in trust.suspended]
    subjects = [subjects_of(row) for row in kept]
    weights = [
        row.weight * trust.honest.get(row.user, 1.0) * _least(trust.on_subject, row.user, about)
        for row, about in zip(kept, subjects, strict=True)
    ]
    shares = _shares_of_voices(kept, subjects, trust)
    weights = _one_subject(kept, subjects, weights, shares)
    weights = _newcomers(kept, weights, trust)
    weights = _whole_subjects(subjects, weights, shares, subject_cap)
    made = [
        msgspec.structs.replace(row, weight=round(weight, WEIGHT_DIGITS))
        for row, weight in zip(kept, weights, strict=True)
    ]
    return Weighed(
        [row for row in made if isinstance(row, Grade)],
        [row for row in made if isinstance(row, Pair)],
        [row for row in made if isinstance(row, Demonstration)],
        _quarantined(rows, trust),
    )


def subjects_of(row: Grade | Pair | Demonstration) -> tuple[str, ...]:
    """What the prompt is about: the words that name its near-duplicate cluster."""
    return tuple(cluster_of(row.prompt).split()[:_SUBJECTS])


def _votes(grades: Sequence[Grade], pairs: Sequence[Pair]) -> list[_Vote]:
    base = _habit(grades)
    states: dict[tuple[str, str], int] = defaultdict(int)
    rows: list[Grade | Pair] = [*grades, *pairs]
    for row in rows:
        states[row.user, row.prompt_digest] += 1
    votes: list[tuple[Grade | Pair, dict[str, float], float]] = []
    for g in grades:
        side = 1.0 if g.p > 0.5 else -1.0 if g.p < 0.5 else 0.0
        votes.append((g, {word: side for word in _words(g.reply)} if side else {}, abs(side - base)))
    for p in pairs:
        chosen, rejected = _words(p.chosen), _words(p.rejected)
        signs = {w: 1.0 for w in chosen - rejected} | {w: -1.0 for w in rejected - chosen}
        votes.append((p, signs if p.p > 0.5 else {}, 1.0))
    return [
        _Vote(row.user, about, _about(signs, about), voice, 1.0 / sqrt(states[row.user, row.prompt_digest]))
        for row, signs, voice in votes
        for about in [subjects_of(row)]
        if signs and voice
    ]


def _habit(grades: Iterable[Grade]) -> float:
    """How favourable the average account's average grade is, -1..1."""
    by_account: dict[str, list[float]] = defaultdict(list)
    for g in grades:
        if g.p != 0.5:
            by_account[g.user].append(1.0 if g.p > 0.5 else -1.0)
    means = [fsum(sides) / len(sides) for sides in by_account.values()]
    return fsum(means) / len(means) if means else 0.0


def _words(text: str) -> frozenset[str]:
    return frozenset(sorted(content_words(text))[:_WORDS])


def _about(signs: Mapping[str, float], subjects: Iterable[str]) -> dict[str, float]:
    """Words alone, and words said about a subject."""
    together = {f"{subject}\x1f{word}": sign for subject in subjects for word, sign in sorted(signs.items())}
    return {**dict(sorted(signs.items())), **together}


def _margins(
    votes: Sequence[_Vote], honest: Mapping[str, float], on_subject: Mapping[tuple[str, str], float]
) -> list[float]:
    """How strongly all other accounts' voices speak for each vote; negative when they speak against it."""
    own: dict[str, _Voices] = defaultdict(lambda: defaultdict(float))
    for vote in votes:
        mine = own[vote.account]
        for feature, sign in vote.signs.items():
            mine[feature] += sign * vote.voice
    total: _Voices = defaultdict(float)
    number: _Voices = defaultdict(float)
    for account, mine in own.items():
        for feature, said in mine.items():
            h = honest[account] * _heard(on_subject, account, feature)
            mine[feature] = h * min(1.0, max(-1.0, said))
            total[feature] += mine[feature]
            number[feature] += h

    def others(feature: str, account: str) -> float:
        """Honest voices about it, without the account's own."""
        return max(0.0, number[feature] - honest[account] * _heard(on_subject, account, feature))

    margins = []
    for vote in votes:
        mine = own[vote.account]
        said = fsum(
            sign * (total[f] - mine[f]) / (others(f, vote.account) + _SHRINKAGE)
            for f, sign in vote.signs.items()
        )
        margins.append(said / sqrt(len(vote.signs)))
    return margins


def _heard(on_subject: Mapping[tuple[str, str], float], account: str, feature: str) -> float:
    subject, _, word = feature.partition("\x1f")
    return on_subject.get((account, subject), 1.0) if word else 1.0


def _log_odds(votes: Sequence[_Vote], margins: Sequence[float]) -> list[float]:
    """± log(q / (1 - q)) of each vote, times its share; q by bins of equally many votes by |margin|."""
    number: dict[str, float] = defaultdict(float)
    for vote in votes:
        number[vote.account] += vote.share
    edges = [abs(m) for m in sorted(margins, key=abs)[len(margins) // _BINS :: max(1, len(margins) // _BINS)]]
    bins = [bisect_right(edges, abs(m)) for m in margins]
    agreed: dict[int, float] = defaultdict(float)
    seen: dict[int, float] = defaultdict(float)
    for vote, margin, place in zip(votes, margins, bins, strict=True):
        one_account_one_word = vote.share / number[vote.account]
        seen[place] += one_account_one_word
        agreed[place] += one_account_one_word * (margin > 0.0)
    surely = {
        place: min(0.9, max(0.5, (agreed[place] + _BIN_PRIOR / 2) / (seen[place] + _BIN_PRIOR)))
        for place in seen
    }
    return [
        vote.share * (0.0 if margin == 0.0 else 1.0 if margin > 0.0 else -1.0) * _logit(surely[place])
        for vote, margin, place in zip(votes, margins, bins, strict=True)
    ]


def _posterior(evidence: Iterable[tuple[K, float]]) -> dict[K, float]:
    """P(honest) by whatever the evidence is grouped by, as a share of the prior's: no evidence is no loss."""
    odds: dict[K, list[float]] = defaultdict(list)
    for key, log_odds in evidence:
        odds[key].append(log_odds)
    return {
        key: min(1.0, _sigmoid(fsum(found) - _logit(PRIOR)) / (1.0 - PRIOR)) for key, found in odds.items()
    }


def _record(votes: Sequence[_Vote], log_odds: Sequence[float]) -> dict[str, tuple[float, float]]:
    record: dict[str, tuple[float, float]] = {}
    for vote, odds in zip(votes, log_odds, strict=True):
        agreed, disagreed = record.get(vote.account, (0.0, 0.0))
        record[vote.account] = (
            agreed + vote.share * (odds > 0.0),
            disagreed + vote.share * (odds < 0.0),
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
    scale: dict[tuple[str, str], float] = {}
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
        scale: dict[tuple[str, str], float] = {}
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
        voices[subject].append(trust.honest.get(account, 1.0) * trust.on_subject.get((account, subject), 1.0))
    everybody = fsum(trust.honest.get(a, 1.0) for a in {row.user for row in rows}) or 1.0
    return {subject: min(1.0, fsum(found) / everybody) for subject, found in voices.items()}


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


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x)) if x > -700.0 else 0.0


def _logit(p: float) -> float:
    return log(p / (1.0 - p))
