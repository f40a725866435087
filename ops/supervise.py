"""`ratchet up`: the processes of one machine, started in order, watched, restarted, ended together.

Children die with this process, even when it is killed (Linux: the kernel sends them SIGTERM).
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.errors import PortInUse
from ops.telemetry import logger

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before restarts, the last one for all further ones."""
STEADY_S = 60.0
"""A child that lived this long starts from the first wait again."""
GRACE_S = 30.0
"""How long children may take to end after SIGTERM."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Service:
    """A process to keep alive."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of the supervisor's own."""
    shows: bool = False
    """Its stdout goes to the supervisor's, not to its log file."""


@dataclass
class Child:
    service: Service
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    restarts: int = 0
    due: float = 0.0


def check_ports(ports: Sequence[tuple[str, int, str]]) -> None:
    """Refuse ports that cannot be listened on: (host, port, config field).

    Raises: PortInUse naming the port and the field to change.
    """
    for host, port, setting in ports:
        if not port:
            continue
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((host, port))
            except OSError as e:
                raise PortInUse(
                    f"port {port} on {host} cannot be used ({e.strerror}): "
                    f"change {setting}, or stop what holds it"
                ) from e


def die_with(parent: int) -> None:
    """Get SIGTERM when the parent process dies; at once if it is gone already. Survives `exec`."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Keeps services alive. Not thread-safe: one loop calls `tick`."""

    def __init__(self, services: Sequence[Service], logs_dir: Path) -> None:
        self._children = [Child(service) for service in services]
        self._logs_dir = logs_dir

    def start(self) -> None:
        self._logs_dir.mkdir(parents=True, exist_ok=True)
        for child in self._children:
            self._spawn(child)

    def tick(self, now: float) -> None:
        """Note who died and start again who is due; `now` is monotonic seconds."""
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._bury(child, now)
            if child.process is None and now >= child.due:
                self._spawn(child)

    def restarts(self, name: str) -> int:
        return next(c.restarts for c in self._children if c.service.name == name)

    def names(self) -> list[str]:
        return [c.service.name for c in self._children]

    def pids(self) -> dict[str, int]:
        return {c.service.name: c.process.pid for c in self._children if c.process is not None}

    def stop(self) -> None:
        """SIGTERM to all, the last started first; SIGKILL to whole groups after the grace."""
        alive = [c.process for c in reversed(self._children) if c.process is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in alive:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger(pid=str(process.pid)).warning("child_killed")
            _kill_group(process.pid)
            process.wait()

    def _spawn(self, child: Child) -> None:
        service = child.service
        env = {**os.environ, **service.env, "RATCHET_SUPERVISOR": str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with (self._logs_dir / f"{service.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                service.argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=None if service.shows else log,
                stderr=log,
                start_new_session=True,
            )
        child.started = time.monotonic()
        logger(service=service.name).debug("child_started", pid=child.process.pid)

    def _bury(self, child: Child, now: float) -> None:
        assert child.process is not None
        status = child.process.returncode
        _kill_group(child.process.pid)  # what it left behind, such as an engine's workers
        if now - child.started > STEADY_S:
            child.restarts = 0
        wait_s = BACKOFF_S[min(child.restarts, len(BACKOFF_S) - 1)]
        child.process, child.due = None, now + wait_s
        child.restarts += 1
        log_file = self._logs_dir / f"{child.service.name}.log"
        logger(service=child.service.name).warning(
            "child_died", status=status, restart_in_s=wait_s, log=str(log_file)
        )


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def watch(supervisor: Supervisor, stopped: Callable[[], bool], poll_s: float = 0.3) -> None:
    """Tick until told to stop, then end everything."""
    try:
        while not stopped():
            supervisor.tick(time.monotonic())
            time.sleep(poll_s)
    finally:
        supervisor.stop()
