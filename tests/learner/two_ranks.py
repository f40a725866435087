"""What one of two processes does for `test_distributed`: the updates, and then a failure of rank 1 alone."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from learner import distributed, train_policy, train_reward, train_sft
from learner.batches import GradeRow, PairRow, Prompt, RewardData, Sample
from learner.models import LanguageActor, Role, base_hash, load_trunk
from learner.sampling import LocalSampler
from learner.train_policy import PPO

PROMPTS = [Prompt(str(n), tuple(range(20, 22 + 3 * n))) for n in range(5)]
ONE_TURN = PPO(
    steps=1,
    prompts_per_step=5,
    samples_per_prompt=2,
    policy_lr=1e-3,
    warm_up_updates=3,
    max_tokens=6,
    beta=0.1,
)


def policy_update(base_dir: Path, token_budget: int) -> dict[str, Tensor]:
    """Adapter, value head and metrics after one PPO step of four updates on ten samples."""
    trunk = load_trunk(base_dir, rank=4, seed=0)
    actor = LanguageActor(trunk)
    ppo = replace(ONE_TURN, token_budget=token_budget)
    seen: list[train_policy.StepMetrics] = []
    before = base_hash(trunk)
    train_policy.run(
        actor,
        LocalSampler(trunk),
        PROMPTS,
        low_tokens,
        ppo,
        train_policy.start(actor, ppo),
        lambda metrics, _: seen.append(metrics),
    )
    assert base_hash(trunk) == before
    m = seen[0]
    figures = [m.reward_mean, m.kl_root_nats, m.policy_loss, m.value_loss, m.approx_kl, m.grad_norm]
    value = actor.value_head.weight.detach().clone()
    return trunk.weights(Role.POLICY) | {"value": value, "figures": torch.tensor(figures)}


def low_tokens(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(sum(i < 131 for i in s.ids)) for s in samples])


def reward_update(base_dir: Path, token_budget: int) -> dict[str, Tensor]:
    """Reward adapter, heads, losses and scores after an epoch on pairs and grades of different length."""
    replies = [Sample(p, tuple(range(60 + n, 63 + 3 * n))) for n, p in enumerate(PROMPTS)]
    worse = [Sample(p, tuple(range(90, 95 - n))) for n, p in enumerate(PROMPTS)]
    pairs = [PairRow(a, b, p=0.9) for a, b in zip(replies, worse, strict=True)]
    data = RewardData(pairs=pairs, grades=[GradeRow(r, 0.2, 0.5) for r in worse[:3]])
    settings = train_reward.Settings(
        lr=1e-3, epochs=1, batch_prompts=3, heads=2, rank=4, token_budget=token_budget
    )
    trunk = load_trunk(base_dir, rank=4, seed=0)
    model, losses = train_reward.train(trunk, data, settings)
    train_reward.standardise(model, replies)
    heads = {name: tensor.detach().clone() for name, tensor in model.heads.state_dict().items()}
    return trunk.weights(Role.REWARD) | heads | {"losses": torch.tensor(losses), "scores": model(worse)}


def fine_tuning(base_dir: Path, token_budget: int) -> dict[str, Tensor]:
    """All weights after two steps on dialogues of different length; one step has a single dialogue."""
    model, _ = train_sft.load(base_dir)
    lengths = (5, 9, 30)
    examples = [train_sft.Example(tuple(range(20, 20 + n)), (-100, *range(21, 20 + n))) for n in lengths]
    settings = train_sft.Settings(batch_tokens=32, learning_rate=1e-3)
    loss = train_sft.train(model, examples, settings, pad_id=0, on_step=lambda *_: None)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights | {"loss": torch.tensor(loss)}


UPDATES = {"policy": policy_update, "reward": reward_update, "sft": fine_tuning}
CASES = (("policy", False), ("reward", False), ("sft", False), ("policy", True))
"""Name of the update, and whether the base weights are sharded."""


def main(base_dir: Path, out_dir: Path) -> None:
    torch.set_num_threads(1)
    distributed.join()
    for name, sharded in CASES:
        os.environ["ACCELERATE_USE_FSDP"] = str(sharded)
        torch.save(UPDATES[name](base_dir, 64), out_dir / f"{name}-{sharded}-{distributed.rank()}.pt")
    if distributed.rank() == 1:
        raise SystemExit("a disk is full, a GPU is lost")
    distributed.total(torch.zeros(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
