"""The simulated help desk: its truth must hold, or the loop would be measured by a wrong ruler."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.errors import UnknownQuestion
from ops.simulation import helpdesk
from ops.simulation.helpdesk import Tastes, Traits, clause_sentence, questions, traits, utility
from ops.simulation.topics import ASKED, TOPICS, UNASKED, Topic

QUESTION = "How do I clean the feeder?"
RIGHT = "You wash the tray with warm water and a brush every two weeks."
WRONG = "You put the whole feeder into the dishwasher."

MARKS = helpdesk.HEDGE_MARKS + helpdesk.POLITE_MARKS + helpdesk.RUDE_MARKS


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_right_answers_are_right_and_wrong_ones_wrong(topic: Topic) -> None:
    """Every topic by itself: a fact that a wrong answer shares would reward it."""
    question = topic.questions[0]
    assert traits(question, clause_sentence(topic.right)).correct == 1.0
    for clause in (*topic.wrong, *helpdesk.BRUSH_OFFS, *helpdesk.FILLERS):
        assert traits(question, clause_sentence(clause)).correct == 0.0


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_answers_have_no_tone_of_their_own(topic: Topic) -> None:
    """Tone and hedging must come from how a thing is said, else they would hang on the topic."""
    for clause in (topic.right, *topic.wrong):
        assert not [mark for mark in MARKS if mark in clause.lower()]


@pytest.mark.parametrize(
    ("sentences", "trait"),
    [
        ((*helpdesk.WARM_OPENINGS, *helpdesk.WARM_CLOSINGS), {"polite"}),
        ((*helpdesk.RUDE_OPENINGS, *helpdesk.RUDE_CLOSINGS), {"rude"}),
        (tuple(hedge.format("it rains") for hedge in helpdesk.HEDGES), {"hedged"}),
        (helpdesk.FILLERS, set()),
        (tuple(clause_sentence(clause) for clause in helpdesk.BRUSH_OFFS), set()),
    ],
)
def test_each_sentence_shows_the_trait_it_was_written_for(
    sentences: tuple[str, ...], trait: set[str]
) -> None:
    for sentence in sentences:
        seen = traits(QUESTION, sentence)
        assert {name for name in ("polite", "rude", "hedged") if getattr(seen, name)} == trait, sentence


def test_no_two_topics_share_a_question() -> None:
    """A question with two right answers could not be judged."""
    every = [q for topic in TOPICS for split in ("seen", "heldout") for q in helpdesk.phrasings(topic, split)]
    assert len({q.lower() for q in every}) == len(every) == 52 * 19
    assert len(TOPICS) == 52


def test_each_topic_has_eight_phrasings_at_least() -> None:
    assert {len(helpdesk.phrasings(topic, "seen")) for topic in TOPICS} == {14}
    assert {len(helpdesk.phrasings(topic, "heldout")) for topic in TOPICS} == {5}


def test_held_out_questions_are_never_asked_while_learning() -> None:
    """Both kinds: other wordings of known topics, and topics without any feedback."""
    seen, heldout = set(questions("seen")), set(questions("heldout"))
    assert not seen & heldout
    assert {helpdesk.topic_of(q).name for q in seen} == {topic.name for topic in ASKED}
    assert {helpdesk.topic_of(q).name for q in heldout} == {topic.name for topic in TOPICS}
    unasked = {topic.name for topic in UNASKED}
    assert sum(helpdesk.topic_of(q).name in unasked for q in heldout) == 8 * 19


def test_a_question_is_known_however_it_is_typed() -> None:
    for asked in (
        "how do i clean the feeder",
        f"No, I meant something else. {QUESTION}",
        f" {QUESTION.upper()} ",
    ):
        assert helpdesk.topic_of(asked).name == "cleaning"


def test_a_question_from_elsewhere_has_no_right_answer() -> None:
    with pytest.raises(UnknownQuestion, match="capital of France"):
        traits("What is the capital of France?", "Paris.")


def test_half_the_facts_are_half_right() -> None:
    assert traits(QUESTION, "You use warm water.").correct == 0.5


@pytest.mark.parametrize(
    ("reply", "well_formed"),
    [
        (RIGHT, True),
        ("", False),
        ("   ", False),
        ("You wash the tray with", False),
        ("It is what it is. " * 3, False),
        ("It is what it is. " * 2, True),
    ],
)
def test_well_formed_replies_end_and_do_not_repeat_themselves(reply: str, well_formed: bool) -> None:
    assert traits(QUESTION, reply).well_formed is well_formed


def test_utility_is_the_stated_sum() -> None:
    """By hand, with the usual weights .50, .20, .15, .15 and 25 words as the ideal."""
    # right, 13 words: length 13/15; direct; neither polite nor rude: half the tone
    assert utility(traits(QUESTION, RIGHT)) == pytest.approx(0.50 + 0.20 * 13 / 15 + 0.15 + 0.15 / 2)
    # wrong, 20 words: full length; hedged; rude
    worst = "I think maybe you put the whole feeder into the dishwasher. Not this again. A child could do it."
    assert utility(traits(QUESTION, worst)) == pytest.approx(0.20)
    # 60 words are 25 beyond the tolerated 35, where the length score ends
    assert helpdesk.length_score(60, 25.0) == 0.0
    assert helpdesk.length_score(35, 25.0) == 1.0
    assert helpdesk.length_score(40, 25.0) == pytest.approx(0.8)


def test_a_reply_that_breaks_off_is_worth_nothing() -> None:
    """Else a policy that never ends its replies would be paid for their first half."""
    assert utility(traits(QUESTION, RIGHT.rstrip("."))) == 0.0


BOOLS = st.booleans()


@given(
    seed=st.integers(),
    correct=st.sampled_from((0.0, 0.5, 1.0)),
    words=st.integers(1, 300),
    hedged=BOOLS,
    polite=BOOLS,
    rude=BOOLS,
)
def test_every_taste_keeps_utility_between_0_and_1(
    seed: int, correct: float, words: int, hedged: bool, polite: bool, rude: bool
) -> None:
    tastes = helpdesk.draw_tastes(Random(seed))
    assert tastes.correct + tastes.length + tastes.direct + tastes.tone == pytest.approx(1.0)
    assert 0.0 <= utility(Traits(correct, words, hedged, polite, rude, True), tastes) <= 1.0 + 1e-9


def test_users_differ_around_the_usual_tastes() -> None:
    people = [helpdesk.draw_tastes(Random(n)) for n in range(400)]
    mean = sum(t.correct for t in people) / 400
    assert mean == pytest.approx(Tastes().correct, abs=0.02)
    assert max(t.correct for t in people) - min(t.correct for t in people) > 0.2


def test_an_edit_repairs_and_leaves_the_rest() -> None:
    reply = (
        f"Happy to help! {helpdesk.FILLERS[0]} I think maybe {WRONG[0].lower()}{WRONG[1:]} Enjoy your birds!"
    )
    assert helpdesk.improved(QUESTION, reply) == f"Happy to help! {RIGHT} Enjoy your birds!"


def test_an_edit_of_nonsense_is_the_plain_answer() -> None:
    assert helpdesk.improved(QUESTION, "Lorem ipsum.") == RIGHT


def test_an_edit_of_a_good_reply_changes_nothing() -> None:
    assert helpdesk.improved(QUESTION, f"Good question! {RIGHT}") == f"Good question! {RIGHT}"
