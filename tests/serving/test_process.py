"""`ratchet gateway` and `ratchet keys` as processes: first start, ports, signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from feedback.events import Data, SignalReceived, TurnRecorded, TurnStatus
from feedback.keyring import KeyRing
from ops.registry import Registry
from ops.traffic import TrafficTable
from serving.__main__ import main
from serving.auth import Keys, Role
from tests.serving.conftest import AT, STABLE
from tests.serving.scripted_engine import Script, ScriptedEngine

pytestmark = pytest.mark.slow

QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


@contextmanager
def gateway(folder: Path, port: int, **overrides: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A gateway process and the key that it printed; empty when it printed none."""
    environment = {
        **os.environ,
        "RATCHET_DEPLOYMENT_DATA_DIR": str(folder),
        "RATCHET_GATEWAY_PORT": str(port),
        **overrides,
    }
    command = [sys.executable, "-m", "serving", "gateway"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "chat page" not in said:
                line = process.stdout.readline()
                assert line, f"the gateway ended: {process.wait()}"
                said += line
            deadline = time.monotonic() + 10
            while not listens(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            found = re.search(r"#key=(rk-\S+)", said)
            yield process, found[1] if found else ""
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def prepared(folder: Path, engine_url: str) -> None:
    registry = Registry(f"sqlite:///{folder / 'state.db'}")
    registry.set_traffic(TrafficTable(revision=1, stable=STABLE), expected_revision=0, at=AT)
    registry.report_replica(engine_url, {STABLE: "probe"}, AT)
    registry.close()


def turns(folder: Path) -> list[TurnRecorded]:
    return [e for e in recorded(folder, Topic.TURNS) if isinstance(e, TurnRecorded)]


def signals(folder: Path) -> list[SignalReceived]:
    return [e for e in recorded(folder, Topic.SIGNALS) if isinstance(e, SignalReceived)]


def recorded(folder: Path, topic: Topic) -> list[Data]:
    url = f"sqlite:///{folder / 'state.db'}"
    with closing(EmbeddedLog(folder / "log.db")) as log, closing(KeyRing(url)) as ring:
        return [ring.decode(r.value).data for r in log.read(topic, 0, 0)]


def test_first_start_prints_a_key_that_works_and_later_ones_do_not(
    tmp_path: Path, engine_url: str, free_port: int
) -> None:
    prepared(tmp_path, engine_url)
    with gateway(tmp_path, free_port) as (_, key):
        headers = {"Authorization": f"Bearer {key}"}
        response = httpx.post(
            f"http://127.0.0.1:{free_port}/v1/chat/completions", json=QUESTION, headers=headers
        )
        assert response.status_code == 200
    with gateway(tmp_path, free_port) as (_, again):
        assert again == ""


def test_port_in_use_is_one_line_and_exit_code_2(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_DEPLOYMENT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RATCHET_GATEWAY_PORT", str(free_port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        assert main(["gateway"], None) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and f"port {free_port} on 127.0.0.1 is in use" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("drain_s,status", [("10", TurnStatus.COMPLETE), ("1", TurnStatus.ABORTED)])
def test_sigterm_lets_streams_end_within_the_limit(
    tmp_path: Path, engine: ScriptedEngine, engine_url: str, free_port: int, drain_s: str, status: TurnStatus
) -> None:
    """Past the limit the stream ends with an error event, and what was sent is recorded."""
    prepared(tmp_path, engine_url)
    engine.script = Script(pieces=("one", "two", "three"), piece_delay_s=1.0)
    said: list[str] = []
    with gateway(tmp_path, free_port, RATCHET_GATEWAY_DRAIN_S=drain_s) as (process, key):
        first = threading.Event()

        def listen() -> None:
            url = f"http://127.0.0.1:{free_port}/v1/chat/completions"
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.stream("POST", url, json={**QUESTION, "stream": True}, headers=headers) as response:
                for text in response.iter_text():
                    said.append(text)
                    first.set()

        client = threading.Thread(target=listen)
        client.start()
        assert first.wait(10)
        process.send_signal(signal.SIGTERM)
        client.join(15)
        assert process.wait(15) == 0
    assert ("[DONE]" in said[-1]) == (status is TurnStatus.COMPLETE)
    assert ("shutting_down" in said[-1]) == (status is TurnStatus.ABORTED)
    assert [t.status for t in turns(tmp_path)] == [status]


def test_replies_and_signals_survive_sigkill(tmp_path: Path, engine_url: str, free_port: int) -> None:
    """Durable before done: what a client got whole is there after the process was killed."""
    prepared(tmp_path, engine_url)
    whole: list[str] = []
    accepted: list[str] = []
    with gateway(tmp_path, free_port) as (process, key):

        def ask_and_judge() -> None:
            url = f"http://127.0.0.1:{free_port}/v1"
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
                try:
                    while True:
                        response_id = http.post("/chat/completions", json=QUESTION).json()["id"]
                        whole.append(response_id)
                        thumb = {"response_id": response_id, "kind": "thumb", "value": 1}
                        accepted.append(http.post("/feedback", json=thumb).json()["signal_id"])
                except httpx.HTTPError:
                    pass

        clients = [threading.Thread(target=ask_and_judge) for _ in range(4)]
        for client in clients:
            client.start()
        while len(accepted) < 50:
            time.sleep(0.01)
        process.kill()
        for client in clients:
            client.join()
    replies = [t.response_id for t in turns(tmp_path)]
    thumbs = [s.signal_id for s in signals(tmp_path)]
    assert set(whole) <= set(replies) and set(accepted) <= set(thumbs)
    assert len(replies) == len(set(replies)) and len(thumbs) == len(set(thumbs))


def test_keys_are_made_listed_and_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_DEPLOYMENT_DATA_DIR", str(tmp_path))
    assert main(["keys", "create", "acme", "--role", "operator"], None) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("rk-")
    assert main(["keys", "list"], None) == 0
    listed = capsys.readouterr().out
    assert secret[:10] in listed and secret not in listed and "operator" in listed and "active" in listed
    assert main(["keys", "revoke", secret[:10]], None) == 0
    assert main(["keys", "list"], None) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["keys", "revoke", secret[:10]], None) == 2
    assert "0 unrevoked keys" in capsys.readouterr().err


def test_secrets_are_nowhere_in_the_state_database(tmp_path: Path) -> None:
    keys = Keys(f"sqlite:///{tmp_path / 'state.db'}")
    secret = keys.create("acme", Role.CHAT, AT)
    keys.close()
    stored = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert secret.encode() not in stored and secret[10:].encode() not in stored
    assert b"acme" in stored


@pytest.mark.parametrize("owner", ["", "a b", "x" * 65, "-a", "ä"])
def test_odd_owners_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    """An owner's name is part of conversation ids and logs."""
    monkeypatch.setenv("RATCHET_DEPLOYMENT_DATA_DIR", str(tmp_path))
    assert (
        main(
            ["keys", "create", owner] if not owner.startswith("-") else ["keys", "create", "--", owner], None
        )
        == 2
    )
