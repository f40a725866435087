"""What changed between two snapshots, and why, as far as their rows and manifests tell. Prints nothing.

A row's id is what it is about: the same reply, user and kind of signal have the same id in every snapshot.
Causes are asked for in order, the surest first; what none of them explains is put down to the others' rows:
weights depend on what all accounts say (trust, subjects), and contrasts on all grades of their prompt.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from math import fsum
from typing import NamedTuple

import msgspec

from feedback.events import SignalKind
from feedback.raters import EVEN_SHARES, raters_of
from feedback.records import Demonstration, Grade, Pair, PromptState
from feedback.snapshots import Manifest, Snapshot, id_of

Row = Pair | Grade | Demonstration | PromptState

_SAME_RATIO = 1e-3
"""Weights are rounded: ratios this close are the same ratio."""
_AT_THE_CAP = 1.0 - 1e-3
_SPLITTING = ("heldout_fraction",)
"""Settings by which rows come, go and move."""
_SETTINGS = (*_SPLITTING, "account_cap", "subject_cap", "judgement_cap")
_LISTED_EVENTS = 3


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    RELABELLED = "re-labelled"
    """Another soft label; the weight may differ too."""
    REWEIGHTED = "re-weighted"
    MOVED = "moved"
    """From one split to the other."""
    REWRITTEN = "rewritten"
    """Other text, events or count under the same id, label and weight."""


class Why(StrEnum):
    EVENTS = "new events"
    ERASED = "events erased"
    QUARANTINED = "account quarantined"
    RELEASED = "account released"
    FIT = "fit"
    """The kind of signal was found more or less often right than before."""
    HABIT = "user's habit"
    """Thumbs are measured against what else their user, and everybody, presses."""
    ACCOUNT = "account's weight"
    """All its rows in this split became lighter or heavier by one factor: trust, or the newcomers' ramp."""
    ACCOUNT_CAP = "account cap"
    SETTINGS = "settings"
    CODE = "code version"
    OTHERS = "others' rows"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a row stands in one snapshot."""

    split: str
    p: float
    """Soft label; 1 for demonstrations and prompts, which have none."""
    weight: float
    """0 for prompts, which have none."""

    @property
    def evidence(self) -> float:
        """What the row pulls with: weight * (2p - 1); minus for a grade that is more likely bad."""
        return self.weight * (2.0 * self.p - 1.0)


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    table: str
    id: str
    kind: str
    """Of the signal; empty for demonstrations and prompts."""
    change: Change
    why: Why
    detail: str
    before: Standing | None
    after: Standing | None

    @property
    def size(self) -> float:
        """By how much the row pulls otherwise than before."""
        old, new = self.before, self.after
        return abs((new.evidence if new else 0.0) - (old.evidence if old else 0.0))


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """All changes of one table, kind, sort and cause."""

    table: str
    kind: str
    change: Change
    why: Why
    rows: int
    weight_before: float
    weight_after: float


class Fact(msgspec.Struct, frozen=True):
    """A line of the manifests that differs."""

    name: str
    before: str
    after: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    old: str
    new: str
    facts: list[Fact]
    totals: list[Total]
    """Most rows first within table and change."""
    rows: list[RowChange]
    """Largest first."""


def compare(old: Snapshot, new: Snapshot, *, erased: Collection[str] = ()) -> Difference:
    """Every row that differs, with its cause.

    Args: erased, those of `events_gone(old, new)` that the state no longer has.
    """
    before, after = _rows(old), _rows(new)
    seen = _seen(old, new, erased)
    rows = [
        _row_change(place, before.get(place), after.get(place), seen)
        for place in before.keys() | after.keys()
        if before.get(place) != after.get(place)
    ]
    rows.sort(key=lambda c: (-c.size, c.table, c.id))
    return Difference(
        old=old.manifest.name,
        new=new.manifest.name,
        facts=list(_facts(old.manifest, new.manifest)),
        totals=_totals(rows),
        rows=rows,
    )


def events_gone(old: Snapshot, new: Snapshot) -> set[str]:
    """Events that rows of `old` name and no row of `new`: taken back, in quarantine or erased."""
    return _event_ids(old) - _event_ids(new)


class _Placed(NamedTuple):
    """A row and how it stands; equal when nothing about it differs."""

    row: Row
    standing: Standing


class _Seen(NamedTuple):
    """What causes are told by, worked out once for both snapshots."""

    old: Manifest
    new: Manifest
    events_before: set[str]
    erased: frozenset[str]
    quarantined: dict[str, str]
    """Accounts in quarantine since, with the reason."""
    released: dict[str, str]
    """Accounts no longer in quarantine, with the reason they were."""
    capped: set[tuple[str, str, str]]
    """Table, split and account of those at the account cap in either snapshot."""
    factors: dict[tuple[str, str], tuple[float, int]]
    """By split and account: what all its rows' weights were multiplied with, and how many rows."""


_Cause = tuple[Why, str]
_OTHERS: _Cause = (Why.OTHERS, "")
_RATERS: _Cause = (Why.OTHERS, "what its raters say of other pairs")


def _row_change(place: tuple[str, str], was: _Placed | None, now: _Placed | None, seen: _Seen) -> RowChange:
    table, row_id = place
    placed = now or was
    assert placed is not None
    if was is None:
        change, (why, detail) = Change.ADDED, _why_added(placed.row, seen)
    elif now is None:
        change, (why, detail) = Change.REMOVED, _why_removed(placed.row, seen)
    else:
        change, (why, detail) = _altered(table, was, now, seen)
    return RowChange(
        table=table,
        id=row_id,
        kind=str(getattr(placed.row, "kind", "")),
        change=change,
        why=why,
        detail=detail,
        before=was and was.standing,
        after=now and now.standing,
    )


def _altered(table: str, was: _Placed, now: _Placed, seen: _Seen) -> tuple[Change, _Cause]:
    before, after = was.standing, now.standing
    if before.split != after.split:
        return Change.MOVED, _rules(seen, _SPLITTING) or _OTHERS
    if before.p != after.p:
        return Change.RELABELLED, _fresh(now.row, seen) or _why_relabelled(now.row, seen)
    if before.weight != after.weight:
        return Change.REWEIGHTED, _fresh(now.row, seen) or _why_reweighted(table, now, seen)
    return Change.REWRITTEN, (
        _fresh(now.row, seen) or _asked(was.row, now.row) or _rules(seen, ()) or _OTHERS
    )


def _why_added(row: Row, seen: _Seen) -> _Cause:
    for account in _accounts(row):
        if account in seen.released:
            return Why.RELEASED, f"{account} was held: {seen.released[account]}"
    if isinstance(row, PromptState):
        return _rules(seen, _SPLITTING) or (Why.EVENTS, f"asked {row.count} times")
    settled = row.at <= seen.old.created_at
    rules = _rules(seen, _SPLITTING) if settled else None
    return rules or _fresh(row, seen) or (Why.OTHERS, "drawn anew among its prompt's grades")


def _why_removed(row: Row, seen: _Seen) -> _Cause:
    for account in _accounts(row):
        if account in seen.quarantined:
            return Why.QUARANTINED, f"{account}: {seen.quarantined[account]}"
    if lost := sorted(_events_of(row) & seen.erased):
        return Why.ERASED, _some(lost)
    if rules := _rules(seen, _SPLITTING):
        return rules
    if _is_contrast(row):
        return Why.OTHERS, "its prompt's grades are others"
    return Why.EVENTS, "taken back or replaced by later ones"


def _why_relabelled(row: Row, seen: _Seen) -> _Cause:
    """Without new events a soft label follows the fit and, of thumbs, habits; of contrasts, their grades."""
    if _is_contrast(row):
        return Why.OTHERS, "its prompt's grades are others"
    fitted = [
        f"{tier} {before:.3f} → {after:.3f}"
        for kind, tier, before, after in _fit_changes(seen.old, seen.new)
        if kind == getattr(row, "kind", None)
    ]
    if fitted:
        return Why.FIT, ", ".join(fitted)
    if getattr(row, "kind", None) is SignalKind.THUMB:
        return Why.HABIT, ""
    if getattr(row, "kind", None) is SignalKind.REVIEW:
        return _rules(seen, ()) or _RATERS
    return _rules(seen, ()) or (Why.FIT, "the account's tier")


def _why_reweighted(table: str, now: _Placed, seen: _Seen) -> _Cause:
    row, split = now.row, now.standing.split
    if _is_contrast(row):
        return Why.OTHERS, "its prompt's grades are others"
    if getattr(row, "kind", None) is SignalKind.JUDGEMENT:
        return _rules(seen, ("judgement_cap",)) or (
            Why.OTHERS,
            "what judgements may weigh beside people's word",
        )
    if getattr(row, "kind", None) is SignalKind.REVIEW:
        return _rules(seen, ()) or _RATERS
    if any((table, split, account) in seen.capped for account in _accounts(row)):
        if seen.old.account_cap != seen.new.account_cap:
            return Why.SETTINGS, _setting("account_cap", seen)
        return Why.ACCOUNT_CAP, ""
    for account in _accounts(row):
        if found := seen.factors.get((split, account)):
            return Why.ACCOUNT, f"{account}: {found[1]} rows × {found[0]:.3f}"
    return _rules(seen, _SETTINGS) or _OTHERS


def _fresh(row: Row, seen: _Seen) -> _Cause | None:
    fresh = sorted(_events_of(row) - seen.events_before)
    return (Why.EVENTS, _some(fresh)) if fresh else None


def _asked(was: Row, now: Row) -> _Cause | None:
    if isinstance(was, PromptState) and isinstance(now, PromptState) and was.count != now.count:
        return Why.EVENTS, f"asked {was.count} → {now.count} times"
    return None


def _rules(seen: _Seen, settings: Iterable[str]) -> _Cause | None:
    """Another release, or the first of these settings that differs."""
    if seen.old.code_version != seen.new.code_version:
        return Why.CODE, f"{seen.old.code_version} → {seen.new.code_version}"
    for name in settings:
        if getattr(seen.old, name) != getattr(seen.new, name):
            return Why.SETTINGS, _setting(name, seen)
    return None


def _setting(name: str, seen: _Seen) -> str:
    return f"{name} {getattr(seen.old, name):g} → {getattr(seen.new, name):g}"


def _seen(old: Snapshot, new: Snapshot, erased: Collection[str]) -> _Seen:
    held_before = {q.account: q.reason for q in old.manifest.quarantined}
    held_now = {q.account: q.reason for q in new.manifest.quarantined}
    return _Seen(
        old=old.manifest,
        new=new.manifest,
        events_before=_event_ids(old),
        erased=frozenset(erased),
        quarantined={a: why for a, why in held_now.items() if a not in held_before},
        released={a: why for a, why in held_before.items() if a not in held_now},
        capped=_capped(old) | _capped(new),
        factors=_factors(old, new),
    )


def _capped(snapshot: Snapshot) -> set[tuple[str, str, str]]:
    """Whoever has all that `raters.cap_accounts` allows."""
    totals: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (table, _), (row, standing) in _rows(snapshot).items():
        accounts = _accounts(row)
        for account in accounts:
            totals[table, standing.split][account] += standing.weight / len(accounts)
    found = set()
    for (table, split), weights in totals.items():
        share = max(snapshot.manifest.account_cap, EVEN_SHARES / len(weights))
        level = share * fsum(weights.values()) * _AT_THE_CAP
        found |= {(table, split, a) for a, weight in weights.items() if share < 1.0 and weight >= level}
    return found


def _factors(old: Snapshot, new: Snapshot) -> dict[tuple[str, str], tuple[float, int]]:
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    before = _rows(old)
    for place, (row, standing) in _rows(new).items():
        was = before.get(place)
        if was and was.standing.weight and not _is_contrast(row) and _events_of(was.row) == _events_of(row):
            for account in _accounts(row):
                ratios[standing.split, account].append(standing.weight / was.standing.weight)
    return {
        place: (fsum(found) / len(found), len(found))
        for place, found in ratios.items()
        if len(found) > 1 and max(found) - min(found) < _SAME_RATIO and abs(found[0] - 1.0) > _SAME_RATIO
    }


def _facts(old: Manifest, new: Manifest) -> Iterator[Fact]:
    for name in ("code_version", *_SETTINGS, "weight_kept", "set_aside", "arrived_weight", "judgement_share"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield Fact(name, *(v if isinstance(v, str) else f"{v:g}" for v in (before, after)))
    for place in sorted(old.offsets.keys() | new.offsets.keys()):
        counts = [m.offsets.get(place, 0) for m in (old, new)]
        if counts[0] != counts[1]:
            yield Fact(f"records of {place}", *map(str, counts))
    for kind, tier, one, other in _fit_changes(old, new):
        yield Fact(f"fit of {kind}, {tier} users", f"{one:.3f}", f"{other:.3f}")
    held = [{q.account: q.reason for q in m.quarantined} for m in (old, new)]
    for account in sorted(held[0].keys() ^ held[1].keys()):
        yield Fact(f"quarantine of {account}", *(h.get(account, "no") for h in held))


def _fit_changes(old: Manifest, new: Manifest) -> Iterator[tuple[SignalKind, str, float, float]]:
    """Kind, tier, accuracy before and after; both must have been fitted."""
    before = {(a.kind, a.tier): a.mean for a in old.fit}
    for a in new.fit:
        if (a.kind, a.tier) in before and before[a.kind, a.tier] != a.mean:
            yield a.kind, a.tier, before[a.kind, a.tier], a.mean


def _totals(rows: Iterable[RowChange]) -> list[Total]:
    groups: dict[tuple[str, str, Change, Why], list[RowChange]] = defaultdict(list)
    for row in rows:
        groups[row.table, row.kind, row.change, row.why].append(row)
    found = [
        Total(
            table=table,
            kind=kind,
            change=change,
            why=why,
            rows=len(same),
            weight_before=fsum(c.before.weight for c in same if c.before),
            weight_after=fsum(c.after.weight for c in same if c.after),
        )
        for (table, kind, change, why), same in groups.items()
    ]
    order = list(Change)
    return sorted(found, key=lambda t: (t.table, order.index(t.change), -t.rows, t.kind, t.why))


def _rows(snapshot: Snapshot) -> dict[tuple[str, str], _Placed]:
    """Every row by table and id."""
    tables: Mapping[str, Iterable[Pair | Grade | Demonstration]] = {
        "pairs": snapshot.pairs,
        "grades": snapshot.grades,
        "demonstrations": snapshot.demonstrations,
    }
    found = {
        (table, id_of(row)): _Placed(row, _standing(row, snapshot))
        for table in tables
        for row in tables[table]
    }
    prompts = {
        ("prompts", state.prompt_digest): _Placed(state, Standing(split=state.split, p=1.0, weight=0.0))
        for state in snapshot.prompts
    }
    return {**found, **prompts}


def _standing(row: Pair | Grade | Demonstration, snapshot: Snapshot) -> Standing:
    p = 1.0 if isinstance(row, Demonstration) else row.p
    return Standing(split=snapshot.split_of(row), p=p, weight=row.weight)


def _event_ids(snapshot: Snapshot) -> set[str]:
    return {event_id for row in snapshot.rows for event_id in row.event_ids}


def _events_of(row: Row) -> set[str]:
    return set() if isinstance(row, PromptState) else set(row.event_ids)


def _accounts(row: Row) -> tuple[str, ...]:
    return () if isinstance(row, PromptState) else raters_of(row)


def _is_contrast(row: Row) -> bool:
    return isinstance(row, Pair) and bool(row.raters)


def _some(ids: list[str]) -> str:
    shown = ", ".join(ids[:_LISTED_EVENTS])
    return shown if len(ids) <= _LISTED_EVENTS else f"{shown} and {len(ids) - _LISTED_EVENTS} more"
