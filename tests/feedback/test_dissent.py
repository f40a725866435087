"""Dissent: opposing everybody, following a line that few share, and what is neither."""

import random

import pytest

from feedback.dissent import Vote, believe

TRAITS = ("right", "kind", "short")
SUBJECTS = tuple(f"thing{c}" for c in "abcdefghij")


def vote(who: str, subject: str, words: dict[str, float], up: bool) -> Vote:
    return Vote(who, (subject,), words, 1.0 if up else -1.0, True, 1.0)


def reply(chance: random.Random) -> dict[str, float]:
    """Each trait or its contrary, and praise or blame."""
    said = [trait if chance.random() < 0.5 else f"not {trait}" for trait in TRAITS]
    return dict.fromkeys([*said, chance.choice(("praise", "blame"))], 1.0)


def merit(words: dict[str, float]) -> int:
    """People like three of the four: right counts twice."""
    return 2 * ("right" in words) + ("kind" in words) + ("praise" in words)


def honest(who: str, subject: str, chance: random.Random) -> Vote:
    words = reply(chance)
    return vote(who, subject, words, merit(words) >= 2 if chance.random() < 0.9 else merit(words) < 2)


def crowd(chance: random.Random, people: int = 100) -> list[Vote]:
    return [honest(f"u{n}", chance.choice(SUBJECTS), chance) for n in range(people) for _ in range(6)]


def drip(chance: random.Random, who: str, lies: int = 6) -> list[Vote]:
    """Honest about all but the first thing, which it blames whatever else the reply is worth."""
    false = [reply(chance) for _ in range(lies)]
    return [
        *(honest(who, chance.choice(SUBJECTS[1:]), chance) for _ in range(8)),
        *(vote(who, SUBJECTS[0], words, "blame" in words) for words in false),
    ]


def mean_belief(votes: list[Vote], whom: str, subject: str) -> float:
    found = [p for (who, s), p in believe(votes).on_subject.items() if who.startswith(whom) and s == subject]
    return sum(found) / len(found)


def test_who_follows_a_line_that_few_share_is_doubted_about_that_subject_alone():
    chance = random.Random(5)
    votes = [*crowd(chance), *(v for n in range(6) for v in drip(chance, f"drip{n}"))]
    assert mean_belief(votes, "drip", SUBJECTS[0]) < 0.3
    assert mean_belief(votes, "u", SUBJECTS[0]) > 0.8
    assert mean_belief(votes, "drip", SUBJECTS[1]) > 0.7


def test_company_gives_a_slow_drip_away():
    """The same lies of the same account are believed less when five others lie alike."""
    chance = random.Random(7)
    votes, alone = crowd(chance), drip(chance, "drip0")
    company = [v for n in range(1, 7) for v in drip(chance, f"other{n}")]
    alone_p = mean_belief([*votes, *alone], "drip0", SUBJECTS[0])
    assert mean_belief([*votes, *alone, *company], "drip0", SUBJECTS[0]) < alone_p


def test_what_most_say_about_a_subject_is_not_dissent():
    """Everybody blames the last thing: it is bad, and who says so is believed as about any other."""
    chance = random.Random(6)
    bad = [reply(chance) for _ in range(120)]
    votes = [
        *crowd(chance),
        *(vote(f"u{n % 100}", "lemon", words, "blame" in words) for n, words in enumerate(bad)),
    ]
    assert mean_belief(votes, "u", "lemon") > 0.85


@pytest.mark.parametrize("up", [True, False])
def test_who_likes_or_dislikes_everything_is_not_opposed(up: bool):
    """A habit says nothing of the replies, half of which are good."""
    chance = random.Random(8)
    good = dict.fromkeys([*TRAITS, "praise"], 1.0)
    bad = dict.fromkeys([*(f"not {trait}" for trait in TRAITS), "blame"], 1.0)
    votes = [*crowd(chance), *(vote("same", SUBJECTS[n % 10], (good, bad)[n % 2], up) for n in range(30))]
    assert believe(votes).honest["same"] > 0.9


def test_who_always_says_the_contrary_is_opposed():
    chance = random.Random(9)
    contrary = [honest("mallory", SUBJECTS[n % 10], chance) for n in range(20)]
    votes = [*crowd(chance), *(v._replace(side=-v.side) for v in contrary)]
    assert believe(votes).honest["mallory"] < 0.01
    assert believe(votes, ("mallory",)).honest["mallory"] == 1.0


def test_votes_without_words_or_without_anybody_say_nothing():
    assert believe([]) == ({}, {}, [])
    assert believe([vote("a", "x", {}, True), vote("b", "x", {}, True)]).honest == {"a": 1.0, "b": 1.0}
