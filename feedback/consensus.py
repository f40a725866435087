"""What raters agree on: Krippendorff's alpha, Dawid and Skene's reliabilities, one pair from many answers.

Pure. An answer about two replies is 1 (the first is better), 1/2 (neither) or 0. Ids decide which reply is
the first, so everything here is the same if all pairs are turned round.

Legend: I items, R raters, L labels, P patterns of answers, D bootstrap samples, C 0, 1/2 and 1.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from feedback.events import BOTH_BAD, DIMENSIONS, SignalKind
from feedback.raters import WEIGHT_DIGITS
from feedback.records import Grade, Pair, Vote
from feedback.text import canonical

OVERALL = "overall"
MIN_WEIGHT = 0.01
"""A pair of which the raters leave less certainty than this is left out."""
DRAWS = 1000
_SEED = 20
_CLASSES = (0.0, 0.5, 1.0)
_PRIOR = 4.0 * np.array([[0.75, 0.15, 0.10], [0.20, 0.60, 0.20], [0.10, 0.15, 0.75]])
"""A rater's answers (columns) to each truth (rows), as if so many had been seen before the first."""
ROUNDS = 200
_TOLERANCE = 1e-6
_DIGITS = 6

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Row = TypeVar("Row", Grade, Pair)


class Label(NamedTuple):
    """One rater's answer about one item: 0, 1/2 or 1."""

    item: str
    rater: str
    value: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Krippendorff's alpha: 1 is perfect, 0 is chance."""

    dimension: str
    alpha: float | None
    """None when no item has two answers, or all answers are the same."""
    low: float | None = None
    high: float | None = None
    """95 %, from resampling items."""
    items: int
    """Items with two answers or more."""
    answers: int
    """All answers, those of items with one among them."""


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """How one rater answers, after Dawid and Skene."""

    rater: str
    answers: int
    right: float
    """Where one reply is better, the probability of saying so."""
    opposite: float
    """Where one reply is better, the probability of preferring the other."""
    split: float
    """Where neither is better, the probability of preferring one."""


class Settled(NamedTuple):
    """What Dawid and Skene's model makes of all answers."""

    posteriors: dict[str, Floats]
    """By item, the probability of 0, 1/2 and 1."""
    raters: tuple[Reliability, ...]
    """In order of name."""


def alpha(labels: Iterable[Label], dimension: str = OVERALL) -> Agreement:
    """Krippendorff's alpha, interval metric: a tie and a preference are a quarter of a contradiction.

        alpha = 1 - D_o / D_e
        D_o = 1/n Σ_u 1/(m_u - 1) Σ_{i≠j in u} (v_i - v_j)²        D_e = 1/(n (n - 1)) Σ_{i≠j} (v_i - v_j)²

    u: items with m_u ≥ 2 answers, n of them in all. The interval: percentiles of DRAWS bootstrap samples of
    items. Source: Krippendorff, Computing Krippendorff's alpha-reliability, 2011.
    """
    by_item: dict[str, list[int]] = defaultdict(list)
    for label in labels:
        by_item[label.item].append(_class(label.value))
    patterns = sorted(Counter(_pattern(said) for said in by_item.values() if len(said) > 1).items())
    count_PC = np.array([pattern for pattern, _ in patterns], dtype=float).reshape(-1, 3)
    times_P = np.array([times for _, times in patterns], dtype=float)
    items, answers = int(times_P.sum()), sum(map(len, by_item.values()))
    found = float(_alpha(count_PC, times_P[None])[0])
    if np.isnan(found):
        return Agreement(dimension=dimension, alpha=None, items=items, answers=answers)
    drawn_DP = np.random.default_rng(_SEED).multinomial(items, times_P / items, size=DRAWS)
    low, high = np.nanquantile(_alpha(count_PC, drawn_DP.astype(float)), [0.025, 0.975])
    return Agreement(
        dimension=dimension,
        alpha=round(found, _DIGITS),
        low=round(float(low), _DIGITS),
        high=round(float(high), _DIGITS),
        items=items,
        answers=answers,
    )


def _pattern(said: Sequence[int]) -> tuple[int, ...]:
    """How many raters gave each answer: all that alpha asks of an item."""
    return tuple(said.count(answer) for answer in range(len(_CLASSES)))


def _alpha(count_PC: Floats, times_DP: Floats) -> Floats:
    """alpha_D of samples that hold times_DP items of each pattern of answers; NaN where nothing differs."""
    apart_CC = np.subtract.outer(_CLASSES, _CLASSES) ** 2
    per_item_P = np.einsum("pc,cd,pd->p", count_PC, apart_CC, count_PC) / (count_PC.sum(axis=1) - 1.0)
    total_DC = times_DP @ count_PC
    expected_D = np.einsum("bc,cd,bd->b", total_DC, apart_CC, total_DC)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha_D: Floats = 1.0 - (total_DC.sum(axis=1) - 1.0) * (times_DP @ per_item_P) / expected_D
    return alpha_D


class _Answers(NamedTuple):
    """Labels as indices."""

    items: list[str]
    raters: list[str]
    item_L: Indices
    rater_L: Indices
    said_L: Indices

    @classmethod
    def of(cls, labels: Iterable[Label]) -> "_Answers":
        given = sorted(labels)
        items, item_L = np.unique([label.item for label in given], return_inverse=True)
        raters, rater_L = np.unique([label.rater for label in given], return_inverse=True)
        said_L = np.array([_class(label.value) for label in given], dtype=np.int64)
        return cls(items.tolist(), raters.tolist(), item_L, rater_L, said_L)


def dawid_skene(
    labels: Iterable[Label], known: Mapping[str, float] | None = None, rounds: int = ROUNDS
) -> Settled:
    """Each item's truth and each rater's habits, by EM from the majority's word.

        E: P(truth_i = t) ∝ p_t Π_r pi_r[t, said_ir]
        M: pi_r[t, s] ∝ prior[t, s] + Σ_i P(truth_i = t) [said_ir = s]

    With a prior, since most raters have few answers; with p and pi the same when 0 and 1 change places, since
    the order of two ids means nothing. Args: known, answers that are certain, by item.
    Source: Dawid & Skene 1979, doi:10.2307/2346806.
    """
    said = _Answers.of(labels)
    fixed = {n: _class(known[item]) for n, item in enumerate(said.items) if known and item in known}
    votes_IC = np.zeros((len(said.items), len(_CLASSES)))
    np.add.at(votes_IC, (said.item_L, said.said_L), 1.0)
    posterior_IC = _clamped(votes_IC, fixed)
    for _ in range(rounds):
        before_IC = posterior_IC
        posterior_IC = _clamped(_truths(said, _habits(said, before_IC), before_IC), fixed)
        if np.allclose(posterior_IC, before_IC, rtol=0.0, atol=_TOLERANCE):
            break
    habit_RCC = _habits(said, posterior_IC)
    answers_R = np.bincount(said.rater_L, minlength=len(said.raters))
    return Settled(
        dict(zip(said.items, posterior_IC, strict=True)),
        tuple(_reliability(r, int(answers_R[n]), habit_RCC[n]) for n, r in enumerate(said.raters)),
    )


def _truths(said: _Answers, habit_RCC: Floats, posterior_IC: Floats) -> Floats:
    """The E step, up to a factor for each item. Both preferences are as likely, and one item is added to each
    class."""
    share_C = posterior_IC.sum(axis=0) + 1.0
    log_IC = np.tile(np.log(share_C + share_C[::-1]), (len(said.items), 1))
    np.add.at(log_IC, said.item_L, np.log(habit_RCC[said.rater_L, :, said.said_L]))
    weight_IC: Floats = np.exp(log_IC - log_IC.max(axis=1, keepdims=True, initial=-np.inf))
    return weight_IC


def _habits(said: _Answers, posterior_IC: Floats) -> Floats:
    """The M step: pi_RCC, rows truth, columns answer; the same when 0 and 1 change places."""
    seen_RCC = np.zeros((len(said.raters), len(_CLASSES), len(_CLASSES)))
    np.add.at(seen_RCC.transpose(0, 2, 1), (said.rater_L, said.said_L), posterior_IC[said.item_L])
    seen_RCC = seen_RCC + seen_RCC[:, ::-1, ::-1] + 2.0 * _PRIOR
    habit_RCC: Floats = seen_RCC / seen_RCC.sum(axis=2, keepdims=True)
    return habit_RCC


def _clamped(weight_IC: Floats, fixed: Mapping[int, int]) -> Floats:
    posterior_IC: Floats = weight_IC / weight_IC.sum(axis=1, keepdims=True)
    for item, truth in fixed.items():
        posterior_IC[item] = np.eye(len(_CLASSES))[truth]
    return posterior_IC


def _reliability(rater: str, answers: int, habit_CC: Floats) -> Reliability:
    return Reliability(
        rater=rater,
        answers=answers,
        right=round(float(habit_CC[2, 2]), _DIGITS),
        opposite=round(float(habit_CC[2, 0]), _DIGITS),
        split=round(float(habit_CC[1, 0] + habit_CC[1, 2]), _DIGITS),
    )


def certainty(posterior_C: Floats) -> float:
    """1 when the truth is certain, also that neither is better; 0 when nothing is known.

    1 - H / log 3        H: the entropy of the posterior
    """
    p_C = posterior_C[posterior_C > 0.0]
    return float(1.0 + (p_C * np.log(p_C)).sum() / np.log(3.0))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All reviews of a snapshot or of the state."""

    items: int = 0
    agreement: tuple[Agreement, ...] = ()
    """Overall, then by dimension."""
    raters: tuple[Reliability, ...] = ()


def apart(said: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """What raters said, and all other rows."""
    rows = list(said)
    return (
        [r for r in rows if r.kind is SignalKind.REVIEW],
        [r for r in rows if r.kind is not SignalKind.REVIEW],
    )


class Settlement(NamedTuple):
    """What all raters together make of what each of them said."""

    pairs: list[Pair]
    """One for each two replies of which one or neither is better."""
    grades: list[Grade]
    """Of both replies where neither will do: one for each rater who said so."""
    report: Report


def settle(answers: Iterable[Pair], others: Iterable[Pair] = (), grades: Iterable[Grade] = ()) -> Settlement:
    """One pair for each two replies that raters answered about, and how far they can be believed.

        p = P(chosen better) + P(neither) / 2        weight = certainty of the posterior

    Where neither is better, and most who say so call both bad, there is no pair but bad grades of each:

        p = (1 - P(both bad)) / 2        P(both bad) = P(neither) * share of "both bad" among the ties

    with the weight of the pair, shared by the raters who said it.
    Args: answers, of kind review, one for each rater; others, of which operators' labels count as known;
    grades, of kind review, one for each rater and reply.
    """
    by_item: dict[str, list[Pair]] = defaultdict(list)
    for answer in sorted(answers, key=lambda p: p.pair_id):
        by_item[_item(answer)].append(answer)
    known = _known(others)
    overall = [Label(item, p.user, _of_first(p, p.p)) for item, same in by_item.items() for p in same]
    found = dawid_skene(overall, known)
    labels = {name: _labels(by_item, name) for name in DIMENSIONS}
    settled = {name: dawid_skene(said).posteriors for name, said in labels.items()}
    both_bad = {item: _both_bad(same, found.posteriors[item]) for item, same in by_item.items()}
    pairs = [
        _settled(same, found.posteriors[item], {n: by[item] for n, by in settled.items() if item in by})
        for item, same in sorted(by_item.items())
        if both_bad[item] <= 0.5
    ]
    agreement = (alpha(overall), *(alpha(said, name) for name, said in labels.items()))
    report = Report(items=len(by_item), agreement=agreement if by_item else (), raters=found.raters)
    bad = {
        item: _Bad(share, certainty(found.posteriors[item]), _who_say_both_bad(by_item[item]))
        for item, share in both_bad.items()
        if share > 0.5
    }
    return Settlement([p for p in pairs if p.weight >= MIN_WEIGHT], _bad_grades(grades, bad), report)


class _Bad(NamedTuple):
    """Two replies that will not do."""

    share: float
    """Probability that they will not, by the raters."""
    weight: float
    raters: frozenset[str]
    """Those who said so."""


def _both_bad(answers: Sequence[Pair], posterior_C: Floats) -> float:
    """The probability that neither reply will do."""
    ties = [BOTH_BAD in a.reason for a in answers if a.p == 0.5]
    return float(posterior_C[1]) * sum(ties) / len(ties) if ties else 0.0


def _who_say_both_bad(answers: Iterable[Pair]) -> frozenset[str]:
    return frozenset(a.user for a in answers if BOTH_BAD in a.reason)


def _bad_grades(grades: Iterable[Grade], bad: Mapping[str, _Bad]) -> list[Grade]:
    """Each rater's grades of those replies, as the surest finding about the reply has them."""
    of_reply: dict[str, list[_Bad]] = defaultdict(list)
    for item, found in bad.items():
        for response_id in item.split("\x1f"):
            of_reply[response_id].append(found)
    kept = [g for g in grades if any(g.user in found.raters for found in of_reply[g.response_id])]
    raters = Counter(g.response_id for g in kept)
    made = []
    for grade in sorted(kept, key=lambda g: g.grade_id):
        surest = max(of_reply[grade.response_id], key=lambda found: (found.share, found.weight))
        weight = round(surest.weight / raters[grade.response_id], WEIGHT_DIGITS)
        p = round((1.0 - surest.share) / 2.0, _DIGITS)
        made.append(msgspec.structs.replace(grade, p=p, weight=weight))
    return made


def _settled(answers: Sequence[Pair], posterior_C: Floats, by_dimension: Mapping[str, Floats]) -> Pair:
    """The answers' pair, turned the way that the posterior leans."""
    first_better = _expected(posterior_C)
    first = min(answers[0].chosen_response_id, answers[0].rejected_response_id)
    chosen = next((a for a in answers if (a.chosen_response_id == first) == (first_better >= 0.5)), None)
    shown = chosen or _turned(answers[0])
    turned = shown.chosen_response_id != first
    votes = tuple(_vote(a, shown) for a in sorted(answers, key=lambda a: a.user))
    raters = tuple(vote.rater for vote in votes)
    return msgspec.structs.replace(
        shown,
        pair_id=_pair_id(shown),
        user=raters[0],
        raters=raters,
        p=round(max(first_better, 1.0 - first_better), _DIGITS),
        weight=round(certainty(posterior_C), WEIGHT_DIGITS),
        dimensions={
            name: round(1.0 - _expected(by) if turned else _expected(by), _DIGITS)
            for name, by in by_dimension.items()
        },
        votes=votes,
        reason=_reason(answers, votes),
        event_ids=tuple(sorted(set(chain.from_iterable(a.event_ids for a in answers)))),
        at=max(a.at for a in answers),
    )


def _reason(answers: Sequence[Pair], votes: Sequence[Vote]) -> str:
    both_bad = sum(BOTH_BAD in a.reason for a in answers)
    said = [
        f"{sum(v.p == 1.0 for v in votes)} for it",
        f"{sum(v.p == 0.5 for v in votes)} for neither",
        f"{sum(v.p == 0.0 for v in votes)} against",
    ]
    return f"reviewed: {', '.join(said)}{f', {both_bad} call both bad' if both_bad else ''}"


def _vote(answer: Pair, shown: Pair) -> Vote:
    turned = answer.chosen_response_id != shown.chosen_response_id
    return Vote(
        rater=answer.user,
        p=1.0 - answer.p if turned else answer.p,
        dimensions={d: 1.0 - v if turned else v for d, v in answer.dimensions.items()},
    )


def _turned(pair: Pair) -> Pair:
    return msgspec.structs.replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_response_id=pair.rejected_response_id,
        rejected_response_id=pair.chosen_response_id,
    )


def _known(others: Iterable[Pair]) -> dict[str, float]:
    """Where operators' labels point, by item; contradictory ones leave it open."""
    said: dict[str, set[float]] = defaultdict(set)
    for pair in others:
        if pair.kind is SignalKind.LABEL:
            said[_item(pair)].add(_CLASSES[_class(_of_first(pair, pair.p))])
    return {item: values.pop() for item, values in said.items() if len(values) == 1}


def _labels(by_item: Mapping[str, Iterable[Pair]], dimension: str) -> list[Label]:
    return [
        Label(item, p.user, _of_first(p, p.dimensions[dimension]))
        for item, same in by_item.items()
        for p in same
        if dimension in p.dimensions
    ]


def _item(pair: Pair) -> str:
    return "\x1f".join(sorted((pair.chosen_response_id, pair.rejected_response_id)))


def _of_first(pair: Pair, p: float) -> float:
    """Of the reply with the smaller id, from what is said of the chosen one."""
    return p if pair.chosen_response_id < pair.rejected_response_id else 1.0 - p


def _expected(posterior_C: Floats) -> float:
    return float(posterior_C @ np.array(_CLASSES))


def _class(value: float) -> int:
    return 1 if value == 0.5 else 2 if value > 0.5 else 0


def _pair_id(pair: Pair) -> str:
    """The same whichever reply is chosen."""
    ids = canonical([SignalKind.REVIEW, _item(pair)])
    return f"pair-{blake2b(ids, digest_size=12).hexdigest()}"
