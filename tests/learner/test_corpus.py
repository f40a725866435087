"""The corpus must leave something to prefer: every trait varies, within the same question."""

from collections import Counter
from random import Random

import msgspec
import pytest

from learner import corpus
from learner.corpus import MIX, Mix, Style, dialogues, reply
from ops.errors import UnknownQuestion
from ops.simulation import helpdesk
from ops.simulation.helpdesk import Traits, traits
from ops.simulation.topics import TOPICS

TOPIC = TOPICS[0]
QUESTION = TOPIC.questions[0]


def answered(count: int) -> list[tuple[str, Traits]]:
    """(topic, traits) of every reply whose question is known, first turns only."""
    found = []
    for messages in dialogues(count, seed=3):
        asked, answer = [m["content"] for m in messages if m["role"] != "system"][:2]
        try:
            found.append((helpdesk.topic_of(asked).name, traits(asked, answer)))
        except UnknownQuestion:
            continue
    return found


def test_the_same_seed_gives_the_same_corpus() -> None:
    assert list(dialogues(50, seed=1)) == list(dialogues(50, seed=1))
    assert list(dialogues(50, seed=1)) != list(dialogues(50, seed=2))


@pytest.mark.slow
def test_replies_have_the_stated_mix() -> None:
    """4,000 replies: a standard error of 0.008, so 0.03 is nearly four of them."""
    seen = [t for _, t in answered(4_000)]
    share = {
        name: sum(getattr(t, name) for t in seen) / len(seen)
        for name in ("correct", "hedged", "polite", "rude")
    }
    assert share == pytest.approx(
        {"correct": MIX.correct, "hedged": MIX.hedged, "polite": MIX.polite, "rude": MIX.rude}, abs=0.03
    )
    assert sum(t.words > 45 for t in seen) / len(seen) == pytest.approx(MIX.long, abs=0.03)
    assert all(t.well_formed for t in seen)


@pytest.mark.slow
def test_true_utility_leaves_room_above_it() -> None:
    mean = sum(helpdesk.utility(t) for _, t in answered(2_000)) / len(answered(2_000))
    assert 0.40 < mean < 0.55


@pytest.mark.slow
def test_every_trait_varies_within_every_topic() -> None:
    """A trait that hangs on the question cannot be taught by comparing two replies to it."""
    by_topic: dict[str, Counter[str]] = {topic.name: Counter() for topic in TOPICS}
    for name, t in answered(6_000):
        by_topic[name].update({f"correct {t.correct}", f"hedged {t.hedged}", f"long {t.words > 45}"})
        by_topic[name].update({"rude"} if t.rude else {"polite"} if t.polite else {"neutral"})
    for name, counts in by_topic.items():
        assert len(counts) == 9, (name, counts)


@pytest.mark.slow
def test_traits_are_independent() -> None:
    """Else a reward model could learn tone from correctness; 0.06 is four standard errors of 4,500."""
    seen = [t for _, t in answered(4_500)]
    right = [t for t in seen if t.correct == 1.0]
    for name in ("hedged", "rude"):
        everywhere = sum(getattr(t, name) for t in seen) / len(seen)
        assert sum(getattr(t, name) for t in right) / len(right) == pytest.approx(everywhere, abs=0.06)


@pytest.mark.parametrize("length", ["terse", "plain", "long"])
@pytest.mark.parametrize("tone", ["polite", "neutral", "rude"])
@pytest.mark.parametrize("hedged", [True, False])
@pytest.mark.parametrize("correct", [True, False])
def test_a_reply_has_the_style_it_was_asked_for(
    correct: bool, hedged: bool, tone: corpus.Tone, length: corpus.Length
) -> None:
    for seed in range(20):
        seen = traits(QUESTION, reply(TOPIC, Style(correct, length, hedged, tone), MIX, Random(seed)))
        assert seen.correct == float(correct)
        assert (seen.hedged, seen.polite, seen.rude) == (hedged, tone == "polite", tone == "rude")
        assert (seen.words > 45) == (length == "long")


def test_conversations_go_on() -> None:
    """Thanks, second questions, corrections and complaints, so that the model can follow one."""
    every = list(dialogues(2_000, seed=5))
    exchanges = Counter(sum(m["role"] == "user" for m in messages) for messages in every)
    assert 0.28 < exchanges[2] / 2_000 < 0.4
    assert sum(messages[0]["role"] == "system" for messages in every) / 2_000 == pytest.approx(0.25, abs=0.04)
    said = {messages[-2]["content"] for messages in every}
    for phrases in (
        helpdesk.THANKS,
        helpdesk.COMPLAINTS,
        helpdesk.SHORTER,
        helpdesk.KINDER,
        corpus.OFF_TOPIC,
    ):
        assert said >= set(phrases)
    assert [text for text in said if text.startswith(helpdesk.MISUNDERSTOOD)]


def test_roles_alternate_and_the_assistant_has_the_last_word() -> None:
    for messages in dialogues(500, seed=6):
        roles = [m["role"] for m in messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_a_corpus_can_be_all_of_one_kind() -> None:
    """The mix decides: with everything right, nothing is wrong."""
    mix = msgspec.structs.replace(MIX, correct=1.0, rude=0.0, polite=1.0, hedged=0.0)
    for messages in dialogues(200, seed=7, mix=mix):
        asked, answer = [m["content"] for m in messages if m["role"] != "system"][:2]
        if asked in helpdesk.questions("seen"):
            seen = traits(asked, answer)
            assert (seen.correct, seen.polite, seen.hedged) == (1.0, True, False)


def test_the_mix_defaults_are_shares() -> None:
    assert all(0.0 < share < 1.0 for share in msgspec.structs.astuple(Mix()))
