"""`ratchet pipeline`, `forward`, `data` and `review`: arguments in, processes or tables out."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from feedback.config import Deployment, Forward, Pipeline, Retention, Review, read, section
from feedback.errors import ConfigError, FeedbackError

if TYPE_CHECKING:
    import sqlalchemy as sa


def main(argv: list[str], config: Path | None) -> int:
    """Run one verb; 0 when it did what it says, 2 when it could not, with the reason on stderr."""
    args = _parser().parse_args(argv)
    try:
        sections = read(config)
        deployment = section(sections, "deployment", Deployment)
        if args.verb == "forward":
            return _forward(deployment, section(sections, "forward", Forward))
        if args.verb == "review":
            return _review(args, deployment, section(sections, "review", Review))
        pipeline = section(sections, "pipeline", Pipeline)
        retention = section(sections, "retention", Retention)
        if args.verb == "pipeline":
            return _pipeline(deployment, pipeline, retention)
        if args.what == "expire":
            return _expire(args, deployment, pipeline, retention)
        return _data(args, deployment, pipeline)
    except FeedbackError as e:
        print(f"ratchet {args.verb}: {e}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ratchet")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("pipeline", help="fold the event log into pairs until told to stop")
    verbs.add_parser("forward", help="move the embedded log on to Kafka until told to stop")
    data = verbs.add_parser("data", help="snapshots, and where their rows come from")
    what = data.add_subparsers(dest="what", required=True)
    what.add_parser("build", help="write a snapshot of everything there is to learn from")
    what.add_parser("list", help="every snapshot, oldest first")
    show = what.add_parser("show", help="what a snapshot holds, checked against its hash")
    show.add_argument("name", help="a snapshot's name, as `ratchet data list` prints it")
    diff = what.add_parser("diff", help="what changed between two snapshots, and why")
    diff.add_argument("old", help="the snapshot to start from")
    diff.add_argument("new", help="the snapshot to end at")
    diff.add_argument("--rows", action="store_true", help="every changed row, not only the largest changes")
    _export_arguments(what.add_parser("export", help="a snapshot as files for other people's trainers"))
    _lineage_arguments(what.add_parser("lineage", help="where a row comes from, where words went"))
    dead = what.add_parser("dead-letters", help="records that could not be folded, and a second try")
    choice = dead.add_mutually_exclusive_group()
    choice.add_argument("--show", type=int, metavar="N", help="the Nth of the list, whole")
    choice.add_argument("--replay", action="store_true", help="fold those that can be by now, each once")
    what.add_parser("expire", help="let go of what has been kept for its days ([retention])")
    review = verbs.add_parser("review", help="the queue of replies that people compare")
    about = review.add_subparsers(dest="about", required=True)
    about.add_parser("status", help="how much waits, and how far the raters agree")
    about.add_parser("raters", help="how each rater answers")
    for verb in [*what.choices.values(), *about.choices.values()]:
        verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    what.add_parser("erase", add_help=False, help="destroy a user's keys, and all derived of them (ops)")
    return parser


def _export_arguments(export: argparse.ArgumentParser) -> None:
    export.add_argument("name", help="a snapshot's name")
    export.add_argument("folder", type=Path, help="a new folder: nothing is ever overwritten")
    export.add_argument("--format", choices=("trl", "openrlhf", "jsonl"), default="trl", help="default: trl")
    export.add_argument("--split", choices=("train", "heldout"), help="this split alone; default: both")


def _lineage_arguments(lineage: argparse.ArgumentParser) -> None:
    lineage.add_argument("id", nargs="?", help="a row's, a reply's, a snapshot's or a pseudonymous user's")
    lineage.add_argument("--principal", metavar="OWNER", help="owner of the API key the user came with")
    lineage.add_argument("--user", default="", metavar="NAME", help="the end user; default: the owner's own")


def _pipeline(deployment: Deployment, config: Pipeline, retention: Retention) -> int:
    from feedback import pipeline, store
    from feedback.admission import SOURCES
    from feedback.logs import open_log
    from feedback.retention import Holdings, tidy
    from ops.telemetry import configure_logging, serve_metrics

    stop = _told_to_stop()
    configure_logging("pipeline")
    serve_metrics(config.metrics_port)
    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    with (
        store.opened(deployment.state) as state,
        closing(open_log(deployment)) as log,
        closing(log.share(f"{deployment.kafka_prefix}.pipeline.{_name(state)}", SOURCES)) as share,
    ):
        held = Holdings(
            deployment=deployment,
            log=log,
            state=state,
            retention=retention,
            retry_window_s=config.retry_window_s,
        )
        pipeline.run(
            log,
            state,
            config,
            stop,
            share=share,
            snapshots_dir=deployment.snapshots_dir,
            expire=partial(tidy, held),
            expire_every_s=retention.every_s,
        )
    return 0


def _name(state: "sa.Engine") -> str:
    """What the state is called: its workers are a group of their own, whoever else reads the same topics."""
    from feedback import database, store

    with database.writing(state) as tx:
        return store.identity(tx)


def _forward(deployment: Deployment, config: Forward) -> int:
    if deployment.log != "kafka":
        raise ConfigError(f'[deployment] log is "{deployment.log}": only "kafka" has anything to forward to')
    from feedback import forward
    from feedback.embedded import EmbeddedLog
    from feedback.logs import open_log
    from ops.telemetry import configure_logging, serve_metrics

    stop = _told_to_stop()
    configure_logging("forward")
    serve_metrics(config.metrics_port)
    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    with closing(EmbeddedLog(deployment.log_path)) as outbox, closing(open_log(deployment)) as log:
        forward.run(outbox, log, stop)
    return 0


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM and SIGINT, so that a batch is finished before the process ends."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _review(args: argparse.Namespace, deployment: Deployment, config: Review) -> int:
    import msgspec
    from rich.console import Console

    from feedback import review_report, store

    with store.opened(deployment.state) as state:
        if args.about == "raters":
            raters = review_report.raters(state)
            show: Callable[[Console], None] = partial(review_report.print_raters, raters)
            found: object = raters
        else:
            status = review_report.status(state, config.raters_per_item)
            found, show = status, partial(review_report.print_status, status)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        show(Console())
    return 0


def _expire(args: argparse.Namespace, deployment: Deployment, config: Pipeline, retention: Retention) -> int:
    from feedback import report, store
    from feedback.logs import open_log
    from feedback.retention import Holdings, expire

    with closing(open_log(deployment)) as log, store.opened(deployment.state) as state:
        held = Holdings(
            deployment=deployment,
            log=log,
            state=state,
            retention=retention,
            retry_window_s=config.retry_window_s,
        )
        gone = expire(held, datetime.now(UTC))
    report.expired(gone, as_json=args.json)
    return 0


def _data(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> int:
    from feedback import data

    data.VERBS[args.what](args, deployment, config)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], None))
