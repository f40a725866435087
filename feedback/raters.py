"""How much one rater's word counts: thumbs centred per user, every account's share of the weight capped.

Functions of a whole snapshot's rows, whatever their order. Reliability is found by `trust` and `accuracy`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import exp, fsum, log
from typing import TypeVar

import msgspec

from feedback.events import SignalKind
from feedback.records import Demonstration, Grade, Pair

CENTRING_PRIOR_THUMBS = 5.0
"""A user's rate of ups counts as if this many thumbs at everybody's rate had come before."""
EVEN_SHARES = 2.0
"""With few accounts the cap rises to this many times an even share; one or two accounts are not capped."""
WEIGHT_DIGITS = 6
_CAPPING_ROUNDS = 20

Row = TypeVar("Row", Grade, Pair, Demonstration)


def centre_thumbs(grades: Iterable[Grade]) -> list[Grade]:
    """Thumbs measured against their user's habit.

        logit p' = logit p - (logit u - logit m)      u: the user's rate of ups, shrunk to m; m: everybody's

    Somebody who likes everything says little by an up and much by a down. The label may fade to 0.5 and
    grow to 0.95 (0.05), never cross over.
    """
    rows = list(grades)
    thumbs = [g for g in rows if _votes(g)]
    if not thumbs:
        return rows
    ups: dict[str, list[bool]] = defaultdict(list)
    for thumb in thumbs:
        ups[thumb.user].append(thumb.p > 0.5)
    everybody = _inside(sum(t.p > 0.5 for t in thumbs) / len(thumbs))
    shift = {user: _logit(_shrunk_rate(votes, everybody)) - _logit(everybody) for user, votes in ups.items()}
    return [_centred(g, shift[g.user]) if _votes(g) else g for g in rows]


def _votes(grade: Grade) -> bool:
    """Whether it is a thumb that says anything: those of signals found unreliable have faded to 0.5."""
    return grade.kind is SignalKind.THUMB and grade.p != 0.5


def cap_accounts(rows: Iterable[Row], share: float) -> list[Row]:
    """The rows with weights scaled down so that no account has more than `share` of what remains.

    A row of several raters counts for each in equal parts. See EVEN_SHARES for few accounts.
    """
    capped = list(rows)
    accounts = {account for row in capped if row.weight > 0.0 for account in raters_of(row)}
    if not accounts:
        return capped
    share = min(1.0, max(share, EVEN_SHARES / len(accounts)))
    weights = [row.weight for row in capped]
    for _ in range(_CAPPING_ROUNDS):
        totals = _totals(capped, weights)
        level = _level(sorted(totals.values()), share)
        if max(totals.values()) <= level * (1.0 + 1e-9):
            break
        scale = {account: min(1.0, level / total) for account, total in totals.items() if total}
        weights = [
            weight * min(scale.get(account, 1.0) for account in raters_of(row))
            for row, weight in zip(capped, weights, strict=True)
        ]
    return [
        msgspec.structs.replace(row, weight=round(weight, WEIGHT_DIGITS))
        for row, weight in zip(capped, weights, strict=True)
    ]


def raters_of(row: Grade | Pair | Demonstration) -> tuple[str, ...]:
    """The accounts whose word a row is."""
    return (row.raters or (row.user,)) if isinstance(row, Pair) else (row.user,)


def _totals(rows: Sequence[Row], weights: Sequence[float]) -> dict[str, float]:
    parts: dict[str, list[float]] = defaultdict(list)
    for row, weight in zip(rows, weights, strict=True):
        raters = raters_of(row)
        for account in raters:
            parts[account].append(weight / len(raters))
    return {account: fsum(shares) for account, shares in parts.items()}


def _level(ascending: Sequence[float], share: float) -> float:
    """The largest t with t <= share * sum(min(total, t)): nobody may have more than t.

        t = share * R / (1 - share * k)      k accounts have t each, the others sum to R

    k is the smallest number for which none of the others has more than t. `ascending` is not empty.
    """
    sums = list(accumulate(ascending))
    if ascending[-1] <= share * sums[-1]:
        return ascending[-1]
    for k in range(1, len(ascending)):
        left = 1.0 - share * k
        level = share * sums[-1 - k] / left if left > 0.0 else ascending[-1 - k]
        if ascending[-1 - k] <= level:
            return level
    return ascending[0]


def _shrunk_rate(ups: Sequence[bool], everybody: float) -> float:
    return (sum(ups) + CENTRING_PRIOR_THUMBS * everybody) / (len(ups) + CENTRING_PRIOR_THUMBS)


def _centred(thumb: Grade, shift: float) -> Grade:
    p = 1.0 / (1.0 + exp(shift - _logit(thumb.p)))
    low, high = (0.5, 0.95) if thumb.p > 0.5 else (0.05, 0.5)
    return msgspec.structs.replace(thumb, p=round(min(high, max(low, p)), WEIGHT_DIGITS))


def _inside(rate: float) -> float:
    return min(0.95, max(0.05, rate))


def _logit(p: float) -> float:
    return log(p / (1.0 - p))
