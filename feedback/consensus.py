"""What everybody else would say of a reply: a logistic model of votes on words, fitted without the voter.

Functions of the votes given; knows no accounts' honesty, which comes in as weights.

    logit P(vote i is up) = bias + x_i·β        x: the reply's words, and each word with what was asked about

For a comparison x is the difference of its replies and there is no bias. β is fitted by ridge regression on the
votes of the accounts in other folds, so that nobody, however loud, has a say in what is expected of them.

Legend: V vote, N word of a vote (all votes in a row), F feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import log

import numpy as np
from numpy.typing import NDArray

FOLDS = 4
"""Parts of the accounts; each is predicted from the three others."""
RIDGE = 10.0
"""Penalty β²·RIDGE / 2: a word must have been judged a few times to matter."""
STEPS = 30
"""Steps of accelerated gradient descent."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ballots:
    """Votes as rows of a sparse matrix of ±1."""

    side_V: Floats
    """1 for up, or for the reply that was preferred; -1 for down."""
    graded_V: Floats
    """1 for a vote on a single reply, 0 for a comparison."""
    fold_V: Ints
    vote_N: Ints
    feature_N: Ints
    sign_N: Floats
    features: int


Ballot = tuple[str, Mapping[str, float], float, bool]
"""Account, words by sign, side, and whether it is about a single reply."""


def ballots(votes: Sequence[Ballot]) -> Ballots:
    """The votes' words as numbers; words that only one account has voted on say nothing of others and go."""
    speakers: dict[str, str | None] = {}
    for account, words, _, _ in votes:
        for word in words:
            if speakers.setdefault(word, account) != account:
                speakers[word] = None
    number = {word: n for n, word in enumerate(w for w, account in speakers.items() if account is None)}
    known = [[(number[word], sign) for word, sign in words.items() if word in number] for _, words, _, _ in votes]
    lengths = [len(words) for words in known]
    return Ballots(
        side_V=np.array([side for _, _, side, _ in votes], dtype=float),
        graded_V=np.array([graded for *_, graded in votes], dtype=float),
        fold_V=np.array([_fold(account) for account, *_ in votes], dtype=np.int64),
        vote_N=np.repeat(np.arange(len(votes)), lengths),
        feature_N=np.array([n for words in known for n, _ in words], dtype=np.int64),
        sign_N=np.array([sign for words in known for _, sign in words], dtype=float),
        features=len(number),
    )


def expected(votes: Ballots, weight_V: Floats) -> tuple[Floats, Floats]:
    """What the accounts in other folds would say of each vote's reply.

    Returns: merit_V, x·β about its weighted mean over grades, and bias_V, what everybody's ups and downs come to at
    the mean; both in nats, the bias 0 for comparisons.
    """
    merit_V, bias_V, room_N = np.zeros_like(weight_V), np.zeros_like(weight_V), np.empty_like(votes.sign_N)
    for fold in range(FOLDS):
        own_V = votes.fold_V == fold
        beta_F, bias = fit(votes, np.where(own_V, 0.0, weight_V))
        said_V = _times(votes, beta_F, room_N)
        graded_V = weight_V * votes.graded_V
        mean = float(graded_V @ said_V / max(graded_V.sum(), 1e-9))
        merit_V[own_V] = (said_V - mean * votes.graded_V)[own_V]
        bias_V[own_V] = ((bias + mean) * votes.graded_V)[own_V]
    return merit_V, bias_V


def fit(votes: Ballots, weight_V: Floats) -> tuple[Floats, float]:
    """β_F and the bias that minimise -Σ w log σ(side · (bias + x·β)) + RIDGE β² / 2.

    Nesterov's method; the step of each coefficient is the inverse of a bound on its curvature,
    Σ_i w_i |x_if| Σ_g |x_ig| / 4 + RIDGE.
    """
    room_N = np.empty_like(votes.sign_N)
    length_V = np.bincount(votes.vote_N, minlength=len(weight_V)) + votes.graded_V
    curve_F = np.bincount(votes.feature_N, (weight_V * length_V)[votes.vote_N], votes.features)
    step_F = 1.0 / (curve_F / 4.0 + RIDGE)
    graded_V = weight_V * votes.graded_V
    step = 4.0 / (float(graded_V @ length_V) + 1.0)
    up, down = (float(graded_V @ (votes.side_V == side)) for side in (1.0, -1.0))
    beta_F, bias = np.zeros(votes.features), log((up + 1.0) / (down + 1.0))
    ahead_F, ahead = beta_F, bias
    for n in range(STEPS):
        said_V = votes.side_V * (ahead * votes.graded_V + _times(votes, ahead_F, room_N))
        pull_V = weight_V * votes.side_V / (1.0 + np.exp(np.minimum(said_V, 500.0)))
        last_F, last = beta_F, bias
        beta_F = ahead_F + step_F * (_transposed(votes, pull_V, room_N) - RIDGE * ahead_F)
        bias = ahead + step * float(pull_V @ votes.graded_V)
        momentum = n / (n + 3.0)
        ahead_F, ahead = beta_F + momentum * (beta_F - last_F), bias + momentum * (bias - last)
    return beta_F, bias


def _times(votes: Ballots, beta_F: Floats, room_N: Floats) -> Floats:
    np.take(beta_F, votes.feature_N, out=room_N, mode="clip")
    np.multiply(room_N, votes.sign_N, out=room_N)
    return np.bincount(votes.vote_N, room_N, len(votes.side_V))


def _transposed(votes: Ballots, pull_V: Floats, room_N: Floats) -> Floats:
    np.take(pull_V, votes.vote_N, out=room_N, mode="clip")
    np.multiply(room_N, votes.sign_N, out=room_N)
    return np.bincount(votes.feature_N, room_N, votes.features)


def _fold(account: str) -> int:
    return blake2b(f"trust\x1f{account}".encode("utf-8", "surrogatepass"), digest_size=8).digest()[0] % FOLDS
