"""What a candidate is worth on held-out prompts, against the adapter it would replace and the root reference.

Measures only: `ops.gates` decides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.batches import Prompt, Sample, Scorer, response_mask
from learner.measures import clustered_bootstrap
from learner.models import LanguageActor, Role
from learner.sampling import Sampler
from learner.train_policy import forward_all
from learner.train_reward import RewardReport
from ops.adapters import EvalReport

REPEATED_WORDS, REPEATED_TIMES = 4, 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    prompts: Sequence[Prompt]
    samples_per_prompt: int
    temperature: float
    max_tokens: int
    token_budget: int
    seed: int


def evaluate(
    actor: LanguageActor,
    sampler: Sampler,
    scorer: Scorer,
    plan: Plan,
    reward: RewardReport,
    *,
    baseline: Role,
    baseline_name: str | None,
) -> EvalReport:
    """Replies of candidate and baseline to the same prompts, scored by the same reward model.

    `baseline` is the role of the adapter that would be replaced: PARENT, or ROOT when that one does nothing.
    Raises: SamplingError.
    """
    replies = {role: draw(sampler, role, plan) for role in (Role.POLICY, baseline)}
    candidate, before = replies[Role.POLICY], replies[baseline]
    gain_N = (scorer(candidate).double() - scorer(before).double()).cpu().numpy()
    gain = clustered_bootstrap(gain_N, [s.prompt.digest for s in candidate], np.random.default_rng(plan.seed))
    kl_root = kl_nats(actor, candidate, Role.ROOT, plan.token_budget)
    return EvalReport(
        prompts=len({s.prompt.digest for s in candidate}),
        samples=len(candidate),
        reward_gain=gain.value,
        reward_gain_low=gain.low,
        reward_gain_high=gain.high,
        kl_root_nats=kl_root,
        kl_parent_nats=kl_root
        if baseline is Role.ROOT
        else kl_nats(actor, candidate, baseline, plan.token_budget),
        mean_tokens=float(np.mean([len(s.ids) for s in candidate])),
        baseline_mean_tokens=float(np.mean([len(s.ids) for s in before])),
        well_formed=share_well_formed(actor, candidate),
        baseline_well_formed=share_well_formed(actor, before),
        reward_model_accuracy=reward.accuracy,
        reward_model_pairs=reward.pairs,
        baseline=baseline_name,
    )


def draw(sampler: Sampler, role: Role, plan: Plan) -> list[Sample]:
    sampler.publish(role)
    return sampler.sample(
        role,
        plan.prompts,
        n=plan.samples_per_prompt,
        temperature=plan.temperature,
        max_tokens=plan.max_tokens,
        seed=plan.seed,
    )


def kl_nats(actor: LanguageActor, samples: Sequence[Sample], other: Role, token_budget: int) -> float:
    """Mean KL(policy‖other) per reply: Σ_t log π − log π_other over replies that the policy drew."""
    mask_BT = response_mask(samples)
    with torch.no_grad():
        own_BT = forward_all(actor, samples, token_budget)[0]
        with actor.trunk.acting(other):
            other_BT = forward_all(actor, samples, token_budget)[0]
    return float(((own_BT - other_BT).cpu() * mask_BT).sum(1).mean())


def share_well_formed(actor: LanguageActor, samples: Sequence[Sample]) -> float:
    return float(np.mean([well_formed(s, actor.trunk.encoder.text(s)) for s in samples]))


def well_formed(sample: Sample, text: str) -> bool:
    """The reply ended by itself, is not empty and says no four words three times."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1))
    return sample.finish == "stop" and bool(words) and max(runs.values(), default=0) < REPEATED_TIMES
