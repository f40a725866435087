"""A real Kafka broker for tests: found, started on free ports, stopped, killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_OWN = _ROOT / "ops" / "deploy" / "kafka"


def home() -> Path | str:
    """The folder with `start.sh` and the jars, or the sentence that says what to install."""
    if shutil.which("java") is None:
        return "Kafka tests need Java 17 or newer (Debian: apt-get install openjdk-17-jre-headless)"
    given = os.environ.get("RATCHET_KAFKA_HOME")
    for folder in (Path(given) if given else None, _ROOT.parent / "shared" / "kafka"):
        if folder is not None and (folder / "start.sh").exists() and any((folder / "libs").glob("*.jar")):
            return folder
    if any((_OWN / "libs").glob("*.jar")) or (shutil.which("mvn") and _fetched()):
        return _OWN
    return "Kafka tests need the broker's jars: set RATCHET_KAFKA_HOME, or install Maven (ops/deploy/kafka)"


def _fetched() -> bool:
    return subprocess.run([_OWN / "fetch.sh"], capture_output=True, timeout=300).returncode == 0


class Broker:
    """One broker process over one data folder; `servers` stays the same across restarts."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.data = data
        self._command = [folder / "start.sh", data]
        self._output = data.with_suffix(".log")
        self._ports = _free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        """Returns once the broker accepts connections; does nothing while it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._command, *map(str, self._ports)],
                stdout=output,
                stderr=output,
                env={"KAFKA_HEAP": "256m", **os.environ},
                start_new_session=True,
            )
        deadline_s = time.monotonic() + 90
        while not _listens(self._ports[0]):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the broker did not start: {self._output.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """As an operator would: SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would: SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, how)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(30)
        self._process = None


@contextmanager
def running(folder: Path, data: Path) -> Iterator[Broker]:
    """A broker that accepts connections, killed at the end. Args: folder, from `home`."""
    broker = Broker(folder, data)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="session")
def kafka_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's one broker; tests take `kafka_broker`."""
    folder = home()
    if isinstance(folder, str):
        pytest.skip(folder)
    with running(folder, tmp_path_factory.mktemp("kafka") / "data") as broker:
        yield broker


@pytest.fixture
def kafka_broker(kafka_session: Broker) -> Broker:
    """A running broker, whatever the test before did to it. Use a topic prefix of your own."""
    kafka_session.start()
    return kafka_session


def _listens(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
