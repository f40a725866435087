"""When the next turn starts."""

from datetime import timedelta

import msgspec
import pytest

from feedback.config import section
from feedback.errors import ConfigError
from learner.config import Learner
from learner.schedule import due
from tests.feedback.builders import NOON

HOURLY = Learner(min_new_weight=100.0, every_s=3600.0)


def test_enough_weight_starts_a_turn_whatever_the_clock_says() -> None:
    """A minute after the last one began, and without a clock at all."""
    for learner in (HOURLY, msgspec.structs.replace(HOURLY, every_s=0.0)):
        assert due(learner, 100.0, NOON).by(NOON + timedelta(minutes=1))
        assert not due(learner, 99.9, NOON).by(NOON + timedelta(minutes=1))


def test_the_clock_starts_a_turn_for_anything_new_and_never_for_nothing() -> None:
    """A turn on the same snapshot would train the same candidate again."""
    late = NOON + timedelta(hours=1)
    assert due(HOURLY, 0.5, NOON).by(late)
    assert not due(HOURLY, 0.5, NOON).by(late - timedelta(seconds=1))
    assert not due(HOURLY, 0.0, NOON).by(late)


def test_by_the_clock_alone() -> None:
    """`min_new_weight = inf`: no flood of feedback starts a turn before its time."""
    nightly = section({"learner": {"min_new_weight": "inf", "every_s": 86_400}}, "learner", Learner, {})
    assert not due(nightly, 1e9, NOON).by(NOON + timedelta(hours=23))
    assert due(nightly, 1.0, NOON).by(NOON + timedelta(hours=24))


def test_a_clock_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="every_s must be 0 or more"):
        section({"learner": {"every_s": -1}}, "learner", Learner, {})
