"""What a candidate is worth, against the adapter it would replace and the root reference: replies of both to
held-out prompts and to probes, scored, judged and read by rules.

Measures only: `ops.gates` decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from learner import win_rates
from learner.batches import Encoder, Prompt, Sample, Scorer, response_mask
from learner.heldout import (
    Drawn,
    Plan,
    form_measures,
    gold_measures,
    judge_measures,
    lengths,
    share_well_formed,
    table,
    tokens,
    verified_measures,
    win_measures,
)
from learner.measures import Floats, clustered_bootstrap
from learner.models import LanguageActor, Role
from learner.probe_sets import Kind, Probe, ProbeSet, messages
from learner.probing import Answered, Replies, counts, measure
from learner.sampling import Sampler
from learner.train_policy import forward_all
from learner.train_reward import RewardReport
from ops.evaluation import VERSION, EvalReport


class ProbeLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `replies.jsonl`: a probe, what both answered, and whether the rules counted it."""

    id: str
    kind: Kind
    turns: list[str]
    candidate: list[Replies]
    baseline: list[Replies]
    counted: list[bool]
    baseline_counted: list[bool]


class PromptLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `replies.jsonl`: a held-out prompt. Its words are in the snapshot, where erasing reaches."""

    prompt_digest: str
    rewards: list[float]
    baseline_rewards: list[float]
    tokens: list[int]
    baseline_tokens: list[int]


@dataclass(frozen=True)
class Evaluation:
    report: EvalReport
    lines: list[ProbeLine | PromptLine]


def evaluate(
    actor: LanguageActor,
    sampler: Sampler,
    scorer: Scorer,
    plan: Plan,
    reward: RewardReport,
    *,
    baseline: Role,
    baseline_name: str | None,
) -> Evaluation:
    """Replies of candidate and baseline to the same prompts, scored by the same reward model.

    `baseline` is the role of the adapter that would be replaced: PARENT, or ROOT when that one does nothing.
    Raises: SamplingError.
    """
    encoder = actor.trunk.encoder
    asked = askable(plan.examination.probes, encoder, plan.max_prompt_tokens)
    after, before = (draw(sampler, encoder, role, plan, asked) for role in (Role.POLICY, baseline))
    rewards_PS, before_PS = (table(scorer(d.heldout).double().cpu().numpy(), plan) for d in (after, before))
    digests = [s.prompt.digest for s in after.heldout]
    rng = np.random.default_rng(plan.seed)
    gain = clustered_bootstrap((rewards_PS - before_PS).reshape(-1), digests, rng)
    kl_root = kl_nats(actor, after.heldout, Role.ROOT, plan.token_budget)
    wins_PR = win_rates.comparisons(rewards_PS, before_PS)
    found = win_measures("win_rate", wins_PR, lengths(after, before, plan), rng)
    found |= form_measures(after, before, plan, rng)
    answered = answers(asked, after, before, encoder, plan.examination.probe_samples)
    parts = (
        measure(plan.examination.probes, answered, rng),
        judge_measures(after, before, plan, rng),
        gold_measures(after, before, plan, rng),
        verified_measures(after, before, plan),
    )
    for part, _ in parts:
        found |= part
    report = EvalReport(
        prompts=len(plan.prompts),
        samples=len(after.heldout),
        reward_gain=gain.value,
        reward_gain_low=gain.low,
        reward_gain_high=gain.high,
        kl_root_nats=kl_root,
        kl_parent_nats=kl_root
        if baseline is Role.ROOT
        else kl_nats(actor, after.heldout, baseline, plan.token_budget),
        mean_tokens=float(np.mean([len(s.ids) for s in after.heldout])),
        baseline_mean_tokens=float(np.mean([len(s.ids) for s in before.heldout])),
        well_formed=share_well_formed(after),
        baseline_well_formed=share_well_formed(before),
        reward_model_accuracy=reward.accuracy,
        reward_model_pairs=reward.pairs,
        baseline=baseline_name,
        version=VERSION,
        probes=plan.examination.probes.name,
        measures=tuple(found.values()),
        missing={name: reason for _, lacking in parts for name, reason in lacking.items()},
    )
    return Evaluation(
        report, [*probe_lines(answered), *prompt_lines(plan, after, before, rewards_PS, before_PS)]
    )


# replies


def askable(probes: ProbeSet, encoder: Encoder, max_tokens: int) -> list[tuple[Probe, list[Prompt]]]:
    """Probes with their prompts, one or (contrary opinions) two; without those that are too long."""
    found = []
    for probe in probes.probes:
        said = [probe.turns, probe.contrary] if probe.contrary else [probe.turns]
        prompts = [encoder.prompt(f"{probe.id}/{i}", messages(turns)) for i, turns in enumerate(said)]
        if all(len(prompt.ids) <= max_tokens for prompt in prompts):
            found.append((probe, prompts))
    return found


def draw(
    sampler: Sampler,
    encoder: Encoder,
    role: Role,
    plan: Plan,
    asked: Sequence[tuple[Probe, list[Prompt]]],
) -> Drawn:
    """All the replies of one role, at the temperature that it was trained at."""
    sampler.publish(role)

    def sampled(prompts: Sequence[Prompt], n: int) -> list[Sample]:
        return sampler.sample(
            role, prompts, n=n, temperature=plan.temperature, max_tokens=plan.max_tokens, seed=plan.seed
        )

    heldout = sampled(plan.prompts, plan.samples_per_prompt)
    prompts = [prompt for _, several in asked for prompt in several]
    probes = sampled(prompts, plan.examination.probe_samples) if prompts else []
    problems = sampled(plan.problems, plan.samples_per_prompt) if plan.problems else []
    return Drawn(heldout, probes, [encoder.text(s) for s in heldout], problems)


def answers(
    asked: Sequence[tuple[Probe, list[Prompt]]], after: Drawn, before: Drawn, encoder: Encoder, n: int
) -> list[Answered]:
    """Samples back to their probes: `n` to each prompt, prompts in order."""

    def replies(samples: Sequence[Sample], start: int, prompts: int) -> list[Replies]:
        texts = [encoder.text(s) for s in samples[start : start + prompts * n]]
        return [tuple(texts[k::n]) for k in range(n)]

    found, start = [], 0
    for probe, prompts in asked:
        both = [replies(d.probes, start, len(prompts)) for d in (after, before)]
        found.append(Answered(probe, *both))
        start += len(prompts) * n
    return found


def kl_nats(actor: LanguageActor, samples: Sequence[Sample], other: Role, token_budget: int) -> float:
    """Mean KL(policy‖other) per reply: Σ_t log π − log π_other over replies that the policy drew."""
    mask_BT = response_mask(samples)
    with torch.no_grad():
        own_BT = forward_all(actor, samples, token_budget)[0]
        with actor.trunk.acting(other):
            other_BT = forward_all(actor, samples, token_budget)[0]
    return float(((own_BT - other_BT).cpu() * mask_BT).sum(1).mean())


# evidence


def probe_lines(answered: Sequence[Answered]) -> list[ProbeLine]:
    return [
        ProbeLine(
            id=row.probe.id,
            kind=row.probe.kind,
            turns=row.probe.turns,
            candidate=list(row.candidate),
            baseline=list(row.baseline),
            counted=[counts(row.probe, replies) for replies in row.candidate],
            baseline_counted=[counts(row.probe, replies) for replies in row.baseline],
        )
        for row in answered
    ]


def prompt_lines(
    plan: Plan, after: Drawn, before: Drawn, rewards_PS: Floats, before_PS: Floats
) -> list[PromptLine]:
    tokens_PS, earlier_PS = (table(tokens(d), plan) for d in (after, before))
    return [
        PromptLine(
            prompt_digest=prompt.digest,
            rewards=rewards_PS[i].tolist(),
            baseline_rewards=before_PS[i].tolist(),
            tokens=[int(n) for n in tokens_PS[i]],
            baseline_tokens=[int(n) for n in earlier_PS[i]],
        )
        for i, prompt in enumerate(plan.prompts)
    ]
