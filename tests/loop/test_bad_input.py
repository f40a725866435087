"""Trouble that crosses processes: it gets a clear error, loses nothing, and is over when its cause is."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.config import Deployment
from feedback.embedded import EmbeddedLog
from feedback.eventlog import EventLog, Topic
from feedback.forward import CURSOR
from feedback.logs import open_log
from ops.registry import Registry
from ops.traffic import TrafficTable
from serving.auth import Keys, Role
from tests.kafka_broker import Broker
from tests.loop.conftest import Launch
from tests.loop.echo_engine import echo_engine
from tests.loop.processes import free_ports, ready, run, wait_until, write_config
from tests.serving.conftest import serving

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
STABLE = "base-00000000"


class Client:
    """Somebody who chats and judges, and looks at the gateway's health."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)

    def ask(self, question: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 8}
        return self._http.post("/v1/chat/completions", json=body)

    def thumb(self, response_id: str) -> httpx.Response:
        return self._http.post("/v1/feedback", json={"response_id": response_id, "kind": "thumb", "value": 1})

    def recording(self) -> str:
        return str(self._http.get("/healthz").json()["recording"])

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def engine_url() -> Iterator[str]:
    with serving(echo_engine) as url:
        yield url


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "ratchet", folder], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk is tried on a tmpfs of 2 MiB, which only root can mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_turns_recording_off_and_on_again(
    launch: Launch, engine_url: str, tiny_disk: Path, tmp_path: Path, free_port: int
) -> None:
    """Chat goes on, visibly unrecorded; feedback is refused, never swallowed; space brings all back."""
    placed = Deployment(data_dir=tiny_disk, state_url=f"sqlite:///{tmp_path / 'state.db'}")
    config = configure(tmp_path, placed, gateway={"port": free_port, "log_timeout_s": 1.0})
    with closing(Client(f"http://127.0.0.1:{free_port}", prepare(placed, engine_url))) as client:
        gateway = launch(config, "gateway")
        wait_until(
            lambda: ready(f"http://127.0.0.1:{free_port}"), "the gateway starts", else_show=gateway.tail
        )
        before = client.ask("Is there space?").json()["id"]
        assert client.thumb(before).status_code == 200

        ballast = fill(tiny_disk)
        unrecorded = [client.ask(f"Is number {n} recorded? {'x' * 4000}") for n in range(3)]
        assert [reply.status_code for reply in unrecorded] == [200, 200, 200]
        assert client.recording() == "off"
        refused = client.thumb(before)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "not_recorded"

        ballast.unlink()
        after = client.ask("And now?").json()["id"]
        assert client.recording() == "on"
        assert client.thumb(after).status_code == 200
    assert gateway.stop() == 0
    with closing(EmbeddedLog(placed.log_path)) as log:
        recorded = ids(log, Topic.TURNS)
        assert {f"turn-{before}", f"turn-{after}"} <= recorded
        assert len(ids(log, Topic.SIGNALS)) == 2


@pytest.mark.slow
@pytest.mark.kafka
def test_chat_outlives_kafka_and_the_outbox_drains_after(
    launch: Launch, engine_url: str, tmp_path: Path, free_port: int, kafka_broker: Broker
) -> None:
    """With the broker dead the outbox holds everything; once it is back, all of it is in Kafka."""
    placed = Deployment(
        data_dir=tmp_path / "data",
        log="kafka",
        kafka_servers=kafka_broker.servers,
        kafka_prefix=f"outage-{free_port}",
        kafka_partitions=2,
    )
    config = configure(tmp_path, placed, gateway={"port": free_port}, forward={"metrics_port": 0})
    with (
        closing(Client(f"http://127.0.0.1:{free_port}", prepare(placed, engine_url))) as client,
        closing(EmbeddedLog(placed.log_path)) as outbox,
    ):
        launch(config, "gateway")
        forwarder = launch(config, "forward")
        wait_until(lambda: ready(f"http://127.0.0.1:{free_port}"), "the gateway starts")
        promised = [client.ask("Is Kafka up?").json()["id"]]
        wait_until(lambda: waiting(outbox) == 0, "the first turn is forwarded", else_show=forwarder.tail)

        kafka_broker.kill()
        promised += [client.ask(f"Does number {n} get through?").json()["id"] for n in range(20)]
        assert all(client.thumb(response_id).status_code == 200 for response_id in promised)
        assert client.recording() == "on"
        assert waiting(outbox) == 41  # 20 turns and 21 thumbs
        assert forwarder.running

        kafka_broker.start()
        wait_until(lambda: waiting(outbox) == 0, "the outbox drains", else_show=forwarder.tail, timeout_s=180)
    with closing(open_log(placed)) as log:
        assert ids(log, Topic.TURNS) == {f"turn-{response_id}" for response_id in promised}
        assert len(ids(log, Topic.SIGNALS)) == 21


@pytest.mark.slow
def test_a_dead_engine_is_503_at_once_and_comes_back_with_its_adapter(
    launch: Launch, tiny_base: Path, tmp_path: Path
) -> None:
    """Clients are told to come back soon, not left hanging; a restarted engine has forgotten its adapters."""
    port, engine_port = free_ports(2)
    placed = Deployment(data_dir=tmp_path / "data", base_model=str(tiny_base))
    config = configure(
        tmp_path,
        placed,
        gateway={"port": port},
        engine={"kind": "transformers", "port": engine_port, "max_model_len": 256},
        rollout={"poll_s": 0.1, "metrics_port": 0},
    )
    placed.data_dir.mkdir()
    with closing(Keys(placed.state)) as keys:
        key = keys.create("acme", Role.CHAT, NOON)
    with closing(Client(f"http://127.0.0.1:{port}", key)) as client:
        engine = launch(config, "engine")
        controller, gateway = launch(config, "controller"), launch(config, "gateway")
        wait_until(lambda: ready(f"http://127.0.0.1:{port}"), "the service starts", else_show=controller.tail)
        first = client.ask("Are you there?")
        assert first.status_code == 200

        engine.kill()
        begun = time.monotonic()
        refused = client.ask("And now?")
        assert time.monotonic() - begun < 3.0
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "engine_unavailable"

        engine.start()
        wait_until(lambda: client.ask("Back?").status_code == 200, "it answers again", else_show=engine.tail)
        assert client.ask("Who?").json()["ratchet"]["adapter"] == first.json()["ratchet"]["adapter"]
        assert gateway.running and controller.running


@pytest.mark.slow
@pytest.mark.parametrize("taken", ["gateway", "engine"])
def test_up_says_which_port_is_taken(tmp_path: Path, tiny_base: Path, taken: str) -> None:
    """One line naming the port and the setting; nothing was started or written."""
    ports = dict(zip(("gateway", "engine"), free_ports(2), strict=True))
    config = configure(
        tmp_path,
        Deployment(data_dir=tmp_path / "data", base_model=str(tiny_base)),
        pipeline={"metrics_port": 0},
        learner={"metrics_port": 0},
        rollout={"metrics_port": 0},
        **{name: {"port": port} for name, port in ports.items()},
    )
    with socket.socket() as held:
        held.bind(("127.0.0.1", ports[taken]))
        held.listen()
        refused = run(config, "up")
    assert refused.returncode == 2
    assert only_line(refused.stderr).startswith("ratchet up: ")
    assert f"port {ports[taken]}" in refused.stderr
    assert f"[{taken}] port" in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("up",), ("engine",), ("controller",), ("learn", "turn")])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, verb: tuple[str, ...]) -> None:
    """By every process that needs the model, in one line that names the folder and what it lacks."""
    folder = tmp_path / "holiday-photos"
    folder.mkdir()
    gateway, engine = free_ports(2)
    config = configure(
        tmp_path,
        Deployment(data_dir=tmp_path / "data", base_model=str(folder)),
        gateway={"port": gateway},
        engine={"port": engine, "kind": "transformers"},
        pipeline={"metrics_port": 0},
        learner={"metrics_port": 0},
        rollout={"metrics_port": 0},
    )
    refused = run(config, *verb)
    assert refused.returncode == 2
    assert str(folder) in only_line(refused.stderr)
    assert "config.json" in refused.stderr


@pytest.mark.slow
def test_a_pair_file_with_holes_names_line_and_column(tmp_path: Path, tiny_base: Path) -> None:
    """Before anything is trained, and nothing is left behind."""
    sound = {"prompt": "How?", "chosen": "So.", "rejected": "Not so."}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row) for row in (sound, sound, {**sound, "rejected": None})))
    config = configure(tmp_path, Deployment(data_dir=tmp_path / "data", base_model=str(tiny_base)))
    refused = run(config, "learn", "reward", "--pairs", str(pairs), "--out", str(tmp_path / "reward"))
    assert refused.returncode == 2
    assert f"{pairs}, line 3, column 'rejected'" in only_line(refused.stderr)
    assert not (tmp_path / "reward").exists()


def configure(folder: Path, placed: Deployment, **sections: dict[str, Any]) -> Path:
    """A configuration file with what differs from the defaults."""
    default = Deployment()
    fields = {f: getattr(placed, f) for f in placed.__struct_fields__}
    changed = {f: value for f, value in fields.items() if value != getattr(default, f)}
    return write_config(folder, deployment=changed, **sections)


def prepare(placed: Deployment, engine_url: str) -> str:
    """A registry in which `engine_url` serves; returns an API key."""
    placed.data_dir.mkdir(exist_ok=True)
    with closing(Registry(placed.state)) as registry:
        registry.set_traffic(TrafficTable(revision=1, stable=STABLE), expected_revision=0, at=NOON)
        registry.report_replica(engine_url, {STABLE: "probe"}, NOON)
    with closing(Keys(placed.state)) as keys:
        return keys.create("acme", Role.CHAT, NOON)


def fill(disk: Path) -> Path:
    """Take all the space there is; returns the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as f:
        for size in (65536, 4096, 512):
            try:
                while f.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return ballast


def waiting(outbox: EmbeddedLog) -> int:
    return sum(outbox.backlog(CURSOR, topic).events for topic in Topic)


def ids(log: EventLog, topic: Topic) -> set[str]:
    """Event ids of a short topic."""
    return {
        record.event_id
        for partition in log.partitions(topic)
        for record in log.read(topic, partition, 0, limit=1000, timeout_s=5.0)
    }


def only_line(stderr: str) -> str:
    """Raises: AssertionError unless there is exactly one."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    return lines[0]
