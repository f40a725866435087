"""From scores and log-probabilities to advantages: per-token rewards, GAE, whitening, weights, β. Pure.

Legend: B samples, T response token (padding on the right), K heads. Log-probabilities and KL in nats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.errors import ShapeError

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this, so that exp() stays finite."""


def same_shape(*tensors_BT: Tensor) -> None:
    """Raises: ShapeError unless all have the first one's shape."""
    shapes = [tuple(t.shape) for t in tensors_BT]
    if len(set(shapes)) != 1:
        raise ShapeError(f"shapes differ: {shapes}")


def token_rewards(
    scores_B: Tensor, old_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, beta: float
) -> Tensor:
    """Score on the last real token, minus the KL penalty on every token.

        r_t = [t = last]·score − β·k1_t      k1_t = log π_old − log π_ref      Σ_t r_t = score − β·Σ_t k1_t

    Args: scores_B; old_BT, reference_BT log-probabilities (nats); mask_BT, True on response tokens; beta ≥ 0.
    Returns: rewards_BT, zero on padding.
    Raises: ShapeError, also for a sample without any response token (its score would have no place).
    """
    same_shape(old_BT, reference_BT, mask_BT)
    if not bool(mask_BT.any(dim=1).all()):
        raise ShapeError("a sample has no response token to put its score on")
    rewards_BT = -beta * (old_BT - reference_BT) * mask_BT
    columns_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, columns_T, -1).amax(dim=1)
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None].to(rewards_BT.dtype))


def leave_one_out(scores_B: Tensor, prompts: Sequence[object]) -> Tensor:
    """Each score less the mean score of the *other* replies to its prompt; a single reply keeps its score.

    What it takes away does not depend on the reply itself, so the policy gradient stays unbiased.
    Returns: scores_B.   Raises: ShapeError.   Source: arXiv:2402.14740, eq. 6.
    """
    if scores_B.shape != (len(prompts),):
        raise ShapeError(f"{len(prompts)} prompts for scores of shape {tuple(scores_B.shape)}")
    number = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    group_B = torch.tensor([number[prompt] for prompt in prompts], device=scores_B.device)
    sum_B = scores_B.new_zeros(len(number)).index_add(0, group_B, scores_B)[group_B]
    others_B = group_B.bincount()[group_B] - 1
    return scores_B - (sum_B - scores_B) / others_B.clamp(min=1)


def rloo_advantages(
    scores_B: Tensor,
    old_BT: Tensor,
    reference_BT: Tensor,
    mask_BT: Tensor,
    beta: float,
    prompts: Sequence[object],
) -> Tensor:
    """REINFORCE leave-one-out: the whole reply is one action, its KL part of its reward, and no critic.

        R = score − β·Σ_t k1_t        A_t = R − mean of R over the *other* replies to the prompt

    Args: scores_B; old_BT, reference_BT log-probabilities (nats); mask_BT; beta ≥ 0; prompts, one per reply.
    Returns: advantages_BT, equal on all tokens of a reply, zero on padding; not scaled.
    Raises: ShapeError.   Source: arXiv:2402.14740, eq. 6.
    """
    same_shape(old_BT, reference_BT, mask_BT)
    rewards_B = scores_B - beta * ((old_BT - reference_BT) * mask_BT).sum(dim=1)
    return leave_one_out(rewards_B, prompts)[:, None] * mask_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over response tokens.

        delta_t = r_t + gamma·V_{t+1} − V_t        A_t = delta_t + gamma·lam·A_{t+1}        V(terminal) = 0

    Tokens outside the mask (padding, tool output between two replies) are skipped: t + 1 is the next token
    inside it.

    Args: rewards_BT, values_BT (float32); mask_BT, True on response tokens; gamma, lam in [0, 1].
    Returns: advantages_BT, returns_BT = advantages + values; zero outside the mask; not whitened.
    Raises: ShapeError.   Source: arXiv:1506.02438, eq. 16.
    """
    same_shape(rewards_BT, values_BT, mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(rewards_BT.shape[1])):
        here_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        next_advantage_B = torch.where(here_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(here_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(here_B, advantage_B, 0.0)
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all tokens in the mask; zero outside it."""
    same_shape(x_BT, mask_BT)
    kept_N = x_BT[mask_BT]
    return torch.where(mask_BT, (x_BT - kept_N.mean()) / (kept_N.std(correction=0) + 1e-8), 0.0)


def scaled(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Root mean square 1 over all tokens in the mask, mean and sign of each as they are; zero outside it."""
    same_shape(x_BT, mask_BT)
    return torch.where(mask_BT, x_BT / (x_BT[mask_BT].square().mean().sqrt() + 1e-8), 0.0)


def importance_weights(old_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor, cap: float = 2.0) -> Tensor:
    """Truncated importance weights min(π_old/μ, cap) for tokens that the sampler μ drew; no gradient.

    Returns: weights_BT; 1 where trainer and sampler agree, zero outside the mask.
    """
    same_shape(old_BT, sampler_BT, mask_BT)
    log_ratio_BT = (old_BT - sampler_BT).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.where(mask_BT, log_ratio_BT.exp().clamp(max=cap), 0.0)


def effective_sample_size(old_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor) -> float:
    """(Σ w)² / (N Σ w²) of the untruncated token weights π_old/μ: 1 on-policy, towards 0 when stale."""
    same_shape(old_BT, sampler_BT, mask_BT)
    log_N = (old_BT - sampler_BT)[mask_BT].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).double()
    w_N = (log_N - log_N.max()).exp()
    return float(w_N.sum() ** 2 / (len(w_N) * (w_N**2).sum()))


def explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns) over tokens in the mask; 0 when the returns do not vary."""
    same_shape(returns_BT, values_BT, mask_BT)
    returns_N, values_N = returns_BT[mask_BT].double(), values_BT[mask_BT].double()
    variance = returns_N.var(correction=0)
    return 0.0 if variance == 0 else float(1 - (returns_N - values_N).var(correction=0) / variance)


def adapted_beta(beta: float, kl_nats: float, target_nats: float, samples: int, horizon: int) -> float:
    """The next KL coefficient: β·(1 + clip(KL/target − 1, ±0.2)·samples/horizon), never negative.

    Args: kl_nats, target_nats per reply; samples since the last change; horizon in samples.
    Source: arXiv:1909.08593, section 2.2.
    """
    error = min(max(kl_nats / target_nats - 1.0, -0.2), 0.2)
    return max(beta * (1.0 + error * samples / horizon), 0.0)


def conservative(scores_BK: Tensor, uncertainty: float) -> Tensor:
    """Ensemble mean less `uncertainty` deviations of it: replies the heads argue about earn less."""
    return scores_BK.mean(dim=1) - uncertainty * scores_BK.std(dim=1, correction=0)
