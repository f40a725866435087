"""Reviews from the log to the queue, the snapshot and the report, on a real state."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from itertools import count, permutations
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from feedback import __main__ as command
from feedback import codec, database, erasure, keyring, pipeline, review_report, snapshots, store
from feedback.config import Pipeline, Review
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Position, Record, topic_of
from feedback.events import Drawn, Event, SignalKind
from feedback.events import Review as Asking
from feedback.pairs import split_of
from feedback.review_queue import Lengths, ReviewQueue
from tests.feedback.builders import NOON, append_sealed, signal, turn, user

LATER = NOON + timedelta(days=1)
BAD = "Click around until something happens."
GOOD = "Open the settings, choose security and press reset."
RULES = Review(raters_per_item=2, calibration_share=0.0)


def rivals(n: int, **fields: Any) -> tuple[Event, Event]:
    """Two replies in the conversation `c<n>`; the first has the smaller id and is the bad one."""
    asked = f"How do I reset device number {'abcdefgh'[n]}?"
    return (
        turn(f"r{n}-1", asked, BAD, conversation=f"c{n}", **fields),
        turn(f"r{n}-2", asked, GOOD, at=20, conversation=f"c{n}", **fields),
    )


def reviewed(
    pair: tuple[Event, Event],
    rater: str,
    value: float | None,
    *,
    at: float = 100.0,
    after_s: float = 30.0,
    side: Literal["left", "right"] = "left",
    size: float = 1.0,
    threshold: float = 0.0,
    **fields: Any,
) -> Event:
    """The first reply of the pair is the better one with probability `value`."""
    shown_at = NOON + timedelta(seconds=at - after_s)
    asking = Asking(side=side, drawn=Drawn.SAMPLED, size=size, threshold=threshold, shown_at=shown_at)
    other = pair[1].id.removeprefix("turn-")
    return signal(
        pair[0],
        SignalKind.REVIEW,
        at=at,
        who=rater,
        value=value,
        other_response_id=other,
        review=asking,
        **fields,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def state(url: str) -> Iterator[sa.Engine]:
    with store.opened(url) as engine:
        yield engine


@pytest.fixture
def queue(url: str) -> Iterator[ReviewQueue]:
    made = ReviewQueue(url, RULES)
    yield made
    made.close()


def fold(url: str, state: sa.Engine, folder: Path, *events: Event) -> None:
    """Sealed as the gateway seals, and folded."""
    log, ring = EmbeddedLog(folder / "log.db"), keyring.KeyRing(url)
    append_sealed(log, ring, *events)
    while pipeline.step(log, state, Pipeline(), now=LATER).records:
        pass
    log.close()
    ring.close()


def rows(state: sa.Engine, what: store.What) -> list[Any]:
    with database.reading(state) as tx:
        return list(store.derived_rows(tx, what))


def forget(state: sa.Engine, who: str) -> None:
    """What `ratchet data erase` does to the state."""
    erasure.shred(state, who, "olga", LATER)
    with database.reading(state) as tx:
        found = erasure.belongings(tx, who)
    erasure.forget(state, found, retry_window_s=2.0)


# --- the queue


@pytest.mark.slow
def test_the_queue_is_the_same_whatever_the_order_of_events(tmp_path):
    """Replay is identity: an answer may be read before its turns, and taken back before it was given."""
    pair = rivals(0)
    given, back = reviewed(pair, "rae", 1.0), reviewed(pair, "rae", None, at=200)
    events = [*pair, given, back, reviewed(pair, "rob", 0.0)]
    found = set()
    for n, order in enumerate(permutations(events)):
        if n % 7 == 0:
            with store.opened(f"sqlite:///{tmp_path / f'{n}.db'}") as state:
                for at, event in enumerate(order):
                    raw = Record(Position(topic_of(event), 0, at), event.key, codec.encode(event))
                    with database.writing(state) as tx:
                        pipeline.fold_records(tx, [raw, raw], retry_window_s=2.0, now=LATER)
                found.add(repr(rows(state, "item")))
    assert len(found) == 1 and "rob" in found.pop()


def test_what_the_ensemble_disagrees_about_is_asked_first(url, state, queue, tmp_path):
    events = [event for n in range(6) for event in rivals(n)]
    fold(url, state, tmp_path, *events)
    items = {item.item_id: item for item in rows(state, "item")}
    chosen = max(items.values(), key=lambda item: item.lot)
    with database.writing(state) as tx:
        store.replace_disagreements(tx, "run-0001", {i: float(i == chosen.item_id) for i in items})
    first = min(items.values(), key=lambda item: item.lot)
    expected = chosen if 1.0 / chosen.lot > 0.2 / first.lot else first
    shown = queue.next_for("rae")
    assert shown is not None and shown.question.item == expected
    assert shown.question.disagreement == float(expected is chosen)


def test_lengths_go_from_waiting_to_done(url, state, queue, tmp_path):
    a, b, c = rivals(0), rivals(1), rivals(2)
    passes = [reviewed(c, r, None, reasons=("broken",)) for r in ("rae", "rob", "roy")]
    fold(url, state, tmp_path, *a, *b, *c, *rivals(3), reviewed(a, "rae", 1.0), *passes)
    assert queue.lengths() == Lengths(waiting=2, begun=1, done=0, given_up=1)
    fold(url, state, tmp_path, reviewed(a, "rob", 1.0))
    assert queue.lengths() == Lengths(waiting=2, begun=0, done=1, given_up=1)


def test_answers_of_a_moment_ago_are_passed_over(url, state, queue, tmp_path):
    fold(url, state, tmp_path, *rivals(0), *rivals(1))
    first = queue.next_for("rae")
    assert first is not None
    second = queue.next_for("rae", [first.question.item.item_id])
    assert second is not None and second.question.item != first.question.item
    both = [first.question.item.item_id, second.question.item.item_id]
    assert queue.next_for("rae", both) is None


def test_no_word_of_a_user_lies_in_the_queue(url, state, tmp_path):
    """Ids and lots only: what a rater sees is opened when it is shown."""
    fold(url, state, tmp_path, *rivals(0))
    with database.reading(state) as tx:
        table = store.derived
        stored = tx.scalars(sa.select(table.c.payload).where(table.c.what == "item")).all()
    assert len(stored) == 1 and b"reset" not in stored[0] and b"Click" not in stored[0]


def test_an_erased_user_leaves_neither_items_nor_pairs(url, state, queue, tmp_path):
    pair = rivals(0)
    fold(url, state, tmp_path, *pair, reviewed(pair, "rae", 1.0))
    assert (len(rows(state, "item")), len(rows(state, "pair"))) == (1, 1)
    forget(state, "ann")
    assert (rows(state, "item"), rows(state, "pair")) == ([], [])


# --- snapshots


def test_reviews_become_one_row_with_every_vote(url, state, tmp_path):
    pair = rivals(0)
    said = [
        reviewed(pair, "rae", 0.0, dimensions={"helpful": 0.0, "honest": 0.5}),
        reviewed(pair, "rob", 0.0),
        reviewed(pair, "roy", 1.0),
        reviewed(pair, "rik", 1.0, after_s=1.0),
    ]
    fold(url, state, tmp_path, *pair, *said)
    manifest = snapshots.build_from(state, tmp_path / "snapshots", Pipeline(), LATER)
    loaded = snapshots.load(tmp_path / "snapshots" / manifest.name)
    (row,) = [p for p in loaded.pairs if p.kind is SignalKind.REVIEW]
    assert (row.chosen, row.rejected, row.raters) == (GOOD, BAD, ("rae", "rob", "roy"))
    assert [(v.rater, v.p, v.dimensions) for v in row.votes] == [
        ("rae", 1.0, {"helpful": 1.0, "honest": 0.5}),
        ("rob", 1.0, {}),
        ("roy", 0.0, {}),
    ]
    assert row.dimensions["helpful"] > 0.7 and row.dimensions["honest"] == pytest.approx(0.5)
    assert 0.5 < row.p < 1.0 and 0.0 < row.weight < 1.0
    assert (manifest.reviews.items, [r.rater for r in manifest.reviews.raters]) == (1, ["rae", "rob", "roy"])


def test_a_rater_is_no_user_of_the_split_or_the_caps(url, state, tmp_path):
    """Rob, were he a user, is held out: his reviews of training prompts would be set aside, as one rater's
    word the rest would be capped at an account's share."""
    prompt = (user("How do I reset device number a?"),)
    assert split_of(prompt, ["rob"], heldout_fraction=0.2) is None
    pairs = [rivals(n) for n in range(8)]
    said = [reviewed(pair, who, 0.0) for pair in pairs for who in ("rob", "rae", "roy")]
    fold(url, state, tmp_path, *(event for pair in pairs for event in pair), *said)
    config = Pipeline(account_cap=0.0001)
    manifest = snapshots.build_from(state, tmp_path / "snapshots", config, LATER)
    loaded = snapshots.load(tmp_path / "snapshots" / manifest.name)
    found = [p for p in loaded.pairs if p.kind is SignalKind.REVIEW]
    assert len(found) == 8 and manifest.set_aside == 0
    assert all(p.weight > 0.8 and p.p > 0.95 for p in found)


def test_a_snapshot_with_a_vote_of_an_erased_rater_is_erased(url, state, tmp_path):
    pair = rivals(0)
    fold(url, state, tmp_path, *pair, reviewed(pair, "rae", 0.0), reviewed(pair, "rob", 0.0))
    manifest = snapshots.build_from(state, tmp_path / "snapshots", Pipeline(), LATER)
    erasure.shred(state, "rob", "olga", LATER)
    with database.reading(state) as tx:
        traces = erasure.belongings(tx, "rob").traces("rob", LATER)
    with snapshots.alone(tmp_path / "snapshots"):
        assert snapshots.erase(tmp_path / "snapshots", traces, LATER) == [manifest.name]


def test_a_review_is_gold_for_other_signals(url, state, tmp_path):
    """Ann's thumb down of the reply that raters call the worse one agrees with them."""
    pair = rivals(0)
    thumb = signal(pair[0], SignalKind.THUMB, value=0.0)
    said = [reviewed(pair, r, 0.0) for r in ("rae", "rob", "roy")]
    fold(url, state, tmp_path, *pair, thumb, *said)
    manifest = snapshots.build_from(state, tmp_path / "snapshots", Pipeline(), LATER)
    fitted = next(a for a in manifest.fit if a.kind is SignalKind.THUMB and a.tier == "new")
    assert fitted.mean > fitted.prior and fitted.agreed > 0.9


def test_two_bad_replies_are_two_bad_grades_in_the_snapshot_and_no_pair(url, state, tmp_path):
    """Two raters found both bad and read them, a third had no time to; on another pair one rater did."""
    pair, other = rivals(0), rivals(1)
    bad: dict[str, Any] = {"value": 0.5, "reasons": ("both bad",)}
    fold(
        url,
        state,
        tmp_path,
        *pair,
        *other,
        reviewed(pair, "rae", **bad),
        reviewed(pair, "rob", **bad),
        reviewed(pair, "roy", **bad, after_s=0.1),
        reviewed(other, "rae", **bad),
        reviewed(other, "rob", 0.0),
        reviewed(other, "roy", 0.0),
    )
    manifest = snapshots.build_from(state, tmp_path / "snapshots", Pipeline(account_cap=0.0001), LATER)
    loaded = snapshots.load(tmp_path / "snapshots" / manifest.name)
    assert {p.rejected_response_id for p in loaded.pairs if p.kind is SignalKind.REVIEW} == {"r1-1"}
    found = [(g.response_id, g.user) for g in loaded.grades]
    assert sorted(found) == [(r, who) for r in ("r0-1", "r0-2") for who in ("rae", "rob")]
    assert all(g.p < 0.2 and g.dimensions == {} and "both bad" in g.reason for g in loaded.grades)


# --- the report


def report(url: str, state: sa.Engine, folder: Path) -> review_report.Status:
    """Three raters, two pairs. a: 1, 1, 0 of which one from the right; b: a tie, both bad, a pass."""
    a, b = rivals(0), rivals(1)
    fold(
        url,
        state,
        folder,
        *a,
        *b,
        reviewed(a, "rae", 1.0, size=0.2, threshold=0.8, at=100),
        reviewed(a, "rob", 1.0, side="right", at=110),
        reviewed(a, "roy", 0.0, at=120),
        reviewed(b, "rae", 0.5, size=0.9, threshold=0.9, at=130),
        reviewed(b, "rob", 0.5, at=140, reasons=("both bad",)),
        reviewed(b, "roy", None, at=150, reasons=("not my field",)),
        reviewed(b, "rik", 1.0, at=160, after_s=0.5),
    )
    return review_report.status(state, 2)


def test_status_by_hand(url, state, tmp_path):
    """Left: rae's 1 is; rob's 1, from the right, and roy's 0 are not: 1 of 3. Ties: none of a, all of b;
    a was drawn with 0.25 and b surely, so of all pairs it is 1 / (4 + 1). Both bad: half of b."""
    found = report(url, state, tmp_path)
    assert (found.waiting, found.begun, found.done, found.given_up) == (0, 0, 2, 0)
    assert (found.answers, found.too_fast, found.passes) == (5, 1, {"not my field": 1})
    assert (found.left.won, found.left.of) == (1, 3)
    assert (found.ties.among_answered, found.ties.among_all) == (0.5, pytest.approx(0.2))
    assert (found.both_bad.among_answered, found.both_bad.among_all) == (0.25, pytest.approx(0.1))


def test_raters_are_told_apart_and_measured_by_labels(url, state, tmp_path):
    report(url, state, tmp_path)
    label = signal(rivals(0)[0], SignalKind.LABEL, who="ola", value=1.0, other_response_id="r0-2")
    fold(url, state, tmp_path, label)
    rae, rik, rob, roy = review_report.raters(state)
    assert [(r.rater, r.answers, r.passes, r.too_fast) for r in (rae, rik, rob, roy)] == [
        ("rae", 2, 0, 0),
        ("rik", 0, 0, 1),
        ("rob", 2, 0, 0),
        ("roy", 1, 1, 0),
    ]
    assert rik.reliability is None and rae.reliability is not None and roy.reliability is not None
    assert rae.reliability.right > roy.reliability.right
    assert [(r.known.won, r.known.of) for r in (rae, roy)] == [(1, 1), (0, 1)]


@pytest.mark.parametrize("about", ["status", "raters"])
def test_the_command_prints_tables_and_json(about, url, state, tmp_path, monkeypatch, capsys):
    report(url, state, tmp_path)
    monkeypatch.setenv("RATCHET_DEPLOYMENT_DATA_DIR", str(tmp_path))
    assert command.main(["review", about, "--json"], None) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"] == 5 if about == "status" else [r["answers"] for r in found] == [2, 0, 2, 1]
    assert command.main(["review", about], None) == 0
    shown = capsys.readouterr().out
    assert ("Krippendorff" in shown) if about == "status" else ("contrary" in shown)


def test_the_pipeline_measures_agreement_while_it_runs(url, state, tmp_path):
    """Within a minute by the clock that it is given; here every look at the clock takes half a minute."""
    pairs = rivals(0), rivals(1)
    said = [reviewed(pair, who, float(n)) for n, pair in enumerate(pairs) for who in ("rae", "rob")]
    log, ring = EmbeddedLog(tmp_path / "log.db"), keyring.KeyRing(url)
    append_sealed(log, ring, *pairs[0], *pairs[1], *said)
    stop = threading.Event()
    ticks = count()

    def clock() -> datetime:
        tick = next(ticks)
        if tick > 20:
            stop.set()
        return LATER + timedelta(seconds=30 * tick)

    with closing(log.share("tests", pipeline.SOURCES)) as share:
        pipeline.run(
            log, state, Pipeline(poll_s=0.01), stop, share=share, snapshots_dir=tmp_path, clock=clock
        )
    log.close()
    ring.close()
    found = REGISTRY.get_sample_value("ratchet_feedback_review_alpha_ratio", {"dimension": "overall"})
    assert found == pytest.approx(1.0)


def test_an_empty_queue_has_a_report(url, state, tmp_path):
    found = review_report.status(state, 2)
    assert (found.answers, found.agreement, review_report.raters(state)) == (0, (), [])
