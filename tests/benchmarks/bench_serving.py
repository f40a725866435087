"""What the gateway adds to a reply, with keys, routing, durable log and metrics on, before an instant engine.

The load comes from `oha` at a fixed rate, corrected for coordinated omission; engine, gateway and load share
the machine's cores, so the bare pass-through measured in the same run is what to compare with.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ops.registry import Registry
from ops.traffic import TrafficTable
from serving.auth import Keys, Role

RATE = 500
SECONDS = 6
CONNECTIONS = 32
BODY = json.dumps(
    {
        "model": "ratchet",
        "messages": [{"role": "user", "content": "How do I reset my password? " * 4}],
        "user": "ann",
    }
)


def oha() -> str | None:
    tools = Path(__file__).parents[3] / "shared" / "tools"
    return shutil.which("oha", path=f"{os.environ.get('PATH', '')}:{tools}")


def rows() -> list[dict[str, object]]:
    """Latencies in ms as added to the engine's own; saturation in requests per second."""
    load = oha()
    if load is None:
        print("oha is not installed: nothing measured", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder, engine() as upstream, pass_through(upstream) as bare:
        with gateway(Path(folder), upstream) as (url, key):
            for warm in (upstream, bare, url):
                _run(load, warm, key, "-z", "1s", "-c", str(CONNECTIONS))
            fixed = ["-z", f"{SECONDS}s", "-q", str(RATE), "--latency-correction", "-c", str(CONNECTIONS)]
            direct, through, ours = (_run(load, u, key, *fixed) for u in (upstream, bare, url))
            flood = ["-z", f"{SECONDS}s", "-c", str(CONNECTIONS)]
            most_bare, most = _run(load, bare, key, *flood), _run(load, url, key, *flood)
    ms = 1000.0
    peer = "bare ASGI pass-through"
    added = {p: (ours[p] - direct[p]) * ms for p in ("p50", "p99")}
    added_bare = {p: (through[p] - direct[p]) * ms for p in ("p50", "p99")}
    return [
        _row(f"added p50 at {RATE}/s", added["p50"], "ms", "<= 0.6", peer, added_bare["p50"]),
        _row(f"added p99 at {RATE}/s", added["p99"], "ms", "<= 3", peer, added_bare["p99"]),
        _row("saturation", most["rps"], "requests/s", ">= 60 % of the peer", peer, most_bare["rps"]),
        _row("saturation against pass-through", most["rps"] / most_bare["rps"], "ratio", ">= 0.6", peer, 1.0),
    ]


def _row(figure: str, value: float, unit: str, goal: str, peer: str, peer_value: float) -> dict[str, object]:
    return dict(figure=figure, value=value, unit=unit, goal=goal, peer=peer, peer_value=peer_value)


def _run(load: str, url: str, key: str, *options: str) -> dict[str, float]:
    """Seconds and requests per second. Raises: RuntimeError unless every answer was 200."""
    command = [load, "--no-tui", "--output-format", "json", "-m", "POST", "-d", BODY, *options]
    command += ["-T", "application/json", "-H", f"Authorization: Bearer {key}", f"{url}/v1/chat/completions"]
    report: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    )
    if set(report["statusCodeDistribution"]) != {"200"}:
        raise RuntimeError(f"{url}: {report['statusCodeDistribution']} {report.get('errorDistribution')}")
    percentiles = report["latencyPercentiles"]
    return {"p50": percentiles["p50"], "p99": percentiles["p99"], "rps": report["summary"]["requestsPerSec"]}


@contextmanager
def engine() -> Iterator[str]:
    port = _free_port()
    with _process("-m", "tests.benchmarks.serving_peers", "engine", str(port), port=port) as url:
        yield url


@contextmanager
def pass_through(upstream: str) -> Iterator[str]:
    port = _free_port()
    with _process(
        "-m", "tests.benchmarks.serving_peers", "pass-through", str(port), upstream, port=port
    ) as url:
        yield url


@contextmanager
def gateway(folder: Path, upstream: str) -> Iterator[tuple[str, str]]:
    """The real process on a fresh data folder, and a key for it."""
    state, now, port = f"sqlite:///{folder / 'state.db'}", datetime.now(UTC), _free_port()
    registry, keys = Registry(state), Keys(state)
    registry.set_traffic(TrafficTable(revision=1, stable="run-1-aaaaaaaa"), expected_revision=0, at=now)
    registry.report_replica(upstream, {"run-1-aaaaaaaa": "probe"}, now)
    key = keys.create("bench", Role.CHAT, now)
    registry.close()
    keys.close()
    environment = {"RATCHET_DEPLOYMENT_DATA_DIR": str(folder), "RATCHET_GATEWAY_PORT": str(port)}
    with _process("-m", "serving", "gateway", port=port, environment=environment) as url:
        yield url, key


@contextmanager
def _process(*arguments: str, port: int, environment: dict[str, str] | None = None) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
