"""Rows of a rare arm count as if the split had been even: clipped inverse-propensity weights. Pure.

A canary with a tenth of the traffic gets a tenth of the feedback, and its replies are the newest there are.
"""

from collections.abc import Iterable
from math import fsum
from typing import TypeVar

import msgspec

from feedback.raters import WEIGHT_DIGITS
from feedback.records import Grade, Pair

Row = TypeVar("Row", Grade, Pair)


def reweigh(rows: Iterable[Row], clip: float) -> list[Row]:
    """Rows weighed by truncated, self-normalised inverse propensity.

        w' = w f / f̄        f = min(clip, 1 / p)        f̄ = Σ w f / Σ w

    All arms that are chosen with p ≥ 1 / clip get equal weight in expectation; the truncation bounds what one
    row of a rarer arm can say, at the price of some bias towards the common ones. The weights' sum stays.
    Args: clip ≥ 1; at 1 nothing changes.
    Source: Ionides 2008, doi:10.1198/106186008X320456 (truncation); Swaminathan & Joachims 2015 (self-
    normalisation).
    """
    kept = list(rows)
    factors = [1.0 / max(row.propensity, 1.0 / clip) for row in kept]
    total = fsum(row.weight for row in kept)
    raised = fsum(row.weight * factor for row, factor in zip(kept, factors, strict=True))
    if not raised:
        return kept
    return [
        msgspec.structs.replace(row, weight=round(row.weight * factor * total / raised, WEIGHT_DIGITS))
        for row, factor in zip(kept, factors, strict=True)
    ]
