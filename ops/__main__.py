"""`ratchet up`, `controller`, `engine`, `adapters list|show|promote|rollback` and `data erase`."""

import argparse
import getpass
import importlib.util
import os
import signal
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from feedback.config import Deployment, Pipeline, read, section
from ops.config import Engine, Rollout, replica_urls
from ops.errors import OpsError
from ops.telemetry import configure_logging, serve_metrics


def main(argv: list[str], config: Path | None) -> int:
    """Run one verb. Raises: ConfigError, OpsError, FeedbackError; `ops.cli` prints them."""
    args = _parser().parse_args(argv)
    sections = read(config)
    deployment = section(sections, "deployment", Deployment)
    if args.verb == "up":
        return _up(config)
    if args.verb == "data":
        return _erase(args, deployment, section(sections, "pipeline", Pipeline))
    engine = section(sections, "engine", Engine)
    if args.verb == "engine":
        return _engine(deployment, engine, args.port or engine.port)
    rollout = section(sections, "rollout", Rollout)
    if args.verb == "controller":
        return _controller(deployment, engine, rollout)
    return _adapters(args, deployment, rollout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ratchet")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start the whole service on this machine and watch it")
    verbs.add_parser("controller", help="load adapters, judge candidates, roll them out")
    engine = verbs.add_parser("engine", help="run one engine replica in the foreground")
    engine.add_argument("--port", type=int, help="instead of [engine] port")
    actions = verbs.add_parser("adapters", help="list, show, promote and roll back").add_subparsers(
        dest="action", required=True
    )
    listing = actions.add_parser("list", help="every adapter with its state and why")
    show = actions.add_parser("show", help="one adapter: lineage, gates, history")
    promote = actions.add_parser("promote", help="all traffic to an adapter whose gates passed, now")
    rollback = actions.add_parser("rollback", help="away with the canary, or back to the adapter before")
    for action in (show, promote):
        action.add_argument("name")
    for action in (promote, rollback):
        action.add_argument("--reason", default="", help="for the audit")
    for action in (listing, show, promote, rollback):
        action.add_argument("--json", action="store_true", help="print JSON instead of a table")
    data = verbs.add_parser("data", help="the rest of it is feedback's").add_subparsers(
        dest="action", required=True
    )
    erase = data.add_parser("erase", help="destroy an end user's keys, and all that was derived of them")
    who = erase.add_mutually_exclusive_group(required=True)
    who.add_argument("--principal", help="owner of the API key that the user came with")
    who.add_argument("--pseudonym", help="instead: as events and snapshots name the user, u-…")
    erase.add_argument("--user", default="", help="as the client names its end user; else whom it named none")
    erase.add_argument("--yes", action="store_true", help="do not ask: it cannot be undone")
    erase.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _up(config: Path | None) -> int:
    from ops.up import up

    configure_logging("up", level=30)
    return up(config, _told_to_stop().is_set, Console())


def _engine(deployment: Deployment, engine: Engine, port: int) -> int:
    """Become the replica: this process is replaced."""
    from ops import base_model
    from ops import engine as replica
    from ops.supervise import check_ports

    if engine.kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise OpsError(
            'vLLM is not installed: install the extra `cpu` or `gpu`, or set [engine] kind = "transformers"'
        )
    base_dir = base_model.resolve(deployment)
    check_ports([("127.0.0.1", port, "[engine] port")])
    command = replica.command(engine, base_dir, port)
    os.execve(command[0], command, replica.environment(engine, os.environ))


def _controller(deployment: Deployment, engine: Engine, rollout: Rollout) -> int:
    from feedback.embedded import EmbeddedLog
    from feedback.logs import open_log
    from ops import base_model
    from ops.reconcile import Controller, ensure_identity, run
    from ops.registry import Registry

    stop = _told_to_stop()
    configure_logging("controller")
    base_dir = base_model.resolve(deployment)
    serve_metrics(rollout.metrics_port)
    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    with (
        closing(Registry(deployment.state)) as registry,
        closing(open_log(deployment)) as turns,
        closing(EmbeddedLog(deployment.log_path)) as announcements,
    ):
        identity = ensure_identity(registry, base_dir, deployment.adapters_dir, _now())
        urls = replica_urls(engine)
        for url in registry.readiness().keys() - set(urls):
            registry.forget_replica(url)
        controller = Controller(registry, urls, rollout, identity.base_sha256, turns, announcements)
        run(controller, stop, _now)
    return 0


def _adapters(args: argparse.Namespace, deployment: Deployment, rollout: Rollout) -> int:
    from ops import operators
    from ops.registry import Registry

    console = Console()
    with closing(Registry(deployment.state)) as registry:
        if args.action == "list":
            adapters, table, flags = registry.list(), registry.traffic(), registry.flags()
            if args.json:
                return _json({"adapters": adapters, "traffic": table, "flags": flags})
            operators.print_list(adapters, table, flags, console)
        elif args.action == "show":
            found = operators.details(registry, args.name, rollout)
            if args.json:
                return _json(found)
            operators.print_details(found, console)
        else:
            by = f"operator:{getpass.getuser()}"
            reason = args.reason or f"{args.action} from the command line"
            if args.action == "promote":
                step = operators.promote(registry, args.name, by=by, reason=reason, clock=_now)
            else:
                step = operators.roll_back(registry, by=by, reason=reason, clock=_now)
            if args.json:
                return _json(step)
            for change in step.changes:
                console.print(f"{change.name} is {change.to.value} now", highlight=False)
    return 0


def _erase(args: argparse.Namespace, deployment: Deployment, pipeline: Pipeline) -> int:
    from feedback import privacy
    from ops import erasure

    if args.user and args.principal is None:
        raise OpsError("--user needs --principal, the owner of the API key: see `ratchet keys list`")
    if args.principal is not None:
        secret = privacy.existing_secret(deployment.data_dir / "secret")
        user = privacy.pseudonym(secret, args.principal, args.user)
    else:
        user = args.pseudonym
    if not args.yes:
        if not sys.stdin.isatty():
            raise OpsError("erasing cannot be undone: confirm it with --yes")
        if input(f"Erase {user} for ever? Type yes: ").strip() != "yes":
            raise OpsError("nothing was erased")
    by = f"operator:{getpass.getuser()}"
    report = erasure.erase(deployment, pipeline, user, by=by, clock=_now)
    if args.json:
        return _json(report)
    erasure.print_report(report, Console())
    return 0


def _json(value: object) -> int:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return 0


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    from ops.cli import main as cli

    sys.exit(cli())
