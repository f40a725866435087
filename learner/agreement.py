"""How far judges can be believed: agreement with gold on the same pairs, and position bias, by principle.

Of pairs of served replies; a judge's own revisions were seen by nobody else, so they measure nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path

import msgspec
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

from feedback import database, keyring, store
from feedback.conversations import fold
from feedback.events import Event, SignalKind, SignalReceived
from feedback.judgements import ordered, peoples_word
from feedback.pairs import pair
from learner.constitution import OVERALL
from learner.measures import wilson

_CHUNK = 200


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A judgement, and what people said of the same two replies."""

    judgement: SignalReceived
    people: float | None
    """Probability that the judgement's `response_id` is the better one; None when nobody was asked."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One judge under one principle, or overall."""

    judge: str
    reasons: tuple[str, ...]
    """Constitution and model, as in the events."""
    principle: str
    answers: int
    """Judgements that have an answer under it."""
    unusable: int
    """Judgements that have none."""
    flips: int
    """Answers in which the judge takes whatever is shown first, or whatever is shown second."""
    mean_gap: float
    """Mean of P(shown first) - P(shown second): above 0 it leans to the first place."""
    with_people: int
    """Answers on pairs that are gold, without ties of either."""
    agreed: int
    share: float
    low: float
    high: float
    """Share of `with_people` that agree, with Wilson's 95 % interval."""


def collect(state: sa.Engine) -> list[Compared]:
    """Every judgement that the pipeline has folded. Raises: StateUnavailable."""
    found: list[Compared] = []
    after = ""
    with database.reading(state) as tx:
        while ids := store.conversation_ids(tx, after, _CHUNK):
            for payloads in store.payloads_of(tx, ids).values():
                found += _of_conversation(keyring.opened(tx, payloads))
            after = ids[-1]
    return found


def measure(compared: Iterable[Compared]) -> list[Agreement]:
    """By judge, overall and by principle; in order of name."""
    by_judge: dict[str, list[Compared]] = defaultdict(list)
    for one in compared:
        by_judge[one.judgement.user].append(one)
    return [
        _agreement(judge, found, principle)
        for judge, found in sorted(by_judge.items())
        for principle in (OVERALL, *sorted({p for one in found for p in one.judgement.dimensions}))
    ]


def _of_conversation(events: Sequence[Event]) -> Iterable[Compared]:
    judgements = {
        e.id: e.data
        for e in events
        if isinstance(e.data, SignalReceived)
        and e.data.kind is SignalKind.JUDGEMENT
        and e.data.other_response_id is not None
    }
    if not judgements:
        return []
    conversation = fold(events)
    said = peoples_word(pair(conversation, conversation.signals))
    return [Compared(judgement=j, people=_people(j, said)) for j in judgements.values()]


def _people(judgement: SignalReceived, said: Mapping[tuple[str, str], float]) -> float | None:
    one, other = judgement.response_id, judgement.other_response_id or ""
    value = said.get(ordered(one, other))
    return value if value is None or one <= other else 1.0 - value


def _answer(judgement: SignalReceived, principle: str) -> tuple[float, float] | None:
    """Probability and position gap under one principle; None without a usable answer."""
    p = judgement.value if principle == OVERALL else judgement.dimensions.get(principle)
    return None if p is None else (p, judgement.position_gaps.get(principle, 0.0))


def _agreement(judge: str, found: Sequence[Compared], principle: str) -> Agreement:
    given = [(answer, one.people) for one in found if (answer := _answer(one.judgement, principle))]
    answers = [answer for answer, _ in given]
    decided = [(p, people) for (p, _), people in given if people is not None and p != 0.5 and people != 0.5]
    agreed = sum((p > 0.5) == (people > 0.5) for p, people in decided)
    share = wilson(agreed, len(decided))
    return Agreement(
        judge=judge,
        reasons=found[0].judgement.reasons[:2],
        principle=principle,
        answers=len(answers),
        unusable=len(found) - len(answers),
        flips=sum(abs(2.0 * p - 1.0) < abs(gap) for p, gap in answers),
        mean_gap=fsum(gap for _, gap in answers) / len(answers) if answers else 0.0,
        with_people=len(decided),
        agreed=agreed,
        share=share.value,
        low=share.low,
        high=share.high,
    )


def write(found: Sequence[Agreement], path: Path) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    draft.replace(path)


def table(found: Sequence[Agreement]) -> Table:
    """For people."""
    made = Table("judge", "principle", "answers", "unusable", "flips", "gap", "with people", "agrees (95 %)")
    for a in found:
        made.add_row(
            Text(", ".join(a.reasons)) if a.principle == OVERALL else "",
            Text(a.principle),
            f"{a.answers}",
            f"{a.unusable}",
            f"{a.flips / a.answers:.0%}" if a.answers else "–",
            f"{a.mean_gap:+.2f}",
            f"{a.with_people}",
            f"{a.share:.2f} [{a.low:.2f}, {a.high:.2f}]" if a.with_people else "–",
        )
    return made
