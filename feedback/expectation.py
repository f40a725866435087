"""What everybody else would say of a reply: logistic models of votes on words, fitted without the voter.

    logit P(vote i is up) = offset_i + x_i·β        x: 1 for each feature of the reply

For a comparison x is the difference of its two replies. β is found by ridge regression on the votes of the
accounts in other folds, so that nobody, however loud, has a say in what is expected of them. Knows nothing of
honesty, which comes in as weights.

Legend: V vote, N feature of a vote (all votes in a row), F feature.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import log

import numpy as np
from numpy.typing import NDArray

FOLDS = 4
"""Parts of the accounts; each is predicted from the three others."""
STEPS = 30
"""Steps of accelerated gradient descent: the residual is then a few per cent of the penalty's own bias."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """Votes as rows of a sparse matrix of ±1."""

    fold_V: Ints
    vote_N: Ints
    feature_N: Ints
    sign_N: Floats
    number: int


def features(accounts: Sequence[str], signs: Iterable[Mapping[str, float]]) -> Features:
    """The votes' features as a matrix, without those that one account alone has voted on."""
    rows = list(signs)
    speakers: dict[str, str | None] = {}
    for account, row in zip(accounts, rows, strict=True):
        for name in row:
            if speakers.setdefault(name, account) != account:
                speakers[name] = None
    number = {name: n for n, name in enumerate(name for name, only in speakers.items() if only is None)}
    known = [[(number[name], sign) for name, sign in row.items() if name in number] for row in rows]
    return Features(
        fold_V=np.array([_fold(account) for account in accounts], dtype=np.int64),
        vote_N=np.repeat(np.arange(len(rows)), [len(row) for row in known]),
        feature_N=np.array([n for row in known for n, _ in row], dtype=np.int64),
        sign_N=np.array([sign for row in known for _, sign in row], dtype=float),
        number=len(number),
    )


def habit(graded_V: Floats, side_V: Floats, weight_V: Floats) -> Floats:
    """Log-odds of an up among votes on single replies, for those; 0 for comparisons."""
    up, down = (float((weight_V * graded_V) @ (side_V == side)) for side in (1.0, -1.0))
    return log((up + 1.0) / (down + 1.0)) * graded_V


def expected(x: Features, side_V: Floats, weight_V: Floats, offset_V: Floats, ridge: float) -> Floats:
    """x·β for each vote, β from the accounts in other folds, in nats."""
    said_V = np.zeros_like(weight_V)
    for fold in range(FOLDS):
        own_V = x.fold_V == fold
        beta_F = fit(x, side_V, np.where(own_V, 0.0, weight_V), offset_V, ridge)
        said_V[own_V] = _times(x, beta_F, np.empty_like(x.sign_N))[own_V]
    return said_V


def fit(x: Features, side_V: Floats, weight_V: Floats, offset_V: Floats, ridge: float) -> Floats:
    """β_F that minimises Σ -w log σ(side · (offset + x·β)) + ridge β² / 2, by Nesterov's method.

    Each coefficient's step is the inverse of a bound on its curvature, Σ_i w_i |x_if| Σ_g |x_ig| / 4 + ridge.
    """
    x = _heard(x, weight_V)
    room_N = np.empty_like(x.sign_N)
    length_V = np.bincount(x.vote_N, minlength=len(weight_V))
    curve_F = np.bincount(x.feature_N, (weight_V * length_V)[x.vote_N], x.number)
    step_F = 1.0 / (curve_F / 4.0 + ridge)
    beta_F = ahead_F = np.zeros(x.number)
    for n in range(STEPS):
        said_V = side_V * (offset_V + _times(x, ahead_F, room_N))
        pull_V = weight_V * side_V / (1.0 + np.exp(np.minimum(said_V, 500.0)))
        last_F, beta_F = beta_F, ahead_F + step_F * (_transposed(x, pull_V, room_N) - ridge * ahead_F)
        ahead_F = beta_F + n / (n + 3.0) * (beta_F - last_F)
    return beta_F


def _heard(x: Features, weight_V: Floats) -> Features:
    """Without the features of votes that weigh nothing."""
    heard_N = weight_V[x.vote_N] > 0.0
    return replace(x, vote_N=x.vote_N[heard_N], feature_N=x.feature_N[heard_N], sign_N=x.sign_N[heard_N])


def _times(x: Features, beta_F: Floats, room_N: Floats) -> Floats:
    np.take(beta_F, x.feature_N, out=room_N, mode="clip")
    np.multiply(room_N, x.sign_N, out=room_N)
    found_V: Floats = np.bincount(x.vote_N, room_N, len(x.fold_V)).astype(float, copy=False)
    return found_V


def _transposed(x: Features, pull_V: Floats, room_N: Floats) -> Floats:
    np.take(pull_V, x.vote_N, out=room_N, mode="clip")
    np.multiply(room_N, x.sign_N, out=room_N)
    found_F: Floats = np.bincount(x.feature_N, room_N, x.number).astype(float, copy=False)
    return found_F


def _fold(account: str) -> int:
    return blake2b(f"trust\x1f{account}".encode("utf-8", "surrogatepass"), digest_size=8).digest()[0] % FOLDS
