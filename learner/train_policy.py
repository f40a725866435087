"""PPO and RLOO: sample, score, update, readable top to bottom. Knows no language models, engines or files.

The two differ in `AIMS` alone: what the update pulls towards, and whether there is a critic to fit.

The policy is an `Actor`, so the same lines train a LoRA on a language model and the three-token policy of the
oracle test, whose best answer is known exactly.

Legend: B samples, T response token (padding on the right). Log-probabilities and KL in nats.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import msgspec
import torch
from torch import Tensor, nn

from learner.advantages import (
    adapted_beta,
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
from learner.batches import Prompt, Sample, Scorer, padded, response_mask
from learner.distributed import add_up_gradients, shares, total
from learner.errors import RatioError, SamplerError
from learner.losses import k3, policy_loss, value_loss
from learner.models import Role
from learner.sampling import Sampler
from learner.verification import Verified, Verify, unverified
from learner.verification import joined as joined_verified

RATIO_LIMIT = 1e-3
OLD_KL_LIMIT = 1e-5
REDUCED_PRECISION_FACTOR = 100.0
"""Both limits are for float32; bfloat16's rounding is allowed this much more."""
SAMPLER_KL_LIMIT = 0.02
"""Nats per token that sampler and trainer may disagree by; bfloat16 rounding makes about 2e-4."""
MIN_EFFECTIVE_SAMPLE_SIZE = 0.5
MAX_UNKNOWN = 0.5
"""Share of a step's checks that may end without a verdict: beyond it, the step is left out."""
PORTION = 32
"""Samples that are scored at a time, while the engines draw the next ones."""


class Actor(Protocol):
    """A policy with a value estimate. `forward` is differentiable in both parameter groups."""

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(logprobs_BT, values_BT) of the samples' responses, as wide as the longest; V before each token."""
        ...

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """What the value head is linear in, features_BTH, without gradient."""
        ...

    def value_head(self, features: Tensor) -> Tensor: ...

    def reference(self) -> AbstractContextManager[object]:
        """Inside, `forward` computes the root reference. Entered once per phase."""
        ...

    def train(self, mode: bool) -> None: ...

    def policy_parameters(self) -> list[nn.Parameter]: ...

    def value_parameters(self) -> list[nn.Parameter]: ...


@dataclass(frozen=True, kw_only=True)
class PPO:
    """The numbers of one run. Rewards in deviations of the root reference, KL in nats per reply."""

    steps: int = 24
    prompts_per_step: int = 32
    samples_per_prompt: int = 4
    epochs: int = 2
    minibatches: int = 2
    policy_lr: float = 2e-3
    value_lr: float = 1e-2
    warm_up_updates: int = 200
    """Value-only updates, at most, before the first policy step."""
    advantages: Literal["gae", "rloo"] = "gae"
    """gae: PPO, with a value head. rloo: no critic, each reply against the prompt's others."""
    group_baseline: bool = False
    """Scores less the mean of the prompt's other replies before GAE: values need not learn the prompt."""
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    dual_clip: float = 3.0
    value_clip: float | None = 0.2
    max_grad_norm: float = 1.0
    beta: float = 0.03
    beta_horizon: int = 1000
    """Samples over which β may change by 20 %."""
    adapt_beta: bool = True
    target_kl: float = 15.0
    """KL per reply that this run may add to what it started with; β adapts towards it."""
    kl_budget: float = 45.0
    """KL per reply to the root reference at which the run stops."""
    step_kl: float = 0.05
    """Nats per token between new and old policy at which a step's remaining updates are dropped."""
    missing_eos_penalty: float = 1.0
    temperature: float = 1.0
    max_tokens: int = 64
    token_budget: int = 8192
    seed: int = 0
    problem_fraction: float = 0.0
    """Share of the prompts that are problems, over the steps together to the last prompt."""


@dataclass(frozen=True)
class Experience:
    """Samples with everything that is fixed before the first update."""

    samples: list[Sample]
    mask_BT: Tensor
    old_BT: Tensor
    """Log-probabilities under the trainer's weights that drew the samples."""
    reference_BT: Tensor
    sampler_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    """The reward model's."""
    verified: Verified
    """What checks said."""

    @property
    def kl_per_reply(self) -> float:
        return float(((self.old_BT - self.reference_BT) * self.mask_BT).sum(1).mean())


@dataclass(frozen=True)
class Targets:
    """What the update pulls towards."""

    advantages_BT: Tensor
    """Of scale 1 over all tokens."""
    returns_BT: Tensor | None
    """What the critic is fitted to; None where there is none."""
    weights_BT: Tensor


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One PPO step, as a line of `metrics.jsonl`."""

    step: int
    reward_mean: float
    score_mean: float
    """The reward model's word alone, before checks and the missing-end penalty."""
    verified_mean: float = 0.0
    """What checks added to the reward, mean over all replies; deviations."""
    verified: dict[str, tuple[float, int, int]] = {}
    """By kind of check: mean score (0 to 1), checks with a verdict, checks without."""
    kl_root_nats: float
    """Per reply."""
    beta: float
    mean_tokens: float
    finished: float
    """Share of replies that ended by themselves."""
    kl_target_nats: float = 0.0
    """Per reply; what β adapts towards, from the run's first step on."""
    entropy: float = 0.0
    """Of the policy that drew the samples, nats per token: their mean −log π, which costs no pass."""
    lr: float = 0.0
    """Learning rate of the policy in this step."""
    ratio_before: float = 1.0
    """Mean ratio before the first optimizer step: 1, or the run stops."""
    clip_fraction: float = 0.0
    approx_kl: float = 0.0
    """Nats per token between the step's first and last policy."""
    policy_loss: float = 0.0
    value_loss: float = 0.0
    grad_norm: float = 0.0
    explained_variance: float = 0.0
    effective_sample_size: float = 1.0
    sampler_kl: float = 0.0
    """Nats per token between sampler and trainer."""
    optimizer_steps: int = 0
    skipped_steps: int = 0
    """Optimizer steps left out because loss or gradient was not finite."""
    skipped_batch: bool = False
    """The whole step was left out: too small an effective sample size, or too few verdicts."""


@dataclass
class RunState:
    """Everything that changes during a run, besides the weights: what a checkpoint holds."""

    optimizer: torch.optim.Adam
    step: int = 0
    beta: float = 0.0
    start_kl: float | None = None
    stopped: str = ""
    """Why the run ended before its last step."""


def start(actor: Actor, ppo: PPO) -> RunState:
    """A fresh optimizer: Adam with eps 1e-5, no weight decay, one group for policy and one for values."""
    groups = [
        {"params": actor.policy_parameters(), "lr": ppo.policy_lr},
        {"params": actor.value_parameters(), "lr": ppo.value_lr},
    ]
    return RunState(torch.optim.Adam(groups, eps=1e-5), beta=ppo.beta)


def run(
    actor: Actor,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    ppo: PPO,
    state: RunState,
    observe: Callable[[StepMetrics, RunState], None] = lambda metrics, state: None,
    problems: Sequence[Prompt] = (),
    verify: Verify = unverified,
) -> RunState:
    """Trains until the last step or the KL budget; `observe` is called after every step (checkpoint there).

    `problems`: prompts whose replies `verify` can check, `ppo.problem_fraction` of all that are drawn.
    All chance follows from (`ppo.seed`, step): a run continued from a checkpoint is the run itself.
    Raises: RatioError, SamplerError, SamplingError.
    """
    while state.step < ppo.steps and not state.stopped:
        sampler.publish(Role.POLICY)
        drawn = sampler.stream(
            Role.POLICY,
            draw_prompts(prompts, ppo, state.step, problems),
            n=ppo.samples_per_prompt,
            temperature=ppo.temperature,
            max_tokens=ppo.max_tokens,
            seed=step_seed(ppo.seed, state.step),
        )
        experience = joined([gather(actor, part, scorer, ppo, verify) for part in portions(drawn, PORTION)])
        metrics = advance(actor, experience, ppo, state)
        observe(metrics, state)
    return state


def advance(actor: Actor, experience: Experience, ppo: PPO, state: RunState) -> StepMetrics:
    """One PPO step on gathered experience: budget, targets, updates, next β. Advances `state`."""
    kl = experience.kl_per_reply
    state.start_kl = kl if state.start_kl is None else state.start_kl
    metrics = describe(experience, ppo, state)
    state.step += 1
    if kl > ppo.kl_budget:
        state.stopped = f"KL to the root reference is {kl:.1f} nats per reply, the budget {ppo.kl_budget:g}"
        return metrics
    if metrics.effective_sample_size < MIN_EFFECTIVE_SAMPLE_SIZE or experience.verified.unknown > MAX_UNKNOWN:
        return replace_metrics(metrics, skipped_batch=True)
    if metrics.step == 0 and ppo.advantages == "gae":
        experience = warm_up(actor, experience, ppo, state)
    anneal(state.optimizer, ppo, metrics.step)
    metrics = replace_metrics(metrics, lr=state.optimizer.param_groups[0]["lr"])
    targets = AIMS[ppo.advantages](experience, ppo, state.beta)
    update = optimise(actor, state.optimizer, experience, targets, ppo, step_seed(ppo.seed, metrics.step))
    if ppo.adapt_beta:
        state.beta = adapted_beta(
            state.beta, kl, metrics.kl_target_nats, len(experience.samples), ppo.beta_horizon
        )
    if targets.returns_BT is not None:
        spread = explained_variance(targets.returns_BT, experience.values_BT, experience.mask_BT)
        metrics = replace_metrics(metrics, explained_variance=spread)
    return replace_metrics(metrics, **update)


def replace_metrics(metrics: StepMetrics, **changes: float | int | bool) -> StepMetrics:
    return msgspec.structs.replace(metrics, **changes)


def step_seed(seed: int, step: int) -> int:
    return seed * 1_000_003 + step * 7_919 + 1


def draw_prompts(
    prompts: Sequence[Prompt], ppo: PPO, step: int, problems: Sequence[Prompt] = ()
) -> list[Prompt]:
    """The step's prompts, and among them its part of the problems, where there are any."""
    n = ppo.prompts_per_step
    fraction = ppo.problem_fraction if problems else 0.0
    first, after = (int(k * n * fraction) for k in (step, step + 1))
    asked = laps(prompts, ppo.seed, step * n - first, n - (after - first))
    return asked + laps(problems, ppo.seed, first, after - first)


def laps(prompts: Sequence[Prompt], seed: int, first: int, count: int) -> list[Prompt]:
    """`count` from place `first` on: pass after pass over all of them, each in an order of its own."""
    drawn: list[Prompt] = []
    while len(drawn) < count:
        lap, place = divmod(first + len(drawn), len(prompts))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(step_seed(seed, lap)))
        drawn += [prompts[i] for i in order[place : place + count - len(drawn)].tolist()]
    return drawn


def gather(
    actor: Actor, samples: list[Sample], scorer: Scorer, ppo: PPO, verify: Verify = unverified
) -> Experience:
    """Old, reference and sampler log-probabilities, values and scores of fresh samples.

    Raises: SamplerError when sampler and trainer disagree about the same tokens.
    """
    actor.train(False)
    with torch.no_grad():
        old_BT, values_BT = forward_all(actor, samples, ppo.token_budget)
        with actor.reference():
            reference_BT, _ = forward_all(actor, samples, ppo.token_budget)
    mask_BT = response_mask(samples).to(old_BT.device)
    sampler_BT = padded([s.logprobs for s in samples]).to(old_BT.device)
    check_sampler(old_BT, sampler_BT, mask_BT)
    scores_B = scorer(samples).to(old_BT.device)
    verified = verify(samples)
    return Experience(samples, mask_BT, old_BT, reference_BT, sampler_BT, values_BT, scores_B, verified)


def portions(drawn: Iterable[list[Sample]], size: int) -> Iterator[list[Sample]]:
    """The samples in lists of `size` or a little more: which ones go together does not depend on time."""
    waiting: list[Sample] = []
    for part in drawn:
        waiting += part
        if len(waiting) >= size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def joined(parts: Sequence[Experience]) -> Experience:
    """One experience of several, in their order."""

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        width = max(t.shape[1] for t in tensors)
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors])

    return Experience(
        [sample for part in parts for sample in part.samples],
        rows([part.mask_BT for part in parts]),
        rows([part.old_BT for part in parts]),
        rows([part.reference_BT for part in parts]),
        rows([part.sampler_BT for part in parts]),
        rows([part.values_BT for part in parts]),
        torch.cat([part.scores_B for part in parts]),
        joined_verified([part.verified for part in parts]),
    )


def forward_all(actor: Actor, samples: Sequence[Sample], token_budget: int) -> tuple[Tensor, Tensor]:
    """`actor.forward` over micro-batches, without gradient, back in the samples' order."""
    width = max(len(s.ids) for s in samples)
    parts: list[tuple[list[int], Tensor, Tensor]] = []
    for share in shares([s.length for s in samples], token_budget):
        logprobs_BT, values_BT = actor.forward([samples[i] for i in share.rows])
        parts.append((share.rows, share.weight * logprobs_BT, share.weight * values_BT))
    old_BT = parts[0][1].new_zeros(len(samples), width)
    all_values_BT = torch.zeros_like(old_BT)
    for group, logprobs_BT, values_BT in parts:
        old_BT[group, : logprobs_BT.shape[1]] += logprobs_BT
        all_values_BT[group, : values_BT.shape[1]] += values_BT
    return total(old_BT), total(all_values_BT)


def check_sampler(old_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor) -> None:
    """Raises: SamplerError naming the likely causes when KL(μ‖π_old) per token is beyond rounding."""
    kl = sampler_kl(old_BT, sampler_BT, mask_BT)
    if not kl <= SAMPLER_KL_LIMIT:
        raise SamplerError(
            f"sampler and trainer disagree by {kl:.4f} nats per token (limit {SAMPLER_KL_LIMIT:g}). Likely "
            "causes: another temperature; log-probabilities before temperature (start vLLM with "
            "--logprobs-mode processed_logprobs); another adapter or base model in the engine; a shifted mask"
        )


def sampler_kl(old_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor) -> float:
    return float((k3(sampler_BT, old_BT) * mask_BT).sum() / mask_BT.sum())


def final_scores(experience: Experience, ppo: PPO) -> Tensor:
    """Learned and verified scores_B, less the penalty for replies that did not end by themselves."""
    mixed_B = experience.verified.mixed(experience.scores_B)
    return less_missing_ends(mixed_B, experience.samples, ppo.missing_eos_penalty)


def less_missing_ends(scores_B: Tensor, samples: Sequence[Sample], penalty: float) -> Tensor:
    return scores_B - penalty * scores_B.new_tensor([s.finish == "length" for s in samples])


def centred_scores(experience: Experience, ppo: PPO) -> Tensor:
    """What the rewards are made of: final scores_B, less the prompt's own level where that is asked for."""
    scores_B = final_scores(experience, ppo)
    if not ppo.group_baseline:
        return scores_B
    return leave_one_out(scores_B, [s.prompt for s in experience.samples])


def rewards(experience: Experience, ppo: PPO, beta: float) -> Tensor:
    """rewards_BT: the checks' where steps end, the rest of the centred score at the end, KL everywhere."""
    e = experience
    steps_BT = e.verified.rewards_BT.to(e.old_BT)
    end_B = centred_scores(e, ppo) - steps_BT.sum(dim=1)
    return token_rewards(end_B, e.old_BT, e.reference_BT, e.mask_BT, beta) + steps_BT


def aim(experience: Experience, ppo: PPO, beta: float) -> Targets:
    """Rewards with KL inside, GAE, one whitening over the whole batch, importance weights."""
    e = experience
    rewards_BT = rewards(e, ppo, beta)
    advantages_BT, returns_BT = gae(rewards_BT, e.values_BT, e.mask_BT, ppo.gamma, ppo.lam)
    weights_BT = importance_weights(e.old_BT, e.sampler_BT, e.mask_BT)
    return Targets(whiten(advantages_BT, e.mask_BT), returns_BT, weights_BT)


def aim_without_critic(experience: Experience, ppo: PPO, beta: float) -> Targets:
    """Leave-one-out advantages of whole replies, KL inside, of scale 1 over the batch; importance weights."""
    e = experience
    prompts = [s.prompt for s in e.samples]
    advantages_BT = rloo_advantages(final_scores(e, ppo), e.old_BT, e.reference_BT, e.mask_BT, beta, prompts)
    weights_BT = importance_weights(e.old_BT, e.sampler_BT, e.mask_BT)
    return Targets(scaled(advantages_BT, e.mask_BT), None, weights_BT)


AIMS: dict[str, Callable[[Experience, PPO, float], Targets]] = {"gae": aim, "rloo": aim_without_critic}


def warm_up(actor: Actor, experience: Experience, ppo: PPO, state: RunState) -> Experience:
    """Fits the value head alone to the first batch's rewards-to-go, before the first policy step.

    Features are computed once: only the head moves. Returns: the experience with new values.
    """
    e = experience
    rewards_BT = rewards(e, ppo, state.beta)
    _, returns_BT = gae(rewards_BT, torch.zeros_like(rewards_BT), e.mask_BT, ppo.gamma, 1.0)
    features_NH = torch.cat([f for f in _features(actor, e, ppo)])
    returns_N = returns_BT[e.mask_BT]
    optimizer = torch.optim.Adam(actor.value_parameters(), lr=ppo.value_lr, eps=1e-5)
    for _ in range(ppo.warm_up_updates):
        loss = (0.5 * (actor.value_head(features_NH).squeeze(1) - returns_N) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        values_N = actor.value_head(features_NH).squeeze(1)
    return replace(e, values_BT=torch.zeros_like(e.values_BT).masked_scatter(e.mask_BT, values_N))


def _features(actor: Actor, experience: Experience, ppo: PPO) -> Iterator[Tensor]:
    """features_NH of each sample in turn (rows of the mask), a few samples at a time."""
    samples = experience.samples
    size = max(1, ppo.token_budget // max(s.length for s in samples))
    for first in range(0, len(samples), size):
        part = samples[first : first + size]
        yield actor.features(part)[response_mask(part)]


def optimise(
    actor: Actor, optimizer: torch.optim.Adam, experience: Experience, targets: Targets, ppo: PPO, seed: int
) -> dict[str, float | int]:
    """`epochs` passes of `minibatches` optimizer steps each; micro-batches change memory, never the gradient.

    Raises: RatioError when the policy is not yet the old one before the first optimizer step.
    """
    actor.train(True)
    generator = torch.Generator().manual_seed(seed)
    log = _Log()
    for _ in range(ppo.epochs):
        order = shuffled(experience.samples, generator)
        for rows_M in order.tensor_split(ppo.minibatches):
            if len(rows_M):
                moved = minibatch_step(actor, optimizer, experience, targets, ppo, rows_M, log)
                if moved > ppo.step_kl:
                    actor.train(False)
                    return log.summary()
    actor.train(False)
    return log.summary()


def shuffled(samples: Sequence[Sample], generator: torch.Generator) -> Tensor:
    """Rows in random order, a prompt's replies side by side: so they share its computation."""
    rows: dict[Prompt, list[int]] = {}
    for b in torch.randperm(len(samples), generator=generator).tolist():
        rows.setdefault(samples[b].prompt, []).append(b)
    return torch.tensor([b for group in rows.values() for b in group])


def minibatch_step(
    actor: Actor,
    optimizer: torch.optim.Adam,
    experience: Experience,
    targets: Targets,
    ppo: PPO,
    rows_M: Tensor,
    log: "_Log",
) -> float:
    """One optimizer step on the given samples. Returns: approximate KL old‖new before it, nats per token."""
    e, t = experience, targets
    tokens = e.mask_BT[rows_M].sum()
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(5, dtype=torch.float64, device=tokens.device)
    for share in shares([e.samples[i].length for i in rows_M.tolist()], ppo.token_budget):
        rows = rows_M[share.rows]
        new_BT, values_BT = actor.forward([e.samples[i] for i in rows.tolist()])
        width = new_BT.shape[1]
        mask_BT, old_BT = e.mask_BT[rows, :width], e.old_BT[rows, :width]
        policy = policy_loss(
            new_BT,
            old_BT,
            t.advantages_BT[rows, :width],
            t.weights_BT[rows, :width],
            mask_BT,
            ppo.clip,
            ppo.dual_clip,
        )
        value_BT = torch.zeros_like(policy.loss_BT)
        if t.returns_BT is not None:
            value_BT = value_loss(
                values_BT, e.values_BT[rows, :width], t.returns_BT[rows, :width], mask_BT, ppo.value_clip
            )
        loss = share.weight * (policy.loss_BT.sum() + value_BT.sum()) / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            kl_BT = k3(old_BT, new_BT) * mask_BT
            parts = (policy.loss_BT, value_BT, policy.ratio_BT * mask_BT, policy.clipped_BT, kl_BT)
            sums += share.weight * torch.stack([part.double().sum() for part in parts])
    add_up_gradients(p for group in optimizer.param_groups for p in group["params"])
    means = (total(sums) / tokens).tolist()
    if log.first:
        check_ratio(means[2], means[4], _precision(actor))
    moved = log.first or means[4] <= ppo.step_kl
    norm = _finite_step(optimizer, ppo.max_grad_norm, means[0] + means[1]) if moved else None
    log.add(means, norm, dropped=not moved)
    return float(means[4])


def _finite_step(optimizer: torch.optim.Adam, max_grad_norm: float, loss: float) -> float | None:
    """Clips each group's gradient and steps. Returns: the policy's gradient norm; None if not finite."""
    norms = [
        torch.nn.utils.clip_grad_norm_(g["params"], max_grad_norm)
        for g in optimizer.param_groups
        if g["params"]
    ]
    if not (math.isfinite(loss) and all(math.isfinite(float(n)) for n in norms)):
        optimizer.zero_grad(set_to_none=True)
        return None
    optimizer.step()
    return float(norms[0])


def _precision(actor: Actor) -> float:
    dtype = getattr(actor, "compute_dtype", torch.float32)
    return 1.0 if dtype == torch.float32 else REDUCED_PRECISION_FACTOR


def check_ratio(ratio: float, approx_kl: float, slack: float = 1.0) -> None:
    """Raises: RatioError unless the policy about to be updated is the one that was recorded as old."""
    if abs(ratio - 1.0) < RATIO_LIMIT * slack and approx_kl < OLD_KL_LIMIT * slack:
        return
    raise RatioError(
        f"before the first optimizer step the mean ratio is {ratio:.5f} (1 ± {RATIO_LIMIT * slack:g}) and "
        f"the KL {approx_kl:.2e} nats per token (below {OLD_KL_LIMIT * slack:g}). Likely causes: dropout; "
        "the response mask is shifted; another temperature; another dtype; another adapter is active"
    )


class _Log:
    """Sums over a step's minibatches."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []
        self.norms: list[float] = []
        self.skipped = 0

    @property
    def first(self) -> bool:
        return not self.rows

    def add(self, means: list[float], norm: float | None, *, dropped: bool) -> None:
        self.rows.append(means)
        if norm is not None:
            self.norms.append(norm)
        elif not dropped:
            self.skipped += 1

    def summary(self) -> dict[str, float | int]:
        policy, value, _, clipped, _ = (sum(c) / len(self.rows) for c in zip(*self.rows, strict=True))
        return {
            "ratio_before": self.rows[0][2],
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": clipped,
            "approx_kl": self.rows[-1][4],
            "grad_norm": sum(self.norms) / max(len(self.norms), 1),
            "optimizer_steps": len(self.norms),
            "skipped_steps": self.skipped,
        }


def anneal(optimizer: torch.optim.Adam, ppo: PPO, step: int) -> None:
    """Learning rates fall linearly to 0 over the run."""
    left = 1.0 - step / ppo.steps
    for group, lr in zip(optimizer.param_groups, (ppo.policy_lr, ppo.value_lr), strict=True):
        group["lr"] = lr * left


def describe(experience: Experience, ppo: PPO, state: RunState) -> StepMetrics:
    e = experience
    return StepMetrics(
        step=state.step,
        reward_mean=float(final_scores(e, ppo).mean()),
        score_mean=float(e.scores_B.mean()),
        verified_mean=float(e.verified.rewards_BT.sum(dim=1).mean()),
        verified={kind: (t.rate, t.verdicts, t.without) for kind, t in e.verified.tallies.items()},
        kl_root_nats=e.kl_per_reply,
        beta=state.beta,
        mean_tokens=float(e.mask_BT.sum(1).double().mean()),
        finished=sum(s.finish == "stop" for s in e.samples) / len(e.samples),
        kl_target_nats=min((state.start_kl or 0.0) + ppo.target_kl, ppo.kl_budget),
        entropy=-float(e.old_BT[e.mask_BT].mean()),
        effective_sample_size=effective_sample_size(e.old_BT, e.sampler_BT, e.mask_BT),
        sampler_kl=sampler_kl(e.old_BT, e.sampler_BT, e.mask_BT),
    )
