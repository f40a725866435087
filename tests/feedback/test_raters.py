"""Caps and centring: no account steers a snapshot, and habits are not opinions."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.events import SignalKind
from feedback.raters import cap_accounts, centre_thumbs
from feedback.records import Grade, Pair
from tests.feedback.builders import NOON, user


def grade(
    n: int, who: str, *, p: float = 0.9, weight: float = 1.0, kind: SignalKind = SignalKind.THUMB
) -> Grade:
    return Grade(
        grade_id=f"g{n}",
        prompt_digest="d",
        prompt=(user("Q"),),
        reply="A",
        response_id=f"r{n}",
        adapter="base",
        user=who,
        kind=kind,
        inferred=False,
        p=p,
        weight=weight,
        reason="",
        event_ids=(),
        at=NOON,
    )


def pair_of(n: int, *raters: str) -> Pair:
    return Pair(
        pair_id=f"p{n}",
        prompt_digest="d",
        prompt=(user("Q"),),
        chosen="A",
        rejected="B",
        chosen_response_id="r1",
        rejected_response_id="r2",
        user=raters[0],
        raters=raters,
        kind=SignalKind.THUMB,
        p=0.9,
        weight=1.0,
        reason="",
        event_ids=(),
        at=NOON,
    )


def weight_by_user(rows: list[Grade]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for row in rows:
        totals[row.user] += row.weight
    return dict(totals)


def test_thumbs_that_say_nothing_are_nobodys_votes():
    """Thumbs faded to 0.5 stay there and move nobody: b's six ups and a down are as without them."""
    votes = [grade(n, "b", p=0.9) for n in range(6)] + [grade(6, "b", p=0.1)]
    faded = [grade(10 + n, f"x{n % 10}", p=0.5) for n in range(30)]
    assert centre_thumbs([*votes, *faded]) == [*centre_thumbs(votes), *faded]


def test_an_account_above_the_cap_is_scaled_to_it():
    """One account of 30 and twenty of 1, cap 0.1: t = 0.1 * (20 + t), t = 2 / 0.9 = 2.2222."""
    rows = [grade(n, "loud") for n in range(30)] + [grade(100 + n, f"u{n}") for n in range(20)]
    totals = weight_by_user(cap_accounts(rows, 0.1))
    assert totals["loud"] == pytest.approx(2 / 0.9, abs=1e-4)
    assert totals["u3"] == 1.0
    assert totals["loud"] / sum(totals.values()) == pytest.approx(0.1, abs=1e-5)


def test_nobody_above_the_cap_is_left_as_they_were():
    rows = [grade(n, f"u{n}") for n in range(20)]
    assert cap_accounts(rows, 0.1) == rows


@pytest.mark.parametrize(("accounts", "largest_share"), [(1, 1.0), (2, 1.0), (4, 0.5)])
def test_few_accounts_get_a_cap_they_can_keep(accounts, largest_share):
    """5 % of four accounts is impossible; twice an even share is not."""
    rows = [grade(n, "loud") for n in range(97)] + [grade(100 + n, f"u{n}") for n in range(accounts - 1)]
    totals = weight_by_user(cap_accounts(rows, 0.05))
    share = totals["loud"] / sum(totals.values())
    assert share <= largest_share + 1e-4
    assert share == pytest.approx(0.5, abs=1e-4) or accounts < 4


weights = st.lists(st.tuples(st.integers(0, 30), st.floats(0.05, 1.0)), min_size=1, max_size=80)


@pytest.mark.slow
@given(weights, st.floats(0.02, 0.5))
def test_no_share_is_ever_above_the_cap(votes, cap):
    """The law the cap is for, with the exception stated in EVEN_SHARES."""
    rows = [grade(n, f"u{who}", weight=weight) for n, (who, weight) in enumerate(votes)]
    totals = weight_by_user(cap_accounts(rows, cap))
    allowed = max(cap, 2.0 / len(totals))
    # a weight is rounded by at most 5e-7
    assert max(totals.values()) <= allowed * sum(totals.values()) + 1e-6 * len(rows)


@pytest.mark.slow
@given(weights, st.randoms(use_true_random=False))
def test_caps_do_not_depend_on_order(votes, random):
    rows = [grade(n, f"u{who}", weight=weight) for n, (who, weight) in enumerate(votes)]
    shuffled = random.sample(rows, len(rows))
    by_id = {row.grade_id: row for row in cap_accounts(sorted(shuffled, key=lambda g: g.grade_id), 0.1)}
    ordered = cap_accounts(sorted(rows, key=lambda g: g.grade_id), 0.1)
    assert [by_id[row.grade_id] for row in ordered] == ordered


def test_a_pair_counts_for_everyone_behind_it():
    """An account that is one half of every pair has half of the weight, whoever the other half is."""
    rows = [pair_of(n, "loud", f"u{n}") for n in range(30)] + [pair_of(100 + n, f"v{n}") for n in range(30)]
    capped = cap_accounts(rows, 0.1)
    loud = sum(p.weight for p in capped if "loud" in p.raters) / 2
    assert loud / sum(p.weight for p in capped) <= 0.1 + 1e-6
    assert all(p.weight == 1.0 for p in capped if "loud" not in p.raters)


def test_somebody_who_likes_everything_says_little_by_an_up():
    """20 ups of one user, 10 ups and 10 downs of others, m = 0.75.

    u = (20 + 5 * 0.75) / 25 = 0.95; shift = logit 0.95 - logit 0.75 = 2.9444 - 1.0986 = 1.8458;
    logit 0.9 = 2.1972, so p' = sigmoid(0.3514) = 0.5870.
    """
    rows = [grade(n, "fan") for n in range(20)]
    rows += [grade(20 + n, f"u{n}", p=0.9 if n < 10 else 0.1) for n in range(20)]
    by_id = {g.grade_id: g for g in centre_thumbs(rows)}
    assert by_id["g0"].p == pytest.approx(0.5870, abs=1e-4)
    assert by_id["g20"].p > by_id["g0"].p


def test_a_label_never_crosses_over():
    """However eager the user, an up is no evidence against a reply."""
    rows = [grade(n, "fan") for n in range(500)] + [grade(900 + n, f"u{n}", p=0.1) for n in range(500)]
    by_id = {g.grade_id: g.p for g in centre_thumbs(rows)}
    assert by_id["g0"] == 0.5
    assert 0.05 <= by_id["g900"] < 0.5


def test_only_thumbs_are_centred():
    rows = [grade(1, "ann", kind=SignalKind.LABEL, p=1.0), grade(2, "ann", kind=SignalKind.CORRECTION, p=0.2)]
    assert centre_thumbs(rows) == rows
