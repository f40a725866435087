"""Pairs within a prompt state, demonstrations, contrasts across users, and the split."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.conversations import fold
from feedback.events import SignalKind, TurnStatus
from feedback.grades import grade
from feedback.implicit import infer
from feedback.pairs import (
    MAX_CONTRASTS_PER_PROMPT,
    cluster_of,
    contrast,
    demonstrate,
    pair,
    split_of,
)
from feedback.records import Demonstration, Grade, Pair
from tests.feedback.builders import (
    assistant,
    of_conversation,
    offered,
    preferred,
    signal,
    system,
    thumb,
    turn,
    user,
)

QUESTION = "How do I reset my password?"
BAD = "Click around until something happens."
GOOD = "Open the settings, choose security and press reset."
FIRST = turn("r1", QUESTION, BAD)
SECOND = turn("r2", QUESTION, GOOD, at=20)


def goes_on(after: str, said: str = "Great, thank you!", *, at: float = 60):
    return turn("r9", [user(QUESTION), assistant(after), user(said)], "You are welcome.", at=at)


def pairs(*events) -> list[Pair]:
    conversation = fold(events)
    return pair(conversation, [*conversation.signals, *infer(conversation)])


def demonstrations(*events) -> list[Demonstration]:
    conversation = fold(events)
    return demonstrate(conversation, [*conversation.signals, *infer(conversation)])


def graded(*events) -> list[Grade]:
    conversation = fold(events)
    return grade(conversation, conversation.signals)


def ids(found: list[Pair]) -> list[tuple[str, str]]:
    return [(p.chosen_response_id, p.rejected_response_id) for p in found]


# --- regenerations


def test_a_regeneration_that_was_kept_is_a_pair():
    (found,) = pairs(FIRST, SECOND, goes_on(GOOD))
    assert (found.chosen, found.rejected, found.p, found.weight) == (GOOD, BAD, 0.75, 0.5)
    assert found.event_ids == ("turn-r1", "turn-r2", "turn-r9")
    assert found.prompt == (user(QUESTION),)


@pytest.mark.parametrize(
    "kept",
    [
        thumb(SECOND, True),
        signal(SECOND, SignalKind.COPY),
        signal(SECOND, SignalKind.OUTCOME, value=1.0),
        of_conversation(SECOND, SignalKind.THUMB, value=1.0),
    ],
    ids=lambda event: event.id,
)
def test_a_word_for_a_reply_or_a_copy_keeps_it_too(kept):
    assert ids(pairs(FIRST, SECOND, kept)) == [("r2", "r1")]


@pytest.mark.parametrize(
    "events",
    [
        (),
        (goes_on(BAD),),
        (goes_on(GOOD, "That is wrong."),),
        (goes_on(GOOD), thumb(SECOND, False)),
        (goes_on(GOOD, at=90), of_conversation(SECOND, SignalKind.OUTCOME, value=0.0)),
        (thumb(SECOND, True), thumb(FIRST, True)),
    ],
    ids=["nothing follows", "went on from the first", "objected", "thumb down", "task failed", "liked both"],
)
def test_a_regeneration_that_was_not_clearly_kept_is_no_pair(events):
    assert pairs(FIRST, SECOND, *events) == []


def test_the_reply_at_the_end_of_a_chain_beats_all_before_it():
    third = turn("r3", QUESTION, "Ask an administrator to do it for you.", at=40)
    assert sorted(ids(pairs(FIRST, SECOND, third, thumb(third, True)))) == [("r3", "r1"), ("r3", "r2")]


def test_near_identical_replies_are_no_pair():
    """Low temperatures repeat themselves."""
    same = turn("r2", QUESTION, "**Click** around until something happens.", at=20)
    assert pairs(FIRST, same, thumb(same, True)) == []


def test_a_regeneration_told_by_the_client_and_seen_in_the_traffic_is_one_pair():
    told = signal(FIRST, SignalKind.REGENERATION, at=21, other_response_id="r2")
    (found,) = pairs(FIRST, SECOND, thumb(SECOND, True), told)
    assert {"turn-r1", "turn-r2"} < set(found.event_ids) and told.id in found.event_ids


def test_a_client_may_tell_of_a_regeneration_without_naming_the_new_reply():
    quick = turn("r2", QUESTION, GOOD, at=1.5)  # too soon to be inferred
    assert pairs(FIRST, quick, thumb(quick, True)) == []
    told = signal(FIRST, SignalKind.REGENERATION, at=1.4)
    assert ids(pairs(FIRST, quick, thumb(quick, True), told)) == [("r2", "r1")]


def test_regenerations_that_claim_to_replace_each_other_do_not_hang():
    there = signal(FIRST, SignalKind.REGENERATION, other_response_id="r2")
    back = signal(SECOND, SignalKind.REGENERATION, other_response_id="r1")
    assert pairs(FIRST, SECOND, there, back) == []


@pytest.mark.parametrize("status", [TurnStatus.ABORTED, TurnStatus.FAILED])
def test_a_broken_reply_is_neither_chosen_nor_rejected(status):
    broken = turn("r1", QUESTION, "Click aro", status=status)
    told = signal(broken, SignalKind.REGENERATION, other_response_id="r2")
    assert pairs(broken, SECOND, thumb(SECOND, True), told) == []


def test_a_turn_without_consent_is_in_no_pair():
    private = turn("r1", QUESTION, BAD, learn=False)
    told = signal(private, SignalKind.REGENERATION, other_response_id="r2")
    assert pairs(private, SECOND, thumb(SECOND, True), told) == []


# --- edits


def test_an_edit_beats_the_original_by_how_much_it_changed():
    """10 words and marks, one replaced: distance 1 - 2 * 9 / 20 = 0.1, weight 0.1 / 0.2."""
    edited = "Open the settings, choose privacy and press reset."
    (found,) = pairs(SECOND, signal(SECOND, SignalKind.EDIT, text=edited))
    assert (found.chosen, found.chosen_response_id, found.rejected) == (edited, "", GOOD)
    assert (found.p, found.weight) == pytest.approx((0.9, 0.5), abs=1e-9)
    (shown,) = demonstrations(SECOND, signal(SECOND, SignalKind.EDIT, text=edited))
    assert (shown.reply, shown.prompt, shown.weight) == (edited, (user(QUESTION),), found.weight)


def test_an_edit_of_whitespace_is_nothing():
    touched = signal(SECOND, SignalKind.EDIT, text=GOOD.replace(" ", "  "))
    assert pairs(SECOND, touched) == [] and demonstrations(SECOND, touched) == []


def test_a_rewrite_is_a_demonstration_but_no_pair():
    """So much has changed that it says nothing of the original but that it was not wanted."""
    rewritten = signal(SECOND, SignalKind.EDIT, text="Ask your administrator, who can do it for you today.")
    assert pairs(SECOND, rewritten) == []
    assert [d.weight for d in demonstrations(SECOND, rewritten)] == [1.0]


def test_an_edit_sent_and_then_seen_in_the_history_is_one_pair():
    edited = "Open the settings, choose privacy and press reset."
    events = (SECOND, signal(SECOND, SignalKind.EDIT, at=40, text=edited), goes_on(edited))
    assert len(pairs(*events)) == 1 and len(demonstrations(*events)) == 1


def test_an_edit_that_was_taken_back_is_gone():
    edits = [
        signal(SECOND, SignalKind.EDIT, at=40, text="Open the settings, choose privacy and press reset."),
        signal(SECOND, SignalKind.EDIT, at=50, text=None),
    ]
    assert pairs(SECOND, *edits) == []


# --- comparisons


@pytest.mark.parametrize(
    ("value", "chosen", "p"), [(1.0, "r1", 1.0), (0.85, "r1", 0.85), (0.3, "r1x", 0.7), (0.5, "r1", 0.5)]
)
def test_a_comparison_by_design_is_a_pair_by_its_strength(value, chosen, p):
    one, other = offered("r1", QUESTION, BAD, GOOD)
    (found,) = pairs(one, other, preferred(one, other, value=value))
    assert (found.chosen_response_id, found.weight, found.by_design) == (chosen, 1.0, True)
    assert found.p == pytest.approx(p)


@pytest.mark.parametrize(("value", "chosen", "p"), [(1.0, "r1", 0.9), (0.3, "r2", 0.66), (0.5, "r1", 0.5)])
def test_a_volunteered_comparison_is_less_sure(value, chosen, p):
    """1/2 + 0.8 (stated - 1/2), at weight 0.7."""
    (found,) = pairs(FIRST, SECOND, preferred(FIRST, SECOND, value=value))
    assert (found.chosen_response_id, found.weight, found.by_design) == (chosen, 0.7, False)
    assert found.p == pytest.approx(p)


def test_a_comparison_too_fast_to_have_been_read_is_no_pair():
    """GOOD has 8 words: 0.8 s at ten a second, from when it was shown, 2 s after it was asked for."""
    one, other = offered("r1", QUESTION, BAD, GOOD)
    assert pairs(one, other, preferred(one, other, at=2.79)) == []
    assert len(pairs(one, other, preferred(one, other, at=2.81))) == 1


def test_a_pair_knows_how_likely_the_split_made_it():
    """Two replies that the split chose for one user: the rarer decides. Side by side, both were sure."""
    rare = turn("r2", QUESTION, GOOD, at=20, propensity=0.1)
    common = turn("r1", QUESTION, BAD, propensity=0.9)
    (kept,) = pairs(common, rare, thumb(rare, True))
    assert kept.propensity == 0.1
    one, other = offered("r1", QUESTION, BAD, GOOD, propensity=0.9, other_fields={"propensity": 0.1})
    (compared,) = pairs(one, other, preferred(one, other))
    assert compared.propensity == 1.0
    (grade_of_rare,) = graded(rare, thumb(rare, True))
    assert grade_of_rare.propensity == 0.1


def test_replies_to_different_prompts_are_not_compared():
    elsewhere = turn("r2", "Where are my invoices?", GOOD, at=20)
    compared = signal(FIRST, SignalKind.COMPARISON, value=1.0, other_response_id="r2")
    assert pairs(FIRST, elsewhere, compared) == []


# --- contrasts across users


def rated(n: int, reply: str, up: bool, *, question: str = QUESTION) -> list[Grade]:
    event = turn(f"t{n}", question, reply, conversation=f"c{n}", who=f"u{n}")
    return graded(event, thumb(event, up))


def test_a_thumb_up_and_a_thumb_down_on_one_prompt_state_make_a_pair():
    (found,) = contrast([*rated(1, GOOD, True), *rated(2, BAD, False)])
    assert (found.chosen, found.rejected, found.raters) == (GOOD, BAD, ("u2", "u1"))
    assert found.p == pytest.approx(0.9)  # (1 + 0.9 - 0.1) / 2
    assert found.weight == pytest.approx(0.5)  # the lighter of 0.5 and 0.7
    assert len(found.event_ids) == 4


def test_outcomes_of_two_replies_to_one_prompt_state_make_a_pair():
    """(1 + 0.8 - 0.2) / 2 = 0.8, with the weight of an outcome."""
    tasks = [graded(t, signal(t, SignalKind.OUTCOME, value=v)) for t, v in ((FIRST, 0.0), (SECOND, 1.0))]
    (found,) = contrast([g for made in tasks for g in made])
    assert (found.chosen, found.p, found.weight) == (GOOD, pytest.approx(0.8), 0.5)


@pytest.mark.parametrize(
    "grades",
    [
        [*rated(1, GOOD, True), *rated(2, BAD, True)],
        [*rated(1, GOOD, True), *rated(2, GOOD + " ", False)],
        [*rated(1, GOOD, True), *rated(2, BAD, False, question="Where are my invoices?")],
    ],
    ids=["both liked", "the same words", "another prompt"],
)
def test_nothing_to_contrast(grades):
    assert contrast(grades) == []


def test_thumbs_on_one_wording_are_pooled():
    """Ups 0.9 (weight 0.5, twice) and a down 0.1 (0.7): p = (0.9 + 0.07) / 1.7 = 0.5706."""
    mixed = [*rated(1, GOOD, True), *rated(2, GOOD, True), *rated(3, GOOD, False)]
    (found,) = contrast([*mixed, *rated(4, BAD, False)])
    assert found.p == pytest.approx((1 + 0.97 / 1.7 - 0.1) / 2)


def test_a_grades_weight_is_divided_among_its_pairs():
    found = contrast(
        [*rated(1, GOOD, True), *(g for n in range(2, 6) for g in rated(n, f"{BAD} {n}", False))]
    )
    assert [p.weight for p in found] == pytest.approx([0.5 / 4] * 4)


def test_pairs_of_one_prompt_are_bounded():
    """One popular question must not become the whole snapshot."""
    ups = [g for n in range(40) for g in rated(n, f"{GOOD} {n}", True)]
    downs = [g for n in range(40, 80) for g in rated(n, f"{BAD} {n}", False)]
    assert len(contrast([*ups, *downs])) == MAX_CONTRASTS_PER_PROMPT


@given(st.permutations([g for n in range(6) for g in rated(n, f"{GOOD} {n}", n % 2 == 0)]))
def test_contrasts_do_not_depend_on_order(grades):
    assert contrast(grades) == contrast([g for n in range(6) for g in rated(n, f"{GOOD} {n}", n % 2 == 0)])


# --- the split


@pytest.mark.parametrize(
    "other",
    [
        "how can I reset the PASSWORD",
        "Hello! Please tell me: password reset?",
        "Reset my password, thanks.",
    ],
)
def test_near_duplicates_share_a_cluster(other):
    assert cluster_of([user(other)]) == cluster_of([user(QUESTION)])


def test_different_questions_do_not_share_a_cluster():
    assert cluster_of([user("How do I reset my phone?")]) != cluster_of([user(QUESTION)])


def test_figures_do_not_make_another_cluster():
    assert cluster_of([user("Where is order 123?")]) == cluster_of([user("Where is order 98765?")])


def test_every_state_of_a_conversation_shares_its_cluster():
    """Otherwise a later state would carry a held-out reply into training."""
    later = [system("Be kind."), user(QUESTION), assistant(GOOD), user("And my invoices, where are they?")]
    assert cluster_of(later) == cluster_of([user(QUESTION)])


def test_a_greeting_does_not_decide_the_cluster():
    """Half of all conversations begin with it."""
    assert cluster_of([user("Hi there"), assistant("Hello!"), user(QUESTION)]) == cluster_of([user(QUESTION)])


def test_the_split_takes_about_its_fraction_of_clusters_and_users():
    """Binomial(2000, 0.2): mean 400, standard deviation 18; and 0.8 * 0.2 * 2000 = 320 are set aside."""
    splits = Counter(
        split_of([user(f"subject{'x' * (n % 50)} matter{'y' * (n // 50)}")], [f"u{n}"], heldout_fraction=0.2)
        for n in range(2000)
    )
    assert abs(splits["heldout"] - 400) < 72
    assert abs(splits[None] - 320) < 72


def test_a_row_never_trains_when_any_of_its_users_is_held_out():
    heldout_user = next(
        f"u{n}" for n in range(99) if split_of(TRAIN, [f"u{n}"], heldout_fraction=0.2) is None
    )
    train_user = next(
        f"u{n}" for n in range(99) if split_of(TRAIN, [f"u{n}"], heldout_fraction=0.2) == "train"
    )
    assert split_of(TRAIN, [train_user, heldout_user], heldout_fraction=0.2) is None


TRAIN = next(
    [user(f"question about topic{'x' * n}")]
    for n in range(99)
    if split_of([user(f"question about topic{'x' * n}")], [], heldout_fraction=0.2) == "train"
)
