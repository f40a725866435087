"""Which processes make up the service on one machine, and when it is ready."""

import http.client
import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from feedback.config import Deployment, Forward, Pipeline, read, section
from feedback.errors import ConfigError
from ops import base_model
from ops.config import Engine, Rollout, replica_urls
from ops.errors import NoBaseModel, StartFailed
from ops.supervise import Service, Supervisor, check_ports, watch

POLL_S = 0.25


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every section that decides what runs where."""

    deployment: Deployment
    pipeline: Pipeline
    forward: Forward
    engine: Engine
    rollout: Rollout
    gateway: Any
    """`serving.config.Gateway`; found by name, because `ops` never imports `serving`."""
    learner: Any
    """`learner.config.Learner`, likewise."""


def settings(config: Path | None) -> Settings:
    """Raises: ConfigError."""
    sections = read(config)
    gateway = importlib.import_module("serving.config").Gateway
    learner = importlib.import_module("learner.config").Learner
    deployment = section(sections, "deployment", Deployment)
    pipeline = section(sections, "pipeline", Pipeline)
    _check_workers(deployment, pipeline)
    return Settings(
        deployment=deployment,
        pipeline=pipeline,
        forward=section(sections, "forward", Forward),
        engine=section(sections, "engine", Engine),
        rollout=section(sections, "rollout", Rollout),
        gateway=section(sections, "gateway", gateway),
        learner=section(sections, "learner", learner),
    )


def _check_workers(deployment: Deployment, pipeline: Pipeline) -> None:
    if pipeline.workers > 1 and deployment.log != "kafka":
        raise ConfigError(
            f"[pipeline] workers is {pipeline.workers}, but [deployment] log is {deployment.log!r}, which one"
            " folds alone; several share the partitions of log = 'kafka'"
        )


def up(config: Path | None, stopped: Callable[[], bool], console: Console) -> int:
    """Start everything, say where it is, watch it until told to stop.

    Raises: ConfigError, PortInUse, NoBaseModel, StartFailed.
    """
    chosen = settings(config)
    gateway_port = chosen.gateway.port or _free_port(chosen.gateway.host)
    check_ports(ports(chosen))
    _ensure_base_model(chosen.deployment, config, console)
    supervisor = Supervisor(services(chosen, config, gateway_port), logs_dir(chosen.deployment))
    supervisor.start()
    try:
        _wait_until_ready(chosen, supervisor, gateway_port, stopped, console)
    except BaseException:
        supervisor.stop()
        raise
    if not stopped():
        _say_where(chosen, gateway_port, console)
    watch(supervisor, stopped)
    return 0


def services(chosen: Settings, config: Path | None, gateway_port: int) -> list[Service]:
    """Replicas first, then whatever talks to them."""

    def ratchet(name: str, *words: str, env: Mapping[str, str] | None = None, shows: bool = False) -> Service:
        where = () if config is None else ("--config", str(config.absolute()))
        argv = (sys.executable, "-m", "ops.cli", *where, *words)
        return Service(name, argv, env or {}, shows)

    engine = chosen.engine
    replicas = [] if engine.urls else [engine.port + i for i in range(engine.count)]
    found = [ratchet(f"engine-{port}", "engine", "--port", str(port)) for port in replicas]
    found.append(ratchet("controller", "controller"))
    found.append(ratchet("gateway", "gateway", env={"RATCHET_GATEWAY_PORT": str(gateway_port)}, shows=True))
    for worker, port in _pipeline_metrics(chosen.pipeline).items():
        found.append(ratchet(worker, "pipeline", env={"RATCHET_PIPELINE_METRICS_PORT": str(port)}))
    found.append(ratchet("learner", "learn", "serve"))
    if chosen.deployment.log == "kafka":
        found.append(ratchet("forward", "forward"))
    return found


def ports(chosen: Settings) -> list[tuple[str, int, str]]:
    """Every port that our own processes will listen on: host, port, the field that sets it."""
    found = [(chosen.gateway.host, chosen.gateway.port, "[gateway] port")]
    if not chosen.engine.urls:
        found += [("127.0.0.1", chosen.engine.port + i, "[engine] port") for i in range(chosen.engine.count)]
    found += [("127.0.0.1", port, f"[{section}] metrics_port") for _, section, port in _metrics(chosen)]
    return found


def _metrics(chosen: Settings) -> list[tuple[str, str, int]]:
    """Process, section and metrics port; the gateway has none: it shows its metrics beside its API."""
    found = [
        *((worker, "pipeline", port) for worker, port in _pipeline_metrics(chosen.pipeline).items()),
        ("learner", "learner", chosen.learner.metrics_port),
        ("controller", "rollout", chosen.rollout.metrics_port),
    ]
    if chosen.deployment.log == "kafka":
        found.append(("forward", "forward", chosen.forward.metrics_port))
    return found


def _pipeline_metrics(pipeline: Pipeline) -> dict[str, int]:
    """The pipeline's workers and the port of each; the ports in between are other processes'."""
    first = pipeline.metrics_port
    return {
        "pipeline" if n == 0 else f"pipeline-{n + 1}": first + 10 * n if first else 0
        for n in range(pipeline.workers)
    }


def logs_dir(deployment: Deployment) -> Path:
    return deployment.data_dir / "logs"


def _ensure_base_model(deployment: Deployment, config: Path | None, console: Console) -> None:
    """Make the embedded model when it is asked for and not there; it takes minutes, once."""
    try:
        base_model.resolve(deployment)
        return
    except NoBaseModel:
        if deployment.base_model != base_model.EMBEDDED:
            raise
    console.print("The base model is not made yet: making it, once.")
    where = () if config is None else ("--config", str(config.absolute()))
    made = subprocess.run([sys.executable, "-m", "ops.cli", *where, "learn", "base"])
    if made.returncode != 0:
        raise StartFailed(f"`ratchet learn base` ended with {made.returncode}")


def _wait_until_ready(
    chosen: Settings, supervisor: Supervisor, port: int, stopped: Callable[[], bool], console: Console
) -> None:
    """Raises: StartFailed after `start_timeout_s`, or when a process keeps dying."""
    begun = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=3)
        while not stopped():
            supervisor.tick(time.monotonic())
            done, doing = _progress(chosen, port)
            progress.update(task, completed=done, description=doing)
            if done == 3:
                return
            _check_start(chosen, supervisor, time.monotonic() - begun)
            time.sleep(POLL_S)


def _progress(chosen: Settings, port: int) -> tuple[int, str]:
    if _get(_address(chosen.gateway.host, port), "/readyz") == 200:
        return 3, "ready"
    if not all(_get(url.split("//", 1)[1], "/health") == 200 for url in replica_urls(chosen.engine)):
        return 0, f"starting {chosen.engine.kind} (on two cores about 40 s)"
    return 1, "warming up: the first sampled reply compiles"


def _check_start(chosen: Settings, supervisor: Supervisor, seconds: float) -> None:
    logs = logs_dir(chosen.deployment)
    for name in supervisor.names():
        if supervisor.restarts(name) >= 3:
            raise StartFailed(f"{name} keeps dying: {_last_line(logs / f'{name}.log')} (all of it: {logs})")
    if seconds > chosen.engine.start_timeout_s:
        raise StartFailed(f"not ready after {seconds:.0f} s ([engine] start_timeout_s); see {logs}")


def _say_where(chosen: Settings, port: int, console: Console) -> None:
    url = f"http://{_address(chosen.gateway.host, port)}"
    width = shutil.get_terminal_size().columns
    lines = {
        "API": f"{url}/v1  (base URL for any OpenAI SDK, model `ratchet`)",
        "chat page": f"{url}/",
        "metrics": f"{url}/metrics"
        + "".join(f", {process} :{metrics}" for process, _, metrics in _metrics(chosen) if metrics),
        "adapters": "ratchet adapters list",
        "data": str(chosen.deployment.data_dir.absolute()),
        "logs": str(logs_dir(chosen.deployment).absolute()),
    }
    console.print("ratchet is up. Ctrl-C ends it.", highlight=False)
    for name, value in lines.items():
        console.print(f"  {name:<10} {value}", highlight=False, soft_wrap=width < 100)


def _get(address: str, path: str) -> int:
    """The status of one GET; 0 when nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _address(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"{reachable}:{port}"


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.bind((host, 0))
        return int(s.getsockname()[1])


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 4096))
            lines = [line for line in f.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1][:300] if lines else "nothing logged"
