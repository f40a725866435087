"""The traffic split: sticky, monotone, honest about its propensities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.errors import UnknownAdapter
from ops.traffic import Assignment, TrafficTable, assign, bucket, other_arm, pin

TABLE = TrafficTable(
    revision=1, stable="old-1", canary="new-2", canary_fraction=0.25, salt="new-2", previous="older-0"
)
units = st.text(max_size=40)
fractions = st.floats(0, 1)


def table(fraction: float, salt: str = "new-2") -> TrafficTable:
    return TrafficTable(revision=1, stable="old-1", canary="new-2", canary_fraction=fraction, salt=salt)


def test_bucket_is_the_published_hash() -> None:
    """`printf 's\\x1fu' | b2sum -l 64` says 9a607f9d8a6af63a; another hash would move every user."""
    assert bucket("s", "u") == 0x9A607F9D8A6AF63A / 2**64


@given(units, fractions, fractions)
def test_raising_the_fraction_moves_units_only_towards_the_canary(
    unit: str, one: float, other: float
) -> None:
    """Nobody flips back and forth during a ramp."""
    low, high = sorted((one, other))
    if assign(table(low), unit).adapter == "new-2":
        assert assign(table(high), unit).adapter == "new-2"


@given(units)
def test_a_unit_stays_where_it_is(unit: str) -> None:
    assert assign(TABLE, unit) == assign(TABLE, unit)


@given(units)
def test_ends_of_the_ramp_are_total(unit: str) -> None:
    assert assign(table(0.0), unit).adapter == "old-1"
    assert assign(table(1.0), unit).adapter == "new-2"


def test_the_split_is_what_it_says() -> None:
    """Of 20,000 users a 25 % canary gets 25 % ± 4 standard errors (√(0.25·0.75/20000) = 0.0031)."""
    share = sum(assign(TABLE, f"user-{i}").arm == "canary" for i in range(20_000)) / 20_000
    assert abs(share - 0.25) < 0.0123


def test_another_rollout_draws_other_users() -> None:
    """Otherwise the same unlucky tenth would try every canary. 10 % of 10 % is 1 % of 20,000 ± 4 σ (±56)."""
    both = sum(
        assign(table(0.1, "a"), f"u{i}").arm == assign(table(0.1, "b"), f"u{i}").arm == "canary"
        for i in range(20_000)
    )
    assert 144 < both < 256


def test_propensities_are_those_of_the_arm() -> None:
    found = {assign(TABLE, f"u{i}").arm: assign(TABLE, f"u{i}").propensity for i in range(50)}
    assert found == {"canary": 0.25, "stable": 0.75}
    alone = TrafficTable(revision=1, stable="old-1")
    assert assign(alone, "anybody").propensity == 1.0


@pytest.mark.parametrize("name", ["old-1", "new-2", "older-0"])
def test_a_client_may_ask_for_what_is_served(name: str) -> None:
    assert pin(TABLE, name).arm == "pinned"
    assert pin(TABLE, name).adapter == name


def test_a_client_may_not_ask_for_anything_else() -> None:
    """Adapters in training and the raw base must not be reachable by guessing."""
    with pytest.raises(UnknownAdapter, match="ask for 'ratchet' or one of old-1, new-2, older-0"):
        pin(TABLE, "learner-7")


@given(units)
def test_the_other_arm_is_what_those_in_it_get(unit: str) -> None:
    """Its propensity is the split's, not that of the one who is shown it by way of comparison."""
    given = assign(TABLE, unit)
    other = other_arm(TABLE, given)
    assert other in (Assignment("new-2", "canary", 0.25), Assignment("old-1", "stable", 0.75))
    assert other != given and other_arm(TABLE, other) == given


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_one_arm_with_all_the_traffic_has_no_other(fraction: float) -> None:
    assert other_arm(table(fraction), assign(table(fraction), "u")) is None
