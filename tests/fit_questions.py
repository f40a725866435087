"""Fits `feedback.questions`: `python -m tests.fit_questions` prints them and how they carry over.

Logistic regression with an L2 prior, by Newton's method. A weight whose sign contradicts what the feature is
for is set to 0 and the others are fitted anew, so that each can be read as a reason.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from feedback import questions
from tests.feedback import requests
from tests.feedback.released import RELEASED
from tests.feedback.requests import Case
from tests.feedback.wordings import DEVELOPMENT

FOR = {"words shared", "letters in common", "aims at the same"}
"""Features that speak for the same question; all others speak against it."""
PRIOR = 0.3
STEPS = 60
Vector = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def sets() -> dict[str, list[Case]]:
    return {
        "development": requests.of(DEVELOPMENT),
        "second": requests.of(RELEASED),
        "hard": requests.hard(),
    }


def fit(cases: Sequence[Case]) -> tuple[dict[str, float], float]:
    """The weights and the bias, of those cases that get as far as a score."""
    scored = [case for case in cases if questions.comparable(case.question, case.following)]
    rows = [questions.features(case.question, case.following) for case in scored]
    again = np.array([case.again for case in scored], dtype=float)
    names = list(rows[0])
    while True:
        weights, bias = _newton(np.array([[row[name] for name in names] for row in rows]), again)
        against = {name for name, w in zip(names, weights, strict=True) if (w > 0) != (name in FOR)}
        if not against:
            found = dict(zip(names, weights, strict=True))
            return {name: round(found.get(name, 0.0), 2) for name in rows[0]}, round(bias, 2)
        names = [name for name in names if name not in against]


def _newton(features: Vector, again: Vector) -> tuple[Vector, float]:
    rows = np.c_[features, np.ones(len(features))]
    prior = np.diag([PRIOR] * features.shape[1] + [0.0])
    weights = np.zeros(rows.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-rows @ weights))
        gradient = rows.T @ (p - again) + prior @ weights
        weights -= np.linalg.solve((rows.T * (p * (1 - p))) @ rows + prior, gradient)
    return weights[:-1], float(weights[-1])


def rates(cases: Sequence[Case], weights: Mapping[str, float], bias: float) -> tuple[float, float]:
    """Precision and recall of these weights."""
    said = [
        questions.comparable(c.question, c.following)
        and questions.score(c.question, c.following, weights, bias) > 0
        for c in cases
    ]
    right = sum(hit and case.again for hit, case in zip(said, cases, strict=True))
    return right / sum(said), right / sum(case.again for case in cases)


if __name__ == "__main__":
    all_sets = sets()
    for left_out, cases in all_sets.items():
        fitted = fit([case for name, others in all_sets.items() if name != left_out for case in others])
        print("fitted without {:12} precision {:.3f}, recall {:.3f}".format(left_out, *rates(cases, *fitted)))
    weights, bias = fit([case for cases in all_sets.values() for case in cases])
    print("BIAS", bias, *(f'"{name}": {weight},' for name, weight in weights.items()), sep="\n")
