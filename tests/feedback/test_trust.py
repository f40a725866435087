"""Trust: who opposes the others, floods or keeps a machine's pace; honest newcomers keep their word."""

from datetime import timedelta
from math import fsum

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.events import SignalKind
from feedback.records import Grade
from feedback.trust import Trust, Weighed, assess, weigh
from tests.feedback.builders import NOON, user

TOPICS = ("invoice", "parcel", "refund", "warranty", "password", "voucher")
GOOD = ("Certainly: open settings, press save.", "Gladly: open the account page, press save.")
NOTHING_KNOWN = Trust(honest={}, on_subject={}, record={}, suspended={})
BAD = ("Read the manual yourself.", "Whatever, read something yourself.")


def thumb(n: int, who: str, *, up: bool, reply: str, topic: str = "invoice", at_s: float = 0.0) -> Grade:
    return Grade(
        grade_id=f"grade-{n:05}",
        prompt_digest=f"d{n}",
        prompt=(user(f"What about the {topic} order{'x' * (n % 5)}?"),),
        reply=reply,
        response_id=f"r{n}",
        adapter="base",
        user=who,
        kind=SignalKind.THUMB,
        inferred=False,
        p=0.9 if up else 0.1,
        weight=1.0,
        reason="",
        event_ids=(),
        at=NOON + timedelta(seconds=at_s),
    )


def crowd(accounts: int = 60, each: int = 4) -> list[Grade]:
    """Honest people, each with a few thumbs: up for good replies, down for bad ones."""
    return [
        thumb(
            1000 + each * a + k,
            f"u{a}",
            up=(a + k) % 2 == 0,
            reply=(GOOD if (a + k) % 2 == 0 else BAD)[k % 2],
            topic=TOPICS[(a + k) % 6],
            at_s=37.0 * a + 100.0 * k * k,
        )
        for a in range(accounts)
        for k in range(each)
    ]


def contrary(votes: int, *, topic: str | None = None, start: int = 0) -> list[Grade]:
    return [
        thumb(
            start + n,
            "mallory",
            up=n % 2 == 1,
            reply=(GOOD if n % 2 == 0 else BAD)[n % 2],
            topic=topic or TOPICS[n % 6],
            at_s=500.0 * n + 20.0 * n * n,
        )
        for n in range(votes)
    ]


def weighed(rows: list[Grade], *, subject_cap: float = 1.0, trusted: tuple[str, ...] = ()) -> Weighed:
    return weigh(rows, [], [], assess(rows, [], trusted=trusted), subject_cap=subject_cap)


def weight_of(rows: list[Grade], who: str) -> float:
    return fsum(g.weight for g in rows if g.user == who)


def test_honest_newcomers_keep_their_weight():
    """A deployment of minutes has nothing but newcomers, and must learn from them."""
    rows = crowd()
    kept = weighed(rows, subject_cap=0.01)
    assert kept.quarantined == []
    assert fsum(g.weight for g in kept.grades) == pytest.approx(len(rows), rel=0.01)


def test_who_opposes_all_others_waits_in_quarantine_with_the_reason():
    rows = [*crowd(), *contrary(20)]
    kept = weighed(rows)
    (held,) = kept.quarantined
    assert (held.account, held.rows, held.weight) == ("mallory", 20, 20.0)
    assert held.reason == "opposes the others: 20 of 20 votes disagree"
    assert weight_of(kept.grades, "mallory") == 0.0


def test_an_operators_trust_lifts_a_quarantine():
    """Quarantine is reversible: the rows were never gone."""
    rows = [*crowd(), *contrary(20)]
    kept = weighed(rows, trusted=("mallory",))
    assert kept.quarantined == []
    assert weight_of(kept.grades, "mallory") > 0.0


def test_more_agreement_lifts_a_quarantine_too():
    """The evidence decides anew with every snapshot."""
    amends = [
        thumb(
            100 + n,
            "mallory",
            up=n % 2 == 0,
            reply=(GOOD if n % 2 == 0 else BAD)[n % 2],
            at_s=777.0 * n + 20.0 * n * n,
        )
        for n in range(40)
    ]
    assert weighed([*crowd(), *contrary(20), *amends]).quarantined == []


def test_one_odd_vote_counts_less_where_it_was_cast_and_nowhere_else():
    """Against 60 who agree: ln 9 - 0.02 nats at even odds leave 1 / (1 + 9 e^-0.02) / (1/2) = 0.204.
    Others speak of the invoice too, so little is lost; of the parcel the account is believed."""
    parcel = thumb(1, "mallory", up=True, reply=GOOD[0], topic="parcel", at_s=9e4)
    kept = {g.grade_id: g for g in weighed([*crowd(), *contrary(1), parcel]).grades if g.user == "mallory"}
    assert kept["grade-00000"].weight == pytest.approx(0.204, abs=0.01)
    assert kept["grade-00000"].reason.endswith("counts 20%") and "'invoice'" in kept["grade-00000"].reason
    assert kept["grade-00001"].weight > 0.95 and kept["grade-00001"].reason == ""


def test_a_liar_about_one_subject_is_believed_about_the_others():
    """Slow drip: honest about five things, lying about the sixth."""
    honest = [
        thumb(
            500 + n,
            "mallory",
            up=n % 2 == 0,
            reply=(GOOD if n % 2 == 0 else BAD)[n % 2],
            topic=TOPICS[1 + n % 5],
            at_s=600.0 * n + 20.0 * n * n,
        )
        for n in range(30)
    ]
    found = assess([*crowd(), *honest, *contrary(8, topic="invoice")], [])
    assert found.honest["mallory"] > 0.9 and "mallory" not in found.suspended
    assert found.on_subject["mallory", "invoice"] < 0.2
    assert found.on_subject["mallory", "parcel"] > 0.9


def test_a_flood_by_a_newcomer_weighs_no_more_than_a_few_accounts():
    """Median 4, times 4: 16 of 300, whatever they say; nobody can tell whether it is true."""
    flood = [
        thumb(n, "flood", up=True, reply=f"Unheard{n} words{n}.", at_s=900.0 * n + n * n) for n in range(300)
    ]
    assert weight_of(weighed([*crowd(), *flood]).grades, "flood") <= 16.0 + 1e-6


def test_an_account_weighs_on_a_subject_at_most_twice_what_is_usual():
    """Each of 60 accounts gives a topic 1; one with forty signals on a topic of its own has 2 there.

    Its word on what everybody speaks of, "order", is not limited.
    """
    flood = [
        thumb(n, "flood", up=True, reply=GOOD[0], topic="zebra", at_s=900.0 * n + 9 * n * n)
        for n in range(40)
    ]
    people = [thumb(1000 + n, f"v{n}", up=True, reply=GOOD[0], topic=TOPICS[n % 6]) for n in range(60)]
    kept = weigh([*people, *flood], [], [], NOTHING_KNOWN, subject_cap=1.0).grades
    assert weight_of(kept, "flood") == pytest.approx(2.0, abs=1e-3)
    alike = [msgspec.structs.replace(g, prompt=people[0].prompt) for g in [*people, *flood]]
    assert weight_of(weighed(alike).grades, "flood") == pytest.approx(4.0, abs=1e-3)


def test_a_subject_that_few_speak_of_has_no_more_weight_than_allowed():
    """Three accounts of 63 are 4.76 %."""
    rows = crowd()
    rows += [
        thumb(n, f"fan{n % 3}", up=True, reply=f"Unheard{n}.", topic="zebra", at_s=900.0 * n + n * n)
        for n in range(90)
    ]
    kept = weighed(rows, subject_cap=0.01).grades
    share = fsum(weight_of(kept, f"fan{n}") for n in range(3)) / fsum(g.weight for g in kept)
    assert share <= 3 / 63 + 1e-6


def test_many_flooded_subjects_are_each_held_to_what_is_allowed():
    """Twenty accounts of 120, each loud about one subject: 1 in 120 voices, so the cap of 1 %. Cutting one
    subject lifts the others' shares, so once is not enough."""
    honest = [
        thumb(n, f"u{n}", up=True, reply=GOOD[0], topic=TOPICS[n % 6], at_s=70.0 * n) for n in range(100)
    ]
    loud = [
        msgspec.structs.replace(
            thumb(200 + n, f"loud{n}", up=True, reply=GOOD[0], topic=f"thing{'abcdefghijklmnopqrst'[n]}"),
            weight=50.0,
        )
        for n in range(20)
    ]
    kept = weigh([*honest, *loud], [], [], NOTHING_KNOWN, subject_cap=0.01).grades
    shares = [weight_of(kept, f"loud{n}") / fsum(g.weight for g in kept) for n in range(20)]
    assert max(shares) <= 0.01 * 1.01


def test_a_burst_is_quarantined_only_when_others_are_slower():
    """100 signals in 50 s; in a load test or a simulation everybody does that."""
    burst = [thumb(n, "burst", up=True, reply=GOOD[0], at_s=0.5 * n + 0.001 * n * n) for n in range(100)]
    (held,) = weighed([*crowd(), *burst]).quarantined
    assert held.reason.startswith("burst: ") and held.account == "burst"
    everybody = [
        msgspec.structs.replace(g, grade_id=f"{g.grade_id}-{k}", user=f"w{k}")
        for k in range(5)
        for g in burst
    ]
    assert weighed(everybody).quarantined == []


def test_even_pauses_are_a_machines():
    steady = [thumb(n, "bot", up=True, reply=GOOD[0], at_s=600.0 * n) for n in range(20)]
    assert [q.reason for q in weighed([*crowd(), *steady]).quarantined] == [
        "clockwork: 20 signals at even pauses"
    ]
    assert weighed([*crowd(), *steady[:-1]]).quarantined == []


def test_doubt_takes_from_what_a_flood_is_allowed_not_from_the_flood():
    """Forty lies about the parcel are held to twice what is usual there, 2; believed by half, they have 1."""
    half = msgspec.structs.replace(NOTHING_KNOWN, on_subject={("mallory", "parcel"): 0.5})
    lies = contrary(40, topic="parcel")
    people = [thumb(1000 + n, f"v{n}", up=True, reply=GOOD[0], topic=TOPICS[n % 6]) for n in range(60)]
    kept = weigh([*people, *lies], [], [], half, subject_cap=1.0)
    assert weight_of(kept.grades, "mallory") == pytest.approx(1.0, abs=1e-3)


def test_what_doubt_took_is_told_by_subject():
    """Five lies of weight 1, of which a fifth counts; where one account is everybody no cap bites."""
    some = msgspec.structs.replace(NOTHING_KNOWN, on_subject={("mallory", "invoice"): 0.2})
    (told,) = weigh(contrary(5, topic="invoice"), [], [], some, subject_cap=1.0).doubted
    assert (told.subject, told.accounts, told.rows, told.weight) == ("invoice", 1, 5, pytest.approx(4.0))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_trust_does_not_depend_on_order(chance):
    rows = [*crowd(20), *contrary(12)]
    assert assess(chance.sample(rows, len(rows)), []) == assess(rows, [])


def test_nothing_said_is_nobody_judged():
    assert assess([], []) == Trust(honest={}, on_subject={}, record={}, suspended={})
    assert weigh([], [], [], assess([], []), subject_cap=0.01) == ([], [], [], [], [])
