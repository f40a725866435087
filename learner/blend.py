"""Several scorers as one: their log-odds added with weights from pairs that none of them was fitted to. Pure.

Legend: B pairs.
"""

from collections.abc import Mapping

import numpy as np

from learner.measures import Floats
from learner.ngrams import Rows
from learner.text_scorer import solve

PENALTY = 1.0
"""On weights of margins of deviation 1: a few hundred pairs outweigh it."""


def weights(margins: Mapping[str, Floats], p_B: Floats, weight_B: Floats) -> dict[str, float]:
    """Weights ≥ 0 of least log loss on these pairs; a scorer that would count against itself gets 0."""
    found = dict.fromkeys(margins, 0.0)
    kept = [name for name, margin_B in margins.items() if margin_B.any()]
    while kept:
        scale = {name: float(np.sqrt((margins[name] ** 2).mean())) for name in kept}
        columns = np.stack([margins[name] / scale[name] for name in kept], axis=1)
        row_N, column_N = (n.ravel() for n in np.indices(columns.shape))
        rows = Rows(row_N, column_N, columns.ravel(), len(p_B))
        fitted = dict(zip(kept, solve(rows, p_B, weight_B, PENALTY, len(kept)).tolist(), strict=True))
        worst = min(kept, key=lambda name: fitted[name])
        if fitted[worst] > 0:
            return found | {name: fitted[name] / scale[name] for name in kept}
        kept.remove(worst)
    return found


def margins(weight: Mapping[str, float], of: Mapping[str, Floats]) -> Floats:
    """margin_B of the blend."""
    total_B: Floats = np.sum([weight[name] * of[name] for name in weight], axis=0, dtype=np.float64)
    return total_B
