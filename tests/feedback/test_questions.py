"""When a question is asked again in other words, and when another one only looks like it."""

import pytest

from feedback.questions import BIAS, WEIGHTS, announces, asks_again, features
from tests import fit_questions
from tests.feedback import requests

ASKED = "How do I reset my router?"


@pytest.mark.parametrize(
    "said",
    [
        "how do i reset my router",
        "router reset how",
        "What's the procedure for resetting a router?",
        "I want to reset my router, how does that work?",
    ],
)
def test_these_ask_the_same(said):
    assert asks_again(ASKED, said)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("How do I reset my phone?", "the same of something else"),
        ("Does a reset of the router cost me my password?", "yes or no, to a question of how"),
        ("Which router do you recommend?", "one word in common"),
        ("Thanks for the help!", "no question at all"),
    ],
)
def test_these_ask_something_else(said, why):
    assert not asks_again(ASKED, said)


def test_another_name_or_figure_makes_another_question():
    assert not asks_again("What should I see in Lisbon in two days?", "What can I see in Naples in two days?")
    assert not asks_again("Which trains leave Graz after 7 today?", "Which trains leave Graz after 9 today?")


def test_a_nod_said_twice_asks_nothing_twice():
    assert not asks_again("Wow, nice", "Wow, nice")


@pytest.mark.parametrize(
    "lead", ["Let me rephrase:", "In other words,", "To put it differently:", "Same question, simpler:"]
)
def test_who_announces_it_asks_again_whatever_the_words(lead):
    assert announces(f"{lead} the box in the hall should start anew".casefold())


@pytest.mark.parametrize("said", ["i'll try again tomorrow", "same question for my phone", "let me try that"])
def test_this_announces_nothing(said):
    assert not announces(said)


def test_every_reason_lies_between_nothing_and_one_and_has_its_weight():
    """Otherwise the weights could not be read as how much each reason counts."""
    values = features(ASKED, "Where is the reset button on the router?")
    assert values.keys() == WEIGHTS.keys()
    assert all(0.0 <= value <= 1.0 for value in values.values())


def test_a_reason_for_adds_and_a_reason_against_takes_away():
    assert {name for name, weight in WEIGHTS.items() if weight > 0} == fit_questions.FOR


@pytest.mark.slow
def test_the_weights_are_those_that_the_fit_gives():
    """`python -m tests.fit_questions` was forgotten when this fails."""
    weights, bias = fit_questions.fit([case for cases in fit_questions.sets().values() for case in cases])
    assert weights == pytest.approx(WEIGHTS, abs=0.02)
    assert bias == pytest.approx(BIAS, abs=0.02)


def test_hard_cases_hold_both_kinds():
    cases = requests.hard()
    assert {case.again for case in cases} == {True, False}


@pytest.mark.parametrize(
    "said",
    [
        "ok other words: where does the letter go?",
        "Maybe this is clearer: where does the letter go?",
        "I'll try to be more precise. Where does the letter go?",
    ],
)
def test_a_lead_about_the_wording_announces_the_question_again(said):
    assert announces(said.casefold())


@pytest.mark.parametrize(
    "said", ["Next: where does the letter go?", "And another question: where is it?", "At home: where is it?"]
)
def test_a_lead_about_the_matter_announces_nothing(said):
    """Another question is not the same one in other words."""
    assert not announces(said.casefold())
