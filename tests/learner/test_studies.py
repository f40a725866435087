"""The studies in simulation: what they learn from is what the pipeline makes of users' feedback."""

import asyncio

import pytest

from learner.models import Trunk


@pytest.mark.slow
def test_users_of_a_study_leave_events_that_become_rows(trunk: Trunk) -> None:
    """Every conversation is there, what users did becomes rows, and the same seed tells the same story."""
    from tests.benchmarks import simulated

    told = asyncio.run(simulated.chat(trunk, 3, conversations=16))
    assert len(told) == 16
    assert sum(simulated.signals_of(conversation) for conversation in told) >= 4
    material = simulated.learned_from(told, trunk.encoder)
    rows = material.data
    assert rows.pairs or rows.grades
    assert rows.heldout_pairs or rows.heldout_grades
    assert asyncio.run(simulated.chat(trunk, 3, conversations=16)) == told


@pytest.mark.slow
def test_a_fall_counts_from_the_best_so_far_and_ends_with_the_budget() -> None:
    """Gold 0, .3, .3, .3, 0, 0, 0, each with up to two neighbours on a side: 0.225 at best, 0 at last."""
    from tests.benchmarks.bench_hacking import Point, fall, smooth

    gold = [0.0, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0]
    points = [Point(kl_nats=1.0 + i, proxy=float(i), gold=g) for i, g in enumerate(gold)]
    assert smooth(gold) == pytest.approx([0.2, 0.225, 0.18, 0.18, 0.12, 0.075, 0.0])
    assert fall(points) == pytest.approx(0.225)
    beyond = [*points[:4], Point(400.0, 9.0, -1.0)]  # the budget is 45 nats
    assert fall(beyond) == pytest.approx(0.0)  # only the first two steps are left
