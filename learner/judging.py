"""One run of the judge: which pairs, in which order, and its answers into the event log.

Ids follow from judge, constitution and replies alone: a run that was cut short goes on where it stopped, and
what is judged once is never asked again.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Literal, NamedTuple

import msgspec
import sqlalchemy as sa
from prometheus_client import Counter

from feedback import codec, database, keyring, store
from feedback.conversations import Conversation, Turn, fold
from feedback.eventlog import EventLog, Topic
from feedback.events import Event, SignalKind, SignalReceived, signal_event
from feedback.implicit import infer
from feedback.judgements import PEOPLES, disliked, judgement_id, rivals
from feedback.pairs import split_of
from feedback.text import canonical
from learner import judge
from learner.config import Judge
from learner.constitution import OVERALL, Constitution, Principle
from learner.errors import JudgeError, JudgeRefused
from learner.judge import Answer, Ask, Limits

UNUSABLE = Counter(
    "ratchet_learner_judge_unusable_answers_total", "Comparisons under a principle without a usable answer."
)
RECORDED = Counter("ratchet_learner_judge_judgements_total", "Judgements recorded, by outcome.", ["outcome"])

SOURCE = "ratchet/judge"
PRINCIPAL = "ratchet"
MAX_REFUSALS = 5
"""So many cases refused, and none judged: something is wrong with more than one conversation."""
_DIGITS = 6
_EVENT_IDS = "signal-judgement-"
_CHUNK = 200
_READ = 500

Outcome = Literal["judged", "unusable", "revised", "not revised", "refused"]


class Judging(msgspec.Struct, frozen=True, kw_only=True):
    """Who judges, by what, and how much of it."""

    config: Judge
    constitution: Constitution
    heldout_fraction: float
    retry_window_s: float

    @property
    def name(self) -> str:
        """The judge's account: the same model, asked the same under the same constitution, is one judge."""
        key = canonical([self.config.model, self.constitution.name, judge.PROTOCOL])
        return f"judge-{blake2b(key, digest_size=8).hexdigest()}"

    @property
    def limits(self) -> Limits:
        return Limits(
            answer_tokens=self.config.answer_tokens,
            revision_tokens=self.config.revision_tokens,
            max_chars=self.config.max_chars,
        )


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A reply to judge: against another one, or against its own revision under `principle`."""

    signal_id: str
    conversation_id: str
    reply: Turn
    other: Turn | None = None
    principle: Principle | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case. Without a `value` it is recorded all the same, so that nobody asks again."""

    case: Case
    outcome: Outcome
    answers: dict[str, Answer] = {}
    value: float | None = None
    """Probability that the reply is better than what it was compared with."""
    revision: str | None = None


def run(
    judging: Judging, ask: Ask, state: sa.Engine, log: EventLog, clock: Callable[[], datetime]
) -> Tally[Outcome]:
    """Judge what the limits allow; a judgement is durable before it is counted.

    Raises: JudgeError, and whatever was judged, also meanwhile, is kept; StateUnavailable; LogError.
    """
    cases = choose(judging, state, log)
    done: Tally[Outcome] = Tally()
    failure: JudgeError | None = None
    with ThreadPoolExecutor(judging.config.max_concurrent, thread_name_prefix="judge") as pool:
        running = [pool.submit(decide, judging, ask, case) for case in cases]
        try:
            for finished in as_completed(running):
                if finished.cancelled():
                    continue
                try:
                    verdict = finished.result()
                except JudgeRefused as e:
                    done["refused"] += 1
                    failure = failure or (e if done["refused"] == done.total() == MAX_REFUSALS else None)
                except JudgeError as e:
                    failure = failure or e
                else:
                    _record(judging, verdict, state, log, clock())
                    done[verdict.outcome] += 1
                if failure is not None:
                    _cancel(running)
        finally:
            _cancel(running)
    if failure is not None:
        kept = done.total() - done["refused"]
        raise JudgeError(
            f"{failure}\n{kept} of {len(cases)} cases were judged and are kept; the next run goes on there"
        ) from failure
    return done


def choose(judging: Judging, state: sa.Engine, log: EventLog) -> list[Case]:
    """What to judge: first what measures the judge, then pairs that nobody compared, then disliked replies.

    In an order that only the data decide; nothing that is recorded already, nothing held out but to measure.
    Raises: StateUnavailable, LogError.
    """
    config = judging.config
    with database.reading(state) as tx:
        waiting = _waiting(tx, log)
        compared = store.conversations_with(tx, "pair", PEOPLES)
        graded = store.conversations_with(tx, "grade", tuple(SignalKind))
        gold = _pairs(judging, _walk(tx, compared, waiting), compared_by_people=True)
        pairs = _pairs(judging, _walk(tx, _every_conversation(tx), waiting), compared_by_people=False)
        revisions = _revisions(judging, _walk(tx, graded, waiting))
        return [
            *islice(gold, config.max_gold_pairs),
            *islice(pairs, config.max_pairs),
            *islice(revisions, config.max_revisions),
        ]


def decide(judging: Judging, ask: Ask, case: Case) -> Verdict:
    """Ask the judge. Raises: JudgeError."""
    if case.principle is not None:
        return _revised(judging, ask, case, case.principle)
    assert case.other is not None
    answers = _compare(judging, ask, case, case.other.reply)
    found = judge.overall(judging.constitution, answers)
    if found is None:
        return Verdict(case=case, outcome="unusable")
    return Verdict(case=case, outcome="judged", answers=answers, value=found.p)


def event_of(judging: Judging, verdict: Verdict, now: datetime) -> Event:
    """The verdict as it goes into the log."""
    case = verdict.case
    reasons = [f"constitution {judging.constitution.name}", f"judge {judging.config.model}"]
    if case.principle is not None:
        reasons.append(f"revised under {case.principle.id}")
    found = judge.overall(judging.constitution, verdict.answers)
    answers = verdict.answers | ({OVERALL: found} if found else {})
    signal = SignalReceived(
        signal_id=case.signal_id,
        response_id=case.reply.response_id,
        other_response_id=case.other.response_id if case.other else None,
        conversation_id=case.conversation_id,
        principal=PRINCIPAL,
        user=judging.name,
        kind=SignalKind.JUDGEMENT,
        value=None if verdict.value is None else round(verdict.value, _DIGITS),
        text=verdict.revision,
        reasons=tuple(reasons),
        dimensions={name: round(a.p, _DIGITS) for name, a in verdict.answers.items()},
        position_gaps={name: round(a.gap, _DIGITS) for name, a in answers.items()},
        received_at=now,
    )
    return signal_event(signal, SOURCE)


def _revised(judging: Judging, ask: Ask, case: Case, principle: Principle) -> Verdict:
    """Critique, revise, prefer: the revision counts if the judge takes it in either order."""
    reply = case.reply
    revision = judge.revise(ask, principle, reply.prompt, reply.reply, judging.limits)
    if revision is None:
        return Verdict(case=case, outcome="not revised")
    answers = _compare(judging, ask, case, revision)
    found = judge.overall(judging.constitution, answers)
    if found is None or not judge.prefers_revision(judging.constitution, answers, principle):
        return Verdict(case=case, outcome="not revised", answers=answers)
    return Verdict(case=case, outcome="revised", answers=answers, value=found.p, revision=revision)


def _compare(judging: Judging, ask: Ask, case: Case, other: str) -> dict[str, Answer]:
    constitution, reply = judging.constitution, case.reply
    answers = judge.compare(ask, constitution, reply.prompt, reply.reply, other, judging.limits)
    UNUSABLE.inc(len(constitution.principle) - len(answers))
    return answers


def _record(judging: Judging, verdict: Verdict, state: sa.Engine, log: EventLog, now: datetime) -> None:
    """A revision repeats what the reply's user was told: it is sealed under their key, not the judge's."""
    event = event_of(judging, verdict, now)
    with database.writing(state) as tx:
        key = keyring.obtain(tx, verdict.case.reply.user, now)
    log.append(Topic.SIGNALS, event.key, event.id, codec.encode(event, key)).result()
    RECORDED.labels(verdict.outcome).inc()


def _cancel(running: Iterable["Future[Verdict]"]) -> None:
    for future in running:
        future.cancel()


class _Walked(NamedTuple):
    conversation_id: str
    conversation: Conversation
    recorded: frozenset[str]
    """Ids of the events that are there already."""


def _walk(tx: sa.Connection, ids: Iterable[str], waiting: frozenset[str]) -> Iterator[_Walked]:
    remaining = iter(ids)
    while chunk := list(islice(remaining, _CHUNK)):
        stored = store.payloads_of(tx, chunk)
        for conversation_id in chunk:
            events = keyring.opened(tx, stored.get(conversation_id, ()))
            yield _Walked(conversation_id, fold(events), waiting | {e.id for e in events})


def _every_conversation(tx: sa.Connection) -> Iterator[str]:
    after = ""
    while ids := store.conversation_ids(tx, after, _CHUNK):
        yield from ids
        after = ids[-1]


def _waiting(tx: sa.Connection, log: EventLog) -> frozenset[str]:
    """Ids of judgements in the log that the pipeline has not folded yet."""
    offsets, found = store.load_offsets(tx), set[str]()
    for partition in log.partitions(Topic.SIGNALS):
        at = offsets.get((Topic.SIGNALS, partition), 0)
        while records := log.read(Topic.SIGNALS, partition, at, limit=_READ):
            found |= {r.event_id for r in records if r.event_id.startswith(_EVENT_IDS)}
            at = records[-1].position.offset + 1
    return frozenset(found)


def _pairs(judging: Judging, walked: Iterable[_Walked], *, compared_by_people: bool) -> Iterator[Case]:
    for at in walked:
        for pair in rivals(at.conversation):
            case = Case(
                signal_id=judgement_id(judging.name, pair.one.response_id, pair.other.response_id),
                conversation_id=at.conversation_id,
                reply=pair.one,
                other=pair.other,
            )
            wanted = (pair.people is not None) == compared_by_people
            if wanted and (compared_by_people or _trainable(judging, case)) and _is_new(case, at):
                yield case


def _revisions(judging: Judging, walked: Iterable[_Walked]) -> Iterator[Case]:
    for at in walked:
        signals = [*at.conversation.signals, *infer(at.conversation, retry_window_s=judging.retry_window_s)]
        for turn in disliked(at.conversation, signals):
            principle = _drawn(judging.constitution, turn.response_id)
            case = Case(
                signal_id=judgement_id(judging.name, turn.response_id, f"revision under {principle.id}"),
                conversation_id=at.conversation_id,
                reply=turn,
                principle=principle,
            )
            if _trainable(judging, case) and _is_new(case, at):
                yield case


def _drawn(constitution: Constitution, response_id: str) -> Principle:
    """One principle, drawn by hash, as Constitutional AI draws one at random for each revision."""
    digest = blake2b(response_id.encode(), digest_size=8, person=b"principle").digest()
    return constitution.principle[int.from_bytes(digest, "big") % len(constitution.principle)]


def _trainable(judging: Judging, case: Case) -> bool:
    return split_of(case.reply.prompt, (), heldout_fraction=judging.heldout_fraction) == "train"


def _is_new(case: Case, at: _Walked) -> bool:
    return f"signal-{case.signal_id}" not in at.recorded
