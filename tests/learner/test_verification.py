"""Verified rewards: on the right tokens, on the stated scale, stronger than a learned reward that errs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.batches import Encoder, Prompt, Sample
from learner.config import Problems
from learner.errors import VerifierError
from learner.problems import Answer, Call, Check, Code, Problem, ProblemSet, Steps
from learner.train_policy import PPO, Experience, aim_without_critic, draw_prompts, rewards, run, start
from learner.verification import Tally, Verified, Verifier, joined
from tests.learner import test_oracle as oracle

LETTERS = "∎123456789\n"


class Letters:
    """A tokenizer of one character a token; token 0 ends a reply."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(LETTERS[i] for i in ids if i)


ENCODER = Encoder(Letters(), eos_ids=(0,))


def problem(asked: str, *checks: Check) -> tuple[Prompt, Problem]:
    made = Problem(messages=[{"role": "user", "content": asked}], checks=list(checks))
    return Prompt(made.digest, (1,)), made


def sample(prompt: Prompt, text: str) -> Sample:
    return Sample(prompt, (*(LETTERS.index(c) for c in text), 0))


def fails(program: str, calls: Sequence[str]) -> list[Any] | None:
    raise VerifierError("no sandbox")


def verifier(*problems: Problem, **settings: Any) -> Verifier:
    return Verifier(ProblemSet("p", problems, Problems(**settings)), ENCODER, fails)


def experience(samples: list[Sample], learned: list[float], verified: Verified) -> Experience:
    """A policy that is still the reference, without values."""
    mask_BT = torch.tensor([[t < len(s.ids) for t in range(verified.rewards_BT.shape[1])] for s in samples])
    zeros_BT = torch.zeros(mask_BT.shape)
    return Experience(
        samples, mask_BT, zeros_BT, zeros_BT, zeros_BT, zeros_BT, torch.tensor(learned), verified
    )


def test_credit_lands_where_each_step_ends() -> None:
    """Three steps of weight 1.5: ±½ each, with the line break that ends it, the last with the end token.

    tokens      1    \\n   5    \\n   9    end        1    \\n   4    end
    marks            1          0          1               1         1, and 0 for the missing step
    """
    prompt, asked = problem("?", Steps(expected=["1", "4", "9"]))
    samples = [sample(prompt, "1\n5\n9"), sample(prompt, "1\n4")]
    verified = verifier(asked, weights={"steps": 1.5})(samples)
    assert verified.rewards_BT.tolist() == [
        pytest.approx([0, 0.5, 0, -0.5, 0, 0.5]),
        pytest.approx([0, 0.5, 0, 0.0, 0, 0]),  # 1.5/3·(1 − 1) at its end
    ]
    e = experience(samples, [0.2, -0.4], verified)
    found_BT = rewards(e, PPO(missing_eos_penalty=0.0), beta=0.0)
    assert found_BT.tolist() == [
        pytest.approx([0, 0.5, 0, -0.5, 0, 0.7]),  # the learned score at the end
        pytest.approx([0, 0.5, 0, -0.4, 0, 0]),
    ]
    # leave one out: totals 0.7 and 0.1, so 0.6 and −0.6 in all; the steps stay where they are
    centred_BT = rewards(e, PPO(missing_eos_penalty=0.0, group_baseline=True), beta=0.0)
    assert centred_BT.tolist() == [
        pytest.approx([0, 0.5, 0, -0.5, 0, 0.6]),
        pytest.approx([0, 0.5, 0, -1.1, 0, 0]),
    ]


def test_outcomes_count_at_the_end_and_length_nothing() -> None:
    """2v − 1 times the weight, the learned score by its own; other prompts keep the learned score."""
    prompt, asked = problem("2 + 2?", Answer(expected=["4"]))
    samples = [
        sample(prompt, "4"),
        sample(prompt, "1\n\n\n\n4"),
        sample(prompt, "5"),
        sample(Prompt("chat", (1,)), "4"),
    ]
    verified = verifier(asked, weights={"answer": 2.0}, learned_weight=0.5)(samples)
    assert verified.rewards_BT.sum(1).tolist() == [2.0, 2.0, -2.0, 0.0]
    assert verified.rewards_BT[1].tolist() == [0, 0, 0, 0, 0, 0, 2.0]
    assert verified.mixed(torch.tensor([1.0, 1.0, 1.0, 1.0])).tolist() == [2.5, 2.5, -1.5, 1.0]
    assert verified.tallies == {"answer": Tally(score=2.0, verdicts=3)}


def test_no_verdict_is_counted_and_pulls_nowhere() -> None:
    """Where the check failed, a reply gets the mean of the prompt's others: neither praise nor blame."""
    prompt, asked = problem("?", Answer(expected=["4"]))
    flaky = verifier(asked)
    samples = [sample(prompt, text) for text in ("4", "5", "44")]
    good, bad, broken = (flaky.marks([s], [ENCODER.text(s)])[0] for s in samples)
    marks = [good, bad, [[m._replace(score=None, reason="crashed") for m in found] for found in broken]]
    flaky.marks = lambda samples, texts: marks  # type: ignore[method-assign]
    verified = flaky(samples)
    assert verified.rewards_BT.sum(1).tolist() == [1.0, -1.0, 0.0]
    assert verified.tallies == {"answer": Tally(score=1.0, verdicts=2, without=1)}
    assert verified.unknown == pytest.approx(1 / 3)
    targets = aim_without_critic(experience(samples, [0.0] * 3, verified), PPO(missing_eos_penalty=0.0), 0.0)
    assert targets.advantages_BT[2].tolist() == [0.0, 0.0, 0.0]
    assert targets.advantages_BT[0, 0] > 0.9

    alone, asked = problem("f", Code(tests=[Call(call="f()", returns=1)]))
    verified = verifier(asked)([sample(alone, "1")])  # nothing to compare with: ½
    assert verified.rewards_BT.tolist() == [[0.0, 0.0]]
    assert joined([verified, verified]).tallies == {"code": Tally(without=2)}


def test_problems_are_the_stated_share_of_the_prompts() -> None:
    """A tenth of 4 prompts a step: 4 in 10 steps, all of them once before any comes again."""
    prompts, problems = ([Prompt(f"{kind}{i}", (1,)) for i in range(4)] for kind in "cp")
    ppo = PPO(prompts_per_step=4, problem_fraction=0.1)
    drawn = [[p.digest for p in draw_prompts(prompts, ppo, step, problems)] for step in range(10)]
    assert {len(step) for step in drawn} == {4}
    assert sorted(d for step in drawn for d in step if d[0] == "p") == ["p0", "p1", "p2", "p3"]
    assert "p" not in "".join(d for s in range(9) for p in draw_prompts(prompts, ppo, s) for d in p.digest)


def test_checks_outweigh_a_learned_reward_that_errs() -> None:
    """A learned reward that likes another token: alone it unlearns the answer, with the check it is learned.

    The policy of the oracle test, 125 replies; the probability of a right reply is exact.
    """
    world = oracle.problem(with_ends=True)
    prompt, asked = problem("?", Answer(expected=["3"]))
    check = verifier(asked, weights={"answer": 2.0})

    def learned(samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([float(s.ids.count(4)) for s in samples])

    def rate(actor: oracle.TableActor) -> float:
        replies = [Sample(prompt, ids) for ids in world.replies]
        with torch.no_grad():
            logprobs_BT = actor.forward(replies)[0] * oracle.response_mask(replies)
        right_B = check(replies).rewards_BT.sum(1) > 0
        return float(logprobs_BT.sum(1).exp()[right_B].sum())

    ppo = replace(
        oracle.SETTINGS, steps=12, samples_per_prompt=64, policy_lr=0.3, beta=0.05, problem_fraction=1
    )
    before = rate(oracle.TableActor(world))
    alone, mixed = oracle.TableActor(world), oracle.TableActor(world)
    run(alone, oracle.TableSampler(alone, world), [prompt], learned, ppo, start(alone, ppo))
    seen = []
    run(
        mixed,
        oracle.TableSampler(mixed, world),
        [],
        learned,
        ppo,
        start(mixed, ppo),
        lambda metrics, state: seen.append(metrics.verified["answer"]),
        [prompt],
        check,
    )
    assert rate(alone) < before < 0.1
    assert rate(mixed) > 0.9
    assert seen[-1][0] > 0.9 > 0.1 > seen[0][0]
    assert {verdicts for _, verdicts, _ in seen} == {64}
