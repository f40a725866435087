"""Runs what a model wrote in a process of its own, behind the kernel's lock (`confined`), within limits.

The process gets a program and expressions, never what they should give; it inherits no environment and no
open file. What it does to itself there (crash, endless loop, too much memory or output) is a program that
failed. What it has no part in (no lock, a machine too busy to run it) is no verdict.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec

from learner.confined import READY
from learner.errors import VerifierError

SCRIPT = Path(__file__).with_name("confined.py")
OUTPUT_BYTES = 1 << 20
WALL_FACTOR = 10
"""Seconds on the clock for each second of CPU: beside an engine, a process waits for its turn."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    cpu_s: int = 2
    memory_mb: int = 512

    def run(self, program: str, calls: Sequence[str]) -> list[Any] | None:
        """The calls' values after the program ran; None when either failed.

        Raises: VerifierError when it could not be tried, or the machine gave it no time.
        """
        asked = msgspec.json.encode(
            {
                "program": program,
                "calls": calls,
                "cpu_s": self.cpu_s,
                "memory_bytes": self.memory_mb << 20,
                "output_bytes": OUTPUT_BYTES,
            }
        )
        with TemporaryFile() as out:
            code = self._process(asked, out)
            out.seek(0)
            written = out.read(OUTPUT_BYTES)
        locked, ready, answer = written.partition(READY.encode())
        if locked or not ready:
            last = written.decode(errors="replace").strip().splitlines()[-1:]
            raise VerifierError(f"the sandbox cannot be used: {''.join(last) or f'exit status {code}'}")
        if code == -signal.SIGKILL:
            raise VerifierError("the program was killed from outside")
        return _values(answer) if code == 0 else None

    def _process(self, asked: bytes, out: Any) -> int:
        """Exit status; -n when signal n ended it."""
        try:
            return subprocess.run(
                [sys.executable, "-s", "-S", "-P", str(SCRIPT)],
                input=asked + b"\n",
                stdout=out,
                stderr=subprocess.STDOUT,
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                start_new_session=True,
                timeout=self.cpu_s * WALL_FACTOR,
            ).returncode
        except subprocess.TimeoutExpired as e:
            raise VerifierError(f"no end within {self.cpu_s * WALL_FACTOR} s on the clock") from e
        except OSError as e:
            raise VerifierError(f"no process could be started: {e}") from e

    def require(self) -> None:
        """Raises: VerifierError unless programs can be run here behind the lock."""
        if self.run("def one(): return 1", ["one()"]) != [1]:
            raise VerifierError("the sandbox cannot be used: it ran a program of one line wrongly")


def _values(answer: bytes) -> list[Any] | None:
    """None too for what the program wrote itself, past its standard output."""
    try:
        return msgspec.json.decode(answer, type=list[Any] | None)
    except (msgspec.DecodeError, RecursionError):
        return None
