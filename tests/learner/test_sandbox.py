"""Programs that a model wrote: run in a process of their own, which can reach nothing."""

import sys

import pytest

from learner.errors import VerifierError
from learner.sandbox import Sandbox

SANDBOX = Sandbox(cpu_s=1, memory_mb=256)
REACH = """
import ctypes, os, time

def tried(reach):
    try:
        return repr(reach())
    except OSError as e:
        return type(e).__name__
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
]


def test_a_program_gives_values_and_reaches_nothing() -> None:
    """No file, socket, process, signal or waiting; what modules it needs were there before the lock."""
    attempts = (
        "open('/etc/hostname')",
        "os.listdir('/')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "os.lseek(1, 0, 0)",
        "time.sleep(60)",
    )
    calls = [f"tried(lambda: {attempt})" for attempt in attempts]
    calls += ["sorted(os.environ)", "ctypes.CDLL(None).socket(2, 1, 0)"]
    found = SANDBOX.run(REACH, calls)
    assert found is not None
    assert found[:7] == ["PermissionError"] * 7
    assert set(found[7]) <= {"LC_CTYPE", "PYTHONHASHSEED"}
    assert found[8] == -1
    written = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint('said')"
    assert SANDBOX.run(written, ["P(3).x", "(1, 2)"]) == [3, [1, 2]]


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "x = [0] * 10**9",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "def f(:",
        "import numpy",
    ],
)
def test_what_a_program_does_to_itself_is_its_failure(program: str) -> None:
    """Neither a verdict in its favour nor none at all: a reply cannot get out of being checked."""
    assert SANDBOX.run(program, ["1"]) is None


def test_without_time_or_lock_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that waits for ever is cut off on the clock; a machine without the lock runs nothing."""
    waiting = "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\nlock.acquire()"
    monkeypatch.setattr("learner.sandbox.WALL_FACTOR", 1)
    with pytest.raises(VerifierError, match="no end within 1 s"):
        SANDBOX.run(waiting, ["1"])
    monkeypatch.setattr("learner.sandbox.SCRIPT", "/dev/null")
    with pytest.raises(VerifierError, match="cannot be used"):
        SANDBOX.require()
