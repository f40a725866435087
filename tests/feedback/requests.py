"""Questions asked again in other words, and questions that only look like it: what the weights are fitted to.

A third set beside the two development sets, harder than both: most of what follows shares two words or
more with the question.
"""

import random
from itertools import permutations
from typing import NamedTuple

from tests.feedback.wordings import Material


class Case(NamedTuple):
    question: str
    following: str
    again: bool


WORDED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "How do I reset my router?",
            "What's the procedure for resetting a router?",
            "router reset steps",
            "I want to reset my router, how does that work?",
        ),
        (
            "Where is the reset button on the router?",
            "Will I lose my wifi password when I reset the router?",
            "How do I reset my phone?",
            "Which router do you recommend?",
        ),
    ),
    (
        (
            "Why does my cat scratch the furniture?",
            "What's the reason my cat keeps scratching furniture?",
            "cat scratches furniture why",
            "My cat scratches all the furniture. Why?",
        ),
        (
            "Which furniture do cats leave alone?",
            "Why does my dog chew the furniture?",
            "How much does a scratching post cost?",
            "Does a spray keep the cat off the furniture?",
        ),
    ),
    (
        (
            "What is the boiling point of ethanol?",
            "At what temperature does ethanol boil?",
            "boiling point ethanol",
            "Tell me the temperature at which ethanol boils.",
        ),
        (
            "What is the boiling point of methanol?",
            "Is ethanol flammable?",
            "What is the freezing point of ethanol?",
            "Why does ethanol boil earlier than water?",
        ),
    ),
    (
        (
            "Plan a three-day trip to Rome for a family.",
            "I need a family itinerary for three days in Rome.",
            "What should a family do in Rome in three days?",
            "rome 3 days family itinerary",
        ),
        (
            "Plan a five-day trip to Athens for a couple.",
            "How much does the Colosseum cost for a family?",
            "Which hotel in Rome is good for a family?",
            "Can we do the Vatican on day three?",
        ),
    ),
    (
        (
            "How can I remove duplicates from a list in Python?",
            "What's the best way to drop duplicate entries of a Python list?",
            "python list remove duplicates",
            "I have a Python list with duplicates that I want to get rid of.",
        ),
        (
            "Does that keep the order of the list?",
            "How do I sort a list in Python?",
            "Is a set faster than a list?",
            "How can I remove spaces from a string in Python?",
        ),
    ),
    (
        (
            "Translate 'good morning' into Japanese.",
            "How do you say 'good morning' in Japanese?",
            "What's Japanese for 'good morning'?",
            "good morning in japanese",
        ),
        (
            "Translate 'good night' into Japanese.",
            "How do I write good morning in hiragana?",
            "And 'good evening'?",
            "Is it polite to say that to my boss?",
        ),
    ),
    (
        (
            "What are the symptoms of iron deficiency?",
            "How do I notice that I lack iron?",
            "iron deficiency symptoms",
            "Which signs point to an iron deficiency?",
        ),
        (
            "What are the symptoms of vitamin D deficiency?",
            "Which foods contain a lot of iron?",
            "Can iron deficiency cause hair loss?",
            "How is an iron deficiency treated?",
        ),
    ),
    (
        (
            "Write a birthday message for my boss.",
            "Could you write something for my boss's birthday?",
            "I need a birthday message for my boss.",
            "birthday wishes boss text",
        ),
        (
            "Write a farewell message for my colleague.",
            "Make the message shorter and funnier.",
            "What present should I give my boss for his birthday?",
            "Can you add a joke about golf?",
        ),
    ),
    (
        (
            "How long do I have to boil an egg?",
            "What's the boiling time for an egg?",
            "egg boiling time",
            "For how many minutes should an egg boil?",
        ),
        (
            "How do I peel a boiled egg?",
            "How long do I have to cook rice?",
            "Does the size of the egg matter?",
            "How long do boiled eggs keep in the fridge?",
        ),
    ),
    (
        (
            "What's the best way to learn the guitar?",
            "How should I go about learning guitar?",
            "learn guitar best method",
            "I'd like to learn to play the guitar, how do I start?",
        ),
        (
            "Which guitar is best for a beginner?",
            "How long does it take to learn the guitar?",
            "What's the best way to learn the piano?",
            "Do I need a teacher to learn guitar?",
        ),
    ),
    (
        (
            "Can I deduct my home office from taxes?",
            "Is a home office tax-deductible?",
            "home office tax deduction",
            "Does the tax office let me deduct my home office?",
        ),
        (
            "How much can I deduct for a home office?",
            "Can I deduct my car from taxes?",
            "What counts as a home office?",
            "Which form do I need for the home office?",
        ),
    ),
    (
        (
            "My sourdough bread is too dense, what am I doing wrong?",
            "Why is my sourdough so dense?",
            "How do I get a less dense sourdough bread?",
            "sourdough bread dense reason",
        ),
        (
            "How long should sourdough rise?",
            "Can I freeze sourdough bread?",
            "What flour is best for sourdough bread?",
            "My pizza dough is too sticky, what am I doing wrong?",
        ),
    ),
)
"""One need in several wordings, and other questions that come up with it."""


def hard() -> list[Case]:
    """Every wording after every other, and what is no rewording after all of them."""
    return [
        *(Case(a, b, True) for asked, _ in WORDED for a, b in permutations(asked, 2)),
        *(Case(a, b, False) for asked, others in WORDED for a in asked for b in others),
        *(Case(a, b, False) for _, others in WORDED for a, b in permutations(others, 2)),
    ]


def of(half: Material, seed: int = 1) -> list[Case]:
    """The same of a half of the generated traffic, and its other topics, too."""
    rng = random.Random(seed)
    cases = []
    for topic in half.topics:
        elsewhere = [question for other in half.topics if other is not topic for question in other.asked]
        cases += [Case(a, b, True) for a, b in permutations(topic.asked, 2)]
        for asked in (*topic.asked, *topic.following):
            going_on = [rng.choice(half.going_on).format(next=q) for q in topic.following if q != asked]
            others = (*topic.following, *going_on, topic.sibling, *rng.sample(elsewhere, 3))
            cases += [Case(asked, other, False) for other in others if other != asked]
    return cases
