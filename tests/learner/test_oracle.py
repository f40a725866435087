"""PPO and RLOO against a problem solved exactly: all replies enumerable, the optimum known in closed form.

J(π) = E_π[r] − β·KL(π‖π_ref) has the maximum J* = β·log Σ π_ref·exp(r/β) at π* ∝ π_ref·exp(r/β). Sampling,
rewards, GAE and updates are the learner's own; only the three-token policy and its sampler are this file's.
A run passes when it finds at least 98 % of the possible gain and ends within 0.01 nats of π*. Each known way
of getting them subtly wrong must fail.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from learner.advantages import gae, token_rewards, whiten
from learner.batches import Prompt, Sample, padded, response_mask
from learner.losses import k3
from learner.models import Role
from learner.train_policy import (
    PPO,
    Experience,
    Targets,
    aim,
    aim_without_critic,
    anneal,
    gather,
    optimise,
    run,
    start,
    warm_up,
)

VOCABULARY, LENGTH, BETA = 5, 3, 0.3
END = 0
"""The token that ends a reply in the problem with ends; also the pad id, which must never matter."""
PROMPT = Prompt("oracle", (1,))
STEPS, BATCH = 60, 256


@dataclass(frozen=True)
class Problem:
    replies: list[tuple[int, ...]]
    reward_R: Tensor
    reference_logits: Tensor
    """One row of logits per prefix."""


def problem(*, with_ends: bool) -> Problem:
    """All replies of up to three tokens, a random reference policy and a random reward for each reply."""
    generator = torch.Generator().manual_seed(3)
    replies = list(product(range(VOCABULARY), repeat=LENGTH))
    if with_ends:
        replies = list(dict.fromkeys(r[: r.index(END) + 1] if END in r else r for r in replies))
    rows = sum((VOCABULARY + 1) ** i for i in range(LENGTH))
    return Problem(
        replies,
        torch.rand(len(replies), generator=generator),
        torch.randn(rows, VOCABULARY, generator=generator),
    )


@cache
def state_of(prefix: tuple[int, ...]) -> int:
    """A number of its own for every prefix that a token can follow.

    Longer ones (padding) share the parameters of their beginning, as tokens of a language model share theirs.
    """
    number = 0
    for token in prefix[: LENGTH - 1]:
        number = number * (VOCABULARY + 1) + token + 1
    return number


class TableActor:
    """A policy with one row of logits per prefix, and a value for each."""

    def __init__(self, problem: Problem) -> None:
        self.reference_logits = problem.reference_logits
        self.logits = nn.Parameter(problem.reference_logits.clone())
        self.value_head = nn.Linear(len(problem.reference_logits), 1, bias=False)
        nn.init.zeros_(self.value_head.weight)
        self._table: Tensor = self.logits

    def _states(self, samples: Sequence[Sample]) -> Tensor:
        return padded([[state_of(s.ids[:t]) for t in range(len(s.ids))] for s in samples]).long()

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        states_BT, ids_BT = self._states(samples), padded([s.ids for s in samples]).long()
        logprobs_BT = self._table.log_softmax(1)[states_BT, ids_BT]
        return logprobs_BT, self.value_head.weight[0, states_BT]

    def features(self, samples: Sequence[Sample]) -> Tensor:
        return nn.functional.one_hot(self._states(samples), len(self.logits)).float()

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._table = self.reference_logits
        yield
        self._table = self.logits

    def train(self, mode: bool) -> None:
        pass

    def policy_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.value_head.parameters())


class TableSampler:
    """Draws replies token by token from the actor's table."""

    def __init__(self, actor: TableActor, problem: Problem) -> None:
        self.actor, self.replies = actor, set(problem.replies)

    def publish(self, role: Role) -> None:
        pass

    def sample(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        generator = torch.Generator().manual_seed(seed)
        log_SV = self.actor.logits.detach().log_softmax(1)
        tokens = [
            torch.multinomial(log_SV.exp(), len(prompts) * n, True, generator=generator).T.tolist()
            for _ in range(max_tokens)
        ]
        table = log_SV.tolist()
        rows = [prompt for prompt in prompts for _ in range(n)]
        return [self._reply(prompt, [t[i] for t in tokens], table) for i, prompt in enumerate(rows)]

    def stream(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[list[Sample]]:
        yield self.sample(role, prompts, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)

    def _reply(self, prompt: Prompt, choices: list[list[int]], table: list[list[float]]) -> Sample:
        """`choices[t][state]` is the token that is drawn if position t finds the reply in that state."""
        ids: tuple[int, ...] = ()
        logprobs = []
        while ids not in self.replies:
            state = state_of(ids)
            token = choices[len(ids)][state]
            logprobs.append(table[state][token])
            ids = (*ids, token)
        return Sample(prompt, ids, tuple(logprobs))

    def close(self) -> None:
        pass


def judged(actor: TableActor, problem: Problem) -> tuple[float, float]:
    """Share of the possible gain of J, and KL(π‖π*), both exact."""
    samples = [Sample(PROMPT, r) for r in problem.replies]
    mask_BT = response_mask(samples)
    with torch.no_grad():
        log_p = (actor.forward(samples)[0] * mask_BT).sum(1).double()
        with actor.reference():
            log_ref = (actor.forward(samples)[0] * mask_BT).sum(1).double()
    reward = problem.reward_R.double()
    best = BETA * torch.logsumexp(log_ref + reward / BETA, 0)
    log_best = log_ref + reward / BETA - best / BETA
    before = (log_ref.exp() * reward).sum()
    after = (log_p.exp() * (reward - BETA * (log_p - log_ref))).sum()
    return float((after - before) / (best - before)), float((log_p.exp() * (log_p - log_best)).sum())


SETTINGS = PPO(
    steps=STEPS,
    prompts_per_step=1,
    samples_per_prompt=BATCH,
    epochs=4,
    minibatches=1,
    policy_lr=0.1,
    value_lr=0.1,
    value_clip=None,
    beta=BETA,
    adapt_beta=False,
    kl_budget=1e9,
    step_kl=1.0,
    max_tokens=LENGTH,
    missing_eos_penalty=0.0,
)


def scorer_of(problem: Problem) -> Callable[[Sequence[Sample]], Tensor]:
    place = {reply: i for i, reply in enumerate(problem.replies)}
    return lambda samples: problem.reward_R[torch.tensor([place[s.ids] for s in samples])]


def trained(
    problem: Problem,
    *,
    samples_as: Callable[[list[Sample], TableActor], list[Sample]] = lambda samples, actor: samples,
    experience_as: Callable[[Experience], Experience] = lambda e: e,
    targets_of: Callable[[Experience, PPO, float], Targets] = aim,
    beta: float = BETA,
) -> tuple[float, float]:
    """`learner.train_policy.run` spelt out, with places where a mutation can be put between its stages."""
    actor = TableActor(problem)
    sampler, score = TableSampler(actor, problem), scorer_of(problem)
    state = start(actor, SETTINGS)
    for step in range(STEPS):
        drawn = sampler.sample(Role.POLICY, [PROMPT], n=BATCH, temperature=1.0, max_tokens=LENGTH, seed=step)
        scores_B = score(drawn)
        samples = samples_as(drawn, actor)
        experience = experience_as(gather(actor, samples, lambda _, scores_B=scores_B: scores_B, SETTINGS))
        if step == 0:
            experience = warm_up(actor, experience, SETTINGS, state)
        anneal(state.optimizer, SETTINGS, step)
        optimise(actor, state.optimizer, experience, targets_of(experience, SETTINGS, beta), SETTINGS, step)
    return judged(actor, problem)


def passes(result: tuple[float, float]) -> bool:
    gain, kl = result
    return gain >= 0.98 and kl <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("group_baseline", [False, True])
def test_ppo_finds_the_best_policy(with_ends: bool, group_baseline: bool) -> None:
    """The loop as it runs in production reaches the closed-form optimum, replies of one length or of any."""
    p, ppo = problem(with_ends=with_ends), replace(SETTINGS, group_baseline=group_baseline)
    actor = TableActor(p)
    run(actor, TableSampler(actor, p), [PROMPT], scorer_of(p), ppo, start(actor, ppo))
    gain, kl = judged(actor, p)
    assert gain >= 0.98
    assert kl <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("with_ends", [False, True])
def test_rloo_finds_the_best_policy(with_ends: bool) -> None:
    """Without a critic, each reply judged by the prompt's others: the same optimum."""
    p, rloo = problem(with_ends=with_ends), replace(SETTINGS, advantages="rloo")
    actor = TableActor(p)
    state = start(actor, rloo)
    run(actor, TableSampler(actor, p), [PROMPT], scorer_of(p), rloo, state)
    gain, kl = judged(actor, p)
    assert gain >= 0.98
    assert kl <= 0.01
    assert not actor.value_head.weight.any()  # there is none: nothing was ever fitted


@pytest.mark.slow
def test_the_spelt_out_loop_finds_it_too() -> None:
    """Control for the mutations below: without any, the same code passes."""
    assert passes(trained(problem(with_ends=True)))


AIMS = pytest.mark.parametrize("targets_of", [aim, aim_without_critic])


@pytest.mark.slow
@AIMS
def test_k3_in_the_reward_fails(targets_of: Callable[[Experience, PPO, float], Targets]) -> None:
    """k3's derivative is not the KL's: as a penalty it pulls elsewhere."""
    fails(trained(problem(with_ends=True), experience_as=with_k3, targets_of=targets_of))


def with_k3(e: Experience) -> Experience:
    return replace(e, reference_BT=e.old_BT - k3(e.old_BT, e.reference_BT))


@pytest.mark.slow
@AIMS
def test_no_kl_fails(targets_of: Callable[[Experience, PPO, float], Targets]) -> None:
    """Without the penalty the policy runs to the best reply and loses all entropy."""
    fails(trained(problem(with_ends=True), beta=0.0, targets_of=targets_of))


@pytest.mark.slow
@AIMS
def test_doubled_beta_fails(targets_of: Callable[[Experience, PPO, float], Targets]) -> None:
    """The optimum of another β is another policy."""
    fails(trained(problem(with_ends=True), beta=2 * BETA, targets_of=targets_of))


@pytest.mark.slow
def test_reward_on_the_wrong_token_fails() -> None:
    """A score on the first token credits none of the later ones."""
    fails(trained(problem(with_ends=True), targets_of=score_on_first_token))
    fails(trained(problem(with_ends=True), targets_of=only_first_token_credited))


def score_on_first_token(e: Experience, ppo: PPO, beta: float) -> Targets:
    rewards_BT = token_rewards(torch.zeros_like(e.scores_B), e.old_BT, e.reference_BT, e.mask_BT, beta)
    rewards_BT[:, 0] += e.scores_B
    advantages_BT, returns_BT = gae(rewards_BT, e.values_BT, e.mask_BT, ppo.gamma, ppo.lam)
    return Targets(whiten(advantages_BT, e.mask_BT), returns_BT, torch.ones_like(rewards_BT))


def only_first_token_credited(e: Experience, ppo: PPO, beta: float) -> Targets:
    right = aim_without_critic(e, ppo, beta)
    advantages_BT = torch.zeros_like(right.advantages_BT)
    advantages_BT[:, 0] = right.advantages_BT[:, 0]
    return replace(right, advantages_BT=advantages_BT)


@pytest.mark.slow
@AIMS
def test_flipped_advantages_fail(targets_of: Callable[[Experience, PPO, float], Targets]) -> None:
    """Gradient descent on the objective instead of ascent."""

    def flipped(e: Experience, ppo: PPO, beta: float) -> Targets:
        right = targets_of(e, ppo, beta)
        return replace(right, advantages_BT=-right.advantages_BT)

    fails(trained(problem(with_ends=True), targets_of=flipped))


@pytest.mark.slow
@AIMS
def test_unmasked_padding_fails(targets_of: Callable[[Experience, PPO, float], Targets]) -> None:
    """Padding taken for response tokens is rewarded, penalised and trained on."""
    fails(trained(problem(with_ends=True), samples_as=padding_as_response, targets_of=targets_of))


def padding_as_response(samples: list[Sample], actor: TableActor) -> list[Sample]:
    width = LENGTH + 2
    longer = [replace(s, ids=s.ids + (END,) * (width - len(s.ids))) for s in samples]
    with torch.no_grad():
        logprobs_BT = actor.forward(longer)[0]
    return [replace(s, logprobs=tuple(row.tolist())) for s, row in zip(longer, logprobs_BT, strict=True)]


def fails(result: tuple[float, float]) -> None:
    """Fails by a margin, not by a hair: at most 97 % of the gain or at least 0.02 nats away."""
    gain, kl = result
    assert gain <= 0.97 or kl >= 0.02, f"a broken PPO passes: gain {gain:.4f}, KL {kl:.4f}"
