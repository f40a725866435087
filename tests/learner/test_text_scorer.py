"""The text baseline: what it learns from words alone, and that its cross-validation is one."""

from pathlib import Path

import numpy as np
import pytest

from learner import pair_files, text_scorer
from learner.errors import DataError, ModelError
from learner.ngrams import Rows, learn_space
from learner.pair_files import FilePair
from learner.text_scorer import BAG_OF_WORDS, N_GRAMS


def pair(i: int, chosen: str, rejected: str, p: float = 1.0, weight: float = 1.0) -> FilePair:
    prompt = ({"role": "user", "content": f"question {i}"},)
    return FilePair(prompt=prompt, chosen=chosen, rejected=rejected, p=p, weight=weight)


PEOPLE = Path(__file__).parents[3] / "shared/data/hh-harmless-train.jsonl.gz"
"""Pairs by people, no part of the project: anybody may put their own there."""
POLITE = [pair(i, f"gladly, number {i % 5}", f"no, number {i % 5}") for i in range(40)]


@pytest.mark.parametrize("blocks", [BAG_OF_WORDS, N_GRAMS])
def test_it_learns_which_words_are_liked(blocks: tuple[text_scorer.Block, ...]) -> None:
    """Also where it is put together from texts that it never saw."""
    fitted = text_scorer.fit(POLITE, blocks, seed=0)
    polite, rude, unknown = fitted.scorer.scores(["gladly so", "no so", "zebra"])
    assert polite > 0.1 > -0.1 > rude
    assert unknown == 0.0
    assert (fitted.out_of_fold_B > 0).all()


def test_cross_validation_finds_nothing_where_there_is_nothing() -> None:
    """Words by lot: a fit knows its own pairs by heart (0.98), and says nothing of other conversations."""
    chance = np.random.default_rng(3)
    replies = [" ".join(f"w{n}" for n in chance.integers(0, 60, 12)) for _ in range(400)]
    random = [
        pair(i, one, other) for i, (one, other) in enumerate(zip(replies[::2], replies[1::2], strict=True))
    ]
    fitted = text_scorer.fit(random, BAG_OF_WORDS, seed=0)
    assert (fitted.scorer.margins(random) > 0).mean() > 0.7
    assert 0.38 < (fitted.out_of_fold_B > 0).mean() < 0.62


def test_stages_of_a_conversation_share_a_fold() -> None:
    """They repeat each other's words."""
    folds = text_scorer.folds([pair(i // 3, "a", "b") for i in range(60)], seed=1)
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert set(folds) == {0, 1, 2, 3, 4}


def test_weight_two_is_the_pair_twice() -> None:
    """And a tie, or a pair of weight 0, moves nothing by itself."""
    mixed = [*POLITE[:10], pair(99, "no way", "gladly no")]
    space = learn_space([text for p in mixed for text in (p.chosen, p.rejected)], BAG_OF_WORDS)

    def weights(pairs: list[FilePair]) -> np.ndarray:
        rows = space.rows([text for p in pairs for text in (p.chosen, p.rejected)]).differences()
        p_B, weight_B = np.array([p.p for p in pairs]), np.array([p.weight for p in pairs])
        return text_scorer.solve(rows, p_B, weight_B, 0.5, len(space.rarity_F))

    heavy = pair(99, "no way", "gladly no", weight=2.0)
    np.testing.assert_allclose(weights([*mixed, mixed[-1]]), weights([*mixed[:-1], heavy]), atol=1e-4)
    np.testing.assert_allclose(
        weights([*mixed, pair(7, "no no", "gladly", weight=0.0)]), weights(mixed), atol=1e-4
    )
    with pytest.raises(DataError, match="which reply is better"):
        text_scorer.fit([pair(1, "a", "b", p=0.5)], BAG_OF_WORDS, seed=0)


def test_the_solution_is_the_textbook_one() -> None:
    """One column of difference 1 in each of two pairs, λ = 1: w solves 2(1 − σ(w)) = w, so w = 0.6748."""
    rows = Rows(np.array([0, 1]), np.array([3, 3]), np.ones(2), 2)
    found = text_scorer.solve(rows, np.ones(2), np.ones(2), 1.0, 5)
    assert found[3] == pytest.approx(2 / (1 + np.exp(found[3])), abs=1e-5)
    assert found[3] == pytest.approx(0.6748, abs=1e-3)
    assert np.count_nonzero(found) == 1


def test_a_saved_scorer_scores_the_same_and_holds_no_text(tmp_path: Path) -> None:
    scorer = text_scorer.fit(POLITE, N_GRAMS, seed=0).scorer
    text_scorer.save(scorer, tmp_path / "s.safetensors")
    again = text_scorer.load(tmp_path / "s.safetensors")
    np.testing.assert_allclose(again.margins(POLITE), scorer.margins(POLITE), rtol=1e-5)
    assert b"gladly" not in (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="holds no text scorer"):
        text_scorer.load(tmp_path / "s.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not PEOPLE.is_file(), reason=f"needs human preference pairs in {PEOPLE.name}")
def test_it_learns_something_from_people() -> None:
    """Conversations that the fit never saw, 1,400 pairs: 0.61 was measured, chance is below 0.53."""
    pairs = [pair for pair in pair_files.read(PEOPLE) if not pair.heldout]
    assert (text_scorer.fit(pairs, N_GRAMS, seed=0).out_of_fold_B > 0).mean() > 0.56
