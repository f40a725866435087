"""The PPO step on a language model: guards that stop a wrong run, and results that batching cannot change."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner import checkpoints
from learner.batches import Prompt, Sample
from learner.errors import CheckpointError, RatioError, SamplerError
from learner.models import LanguageActor, Role, Trunk, base_hash
from learner.sampling import LocalSampler
from learner.train_policy import (
    PPO,
    RunState,
    StepMetrics,
    advance,
    aim,
    aim_without_critic,
    check_ratio,
    draw_prompts,
    gather,
    joined,
    optimise,
    portions,
    run,
    shuffled,
    start,
)

SMALL = PPO(
    steps=4, prompts_per_step=4, samples_per_prompt=2, epochs=2, minibatches=2, max_tokens=8, policy_lr=0.01
)


def low_tokens(samples: Sequence[Sample]) -> Tensor:
    """A reward that any policy can learn: how many tokens come from the vocabulary's first half."""
    return torch.tensor([float(sum(i < 131 for i in s.ids)) for s in samples])


def draw(trunk: Trunk, prompts: list[Prompt], seed: int = 0, temperature: float = 1.0) -> list[Sample]:
    return LocalSampler(trunk).sample(
        Role.POLICY, prompts, n=2, temperature=temperature, max_tokens=8, seed=seed
    )


def updated(trunk: Trunk, samples: list[Sample], ppo: PPO) -> list[Tensor]:
    """Policy parameters after one optimizer step."""
    actor = LanguageActor(trunk)
    experience = gather(actor, samples, low_tokens, ppo)
    optimise(actor, start(actor, ppo).optimizer, experience, aim(experience, ppo, ppo.beta), ppo, seed=0)
    return [p.detach().clone() for p in actor.policy_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("token_budget", [1, 40, 100])
def test_micro_batches_do_not_change_the_step(
    fresh_trunk: Callable[[], Trunk], prompts: list[Prompt], token_budget: int
) -> None:
    """One denominator for the whole optimizer batch: parameters agree to 1e-6 for any micro-batch size."""
    one_step = replace(SMALL, epochs=1, minibatches=1)
    samples = draw(fresh_trunk(), prompts)
    whole = updated(fresh_trunk(), samples, replace(one_step, token_budget=100_000))
    split = updated(fresh_trunk(), samples, replace(one_step, token_budget=token_budget))
    assert max(float((a - b).abs().max()) for a, b in zip(whole, split, strict=True)) < 1e-6
    assert any(bool(p.any()) for p in whole)


def test_the_rloo_step_is_plain_reinforce(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Its gradient is Σ A·∇log π(reply), reply by reply, with A from loops over floats."""
    rloo = replace(SMALL, advantages="rloo", epochs=1, minibatches=1, max_grad_norm=1e9)
    with torch.no_grad():  # a policy that is not the reference, so that the KL counts
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.02)
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, rloo)
    wanted = torch.autograd.grad(plain_reinforce(actor, experience.samples, 0.3), actor.policy_parameters())
    targets = aim_without_critic(experience, rloo, 0.3)
    optimise(actor, start(actor, rloo).optimizer, experience, targets, rloo, seed=0)
    found = [p.grad for p in actor.policy_parameters()]
    size = max(float(g.abs().max()) for g in wanted)
    assert size > 1e-3
    for mine, plain in zip(found, wanted, strict=True):
        assert mine is not None
        assert float((mine - plain).abs().max()) < 1e-4 * size


def plain_reinforce(actor: LanguageActor, samples: list[Sample], beta: float) -> Tensor:
    """The surrogate reply by reply, without batches, masks or padding."""
    logprobs = [actor.forward([s])[0].sum() for s in samples]
    with actor.reference(), torch.no_grad():
        reference = [float(actor.forward([s])[0].sum()) for s in samples]
    rewards = [
        float(low_tokens([s])) - (s.finish == "length") - beta * (float(p.detach()) - q)
        for s, p, q in zip(samples, logprobs, reference, strict=True)
    ]
    advantages = []
    for i, s in enumerate(samples):
        others = [r for j, r in enumerate(rewards) if j != i and samples[j].prompt == s.prompt]
        advantages.append(rewards[i] - sum(others) / len(others))
    tokens = sum(len(s.ids) for s in samples)
    square = sum(a * a * len(s.ids) for a, s in zip(advantages, samples, strict=True)) / tokens
    terms = [a / square**0.5 * logprob for a, logprob in zip(advantages, logprobs, strict=True)]
    return -torch.stack(terms).sum() / tokens


@pytest.mark.slow
def test_every_minibatch_is_an_optimizer_step(trunk: Trunk, prompts: list[Prompt]) -> None:
    """2 passes × 2 minibatches = 4 steps, counted."""
    actor = LanguageActor(trunk)
    ppo = replace(SMALL, step_kl=1e9)
    state = start(actor, ppo)
    metrics = advance(actor, gather(actor, draw(trunk, prompts), low_tokens, ppo), ppo, state)
    assert metrics.optimizer_steps == 4
    assert metrics.skipped_steps == 0
    assert metrics.ratio_before == pytest.approx(1.0, abs=1e-5)


def test_a_large_step_kl_drops_the_remaining_updates(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Early stop inside the epochs."""
    actor = LanguageActor(trunk)
    ppo = replace(SMALL, step_kl=1e-9)
    metrics = advance(actor, gather(actor, draw(trunk, prompts), low_tokens, ppo), ppo, start(actor, ppo))
    assert metrics.optimizer_steps == 1


def test_dropout_stops_the_run(trunk: Trunk, prompts: list[Prompt]) -> None:
    """LoRA dropout makes the policy differ from itself before the first step."""
    for name, module in trunk.model.named_modules():
        if name.endswith("lora_dropout"):
            module[Role.POLICY.value] = torch.nn.Dropout(0.5)
    with torch.no_grad():
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.1)
    with pytest.raises(RatioError, match="dropout"):
        updated(trunk, draw(trunk, prompts), SMALL)


def test_another_temperature_in_the_update_stops_the_run(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Old log-probabilities at 1, new ones at 0.7: the ratio is not 1."""
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, SMALL)
    actor.temperature = 0.7
    with pytest.raises(RatioError, match="temperature"):
        optimise(actor, start(actor, SMALL).optimizer, experience, aim(experience, SMALL, 0.0), SMALL, seed=0)


def test_a_shifted_mask_stops_the_run(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Responses that begin one token later in the update than when they were recorded."""
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, SMALL)
    late = [
        replace(s, prompt=replace(s.prompt, ids=(*s.prompt.ids, s.ids[0])), ids=(*s.ids[1:], 3))
        for s in experience.samples
    ]
    with pytest.raises(RatioError, match="mask"):
        shifted = replace(experience, samples=late)
        optimise(actor, start(actor, SMALL).optimizer, shifted, aim(experience, SMALL, 0.0), SMALL, seed=0)


def test_another_sampling_temperature_stops_the_run(trunk: Trunk, prompts: list[Prompt]) -> None:
    """The sampler's log-probabilities are not the trainer's: caught before anything is updated."""
    with pytest.raises(SamplerError, match="temperature"):
        gather(LanguageActor(trunk), draw(trunk, prompts, temperature=0.5), low_tokens, SMALL)


@pytest.mark.parametrize(("ratio", "kl", "stops"), [(1.0, 0.0, False), (1.002, 0.0, True), (1.0, 2e-5, True)])
def test_the_guards_limits(ratio: float, kl: float, stops: bool) -> None:
    """|mean − 1| < 1e-3 and KL < 1e-5, also when only one of them is broken."""
    if stops:
        with pytest.raises(RatioError):
            check_ratio(ratio, kl)
    else:
        check_ratio(ratio, kl)


def test_a_guard_is_not_fooled_by_nan() -> None:
    with pytest.raises(RatioError):
        check_ratio(float("nan"), 0.0)


def test_a_non_finite_gradient_skips_the_step_and_is_counted(trunk: Trunk, prompts: list[Prompt]) -> None:
    """One poisoned advantage must not poison the weights."""
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, SMALL)
    targets = aim(experience, SMALL, 0.0)
    targets.advantages_BT[0, 0] = float("nan")
    before = [p.detach().clone() for p in actor.policy_parameters()]
    ppo = replace(SMALL, epochs=1, minibatches=1)
    log = optimise(actor, start(actor, ppo).optimizer, experience, targets, ppo, seed=0)
    assert log["skipped_steps"] == 1
    assert log["optimizer_steps"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, actor.policy_parameters(), strict=True))


def test_entropy_is_what_the_samples_say(trunk: Trunk, prompts: list[Prompt]) -> None:
    """The mean −log π of tokens that π itself drew; the rate is that of the step, the target counts from the
    first step's KL, which is 0 here."""
    actor = LanguageActor(trunk)
    samples = draw(trunk, prompts)
    metrics = advance(actor, gather(actor, samples, low_tokens, SMALL), SMALL, start(actor, SMALL))
    drawn = [logprob for sample in samples for logprob in sample.logprobs]
    assert metrics.entropy == pytest.approx(-sum(drawn) / len(drawn), abs=1e-4)
    assert metrics.lr == pytest.approx(0.01)
    assert metrics.kl_target_nats == pytest.approx(15.0, abs=1e-4)


def test_the_kl_budget_stops_the_run_before_the_update(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Small steps add up: beyond the budget nothing more is learned, and the run says why."""
    with torch.no_grad():
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.1)
    actor = LanguageActor(trunk)
    ppo = replace(SMALL, kl_budget=1e-3)
    state = start(actor, ppo)
    metrics = advance(actor, gather(actor, draw(trunk, prompts), low_tokens, ppo), ppo, state)
    assert metrics.optimizer_steps == 0
    assert "budget" in state.stopped


def test_a_stale_batch_is_skipped_and_marked(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Effective sample size below ½: the batch says little about this policy."""
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, SMALL)
    sampler_BT = experience.sampler_BT.clone()
    sampler_BT[0, 0] -= 5.0
    metrics = advance(actor, replace(experience, sampler_BT=sampler_BT), SMALL, start(actor, SMALL))
    assert metrics.skipped_batch
    assert metrics.optimizer_steps == 0
    assert metrics.effective_sample_size < 0.5


def test_replies_that_do_not_end_earn_less(trunk: Trunk, prompts: list[Prompt]) -> None:
    """`length` is not `stop`: exactly the cut replies pay."""
    actor = LanguageActor(trunk)
    samples = [replace(s, finish="length" if i % 2 else "stop") for i, s in enumerate(draw(trunk, prompts))]
    experience = gather(actor, samples, lambda s: torch.ones(len(s)), SMALL)
    returns_BT = aim(experience, replace(SMALL, missing_eos_penalty=3.0, lam=1.0), 0.0).returns_BT
    expected = [-2.0 if i % 2 else 1.0 for i in range(len(samples))]
    assert returns_BT[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_values_explain_something_before_the_first_policy_step(trunk: Trunk, prompts: list[Prompt]) -> None:
    """The value-only warm-up: explained variance above 0 at step 0."""
    actor = LanguageActor(trunk)
    experience = gather(actor, draw(trunk, prompts), low_tokens, SMALL)
    metrics = advance(actor, experience, SMALL, start(actor, SMALL))
    assert metrics.explained_variance > 0


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    prompts = [Prompt(str(i), (i,)) for i in range(7)]
    ppo = replace(SMALL, prompts_per_step=3)
    drawn = [p.digest for step in range(7) for p in draw_prompts(prompts, ppo, step)]
    assert sorted(drawn[:7]) == sorted(p.digest for p in prompts)
    assert sorted(drawn) == sorted(3 * [p.digest for p in prompts])
    assert drawn[:7] != drawn[7:14]


def test_experience_gathered_in_portions_is_the_same(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Scoring replies while others are drawn changes when the work is done, and nothing else."""
    samples = draw(trunk, prompts)
    short = [replace(s, ids=s.ids[:2], logprobs=s.logprobs[:2]) for s in samples[:3]]
    samples = short + samples[3:]  # portions of different width
    actor = LanguageActor(trunk)
    whole = gather(actor, samples, low_tokens, SMALL)
    parts = portions(([s] for s in samples), 3)
    found = joined([gather(actor, part, low_tokens, SMALL) for part in parts])
    assert found.samples == whole.samples
    assert torch.equal(found.mask_BT, whole.mask_BT)
    assert torch.equal(found.scores_B, whole.scores_B)
    for name in ("old_BT", "reference_BT", "sampler_BT", "values_BT"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-5, rtol=0)


def test_a_prompts_replies_stay_together_in_random_order(trunk: Trunk, prompts: list[Prompt]) -> None:
    """So they share their prompt's computation, and no epoch has the same minibatches as another."""
    samples = draw(trunk, prompts)
    orders = [shuffled(samples, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(16))
        assert all(order[i] // 2 == order[i + 1] // 2 for i in range(0, 16, 2))
    assert orders[0] != orders[1]


def test_portions_follow_from_the_samples_alone(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Two replies to a prompt at a time, at least three to a portion: 4, 4, and what is left."""
    drawn = draw(trunk, prompts[:5])
    pairs = [drawn[i : i + 2] for i in range(0, 10, 2)]
    assert list(portions(iter(pairs), 3)) == [drawn[:4], drawn[4:8], drawn[8:]]
    assert list(portions(iter([]), 3)) == []


@pytest.mark.slow
def test_ppo_raises_the_reward_and_leaves_the_base_alone(trunk: Trunk, prompts: list[Prompt]) -> None:
    """A language model learns to say what is rewarded. Chance moves a mean of 768 replies by 0.05."""
    with torch.no_grad():
        trunk.lm_head.weight.mul_(4)  # random logits are so small that nothing could be preferred
    before = base_hash(trunk)
    actor = LanguageActor(trunk)
    ppo = replace(SMALL, steps=10, samples_per_prompt=64, minibatches=1, beta=0.0, missing_eos_penalty=0.0)
    seen: list[float] = []
    few = prompts[:4]
    run(
        actor,
        LocalSampler(trunk),
        few,
        low_tokens,
        ppo,
        start(actor, ppo),
        lambda m, _: seen.append(m.score_mean),
    )
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.2
    assert base_hash(trunk) == before


@pytest.mark.slow
def test_a_continued_run_is_the_run_itself(
    fresh_trunk: Callable[[], Trunk], prompts: list[Prompt], tmp_path: Path
) -> None:
    """Stopped after step 2 and continued from the checkpoint: the same weights, bit for bit."""
    whole = LanguageActor(fresh_trunk())
    run(whole, LocalSampler(whole.trunk), prompts, low_tokens, SMALL, start(whole, SMALL))

    class Killed(BaseException):
        pass

    def kill_after_two(metrics: StepMetrics, state: RunState) -> None:
        checkpoints.save(tmp_path, first, state, "settings")
        if state.step == 2:
            raise Killed

    first = LanguageActor(fresh_trunk())
    with pytest.raises(Killed):
        run(first, LocalSampler(first.trunk), prompts, low_tokens, SMALL, start(first, SMALL), kill_after_two)
    second = LanguageActor(fresh_trunk())
    state = start(second, SMALL)
    assert checkpoints.restore(tmp_path, second, state, "settings")
    assert state.step == 2
    run(second, LocalSampler(second.trunk), prompts, low_tokens, SMALL, state)
    for a, b in zip(
        [*whole.policy_parameters(), *whole.value_parameters()],
        [*second.policy_parameters(), *second.value_parameters()],
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_damaged_or_foreign_checkpoint_is_refused(trunk: Trunk, tmp_path: Path) -> None:
    actor = LanguageActor(trunk)
    path = checkpoints.save(tmp_path, actor, start(actor, SMALL), "settings")
    with pytest.raises(CheckpointError, match="other settings"):
        checkpoints.restore(tmp_path, actor, start(actor, SMALL), "others")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.restore(tmp_path, actor, start(actor, SMALL), "settings")
