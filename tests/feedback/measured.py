"""How right `feedback.implicit` is about labelled traffic: counts, precision, recall."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

from feedback.conversations import fold
from feedback.events import Event, SignalKind
from feedback.implicit import Answered, answered, infer
from feedback.questions import BIAS, WEIGHTS, comparable, score
from feedback.reactions import reaction
from tests.feedback.released import RELEASED
from tests.feedback.third import THIRD
from tests.feedback.third_clients import THIRD_MANNERS
from tests.feedback.traffic import MANNERS, Label, Record, by_conversation, traffic
from tests.feedback.unseen import UNSEEN
from tests.feedback.unseen_clients import UNSEEN_MANNERS
from tests.feedback.wordings import DEVELOPMENT

SETS = {
    "development": (DEVELOPMENT, MANNERS["development"], 11),
    "released": (RELEASED, MANNERS["released"], 23),
    "third": (THIRD, THIRD_MANNERS, 37),
    "unseen": (UNSEEN, UNSEEN_MANNERS, 53),
}
"""What is said, how people and clients go about it, and the seed. Published is what `unseen` shows."""
CHATS = 1500


@dataclass(frozen=True)
class Counts:
    right: int
    wrong: int
    """Inferred, but not what the person did."""
    missed: int

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed)


def inferred(record: Record) -> set[Label]:
    return {(s.kind, s.response_id) for events in by_conversation(record) for s in infer(fold(events))}


def compare(found: set[Label], truth: set[Label]) -> dict[SignalKind, Counts]:
    tallies = {"right": found & truth, "wrong": found - truth, "missed": truth - found}
    by = {name: Counter(kind for kind, _ in labels) for name, labels in tallies.items()}
    kinds = {kind for kind, _ in found | truth}
    return {k: Counts(by["right"][k], by["wrong"][k], by["missed"][k]) for k in sorted(kinds)}


def false_alarms(found: set[Label], record: Record) -> dict[str, tuple[int, int]]:
    """For each hard negative: how many replies it befell, and how many of them got a label for it."""
    befell: dict[str, set[str]] = {}
    fooled: dict[str, set[str]] = {}
    for name, (kind, response_id) in record.traps:
        befell.setdefault(name, set()).add(response_id)
        if (kind, response_id) in found - record.truth:
            fooled.setdefault(name, set()).add(response_id)
    return {name: (len(befell[name]), len(fooled.get(name, ()))) for name in sorted(befell)}


def out_of_reach(record: Record) -> Counter[SignalKind]:
    """Labels whose reply and the chat's next request lie in two conversations."""
    before: dict[str, Event] = {}
    parted: set[str] = set()
    for event in record.events:
        chat = event.data.response_id.rpartition("-")[0]
        if chat in before and before[chat].key != event.key:
            parted.add(before[chat].data.response_id)
        before[chat] = event
    return Counter(kind for kind, response_id in record.truth if response_id in parted)


def scored_rephrasings(record: Record, found: set[Label]) -> list[tuple[float, bool]]:
    """How surely each next message asks the same again, and whether it does.

    inf where it says so or repeats the question; -inf where it objects, or is not worth a score. To an edited
    reply a message says nothing.
    """
    edited = {response_id for kind, response_id in found if kind is SignalKind.EDIT}
    said = [one for events in by_conversation(record) for one in answered(fold(events))]
    return [
        (_surely(one), (SignalKind.REPHRASE, one.source.response_id) in record.truth)
        for one in said
        if one.source.response_id not in edited
    ]


def _surely(one: Answered) -> float:
    kind = reaction(one.question, one.source.reply, one.following)
    if kind is SignalKind.CORRECTION:
        return -math.inf
    if kind is not SignalKind.REPHRASE and comparable(one.question, one.following):
        return score(one.question, one.following, WEIGHTS, BIAS)
    return math.inf if kind is SignalKind.REPHRASE else -math.inf


@cache
def labelled(name: str, chats: int = CHATS) -> Record:
    material, manners, seed = SETS[name]
    return traffic(material, manners, seed=seed, chats=chats)


@cache
def measured(name: str) -> tuple[Record, set[Label]]:
    record = labelled(name)
    return record, inferred(record)
