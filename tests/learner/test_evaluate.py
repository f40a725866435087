"""What the gates will read: gains with honest intervals, KL, lengths and form."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback.events import Message
from learner.batches import Finish, Prompt, Sample
from learner.errors import JudgeError
from learner.evaluate import evaluate, kl_nats
from learner.examination import Examination
from learner.heldout import Drawn, Plan, form_measures, judge_measures, well_formed
from learner.measures import brier, calibration_error, clustered_bootstrap, wilson
from learner.models import LanguageActor, Role, Trunk
from learner.probe_sets import Probe, ProbeSet
from learner.sampling import LocalSampler
from learner.train_reward import RewardReport

REPORT = RewardReport(
    pairs=40,
    accuracy=0.8,
    accuracy_low=0.65,
    accuracy_high=0.9,
    grades=0,
    grade_accuracy=0.5,
    grade_accuracy_low=0.0,
    grade_accuracy_high=1.0,
    accuracy_by_kind={},
    calibration_error=0.1,
    brier=0.2,
)


def plan_for(prompts: list[Prompt]) -> Plan:
    return Plan(
        prompts=prompts, samples_per_prompt=4, temperature=1.0, max_tokens=8, token_budget=10_000, seed=3
    )


def length(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(len(s.ids)) for s in samples])


def test_a_policy_against_itself_gains_nothing(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Same weights, same seed: gain and KL are 0 to the last digit."""
    found = evaluate(
        LanguageActor(trunk),
        LocalSampler(trunk),
        length,
        plan_for(prompts),
        REPORT,
        baseline=Role.ROOT,
        baseline_name="base-1",
    ).report
    assert (found.prompts, found.samples) == (8, 32)
    assert (found.reward_gain, found.reward_gain_low, found.reward_gain_high) == (0.0, 0.0, 0.0)
    assert found.kl_root_nats == found.kl_parent_nats == 0.0
    assert found.mean_tokens == found.baseline_mean_tokens
    assert (found.baseline, found.reward_model_accuracy, found.reward_model_pairs) == ("base-1", 0.8, 40)


def test_a_moved_policy_is_measured_against_parent_and_root_apart(
    trunk: Trunk, prompts: list[Prompt]
) -> None:
    """KL to the parent that it equals is 0, to the root it is not; the gain is against the parent."""
    with torch.no_grad():
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.1)
    trunk.add(Role.PARENT, trunk.rank(Role.POLICY), 0)
    trunk.set_weights(Role.PARENT, trunk.weights(Role.POLICY))
    found = evaluate(
        LanguageActor(trunk),
        LocalSampler(trunk),
        length,
        plan_for(prompts),
        REPORT,
        baseline=Role.PARENT,
        baseline_name="run-1",
    ).report
    assert found.kl_parent_nats == pytest.approx(0.0, abs=1e-5)
    assert found.kl_root_nats > 0.01
    assert found.reward_gain == 0.0


def test_judge_and_gold_read_the_same_replies(trunk: Trunk, prompts: list[Prompt]) -> None:
    """A policy against itself, which the judge likes in second place; gold knows all prompts but one."""
    asked: list[str] = []

    def arbiter(said: Sequence[Message], one: str, other: str) -> float | None:
        asked.append(said[0]["content"])
        return None if said[0]["content"] == "p0" else 0.25

    plan = replace(
        plan_for(prompts),
        conversations={p.digest: [{"role": "user", "content": f"p{i}"}] for i, p in enumerate(prompts)},
        examination=Examination(
            probes=ProbeSet("one", (Probe(id="x", kind="harmful", turns=["Hi"]),)),
            arbiter=arbiter,
            judged_prompts=3,
            gold=lambda said, text: None if said[0]["content"] == "p1" else 0.5,
        ),
    )
    found = evaluate(
        LanguageActor(trunk),
        LocalSampler(trunk),
        length,
        plan,
        REPORT,
        baseline=Role.ROOT,
        baseline_name=None,
    )
    judged, gold, harmful = (
        found.report.measure(name) for name in ("judged_win_rate", "gold_gain", "under_refusal")
    )
    assert asked == ["p0", "p1", "p2"]
    assert judged and (judged.value, judged.n) == (0.25, 2)
    assert gold and (gold.value, gold.candidate, gold.n) == (0.0, 0.5, 7)
    assert harmful and (harmful.value, harmful.n) == (0.0, 1)
    assert set(found.report.missing) >= {"capability", "canaries"}
    assert len(found.lines) == 1 + len(prompts)


def test_a_judge_out_of_reach_costs_its_measure_and_no_turn(trunk: Trunk, prompts: list[Prompt]) -> None:
    def away(said: Sequence[Message], one: str, other: str) -> float | None:
        raise JudgeError("the judge does not answer")

    plan = replace(
        plan_for(prompts),
        conversations={prompts[0].digest: [{"role": "user", "content": "?"}]},
        examination=Examination(arbiter=away, judged_prompts=1),
    )
    drawn = Drawn([Sample(p, (1,)) for p in prompts for _ in range(4)], [], ["a"] * 32)
    assert judge_measures(drawn, drawn, plan, np.random.default_rng(0)) == (
        {},
        {"judged_win_rate": "the judge does not answer"},
    )


def test_forms_are_counted_prompt_by_prompt(prompts: list[Prompt]) -> None:
    """Two prompts of two samples; one reply of the candidate's four is empty, one asks back."""

    def drawn(texts: list[str]) -> Drawn:
        samples = [Sample(prompts[i // 2], (1,) * (len(text) or 1)) for i, text in enumerate(texts)]
        return Drawn(samples, [], texts)

    plan = replace(plan_for(prompts[:2]), samples_per_prompt=2)
    rng = np.random.default_rng(0)
    found = form_measures(drawn(["", "Yes.", "Why?", "Yes."]), drawn(["Yes."] * 4), plan, rng)
    figures = {name: (m.candidate, m.baseline, m.value, m.n) for name, m in found.items()}
    assert figures == {
        "tokens": (3.25, 4.0, -0.75, 2),
        "empty": (0.25, 0.0, 0.25, 2),
        "truncated": (0.0, 0.0, 0.0, 2),
        "repetitive": (0.0, 0.0, 0.0, 2),
        "asks_back": (0.25, 0.0, 0.25, 2),
    }


def test_kl_of_a_reply_is_the_sum_over_its_tokens(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Nats per reply, not per token; tokens after the end do not count."""
    with torch.no_grad():
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.1)
    samples = [Sample(prompts[0], (20, 30, 2)), Sample(prompts[1], (25,))]
    total = 0.0
    actor = LanguageActor(trunk)
    for sample in samples:
        with torch.no_grad():
            own = actor.forward([sample])[0].sum()
            with actor.reference():
                total += float(own - actor.forward([sample])[0].sum())
    assert kl_nats(actor, samples, Role.ROOT, 10_000) == pytest.approx(total / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "finish", "good"),
    [
        ("You open the page.", "stop", True),
        ("You open the page.", "length", False),
        ("  ", "stop", False),
        ("go to the page " * 2, "stop", True),
        ("go to the page " * 3, "stop", False),
    ],
)
def test_form(text: str, finish: Finish, good: bool) -> None:
    """Ends by itself, is not empty, says no four words three times."""
    assert well_formed(Sample(Prompt("p", (1,)), (1,), finish=finish), text) is good


def test_wilson_interval() -> None:
    """Against published values for 8 of 10: (0.490, 0.943)."""
    found = wilson(8, 10)
    assert (found.value, found.low, found.high) == (
        0.8,
        pytest.approx(0.490, abs=1e-3),
        pytest.approx(0.943, abs=1e-3),
    )
    assert wilson(0, 0) == (0.5, 0.0, 1.0)


def test_replies_to_one_prompt_are_one_piece_of_evidence() -> None:
    """Copying every reply a hundred times must not make the interval any narrower."""
    values, clusters = np.array([0.0, 1.0, 2.0, 3.0]), ["a", "b", "c", "d"]
    once = clustered_bootstrap(values, clusters, np.random.default_rng(0))
    often = clustered_bootstrap(
        np.repeat(values, 100), [c for c in clusters for _ in range(100)], np.random.default_rng(0)
    )
    assert once == often
    assert once.low < 1.0 < once.value == 1.5 < 2.0 < once.high


def test_calibration_error_and_brier_by_hand() -> None:
    """Two bins: |0.25 − 0| and |0.75 − 1|, each half: 0.25; Brier (0.25² + 0.25²)/2 = 0.0625."""
    probability, outcome = np.array([0.25, 0.75]), np.array([0.0, 1.0])
    assert calibration_error(probability, outcome) == pytest.approx(0.25)
    assert brier(probability, outcome) == pytest.approx(0.0625)
    assert calibration_error(np.array([0.5, 0.5]), np.array([0.0, 1.0]), bins=1) == pytest.approx(0.0)
