"""How often a candidate's reply beats the baseline's to the same prompt, raw and at equal length. Pure.

Legend: P prompts, S replies to each, R comparisons of a prompt, D bootstrap draws.
"""

import numpy as np
from numpy.typing import NDArray

from learner.measures import Floats, Interval

RIDGE = 0.1
"""Penalty ½·RIDGE·(θ² + γ²) beside the log-likelihood of P prompts: finite where every comparison is won."""
NEWTON_STEPS = 30
BOUND = 15.0
"""Of θ and γ, in logits."""
DRAWS = 400

Weights = NDArray[np.float64]


def comparisons(scores_PS: Floats, before_PS: Floats) -> Floats:
    """wins_PR of every reply against every reply to the same prompt: 1 won, ½ tied, 0 lost; R = S·S."""
    margins_PSS = scores_PS[:, :, None] - before_PS[:, None, :]
    return (0.5 + 0.5 * np.sign(margins_PSS)).reshape(len(scores_PS), -1)


def differences(lengths_PS: Floats, before_PS: Floats) -> Floats:
    """The candidate's length less the baseline's, in the order of `comparisons`; lengths_PR."""
    return (lengths_PS[:, :, None] - before_PS[:, None, :]).reshape(len(lengths_PS), -1)


def win_rate(wins_PR: Floats, rng: np.random.Generator) -> Interval:
    """Mean share of comparisons won, prompts resampled."""
    wins_P = wins_PR.mean(axis=1)
    rates_D = wins_P[_picked(len(wins_P), DRAWS, rng)].mean(axis=1)
    low, high = np.quantile(rates_D, [0.025, 0.975])
    return Interval(float(wins_P.mean()), float(low), float(high))


def length_controlled(wins_PR: Floats, lengths_PR: Floats, rng: np.random.Generator) -> Interval:
    """The win rate that a logistic model expects at equal length, prompts resampled.

        P(win) = σ(θ + γ·tanh(Δ/s))        Δ: length difference in tokens, s: its deviation

    Returns: σ(θ). Every prompt weighs the same. Source: the length term of AlpacaEval 2, arXiv:2404.04475;
    its terms for the model and for each instruction are left out, as there is one pair of models only.
    """
    spread = float(lengths_PR.std())
    x_PR = np.tanh(lengths_PR / spread) if spread > 0.0 else np.zeros_like(lengths_PR)
    prompts = len(wins_PR)
    whole = fit(wins_PR, x_PR, np.ones((1, prompts)))
    picked_DP = _picked(prompts, DRAWS, rng)
    counts_DP = np.stack([np.bincount(row, minlength=prompts) for row in picked_DP]).astype(np.float64)
    low, high = np.quantile(_sigmoid(fit(wins_PR, x_PR, counts_DP)[:, 0]), [0.025, 0.975])
    value = float(_sigmoid(whole[0, 0]))
    return Interval(value, min(float(low), value), max(float(high), value))


def fit(wins_PR: Floats, x_PR: Floats, weights_DP: Weights) -> Floats:
    """θ and γ by Newton's method for every row of prompt weights; parameters_D2."""
    found_D2 = np.zeros((len(weights_DP), 2))
    share_DP = weights_DP / wins_PR.shape[1]
    for _ in range(NEWTON_STEPS):
        p_DPR = _sigmoid(found_D2[:, 0, None, None] + found_D2[:, 1, None, None] * x_PR)
        miss_DPR = wins_PR - p_DPR
        curve_DPR = p_DPR * (1.0 - p_DPR)
        gradient_D2 = np.stack([_sum(share_DP, miss_DPR), _sum(share_DP, miss_DPR * x_PR)], axis=1)
        gradient_D2 -= RIDGE * found_D2
        a = _sum(share_DP, curve_DPR) + RIDGE
        b = _sum(share_DP, curve_DPR * x_PR)
        c = _sum(share_DP, curve_DPR * x_PR * x_PR) + RIDGE
        step_D2 = np.stack(
            [c * gradient_D2[:, 0] - b * gradient_D2[:, 1], a * gradient_D2[:, 1] - b * gradient_D2[:, 0]],
            axis=1,
        )
        step_D2 /= (a * c - b * b)[:, None]
        found_D2 = np.clip(found_D2 + step_D2, -BOUND, BOUND)
        if float(np.abs(step_D2).max()) < 1e-8:
            break
    return found_D2


def _sum(share_DP: Floats, values_DPR: Floats) -> Floats:
    total_D: Floats = (share_DP * values_DPR.sum(axis=2)).sum(axis=1)
    return total_D


def _picked(prompts: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, prompts, size=(draws, prompts))


def _sigmoid(x: Floats) -> Floats:
    p: Floats = 1.0 / (1.0 + np.exp(-x))
    return p
