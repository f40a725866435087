"""When the log cannot take a turn: served or refused by policy, visible either way."""

from pathlib import Path

import pytest

from feedback.embedded import EmbeddedLog
from serving.recording import RETRY_S
from tests.serving.conftest import Running, Start


@pytest.fixture
def broken_log(tmp_path: Path) -> EmbeddedLog:
    """A log whose folder is a file."""
    (tmp_path / "folder").write_text("in the way")
    return EmbeddedLog(tmp_path / "folder" / "log.db")


def metric(gateway: Running, name: str) -> float:
    lines = gateway.http.get(f"{gateway.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("stream", [False, True])
def test_chat_survives_its_log_and_says_so(start: Start, broken_log: EmbeddedLog, stream: bool) -> None:
    gateway = start(log=broken_log)
    before = metric(gateway, "ratchet_serving_turns_unrecorded_total")
    response = gateway.ask(stream=stream)
    assert response.status_code == 200 and "Reset it" in response.text
    assert metric(gateway, "ratchet_serving_turns_unrecorded_total") == before + 1
    assert gateway.http.get(f"{gateway.url}/healthz").json()["recording"] == "off"


def test_recording_comes_back_by_itself(start: Start, broken_log: EmbeddedLog, tmp_path: Path) -> None:
    gateway = start(log=broken_log)
    gateway.ask()
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()
    gateway.ask()
    assert gateway.http.get(f"{gateway.url}/healthz").json() == {
        "status": "ok",
        "recording": "on",
        "recording_failure": None,
    }
    assert len(gateway.turns()) == 1


def test_refuse_means_no_reply_without_a_record(start: Start, broken_log: EmbeddedLog) -> None:
    gateway = start(log=broken_log, on_log_failure="refuse")
    streamed = gateway.ask(stream=True)
    assert '"code":"not_recorded"' in streamed.text and "[DONE]" not in streamed.text
    at_once = gateway.ask()
    assert (at_once.status_code, at_once.json()["error"]["code"]) == (503, "not_recorded")
    assert at_once.headers["retry-after"] == "5"
    assert len(gateway.engine.requests) == 1, f"within {RETRY_S} s no engine is troubled for nothing"


def test_feedback_is_never_lost_silently(start: Start, broken_log: EmbeddedLog) -> None:
    gateway = start(log=broken_log)
    response_id = gateway.ask().json()["id"]
    response = gateway.post("/v1/feedback", {"response_id": response_id, "kind": "thumb", "value": 1})
    assert response.status_code == 503 and response.headers["retry-after"] == "5"


def test_metrics_count_what_happened(gateway: Running) -> None:
    labels = 'adapter="run-1-aaaaaaaa",arm="stable",finish_reason="stop",status="complete"'
    turns = f"ratchet_serving_turns_total{{{labels}}}"
    before = metric(gateway, turns)
    response_id = gateway.ask().json()["id"]
    gateway.ask(stream=True)
    gateway.post("/v1/feedback", {"response_id": response_id, "kind": "copy"})
    assert metric(gateway, turns) == before + 2
    assert metric(gateway, 'ratchet_serving_signals_total{kind="copy"}') >= 1
    assert metric(gateway, "ratchet_serving_added_seconds_count") >= 2
    assert metric(gateway, 'ratchet_serving_requests_total{route="feedback",status="200"}') >= 1
    assert metric(gateway, "ratchet_serving_in_flight_count") == 0
