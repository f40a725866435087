"""Ratchet's side of `bench-learner`, pausing after every step, and the judge of both sides' policies.

`python -m tests.benchmarks.learner_ours reward TASK`, `… policy TASK ADAPTER`, `… judge TASK ADAPTER …`.
"""

import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from learner import train_policy, train_reward
from learner.batches import PairRow, Prompt, RewardData, Sample
from learner.models import LanguageActor, Role, Trunk, export_adapter, load_adapter, load_trunk
from learner.sampling import LocalSampler
from tests.benchmarks.learner_task import Meter, Task, Turns, dtype, matmul_rate, preload, start

JUDGED_REPLIES = 4
"""Replies to each held-out prompt."""


def prompts(rows: list[list[int]], kind: str) -> list[Prompt]:
    return [Prompt(f"{kind}{i}", tuple(ids)) for i, ids in enumerate(rows)]


def open_trunk(task: Task) -> Trunk:
    return load_trunk(Path(task.base), rank=task.rank, seed=task.seed)


def reward_model(trunk: Trunk, task: Task) -> train_reward.RewardModel:
    """The task's reward: an adapter that changes nothing, and the head that TRL has, too."""
    settings = train_reward.Settings(heads=1, uncertainty=0.0, rank=task.rank, token_budget=budget(task))
    model = train_reward.begin(trunk, settings)
    head = load_file(Path(task.reward) / "model.safetensors")["score.weight"]
    model.heads.weight_KH.data.copy_(head.float())
    return model


def budget(task: Task) -> int:
    """Tokens of a pass, padding included: at most those of one of TRL's."""
    return task.micro * (max(map(len, task.prompts)) + task.reply_tokens)


def reward(task: Task, turns: Turns, meter: Meter) -> None:
    trunk = open_trunk(task)
    pairs = [
        PairRow(Sample(prompt, tuple(chosen)), Sample(prompt, tuple(rejected)))
        for prompt, (_, chosen, rejected) in zip(
            prompts([p for p, _, _ in task.pairs], "pair"), task.pairs, strict=True
        )
    ]
    settings = train_reward.Settings(
        lr=task.reward_lr, epochs=1, batch_prompts=task.pair_batch, rank=task.rank, seed=task.seed
    )
    turns.pause(ready=True)
    began = meter.now()

    def step(loss: float, done: int, total: int) -> None:
        nonlocal began
        turns.pause(step_s=meter.now() - began)
        began = meter.now()

    train_reward.train(trunk, RewardData(pairs=pairs), settings, step)


def policy(task: Task, turns: Turns, meter: Meter, adapter: Path) -> None:
    trunk = open_trunk(task)
    scorer, actor, sampler = reward_model(trunk, task), LanguageActor(trunk), LocalSampler(trunk)
    ppo = train_policy.PPO(
        steps=task.steps,
        prompts_per_step=task.batch // task.replies_per_prompt,
        samples_per_prompt=task.replies_per_prompt,
        epochs=task.epochs,
        minibatches=1,
        policy_lr=task.policy_lr,
        beta=task.beta,
        adapt_beta=False,
        kl_budget=math.inf,
        step_kl=math.inf,
        missing_eos_penalty=0.0,
        max_tokens=task.reply_tokens,
        token_budget=budget(task),
        seed=task.seed,
    )
    state = train_policy.start(actor, ppo)
    turns.pause(ready=True, **limits(trunk, meter))
    for _ in range(task.steps):
        began = meter.now()
        sampler.publish(Role.POLICY)
        drawn = sampler.sample(
            Role.POLICY,
            train_policy.draw_prompts(prompts(task.prompts, "prompt"), ppo, state.step),
            n=ppo.samples_per_prompt,
            temperature=ppo.temperature,
            max_tokens=ppo.max_tokens,
            seed=train_policy.step_seed(ppo.seed, state.step),
        )
        sampled = meter.now()
        experience = train_policy.gather(actor, drawn, scorer, ppo)
        gathered = meter.now()
        meter.watch()
        metrics = train_policy.advance(actor, experience, ppo, state)
        ended = meter.now()
        turns.pause(
            step_s=ended - began,
            sample_s=sampled - began,
            update_s=ended - gathered,
            peak_bytes=meter.peak(),
            score=metrics.score_mean,
            optimizer_steps=metrics.optimizer_steps,
            prompt_tokens=sum(len(ids) for ids in {s.prompt.ids for s in drawn}),
            reply_tokens=sum(len(s.ids) for s in drawn),
        )
    export_adapter(trunk, Role.POLICY, adapter)


def limits(trunk: Trunk, meter: Meter) -> dict[str, float]:
    """What the update's matrix products cost per token, at the rate of plain ones of the same shapes.

    Forward and backward through frozen weights are four operations per weight and token; the output layer
    computes the tokens of replies only. Adapters and attention are left out.
    """
    layers = [m for m in trunk.backbone.modules() if isinstance(m, torch.nn.Linear) and not _lora(m, trunk)]
    weights = sum(layer.weight.numel() for layer in layers)
    widest = max(layers, key=lambda layer: layer.weight.numel())
    outputs = trunk.lm_head.weight
    trunk_rate = matmul_rate(meter, 1024, widest.in_features, widest.out_features, dtype())
    output_rate = matmul_rate(meter, 1024, outputs.shape[1], outputs.shape[0], dtype())
    return {
        "trunk_s_per_token": 4 * weights / trunk_rate,
        "output_s_per_token": 4 * outputs.numel() / output_rate,
        "trunk_rate": trunk_rate,
        "output_rate": output_rate,
    }


def _lora(layer: torch.nn.Linear, trunk: Trunk) -> bool:
    return any(layer.weight is p for role in (Role.POLICY, Role.REWARD) for p in trunk.parameters(role))


def judge(task: Task, turns: Turns, adapters: list[Path]) -> None:
    """Mean score of each policy's replies to every held-out prompt, under the task's reward."""
    trunk = open_trunk(task)
    scorer, sampler, asked = reward_model(trunk, task), LocalSampler(trunk), prompts(task.heldout, "held")
    scores: list[list[float]] = []
    for adapter in adapters:
        load_adapter(trunk, Role.PARENT, adapter)
        drawn = sampler.sample(
            Role.PARENT,
            asked,
            n=JUDGED_REPLIES,
            temperature=1.0,
            max_tokens=task.reply_tokens,
            seed=task.seed,
        )
        scores.append(scorer(drawn).view(len(asked), JUDGED_REPLIES).mean(dim=1).tolist())
    turns.say(scores=scores)


def main(arguments: list[str]) -> None:
    what, task = start(arguments)
    preload()
    turns, meter = Turns(), Meter()
    adapters = [Path(a) for a in arguments[3:]]
    if what == "reward":
        reward(task, turns, meter)
    elif what == "policy":
        policy(task, turns, meter, adapters[0])
    else:
        judge(task, turns, adapters)
    turns.say(done=True)


if __name__ == "__main__":
    main(sys.argv)
