"""What was kept for its days leaves log, state and snapshots; what is left is as if it had never been."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from feedback import codec, database, snapshots, store
from feedback.__main__ import main
from feedback.config import Deployment, Retention, section
from feedback.embedded import EmbeddedLog
from feedback.errors import ConfigError, SnapshotErased
from feedback.eventlog import EventLog, Topic
from feedback.pipeline import step
from feedback.retention import Expired, Holdings, expire
from feedback.snapshots import Traces
from tests.feedback.builders import NOON, append, thumb, turn
from tests.feedback.example import CONFIG, EVENTS, NOW, built, fold

DAY = timedelta(days=1)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(data_dir=tmp_path)


@pytest.fixture
def log(deployment: Deployment) -> Iterator[EmbeddedLog]:
    """A log whose entries were appended at noon."""
    with closing(EmbeddedLog(deployment.log_path, clock=NOON.timestamp)) as opened:
        yield opened


def pass_of(deployment: Deployment, log: EventLog, config: Retention, now: datetime) -> Expired:
    with store.opened(deployment.state) as state:
        held = Holdings(
            deployment=deployment,
            log=log,
            state=state,
            retention=config,
            retry_window_s=CONFIG.retry_window_s,
        )
        return expire(held, now)


def folded(deployment: Deployment, log: EventLog) -> None:
    with store.opened(deployment.state) as state:
        while step(log, state, CONFIG, now=NOW).records:
            pass


def rows(deployment: Deployment) -> dict[str, list[object]]:
    with store.opened(deployment.state) as state, database.reading(state) as tx:
        found = {what: list(store.derived_rows(tx, what)) for what in ("grade", "pair", "asked")}
    return {what: sorted(made, key=repr) for what, made in found.items()}


def values(log: EventLog, topic: Topic) -> list[bytes]:
    return [record.value for record in log.read(topic, 0, 0)]


def test_what_is_left_is_what_the_younger_events_alone_give(tmp_path: Path, log: EmbeddedLog) -> None:
    """Replaying a log that expired gives this state: nothing derived of what went may stay."""
    moment = NOON + timedelta(seconds=15)
    all_of_it, young = Deployment(data_dir=tmp_path / "all"), Deployment(data_dir=tmp_path / "young")
    fold(all_of_it.state, EVENTS)
    fold(young.state, [event for event in EVENTS if event.time >= moment])
    assert rows(all_of_it) != rows(young)
    gone = pass_of(all_of_it, log, Retention(turns_days=1, signals_days=1), moment + DAY)
    assert gone.events == {Topic.TURNS: 12, Topic.SIGNALS: 0}
    assert rows(all_of_it) == rows(young)


def test_each_topic_has_its_own_days(deployment: Deployment, log: EmbeddedLog) -> None:
    built(deployment.data_dir, EVENTS)
    gone = pass_of(deployment, log, Retention(signals_days=1), NOON + timedelta(days=2))
    assert gone.events == {Topic.SIGNALS: 60}
    with store.opened(deployment.state) as state, database.reading(state) as tx:
        kinds = {codec.read(payload).type for _, _, payload in store.stored_events(tx)}
    assert kinds == {"ratchet.turn.recorded.v1"}


def test_the_log_lets_go_of_what_the_pipeline_has_folded(deployment: Deployment, log: EmbeddedLog) -> None:
    """Old words that nobody has folded yet are a stalled pipeline, not waste."""
    append(log, turn("a", "Where is my parcel?", "On its way."))
    folded(deployment, log)
    append(log, turn("b", "And the other one?", "Lost.", at=5))
    pass_of(deployment, log, Retention(turns_days=1), NOON + 2 * DAY)
    assert [codec.decode(value).id for value in values(log, Topic.TURNS)] == ["turn-b"]
    folded(deployment, log)
    pass_of(deployment, log, Retention(turns_days=1), NOON + 2 * DAY)
    assert values(log, Topic.TURNS) == []


def test_expired_words_are_not_left_in_the_logs_file(deployment: Deployment) -> None:
    """Deleted rows would stay readable in the file's free pages."""
    with closing(EmbeddedLog(deployment.log_path, clock=NOON.timestamp)) as log:
        append(log, turn("a", "My cat is called Wilhelmina.", "Nice!"))
        folded(deployment, log)
        pass_of(deployment, log, Retention(turns_days=1), NOON + 2 * DAY)
    with closing(EmbeddedLog(deployment.log_path)) as log:  # the last close empties the write-ahead log
        assert log.end(Topic.TURNS, 0) == 1
    assert b"Wilhelmina" not in b"".join(f.read_bytes() for f in deployment.data_dir.glob("log.db*"))


def test_an_outbox_keeps_what_is_not_on_kafka_yet(tmp_path: Path, log: EmbeddedLog) -> None:
    """The forwarder's cursor holds it, however far the pipeline, which reads Kafka, has come."""
    deployment = Deployment(data_dir=tmp_path, log="kafka")
    append(log, turn("a", "One?", "1."), turn("b", "Two?", "2.", at=3))
    log.advance("forward", Topic.TURNS, 1).result(5)
    with closing(EmbeddedLog(tmp_path / "instead-of-kafka.db")) as kafka:
        pass_of(deployment, kafka, Retention(turns_days=1), NOON + 2 * DAY)
    assert [codec.decode(value).id for value in values(log, Topic.TURNS)] == ["turn-b"]


def test_an_expired_snapshot_says_so_and_is_found_by_a_later_erasure(
    deployment: Deployment, log: EmbeddedLog
) -> None:
    """Adapters that learned from it must still be flagged when one of its users is erased."""
    name = built(deployment.data_dir, EVENTS).name
    config = Retention(snapshots_days=30)
    assert pass_of(deployment, log, config, NOW + 30 * DAY).snapshots == ()
    assert pass_of(deployment, log, config, NOW + 31 * DAY).snapshots == (name,)
    assert pass_of(deployment, log, config, NOW + 32 * DAY).snapshots == ()
    folder = deployment.snapshots_dir
    assert [f.name for f in (folder / name).iterdir()] == ["manifest.json"]
    assert snapshots.kept(folder) == []
    with pytest.raises(SnapshotErased, match="expired on 2026-04-03"):
        snapshots.load(folder / name)
    (manifest,) = snapshots.listed(folder)
    assert manifest.users == tuple(f"u{n}" for n in range(7))
    traces = Traces(user="u3", at=NOW, event_ids=frozenset(), prompt_digests=frozenset())
    assert snapshots.erase(folder, traces, NOW) == [name]
    assert snapshots.erased(folder) == [name]
    assert "u3" not in snapshots.listed(folder)[0].users


def test_a_snapshot_that_expired_is_built_again_when_there_is_still_all_of_it(
    deployment: Deployment, log: EmbeddedLog
) -> None:
    name = built(deployment.data_dir, EVENTS).name
    pass_of(deployment, log, Retention(snapshots_days=1), NOW + 2 * DAY)
    made = snapshots.build(deployment.state, deployment.snapshots_dir, CONFIG, NOW + 2 * DAY)
    assert made.name == name
    assert snapshots.load(deployment.snapshots_dir / name).manifest.expired_at is None


def test_dead_letters_expire(deployment: Deployment, log: EmbeddedLog) -> None:
    log.append(Topic.TURNS, "c", "bad", b"no event").result(5)
    folded(deployment, log)
    config = Retention(dead_letters_days=1)
    assert pass_of(deployment, log, config, NOW + DAY).dead_letters == 0
    assert pass_of(deployment, log, config, NOW + DAY + timedelta(seconds=1)).dead_letters == 1


def test_nothing_expires_unless_asked_to(deployment: Deployment, log: EmbeddedLog) -> None:
    before = built(deployment.data_dir, EVENTS).name
    append(log, turn("a", "One?", "1."))
    assert pass_of(deployment, log, Retention(), NOON + 36_500 * DAY) == Expired()
    assert snapshots.load(deployment.snapshots_dir / before).manifest.name == before
    assert len(values(log, Topic.TURNS)) == 1


def test_a_pass_can_be_repeated(deployment: Deployment, log: EmbeddedLog) -> None:
    """Killed anywhere, the next one goes on."""
    built(deployment.data_dir, EVENTS)
    config = Retention(turns_days=1, signals_days=1, snapshots_days=1)
    assert sum(pass_of(deployment, log, config, NOW + 2 * DAY).events.values()) == len(EVENTS)
    again = pass_of(deployment, log, config, NOW + 2 * DAY)
    assert again == Expired(events={Topic.TURNS: 0, Topic.SIGNALS: 0})
    assert rows(deployment) == {"grade": [], "pair": [], "asked": []}


def test_the_verb_says_what_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "ratchet.toml"
    config.write_text(
        f'[deployment]\ndata_dir = "{tmp_path}"\n[retention]\nturns_days = 1\nsignals_days = 7\n'
    )
    t = turn("a", "One?", "1.")
    built(tmp_path, [t, thumb(t, True), *EVENTS])
    assert main(["data", "expire"], config) == 0
    assert capsys.readouterr().out.splitlines() == [
        "events removed: 37 of turns, 61 of signals",
        "dead letters removed: 0",
        "snapshots whose files were removed: none",
    ]
    assert main(["data", "expire", "--json"], config) == 0
    assert json.loads(capsys.readouterr().out)["events"] == {"turns": 0, "signals": 0}


@pytest.mark.parametrize("days", [-1.0, 40_000.0, float("nan")])
def test_absurd_days_are_refused(days: float) -> None:
    with pytest.raises(ConfigError, match="turns_days"):
        section({"retention": {"turns_days": days}}, "retention", Retention)
