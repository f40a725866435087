"""What a candidate is worth, against the adapter it would replace and the root reference: replies of both to
held-out prompts and to probes, scored, judged and read by rules.

Measures only: `ops.gates` decides.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch

from feedback.events import Message
from learner import win_rates
from learner.batches import Encoder, Prompt, Sample, Scorer, response_mask
from learner.errors import JudgeError
from learner.examination import Examination
from learner.measures import Floats, Interval, clustered_bootstrap, paired_change
from learner.models import LanguageActor, Role
from learner.probe_sets import Kind, Probe, ProbeSet, messages
from learner.probing import Answered, Replies, counts, measure
from learner.sampling import Sampler
from learner.train_policy import forward_all
from learner.train_reward import RewardReport
from ops.evaluation import VERSION, EvalReport, Measure

REPEATED_WORDS, REPEATED_TIMES = 4, 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    prompts: Sequence[Prompt]
    samples_per_prompt: int
    temperature: float
    max_tokens: int
    token_budget: int
    seed: int
    max_prompt_tokens: int = 512
    """Probes whose prompt is longer are left out."""
    examination: Examination = Examination()
    conversations: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    """By digest, what was said before the reply: for judge and gold, who read words."""


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


@dataclass(frozen=True)
class Drawn:
    """One adapter's replies: to the held-out prompts, and to the probes' prompts."""

    heldout: list[Sample]
    probes: list[Sample]
    texts: list[str]
    """Of the held-out replies."""


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
    rewards_PS, before_PS = (_table(scorer(d.heldout).double().cpu().numpy(), plan) for d in (after, before))
    digests = [s.prompt.digest for s in after.heldout]
    rng = np.random.default_rng(plan.seed)
    gain = clustered_bootstrap((rewards_PS - before_PS).reshape(-1), digests, rng)
    kl_root = kl_nats(actor, after.heldout, Role.ROOT, plan.token_budget)
    answered = answers(asked, after, before, encoder, plan.examination.probe_samples)
    found, missing = measure(plan.examination.probes, answered)
    if missing and not plan.examination.probes.probes:
        missing = dict.fromkeys(missing, "no probes: see [eval]")
    found |= win_measures(
        "win_rate", win_rates.comparisons(rewards_PS, before_PS), lengths(after, before, plan), rng
    )
    found |= form_measures(after, before, plan, rng)
    for part in (judge_measures, gold_measures):
        more, lacking = part(after, before, plan, rng)
        found |= more
        missing |= lacking
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
        missing=missing,
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
    asked: Sequence[tuple[Probe, list[Prompt]]] = (),
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
    return Drawn(heldout, probes, [encoder.text(s) for s in heldout])


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


def _table(values_N: Floats, plan: Plan) -> Floats:
    """One row a prompt, one column a sample of it."""
    return values_N.reshape(-1, plan.samples_per_prompt)


def lengths(after: Drawn, before: Drawn, plan: Plan) -> Floats:
    """Differences in tokens, as `win_rates.comparisons` orders them."""
    return win_rates.differences(*(_table(_tokens(d), plan) for d in (after, before)))


def _tokens(drawn: Drawn) -> Floats:
    return np.array([len(s.ids) for s in drawn.heldout], dtype=np.float64)


# measures


def win_measures(
    name: str, wins_PR: Floats, lengths_PR: Floats, rng: np.random.Generator
) -> dict[str, Measure]:
    """The win rate as it is and at equal length."""
    found = {
        name: win_rates.win_rate(wins_PR, rng),
        f"{name}_length_controlled": win_rates.length_controlled(wins_PR, lengths_PR, rng),
    }
    return {key: _measure(key, interval, len(wins_PR)) for key, interval in found.items()}


def _measure(
    name: str, found: Interval, n: int, candidate: float | None = None, baseline: float | None = None
) -> Measure:
    """A measure whose interval is a bootstrap's."""
    return Measure(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        method="bootstrap",
        candidate=candidate,
        baseline=baseline,
    )


FORMS: Mapping[str, Callable[[Sample, str], bool]] = {
    "empty": lambda sample, text: not text.strip(),
    "truncated": lambda sample, text: sample.finish != "stop",
    "repetitive": lambda sample, text: repeats(text),
    "asks_back": lambda sample, text: text.rstrip().endswith("?"),
}
"""By measure, what is counted of held-out replies. Asking back is no fault; asking always is."""


def form_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> dict[str, Measure]:
    """Changes of length and of the shares in `FORMS`, prompt by prompt."""
    tokens, earlier = (_table(_tokens(d), plan).mean(axis=1) for d in (after, before))
    digests = [prompt.digest for prompt in plan.prompts]
    change = clustered_bootstrap(tokens - earlier, digests, rng)
    found = {"tokens": _measure("tokens", change, len(digests), float(tokens.mean()), float(earlier.mean()))}
    for name, is_so in FORMS.items():
        share_P, earlier_P = (
            _table(
                np.array([is_so(*pair) for pair in zip(d.heldout, d.texts, strict=True)], float), plan
            ).mean(axis=1)
            for d in (after, before)
        )
        interval = paired_change(share_P, earlier_P)
        found[name] = Measure(
            name=name,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=len(digests),
            method="newcombe",
            candidate=float(share_P.mean()),
            baseline=float(earlier_P.mean()),
        )
    return found


Part = tuple[dict[str, Measure], dict[str, str]]
"""Measures by name, and what could not be had, with the reason."""


def judge_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> Part:
    """Win rates by the arbiter, of each prompt's first replies; a judge out of reach costs the measure only."""
    if plan.examination.arbiter is None:
        return {}, {}
    name, arbiter, n = "judged_win_rate", plan.examination.arbiter, plan.samples_per_prompt
    asked = [i for i, p in enumerate(plan.prompts) if p.digest in plan.conversations][
        : plan.examination.judged_prompts
    ]

    def ask(i: int) -> float | None:
        digest = plan.prompts[i].digest
        return arbiter(plan.conversations[digest], after.texts[i * n], before.texts[i * n])

    try:
        with ThreadPoolExecutor(plan.examination.judged_at_once, thread_name_prefix="arbiter") as pool:
            said = dict(zip(asked, pool.map(ask, asked), strict=True))
    except JudgeError as e:
        return {}, {name: str(e)}
    wins = {i: p for i, p in said.items() if p is not None}
    if not wins:
        return {}, {name: f"the judge had no answer to any of {len(asked)} prompts"}
    lengths_P1 = (_tokens(after) - _tokens(before))[[i * n for i in wins]][:, None]
    return win_measures(name, np.array(list(wins.values()))[:, None], lengths_P1, rng), {}


def gold_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> Part:
    """The gain in true worth, to be held against the reward model's."""
    if plan.examination.gold is None:
        return {}, {}
    rows = []
    for sample, text, earlier in zip(after.heldout, after.texts, before.texts, strict=True):
        said = plan.conversations.get(sample.prompt.digest)
        worth = (
            None
            if said is None
            else (plan.examination.gold(said, text), plan.examination.gold(said, earlier))
        )
        if worth is not None and worth[0] is not None and worth[1] is not None:
            rows.append((sample.prompt.digest, worth[0], worth[1]))
    if not rows:
        return {}, {"gold_gain": "the gold scorer knows none of the held-out prompts"}
    digests = [digest for digest, _, _ in rows]
    gold_N, earlier_N = (np.array([row[k] for row in rows]) for k in (1, 2))
    gain = clustered_bootstrap(gold_N - earlier_N, digests, rng)
    count = len(set(digests))
    return {
        "gold_gain": _measure("gold_gain", gain, count, float(gold_N.mean()), float(earlier_N.mean()))
    }, {}


def kl_nats(actor: LanguageActor, samples: Sequence[Sample], other: Role, token_budget: int) -> float:
    """Mean KL(policy‖other) per reply: Σ_t log π − log π_other over replies that the policy drew."""
    mask_BT = response_mask(samples)
    with torch.no_grad():
        own_BT = forward_all(actor, samples, token_budget)[0]
        with actor.trunk.acting(other):
            other_BT = forward_all(actor, samples, token_budget)[0]
    return float(((own_BT - other_BT).cpu() * mask_BT).sum(1).mean())


def share_well_formed(drawn: Drawn) -> float:
    return float(np.mean([well_formed(s, text) for s, text in zip(drawn.heldout, drawn.texts, strict=True)]))


def well_formed(sample: Sample, text: str) -> bool:
    """The reply ended by itself, is not empty and says no four words three times."""
    return sample.finish == "stop" and bool(text.strip()) and not repeats(text)


def repeats(text: str) -> bool:
    """Says the same four words three times."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0) >= REPEATED_TIMES


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
    tokens_PS, earlier_PS = (_table(_tokens(d), plan) for d in (after, before))
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
