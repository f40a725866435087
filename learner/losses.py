"""The losses, per token or per row, never averaged: the caller divides by one global denominator. Pure.

Legend: B samples or rows, T response token, K heads, N tokens. Log-probabilities and KL in nats.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.advantages import LOG_RATIO_LIMIT, same_shape


def k1(log_p_BT: Tensor, log_q_BT: Tensor) -> Tensor:
    """Unbiased estimate of KL(p‖q), log p − log q, for tokens drawn from p. Belongs in the reward."""
    return log_p_BT - log_q_BT


def k2(log_p_BT: Tensor, log_q_BT: Tensor) -> Tensor:
    """½(log p − log q)²: as a loss on tokens drawn from p its gradient is the KL's.

    Source: joschu.net/blog/kl-approx.html."""
    return 0.5 * (log_p_BT - log_q_BT) ** 2


def k3(log_p_BT: Tensor, log_q_BT: Tensor) -> Tensor:
    """q/p − 1 − log(q/p): unbiased, never negative, little noise. For dashboards and early stops.

    Source: joschu.net/blog/kl-approx.html."""
    log_ratio_BT = (log_q_BT - log_p_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio_BT.exp() - 1.0 - log_ratio_BT


class PolicyLoss(NamedTuple):
    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor
    """True where the gradient is exactly zero because of clipping."""


def policy_loss(
    new_BT: Tensor,
    old_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    mask_BT: Tensor,
    clip: float = 0.2,
    dual_clip: float = 3.0,
) -> PolicyLoss:
    """PPO's clipped surrogate with dual clip, per token.

        ρ = π_new/π_old      L = −w·min(ρA, clip(ρ, 1 ± ε)A)      for A < 0: L = −w·max(that min, cA)

    Args: new_BT with gradient; old_BT, advantages_BT, weights_BT (importance weights) without; mask_BT.
    Returns: loss_BT, ratio_BT and clipped_BT, zero or False outside the mask.
    Raises: ShapeError.   Sources: arXiv:1707.06347, eq. 7; arXiv:1912.09729, eq. 5.
    """
    same_shape(new_BT, old_BT, advantages_BT, weights_BT, mask_BT)
    log_ratio_BT = torch.where(mask_BT, new_BT - old_BT, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = ratio_BT * advantages_BT
    bounded_BT = torch.minimum(plain_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT)
    floor_BT = torch.where(advantages_BT < 0, dual_clip * advantages_BT, -torch.inf)
    objective_BT = torch.maximum(bounded_BT, floor_BT)
    high_BT = (ratio_BT > 1 + clip) & (advantages_BT > 0)
    low_BT = (ratio_BT < 1 - clip) & (advantages_BT < 0)
    dual_BT = (ratio_BT > dual_clip) & (advantages_BT < 0)
    loss_BT = torch.where(mask_BT, -weights_BT.detach() * objective_BT, 0.0)
    return PolicyLoss(loss_BT, ratio_BT, (high_BT | low_BT | dual_BT) & mask_BT)


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None = 0.2
) -> Tensor:
    """½·max((V − R)², (V_clipped − R)²) per token, where V_clipped stays within ± clip of the old value.

    Args: values_BT with gradient; old_values_BT, returns_BT without; clip None: plain squared error.
    Raises: ShapeError.   Source: arXiv:1506.02438 (the clip: the reference code of arXiv:1707.06347).
    """
    same_shape(values_BT, old_values_BT, returns_BT, mask_BT)
    error_BT = (values_BT - returns_BT) ** 2
    if clip is not None:
        near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (near_BT - returns_BT) ** 2)
    return torch.where(mask_BT, 0.5 * error_BT, 0.0)


def preference_loss(margin_BK: Tensor, p_B: Tensor, weight_BK: Tensor) -> Tensor:
    """Bradley–Terry with soft labels: −w·[p·log σ(Δ) + (1 − p)·log σ(−Δ)] per row and head.

    Args: margin_BK, score of the chosen less that of the rejected reply; p_B, probability that the chosen
    one is better (0.5 is a tie); weight_BK ≥ 0.
    Raises: ShapeError.   Source: arXiv:1706.03741, eq. 1.
    """
    same_shape(margin_BK, weight_BK)
    p_B1 = p_B[:, None]
    return -weight_BK * (p_B1 * logsigmoid(margin_BK) + (1 - p_B1) * logsigmoid(-margin_BK))


def grade_loss(score_BK: Tensor, bias_K: Tensor, p_B: Tensor, weight_BK: Tensor) -> Tensor:
    """Binary cross-entropy of unpaired grades on σ(r + b): keeps the scale of r calibrated.

    Args: score_BK; bias_K, one per head, learned; p_B, probability that the reply is good; weight_BK ≥ 0.
    """
    return preference_loss(score_BK + bias_K, p_B, weight_BK)
