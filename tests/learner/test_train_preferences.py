"""TRL's DPO and KTO on our trunk, rows and labels, against the papers' formulae reply by reply."""

import importlib.util
import math

import pytest
import torch

from learner.batches import GradeRow, PairRow, Prompt, Sample
from learner.errors import GuardError, MissingExtra
from learner.imitation import FitMetrics
from learner.models import LanguageActor, Role, Trunk, base_hash
from learner.resampling import halves, systematic
from learner.train_preferences import Settings, dpo, kto, lent, require_trl

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install with the `trl` extra"
)
SETTINGS = Settings(lr=0.005, beta=0.2, epochs=2, batch_rows=16, seed=5)


@pytest.fixture
def replies(trunk: Trunk, prompts: list[Prompt]) -> list[tuple[Sample, Sample]]:
    """Two replies to each prompt, under a policy that has left the root reference."""
    with torch.no_grad():
        for p in trunk.parameters(Role.POLICY):
            p.add_(0.02)
    reply = trunk.encoder.reply
    return [(reply(p, f"Yes {i}"), reply(p, "No" * (i + 1))) for i, p in enumerate(prompts)]


def log_ratio(trunk: Trunk, sample: Sample) -> float:
    """log π − log π_root of one reply alone, nats."""
    actor = LanguageActor(trunk)
    with torch.no_grad():
        own = float(actor.forward([sample])[0].sum())
        with actor.reference():
            return own - float(actor.forward([sample])[0].sum())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.slow
@needs_trl
def test_dpo_starts_from_the_papers_loss_against_the_root(
    trunk: Trunk, replies: list[tuple[Sample, Sample]]
) -> None:
    """One batch of 16 rows: −log σ(β·(ratio of chosen − ratio of rejected)), turned as often as p says.

    The reference is the trunk without any adapter, not the policy that it starts from. Base weights stay, the
    trunk comes back as it was lent, and the chosen replies gain on the rejected ones.
    """
    pairs = [PairRow(a, b, p=0.85, weight=0.3 + 0.1 * i) for i, (a, b) in enumerate(replies)]
    masses = halves([0.85] * len(pairs), [pair.weight for pair in pairs])
    margins = [log_ratio(trunk, pair.chosen) - log_ratio(trunk, pair.rejected) for pair in pairs]
    assert max(abs(m) for m in margins) > 0.1
    losses = [
        -math.log(sigmoid(0.2 * margins[i // 2] * (-1 if i % 2 else 1)))
        for i in systematic(masses, 16, seed=5)
    ]
    before, seen = base_hash(trunk), []
    dpo(trunk, pairs, SETTINGS, lambda metrics, steps: seen.append((metrics, steps)))
    ((first, steps),) = seen
    assert steps == 1
    assert first.loss == pytest.approx(sum(losses) / 16, abs=1e-5)
    assert base_hash(trunk) == before
    assert list(trunk.model.peft_config) == [Role.POLICY.value]
    assert "forward" not in vars(trunk.causal_lm)
    after = [log_ratio(trunk, pair.chosen) - log_ratio(trunk, pair.rejected) for pair in pairs]
    assert sum(after) > sum(margins)


@pytest.mark.slow
@needs_trl
def test_kto_starts_from_the_papers_loss_with_both_sides_weighing_the_same(
    trunk: Trunk, replies: list[tuple[Sample, Sample]]
) -> None:
    """Six good grades, two bad ones: λ = 16/(2·12) and 16/(2·4); z: the mean ratio of mismatched ones."""
    grades = [GradeRow(a if i < 6 else b, p=1.0 if i < 6 else 0.0) for i, (a, b) in enumerate(replies)]
    masses = halves([g.p for g in grades], [1.0] * len(grades))
    drawn = [grades[i // 2] for i in systematic(masses, 16, seed=5)]
    shifted = [Sample(g.reply.prompt, drawn[i - 1].reply.ids) for i, g in enumerate(drawn)]
    z = max(0.0, sum(log_ratio(trunk, s) for s in shifted) / 16)
    losses = [
        16 / 24 * (1 - sigmoid(0.2 * (log_ratio(trunk, g.reply) - z)))
        if g.p == 1.0
        else 16 / 8 * (1 - sigmoid(0.2 * (z - log_ratio(trunk, g.reply))))
        for g in drawn
    ]
    seen: list[FitMetrics] = []
    kto(trunk, grades, SETTINGS, lambda metrics, steps: seen.append(metrics))
    assert seen[0].kl == pytest.approx(z, abs=1e-4)
    assert seen[0].loss == pytest.approx(sum(losses) / 16, abs=1e-5)


def test_a_missing_package_is_named_with_the_remedy() -> None:
    """Before anything is trained."""
    with pytest.raises(MissingExtra, match=r'need no_such_package.*pip install "ratchet\[trl\]"'):
        require_trl(("torch", "no_such_package"))


@pytest.mark.parametrize("fault", [RuntimeError, None])
def test_a_failed_training_leaves_the_policy_as_it_was(trunk: Trunk, fault: type[Exception] | None) -> None:
    """Whether it raised or made weights that are no numbers."""
    before = trunk.weights(Role.POLICY)
    with pytest.raises(fault or GuardError), lent(trunk) as model:
        spoil(model, float("nan"))
        if fault:
            raise fault("TRL stumbled")
    same(trunk.weights(Role.POLICY), before)
    assert list(trunk.model.peft_config) == [Role.POLICY.value]


def test_what_was_trained_becomes_the_policy(trunk: Trunk) -> None:
    """And only that: the lent adapter begins as the policy and goes away again."""
    before = trunk.weights(Role.POLICY)
    with lent(trunk) as model:
        spoil(model, 0.5)
    after = trunk.weights(Role.POLICY)
    assert all(torch.allclose(after[name], before[name] + 0.5) for name in before)


def spoil(model: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.add_(by)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in other)
