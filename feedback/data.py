"""`ratchet data`: one function per verb, from parsed arguments to what is printed."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from feedback import changes, database, export, lineage, pipeline, privacy, report, snapshots, store
from feedback.config import Deployment, Pipeline
from feedback.errors import ConfigError, NothingFound
from feedback.snapshots import Snapshot


def build(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    made = snapshots.build(deployment.state, deployment.snapshots_dir, config, datetime.now(UTC))
    report.manifest(made, as_json=args.json)


def listing(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    report.manifests(snapshots.listed(deployment.snapshots_dir), as_json=args.json)


def show(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    report.manifest(snapshots.load(deployment.snapshots_dir / args.name).manifest, as_json=args.json)


def diff(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    old, new = (snapshots.load(deployment.snapshots_dir / name) for name in (args.old, args.new))
    found = changes.compare(old, new, erased=_erased(deployment.state, old, new))
    report.difference(found, every_row=args.rows, as_json=args.json)


def export_(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    splits = (args.split,) if args.split else export.SPLITS
    done = export.export(deployment.snapshots_dir / args.name, args.folder, args.format, splits=splits)
    report.exported(done, as_json=args.json)


def trace(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    state, directory = deployment.state, deployment.snapshots_dir
    if (args.id is None) == (args.principal is None):
        raise NothingFound("name one thing to trace: an id, or --principal with or without --user")
    if args.principal is not None:
        user = _pseudonym(deployment.data_dir / "secret", args.principal, args.user)
        report.trail(lineage.of_user(state, directory, user), as_json=args.json)
    elif args.id.startswith(lineage.ROWS):
        report.lineage(lineage.of_row(state, directory, args.id), as_json=args.json)
    elif args.id.startswith("snapshot-"):
        report.ancestry(lineage.of_snapshot(directory, args.id), as_json=args.json)
    elif args.id.startswith(privacy.PREFIX):
        report.trail(lineage.of_user(state, directory, args.id), as_json=args.json)
    else:
        report.trail(lineage.of_response(state, directory, args.id), as_json=args.json)


def dead_letters(args: argparse.Namespace, deployment: Deployment, config: Pipeline) -> None:
    with store.opened(deployment.state) as state:
        if args.replay:
            done = pipeline.replay_dead_letters(state, config, now=datetime.now(UTC))
            return report.replayed(done, as_json=args.json)
        with database.reading(state) as tx:
            places = store.dead_letter_places(tx)
            if args.show is None:
                return report.dead_letters(store.each_dead_letter(tx, places), as_json=args.json)
            if not 1 <= args.show <= len(places):
                raise NothingFound(f"there is no dead letter {args.show}: there are {len(places)}")
            (letter,) = store.each_dead_letter(tx, places[args.show - 1 : args.show])
            report.dead_letter(args.show, letter, as_json=args.json)


VERBS: dict[str, Callable[[argparse.Namespace, Deployment, Pipeline], None]] = {
    "build": build,
    "list": listing,
    "show": show,
    "diff": diff,
    "export": export_,
    "lineage": trace,
    "dead-letters": dead_letters,
}


def _erased(state_url: str, old: Snapshot, new: Snapshot) -> set[str]:
    """Events of `old` that the state has no more; none where `new` was built from another state."""
    gone = changes.events_gone(old, new)
    with store.opened(state_url) as state, database.reading(state) as tx:
        ours = store.snapshot_weight(tx, new.manifest.name) is not None
        return gone - store.known_events(tx, gone) if ours else set()


def _pseudonym(secret: Path, principal: str, user: str) -> str:
    """A secret made anew would give a pseudonym that nothing knows."""
    if not secret.exists():
        raise ConfigError(f"there is no secret {secret}: pseudonyms are known where the gateway's secret is")
    return privacy.pseudonym(privacy.secret(secret), principal, user)
