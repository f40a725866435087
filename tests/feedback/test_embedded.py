"""What the embedded log promises beyond the contract: group commit, crashes, full disks, lost files."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from feedback.embedded import FIRST_TURN, FORMAT, Backlog, EmbeddedLog, _open
from feedback.errors import LogError, LogFull, LogUnavailable
from feedback.eventlog import Position, Topic

_SPAWN = multiprocessing.get_context("spawn")
_WAIT_S = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(path)) as log:
        yield log


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process in the middle of a transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


def commits(outcome: str = "durable") -> float:
    return REGISTRY.get_sample_value("ratchet_feedback_log_commits_total", {"outcome": outcome}) or 0.0


def event_ids(path: Path) -> list[str]:
    with closing(EmbeddedLog(path)) as log:
        return [r.event_id for r in log.read(Topic.TURNS, 0, 0, limit=1_000_000)]


def test_everything_that_waits_goes_into_one_commit(log: EmbeddedLog, path: Path) -> None:
    """One fsync serves all waiting callers; this is what makes durable-before-done affordable."""
    log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
    before = commits()
    with locked(path):
        futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(300)]
        assert not any(f.done() for f in futures)
    for f in futures:
        f.result(_WAIT_S)
    # the writer took what was there when it first looked; all the others waited for the next transaction
    assert 1 <= commits() - before <= 2


def test_a_future_resolves_only_once_another_connection_can_see_the_entry(
    log: EmbeddedLog, path: Path
) -> None:
    """Committed, not merely queued: a second connection reads nothing else."""
    with closing(sqlite3.connect(path)) as other:
        for i in range(20):
            log.append(Topic.TURNS, "k", f"e{i}", b"v").result(_WAIT_S)
            assert other.execute("SELECT count(*) FROM turns").fetchone() == (i + 1,)


def test_every_commit_is_synced(path: Path) -> None:
    """synchronous=FULL: without it a power cut takes acknowledged entries away, and no kill shows it."""
    with closing(_open(path, 5.0)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_log_of_the_first_format_gets_the_topics_that_came_since(tmp_path: Path) -> None:
    """Format 1 knew no users: what lies in it stays, and erasures can be told."""
    path = tmp_path / "log.db"
    with closing(EmbeddedLog(path)) as log:
        log.append(Topic.TURNS, "k", "e1", b"v").result(_WAIT_S)
    with closing(sqlite3.connect(path)) as older:
        older.executescript('DROP TABLE "users"; PRAGMA user_version=1')
    with closing(EmbeddedLog(path)) as log:
        assert log.append(Topic.USERS, "u", "e2", b"w").result(_WAIT_S) is not None
        assert [r.value for t in (Topic.TURNS, Topic.USERS) for r in log.read(t, 0, 0)] == [b"v", b"w"]


def test_appending_blocks_nobody_while_the_file_is_locked(log: EmbeddedLog, path: Path) -> None:
    """The gateway appends on its event loop."""
    log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
    with locked(path):
        futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(1000)]
        assert not any(future.done() for future in futures)
    futures[-1].result(_WAIT_S)


def test_a_second_append_of_an_event_keeps_the_first(log: EmbeddedLog) -> None:
    """Same transaction or later: the position is the first one's, and offsets have no gap."""
    first = log.append(Topic.TURNS, "k", "event", b"first")
    again = log.append(Topic.TURNS, "k", "event", b"second")
    assert first.result(_WAIT_S) == again.result(_WAIT_S) == Position("turns", 0, 0)
    assert log.append(Topic.TURNS, "k", "event", b"third").result(_WAIT_S) == Position("turns", 0, 0)
    assert log.append(Topic.TURNS, "k", "next", b"v").result(_WAIT_S) == Position("turns", 0, 1)
    assert log.find(Topic.TURNS, "event") == b"first"


def test_repeats_within_one_commit_keep_the_order_of_the_first_appends(log: EmbeddedLog, path: Path) -> None:
    """A retry that meets its original in the same group must not move it behind later entries."""
    log.append(Topic.TURNS, "k", "a", b"0").result(_WAIT_S)
    with locked(path):
        futures = [
            log.append(Topic.TURNS, "k", event_id, value)
            for event_id, value in (("b", b"1"), ("a", b"2"), ("c", b"3"), ("b", b"4"), ("d", b"5"))
        ]
    offsets = [f.result(_WAIT_S) for f in futures]
    assert offsets == [Position("turns", 0, n) for n in (1, 0, 2, 1, 3)]
    assert [r.value for r in log.read(Topic.TURNS, 0, 0)] == [b"0", b"1", b"3", b"5"]


def test_find_looks_only_in_its_topic(log: EmbeddedLog) -> None:
    """Feedback on a reply that was never served must be refused."""
    log.append(Topic.TURNS, "k", "event", b"v").result(_WAIT_S)
    assert log.find(Topic.TURNS, "event") == b"v"
    assert log.find(Topic.SIGNALS, "event") is None
    assert log.find(Topic.TURNS, "other") is None


def test_cursors_only_move_forward_and_are_kept(log: EmbeddedLog, path: Path) -> None:
    """A late acknowledgement of an earlier batch must not bring entries back."""
    assert log.cursor("forward", Topic.TURNS) == 0
    log.advance("forward", Topic.TURNS, 7).result(_WAIT_S)
    log.advance("forward", Topic.TURNS, 3).result(_WAIT_S)
    log.advance("other", Topic.TURNS, 1).result(_WAIT_S)
    with closing(EmbeddedLog(path)) as reopened:
        assert reopened.cursor("forward", Topic.TURNS) == 7
        assert reopened.cursor("other", Topic.TURNS) == 1
        assert reopened.cursor("forward", Topic.SIGNALS) == 0


def test_the_backlog_is_what_lies_beyond_the_cursor(path: Path) -> None:
    """How much waits and since when: what an operator watches during a Kafka outage."""
    noon_s = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp()
    times = iter([noon_s, noon_s + 60, noon_s + 120])
    with closing(EmbeddedLog(path, clock=lambda: next(times))) as log:
        assert log.backlog("forward", Topic.TURNS) == Backlog(0, None)
        for i in range(3):
            log.append(Topic.TURNS, "k", f"e{i}", b"v").result(_WAIT_S)
        assert log.backlog("forward", Topic.TURNS) == Backlog(3, datetime(2026, 3, 1, 12, 0, tzinfo=UTC))
        log.advance("forward", Topic.TURNS, 2).result(_WAIT_S)
        assert log.backlog("forward", Topic.TURNS) == Backlog(1, datetime(2026, 3, 1, 12, 2, tzinfo=UTC))
        log.advance("forward", Topic.TURNS, 3).result(_WAIT_S)
        assert log.backlog("forward", Topic.TURNS) == Backlog(0, None)


def test_a_locked_file_fails_the_append_in_time_and_heals(path: Path) -> None:
    """Somebody's forgotten transaction turns recording off visibly; it does not hang the gateway."""
    with closing(EmbeddedLog(path, lock_timeout_s=0.2)) as log:
        log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
        with locked(path):
            started_s = time.monotonic()
            error = log.append(Topic.TURNS, "k", "refused", b"v").exception(_WAIT_S)
            assert isinstance(error, LogUnavailable)
            assert "locked" in str(error)
            assert time.monotonic() - started_s < 2
        log.append(Topic.TURNS, "k", "second", b"v").result(_WAIT_S)
    assert event_ids(path) == ["first", "second"]


def test_too_many_waiting_entries_are_refused_at_once(path: Path) -> None:
    """A disk that hangs must not eat the memory of the process that serves the chat."""
    with closing(EmbeddedLog(path, max_pending=10)) as log:
        log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
        with locked(path):
            under_way = log.append(Topic.TURNS, "k", "under way", b"v")
            time.sleep(0.2)  # the writer has it and waits for the lock
            futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(50)]
            errors = [f.exception(0) for f in futures[10:]]
        assert len(errors) == 40
        assert all(isinstance(e, LogUnavailable) and "already wait" in str(e) for e in errors)
        assert all(f.result(_WAIT_S) is not None for f in (under_way, *futures[:10]))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone_is_an_error_until_the_process_restarts(
    log: EmbeddedLog, path: Path, replaced: bool
) -> None:
    """SQLite would go on writing into the deleted file, and every acknowledgement would be a lie."""
    log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
    for leftover in path.parent.glob("log.db*"):
        leftover.unlink()
    if replaced:
        with closing(EmbeddedLog(path)) as another:
            another.append(Topic.TURNS, "k", "other", b"v").result(_WAIT_S)
    error = log.append(Topic.TURNS, "k", "second", b"v").exception(_WAIT_S)
    assert isinstance(error, LogUnavailable)
    assert str(path) in str(error)
    assert not replaced or event_ids(path) == ["other"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The message says which path; the constructor never fails, so the chat can start without its log."""
    (tmp_path / "file").write_text("not a folder")
    with closing(EmbeddedLog(tmp_path / "file" / "log.db")) as log:
        error = log.append(Topic.TURNS, "k", "e", b"v").exception(_WAIT_S)
        assert isinstance(error, LogUnavailable)
        assert str(tmp_path / "file") in str(error)
        with pytest.raises(LogUnavailable):
            log.read(Topic.TURNS, 0, 0)


def test_a_file_that_is_no_log_is_refused_and_left_alone(path: Path) -> None:
    """A wrong path in the configuration must not cost the file that lies there."""
    path.write_bytes(b"something quite different, and longer than a header of SQLite would be" * 20)
    before = path.read_bytes()
    with closing(EmbeddedLog(path)) as log:
        assert isinstance(log.append(Topic.TURNS, "k", "e", b"v").exception(_WAIT_S), LogUnavailable)
    assert path.read_bytes() == before


def test_a_log_of_a_later_release_is_refused(log: EmbeddedLog, path: Path) -> None:
    """Going back a release must not write an old layout into a new file."""
    log.append(Topic.TURNS, "k", "e", b"v").result(_WAIT_S)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version=99")
    with closing(EmbeddedLog(path)) as old_release, pytest.raises(LogUnavailable, match="format is 99"):
        old_release.end(Topic.TURNS, 0)


@pytest.mark.slow
def test_the_write_ahead_log_is_emptied_as_it_grows(log: EmbeddedLog, path: Path) -> None:
    """Automatic checkpoints are off, so ours must happen: 10,000 entries of 1 kB would otherwise pile up."""
    for start in range(0, 10_000, 500):
        for f in [log.append(Topic.TURNS, "k", f"e{start + i}", b"v" * 1000) for i in range(500)]:
            f.result(_WAIT_S)
    assert path.stat().st_size > 7_000_000
    assert path.with_name("log.db-wal").stat().st_size < 16_000_000


def _writing(path: Path, name: str, entries: int) -> None:
    with closing(EmbeddedLog(path)) as log:
        for f in [log.append(Topic.TURNS, name, f"{name}-{i}", b"v" * 200) for i in range(entries)]:
            f.result(_WAIT_S)


@pytest.mark.slow
def test_processes_that_start_together_share_one_file(path: Path) -> None:
    """Gateways, pipeline and controller all open the log when `ratchet up` starts them at once."""
    processes = [_SPAWN.Process(target=_writing, args=(path, f"p{n}", 400)) for n in range(4)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0, 0]
    with closing(EmbeddedLog(path)) as log:
        records = log.read(Topic.TURNS, 0, 0, limit=10_000)
    assert [r.position.offset for r in records] == list(range(1600))
    for n in range(4):
        assert [r.event_id for r in records if r.key == f"p{n}"] == [f"p{n}-{i}" for i in range(400)]


_APPEND_FOR_EVER = """
import sys
from collections import deque
from pathlib import Path
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic

log, first, waiting = EmbeddedLog(Path(sys.argv[1])), int(sys.argv[2]), deque()
while True:
    for i in range(first, first + 7):
        waiting.append((i, log.append(Topic.TURNS, "k", f"e{i}", b"v" * (i % 3000))))
    first += 7
    while len(waiting) > 21:
        i, future = waiting.popleft()
        future.result()
        sys.stdout.write(f"{i}\\n")
        sys.stdout.flush()
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing_acknowledged(path: Path) -> None:
    """Invariant 1. Eight kills at random moments; what was acknowledged is there, once."""
    moments = random.Random(20260301)
    acknowledged: list[int] = []
    sent = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _APPEND_FOR_EVER, path, str(sent)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        acknowledged.append(int(process.stdout.readline()))
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        process.stdout.close()
        found = event_ids(path)
        assert len(found) == len(set(found))
        assert {f"e{i}" for i in acknowledged} <= set(found)
        sent = max(int(e[1:]) for e in found) + 1
    assert len(acknowledged) > 100
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        return False
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "ratchet-test", folder], capture_output=True
    )
    return made.returncode == 0


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "tiny"
    if not _mounted(folder, "1m"):
        pytest.skip("a full disk is tried on a tmpfs of 1 MiB, which only root can mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(append: Callable[[str], "LogError | None"]) -> LogError:
    for i in range(10_000):
        if (error := append(f"e{i}")) is not None:
            return error
    raise AssertionError("the disk never filled up")


def test_a_full_disk_fails_appends_with_log_full_and_they_go_on_when_there_is_space(tiny_disk: Path) -> None:
    """What was acknowledged stays, what was refused is not there, and nobody has to restart anything."""
    path, ballast = tiny_disk / "log.db", tiny_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    acknowledged = []
    with closing(EmbeddedLog(path)) as log:

        def append(event_id: str) -> LogError | None:
            error = log.append(Topic.TURNS, "k", event_id, b"v" * 2000).exception(_WAIT_S)
            assert error is None or isinstance(error, LogError)
            if error is None:
                acknowledged.append(event_id)
            return error

        error = fill(append)
        assert isinstance(error, LogFull)
        assert "no space left" in str(error)
        assert len(acknowledged) > 10
        assert isinstance(append("still-full"), LogFull)
        assert [r.event_id for r in log.read(Topic.TURNS, 0, 0, limit=1000)] == acknowledged
        ballast.unlink()
        assert append("there is space again") is None
        assert [r.event_id for r in log.read(Topic.TURNS, 0, 0, limit=1000)] == acknowledged
    assert event_ids(path) == acknowledged


_APPEND_UNTIL_REFUSED = """
import sys
from pathlib import Path
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic

log = EmbeddedLog(Path(sys.argv[1]))
for i in range(10_000):
    error = log.append(Topic.TURNS, "k", f"e{i}", b"v" * 2000).exception(20)
    if error is not None:
        print(i, type(error).__name__)
        break
"""


@pytest.mark.slow
def test_a_file_that_may_not_grow_refuses_and_keeps_what_it_has(path: Path) -> None:
    """A quota: the write fails with EFBIG, which SQLite does not report as a full disk."""
    limit = 300_000

    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", _APPEND_UNTIL_REFUSED, path],
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
        timeout=60,
        check=True,
    )
    count, error = done.stdout.split()
    assert error == "LogUnavailable"
    assert int(count) > 10
    assert event_ids(path) == [f"e{i}" for i in range(int(count))]


def test_closing_while_the_file_is_locked_fails_the_futures_instead_of_hanging(path: Path) -> None:
    """A gateway that stops during trouble must still stop."""
    log = EmbeddedLog(path, lock_timeout_s=0.2)
    log.append(Topic.TURNS, "k", "first", b"v").result(_WAIT_S)
    with locked(path):
        futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(20)]
        closer = threading.Thread(target=log.close)
        closer.start()
        closer.join(_WAIT_S)
        assert not closer.is_alive()
    assert all(isinstance(f.exception(0), LogUnavailable) for f in futures)


def test_the_first_turn_of_a_conversation_is_found_by_its_key(log: EmbeddedLog) -> None:
    """Feedback may be about a conversation: who began it is asked each time."""
    for event_id, key in (("e0", "a"), ("e1", "b"), ("e2", "b"), ("e3", "a")):
        log.append(Topic.TURNS, key, event_id, event_id.encode()).result(_WAIT_S)
    log.append(Topic.SIGNALS, "c", "s0", b"a signal alone").result(_WAIT_S)
    assert [log.first_turn(key) for key in ("a", "b", "c")] == [b"e0", b"e1", None]


def test_a_log_of_format_1_gets_its_index_and_keeps_its_entries(log: EmbeddedLog, path: Path) -> None:
    """Else every word about a conversation would read the whole log."""
    for i in range(3):
        log.append(Topic.TURNS, f"k{i}", f"e{i}", b"v").result(_WAIT_S)
    log.close()
    with closing(sqlite3.connect(path)) as before:
        before.execute("DROP INDEX turns_by_key")
        before.execute("PRAGMA user_version=1")
    with closing(EmbeddedLog(path)) as upgraded:
        assert upgraded.first_turn("k1") == b"v"
        assert upgraded.append(Topic.TURNS, "k", "e3", b"v").result(_WAIT_S) == Position("turns", 0, 3)
    assert event_ids(path) == ["e0", "e1", "e2", "e3"]
    with closing(sqlite3.connect(path)) as after:
        assert after.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        plan = after.execute(f"EXPLAIN QUERY PLAN {FIRST_TURN}", ("k1",)).fetchall()
    assert [step[3] for step in plan] == ["SEARCH turns USING INDEX turns_by_key (key=?)"]
