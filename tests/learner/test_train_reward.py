"""The reward model: what its data teaches it, what it must not learn, and that PPO scores with it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.batches import GradeRow, PairRow, Prompt, RewardData, Sample
from learner.errors import DataError, ModelError
from learner.models import RewardHeads, Role, Trunk, base_hash
from learner.train_reward import (
    RewardModel,
    Settings,
    Weighted,
    backward,
    counted_dimensions,
    head_weights,
    load,
    pair_margins,
    prompt_batches,
    report,
    right,
    row_losses,
    save,
    standardise,
    train,
    weigh,
)

SMALL = Settings(lr=0.01, epochs=3, batch_prompts=4, heads=3, rank=4)
GOOD, BAD = 70, 80


def prompt(i: int) -> Prompt:
    return Prompt(f"{i:032x}", (3, 10 + i, 2, 4))


def reply(i: int, word: int, extra: int = 0) -> Sample:
    """A reply that says `word` before it ends; `extra` makes it longer."""
    return Sample(prompt(i), (20 + i % 7, word, *([30] * extra), 2))


def pairs(first: int, last: int) -> list[PairRow]:
    return [PairRow(reply(i, GOOD, i % 3), reply(i, BAD, (i + 1) % 3)) for i in range(first, last)]


DATA = RewardData(
    pairs=pairs(0, 40),
    grades=[GradeRow(reply(i, GOOD if i % 2 else BAD), 0.9 if i % 2 else 0.1, 0.7) for i in range(40, 60)],
    heldout_pairs=pairs(100, 130),
    heldout_grades=[GradeRow(reply(i, GOOD if i % 2 else BAD), float(i % 2)) for i in range(130, 150)],
)
ROOT = [reply(i, word, i % 4) for i in range(200, 232) for word in (GOOD, BAD)]


@pytest.fixture(scope="module", params=[pytest.param("last", marks=pytest.mark.slow), "mean"])
def trained(tiny_base: Path, request: pytest.FixtureRequest) -> tuple[RewardModel, list[float]]:
    from learner.models import load_trunk

    settings = replace(SMALL, pooling=request.param)
    model, losses = train(load_trunk(tiny_base, rank=4, seed=0, max_tokens=256), DATA, settings)
    standardise(model, ROOT)
    return model, losses


def test_it_learns_the_preference_and_says_how_surely(trained: tuple[RewardModel, list[float]]) -> None:
    """Word GOOD beats word BAD on prompts it never saw; the report carries Wilson's interval: 30 of 30."""
    model, losses = trained
    found = report(model, DATA, losses, ROOT)
    assert found.accuracy == 1.0
    assert (found.accuracy_low, found.accuracy_high) == (pytest.approx(0.8865, abs=1e-3), 1.0)
    assert found.grade_accuracy >= 0.9
    assert found.accuracy_by_kind == {"comparison": (1.0, 30)}
    assert found.first_loss == pytest.approx(math.log(2), abs=0.25)
    assert found.last_loss < 0.4


def test_rewards_are_standardised_on_root_replies(trained: tuple[RewardModel, list[float]]) -> None:
    """Mean 0 and deviation 1 for each head: β means the same in every run."""
    scores_BK = trained[0].scores(ROOT)
    assert scores_BK.mean(0).tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    assert scores_BK.std(0, correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)


def test_ppo_scores_what_the_trainer_scored(
    trained: tuple[RewardModel, list[float]], fresh_trunk: Callable[[], Trunk], tmp_path: Path
) -> None:
    """Saved and loaded, scored alone or in a batch beside longer replies: the trainer's score to 1e-5."""
    model, losses = trained
    save(model, report(model, DATA, losses, ROOT), tmp_path)
    loaded, found = load(fresh_trunk(), tmp_path, model.uncertainty)
    assert found.pairs == 30
    with torch.no_grad(), model.trunk.acting(Role.REWARD):
        trainer_BK = model.heads.standardised(model.differentiable(ROOT)[:, 0])
    expected_B = (trainer_BK.mean(1) - 0.5 * trainer_BK.std(1, correction=0)).tolist()
    assert loaded(ROOT).tolist() == pytest.approx(expected_B, abs=1e-5)
    assert [float(loaded([s])) for s in ROOT[:5]] == pytest.approx(expected_B[:5], abs=1e-5)


def test_swapping_a_pair_negates_its_margin(trained: tuple[RewardModel, list[float]]) -> None:
    model, _ = trained
    swapped = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in DATA.heldout_pairs]
    assert pair_margins(model, swapped)[0] == pytest.approx(
        -pair_margins(model, DATA.heldout_pairs)[0], abs=1e-5
    )


def test_the_base_weights_stay_as_they_were(
    trained: tuple[RewardModel, list[float]], fresh_trunk: Callable[[], Trunk]
) -> None:
    assert base_hash(trained[0].trunk) == base_hash(fresh_trunk())


def gradient(trunk: Trunk, rows: list[PairRow | GradeRow], weights: list[float]) -> list[torch.Tensor]:
    """Of the summed loss in the heads, without folds."""
    trunk.add(Role.REWARD, 4, 0)
    model = RewardModel(trunk, RewardHeads(trunk.hidden_size, 1, 0), 0.0)
    with trunk.acting(Role.REWARD):
        row_losses(model, rows, torch.tensor(weights)[:, None], False)[0].sum().backward()
    return [model.heads.weight_KH.grad.clone(), *(p.grad.clone() for p in trunk.parameters(Role.REWARD))]


def test_a_row_twice_is_a_row_of_weight_two(fresh_trunk: Callable[[], Trunk]) -> None:
    """Through trunk and heads: duplicates and weights are the same statement."""
    row = DATA.pairs[0]
    twice = gradient(fresh_trunk(), [row, row], [1.0, 1.0])
    double = gradient(fresh_trunk(), [row], [2.0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(twice, double, strict=True))
    assert bool(double[0].any())


def test_a_row_of_weight_zero_teaches_nothing(fresh_trunk: Callable[[], Trunk]) -> None:
    assert not any(
        bool(g.any()) for g in gradient(fresh_trunk(), [DATA.pairs[0], DATA.grades[0]], [0.0, 0.0])
    )


def test_micro_batches_do_not_change_the_gradient(fresh_trunk: Callable[[], Trunk]) -> None:
    """One denominator: the whole batch at once or row by row."""
    gradients = []
    for budget in (10_000, 1):
        trunk = fresh_trunk()
        trunk.add(Role.REWARD, 4, 0)
        model = RewardModel(trunk, RewardHeads(trunk.hidden_size, 3, 0), 0.0)
        batch = [Weighted(row, 0.5) for row in (*DATA.pairs[:5], *DATA.grades[:3])]
        with trunk.acting(Role.REWARD):
            backward(model, batch, replace(SMALL, token_budget=budget))
        gradients.append([p.grad.clone() for p in trunk.parameters(Role.REWARD)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_steps_accuracy_counts_decided_rows_by_the_side_they_are_on() -> None:
    """Mean log-odds of two heads: +1 and +1 are right for p = .9 and a tie is nothing, +1 is wrong for .1."""
    odds_BK = torch.tensor([[3.0, -1.0], [2.0, 0.0], [0.5, 1.5]])
    rows = [replace(DATA.pairs[0], p=0.9), replace(DATA.pairs[1], p=0.5), replace(DATA.grades[0], p=0.1)]
    assert right(odds_BK, rows).tolist() == [True, False, False]


def test_all_rows_of_a_prompt_share_an_optimizer_step() -> None:
    """A prompt's pairs and grades are never split, and every prompt comes once an epoch."""
    more = RewardData(pairs=[*DATA.pairs, *DATA.pairs], grades=[GradeRow(p.chosen, 1.0) for p in DATA.pairs])
    batches = prompt_batches(weigh(more), SMALL, epoch=0)
    assert len(batches) == 10  # 40 prompts, 4 at a time
    digests = [{w.row.digest for w in batch} for batch in batches]
    assert sum(len(d) for d in digests) == 40
    assert all(len(batch) == 12 for batch in batches)


def test_each_head_is_blind_to_its_own_fold() -> None:
    """Every prompt is hidden from exactly one head, and every head misses some."""
    hidden = [head_weights(Weighted(row, 0.5), 3).tolist() for row in DATA.pairs]
    assert all(sorted(w) == [0.0, 0.5, 0.5] for w in hidden)
    assert {w.index(0.0) for w in hidden} == {0, 1, 2}
    assert head_weights(Weighted(DATA.pairs[0], 0.5), 1).tolist() == [0.5]


@pytest.mark.slow
def test_the_length_term_takes_the_blame_for_length(fresh_trunk: Callable[[], Trunk]) -> None:
    """Where longer always wins, the covariate learns that, and scores are taken without it."""
    longer = RewardData(pairs=[PairRow(reply(i, GOOD, 20), reply(i, GOOD, 2)) for i in range(40)])
    model, _ = train(fresh_trunk(), longer, replace(SMALL, lr=0.03, length_covariate=True))
    assert bool((model.heads.length_K > 0.1).all())


def test_nothing_to_learn_from_is_refused(trunk: Trunk) -> None:
    with pytest.raises(DataError, match="no training pair or grade"):
        train(trunk, RewardData(heldout_pairs=DATA.pairs), SMALL)


def test_without_heldout_rows_the_report_claims_nothing(trained: tuple[RewardModel, list[float]]) -> None:
    """No evidence is accuracy ½ with the widest interval, not a crash and not a 1."""
    found = report(trained[0], RewardData(), [0.7], ROOT)
    assert (found.pairs, found.accuracy, found.accuracy_low, found.accuracy_high) == (0, 0.5, 0.0, 1.0)


@pytest.mark.slow
def test_a_refresh_goes_on_from_the_earlier_model(fresh_trunk: Callable[[], Trunk], tmp_path: Path) -> None:
    """Its first loss is where the earlier run's last one was, far below ln 2; a fresh model's is not."""
    model, losses = train(fresh_trunk(), DATA, SMALL)
    standardise(model, ROOT)
    save(model, report(model, DATA, losses, ROOT), tmp_path)
    _, refreshed = train(fresh_trunk(), DATA, replace(SMALL, epochs=1), earlier=tmp_path)
    assert refreshed[0] < 0.5 * math.log(2) < losses[0]


def test_a_folder_without_a_reward_model_is_refused(trunk: Trunk, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no reward model"):
        load(trunk, tmp_path, 0.5)


def test_parts_are_added_in_deviations_of_their_own() -> None:
    """Overall 1, harmless (4 − 2)/2 at ½, helpful −2 at 2: 1 + 0.5 − 4 = −2.5. Then the sum's own scale."""
    heads = RewardHeads(4, 1, 0, "last", ("harmless", "helpful"))
    heads.part_mean_CK = torch.tensor([[0.0], [2.0], [0.0]])
    heads.part_deviation_CK = torch.tensor([[1.0], [2.0], [1.0]])
    heads.part_weight_C = torch.tensor([1.0, 0.5, 2.0])
    combined_BK = heads.combined(torch.tensor([[[1.0], [4.0], [-2.0]]]))
    assert combined_BK.tolist() == [[-2.5]]
    heads.mean_K, heads.deviation_K = torch.tensor([-0.5]), torch.tensor([4.0])
    assert heads.standardised(combined_BK).tolist() == [[-0.5]]
    plain = RewardHeads(4, 2, 0)
    scores_BCK = plain.parts(torch.ones(3, 4))
    assert torch.equal(plain.combined(scores_BCK), plain(torch.ones(3, 4)))


def test_a_dimension_that_nobody_told_apart_is_masked(fresh_trunk: Callable[[], Trunk]) -> None:
    """Heads of zero give ln 2 for each part that is told, and no gradient at all where it is not.

    A pair that says overall the one and harmless the other: the gradients are each other's negative.
    """
    trunk = fresh_trunk()
    trunk.add(Role.REWARD, 4, 0)
    model = RewardModel(trunk, RewardHeads(trunk.hidden_size, 1, 0, "last", ("harmless", "honest")), 0.0)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.zero_()
    told = replace(DATA.pairs[0], dimensions=(("harmless", 0.0),))
    rated = replace(DATA.grades[0], dimensions=(("harmless", 1.0),))
    with trunk.acting(Role.REWARD):
        loss_BK, _ = row_losses(
            model, [told, DATA.pairs[1], rated], torch.tensor([[1.0], [0.5], [2.0]]), False
        )
        assert loss_BK[:, 0].tolist() == pytest.approx([2 * math.log(2), 0.5 * math.log(2), 4 * math.log(2)])
        loss_BK[0].sum().backward()
    dimension_DKH, overall_KH = model.heads.dimension_DKH.grad, model.heads.weight_KH.grad
    assert dimension_DKH is not None and overall_KH is not None
    assert bool(overall_KH.any())
    assert torch.allclose(dimension_DKH[0], -overall_KH)
    assert not dimension_DKH[1].any()


def test_a_dimension_counts_from_twenty_rows_on() -> None:
    """Fewer say too little to move the reward; nothing is made up for them."""
    rows = [replace(p, dimensions=(("honest", 1.0),)) for p in DATA.pairs[:19]]
    grade = replace(DATA.grades[0], dimensions=(("honest", 0.9), ("harmless", 0.1)))
    wanted = {"honest": 0.5, "harmless": 1.0}
    assert counted_dimensions(RewardData(pairs=rows), wanted) == {"harmless": 0.0, "honest": 0.0}
    enough = RewardData(pairs=rows, grades=[grade])
    assert counted_dimensions(enough, wanted) == {"harmless": 0.0, "honest": 0.5}
    assert counted_dimensions(replace(enough, grades=[replace(grade, weight=0.0)]), wanted)["honest"] == 0.0


@pytest.mark.slow
def test_a_weighty_dimension_turns_the_reward(fresh_trunk: Callable[[], Trunk], tmp_path: Path) -> None:
    """People like GOOD, and find it harmful: at weight 3 the reward is what is harmless, saved and loaded."""
    harmful = [replace(p, dimensions=(("harmless", 0.0),)) for p in DATA.pairs]
    heldout = [replace(p, dimensions=(("harmless", 0.0),)) for p in DATA.heldout_pairs]
    data = RewardData(pairs=harmful, heldout_pairs=heldout)
    settings = replace(SMALL, pooling="mean", dimensions={"harmless": 3.0, "honest": 1.0})
    model, losses = train(fresh_trunk(), data, settings)
    standardise(model, ROOT)
    found = report(model, data, losses, ROOT)
    assert found.accuracy_by_dimension["harmless"][0] == 1.0
    assert found.accuracy_by_dimension["honest"] == (0.5, 0.0, 1.0, 0)
    assert found.dimension_weights == {"harmless": 3.0, "honest": 0.0}
    assert found.accuracy == 0.0  # of what PPO maximises; the overall part is right about all
    assert (pair_margins(model, heldout)[0] > 0).all()
    assert model.scores(ROOT).std(0, correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    save(model, found, tmp_path)
    loaded, _ = load(fresh_trunk(), tmp_path, model.uncertainty)
    assert loaded(ROOT).tolist() == pytest.approx(model(ROOT).tolist(), abs=1e-5)
