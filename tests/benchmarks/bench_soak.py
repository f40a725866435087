"""Memory and cost per event of a pipeline worker over two million events: both must stay where they are.

The events are made while they are read, so nothing but the state's file grows. `RATCHET_SOAK_EVENTS` sets
another number: 200000 take two or three minutes.
"""

import os
import tempfile
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from feedback import pipeline, store
from feedback.config import Pipeline
from feedback.eventlog import Place, Position, Record, Topic
from feedback.recent import Recent
from feedback.sealing import DataKey
from tests.benchmarks import stream

Row = dict[str, object]

EVENTS = int(os.environ.get("RATCHET_SOAK_EVENTS", 2_000_000))
NOW = stream.START.replace(year=2027)
CONFIG = Pipeline(batch_records=2000)
RECENT_BYTES = 4 << 20
"""Small, so that it is full after the first tenth of a short soak, too."""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
        with store.opened(f"sqlite:///{folder}/state.db") as state:
            source = _Source(stream.users_keys(state))
            recent = Recent(max_bytes=RECENT_BYTES)
            resident, cost_us = [], []
            for tenth in range(1, 11):
                begun_s, before = time.process_time(), source.folded
                making_s = source.making_s
                while source.folded < EVENTS * tenth // 10:
                    folded = pipeline.step(source, state, CONFIG, now=NOW, recent=recent)
                    source.folded += sum(folded.new.values())
                spent_s = time.process_time() - begun_s - (source.making_s - making_s)
                cost_us.append(1e6 * spent_s / (source.folded - before))
                resident.append(_resident_bytes())
                print(f"{source.folded:>9} events, {resident[-1] / 2**20:.1f} MiB, {cost_us[-1]:.0f} µs each")
    growth = max(resident[1:]) / resident[0] - 1
    return [
        _row("events", EVENTS, "events"),
        _row("resident after the first tenth", resident[0] / 2**20, "MiB"),
        _row("largest growth after it", 100 * growth, "%", "< 5"),
        _row("CPU per event, second tenth", cost_us[1], "µs"),
        _row("CPU per event, last tenth", cost_us[-1], "µs", f"< {1.25 * cost_us[1]:.0f}"),
    ]


class _Source:
    """A log that is made while it is read, at most a batch ahead: all that `pipeline.gather` asks of one."""

    def __init__(self, keys: Mapping[str, DataKey]) -> None:
        self._entries = stream.entries(EVENTS + 4 * CONFIG.batch_records, keys)
        self._ahead: dict[Topic, deque[Record]] = {topic: deque() for topic in Topic}
        self._ends = dict.fromkeys(Topic, 0)
        self._read_to = dict.fromkeys(Topic, 0)
        self.folded = 0
        self.making_s = 0.0
        """CPU time that making the events took."""

    def partitions(self, topic: Topic) -> Sequence[int]:
        return (0,)

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        begun_s = time.process_time()
        while self._ends[Topic.TURNS] - self._read_to[Topic.TURNS] < CONFIG.batch_records:
            topic, key, event_id, value = next(self._entries)
            self._ahead[topic].append(Record(Position(topic, 0, self._ends[topic]), key, value, event_id))
            self._ends[topic] += 1
        self.making_s += time.process_time() - begun_s
        return {(topic, 0): self._ends[topic] for topic, _ in places}

    def read(self, topic: Topic, partition: int, offset: int, *, limit: int) -> list[Record]:
        ahead = self._ahead[topic]
        while ahead and ahead[0].position.offset < offset:
            ahead.popleft()
        found = [ahead[n] for n in range(min(limit, len(ahead)))]
        self._read_to[topic] = offset + len(found)
        return found


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _row(figure: str, value: float, unit: str, goal: str | None = None) -> Row:
    return {"figure": figure, "value": value, "unit": unit, "goal": goal}
