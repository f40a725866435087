"""Advantages against the plainest possible arithmetic, and the laws they must keep."""

import math

import pytest
import torch
from torch import Tensor

from learner.advantages import (
    adapted_beta,
    conservative,
    effective_sample_size,
    explained_variance,
    gae,
    importance_weights,
    leave_one_out,
    rloo_advantages,
    scaled,
    token_rewards,
    whiten,
)
from learner.batches import length_mask
from learner.errors import ShapeError

LENGTHS = [4, 1, 6, 3]


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask_BT = length_mask(torch.tensor(LENGTHS))
    rewards_BT, values_BT = torch.randn(2, 4, 6, generator=generator)
    return rewards_BT, values_BT, mask_BT


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """O(T²), straight from the definition: A_t = Σ_l (γλ)^l δ_{t+l}."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, len(deltas))) for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_its_definition(gamma: float, lam: float) -> None:
    """The backward recursion equals the double sum, row by row."""
    rewards_BT, values_BT, mask_BT = random_batch()
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma, lam)
    for b, length in enumerate(LENGTHS):
        expected = plain_gae(rewards_BT[b, :length].tolist(), values_BT[b, :length].tolist(), gamma, lam)
        assert advantages_BT[b, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert not advantages_BT[b, length:].any()
        assert not returns_BT[b, length:].any()


def test_lambda_one_is_reward_to_go() -> None:
    """With λ = 1 and γ = 1 the returns are sums of rewards, whatever the values say."""
    rewards_BT, values_BT, mask_BT = random_batch()
    _, returns_BT = gae(rewards_BT, values_BT, mask_BT, 1.0, 1.0)
    kept_BT = rewards_BT * mask_BT
    assert torch.allclose(returns_BT, kept_BT.flip(1).cumsum(1).flip(1) * mask_BT, atol=1e-5)


def test_lambda_zero_is_one_step() -> None:
    """By hand: r = (0, 1), V = (2, 3), so A = (0 + 3 − 2, 1 + 0 − 3) = (1, −2)."""
    advantages_BT, _ = gae(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool), 1.0, 0.0
    )
    assert advantages_BT.tolist() == [[1.0, -2.0]]


def test_gae_skips_tokens_between_two_replies() -> None:
    """A tool's tokens inside the row do not exist for the policy: same advantages as without them."""
    rewards_BT, values_BT = torch.tensor([[1.0, 9.0, 9.0, 2.0]]), torch.tensor([[0.5, 7.0, 7.0, 0.25]])
    holes_BT = torch.tensor([[True, False, False, True]])
    gap_BT, _ = gae(rewards_BT, values_BT, holes_BT, 1.0, 0.95)
    close_BT, _ = gae(
        rewards_BT[:, [0, 3]], values_BT[:, [0, 3]], torch.ones(1, 2, dtype=torch.bool), 1.0, 0.95
    )
    assert gap_BT[holes_BT].tolist() == pytest.approx(close_BT.flatten().tolist())
    assert gap_BT[0, 1:3].tolist() == [0.0, 0.0]


def test_more_padding_changes_nothing() -> None:
    """Advantages, whitening and weights do not depend on how wide the batch is."""
    rewards_BT, values_BT, mask_BT = random_batch()
    pad = torch.nn.functional.pad
    narrow_BT = whiten(gae(rewards_BT, values_BT, mask_BT, 1.0, 0.95)[0], mask_BT)
    wide_BT = whiten(
        gae(
            pad(rewards_BT, (0, 5), value=8.0),
            pad(values_BT, (0, 5), value=8.0),
            pad(mask_BT, (0, 5)),
            1.0,
            0.95,
        )[0],
        pad(mask_BT, (0, 5)),
    )
    assert torch.allclose(narrow_BT, wide_BT[:, :6], atol=1e-6)


def test_rewards_of_a_row_sum_to_score_minus_kl() -> None:
    """Σ_t r_t = score − β·Σ_t k1_t for every row: nothing is lost, nothing counted twice."""
    old_BT, reference_BT, mask_BT = random_batch()
    scores_B = torch.tensor([1.0, -2.0, 0.5, 3.0])
    rewards_BT = token_rewards(scores_B, old_BT, reference_BT, mask_BT, 0.3)
    kl_B = ((old_BT - reference_BT) * mask_BT).sum(1)
    assert torch.allclose(rewards_BT.sum(1), scores_B - 0.3 * kl_B, atol=1e-5)
    assert not rewards_BT[~mask_BT].any()


def test_the_score_lies_on_the_last_real_token() -> None:
    """Row of two tokens in a batch of width four, no KL: (0, 5, 0, 0)."""
    zero_BT, mask_BT = torch.zeros(1, 4), length_mask(torch.tensor([2]), 4)
    assert token_rewards(torch.tensor([5.0]), zero_BT, zero_BT, mask_BT, 0.1).tolist() == [
        [0.0, 5.0, 0.0, 0.0]
    ]


def test_a_reply_without_tokens_is_refused() -> None:
    """Its score would silently vanish."""
    zero_BT = torch.zeros(1, 2)
    with pytest.raises(ShapeError, match="no response token"):
        token_rewards(torch.ones(1), zero_BT, zero_BT, torch.zeros(1, 2, dtype=torch.bool), 0.1)


def test_shapes_that_do_not_match_are_refused() -> None:
    """Broadcasting would train on nonsense."""
    with pytest.raises(ShapeError, match="shapes differ"):
        gae(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 1.0, 1.0)


def test_whitening_gives_mean_zero_and_deviation_one() -> None:
    """Over tokens in the mask; what lies outside has no say."""
    x_BT, _, mask_BT = random_batch()
    white_N = whiten(x_BT, mask_BT)[mask_BT]
    assert float(white_N.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white_N.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_importance_weights_are_truncated_at_two_and_carry_no_gradient() -> None:
    """π_old/μ of e⁰ = 1, e^0.5 = 1.6487, e² → 2."""
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    old_BT = torch.tensor([[-1.0, -0.5, 0.0]], requires_grad=True)
    weights_BT = importance_weights(old_BT, torch.tensor([[-1.0, -1.0, -2.0]]), mask_BT)
    assert weights_BT.tolist()[0] == pytest.approx([1.0, math.exp(0.5), 2.0])
    assert not weights_BT.requires_grad


def test_leave_one_out_takes_the_prompts_own_level_away() -> None:
    """Prompt a has 1, 3 and 8: 1 − (3 + 8)/2, 3 − 4.5, 8 − 2; the only reply to b keeps its 5."""
    scores_B = torch.tensor([1.0, 5.0, 3.0, 8.0])
    assert leave_one_out(scores_B, ["a", "b", "a", "a"]).tolist() == [-4.5, 5.0, -1.5, 6.0]
    with pytest.raises(ShapeError, match="3 prompts"):
        leave_one_out(scores_B, ["a", "b", "a"])


def test_rloo_judges_whole_replies_against_the_prompts_others() -> None:
    """β 0.5. Reply 1: 2 − 0.5·(0.4 + 0.2) = 1.7; reply 2: 1 − 0.5·(−0.6) = 1.3, its second column is padding.

    Each less the other's reward: ± 0.4, on every real token, and nothing on padding.
    """
    mask_BT = length_mask(torch.tensor([2, 1]))
    old_BT = torch.tensor([[-1.0, -2.0], [-1.0, 9.0]])
    reference_BT = torch.tensor([[-1.4, -2.2], [-0.4, 5.0]])
    advantages_BT = rloo_advantages(
        torch.tensor([2.0, 1.0]), old_BT, reference_BT, mask_BT, 0.5, ["same", "same"]
    )
    assert advantages_BT.flatten().tolist() == pytest.approx([0.4, 0.4, -0.4, 0.0], abs=1e-6)


def test_scaling_moves_no_advantage_across_zero() -> None:
    """Mean square of 3 and 1 is 5; the 100 is padding. Whitening would have turned the 1 negative."""
    x_BT, mask_BT = torch.tensor([[3.0, 1.0, 100.0]]), length_mask(torch.tensor([2]), 3)
    assert scaled(x_BT, mask_BT).tolist()[0] == pytest.approx([3 / math.sqrt(5), 1 / math.sqrt(5), 0.0])


def test_effective_sample_size() -> None:
    """Equal weights: 1. Weights (1, 3): (1 + 3)² / (2·(1 + 9)) = 0.8."""
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    zero_BT = torch.zeros(1, 2)
    assert effective_sample_size(zero_BT, zero_BT, mask_BT) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([[0.0, math.log(3)]]), zero_BT, mask_BT) == pytest.approx(0.8)


def test_explained_variance() -> None:
    """Perfect values explain all, constant ones nothing, wrong ones less than nothing."""
    returns_BT, mask_BT = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns_BT, returns_BT, mask_BT) == pytest.approx(1.0)
    assert explained_variance(returns_BT, torch.zeros(1, 3), mask_BT) == pytest.approx(0.0)
    assert explained_variance(returns_BT, -returns_BT, mask_BT) == pytest.approx(-3.0)


def test_beta_adapts_within_its_step_and_stays_positive() -> None:
    """KL at twice the target, half a horizon of samples: β·(1 + 0.2·0.5); far below it: β·(1 − 0.1)."""
    assert adapted_beta(0.1, 20.0, 10.0, 500, 1000) == pytest.approx(0.11)
    assert adapted_beta(0.1, 0.0, 10.0, 500, 1000) == pytest.approx(0.09)
    assert adapted_beta(0.1, 10.0, 10.0, 500, 1000) == pytest.approx(0.1)
    assert adapted_beta(0.1, 0.0, 10.0, 100_000, 1000) == 0.0


def test_disagreeing_heads_earn_less() -> None:
    """Heads (1, 3): mean 2, deviation 1, so 2 − 0.5; heads (2, 2): 2."""
    scores_BK = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert conservative(scores_BK, 0.5).tolist() == [1.5, 2.0]
