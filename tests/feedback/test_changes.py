"""What changed between two snapshots, and why: one cause at a time, on snapshots built from real events."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feedback import changes, snapshots
from feedback.changes import Change, Difference, RowChange, Why
from feedback.config import Pipeline
from feedback.events import Event, SignalKind
from feedback.snapshots import Snapshot, id_of
from tests.feedback.builders import signal, thumb, turn
from tests.feedback.example import CONFIG, EVENTS, NOW, built, contradicted

OPEN = Pipeline(heldout_fraction=0.0)
Build = Callable[..., Snapshot]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """Of the first six conversations, and of all twelve."""
    folder = tmp_path_factory.mktemp("grown")
    manifests = (
        built(folder, EVENTS[:48]),
        built(folder, EVENTS, now=NOW + timedelta(hours=1)),
    )
    old, new = (snapshots.load(folder / "snapshots" / m.name) for m in manifests)
    return old, new


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Of all twelve conversations, nothing held out."""
    folder = tmp_path_factory.mktemp("whole")
    return snapshots.load(folder / "snapshots" / built(folder, EVENTS, config=OPEN).name)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Fold events into the test's state and load the snapshot of it, each an hour after the one before."""
    hours = iter(range(99))

    def build(events: list[Event], config: Pipeline = CONFIG) -> Snapshot:
        manifest = built(tmp_path, events, config=config, now=NOW + timedelta(hours=next(hours)))
        return snapshots.load(tmp_path / "snapshots" / manifest.name)

    return build


def causes(found: Difference, change: Change) -> set[Why]:
    return {row.why for row in found.rows if row.change is change}


def one(found: Difference, row_id: str) -> RowChange:
    (row,) = [row for row in found.rows if row.id == row_id]
    return row


def grade(snapshot: Snapshot, response_id: str, user: str, kind: SignalKind = SignalKind.THUMB) -> str:
    found = [g for g in snapshot.grades if (g.response_id, g.user, g.kind) == (response_id, user, kind)]
    return found[0].grade_id


def questions(n: int, who: Callable[[int], str], up: Callable[[int], bool]) -> list[Event]:
    """n people's thumbs on n replies to n unlike questions."""
    events = []
    for i in range(n):
        t = turn(f"q{i}", f"Question about subject{i}?", f"Reply {i}.", conversation=f"q{i}", who=who(i))
        events += [t, thumb(t, up(i), at=60 + 37 * i + i % 5)]
    return events


def test_a_snapshot_does_not_differ_from_itself(whole):
    name = whole.manifest.name
    assert changes.compare(whole, whole) == Difference(old=name, new=name, facts=[], totals=[], rows=[])


def test_rows_of_new_events_name_them(grown):
    old, new = grown
    found = changes.compare(old, new)
    added = next(g for g in new.grades if g.response_id == "b7")
    row = one(found, added.grade_id)
    assert (row.change, row.why, row.table, row.kind) == (Change.ADDED, Why.EVENTS, "grades", added.kind)
    assert row.detail == ", ".join(sorted(added.event_ids))
    assert row.before is None and row.after.weight == added.weight
    fresh = {id_of(r) for r in new.rows} - {id_of(r) for r in old.rows}
    assert {row.id for row in found.rows if row.change is Change.ADDED and row.table != "prompts"} == fresh
    assert ("records of turns/0", "18", "36") in [msgspec.structs.astuple(f) for f in found.facts]


def test_the_totals_count_every_row_once(grown):
    """Sums of the table that people read are the sums of the snapshots."""
    old, new = grown
    found = changes.compare(old, new)
    assert sum(total.rows for total in found.totals) == len(found.rows)
    grown = sum(t.weight_after - t.weight_before for t in found.totals if t.table == "grades")
    expected = sum(g.weight for g in new.grades) - sum(g.weight for g in old.grades)
    assert grown == pytest.approx(expected, abs=1e-9)


def test_the_largest_change_comes_first(grown):
    """By what a row pulls with, weight * (2p - 1): a heavy row of p 0.5 pulls at nothing."""
    found = changes.compare(*grown)
    sizes = [row.size for row in found.rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    top = found.rows[0]
    assert top.size == abs(
        (top.after.weight * (2 * top.after.p - 1) if top.after else 0.0)
        - (top.before.weight * (2 * top.before.p - 1) if top.before else 0.0)
    )


def test_a_thumb_taken_back_is_told_from_an_erased_one(build):
    """Both are gone from the rows; only the state can tell which."""
    events = questions(4, "u{}".format, lambda i: i % 2 == 0)
    old = build(events, OPEN)
    new = build([*events, thumb(events[0], None, at=9000)], OPEN)
    gone = grade(old, "q0", "u0")
    row = one(changes.compare(old, new), gone)
    assert (row.change, row.why, row.detail) == (
        Change.REMOVED,
        Why.EVENTS,
        "taken back or replaced by later ones",
    )
    thumbed = "signal-thumb-q0-u0-60"
    assert thumbed in changes.events_gone(old, new)
    row = one(changes.compare(old, new, erased={thumbed}), gone)
    assert (row.why, row.detail) == (Why.ERASED, thumbed)


def test_quarantine_and_release_are_named_with_their_reason(build):
    held, free = build(contradicted(), OPEN), build([], msgspec.structs.replace(OPEN, trusted=["mallory"]))
    row = one(changes.compare(held, free), grade(free, "m30", "mallory"))
    assert (row.change, row.why) == (Change.ADDED, Why.RELEASED)
    assert row.detail.startswith("mallory was held: opposes the others")
    back = changes.compare(free, held)
    assert one(back, row.id).why is Why.QUARANTINED
    assert causes(back, Change.REMOVED) >= {Why.QUARANTINED}
    assert any(f.name == "quarantine of mallory" and f.before == "no" for f in back.facts)


def test_a_fit_that_moved_relabels_with_its_figures(build):
    """Thirty labels that prefer what the thumbs press down take their accuracy from 0.9 to 0.52."""
    events = contradicted()[:60]
    gold = []
    for n in range(0, 60, 2):
        asked = events[n]
        good = "Open settings" in asked.data.reply["content"]
        other = "Read the manual yourself." if good else "Open settings and press save."
        question = asked.data.messages[0]["content"]
        shown = turn(f"{asked.data.response_id}b", question, other, at=1, conversation=asked.key, who="w")
        against = {"value": 0.0 if good else 1.0, "other_response_id": shown.data.response_id}
        gold += [shown, signal(asked, SignalKind.LABEL, who=f"j{n}", **against)]
    old, new = build(events, OPEN), build([*events, *gold], OPEN)
    found = changes.compare(old, new)
    row = one(found, grade(old, "m0", "v0"))
    assert (row.change, row.why, row.detail) == (Change.RELABELLED, Why.FIT, "new 0.900 → 0.518")
    assert (row.before.p, row.after.p) == (pytest.approx(0.9, abs=0.06), pytest.approx(0.5, abs=0.02))
    assert any(f.name == "fit of thumb, new users" and f.after == "0.518" for f in found.facts)


def test_a_users_new_thumbs_move_their_old_ones(build):
    """Ups of somebody who presses up on everything say less: nothing else about the first row changed."""
    first = questions(12, "u{}".format, lambda i: i % 2 == 0)
    more = []
    for n in range(10):
        t = turn(f"f{n}", f"More of matter{n}?", f"So {n}.", at=999, conversation=f"f{n}", who="u0")
        more += [t, thumb(t, True, at=1100 + 71 * n + n % 7)]
    old, new = build(first, OPEN), build([*first, *more], OPEN)
    row = one(changes.compare(old, new), grade(old, "q0", "u0"))
    assert (row.change, row.why) == (Change.RELABELLED, Why.HABIT)
    assert row.after.p < row.before.p


def test_other_shares_held_out_are_settings(build):
    """A row that goes to the other split, or is set aside, did not change by itself."""
    old, new = build(EVENTS), build([], msgspec.structs.replace(CONFIG, heldout_fraction=0.6))
    found = changes.compare(old, new)
    assert causes(found, Change.MOVED) == causes(found, Change.REMOVED) == {Why.SETTINGS}
    assert one(found, found.rows[0].id).detail == "heldout_fraction 0.3 → 0.6"


def test_who_is_at_the_cap_is_told(build):
    """Share s of everything is s / (1 - s) of what the others have: 0.05 / 0.95 of 59 rows."""
    old = build(questions(60, "v{}".format, lambda i: True), msgspec.structs.replace(OPEN, subject_cap=1.0))
    others = sum(g.weight for g in old.grades if g.user != "v0")
    new = reweighted(old, lambda g: others * 0.05 / 0.95 if g.user == "v0" else g.weight)
    ours = grade(old, "q0", "v0")
    assert one(changes.compare(old, new), ours).why is Why.ACCOUNT_CAP
    looser = msgspec.structs.replace(new.manifest, account_cap=0.2)
    row = one(changes.compare(old, msgspec.structs.replace(old, manifest=looser, grades=new.grades)), ours)
    assert row.why is Why.SETTINGS  # nobody is at the new cap, which is wider
    assert row.detail == "account_cap 0.05 → 0.2"


def reweighted(snapshot: Snapshot, weight: Callable[[Any], float]) -> Snapshot:
    """The same rows with other weights, contrasts as they were."""

    def again(rows: list[Any]) -> list[Any]:
        return [r if getattr(r, "raters", ()) else msgspec.structs.replace(r, weight=weight(r)) for r in rows]

    return msgspec.structs.replace(
        snapshot,
        pairs=again(snapshot.pairs),
        grades=again(snapshot.grades),
        demonstrations=again(snapshot.demonstrations),
    )


def test_one_factor_on_all_rows_of_an_account_is_the_accounts(whole):
    """Each of u1's rows counts 0.8 as much, everybody else's the same."""
    old = whole
    new = reweighted(old, lambda row: row.weight * (0.8 if row.user == "u1" else 1.0))
    found = changes.compare(old, new)
    assert causes(found, Change.REWEIGHTED) == {Why.ACCOUNT}
    assert found.rows[0].detail.startswith("u1: ") and found.rows[0].detail.endswith("rows × 0.800")


def test_what_nothing_explains_is_put_down_to_the_others(whole):
    """One row of several weighs less: its subject's share fell, or the trust on it, which no row tells."""
    old = whole
    first = max(old.grades, key=lambda g: g.user == "u1")
    new = reweighted(old, lambda row: row.weight * (0.8 if row is first else 1.0))
    assert causes(changes.compare(old, new), Change.REWEIGHTED) == {Why.OTHERS}


def test_another_release_is_named_where_the_events_are_the_same(whole):
    old = whole
    later = msgspec.structs.replace(old.manifest, code_version="0.2.0 derivation 3")
    new = msgspec.structs.replace(old, manifest=later, demonstrations=[])
    row = one(changes.compare(old, new), old.demonstrations[0].demonstration_id)
    assert (row.change, row.why) == (Change.REMOVED, Why.CODE)
    assert row.detail == f"{old.manifest.code_version} → 0.2.0 derivation 3"


def test_judgements_weigh_beside_peoples_word(whole):
    """Their share follows everybody's rows, so neither the judge nor its account is to blame."""
    as_judged = [
        msgspec.structs.replace(p, kind=SignalKind.JUDGEMENT, user="judge-1", raters=()) for p in whole.pairs
    ]
    old = msgspec.structs.replace(whole, pairs=as_judged)
    lighter = [msgspec.structs.replace(p, weight=p.weight / 2) for p in as_judged]
    new = msgspec.structs.replace(whole, pairs=lighter)
    assert causes(changes.compare(old, new), Change.REWEIGHTED) == {Why.OTHERS}
    capped = msgspec.structs.replace(new, manifest=msgspec.structs.replace(whole.manifest, judgement_cap=0.1))
    assert causes(changes.compare(old, capped), Change.REWEIGHTED) == {Why.SETTINGS}


def test_a_setting_explains_only_what_it_can(whole):
    """Caps weigh rows; they bring and take none."""
    wider = msgspec.structs.replace(whole.manifest, account_cap=0.2)
    new = msgspec.structs.replace(whole, manifest=wider, demonstrations=[])
    row = one(changes.compare(whole, new), whole.demonstrations[0].demonstration_id)
    assert (row.change, row.why) == (Change.REMOVED, Why.EVENTS)


def test_a_prompt_asked_more_often_is_rewritten(grown):
    """Prompts have neither label nor weight: their count is what changes."""
    old, new = grown
    again = [
        r for r in changes.compare(old, new).rows if r.table == "prompts" and r.change is Change.REWRITTEN
    ]
    assert again and all(row.why is Why.EVENTS and "→" in row.detail for row in again)
