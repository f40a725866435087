"""Two replies to one prompt state: from what one conversation shows, and from grades across conversations.

Also demonstrations, and the stable split that keeps held-out users and prompts out of training for ever.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from heapq import nsmallest
from math import fsum

import msgspec

from feedback.comparisons import by_design, hasty
from feedback.conversations import Conversation, Signal, Turn
from feedback.events import Message, SignalKind
from feedback.grades import (
    COMPARISON_WEIGHT,
    EDIT_P,
    JUDGEMENT,
    LABEL_WEIGHT,
    REGENERATION,
    REVIEW_WEIGHT,
    VOLUNTEERED,
    Prior,
)
from feedback.implicit import MAX_EDIT_DISTANCE, MIN_EDIT_DISTANCE
from feedback.records import Demonstration, Grade, Pair, Split
from feedback.text import canonical, content_text, content_words, distance, near_duplicate_key, plain

FULL_WEIGHT_EDIT_DISTANCE = 0.2
"""An edit that changes this share of the words, or more, has weight 1."""
MIN_JUDGEMENT_LEAN = 0.1
"""A judgement nearer to a tie than this, by |2 value - 1|, makes no pair; one that follows the order is."""
MAX_CONTRASTS_PER_PROMPT = 64
MAX_REPLIES_PER_SIDE = 32
_SUBSTANTIVE_WORDS = 2
"""A first message with fewer content words is a greeting: it does not name what the conversation is about."""

_EVALUATIVE = frozenset(
    {SignalKind.THUMB, SignalKind.RATING, SignalKind.LABEL, SignalKind.COMMENT, SignalKind.OUTCOME}
)
_POSITIVE_DEEDS = frozenset({SignalKind.CONTINUATION, SignalKind.COPY, SignalKind.THANKS})
_NEGATIVE_DEEDS = frozenset(
    {SignalKind.REGENERATION, SignalKind.EDIT, SignalKind.CORRECTION, SignalKind.REPHRASE}
)


def pair(conversation: Conversation, signals: Sequence[Signal]) -> list[Pair]:
    """Pairs that one conversation shows; what two signals show alike is one pair with the events of both."""
    found = [
        *(p for s in _latest_edits(signals) for p in _edited(conversation, s)),
        *(p for s in signals if s.kind is SignalKind.REGENERATION for p in _kept(conversation, s, signals)),
        *(
            p
            for s in signals
            if s.kind in (SignalKind.COMPARISON, SignalKind.LABEL)
            for p in _compared(conversation, s)
        ),
        *(p for s in signals if s.kind is SignalKind.JUDGEMENT for p in _judged(conversation, s)),
        *(p for s in signals if s.kind is SignalKind.REVIEW for p in _reviewed(conversation, s)),
    ]
    merged: dict[str, Pair] = {}
    for made in sorted(found, key=lambda p: (p.pair_id, p.event_ids)):
        merged[made.pair_id] = _merge(merged[made.pair_id], made) if made.pair_id in merged else made
    return list(merged.values())


def demonstrate(conversation: Conversation, signals: Iterable[Signal]) -> list[Demonstration]:
    """The replies as users would have them; also rewrites beyond MAX_EDIT_DISTANCE, if a client sent them."""
    demonstrations: dict[str, Demonstration] = {}
    for signal in _latest_edits(signals):
        turn = conversation.turn(signal.response_id)
        if turn is None or not turn.usable or signal.text is None:
            continue
        apart = distance(turn.reply, signal.text)
        if apart >= MIN_EDIT_DISTANCE:
            made = _demonstration(turn, signal, signal.text, apart)
            demonstrations[made.demonstration_id] = made
    return list(demonstrations.values())


def contrast(grades: Iterable[Grade]) -> list[Pair]:
    """Well against badly graded replies to the same prompt state, whoever asked.

    Grades of one wording are pooled: p is their weighted mean. P(better) = (1 + p_good - p_bad) / 2, so that
    two uncertain grades make an uncertain pair. A grade's weight is divided among the pairs it is used in.
    At most MAX_CONTRASTS_PER_PROMPT per prompt state, chosen by hash.
    """
    by_prompt: dict[str, list[Grade]] = defaultdict(list)
    for graded in grades:
        if graded.kind in _EVALUATIVE:
            by_prompt[graded.prompt_digest].append(graded)
    return [made for digest in sorted(by_prompt) for made in _contrast_one_prompt(by_prompt[digest])]


def split_of(prompt: Sequence[Message], users: Iterable[str], *, heldout_fraction: float) -> Split | None:
    """Where a row belongs, for ever: the prompt's cluster decides, by hash, and so does each user.

    heldout: a held-out cluster, whoever asked. train: neither the cluster nor any user is held out. None: a
    held-out user on a training prompt; the row is set aside, since training on it would spoil the held-out
    users, and testing on it would test on prompts that were trained on.
    """
    if _bucket("prompt", cluster_of(prompt)) < heldout_fraction:
        return "heldout"
    return None if any(_bucket("user", user) < heldout_fraction for user in users) else "train"


def cluster_of(prompt: Sequence[Message]) -> str:
    """The near-duplicate cluster: what the conversation's first substantive question is about.

    All prompt states of a conversation share it, so that no later one carries a held-out reply into training.
    """
    questions = [content_text(m) for m in prompt if m.get("role") == "user"]
    substantive = next((q for q in questions if len(content_words(q)) >= _SUBSTANTIVE_WORDS), None)
    return near_duplicate_key(" ".join(questions) if substantive is None else substantive)


def _bucket(what: str, key: str) -> float:
    digest = blake2b(f"split\x1f{what}\x1f{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _edited(conversation: Conversation, signal: Signal) -> list[Pair]:
    turn = conversation.turn(signal.response_id)
    if turn is None or not turn.usable or signal.text is None:
        return []
    apart = distance(turn.reply, signal.text)
    if not MIN_EDIT_DISTANCE <= apart <= MAX_EDIT_DISTANCE:
        return []
    return [
        _pair(
            turn,
            signal,
            chosen=signal.text,
            rejected=turn,
            p=EDIT_P,
            weight=_edit_weight(apart),
            reason=f"edit of {apart:.0%} of the words",
        )
    ]


def _edit_weight(apart: float) -> float:
    return min(1.0, apart / FULL_WEIGHT_EDIT_DISTANCE)


def _latest_edits(signals: Iterable[Signal]) -> list[Signal]:
    """One edit per user and reply: the client's if there is one, else what the traffic showed."""
    latest: dict[tuple[str, str], Signal] = {}
    for signal in sorted(signals, key=lambda s: (not s.inferred, s.at)):
        if signal.kind is SignalKind.EDIT:
            latest[signal.user, signal.response_id] = signal
    return list(latest.values())


def _kept(conversation: Conversation, signal: Signal, signals: Sequence[Signal]) -> list[Pair]:
    """The reply that a chain of regenerations ended at, if it was kept, over the one replaced here."""
    first = conversation.turn(signal.response_id)
    last = _end_of_chain(conversation, signal, signals)
    if first is None or last is None or not comparable(first, last):
        return []
    evidence = _why_kept(last, signals)
    if not evidence or any(_is_positive(s) for s in signals if s.response_id == first.response_id):
        return []
    found = _pair(
        first,
        signal,
        chosen=last,
        rejected=first,
        p=REGENERATION.p,
        weight=REGENERATION.weight,
        reason=f"asked again, then kept ({', '.join(sorted({s.kind for s in evidence}))})",
    )
    events = {*found.event_ids, *(e for s in evidence for e in s.event_ids)}
    return [msgspec.structs.replace(found, event_ids=tuple(sorted(events)))]


def _end_of_chain(conversation: Conversation, signal: Signal, signals: Sequence[Signal]) -> Turn | None:
    """The reply that stood when regenerating was over; None while its turn is unknown."""
    replaced_by = {
        s.response_id: s.other_response_id
        for s in signals
        if s.kind is SignalKind.REGENERATION and s.other_response_id
    }
    at = signal.other_response_id or replaced_by.get(signal.response_id) or _next_reply(conversation, signal)
    visited = {signal.response_id}
    while at in replaced_by and at not in visited:
        visited.add(at)
        at = replaced_by[at]
    return conversation.turn(at) if at and at != signal.response_id else None


def _next_reply(conversation: Conversation, signal: Signal) -> str:
    """The next complete reply to the same prompt state, when the client did not say which came instead."""
    first = conversation.turn(signal.response_id)
    if first is None:
        return ""
    later = (t for t in conversation.turns if t.digest == first.digest and t.started_at > first.started_at)
    return next((t.response_id for t in later if t.complete), "")


def _why_kept(turn: Turn, signals: Sequence[Signal]) -> list[Signal]:
    """The signals that show the reply was kept; none when anything speaks against it."""
    about = [s for s in signals if s.response_id == turn.response_id]
    if any(_is_negative(s) for s in about):
        return []
    return [s for s in about if _is_positive(s)]


def _is_positive(signal: Signal) -> bool:
    well_graded = signal.kind in _EVALUATIVE and signal.value is not None and signal.value > 0.5
    return signal.kind in _POSITIVE_DEEDS or well_graded


def _is_negative(signal: Signal) -> bool:
    badly_graded = signal.kind in _EVALUATIVE and signal.value is not None and signal.value < 0.5
    return signal.kind in _NEGATIVE_DEEDS or badly_graded


def _compared(conversation: Conversation, signal: Signal) -> list[Pair]:
    one, other = conversation.turn(signal.response_id), conversation.turn(signal.other_response_id)
    if one is None or other is None or signal.value is None or not comparable(one, other):
        return []
    chosen, rejected = (one, other) if signal.value >= 0.5 else (other, one)
    offered = by_design(conversation, signal)
    if offered is not None and offered.dropped:
        return []
    p, weight = _preference(signal, max(signal.value, 1.0 - signal.value), volunteered=offered is None)
    found = _pair(
        rejected,
        signal,
        chosen=chosen,
        rejected=rejected,
        p=p,
        weight=weight,
        reason=f"{signal.kind} {p:.2f}{'' if offered is None else ' of two side by side'}",
    )
    return [found if offered is None else msgspec.structs.replace(found, by_design=True, propensity=1.0)]


def _preference(signal: Signal, stated: float, *, volunteered: bool) -> Prior:
    """Strength, 1/2..1, and weight of a stated preference; one that nobody asked for is less sure.

    p = 1/2 + (2 VOLUNTEERED.p - 1) (stated - 1/2)
    """
    if signal.kind is SignalKind.LABEL:
        return Prior(stated, LABEL_WEIGHT)
    if volunteered:
        return Prior(0.5 + (2.0 * VOLUNTEERED.p - 1.0) * (stated - 0.5), VOLUNTEERED.weight)
    return Prior(stated, COMPARISON_WEIGHT)


def _judged(conversation: Conversation, signal: Signal) -> list[Pair]:
    """A machine's preference between two served replies, or for its own revision over the reply.

        p = 1/2 + (JUDGEMENT.p - 1/2) lean        weight = JUDGEMENT.weight * lean        lean = |2 value - 1|

    So a judge that is sure of itself gets the prior, which `accuracy` then fits.
    """
    turn, value = conversation.turn(signal.response_id), signal.value
    if turn is None or value is None:
        return []
    sides = (
        _served_sides(turn, conversation.turn(signal.other_response_id), value)
        if signal.text is None
        else _revised_sides(turn, signal.text, value)
    )
    lean = abs(2.0 * value - 1.0)
    if sides is None or lean < MIN_JUDGEMENT_LEAN:
        return []
    return [
        _pair(
            turn,
            signal,
            chosen=sides[0],
            rejected=sides[1],
            p=0.5 + (JUDGEMENT.p - 0.5) * lean,
            weight=JUDGEMENT.weight * lean,
            reason=f"judgement {0.5 + lean / 2.0:.2f}{'' if signal.text is None else ' of its own revision'}",
        )
    ]


def _reviewed(conversation: Conversation, signal: Signal) -> list[Pair]:
    """One rater's answer; `consensus` puts those about one pair together."""
    one, other = conversation.turn(signal.response_id), conversation.turn(signal.other_response_id)
    value = signal.value
    if one is None or other is None or value is None or not comparable(one, other):
        return []
    if hasty(signal, one, other):
        return []
    chosen, rejected = (one, other) if value >= 0.5 else (other, one)
    dimensions = {d: v if chosen is one else 1.0 - v for d, v in signal.dimensions.items()}
    found = _pair(
        rejected,
        signal,
        chosen=chosen,
        rejected=rejected,
        p=max(value, 1.0 - value),
        weight=REVIEW_WEIGHT,
        reason=", ".join(("review", *signal.reasons)),
    )
    return [msgspec.structs.replace(found, dimensions=dimensions, propensity=1.0)]


def _served_sides(one: Turn, other: Turn | None, value: float) -> tuple[Turn | str, Turn] | None:
    if other is None or not comparable(one, other):
        return None
    return (one, other) if value > 0.5 else (other, one)


def _revised_sides(turn: Turn, revision: str, value: float) -> tuple[Turn | str, Turn] | None:
    """The revision over the reply; never the other way round: nobody served the revision."""
    worthwhile = turn.usable and value < 0.5 and distance(turn.reply, revision) >= MIN_EDIT_DISTANCE
    return (revision, turn) if worthwhile else None


def comparable(one: Turn, other: Turn) -> bool:
    """Two usable replies to the same prompt state that are not the same text."""
    return (
        one.usable
        and other.usable
        and one.digest == other.digest
        and distance(one.reply, other.reply) >= MIN_EDIT_DISTANCE
    )


def _pair(
    turn: Turn, signal: Signal, *, chosen: Turn | str, rejected: Turn, p: float, weight: float, reason: str
) -> Pair:
    """`chosen` is a turn, or the text of an edit, which was never served."""
    text, response_id = (chosen, "") if isinstance(chosen, str) else (chosen.reply, chosen.response_id)
    turns = {turn.event_id, rejected.event_id, *(() if isinstance(chosen, str) else (chosen.event_id,))}
    return Pair(
        pair_id=_id("pair", signal.kind, signal.user, response_id or text, rejected.response_id),
        prompt_digest=turn.digest,
        prompt=turn.prompt,
        chosen=text,
        rejected=rejected.reply,
        chosen_response_id=response_id,
        rejected_response_id=rejected.response_id,
        user=signal.user,
        kind=signal.kind,
        p=p,
        weight=weight,
        propensity=min(t.propensity for t in (turn, rejected, chosen) if isinstance(t, Turn)),
        reason=reason,
        event_ids=tuple(sorted(turns | set(signal.event_ids))),
        at=signal.at,
    )


def _merge(one: Pair, same: Pair) -> Pair:
    return msgspec.structs.replace(
        one, event_ids=tuple(sorted({*one.event_ids, *same.event_ids})), at=max(one.at, same.at)
    )


def _demonstration(turn: Turn, signal: Signal, text: str, apart: float) -> Demonstration:
    return Demonstration(
        demonstration_id=_id("demonstration", signal.user, turn.response_id),
        prompt_digest=turn.digest,
        prompt=turn.prompt,
        reply=text,
        user=signal.user,
        weight=_edit_weight(apart),
        event_ids=tuple(sorted({turn.event_id, *signal.event_ids})),
        at=signal.at,
    )


class _Pool(msgspec.Struct, frozen=True):
    """Every grade of one wording of a reply."""

    grades: tuple[Grade, ...]
    p: float
    weight: float

    @property
    def key(self) -> str:
        return min(g.grade_id for g in self.grades)


def _contrast_one_prompt(grades: Sequence[Grade]) -> list[Pair]:
    by_wording: dict[str, list[Grade]] = defaultdict(list)
    for graded in grades:
        by_wording[plain(graded.reply)].append(graded)
    if len(by_wording) < 2:
        return []
    pools = [_pool(same) for same in by_wording.values()]
    good = _some([pool for pool in pools if pool.p > 0.5], MAX_REPLIES_PER_SIDE)
    bad = _some([pool for pool in pools if pool.p < 0.5], MAX_REPLIES_PER_SIDE)
    drawn = nsmallest(
        MAX_CONTRASTS_PER_PROMPT,
        ((_id("pair", "contrast", g.key, b.key), g, b) for g in good for b in bad),
        key=lambda candidate: candidate[0],
    )
    uses: dict[str, int] = defaultdict(int)
    for _, g, b in drawn:
        uses[g.key] += 1
        uses[b.key] += 1
    return [
        _contrasted(pair_id, g, b, min(g.weight / uses[g.key], b.weight / uses[b.key]))
        for pair_id, g, b in drawn
    ]


def _pool(grades: Iterable[Grade]) -> _Pool:
    ordered = sorted(grades, key=lambda g: g.grade_id)
    weight = fsum(g.weight for g in ordered)
    p = fsum(g.p * g.weight for g in ordered) / weight if weight else 0.5
    return _Pool(tuple(ordered), p, min(1.0, weight))


def _some(pools: list[_Pool], limit: int) -> list[_Pool]:
    return nsmallest(limit, pools, key=lambda pool: pool.key)


def _contrasted(pair_id: str, good: _Pool, bad: _Pool, weight: float) -> Pair:
    best, worst = good.grades[0], bad.grades[0]
    everything = (*good.grades, *bad.grades)
    raters = tuple(dict.fromkeys(g.user for g in (*bad.grades, *good.grades)))
    return Pair(
        pair_id=pair_id,
        prompt_digest=worst.prompt_digest,
        prompt=worst.prompt,
        chosen=best.reply,
        rejected=worst.reply,
        chosen_response_id=best.response_id,
        rejected_response_id=worst.response_id,
        user=raters[0],
        raters=raters,
        kind=worst.kind,
        p=(1.0 + good.p - bad.p) / 2.0,
        weight=weight,
        reason=f"graded {good.p:.2f} against {bad.p:.2f} on the same prompt",
        event_ids=tuple(sorted({e for g in everything for e in g.event_ids})),
        at=max(g.at for g in everything),
    )


def _id(what: str, *parts: str) -> str:
    return f"{what}-{blake2b(canonical(parts), digest_size=12).hexdigest()}"
