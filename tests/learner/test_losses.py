"""Losses against per-sequence loops, hand-worked numbers and the gradients they must not have."""

import math

import pytest
import torch
from torch import Tensor

from learner.batches import length_mask
from learner.losses import grade_loss, k1, k2, k3, policy_loss, preference_loss, value_loss

ONE_TOKEN = torch.ones(1, 1, dtype=torch.bool)


def gradient_at(ratio: float, advantage: float, weight: float = 1.0) -> float:
    """dL/dlogπ of one token."""
    new_BT = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = policy_loss(
        new_BT, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.tensor([[weight]]), ONE_TOKEN
    )
    loss.loss_BT.sum().backward()
    assert new_BT.grad is not None
    return float(new_BT.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),  # −ρA
        (1.1, 2.0, -2.2),
        (1.3, 2.0, 0.0),  # above 1 + ε with A > 0: clipped
        (0.7, 2.0, -1.4),  # below 1 − ε with A > 0: the way back is free
        (0.7, -2.0, 0.0),  # below 1 − ε with A < 0: clipped
        (1.3, -2.0, 2.6),
        (3.5, -2.0, 0.0),  # above the dual clip with A < 0: clipped
    ],
)
def test_policy_gradient_is_exactly_zero_where_clipped(
    ratio: float, advantage: float, expected: float
) -> None:
    """−ρA inside the trust region; exactly 0 (not nearly) where the clip holds."""
    found = gradient_at(ratio, advantage)
    assert found == 0.0 if expected == 0.0 else found == pytest.approx(expected, rel=1e-5)


def test_clipped_tokens_are_reported() -> None:
    """The clip fraction on the dashboard counts the tokens without gradient, no others."""
    ratios = torch.tensor([[1.0, 1.3, 1.3, 0.7, 0.7, 3.5]])
    advantages_BT = torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0, -1.0]])
    mask_BT = torch.ones(1, 6, dtype=torch.bool)
    found = policy_loss(ratios.log(), torch.zeros(1, 6), advantages_BT, torch.ones(1, 6), mask_BT)
    assert found.clipped_BT.tolist() == [[False, True, False, False, True, True]]


def test_importance_weights_scale_the_policy_loss() -> None:
    """A token that the sampler drew too often counts less."""
    assert gradient_at(1.0, 2.0, weight=0.5) == pytest.approx(-1.0)


def plain_policy_loss(new: list[float], old: list[float], advantages: list[float]) -> float:
    """One sequence, token by token, from the papers' formulae."""
    total = 0.0
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = math.exp(n - o)
        objective = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        total -= max(objective, 3.0 * a) if a < 0 else objective
    return total


def test_policy_loss_is_the_sum_of_its_sequences() -> None:
    """The batched loss equals a loop over sequences that knows nothing of padding."""
    generator = torch.Generator().manual_seed(1)
    new_BT, old_BT, advantages_BT = torch.randn(3, 3, 5, generator=generator)
    lengths = [5, 2, 3]
    found = policy_loss(
        new_BT, old_BT, advantages_BT, torch.ones(3, 5), length_mask(torch.tensor(lengths))
    ).loss_BT
    expected = sum(
        plain_policy_loss(new_BT[b, :n].tolist(), old_BT[b, :n].tolist(), advantages_BT[b, :n].tolist())
        for b, n in enumerate(lengths)
    )
    assert float(found.sum()) == pytest.approx(expected, rel=1e-5)


def test_value_loss_by_hand() -> None:
    """V = 1, old V = 0, R = 2, clip 0.2: max((1 − 2)², (0.2 − 2)²)/2 = 1.62; without clip 0.5."""
    one = torch.tensor([[1.0]])
    returns_BT = torch.tensor([[2.0]])
    assert float(value_loss(one, torch.zeros(1, 1), returns_BT, ONE_TOKEN)) == pytest.approx(1.62)
    assert float(value_loss(one, torch.zeros(1, 1), returns_BT, ONE_TOKEN, None)) == pytest.approx(0.5)


def preference_gradient(margin: float, p: float, weight: float) -> float:
    margin_BK = torch.tensor([[margin]], requires_grad=True)
    preference_loss(margin_BK, torch.tensor([p]), torch.tensor([[weight]])).sum().backward()
    assert margin_BK.grad is not None
    return float(margin_BK.grad)


def test_preference_loss_of_no_margin_is_ln_2() -> None:
    """A reward model that knows nothing starts at ln 2."""
    loss_BK = preference_loss(torch.zeros(1, 1), torch.tensor([0.9]), torch.ones(1, 1))
    assert float(loss_BK) == pytest.approx(math.log(2))


def test_a_pair_without_weight_has_no_gradient() -> None:
    assert preference_gradient(0.7, 1.0, 0.0) == 0.0


def test_a_pair_twice_is_a_pair_of_weight_two() -> None:
    assert 2 * preference_gradient(0.7, 0.85, 1.0) == pytest.approx(preference_gradient(0.7, 0.85, 2.0))


def test_a_tie_pulls_the_margin_to_zero() -> None:
    """p = 0.5: gradient σ(Δ) − ½, positive above 0, negative below, none at 0."""
    assert preference_gradient(1.0, 0.5, 1.0) == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)
    assert preference_gradient(-1.0, 0.5, 1.0) < 0
    assert preference_gradient(0.0, 0.5, 1.0) == 0.0


def test_swapping_a_pair_changes_nothing_but_the_sign() -> None:
    """(chosen, rejected, p) and (rejected, chosen, 1 − p) are the same statement."""
    one, two = torch.tensor([[0.7]]), torch.tensor([[-0.7]])
    weight = torch.ones(1, 1)
    assert float(preference_loss(one, torch.tensor([0.8]), weight)) == pytest.approx(
        float(preference_loss(two, torch.tensor([0.2]), weight))
    )


def test_grades_are_cross_entropy_on_score_plus_bias() -> None:
    """r = 1, b = −3, p = 0: −log(1 − σ(−2)) = log(1 + e⁻²) = 0.126928."""
    loss = grade_loss(torch.tensor([[1.0]]), torch.tensor([-3.0]), torch.tensor([0.0]), torch.ones(1, 1))
    assert float(loss) == pytest.approx(0.126928, abs=1e-6)


def kl_gradients() -> dict[str, Tensor]:
    """Expected policy gradients of the KL estimators, by full enumeration over one token of five.

    In the reward an estimator multiplies ∇ log π; as a loss it is differentiated itself.
    """
    generator = torch.Generator().manual_seed(4)
    logits_V = torch.randn(5, generator=generator, requires_grad=True)
    log_q_V = (1.5 * torch.randn(5, generator=generator)).log_softmax(0)
    log_p_V = logits_V.log_softmax(0)
    p_V = log_p_V.exp().detach()
    losses = {"true": (log_p_V.exp() * (log_p_V - log_q_V)).sum()}
    for name, estimator in {"k1": k1, "k2": k2, "k3": k3}.items():
        each_V = estimator(log_p_V, log_q_V)
        losses[f"{name} in reward"] = (p_V * each_V.detach() * log_p_V).sum()
        losses[f"{name} as loss"] = (p_V * each_V).sum()
    return {n: torch.autograd.grad(loss, logits_V, retain_graph=True)[0] for n, loss in losses.items()}


def test_only_k1_in_the_reward_and_k2_as_a_loss_follow_the_kl_gradient() -> None:
    """Why k1 sits in the reward and k3 on dashboards only."""
    gradients = kl_gradients()
    true_V = gradients.pop("true")
    cosine = {n: float(torch.cosine_similarity(g, true_V, dim=0)) for n, g in gradients.items()}
    assert cosine["k1 in reward"] == pytest.approx(1.0, abs=1e-5)
    assert cosine["k2 as loss"] == pytest.approx(1.0, abs=1e-5)
    assert cosine["k3 in reward"] < 0.95
    assert cosine["k3 as loss"] < 0.99
    assert float(gradients["k1 as loss"].norm()) < 1e-6


def test_k3_is_never_negative_and_finite_far_out() -> None:
    """Log-ratios are clamped: an impossible token gives a large number, not infinity."""
    apart_BT = torch.tensor([[-500.0, 0.3, 500.0]])
    found_BT = k3(torch.zeros(1, 3), apart_BT)
    assert bool((found_BT >= 0).all())
    assert bool(found_BT.isfinite().all())
