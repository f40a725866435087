"""The supervisor: restarts what dies, ends what it started, and leaves nothing when it is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from feedback.errors import ConfigError
from ops.errors import PortInUse
from ops.supervise import BACKOFF_S, Service, Supervisor, check_ports
from ops.up import ports, services, settings

ROOT = Path(__file__).parents[2]
SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def python(name: str, code: str) -> Service:
    return Service(name, (sys.executable, "-c", code))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    return not alive(pid)


def eventually(what: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return what()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    started: list[Supervisor] = []

    def start(*services: Service) -> Supervisor:
        supervisor = Supervisor(services, tmp_path / "logs")
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def test_a_dead_child_starts_again_after_its_wait(supervise: Callable[..., Supervisor]) -> None:
    """And the log says so, with where to read on."""
    supervisor = supervise(python("one", SLEEPER), python("two", SLEEPER))
    first = supervisor.pids()
    os.kill(first["one"], signal.SIGKILL)
    assert eventually(lambda: not alive(first["one"]))
    with capture_logs() as logs:
        supervisor.tick(1000.0)
    assert [(e["event"], e["service"], e["status"]) for e in logs if e["log_level"] == "warning"] == [
        ("child_died", "one", -signal.SIGKILL)
    ]
    assert set(supervisor.pids()) == {"two"}
    supervisor.tick(1000.0 + BACKOFF_S[0] - 0.1)
    assert set(supervisor.pids()) == {"two"}
    supervisor.tick(1000.0 + BACKOFF_S[0])
    assert supervisor.pids()["one"] != first["one"]
    assert supervisor.pids()["two"] == first["two"]


def test_waits_grow_while_a_child_keeps_dying(supervise: Callable[..., Supervisor]) -> None:
    """A child that cannot start must not eat the machine."""
    supervisor = supervise(python("one", "raise SystemExit(3)"))
    now = time.monotonic()
    waits = []
    for _ in range(6):
        pid = supervisor.pids()["one"]
        assert eventually(partial(gone, pid))
        with capture_logs() as logs:
            supervisor.tick(now)
        waits.append(next(e["restart_in_s"] for e in logs if e["event"] == "child_died"))
        now += waits[-1]
        supervisor.tick(now)
    assert waits == [1.0, 2.0, 5.0, 10.0, 30.0, 30.0]


def test_output_goes_to_a_file_per_child(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervise(python("talker", "import sys; print('out'); print('err', file=sys.stderr)"))
    log = tmp_path / "logs" / "talker.log"
    assert eventually(lambda: log.exists() and sorted(log.read_text().split()) == ["err", "out"])


def test_stopping_ends_all_also_grandchildren(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """An engine has workers of its own."""
    pid_file = tmp_path / "pid"
    parent = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); "
        f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    supervisor = supervise(python("parent", parent), python("other", SLEEPER))
    assert eventually(lambda: pid_file.exists() and bool(pid_file.read_text()))
    pids = [*supervisor.pids().values(), int(pid_file.read_text())]
    supervisor.stop()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


SUPERVISOR = """
import sys, time
from pathlib import Path
from ops.supervise import Service, Supervisor
from ops.telemetry import configure_logging

configure_logging("up")
child = "import time; from ops.cli import _follow_parent; _follow_parent(); print('ready'); time.sleep(600)"
supervisor = Supervisor([Service("child", (sys.executable, "-c", child), shows=True)], Path(sys.argv[1]))
supervisor.start()
print(supervisor.pids()["child"], flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up: the kernel tells the children."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        try:
            assert supervisor.stdout is not None
            said = [supervisor.stdout.readline().strip() for _ in range(2)]
        finally:
            supervisor.kill()
        assert sorted(said)[1:] == ["ready"]
        child = int(sorted(said)[0])
        assert eventually(lambda: not alive(child))


def test_a_port_in_use_names_port_and_field() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} on 127.0.0.1 .* change \[gateway\] port"):
            check_ports([("127.0.0.1", 0, "[rollout] metrics_port"), ("127.0.0.1", port, "[gateway] port")])


@pytest.mark.parametrize(
    ("log", "metrics"),
    [
        ("embedded", ["pipeline", "learner", "rollout"]),
        ("kafka", ["pipeline", "learner", "rollout", "forward"]),
    ],
)
def test_every_process_has_a_port_of_its_own_unless_told_otherwise(
    tmp_path: Path, log: str, metrics: list[str]
) -> None:
    """And only those that start need theirs free: without Kafka there is no forwarder."""
    config = tmp_path / "ratchet.toml"
    config.write_text(f'[deployment]\nlog = "{log}"\n')
    found = ports(settings(config))
    numbers = [port for _, port, _ in found]
    assert len(set(numbers)) == len(numbers)
    assert [field for _, _, field in found if "metrics" in field] == [f"[{m}] metrics_port" for m in metrics]


def test_up_starts_as_many_pipeline_workers_as_asked_for(tmp_path: Path) -> None:
    """Each with metrics of its own, off the ports of the others."""
    config = tmp_path / "ratchet.toml"
    config.write_text('[deployment]\nlog = "kafka"\n[pipeline]\nworkers = 3\n')
    chosen = settings(config)
    workers = [s for s in services(chosen, config, 8000) if s.argv[-1] == "pipeline"]
    assert [(w.name, w.env["RATCHET_PIPELINE_METRICS_PORT"]) for w in workers] == [
        ("pipeline", "9101"),
        ("pipeline-2", "9111"),
        ("pipeline-3", "9121"),
    ]
    numbers = [port for _, port, _ in ports(chosen)]
    assert {9101, 9111, 9121} <= set(numbers) and len(set(numbers)) == len(numbers)


def test_workers_without_partitions_to_share_are_refused(tmp_path: Path) -> None:
    """The embedded log has one partition: a second worker would stand by for ever."""
    config = tmp_path / "ratchet.toml"
    config.write_text("[pipeline]\nworkers = 2\n")
    with pytest.raises(ConfigError, match=r"workers is 2, but \[deployment\] log is 'embedded'"):
        settings(config)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_up_starts_serves_and_ends_everything(tiny_base: Path, tmp_path: Path) -> None:
    """The whole service on the transformers engine: one chat, a taken port refused, SIGTERM, nothing left."""
    from openai import OpenAI

    config, gateway_port = _small_service(tiny_base, tmp_path)
    command = [sys.executable, "-m", "ops.cli", "--config", str(config), "up"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as up:
        try:
            said = _until(up, "ratchet is up")
            key = re.search(r"rk-[\w-]+", said)
            assert key is not None
            with OpenAI(
                base_url=f"http://127.0.0.1:{gateway_port}/v1", api_key=key[0], max_retries=0
            ) as client:
                reply = client.chat.completions.create(
                    model="ratchet", messages=[{"role": "user", "content": "hi"}], max_tokens=4
                )
            assert reply.usage is not None and reply.usage.completion_tokens >= 1
            second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert second.returncode == 2
            assert second.stderr.startswith(f"ratchet up: port {gateway_port} on 127.0.0.1 cannot be used")
            children = _descendants(up.pid)
            assert len(children) >= 5
            up.send_signal(signal.SIGTERM)
            assert up.wait(timeout=60) == 0
        finally:
            up.kill()
    assert eventually(lambda: not any(alive(pid) for pid in children))


def _small_service(base: Path, folder: Path) -> tuple[Path, int]:
    """A configuration on free ports, and the gateway's port."""
    engine_port, gateway_port = _free_port(), _free_port()
    config = folder / "ratchet.toml"
    config.write_text(
        f'[deployment]\ndata_dir = "{folder / "data"}"\nbase_model = "{base}"\n'
        f'[engine]\nkind = "transformers"\nport = {engine_port}\nmax_model_len = 256\n'
        f"[gateway]\nport = {gateway_port}\n[pipeline]\nmetrics_port = 0\n"
        "[learner]\nmetrics_port = 0\n[rollout]\nmetrics_port = 0\n"
    )
    return config, gateway_port


def _until(process: "subprocess.Popen[str]", sign: str) -> str:
    """What the process says up to the line with `sign`."""
    assert process.stdout is not None
    said = ""
    while sign not in said:
        line = process.stdout.readline()
        assert line, f"ended early: {said}"
        said += line
    return said


def _descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [int(task) for task in tasks]
    return found + [below for child in found for below in _descendants(child)]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
