"""/healthz, /readyz and /metrics: for probes and Prometheus, without a key."""

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from serving.recording import Recorder
from serving.routing import Router

RECORDING = Gauge("ratchet_serving_recording_ratio", "1 while turns become durable, 0 while recording is off")


class Health(msgspec.Struct, frozen=True):
    """`status` is `ok` while chat is answered; `recording` is `off` when the last write to the log failed."""

    status: str
    recording: str
    recording_failure: str | None = None


class Readiness(msgspec.Struct, frozen=True):
    """`ready` means that a chat request would find an adapter and a replica."""

    ready: bool
    reason: str | None = None


def healthz(recorder: Recorder) -> Health:
    if recorder.failure:
        return Health("ok", "off", recorder.failure)
    return Health("ok", "on")


def readyz(router: Router) -> Readiness:
    return (
        Readiness(True) if router.ready() else Readiness(False, "no replica is ready with the stable adapter")
    )


def metrics(recorder: Recorder) -> tuple[bytes, str]:
    """The exposition and its content type."""
    RECORDING.set(0.0 if recorder.failure else 1.0)
    return generate_latest(), CONTENT_TYPE_LATEST
