"""Supervised fine-tuning of the policy on weighted replies, against sums over one reply at a time."""

from collections.abc import Callable

import pytest
import torch

from learner.batches import Prompt, Sample, Target
from learner.errors import MissingData
from learner.imitation import FitMetrics, Settings, imitate, run, start
from learner.models import LanguageActor, Trunk
from learner.train_policy import RunState

SETTINGS = Settings(lr=0.01, epochs=2, batch_rows=3)


@pytest.fixture
def targets(trunk: Trunk, prompts: list[Prompt]) -> list[Target]:
    replies = [trunk.encoder.reply(p, "Yes, gladly."[: 3 + i]) for i, p in enumerate(prompts)]
    return [Target(reply, weight=1.0 / (1 + i)) for i, reply in enumerate(replies)]


def logprob(actor: LanguageActor, reply: Sample) -> torch.Tensor:
    return actor.forward([reply])[0].sum()


def ignored(metrics: FitMetrics, state: RunState, steps: int) -> None:
    pass


@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_the_loss_is_the_weighted_mean_over_tokens(
    trunk: Trunk, targets: list[Target], token_budget: int
) -> None:
    """−Σ w·log π(reply) / Σ w·tokens, and its gradient, however the batch is split."""
    actor = LanguageActor(trunk)
    total = sum(t.weight * len(t.reply.ids) for t in targets)
    plain = -torch.stack([t.weight * logprob(actor, t.reply) for t in targets]).sum() / total
    wanted = torch.autograd.grad(plain, actor.policy_parameters())
    norm = torch.stack([g.square().sum() for g in wanted]).sum().sqrt().clamp(min=1.0)
    loss = imitate(actor, start(actor, SETTINGS).optimizer, targets, token_budget)
    assert loss == pytest.approx(float(plain.detach()), abs=1e-5)
    for parameter, gradient in zip(actor.policy_parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient / norm, atol=1e-5)


def test_a_run_sees_every_target_once_per_epoch_and_makes_them_likelier(
    trunk: Trunk, targets: list[Target]
) -> None:
    """8 targets in threes, twice: 3, 3, 2 and again."""
    actor = LanguageActor(trunk)
    before = sum(float(logprob(actor, t.reply).detach()) for t in targets)
    seen: list[FitMetrics] = []
    state = run(actor, targets, SETTINGS, start(actor, SETTINGS), lambda m, state, steps: seen.append(m))
    assert [m.rows for m in seen] == [3, 3, 2, 3, 3, 2]
    assert state.step == 6
    assert sum(float(logprob(actor, t.reply).detach()) for t in targets) > before + 1.0


def test_without_weight_there_is_nothing_to_imitate(fresh_trunk: Callable[[], Trunk]) -> None:
    """Rather than a division by zero."""
    actor = LanguageActor(fresh_trunk())
    reply = Sample(Prompt("0" * 32, (1, 2)), (3, 4))
    with pytest.raises(MissingData, match="positive weight"):
        run(actor, [Target(reply, weight=0.0)], SETTINGS, start(actor, SETTINGS), ignored)
