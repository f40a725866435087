"""The stream's shell on the real log: dead letters, late turns, crashes, stalls, and the command line."""

import json
import signal as signals
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import cache
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from feedback import codec, database, pipeline, snapshots, store
from feedback.__main__ import main
from feedback.config import Pipeline
from feedback.embedded import EmbeddedLog
from feedback.errors import LogUnavailable, StateUnavailable
from feedback.eventlog import Topic, Whole
from feedback.events import AdapterTransitioned, UserErased, adapter_event, erased_event
from feedback.pipeline import Folded
from feedback.sealing import DataKey
from feedback.store import DeadLetter
from tests.feedback.builders import NOON, append, thumb, turn

CONFIG = Pipeline(poll_s=0.02, heldout_fraction=0.0, metrics_port=0)
STRICT = msgspec.structs.replace(CONFIG, max_event_bytes=10_000)
QUESTION = "How do I reset my password?"
BAD = turn("r1", QUESTION, "Click around until something happens.")
GOOD = turn("r2", QUESTION, "Open the settings, choose security and press reset.", at=20)
EVENTS = [BAD, GOOD, thumb(BAD, False), thumb(GOOD, True)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "log.db")) as log:
        yield log


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url: str) -> Iterator[sa.Engine]:
    engine = store.open_state(url)
    yield engine
    engine.dispose()


def step(log: EmbeddedLog, state: sa.Engine, config: Pipeline = CONFIG) -> Folded:
    return pipeline.step(log, state, config, now=NOON)


def grades(state: sa.Engine) -> list[tuple[str, str]]:
    with database.reading(state) as tx:
        return sorted((g.response_id, g.reason) for g in store.derived_rows(tx, "grade"))


def dead_letters(state: sa.Engine) -> list[DeadLetter]:
    with database.reading(state) as tx:
        return store.load_dead_letters(tx)


def everything(state: sa.Engine) -> dict[str, list[tuple]]:
    """All rows of all tables."""
    with database.reading(state) as tx:
        return {t.name: sorted(map(tuple, tx.execute(sa.select(t)))) for t in store.metadata.sorted_tables}


def test_events_become_grades_and_pairs(log, state):
    append(log, *EVENTS)
    folded = step(log, state)
    assert folded.new == {Topic.TURNS: 2, Topic.SIGNALS: 2}
    assert folded.change == {
        ("grade", "thumb"): 2,
        ("pair", "regeneration"): 1,
        ("asked", ""): 1,
        ("item", "0"): 1,
    }
    assert grades(state) == [("r1", "thumb down"), ("r2", "thumb up")]
    assert step(log, state).records == 0


def test_a_signal_that_is_read_before_its_turn_waits_for_it(log, state):
    """Two topics, two readers' paces."""
    append(log, thumb(BAD, False))
    step(log, state)
    assert grades(state) == []
    append(log, BAD)
    step(log, state)
    assert grades(state) == [("r1", "thumb down")]


def test_a_retraction_removes_what_was_derived_before(log, state):
    append(log, BAD, thumb(BAD, False, at=60))
    step(log, state)
    append(log, thumb(BAD, None, at=70))
    assert step(log, state).change == {("grade", "thumb"): -1}
    assert grades(state) == []


def test_only_touched_conversations_are_derived_again(log, state):
    """The cost of an event must not grow with the history of everybody else."""
    others = [turn(f"o{n}", QUESTION, "Yes.", conversation=f"o{n}") for n in range(20)]
    append(log, *others)
    step(log, state)
    append(log, BAD)
    statements = []
    sa.event.listen(state, "before_cursor_execute", lambda *a: statements.append(a[2:4]))
    step(log, state)
    touched = [parameters for sql, parameters in statements if "feedback_derived" in sql]
    assert touched and "o1" not in str(touched)


# --- bad records


def not_an_event() -> bytes:
    return b"\xff\xfe nonsense"


def adapter_in_the_wrong_topic() -> bytes:
    moved = AdapterTransitioned(adapter="a", from_state="x", to_state="y", by="z", reason="", at=NOON)
    return codec.encode(adapter_event(moved))


def signal_in_the_wrong_topic() -> bytes:
    return codec.encode(thumb(BAD, True))


def foreign_key() -> bytes:
    return codec.encode(msgspec.structs.replace(BAD, key="another conversation"))


def nul_in_a_name() -> bytes:
    return codec.encode(turn("r8", QUESTION, "Yes.", conversation="c\0"))


@cache
def nul_in_the_name_of_a_key() -> bytes:
    """It is looked up before anything is opened."""
    return codec.encode(turn("r8k", QUESTION, "Yes."), DataKey("k\0", b"k" * 32))


def nul_in_a_user() -> bytes:
    return codec.encode(turn("r8u", QUESTION, "Yes.", who="ann\0"))


def long_name() -> bytes:
    return codec.encode(turn("r8" * 501, QUESTION, "Yes."))


def without_a_field() -> bytes:
    return codec.encode(turn("r8", QUESTION, "Yes.")).replace(b'"adapter"', b'"adaptor"')


def of_another_type() -> bytes:
    return codec.encode(turn("r8", QUESTION, "Yes.")).replace(b'"propensity":1.0', b'"propensity":"all"')


def endless() -> bytes:
    return codec.encode(turn("r7", QUESTION, "Yes.", duration_s=1e300))


def huge() -> bytes:
    return codec.encode(turn("r9", QUESTION, "x" * 10_000))


def bottomless() -> bytes:
    """Brackets deep enough to exhaust any parser's stack."""
    return codec.encode(turn("r9", QUESTION, "Yes.")).replace(b'"Yes."', b"[" * 2_000 + b"]" * 2_000)


def from_the_future() -> bytes:
    return codec.encode(turn("r9", QUESTION, "Yes.", at=86_401))


def ends_in_the_future() -> bytes:
    return codec.encode(turn("r9", QUESTION, "Yes.", duration_s=86_401))


def from_the_past() -> bytes:
    return codec.encode(turn("r9", QUESTION, "Yes.", at=-7 * 365 * 86_400))


def signalled_in_the_future() -> bytes:
    """The envelope's time is right, the data's is not."""
    event = turn("r9", QUESTION, "Yes.", at=86_401)
    return codec.encode(msgspec.structs.replace(event, time=NOON))


def without_time_zone() -> bytes:
    return codec.encode(turn("r9", QUESTION, "Yes.")).replace(b"12:00:00Z", b"12:00:00")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (not_an_event, "CodecError: not a CloudEvents 1.0 JSON object"),
        (adapter_in_the_wrong_topic, "is a AdapterTransitioned; turns takes TurnRecorded"),
        (signal_in_the_wrong_topic, "is a SignalReceived; turns takes TurnRecorded"),
        (foreign_key, "has key 'another conversation' but belongs to 'c1'"),
        (nul_in_a_name, "no database takes a NUL in a name"),
        (nul_in_the_name_of_a_key, "no database takes a NUL in a name"),
        (nul_in_a_user, "'ann\\x00': no database takes a NUL in a name"),
        (long_name, "LimitExceeded: a name of 1007 bytes, 'turn-r8r8"),
        (without_a_field, "'turn-r8': Object missing required field `adapter`"),
        (of_another_type, "Expected `float`, got `str` - at `$.propensity`"),
        (endless, "OverflowError"),
        (huge, "LimitExceeded: 10"),
        (bottomless, "CodecError: not a CloudEvents 1.0 JSON object (maximum recursion depth"),
        (from_the_future, "LimitExceeded: 'turn-r9': time 2026-03-03T12:00:01+00:00 is in the future"),
        (ends_in_the_future, "LimitExceeded: 'turn-r9': the reply's end 2026-03-03T12:00:01+00:00 is in"),
        (signalled_in_the_future, "LimitExceeded: 'turn-r9': started_at 2026-03-03T12:00:01+00:00 is in"),
        (from_the_past, "LimitExceeded: 'turn-r9': time 2019-03-04T12:00:00+00:00 is before [pipeline]"),
        (without_time_zone, "CodecError: 'turn-r9': time 2026-03-02T12:00:00 has no time zone"),
    ],
)
def test_a_bad_record_goes_to_the_dead_letters_and_stops_nothing(log, state, value, reason):
    append(log, BAD)
    log.append(Topic.TURNS, "c1", "bad", value()).result(timeout=30)
    append(log, GOOD, *EVENTS[2:])
    folded = step(log, state, STRICT)
    (letter,) = dead_letters(state)
    assert reason in letter.reason
    assert (letter.topic, letter.offset, letter.value) == ("turns", 1, value())
    assert folded.dead == {Topic.TURNS: 1}
    assert grades(state) == [("r1", "thumb down"), ("r2", "thumb up")]


def test_an_event_that_cannot_be_derived_from_is_not_stored(log, state):
    """Otherwise its conversation would fail for ever."""
    log.append(Topic.TURNS, "c1", "bad", endless()).result(timeout=30)
    step(log, state)
    append(log, *EVENTS)
    step(log, state)
    assert len(dead_letters(state)) == 1
    assert len(grades(state)) == 2


def test_an_event_at_the_limits_is_folded(log, state):
    """Clocks differ by a little; the limits are for what cannot be."""
    edge = turn("r9", QUESTION, "Yes.", at=86_400, duration_s=0.0)
    size = len(codec.encode(edge))
    append(log, edge, turn("r0", QUESTION, "No.", at=-6 * 365 * 86_400, conversation="c0"))
    folded = step(log, state, msgspec.structs.replace(CONFIG, max_event_bytes=size))
    assert (folded.new, folded.dead) == ({Topic.TURNS: 2}, {})


# --- dead letters, once more


def spoil(log: EmbeddedLog, *values: bytes) -> None:
    for value in values:
        log.append(Topic.TURNS, "c1", f"bad {value[:99]!r}", value).result(timeout=30)


def replay(state: sa.Engine, config: Pipeline = CONFIG, *, at: timedelta = timedelta()) -> pipeline.Replayed:
    return pipeline.replay_dead_letters(state, config, now=NOON + at)


def test_a_dead_letter_is_folded_once_it_can_be(log, state):
    """By the same path as the stream: what is stored and derived is as if it had passed at once."""
    append(log, BAD)
    spoil(log, huge(), b"?")
    append(log, *EVENTS[2:])
    step(log, state, STRICT)
    replayed = replay(state)
    assert (replayed.folded, replayed.repeated) == (1, 0)
    assert [letter.value for letter in replayed.failed] == [b"?"]
    assert [letter.value for letter in dead_letters(state)] == [b"?"]
    with database.reading(state) as tx:
        assert store.known_events(tx, ["turn-r9"]) == {"turn-r9"}
        assert {r for asked in store.derived_rows(tx, "asked") for r in asked.response_ids} == {"r1", "r9"}
    assert replay(state) == pipeline.Replayed(failed=replayed.failed)


def test_what_is_replayed_equals_what_was_never_stopped(log, state, tmp_path):
    """Invariant 2 reaches through the dead letters."""
    append(log, *EVENTS[:2])
    spoil(log, huge(), from_the_future())
    append(log, *EVENTS[2:])
    step(log, state, STRICT)
    assert replay(state, at=timedelta(days=1)).folded == 1  # both are r9: the first counts
    smooth = store.open_state(f"sqlite:///{tmp_path}/smooth.db")
    pipeline.step(log, smooth, CONFIG, now=NOON + timedelta(days=1))
    after = everything(state)
    assert after["feedback_dead_letters"] == []
    assert after == everything(smooth)
    smooth.dispose()


def test_a_dead_letter_whose_event_came_otherwise_is_dropped(log, state):
    """A producer that sends a good copy later leaves nothing to fold, and nothing to look at."""
    late = turn("r9", QUESTION, "Yes.", at=86_401)
    spoil(log, codec.encode(late))
    step(log, state)
    append(log, late)
    pipeline.step(log, state, CONFIG, now=NOON + timedelta(days=1))
    before = everything(state)
    assert replay(state, at=timedelta(days=1)) == pipeline.Replayed(repeated=1)
    assert everything(state) == {**before, "feedback_dead_letters": []}


def test_a_metric_says_how_many_dead_letters_wait(log, state):
    """It falls when they were replayed, also by another process: the next step looks."""
    spoil(log, huge(), b"?")
    step(log, state, STRICT)
    step(log, state, STRICT)
    assert metric("ratchet_feedback_dead_letters_waiting") == 2
    replay(state)
    step(log, state, STRICT)
    assert metric("ratchet_feedback_dead_letters_waiting") == 1


def test_a_crash_in_a_replay_loses_no_letter(log, state):
    """A letter leaves in the transaction that folds it."""
    spoil(log, huge())
    step(log, state, STRICT)
    before = everything(state)

    def crash(connection, cursor, statement, *_):
        if statement.startswith("DELETE FROM feedback_dead_letters"):
            raise Crash

    sa.event.listen(state, "before_cursor_execute", crash)
    with pytest.raises(Crash):
        replay(state)
    sa.event.remove(state, "before_cursor_execute", crash)
    assert everything(state) == before
    assert replay(state).folded == 1


# --- crashes, replays, stalls


class Crash(Exception):
    pass


@pytest.mark.parametrize("survived", range(6))
def test_a_crash_at_any_statement_repeats_the_batch_and_changes_nothing(tmp_path, log, survived):
    """Events, what was derived, dead letters and offsets are one transaction."""
    append(log, *EVENTS)
    log.append(Topic.TURNS, "c1", "bad", b"?").result(timeout=30)
    smooth = store.open_state(f"sqlite:///{tmp_path}/smooth.db")
    step(log, smooth)
    bumpy = store.open_state(f"sqlite:///{tmp_path}/bumpy.db")
    writes = iter(range(99))

    def crash(connection, cursor, statement, *_):
        if statement.startswith(("INSERT", "DELETE")) and next(writes) == survived:
            raise Crash

    sa.event.listen(bumpy, "before_cursor_execute", crash)
    crashed = False
    try:
        step(log, bumpy)
    except Crash:
        crashed = True
        assert everything(bumpy) == {t.name: [] for t in store.metadata.sorted_tables}
    step(log, bumpy)
    assert everything(bumpy) == everything(smooth)
    assert crashed == (survived < 4)  # insert events, derived, dead letters, offsets
    smooth.dispose()
    bumpy.dispose()


def test_replaying_the_log_from_zero_changes_no_row(log, state):
    """Invariant 2, on the state itself."""
    append(log, *EVENTS)
    step(log, state)
    before = everything(state)
    with database.writing(state) as tx:
        store.save_offsets(tx, {("turns", 0): 0, ("signals", 0): 0})
    folded = step(log, state)
    assert folded.repeated == {Topic.TURNS: 2, Topic.SIGNALS: 2}
    assert everything(state) == before


def test_two_pipelines_on_one_state_do_no_harm(log, url):
    """An operator may start a second one by mistake."""
    replies = [turn(f"t{n}", QUESTION, f"A {n}.", conversation=f"c{n}") for n in range(60)]
    append(log, *replies, *(thumb(t, True) for t in replies))

    def drain(_: int) -> None:
        engine = store.open_state(url)
        while pipeline.step(log, engine, Pipeline(batch_records=7), now=NOON).records:
            pass
        engine.dispose()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(drain, range(2)))
    engine = store.open_state(url)
    assert len(grades(engine)) == 60
    engine.dispose()


def test_a_backlogs_topics_move_on_at_one_pace(log, state):
    """Thumbs that are read long before their turns have every conversation derived twice."""
    replies = [turn(f"t{n}", QUESTION, f"A {n}.", conversation=f"c{n}") for n in range(20)]
    append(log, *replies, *(thumb(t, True) for t in replies[:10]))
    folded = step(log, state, Pipeline(batch_records=6))  # a fifth of the 30 that wait
    assert folded.new == {Topic.TURNS: 4, Topic.SIGNALS: 2}


def test_who_waits_for_little_is_read_beside_a_backlog(log, state):
    """An erasure must not wait until a million turns are folded."""
    append(
        log, *(turn(f"t{n}", QUESTION, f"A {n}.", conversation=f"c{n}") for n in range(40)), thumb(BAD, True)
    )
    assert step(log, state, Pipeline(batch_records=4)).new == {Topic.TURNS: 4, Topic.SIGNALS: 1}


def test_other_rules_derive_everything_anew(log, state):
    """A release or a setting that reads events otherwise must not leave rows of the old reading behind."""
    quick = turn("r2", QUESTION, "Open the settings, choose security and press reset.", at=1.5)
    append(log, BAD, quick, thumb(quick, True))
    step(log, state)
    assert pipeline.rederive(state, retry_window_s=0.1) == 1
    with database.reading(state) as tx:
        assert [p.kind.value for p in store.derived_rows(tx, "pair")] == ["regeneration"]


@pytest.mark.postgres
def test_names_that_postgresql_cannot_take_stall_nobody(log, postgres_url):
    """It refuses a NUL, and rows that its indexes cannot hold: the batch would fail for ever."""
    erased = UserErased(user="u\0", keys=("k\0",), by="eve\0", at=NOON)
    log.append(Topic.USERS, "u", "bad", codec.encode(erased_event(erased))).result(timeout=30)
    longest = turn("r" * 995, QUESTION, "Yes.", conversation="c" * 1000, who="u" * 1000)
    append(log, longest)
    spoil(log, nul_in_a_name(), nul_in_the_name_of_a_key(), nul_in_a_user(), long_name())
    shared = store.open_state(postgres_url)
    assert step(log, shared).new == {Topic.TURNS: 1}
    assert len(dead_letters(shared)) == 5
    shared.dispose()


@pytest.mark.postgres
def test_postgresql_holds_the_same_state_as_sqlite(log, state, url, postgres_url, tmp_path):
    """Several machines share one; a replay there must be as harmless, and the snapshot the same."""
    append(log, *EVENTS)
    log.append(Topic.TURNS, "c1", "bad", b"?").result(timeout=30)
    shared = store.open_state(postgres_url)
    for engine in (state, shared):
        step(log, engine)
        with database.writing(engine) as tx:
            store.save_offsets(tx, {("turns", 0): 0, ("signals", 0): 0})
        assert step(log, engine).repeated == {Topic.TURNS: 2, Topic.SIGNALS: 2}
        assert [letter.value for letter in replay(engine).failed] == [b"?"]
    assert everything(shared) == everything(state)
    shared.dispose()
    built = [
        snapshots.build(u, tmp_path / name, CONFIG, NOON) for name, u in (("a", url), ("b", postgres_url))
    ]
    assert built[0] == built[1]


class running:
    """The pipeline in a thread, until the end of the block."""

    def __init__(self, log, state, config=CONFIG, snapshots_dir=Path("unused")):
        self.stop = threading.Event()
        kwargs = {"share": Whole([0]), "snapshots_dir": snapshots_dir, "clock": lambda: NOON}
        self.thread = threading.Thread(
            target=pipeline.run, args=(log, state, config, self.stop), kwargs=kwargs
        )

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


def until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_running_folds_what_comes_until_it_is_stopped(log, state):
    before = metric("ratchet_feedback_events_total", topic="turns")
    with running(log, state):
        append(log, *EVENTS)
        until(lambda: len(grades(state)) == 2)
    assert metric("ratchet_feedback_events_total", topic="turns") == before + 2
    assert metric("ratchet_feedback_lag_records", topic="turns") == 0


class Flaky:
    """A log that is out of reach the first few times."""

    def __init__(self, log: EmbeddedLog, failures: int):
        self.log, self.failures = log, failures

    def read(self, *args, **kwargs):
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("broker away")
        return self.log.read(*args, **kwargs)

    def partitions(self, topic):
        return self.log.partitions(topic)

    def ends(self, places):
        return self.log.ends(places)


@pytest.mark.slow
def test_a_log_out_of_reach_is_waited_for(log, state):
    before = metric("ratchet_feedback_stalls_total")
    append(log, *EVENTS)
    with running(Flaky(log, failures=1), state):
        until(lambda: len(grades(state)) == 2)
    assert metric("ratchet_feedback_stalls_total") == before + 1


def test_a_state_out_of_reach_is_said(tmp_path):
    with pytest.raises(StateUnavailable, match="does not answer: unable to open database file"):
        store.open_state(f"sqlite:///{tmp_path}")


def test_snapshots_can_be_built_on_a_clock(log, state, tmp_path):
    append(log, *EVENTS)
    ticking = Pipeline(poll_s=0.02, heldout_fraction=0.0, snapshot_every_s=1e-9)
    stop = threading.Event()
    times = iter(range(10**9))
    thread = threading.Thread(
        target=pipeline.run,
        args=(log, state, ticking, stop),
        kwargs={
            "share": Whole([0]),
            "snapshots_dir": tmp_path / "s",
            "clock": lambda: NOON + timedelta(seconds=next(times)),
        },
    )
    thread.start()
    until(lambda: snapshots.listed(tmp_path / "s"))
    stop.set()
    thread.join(timeout=20)
    assert len(snapshots.listed(tmp_path / "s")) == 1


# --- the command line


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "ratchet.toml"
    file.write_text(
        f'[deployment]\ndata_dir = "{tmp_path}"\n'
        "[pipeline]\npoll_s = 0.02\nheldout_fraction = 0.0\nmetrics_port = 0\n"
    )
    return file


def test_data_builds_lists_shows_and_traces(log, state, config_file, capsys):
    append(log, *EVENTS)
    step(log, state)

    def output(*argv: str):
        assert main([*argv, "--json"], config_file) == 0
        return json.loads(capsys.readouterr().out)

    built = output("data", "build")
    assert output("data", "list") == [built]
    assert output("data", "show", built["name"]) == built
    directory = config_file.parent / "snapshots" / built["name"]
    pair = next(p for p in snapshots.load(directory).pairs if p.raters)
    traced = output("data", "lineage", pair.pair_id)
    assert [e["id"] for e in traced["events"]] == [
        "turn-r1",
        "turn-r2",
        "signal-thumb-r1-ann-60",
        "signal-thumb-r2-ann-60",
    ]


def test_tables_show_what_the_json_does(log, state, config_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    append(log, *EVENTS)
    step(log, state)
    assert main(["data", "build"], config_file) == 0
    name = snapshots.listed(config_file.parent / "snapshots")[0].name
    assert name in capsys.readouterr().out
    assert main(["data", "list"], config_file) == 0
    assert name in capsys.readouterr().out
    found = snapshots.load(config_file.parent / "snapshots" / name)
    pair = next(p for p in found.pairs if p.raters)
    assert main(["data", "lineage", pair.pair_id], config_file) == 0
    shown = capsys.readouterr().out
    assert "Click around until something happens." in shown and "thumb 0" in shown


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["data", "build"], "nothing to learn from yet"),
        (["data", "show", "snapshot-0"], "is no snapshot"),
        (["data", "lineage", "pair-0"], "holds a pair 'pair-0'"),
        (["forward"], 'only "kafka" has anything to forward to'),
    ],
)
def test_what_cannot_be_done_is_said_and_exits_2(config_file, capsys, argv, complaint):
    assert main(argv, config_file) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err and captured.out == ""


def start(config_file: Path) -> subprocess.Popen[bytes]:
    code = "import sys, pathlib, feedback.__main__ as m; m.main(['pipeline'], pathlib.Path(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, config_file], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_pipeline_goes_on_where_it_was_and_sigterm_ends_it(log, url, config_file):
    """SIGKILL under load, three times; then the log replayed from zero must give the same snapshot."""
    for life in range(3):
        process = start(config_file)
        try:
            for n in range(40):
                t = turn(
                    f"t{life}-{n}",
                    f"Question {n % 5} of my account?",
                    f"Answer {n}.",
                    conversation=f"{life}-{n}",
                )
                append(log, t, thumb(t, n % 2 == 0))
            engine = store.open_state(url)
            until(lambda seen=life * 40, engine=engine: len(grades(engine)) > seen)
            engine.dispose()
        finally:
            process.kill()
            process.communicate()
    process = start(config_file)
    append(log, BAD, thumb(BAD, False))
    engine = store.open_state(url)
    until(lambda: len(grades(engine)) == 121)
    engine.dispose()
    process.send_signal(signals.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    replayed = f"sqlite:///{config_file.parent}/replayed.db"
    again = store.open_state(replayed)
    while pipeline.step(log, again, CONFIG, now=NOON).records:
        pass
    again.dispose()
    built = [
        snapshots.build(u, config_file.parent / f"s{i}", CONFIG, NOON) for i, u in enumerate((url, replayed))
    ]
    assert built[0].hash == built[1].hash
