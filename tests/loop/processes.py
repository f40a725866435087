"""ratchet's processes as a user starts them: from one configuration file, to be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent


class Process:
    """One `ratchet VERB`, its output in `<verb>.log` beside the configuration file."""

    def __init__(self, config: Path, *argv: str, **environ: str) -> None:
        self._argv = [sys.executable, "-m", "ops.cli", "--config", str(config), *argv]
        self._environ = environ
        self.output = config.with_name(f"{'-'.join(argv)}.log")
        self.name = argv[0]
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        self.starts += 1
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self.output.parent,
                stdout=output,
                stderr=output,
                env=environment() | self._environ,
                start_new_session=True,
            )
        return self

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As the kernel does when memory is short: SIGKILL, for the process and all it started."""
        if self._process is not None:
            if self.running:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    def stop(self, timeout_s: float = 30.0) -> int:
        """As an operator does: SIGTERM. Returns the exit status."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.terminate()
        return self._process.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        """The exit status of a process that ends by itself. Raises: subprocess.TimeoutExpired."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.wait(timeout_s)

    def tail(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        return self.output.read_text(errors="replace")[-characters:] if self.output.exists() else ""


def run(
    config: Path, *argv: str, timeout_s: float = 60.0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """One `ratchet VERB` that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", "--config", str(config), *argv],
        cwd=config.parent,
        env=environment() | environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def environment() -> dict[str, str]:
    """The tests' own, without settings that would override a configuration file."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def write_config(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """`folder/ratchet.toml` with these sections."""
    lines = []
    for name, fields in sections.items():
        lines += [f"[{name}]", *(f"{field} = {_toml(value)}" for field, value in fields.items()), ""]
    path = folder / "ratchet.toml"
    path.write_text("\n".join(lines))
    return path


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = 60.0,
    else_show: Callable[[], str] = str,
) -> None:
    """Raises: AssertionError saying `what` did not happen, and what there is to see then."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{else_show()}"
        time.sleep(0.05)


def ready(url: str) -> bool:
    """Whether the gateway at `url` would find an adapter and a replica for a chat."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {_toml(v)}' for name, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
