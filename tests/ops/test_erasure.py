"""Erasing a user: no byte of what they said is left anywhere, on both logs, and everything else is."""

import base64
import json
import shutil
import signal as signal_numbers
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feedback import codec, database, keyring, pipeline, privacy, snapshots, store
from feedback.config import Deployment, Pipeline
from feedback.embedded import EmbeddedLog
from feedback.errors import SnapshotErased, SnapshotError, UnknownUser
from feedback.eventlog import EventLog, Topic
from feedback.events import Event, SignalKind, UserErased
from feedback.forward import forward_once
from feedback.kafka import KafkaLog
from feedback.keyring import KeyRing
from feedback.snapshots import Manifest, Traces
from ops import erasure as erasing
from ops.adapters import Adapter
from ops.cli import main
from ops.registry import Registry
from tests.feedback.builders import (
    append,
    append_sealed,
    assistant,
    copy_keys,
    signal,
    thumb,
    turn,
    user,
)
from tests.kafka_broker import Broker

NOW = datetime(2026, 3, 3, 9, 0, tzinfo=UTC)
CONFIG = Pipeline(heldout_fraction=0.0)
ANN, BOB = "u-" + "a" * 32, "u-" + "b" * 32
MARKERS = ('Zanzibar»"sécret"', "quokkaReply", "wombatEdit", "ibexComment", "lynxReason")
"""What Ann said and was told: her question, the reply, her edit, a comment, a reason."""
DERIVED = MARKERS[:3]
"""Those that rows are made of: they are readable in state and snapshots as long as she is not erased."""
BOBS = "narwhalQuestion"


def test_no_byte_of_an_erased_user_is_left(place: "Place") -> None:
    """Neither her words nor her keys, in any file of log, state and snapshots; Bob's are there as before."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    manifest = place.build()
    check_erased(place, manifest)


@pytest.mark.kafka
def test_no_byte_of_an_erased_user_is_left_in_kafka_segments(
    place: "Place", kafka_broker: Broker, tmp_path: Path
) -> None:
    """Kafka never deletes an entry: what lies in its segments must have become unreadable."""
    prefix = f"erase-{tmp_path.name}"
    with closing(KafkaLog(kafka_broker.servers, prefix, 2)) as kafka:
        place.read_log = kafka
        place.say(*ann_says(), *bob_says())
        place.forward(kafka)
        place.folders += kafka_broker.data.rglob(f"{prefix}.*")  # not other tests: gigabytes of indexes
        place.fold()
        assert place.holds(b'"id":"turn-ann-1"'), "the scan must read the segments"
        check_erased(place, place.build())
        place.forward(kafka)
        assert [place.told(r.value) for p in (0, 1) for r in kafka.read(Topic.USERS, p, 0, timeout_s=5)] == [
            ANN
        ]


def check_erased(place: "Place", manifest: Manifest) -> None:
    secrets = place.key_bytes(ANN)
    assert place.found(*MARKERS) == set(DERIVED), "the scan must find what is derived, in whatever spelling"
    assert len(secrets) == 1 and place.holds(secrets[0])

    report = place.erase(ANN)

    assert place.found(*MARKERS) == set()
    assert not place.holds(secrets[0])
    assert report.snapshots == (manifest.name,)
    assert report.erasure.finished_at == NOW
    assert place.found(BOBS) == {BOBS}


def test_the_next_snapshot_builds_without_the_erased_user(place: "Place") -> None:
    """And holds all that the others said, whoever replays the log from its beginning."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    place.build()
    place.erase(ANN)
    later = place.load(place.build())
    assert [g.user for g in later.grades] == [BOB]
    assert [p.prompt[0]["content"] for p in later.prompts] == [BOBS]
    with closing(Place(place.folder / "replayed")) as other:
        copy_keys(place.state, other.state)
        other.read_log = place.log
        (folded,) = other.fold()
        assert (folded.erased, folded.dead) == ({Topic.TURNS: 2, Topic.SIGNALS: 3}, {})
        assert other.build().hash == later.manifest.hash


def test_an_erased_snapshot_is_refused_and_its_manifest_stays(place: "Place") -> None:
    """Which adapters learned from it must remain known; nobody may take it for damaged."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    first = place.build()
    place.erase(ANN)
    with pytest.raises(SnapshotErased, match=rf"{first.name} was erased on 2026-03-03 09:00.*data build"):
        place.load(first)
    (kept,) = snapshots.listed(place.deployment.snapshots_dir)
    assert (kept.name, kept.erased_at, kept.rows) == (first.name, NOW, first.rows)


def test_a_snapshot_without_the_user_stays(place: "Place") -> None:
    """Only what holds something of Ann goes."""
    place.say(*bob_says())
    place.fold()
    before = place.build()
    place.say(*ann_says())
    place.fold()
    after = place.build(1)
    assert place.erase(ANN).snapshots == (after.name,)
    assert [g.user for g in place.load(before).grades] == [BOB]


def test_a_snapshot_that_holds_only_her_question_goes_too(place: "Place") -> None:
    """She rated nothing: prompts have no user, and are found by what she asked."""
    place.say(ann_says()[0], *bob_says())
    place.fold()
    first = place.build()
    assert place.erase(ANN).snapshots == (first.name,)
    assert place.found(*MARKERS) == set()


def test_a_snapshot_that_comes_out_the_same_takes_the_erased_ones_place(place: "Place") -> None:
    """Ann asked what Bob asked, but aborted: the rows are all his, and the learner must get them again."""
    place.say(*bob_says())
    place.fold()
    first = place.build()
    asked = frozenset(p.prompt_digest for p in place.load(first).prompts)
    folder = place.deployment.snapshots_dir
    with snapshots.alone(folder):
        traces = Traces(user=ANN, at=NOW, prompt_digests=asked)
        assert snapshots.erase(folder, traces, NOW) == [first.name]
    assert place.build(5).name == first.name
    assert [g.user for g in place.load(first).grades] == [BOB]


def test_adapters_that_learned_from_her_are_flagged(
    place: "Place", capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the snapshot and their descendants, also one that is registered only after the erasure."""
    place.say(*bob_says())
    place.fold()
    untouched = place.learn_from(place.build(), "run-0001")
    place.say(*ann_says())
    place.fold()
    tainted = place.build(1)
    mother = place.learn_from(tainted, "run-0002", parent=untouched)
    report = place.erase(ANN)
    why = f"learned from {tainted.name}, erased on 2026-03-03"
    assert report.adapters == {mother: why}
    daughter = place.learn_from(place.build(2), "run-0003", parent=mother)
    late = place.learn_from(tainted, "run-0004")
    with closing(Registry(place.deployment.state)) as registry:
        assert registry.flags() == {mother: why, daughter: why, late: why}
        assert registry.get(mother).state == "registered"
        assert [e.reason for e in registry.audit(mother)][1:] == [f"flagged: {why}"]
        assert place.erase(ANN).adapters == registry.flags()
        assert len(registry.audit(mother)) == 2, "the same flag is audited once"
    assert place.run("adapters", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["flags"] == {mother: why, daughter: why, late: why}


def test_erasing_again_changes_nothing(place: "Place") -> None:
    """An operator who is not sure runs it once more."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    place.build()
    place.erase(ANN)
    again = place.erase(ANN)
    assert (again.events, again.sealed, again.snapshots) == (0, 0, ())
    assert place.found(*MARKERS) == set()


def test_a_user_who_comes_back_is_a_new_one(place: "Place") -> None:
    """Her next turn has a fresh key, is learned from, and a second erasure takes it too."""
    place.say(*ann_says())
    place.fold()
    (old,) = place.key_bytes(ANN)
    place.erase(ANN)
    back = turn("ann-9", "gibbonQuestion", "gibbonReply", conversation="ann", who=ANN)
    place.say(back, thumb(back, True))
    place.fold()
    (new,) = place.key_bytes(ANN)
    assert new != old
    assert [g.reply for g in place.load(place.build()).grades] == ["gibbonReply"]
    assert place.erase(ANN).events == 2
    assert place.found("gibbonQuestion", "gibbonReply") == set()


def test_events_that_arrive_after_the_erasure_are_counted_and_dropped(place: "Place") -> None:
    """They lay in an outbox meanwhile: no dead letter, and the others' conversation goes on."""
    place.say(*ann_says(), *bob_says())
    with database.writing(place.state) as tx:
        keyring.destroy(tx, ANN, NOW)
    (folded,) = place.fold()
    assert (folded.new, folded.erased, folded.dead) == (
        {Topic.TURNS: 1, Topic.SIGNALS: 1},
        {Topic.TURNS: 2, Topic.SIGNALS: 3},
        {},
    )
    assert [g.user for g in place.load(place.build()).grades] == [BOB]


def test_an_event_under_a_key_that_was_never_here_is_a_dead_letter(place: "Place") -> None:
    """The wrong state database must not pass for an erasure: it would lose everything in silence."""
    place.say(*bob_says())
    with closing(Place(place.folder / "other")) as other:
        other.read_log = place.log
        (folded,) = other.fold()
        assert (folded.erased, folded.dead) == ({}, {Topic.TURNS: 1, Topic.SIGNALS: 1})
        with database.reading(other.state) as tx:
            assert "which is not at hand" in store.load_dead_letters(tx)[0].reason
    assert place.fold()[0].dead == {}


def test_entries_of_an_older_release_are_sealed_for_ever(place: "Place") -> None:
    """They were written unsealed: the log itself is rewritten, and replaying it gives nothing of her."""
    append(place.log, *ann_says(), *bob_says())
    place.fold()
    place.build()
    assert place.found(*MARKERS) == set(MARKERS)
    assert place.erase(ANN).sealed == 5
    assert place.found(*MARKERS) == set()
    assert place.found(BOBS) == {BOBS}
    with closing(Place(place.folder / "replayed")) as other:
        copy_keys(place.state, other.state)
        other.read_log = place.log
        assert [folded.erased for folded in other.fold()] == [{Topic.TURNS: 2, Topic.SIGNALS: 3}]
        assert place.build(1).hash == other.build().hash


def test_a_state_restored_from_a_backup_erases_again_as_it_reads_on(place: "Place") -> None:
    """Else restoring brings her back. It says that it is not finished: its own files were not wiped."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    with closing(Place(place.folder / "restored")) as restored:
        copy_keys(place.state, restored.state)
        restored.read_log = place.log
        restored.fold()
        place.erase(ANN)
        restored.fold()
        assert restored.key_bytes(ANN) == []
        assert [g.user for g in restored.load(restored.build()).grades] == [BOB]
        with database.reading(restored.state) as tx:
            assert [(e.user, e.by, e.finished_at) for e in keyring.erasures(tx)] == [
                (ANN, "operator:eve", None)
            ]


def test_dead_letters_of_the_user_go_too(place: "Place") -> None:
    """A bad event may still hold words: here unsealed, in the wrong topic."""
    (asked, *_), edit = ann_says(), ann_says()[3]
    place.say(asked)
    place.log.append(Topic.TURNS, edit.key, edit.id, codec.encode(edit)).result(timeout=5)
    place.fold()
    assert place.found(MARKERS[2]) == {MARKERS[2]}
    place.erase(ANN)
    with database.reading(place.state) as tx:
        assert store.load_dead_letters(tx) == []
    assert place.found(MARKERS[2]) == set()


def test_what_a_judge_wrote_of_her_reply_goes_too(place: "Place") -> None:
    """A revision repeats what she was told: it is the judge's signal, and sealed under her key."""
    asked = ann_says()[0]
    place.say(asked, *bob_says())
    said = signal(
        asked,
        SignalKind.JUDGEMENT,
        who="judge-1",
        value=0.1,
        text=f"{MARKERS[2]} is better.",
        reasons=("c 1",),
    )
    raw = codec.encode(said, place.ring.obtain(ANN))
    place.log.append(Topic.SIGNALS, said.key, said.id, raw).result(timeout=5)
    place.fold()
    place.build()
    assert place.found(MARKERS[2]) == {MARKERS[2]}
    assert place.erase(ANN).events == 2
    assert place.found(*MARKERS) == set()


def test_what_a_killed_build_left_behind_goes_too(place: "Place") -> None:
    """Parquet files in a folder that never became a snapshot."""
    place.say(*ann_says())
    place.fold()
    left = place.deployment.snapshots_dir / ".building-abc"
    left.mkdir(parents=True)
    (left / "pairs.parquet").write_text(MARKERS[1])
    place.erase(ANN)
    assert not left.exists()


def test_a_build_waits_for_an_erasure(place: "Place") -> None:
    """Else it could read the state before, and write a snapshot after, with her words in it."""
    place.say(*ann_says())
    place.fold()
    with ThreadPoolExecutor() as pool:
        with snapshots.alone(place.deployment.snapshots_dir):
            building = pool.submit(place.build)
            with pytest.raises(TimeoutError):
                building.result(timeout=0.2)
        assert building.result(timeout=10).rows["grades"] > 0


@pytest.mark.parametrize("done", range(len(erasing.STEPS)))
def test_an_erasure_that_ended_early_does_not_claim_to_be_done(place: "Place", done: int) -> None:
    """After each of its steps: it says unfinished, and the next run finishes it."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    manifest = place.build()
    place.learn_from(manifest)
    with erasing.begun(place.deployment, CONFIG, ANN, "operator:eve", lambda: NOW) as job:
        for step in erasing.STEPS[:done]:
            step(job)
    with database.reading(place.state) as tx:
        assert [e.finished_at for e in keyring.erasures(tx)] in ([], [None])
    report = place.erase(ANN)
    assert place.found(*MARKERS) == set()
    assert list(report.adapters.values()) == [f"learned from {manifest.name}, erased on 2026-03-03"]
    with database.reading(place.state) as tx:
        assert {e.finished_at for e in keyring.erasures(tx)} == {NOW}


def test_a_snapshot_that_cannot_be_searched_stops_the_erasure_in_time(place: "Place") -> None:
    """What the state holds of her is how snapshots are found, so it goes last; repaired, everything goes."""
    place.say(*ann_says(), *bob_says())
    place.fold()
    damaged = place.deployment.snapshots_dir / place.build().name / "prompts.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"PAR1")
    for table in ("pairs", "grades", "demonstrations"):  # her own rows would be found without the state
        (damaged.parent / f"{table}.parquet").rename(place.folder / table)
        empty = pq.read_table(place.folder / table).slice(0, 0)
        pq.write_table(empty, damaged.parent / f"{table}.parquet")
        (place.folder / table).unlink()
    with pytest.raises(SnapshotError, match=r"prompts\.parquet is no Parquet file"):
        place.erase(ANN)
    damaged.write_bytes(whole)
    assert place.erase(ANN).snapshots == (damaged.parent.name,)
    assert place.found(*MARKERS) == set()


@pytest.mark.slow
def test_an_erasure_survives_sigkill_anywhere(tmp_path: Path) -> None:
    """While it writes to a database or touches a file: never finished too early, always by the next one."""
    with closing(Place(tmp_path / "made")) as place:
        append(place.log, turn("old", MARKERS[4], "No.", conversation="old", who=ANN))
        place.say(ann_says()[0], *bob_says())
        place.fold()
        place.learn_from(place.build(), "run-0001")  # holds what she asked, and no row of hers
        place.say(*ann_says()[1:])
        place.fold()
        place.learn_from(place.build(1), "run-0002")
    deeds = int(erase_in_a_process(copied(tmp_path, "counted"), kill_at=0).stdout)
    assert deeds > 20
    for kill_at in range(1, deeds, max(1, deeds // KILLS)):
        folder = copied(tmp_path, f"killed-{kill_at}")
        assert erase_in_a_process(folder, kill_at).returncode == -signal_numbers.SIGKILL
        with closing(Place(folder)) as place:
            with database.reading(place.state) as tx:
                assert [e.finished_at for e in keyring.erasures(tx)] in ([], [None]), f"deed {kill_at}"
            place.erase(ANN)
            assert place.found(*MARKERS) == set(), f"killed before deed {kill_at} of {deeds}"
            assert place.found(BOBS) == {BOBS}
            with closing(Registry(place.deployment.state)) as registry:
                assert len(registry.flags()) == 2


KILLS = 8
ERASE = """
import os, signal, sys
import sqlalchemy as sa
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from feedback.config import Deployment, Pipeline
from ops import erasure

folder, user, kill_at, done = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 0

def deed(*_):
    global done
    done += 1
    if done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(lambda name, _: deed() if name in ("os.rename", "os.remove", "os.rmdir") else None)
for moment in ("before_cursor_execute", "commit"):
    sa.event.listen(sa.Engine, moment, deed)
pipeline = Pipeline(heldout_fraction=0.0)
erasure.erase(Deployment(data_dir=folder / "data"), pipeline, user, by="eve", clock=lambda: datetime.now(UTC))
print(done)
"""


def erase_in_a_process(folder: Path, kill_at: int) -> "subprocess.CompletedProcess[str]":
    """Kills itself before its deed of that number: a statement, a commit, a file renamed or removed."""
    command = [sys.executable, "-c", ERASE, str(folder), ANN, str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def copied(folder: Path, name: str) -> Path:
    shutil.copytree(folder / "made", folder / name)
    return folder / name


@pytest.mark.postgres
def test_a_state_in_postgresql_is_erased_as_well(tmp_path: Path, postgres_url: str) -> None:
    """No row of any table holds a word or a key of hers; the tables are rewritten without them."""
    with closing(Place(tmp_path, postgres_url)) as place:
        place.say(*ann_says(), *bob_says())
        place.fold()
        manifest = place.build()
        (secret,) = place.key_bytes(ANN)
        assert place.erase(ANN).snapshots == (manifest.name,)
        with database.reading(place.state) as tx:
            rows = [
                bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                for tables in (store.metadata, keyring.metadata)
                for table in tables.sorted_tables
                for row in tx.execute(table.select())
                for value in row
            ]
        for gone in (secret, *(form for marker in MARKERS for form in spellings(marker))):
            assert not any(gone in value for value in rows)
        assert [g.user for g in place.load(place.build(1)).grades] == [BOB]


def test_a_user_of_whom_nothing_is_stored_is_refused(place: "Place") -> None:
    """A mistyped name must not be reported as erased."""
    place.say(*bob_says())
    place.fold()
    with pytest.raises(UnknownUser, match=f"nothing is stored of {ANN}: check --user and --principal"):
        place.erase(ANN)
    with database.reading(place.state) as tx:
        assert keyring.erasures(tx) == []


def test_a_reader_of_the_past_makes_the_erasure_fail_not_lie(place: "Place") -> None:
    """While somebody reads what was there before, the old bytes stay in the write-ahead log."""
    place.say(*ann_says())
    place.fold()
    with database.reading(place.state) as tx:
        keyring.erasures(tx)
        file = place.deployment.state.removeprefix("sqlite:///")
        raw = sqlite3.connect(file, isolation_level=None, timeout=0.05)
        with closing(raw), pytest.raises(sqlite3.OperationalError, match=r"others still read|locked"):
            raw.execute("DELETE FROM feedback_derived")
            database.scrub_sqlite(raw, time.monotonic() + 0.1)


def test_scrubbing_leaves_nothing_that_was_deleted_carelessly(tmp_path: Path) -> None:
    """Rows that the pipeline replaces stay in free pages wherever SQLite is built without secure_delete."""
    file = tmp_path / "state.db"
    state = store.open_state(f"sqlite:///{file}")
    with closing(sqlite3.connect(file, isolation_level=None)) as raw:
        raw.execute("PRAGMA secure_delete=OFF")
        raw.execute("INSERT INTO feedback_derivations VALUES (?)", (MARKERS[1] * 1000,))
        raw.execute("DELETE FROM feedback_derivations")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert MARKERS[1].encode() in file.read_bytes()
    database.scrub(state, store.metadata)
    state.dispose()
    assert not any(MARKERS[1].encode() in text for text in every_byte(tmp_path))


def test_the_command_erases_by_name(place: "Place", capsys: pytest.CaptureFixture[str]) -> None:
    """As an operator types it: the owner of the key and the user's own name lead to the pseudonym."""
    secret = privacy.secret(place.deployment.data_dir / "secret")
    ann = privacy.pseudonym(secret, "acme", "ann")
    place.say(turn("r1", MARKERS[0], MARKERS[1], who=ann))
    place.fold()
    assert place.run("data", "erase", "--principal", "acme", "--user", "ann") == 2
    assert "confirm it with --yes" in capsys.readouterr().err
    assert place.run("data", "erase", "--user", "ann", "--pseudonym", ann, "--yes") == 2
    assert "--user needs --principal" in capsys.readouterr().err
    assert place.run("data", "erase", "--principal", "acme", "--user", "ann", "--yes", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["erasure"]["user"], said["events"], said["snapshots"]) == (ann, 1, [])
    assert place.found(*MARKERS) == set()
    assert place.run("data", "erase", "--pseudonym", ann, "--yes") == 0
    assert f"{ann} is erased: keys destroyed, 0 events removed" in capsys.readouterr().out


@pytest.fixture
def place(tmp_path: Path) -> Iterator["Place"]:
    with closing(Place(tmp_path)) as made:
        yield made


class Place:
    """One deployment: its log, its state, its snapshots, and every file that they are made of."""

    def __init__(self, folder: Path, state_url: str = "") -> None:
        self.folder = folder
        self.deployment = Deployment(data_dir=folder / "data", state_url=state_url)
        self.log = EmbeddedLog(self.deployment.log_path)
        self.ring = KeyRing(self.deployment.state)
        self.state = store.open_state(self.deployment.state)
        self.read_log: EventLog = self.log
        self.folders = [folder]

    def say(self, *events: Event) -> None:
        """As the gateway writes it."""
        self.ring.refresh()
        append_sealed(self.log, self.ring, *events)

    def fold(self) -> list[pipeline.Folded]:
        done = []
        while (folded := pipeline.step(self.read_log, self.state, CONFIG, now=NOW)).records:
            done.append(folded)
        return done

    def build(self, later: float = 0.0) -> Manifest:
        at = NOW + timedelta(seconds=later)
        return snapshots.build_from(self.state, self.deployment.snapshots_dir, CONFIG, at)

    def load(self, manifest: Manifest) -> snapshots.Snapshot:
        return snapshots.load(self.deployment.snapshots_dir / manifest.name)

    def learn_from(self, manifest: Manifest, name: str = "run-0001", parent: str | None = None) -> str:
        """An adapter registered as the learner does it; returns its name."""
        sha = format(abs(hash(name)) % 16**8, "08x") * 8
        adapter = Adapter(
            name=f"{name}-{sha[:8]}",
            sha256=sha,
            path="/adapters/none",
            base_sha256="0" * 64,
            run_id=name,
            parent=parent,
            snapshot=manifest.name,
            created_at=NOW,
            changed_at=NOW,
        )
        with closing(Registry(self.deployment.state)) as registry:
            return registry.register(adapter).name

    def erase(self, user: str) -> erasing.Report:
        return erasing.erase(self.deployment, CONFIG, user, by="operator:eve", clock=lambda: NOW)

    def run(self, *words: str) -> int:
        config = self.folder / "ratchet.toml"
        config.write_text(f'[deployment]\ndata_dir = "{self.deployment.data_dir}"\n')
        return main(["--config", str(config), *words])

    def forward(self, kafka: EventLog) -> None:
        while forward_once(self.log, kafka):
            pass

    def told(self, raw: bytes) -> str:
        data = codec.decode(raw).data
        assert isinstance(data, UserErased)
        return data.user

    def key_bytes(self, user: str) -> list[bytes]:
        table = keyring.metadata.tables["user_keys"]
        with database.reading(self.state) as tx:
            rows = tx.execute(table.select().where(table.c.user == user)).all()
        return [row.secret for row in rows if row.secret is not None]

    def found(self, *markers: str) -> set[str]:
        """Markers that some file holds, in any of their spellings."""
        contents = [text for folder in self.folders for text in every_byte(folder)]
        return {m for m in markers if any(form in text for form in spellings(m) for text in contents)}

    def holds(self, raw: bytes) -> bool:
        return any(raw in text for folder in self.folders for text in every_byte(folder))

    def close(self) -> None:
        self.log.close()
        self.ring.close()
        self.state.dispose()


def spellings(marker: str) -> list[bytes]:
    """As UTF-8, JSON (escaped or not), UTF-16, and base64 at each of the three offsets."""
    plain = marker.encode()
    forms = [plain, json.dumps(marker)[1:-1].encode(), json.dumps(marker, ensure_ascii=False)[1:-1].encode()]
    forms += [marker.encode("utf-16-le"), marker.encode("utf-16-be")]
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + plain)
        forms.append(coded[4 if offset else 0 : len(coded) // 4 * 4 - 4])
    return forms


def every_byte(folder: Path) -> Iterator[bytes]:
    """The content of every file below the folder, and that of Parquet also as it reads uncompressed.

    Without the zeros at its end: Kafka makes its indexes 10 MB large, and fills them later.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.read_bytes().rstrip(b"\0")
            if file.suffix == ".parquet":
                yield json.dumps(pq.read_table(file).to_pylist(), default=str, ensure_ascii=False).encode()


def ann_says() -> list[Event]:
    """A question, a reply, an edit of it, a comment: everything that can hold words."""
    asked = turn("ann-1", MARKERS[0], MARKERS[1], conversation="ann", who=ANN, token_ids=(7, 8))
    history = (user(MARKERS[0]), assistant(MARKERS[1]), user("No, I meant the other one."))
    return [
        asked,
        turn("ann-2", history, "Then press it twice.", at=30, conversation="ann", who=ANN),
        thumb(asked, False),
        signal(asked, SignalKind.EDIT, text=f"{MARKERS[2]} is how it goes."),
        signal(asked, SignalKind.COMMENT, text=MARKERS[3], reasons=(MARKERS[4],)),
    ]


def bob_says() -> list[Event]:
    asked = turn("bob-1", BOBS, "Hold the button.", conversation="bob", who=BOB)
    return [asked, thumb(asked, True)]
