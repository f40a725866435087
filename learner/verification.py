"""Verified rewards: what checks say of replies to problems, on the scale and at the tokens that PPO needs.

    score = a·r + Σ_c w_c·(2·v_c − 1)        r learned, in deviations of the root reference; v_c in [0, 1]

2v − 1 has mean 0 and deviation 1 for a problem that half of the replies solve: it is standardised for that
problem once and for all. Measuring its deviation, as is done for r, would let a pass count ten deviations
where the root solves one problem in a hundred.

A check of steps spreads its weight over as many marks as steps are expected, each at the token with which its
step ends: Σ_t of a reply's verified rewards lies within ±Σ_c w_c, however long the reply and its steps.

A mark that could not be had (no verdict) is replaced by the mean of the same mark over the other replies to
the prompt, ½ where there is none: it moves the reply neither up nor down. It is counted.

Legend: B samples, T response token.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from learner import verifiers
from learner.batches import Encoder, Sample, padded
from learner.distributed import from_main
from learner.problems import Check, ProblemSet
from learner.verifiers import Mark, Run


class Tally(NamedTuple):
    """What one kind of check said."""

    score: float = 0.0
    """Sum over the checks with a verdict, 0 to 1 each."""
    verdicts: int = 0
    without: int = 0
    """Checks without a verdict."""

    @property
    def rate(self) -> float:
        """Mean score of a check that had a verdict; 0 without any."""
        return self.score / self.verdicts if self.verdicts else 0.0

    @property
    def unknown(self) -> float:
        """Share without a verdict."""
        return self.without / max(1, self.without + self.verdicts)


@dataclass(frozen=True)
class Verified:
    """What checks say of samples. Zero rewards and full learned weight where there was nothing to check."""

    rewards_BT: Tensor
    """In deviations of the learned reward."""
    learned_weight_B: Tensor
    """a of each sample."""
    tallies: Mapping[str, Tally]
    """By kind of check."""

    @property
    def unknown(self) -> float:
        """Share of all checks without a verdict."""
        together = Tally()
        for tally in self.tallies.values():
            together = added(together, tally)
        return together.unknown

    def mixed(self, learned_B: Tensor) -> Tensor:
        """scores_B: the learned ones with the checks' part."""
        rewards_B = self.rewards_BT.sum(dim=1).to(learned_B)
        return self.learned_weight_B.to(learned_B) * learned_B + rewards_B


Verify = Callable[[Sequence[Sample]], Verified]


def unverified(samples: Sequence[Sample]) -> Verified:
    """No sample answers a problem."""
    return Verified(padded([[0.0] * len(s.ids) for s in samples]), torch.ones(len(samples)), {})


def joined(parts: Sequence[Verified]) -> Verified:
    """Of several lists of samples, in their order; as wide as the widest."""
    width = max(part.rewards_BT.shape[1] for part in parts)
    tallies: dict[str, Tally] = {}
    for part in parts:
        for kind, tally in part.tallies.items():
            tallies[kind] = added(tallies.get(kind, Tally()), tally)
    return Verified(
        torch.cat([torch.nn.functional.pad(p.rewards_BT, (0, width - p.rewards_BT.shape[1])) for p in parts]),
        torch.cat([part.learned_weight_B for part in parts]),
        tallies,
    )


def added(one: Tally, other: Tally) -> Tally:
    return Tally(one.score + other.score, one.verdicts + other.verdicts, one.without + other.without)


Marks = list[list[Mark]]
"""Of one reply: those of each of its problem's checks."""


class Verifier:
    """Checks replies to problems; other samples it leaves alone."""

    def __init__(self, problems: ProblemSet, encoder: Encoder, run: Run, at_once: int = 2) -> None:
        """`at_once` programs run at the same time."""
        self.problems = problems.by_digest()
        self.settings = problems.settings
        self.encoder = encoder
        self.run = run
        self.at_once = at_once

    def __call__(self, samples: Sequence[Sample]) -> Verified:
        """Of samples that hold a prompt's replies together. Every process of a launch gets the main one's."""
        texts = [self.encoder.text(s) if s.prompt.digest in self.problems else "" for s in samples]
        marks = from_main(lambda: self.marks(samples, texts))
        fill = _means(samples, marks)
        rewards = [[0.0] * len(s.ids) for s in samples]
        for i, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            for c, (check, found) in enumerate(zip(self._checks(sample), marks[i], strict=True)):
                weight = self.settings.weights.get(check.kind, 1.0)
                for k, mark in enumerate(found):
                    score = fill[sample.prompt.digest, c, k] if mark.score is None else mark.score
                    place = token_at(self.encoder, sample, text, mark.end)
                    rewards[i][place] += weight * mark.share * (2.0 * score - 1.0)
        a = self.settings.learned_weight
        weights = [a if sample.prompt.digest in self.problems else 1.0 for sample in samples]
        return Verified(padded(rewards), torch.tensor(weights), self.tallies(samples, marks))

    def marks(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[Marks]:
        """Each sample's marks, [] without a problem. Equal replies to a problem are checked once."""
        keys = [(s.prompt.digest, text) for s, text in zip(samples, texts, strict=True)]
        asked = [key for key in dict.fromkeys(keys) if key[0] in self.problems]
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="verifier") as pool:
            found = dict(zip(asked, pool.map(self._check, asked), strict=True))
        return [found.get(key, []) for key in keys]

    def _check(self, asked: tuple[str, str]) -> Marks:
        digest, text = asked
        return [verifiers.check(check, text, self.run) for check in self.problems[digest].checks]

    def _checks(self, sample: Sample) -> list[Check]:
        problem = self.problems.get(sample.prompt.digest)
        return problem.checks if problem else []

    def tallies(self, samples: Sequence[Sample], marks: Sequence[Marks]) -> dict[str, Tally]:
        """By kind. A check counts once, with the mean of its marks."""
        found: dict[str, Tally] = {}
        for sample, own in zip(samples, marks, strict=True):
            for check, several in zip(self._checks(sample), own, strict=True):
                score = score_of(several)
                said = Tally(without=1) if score is None else Tally(score, 1)
                found[check.kind] = added(found.get(check.kind, Tally()), said)
        return found


def score_of(marks: Sequence[Mark]) -> float | None:
    """A check's score, 0 to 1; None when a mark is missing."""
    scores = [mark.score for mark in marks]
    return None if None in scores else sum(m.share * m.score for m in marks if m.score is not None)


def _means(samples: Sequence[Sample], marks: Sequence[Marks]) -> Mapping[tuple[str, int, int], float]:
    """By prompt, check and mark: the mean of those replies that have it; ½ from none."""
    had: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for sample, own in zip(samples, marks, strict=True):
        for c, several in enumerate(own):
            for k, mark in enumerate(several):
                had[sample.prompt.digest, c, k] += [] if mark.score is None else [mark.score]
    return {key: sum(scores) / len(scores) if scores else 0.5 for key, scores in had.items()}


def token_at(encoder: Encoder, sample: Sample, text: str, end: int | None) -> int:
    """The token with which the first `end` characters of the reply are all there; the last one for None."""
    last = len(sample.ids) - 1
    if end is None:
        return last

    def said(t: int) -> bool:
        return encoder.text(replace(sample, ids=sample.ids[: t + 1])).startswith(text[:end])

    return min(last, bisect_left(range(len(sample.ids)), True, key=said))
