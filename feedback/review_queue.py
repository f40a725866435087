"""The review queue as it stands in the pipeline's state: what a rater is shown next, opened at that moment.

The state holds ids and lots, no words of the queue's own. What is shown comes from the sealed events with the
keys that are there now, so a user who was erased, or who withheld consent, is shown to nobody from then on.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import sqlalchemy as sa

from feedback import database, keyring, review, store
from feedback.config import Review
from feedback.conversations import Turn, fold
from feedback.review import GIVEN_UP, KNOWN, UNASKED, Item, Question, Rules

LOOKED_AT = 500
"""Waiting items among which the next is chosen, those with the smallest lots: no other can be among the first
LOOKED_AT * random, since w / u is at most 1 / u and at least random / u."""
SCORED = 2000
"""Waiting items that a run of the learner scores, the smallest lots first."""
_DONE_LOOKED_AT = 200
_BUSIEST = 12
"""Calibration can bring an item more answers than are wanted; with more than this many it is left alone."""


class Shown(NamedTuple):
    """A question with the words that go with it."""

    question: Question
    conversation_id: str
    one: Turn
    other: Turn


class Lengths(NamedTuple):
    """Items of the queue by how far they are."""

    waiting: int
    begun: int
    done: int
    given_up: int


class ReviewQueue:
    """Blocking; safe to use from several threads. Every method raises StateUnavailable."""

    def __init__(self, url: str, config: Review) -> None:
        self._state = store.open_state(url)
        self._rules = Rules(
            raters=config.raters_per_item, random=config.random_share, calibration=config.calibration_share
        )

    def next_for(self, rater: str, answered: Collection[str] = ()) -> Shown | None:
        """What to ask this rater; None when there is nothing.

        Args: answered, ids of items that the rater answered a moment ago, whose events are not folded yet.
        """
        passed_over = set(answered)
        with database.reading(self._state) as tx:
            while found := self._choose(tx, rater, passed_over):
                conversation_id, question = found
                if replies := _opened(tx, conversation_id, question.item):
                    return Shown(question, conversation_id, *replies)
                passed_over.add(question.item.item_id)
        return None

    def lengths(self) -> Lengths:
        with database.reading(self._state) as tx:
            return lengths(tx, self._rules.raters)

    def close(self) -> None:
        self._state.dispose()

    def _choose(
        self, tx: sa.Connection, rater: str, passed_over: Collection[str]
    ) -> tuple[str, Question] | None:
        wanted = self._rules.raters
        places: dict[str, str] = {}

        def read(stages: Iterable[str], limit: int) -> list[Item]:
            found = [(c, i) for c, i in store.items(tx, stages, limit) if i.item_id not in passed_over]
            places.update((item.item_id, conversation_id) for conversation_id, item in found)
            return [item for _, item in found]

        waiting = read([UNASKED], LOOKED_AT)
        begun = read(map(str, range(1, wanted)), LOOKED_AT)
        done = read([KNOWN, *map(str, range(wanted, _BUSIEST + 1))], _DONE_LOOKED_AT)
        scores = store.disagreements(tx, [item.item_id for item in waiting])
        scored = [(item, scores.get(item.item_id)) for item in waiting]
        question = review.choose(rater, scored, begun, done, self._rules)
        return None if question is None else (places[question.item.item_id], question)


def lengths(tx: sa.Connection, wanted: int) -> Lengths:
    """Args: wanted, answers for each item."""
    stages = store.item_stages(tx)
    answered = {int(stage): n for stage, n in stages.items() if stage.isdecimal()}
    return Lengths(
        waiting=answered.pop(0, 0),
        begun=sum(n for raters, n in answered.items() if raters < wanted),
        done=stages.get(KNOWN, 0) + sum(n for raters, n in answered.items() if raters >= wanted),
        given_up=stages.get(GIVEN_UP, 0),
    )


def unanswered(state: sa.Engine) -> list[tuple[str, Turn, Turn]]:
    """Item id and replies of the waiting items that will be drawn soonest.

    Raises: StateUnavailable.
    """
    with database.reading(state) as tx:
        return [
            (item.item_id, *replies)
            for conversation_id, item in store.items(tx, [UNASKED], SCORED)
            if (replies := _opened(tx, conversation_id, item))
        ]


def _opened(tx: sa.Connection, conversation_id: str, item: Item) -> tuple[Turn, Turn] | None:
    """None when one of the two replies may not be shown any more."""
    stored = store.payloads_of(tx, [conversation_id])
    conversation = fold(keyring.opened(tx, stored.get(conversation_id, ())))
    one, other = conversation.turn(item.one), conversation.turn(item.other)
    still = {i.item_id for i in review.items(conversation, conversation.signals)}
    return None if one is None or other is None or item.item_id not in still else (one, other)
