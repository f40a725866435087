"""What held-out pairs say of a scorer: accuracy, calibration and what it owes to length. Pure.

Legend: B pairs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.measures import Floats, brier, calibration_error, wilson

BINS = 15
DECILES = 10
TEMPERATURES = np.geomspace(0.02, 50.0, 400)
Unit = Literal["tokens", "characters"]


@dataclass(frozen=True)
class Judged:
    """Held-out pairs with a scorer's margins, log-odds that `chosen` is the better one."""

    margin_B: Floats
    p_B: Floats
    """Soft labels, 0.5..1; 0.5 is a tie."""
    kinds: Sequence[str]
    conversations: Sequence[str]
    """What the halves of a cross-fit must not share."""
    length_difference_B: Floats
    """Length of `chosen` less that of `rejected`."""
    unit: Unit
    dimensions: Sequence[Mapping[str, float]] = ()
    """Probability that `chosen` is the better one by dimension, for pairs whose raters were asked."""
    reward_B: Floats | None = None
    """Margins of the whole reward, where it is more than its overall part: decides what counts as right."""

    @property
    def decided_B(self) -> NDArray[np.bool_]:
        return np.not_equal(self.p_B, 0.5)

    @property
    def right_B(self) -> NDArray[np.bool_]:
        return (self.margin_B if self.reward_B is None else self.reward_B) > 0


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How many of some pairs were told right, with Wilson's 95 % interval; ties are left out."""

    name: str
    pairs: int
    accuracy: float
    low: float
    high: float


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """One of the bins of equal mass: what was said, and what was so."""

    pairs: int
    said: float
    was: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    error: float
    """Expected calibration error over 15 bins of equal mass."""
    brier: float
    bins: tuple[Bin, ...]


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one scorer that its card shows."""

    accuracy: Share
    by_kind: tuple[Share, ...]
    by_dimension: tuple[Share, ...]
    """How often the reward takes the side that raters take as to helpful, honest or harmless."""
    by_length_difference: tuple[Share, ...]
    """Deciles of the length of `chosen` less that of `rejected`."""
    shorter_is_better: Share
    """What the rule `the shorter reply is better` gets right on the same pairs."""
    length_correlation: float
    """Of margin and length difference over the pairs: 0 owes nothing to length."""
    label_length_correlation: float
    """Of the people's answer (random sides) and the length difference: what the labels owe to it."""
    temperature: float
    """Margins divided by it have the least log loss on the held-out pairs."""
    raw: Calibration
    scaled: Calibration
    """Under temperatures that were fitted on the other half of the conversations."""
    unit: Unit
    margins: tuple[float, ...]
    length_differences: tuple[float, ...]
    """Of the same pairs, for the plot."""
    by_own_head: tuple[Share, ...] = ()
    """How often a dimension's own heads take that side, also of ratings."""


def find(judged: Judged) -> Findings:
    """Raises nothing: from no pairs, intervals say that nothing is known."""
    decided_B, right_B, length_B = judged.decided_B, judged.right_B, judged.length_difference_B
    kinds_B = np.array(judged.kinds, dtype=str)
    differing_B = decided_B & (length_B != 0)
    return Findings(
        accuracy=_share("all", right_B[decided_B]),
        by_kind=tuple(_share(str(k), right_B[decided_B & (kinds_B == k)]) for k in sorted(set(kinds_B))),
        by_dimension=by_dimension(judged),
        by_length_difference=by_length(right_B[decided_B], length_B[decided_B]),
        shorter_is_better=_share("shorter is better", length_B[differing_B] < 0),
        length_correlation=_correlation(judged.margin_B, length_B),
        label_length_correlation=_correlation(np.ones(len(length_B)), length_B),
        temperature=temperature(judged.margin_B, judged.p_B),
        raw=calibration(judged.margin_B, judged.p_B),
        scaled=calibration(cross_fitted(judged), judged.p_B),
        unit=judged.unit,
        margins=tuple(judged.margin_B.round(4).tolist()),
        length_differences=tuple(length_B.tolist()),
    )


def by_dimension(judged: Judged) -> tuple[Share, ...]:
    """In order of name; of pairs on whose dimension the raters took a side."""
    sides: dict[str, list[bool]] = defaultdict(list)
    for takes_side, said in zip(judged.right_B, judged.dimensions, strict=False):
        for name, p in said.items():
            if p != 0.5:
                sides[name].append(takes_side == (p > 0.5))
    return tuple(_share(name, np.array(sides[name])) for name in sorted(sides))


def by_length(right_B: NDArray[np.bool_], length_B: Floats) -> tuple[Share, ...]:
    """Accuracy by decile of the length difference, from much shorter to much longer."""
    order = np.argsort(length_B, kind="stable")
    parts = [part for part in np.array_split(order, DECILES) if len(part)]
    names = [f"{length_B[part[0]]:+.0f} to {length_B[part[-1]]:+.0f}" for part in parts]
    return tuple(_share(name, right_B[part]) for name, part in zip(names, parts, strict=True))


def temperature(margin_B: Floats, p_B: Floats) -> float:
    """The T of least log loss of σ(margin / T); 1 from nothing.   Source: arXiv:1706.04599, 4.2."""
    if not len(margin_B):
        return 1.0
    scaled_TB = margin_B[None, :] / TEMPERATURES[:, None]
    loss_T = (p_B * np.logaddexp(0, -scaled_TB) + (1 - p_B) * np.logaddexp(0, scaled_TB)).mean(axis=1)
    return float(TEMPERATURES[int(loss_T.argmin())])


def cross_fitted(judged: Judged) -> Floats:
    """Margins over a temperature that was fitted on the other half of the conversations."""
    names, index_B = np.unique(np.asarray(judged.conversations, dtype=str), return_inverse=True)
    half_B = index_B % 2 == 0
    if len(names) < 2:
        return judged.margin_B
    first, second = (temperature(judged.margin_B[h], judged.p_B[h]) for h in (half_B, ~half_B))
    fitted_B = np.where(half_B, second, first)
    scaled_B: Floats = judged.margin_B / fitted_B
    return scaled_B


def calibration(margin_B: Floats, p_B: Floats) -> Calibration:
    """Of probabilities with every other pair's sides swapped: `chosen` is always the likelier better one."""
    flip_B = np.arange(len(p_B)) % 2 == 1
    said_B = 1.0 / (1.0 + np.exp(-np.where(flip_B, -margin_B, margin_B)))
    was_B = np.where(flip_B, 1.0 - p_B, p_B)
    order = np.argsort(said_B, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return Calibration(
        error=calibration_error(said_B, was_B, BINS),
        brier=brier(said_B, was_B),
        bins=tuple(
            Bin(pairs=len(part), said=float(said_B[part].mean()), was=float(was_B[part].mean()))
            for part in parts
        ),
    )


def _share(name: str, right: NDArray[np.bool_]) -> Share:
    found = wilson(float(right.sum()), len(right))
    return Share(name=name, pairs=len(right), accuracy=found.value, low=found.low, high=found.high)


def _correlation(x_B: Floats, length_B: Floats) -> float:
    """Of x and length over both orders of every pair, so that neither has a mean; 0 where nothing varies."""
    size = float(np.sqrt((x_B**2).sum() * (length_B**2).sum()))
    return float((x_B * length_B).sum()) / size if size > 0 else 0.0
