"""Twelve conversations with all that can happen in them, and from events to a snapshot in one call."""

from datetime import UTC, datetime
from pathlib import Path

from feedback import codec, database, pipeline, snapshots, store
from feedback.config import Pipeline
from feedback.eventlog import Position, Record, topic_of
from feedback.events import Event, SignalKind
from tests.feedback.builders import assistant, signal, thumb, turn, user

NOW = datetime(2026, 3, 3, 9, 0, tzinfo=UTC)
CONFIG = Pipeline(heldout_fraction=0.3)
TOPICS = ("password", "invoice", "shipping", "refund", "warranty", "newsletter")


def talk(n: int) -> list[Event]:
    """One conversation: two replies, one kept or edited, thumbs of the user and of a colleague."""
    topic, who, conversation = TOPICS[n % len(TOPICS)], f"u{n % 7}", f"c{n}"
    question = f"What about the {topic} of my account?"
    first = turn(
        f"a{n}", question, f"No idea about {topic} number {n % 3}.", conversation=conversation, who=who
    )
    better = f"Open the {topic} page number {n % 4}, choose your account and follow it."
    second = turn(f"b{n}", question, better, at=20, conversation=conversation, who=who)
    resent = better if n % 2 else better.replace("follow it", "then press save")
    third = turn(
        f"d{n}",
        [user(question), assistant(resent), user("Great, and next?")],
        "Done.",
        at=60,
        conversation=conversation,
        who=who,
    )
    return [
        first,
        second,
        third,
        thumb(first, False, at=30),
        thumb(first, n % 5 == 0, at=31),
        thumb(second, True, at=32),
        thumb(second, n % 3 == 0, at=33, who=f"u{(n + 1) % 7}"),
        signal(second, SignalKind.COPY, at=34),
    ]


EVENTS = [event for n in range(12) for event in talk(n)]


def contradicted() -> list[Event]:
    """Thirty people agree on two replies; one account says the contrary of everything, twelve times."""
    events = []
    for n in range(42):
        good, who = n % 2 == 0, f"v{n}" if n < 30 else "mallory"
        reply = "Open settings and press save." if good else "Read the manual yourself."
        t = turn(f"m{n}", f"What about order{'x' * n}?", reply, at=40 * n, conversation=f"m{n}", who=who)
        events += [t, thumb(t, good == (n < 30), at=40 * n + 10 + n % 7)]
    return events


def fold(url: str, events: list[Event], *, together: int = 7) -> None:
    """Fold events as if they lay in the log in this order, `together` per transaction."""
    state = store.open_state(url)
    offsets = {"turns": 0, "signals": 0}
    records = []
    for event in events:
        topic = topic_of(event)
        records.append(Record(Position(topic, 0, offsets[topic]), event.key, codec.encode(event), event.id))
        offsets[topic] += 1
    for start in range(0, len(records), together):
        with database.writing(state) as tx:
            pipeline.fold_records(tx, records[start : start + together], retry_window_s=2.0, now=NOW)
    state.dispose()


def built(
    folder: Path, events: list[Event], *, together: int = 7, config: Pipeline = CONFIG, now: datetime = NOW
) -> snapshots.Manifest:
    """Fold the events into the state in `folder` and build a snapshot there."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder}/state.db"
    fold(url, events, together=together)
    return snapshots.build(url, folder / "snapshots", config, now)
