"""What the reward ensemble says of the review queue's pairs."""

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from feedback import database, pipeline, store
from feedback.config import Pipeline
from feedback.embedded import EmbeddedLog
from learner import disagreement
from learner.models import RewardHeads, Role, Trunk
from learner.train_reward import RewardModel
from tests.feedback.builders import NOON, append, turn


def test_disagreement_is_twice_the_deviation_of_the_heads_probabilities() -> None:
    """Margins 0 and 0; +50 and -50; log 3 and -log 3, so 0.75 and 0.25: 0, 1, 0.5."""
    margins_BK = torch.tensor([[0.0, 0.0], [50.0, -50.0], [math.log(3), -math.log(3)]])
    scores_2BK = torch.stack([margins_BK + 2.0, torch.full_like(margins_BK, 2.0)], dim=1).reshape(6, 2)
    assert disagreement.between_heads(scores_2BK).tolist() == pytest.approx([0.0, 1.0, 0.5], abs=1e-6)


def test_swapping_the_replies_changes_nothing() -> None:
    scores_2BK = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    swapped = scores_2BK.reshape(4, 2, 4).flip(1).reshape(8, 4)
    there, back = disagreement.between_heads(scores_2BK), disagreement.between_heads(swapped)
    assert there.tolist() == pytest.approx(back.tolist(), abs=1e-6)


def test_a_run_scores_what_waits_and_replaces_what_the_last_one_said(
    fresh_trunk: Callable[[], Trunk], tmp_path: Path
) -> None:
    """One pair waits; a reply that may not be learned from is nobody's to score."""
    log = EmbeddedLog(tmp_path / "log.db")
    question = "How do I reset it?"
    append(log, turn("r1", question, "Press the button."), turn("r2", question, "No idea.", at=20))
    append(log, turn("r3", question, "Ask Ann of Bonn.", at=40, learn=False))
    trunk = fresh_trunk()
    trunk.add(Role.REWARD, 4, 0)
    model = RewardModel(trunk, RewardHeads(trunk.hidden_size, 3, 0, "last"), 0.0)
    torch.nn.init.normal_(next(model.heads.parameters()), std=1.0)
    with store.opened(f"sqlite:///{tmp_path / 'state.db'}") as state:
        pipeline.step(log, state, Pipeline(), now=NOON + timedelta(hours=1))
        with database.writing(state) as tx:
            store.replace_disagreements(tx, "run-0001", {"item-gone": 0.5})
        assert disagreement.record(model, trunk.encoder, state, "run-0002") == 1
        with database.reading(state) as tx:
            (item,) = store.derived_rows(tx, "item")
            found = store.disagreements(tx, [item.item_id, "item-gone"])
    log.close()
    assert found.keys() == {item.item_id} and 0.0 < found[item.item_id] <= 1.0
