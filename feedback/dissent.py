"""Who speaks against all others, everywhere or about one subject: two questions to each account's votes.

1. *Does it say the opposite?* `expectation` says what all others would have said of a reply. An honest
   account follows it as far as it goes, an opposed one its contrary:

       log odds(honest) += log P(vote | bias + merit) - log P(vote | bias - merit)

   Odd tastes follow neither and keep their weight; who likes or dislikes everything does, too.
2. *Does it follow a line about the subject that few share?* A slow drip lies rarely, and each lie may be
   right by the way. So those in doubt about a subject are fitted on their own, and whoever their common line
   predicts better than everybody's does is one of them:

       log odds(honest about s) += log P(vote | everybody's line) - log P(vote | the doubted accounts' line)

   They are first sought where a subject drifts from what is said of all others, then in what they share.

Both lines are fitted without the voter's own votes. Most voices on a subject must be honest: where liars are
the majority, they are the consensus. Functions of the votes in the order given; deletes and weighs nothing.

Legend: V vote, K group of votes, N vote in a group, A account, P place (an account on a subject).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np

from feedback import expectation
from feedback.expectation import Floats, Ints

PRIOR = 0.02
"""Share of accounts that are taken to be opposed before any evidence."""
SUBJECT_PRIOR = 0.5
"""The same of accounts on one subject: what is in doubt there costs little, since others speak of it too."""
EVIDENCE = log(9.0)
"""nats that one vote may speak for or against its account."""
SLACK = 0.02
"""nats against an account that are as good as none: folds differ a little even where all agree."""
VOICE_TIMES = 2.0
"""An account's voice in the consensus on a subject is at most this many times the usual one."""
RIDGE = 10.0
"""Of everybody's line: a word must have been judged often to matter."""
DISSENT_RIDGE = 0.5
"""Of the doubted accounts' line, which has few votes to be learned from."""
DRIFT_TIMES = 3.0
"""A minority pulls a subject's line only part of the way: theirs is first sought so many times as far."""
ROUNDS = 2
"""Times that the consensus is fitted anew with what was found of the accounts."""
DISSENT_ROUNDS = 3
"""Times in each that the doubted accounts' line is fitted anew."""
_DIGITS = 4

Place = tuple[str, str]
"""An account and a subject."""


class Vote(NamedTuple):
    account: str
    subjects: tuple[str, ...]
    words: dict[str, float]
    """Words of the reply, 1 each; of a comparison the chosen reply's words 1, the other's -1."""
    side: float
    """1 for up or preferred, -1 for down."""
    graded: bool
    """Whether it is about one reply, not two."""
    share: float
    """1 / sqrt(the account's votes on near-duplicates of this prompt): they are not so many witnesses."""


class Belief(NamedTuple):
    honest: dict[str, float]
    """P(honest) by account as a share of the prior's, 0..1: no evidence is no loss."""
    on_subject: dict[Place, float]
    evidence: list[float]
    """What each vote says for its account, nats; negative: against."""


def believe(votes: Sequence[Vote], trusted: Collection[str] = ()) -> Belief:
    """Args: trusted, accounts that are honest whatever they say."""
    if not votes:
        return Belief({}, {}, [])
    accounts = _grouped([(vote.account,)] for vote in votes)
    places = _grouped([(vote.account, subject) for subject in vote.subjects] for vote in votes)
    said = _tabled(votes, places)
    honest_A, kept_P = np.ones(len(accounts.keys)), np.ones(len(places.keys))
    in_line_P: Floats | None = None
    for _ in range(ROUNDS):
        line = _everybody(said, accounts.least(honest_A) * places.least(kept_P))
        for_V = _evidence(said, line.common_V, line.opposite_V)
        honest_A = _posterior(accounts.sums(for_V), PRIOR)
        if in_line_P is None:
            further_V = line.common_V + (DRIFT_TIMES - 1.0) * line.drift_V
            in_line_P = places.sums(_evidence(said, line.common_V, further_V))
        for _ in range(DISSENT_ROUNDS):
            doubt_V = 1.0 - places.least(_posterior(in_line_P, SUBJECT_PRIOR))
            theirs_V = expectation.expected(
                said.together, said.side_V, said.voice_V * doubt_V, np.zeros_like(doubt_V), DISSENT_RIDGE
            )
            in_line_P = places.sums(_evidence(said, line.common_V, theirs_V))
        kept_P = _posterior(np.minimum(in_line_P, places.sums(for_V)), SUBJECT_PRIOR)
        honest_A[accounts.of(trusted)] = kept_P[places.of(trusted)] = 1.0
    return Belief(
        {account: p for (account, *_), p in accounts.named(honest_A)},
        {(account, subject): p for (account, subject), p in places.named(kept_P)},
        for_V.tolist(),
    )


@dataclass(frozen=True)
class _Said:
    """The votes as arrays."""

    words: expectation.Features
    together: expectation.Features
    """Words with the subject they were said about."""
    side_V: Floats
    graded_V: Floats
    share_V: Floats
    voice_V: Floats
    """What each weighs in the consensus: the share, within VOICE_TIMES."""


class _Line(NamedTuple):
    """What everybody else would say, as logits."""

    common_V: Floats
    opposite_V: Floats
    """The same about the usual vote turned round."""
    drift_V: Floats
    """What of it is owed to the subject."""


def _tabled(votes: Sequence[Vote], places: "_Groups") -> _Said:
    accounts = [vote.account for vote in votes]
    share_V = np.array([vote.share for vote in votes])
    total_P = places.sums(share_V)
    scale_P = np.minimum(1.0, VOICE_TIMES * np.median(total_P) / total_P) if len(total_P) else total_P
    return _Said(
        words=expectation.features(accounts, (vote.words for vote in votes)),
        together=expectation.features(accounts, map(_together, votes)),
        side_V=np.array([vote.side for vote in votes]),
        graded_V=np.array([float(vote.graded) for vote in votes]),
        share_V=share_V,
        voice_V=share_V * places.least(scale_P),
    )


def _together(vote: Vote) -> dict[str, float]:
    return {f"{subject}\x1f{word}": sign for subject in vote.subjects for word, sign in vote.words.items()}


def _everybody(said: _Said, believed_V: Floats) -> _Line:
    weight_V = said.voice_V * believed_V
    bias_V = expectation.habit(said.graded_V, said.side_V, weight_V)
    merit_V = expectation.expected(said.words, said.side_V, weight_V, bias_V, RIDGE)
    drift_V = expectation.expected(said.together, said.side_V, weight_V, bias_V + merit_V, RIDGE)
    graded_V = weight_V * said.graded_V
    mean = float(graded_V @ (merit_V + drift_V)) / max(float(graded_V.sum()), 1e-9)
    usual_V = bias_V + mean * said.graded_V
    common_V = bias_V + merit_V + drift_V
    return _Line(common_V, 2.0 * usual_V - common_V, drift_V)


def _evidence(said: _Said, one_V: Floats, other_V: Floats) -> Floats:
    """log P(vote | logit one) - log P(vote | logit other), within ±EVIDENCE, times the share; nats."""
    apart_V = np.logaddexp(0.0, -said.side_V * other_V) - np.logaddexp(0.0, -said.side_V * one_V)
    return np.asarray(np.clip(apart_V, -EVIDENCE, EVIDENCE) * said.share_V)


def _posterior(evidence_K: Floats, prior: float) -> Floats:
    """P(honest) as a share of the prior's."""
    odds_K = np.clip(evidence_K + SLACK + log((1.0 - prior) / prior), -500.0, 500.0)
    return np.round(np.minimum(1.0, 1.0 / (1.0 + np.exp(-odds_K)) / (1.0 - prior)), _DIGITS)


@dataclass(frozen=True)
class _Groups:
    """Votes by what they have in common; a vote may be in several groups."""

    keys: list[tuple[str, ...]]
    key_N: Ints
    vote_N: Ints
    votes: int

    def sums(self, found_V: Floats) -> Floats:
        sums_K: Floats = np.bincount(self.key_N, found_V[self.vote_N], len(self.keys)).astype(
            float, copy=False
        )
        return sums_K

    def least(self, found_K: Floats) -> Floats:
        """The least of each vote's groups; 1 for votes in none."""
        least_V = np.ones(self.votes)
        np.minimum.at(least_V, self.vote_N, found_K[self.key_N])
        return least_V

    def of(self, accounts: Collection[str]) -> list[int]:
        return [n for n, key in enumerate(self.keys) if key[0] in accounts]

    def named(self, found_K: Floats) -> Iterable[tuple[tuple[str, ...], float]]:
        return zip(self.keys, found_K.tolist(), strict=True)


def _grouped(keys: Iterable[Iterable[tuple[str, ...]]]) -> _Groups:
    number: dict[tuple[str, ...], int] = {}
    found = [[number.setdefault(key, len(number)) for key in own] for own in keys]
    return _Groups(
        keys=list(number),
        key_N=np.array([n for own in found for n in own], dtype=np.int64),
        vote_N=np.repeat(np.arange(len(found)), [len(own) for own in found]),
        votes=len(found),
    )
