"""Every way to train the policy: it moves where its data points, and a stopped run ends as a whole one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from learner import methods
from learner.batches import GradeRow, PairRow, Prompt, RewardData, Sample, Target
from learner.config import Learner, Method
from learner.errors import MissingData
from learner.methods import Material, Task
from learner.models import LanguageActor, Role, Trunk
from learner.sampling import LocalSampler
from tests.learner.test_train_preferences import needs_trl

LEARNER = Learner(
    policy_steps=4,
    prompts_per_step=8,
    samples_per_prompt=4,
    best_of=8,
    max_reply_tokens=8,
    policy_lr=0.02,
    checkpoint_every=1,
    missing_eos_penalty=0.0,
    fit_batch_rows=4,
    fit_epochs=6,
)


def low_tokens(samples: Sequence[Sample]) -> Tensor:
    """A reward that any policy can learn: how many tokens come from the vocabulary's first half."""
    return torch.tensor([float(sum(i < 131 for i in s.ids)) for s in samples])


def material(trunk: Trunk, prompts: list[Prompt]) -> Material:
    """People like "Yes", dislike "No", and edit towards "Yes"."""
    pairs = [PairRow(trunk.encoder.reply(p, "Yes"), trunk.encoder.reply(p, "No"), p=0.9) for p in prompts]
    grades = [g for pair in pairs for g in (GradeRow(pair.chosen, 0.9), GradeRow(pair.rejected, 0.1))]
    edits = [Target(pair.chosen, 0.8) for pair in pairs]
    return Material(prompts=prompts, data=RewardData(pairs=pairs, grades=grades), edits=edits)


def task(trunk: Trunk, prompts: list[Prompt], folder: Path, method: Method) -> Task:
    return Task(
        actor=LanguageActor(trunk),
        sampler=LocalSampler(trunk),
        scorer=low_tokens,
        material=material(trunk, prompts),
        learner=msgspec.structs.replace(LEARNER, method=method),
        seed=1,
        fingerprint="f",
        folder=folder,
    )


def mean_reward(trunk: Trunk, prompts: list[Prompt]) -> float:
    sampler = LocalSampler(trunk)
    drawn = sampler.sample(Role.POLICY, prompts, n=512, temperature=1.0, max_tokens=8, seed=7)
    return float(low_tokens(drawn).mean())


def log_odds(trunk: Trunk, prompts: list[Prompt]) -> float:
    """Of "Yes" over "No", nats, mean over the prompts."""
    actor = LanguageActor(trunk)
    with torch.no_grad():
        yes, no = (
            float(actor.forward([trunk.encoder.reply(p, text) for p in prompts])[0].sum())
            for text in ("Yes", "No")
        )
    return (yes - no) / len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps", "lr"), [("rloo", 10, 0.03), ("best_of_n", 5, 0.05)])
def test_methods_that_sample_raise_the_reward(
    trunk: Trunk, prompts: list[Prompt], tmp_path: Path, method: Method, steps: int, lr: float
) -> None:
    """As PPO does (test_train_policy). Chance moves the mean of 2,048 replies by 0.04, and what best of n
    gains in these few steps by 0.1 (0.40 in the mean of 12 seeds)."""
    with torch.no_grad():
        trunk.lm_head.weight.mul_(4)  # random logits are so small that nothing could be preferred
    asked = task(trunk, prompts[:4], tmp_path, method)
    learner = msgspec.structs.replace(
        asked.learner,
        policy_steps=steps,
        policy_lr=lr,
        prompts_per_step=4,
        samples_per_prompt=40,
        minibatches=1,
        best_of=16,
        beta=0.0,
    )
    before = mean_reward(trunk, prompts[:4])
    assert methods.train(replace(asked, learner=learner)) == ""
    assert mean_reward(trunk, prompts[:4]) > before + 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param("dpo", marks=needs_trl), pytest.param("kto", marks=needs_trl), "sft"]
)
def test_methods_that_read_prefer_what_people_preferred_to_prompts_they_never_saw(
    trunk: Trunk, prompts: list[Prompt], tmp_path: Path, method: Method
) -> None:
    """Trained on the first six prompts, asked about the last two: by a nat and more."""
    before = log_odds(trunk, prompts[6:])
    methods.train(task(trunk, prompts[:6], tmp_path, method))
    assert log_odds(trunk, prompts[6:]) > before + 1.0
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["step"] for line in lines] == list(range(len(lines)))


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rloo", "sft", "best_of_n", pytest.param("kto", marks=needs_trl)])
def test_a_stopped_run_ends_with_the_very_weights_of_a_whole_one(
    fresh_trunk: Callable[[], Trunk], prompts: list[Prompt], tmp_path: Path, method: Method
) -> None:
    """Killed in its third step and started again in a new process, as it were; KTO begins anew."""

    def kill(metrics: methods.Metrics, steps: int) -> None:
        if metrics.step == 2:
            raise Killed

    first, second, whole = fresh_trunk(), fresh_trunk(), fresh_trunk()
    with pytest.raises(Killed):
        methods.train(replace(task(first, prompts, tmp_path / "a", method), watch=kill))
    taken: list[int] = []
    again = task(second, prompts, tmp_path / "a", method)
    methods.train(replace(again, watch=lambda metrics, steps: taken.append(metrics.step)))
    assert taken[0] == (0 if method == "kto" else 2)
    methods.train(task(whole, prompts, tmp_path / "b", method))
    found, wanted = second.weights(Role.POLICY), whole.weights(Role.POLICY)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert any(bool(tensor.any()) for name, tensor in wanted.items() if "lora_B" in name)
    lines = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("a", "b")]
    assert len(lines[0].splitlines()) == len(lines[1].splitlines())


def test_best_of_n_keeps_the_best_reply_to_each_prompt(
    trunk: Trunk, prompts: list[Prompt], tmp_path: Path
) -> None:
    """4 steps of 8 prompts and 4 samples are 128: 16 prompts with 8 each, so every one comes twice."""
    asked = task(trunk, prompts, tmp_path, "best_of_n")
    drawn: list[list[Sample]] = []

    def scorer(samples: Sequence[Sample]) -> Tensor:
        drawn.append(list(samples))
        return low_tokens(samples)

    kept = methods.winners(replace(asked, scorer=scorer))
    assert sorted(s.prompt.digest for s in kept) == sorted(2 * [p.digest for p in prompts])
    groups = [batch[i : i + 8] for batch in drawn for i in range(0, len(batch), 8)]
    assert [float(low_tokens([s])) for s in kept] == [float(low_tokens(group).max()) for group in groups]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        pytest.param("dpo", "learns from pairs", marks=needs_trl),
        pytest.param("kto", "8 good and 0 bad", marks=needs_trl),
        ("sft", "learns from users' edits"),
    ],
)
def test_what_a_method_lacks_is_said(trunk: Trunk, prompts: list[Prompt], method: Method, said: str) -> None:
    """Ties prefer nothing, thumbs up alone contrast nothing, an edit without weight teaches nothing."""
    whole = material(trunk, prompts)
    methods.require(method, whole)
    poor = Material(
        prompts=prompts,
        data=RewardData(
            pairs=[replace(pair, p=0.5) for pair in whole.data.pairs],
            grades=[grade for grade in whole.data.grades if grade.p > 0.5],
        ),
        edits=[replace(edit, weight=0.0) for edit in whole.edits],
    )
    with pytest.raises(MissingData, match=said):
        methods.require(method, poor)
    for always in ("ppo", "rloo", "best_of_n"):
        methods.require(always, poor)


def test_settings_that_a_method_cannot_work_with_are_refused() -> None:
    """A single reply has no others to be compared with."""
    with pytest.raises(ValueError, match="samples_per_prompt must be 2"):
        Learner(method="rloo", samples_per_prompt=1)
    with pytest.raises(ValueError, match="fit_batch_rows must be 2"):
        Learner(method="kto", fit_batch_rows=1)
