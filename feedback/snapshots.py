"""Snapshots: an immutable, hashed version of everything there is to learn from, as Parquet and a manifest.

The hash covers the canonical rows, not the files' bytes: the same events give the same hash whatever their
order, however often they came and whichever library wrote the files. Columns: TRL's conversational formats.
"""

import fcntl
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib.metadata import version
from math import fsum
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from feedback import accuracy, consensus, database, judgements, store, trust
from feedback.comparisons import Tally, tally
from feedback.config import Pipeline
from feedback.derivation import VERSION, Asked
from feedback.errors import SnapshotErased, SnapshotError
from feedback.events import DIMENSIONS, Message, SignalKind
from feedback.pairs import contrast, split_of
from feedback.propensity import reweigh
from feedback.raters import WEIGHT_DIGITS, cap_accounts, centre_thumbs, raters_of
from feedback.records import Demonstration, Grade, Pair, PromptState, Split, Vote
from feedback.text import canonical

SCHEMA_VERSION = 3
"""Raise it whenever a column comes (`_SINCE`); snapshots of earlier versions are still read."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_STRINGS = pa.list_(pa.string())
_AT = pa.timestamp("us", tz="UTC")
_DIMENSIONS = pa.struct([(name, pa.float64()) for name in DIMENSIONS])
_SCHEMAS = {
    "pairs": pa.schema(
        {
            "pair_id": pa.string(),
            "split": pa.string(),
            "prompt": _MESSAGES,
            "chosen": _MESSAGES,
            "rejected": _MESSAGES,
            "p": pa.float64(),
            "weight": pa.float64(),
            "kind": pa.string(),
            "reason": pa.string(),
            "prompt_digest": pa.string(),
            "chosen_response_id": pa.string(),
            "rejected_response_id": pa.string(),
            "user": pa.string(),
            "raters": _STRINGS,
            "dimensions": _DIMENSIONS,
            "votes": pa.list_(
                pa.struct([("rater", pa.string()), ("p", pa.float64()), ("dimensions", _DIMENSIONS)])
            ),
            "event_ids": _STRINGS,
            "at": _AT,
        }
    ),
    "grades": pa.schema(
        {
            "grade_id": pa.string(),
            "split": pa.string(),
            "prompt": _MESSAGES,
            "completion": _MESSAGES,
            "p": pa.float64(),
            "label": pa.bool_(),
            "weight": pa.float64(),
            "kind": pa.string(),
            "inferred": pa.bool_(),
            "reason": pa.string(),
            "dimensions": _DIMENSIONS,
            "prompt_digest": pa.string(),
            "response_id": pa.string(),
            "adapter": pa.string(),
            "user": pa.string(),
            "event_ids": _STRINGS,
            "at": _AT,
        }
    ),
    "demonstrations": pa.schema(
        {
            "demonstration_id": pa.string(),
            "split": pa.string(),
            "prompt": _MESSAGES,
            "completion": _MESSAGES,
            "weight": pa.float64(),
            "prompt_digest": pa.string(),
            "user": pa.string(),
            "event_ids": _STRINGS,
            "at": _AT,
        }
    ),
    "prompts": pa.schema(
        {"prompt_digest": pa.string(), "split": pa.string(), "prompt": _MESSAGES, "count": pa.int64()}
    ),
}
TABLES = tuple(_SCHEMAS)
_SINCE = {("grades", "dimensions"): 2, ("pairs", "dimensions"): 3, ("pairs", "votes"): 3}
"""The schema version that a column came with; those not named here were always there."""
IDS = {
    "pairs": "pair_id",
    "grades": "grade_id",
    "demonstrations": "demonstration_id",
    "prompts": "prompt_digest",
}
"""The column of each table that names its rows."""
Row = dict[str, Any]
Rows = dict[str, list[Row]]
"""Rows of each table, in order of id: what is hashed and what is written."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot holds and where it comes from. Only `rows`' contents are in the hash."""

    name: str
    """`snapshot-` and the first 12 hex digits of `hash`."""
    hash: str
    created_at: datetime
    schema_version: int
    code_version: str
    parent: str | None
    """The snapshot built before this one from the same state."""
    offsets: dict[str, int]
    """Next offset by `topic/partition` when it was built."""
    rows: dict[str, int]
    """Number of rows by table."""
    kinds: dict[str, dict[str, int]]
    """Number of rows by table and signal kind."""
    splits: dict[str, dict[str, int]]
    """Number of rows by table and split."""
    set_aside: int
    """Rows left out: held-out users on training prompts, judgements on held-out ones."""
    arrived_weight: float
    """Weight of all grades and pairs in the state that come from people, before caps."""
    heldout_fraction: float
    account_cap: float
    subject_cap: float = 1.0
    judgement_cap: float = 1.0
    judgement_share: float = 0.0
    """Share of the training pairs' and grades' weight that a machine's judgements have, after the cap."""
    fit: accuracy.Fit = ()
    """How often each kind of signal is right, by tier of user: what the rows' soft labels come from."""
    fit_hash: str = ""
    weight_kept: float = 1.0
    """Share of the grades' and pairs' weight that trust left, before caps per account and contrasts."""
    propensity_clip: float = 1.0
    """Largest factor by which rows of rare arms weigh more; 1: none do."""
    comparisons: Tally = Tally()
    """All answers about two replies side by side, and what else could have decided them."""
    reviews: consensus.Report = consensus.Report()
    """How far the raters of the review queue agree, and can be believed."""
    quarantined: tuple[trust.Quarantined, ...] = ()
    """Accounts whose rows were left out, and why. They come back when the evidence or `trusted` says so."""
    doubted: tuple[trust.Doubted, ...] = ()
    """Subjects on which accounts count less because they speak against the others; see the rows' reasons."""
    erased_at: datetime | None = None
    """Since when its files are gone, because a user whose text they held was erased; this manifest stays."""
    expired_at: datetime | None = None
    """Since when its files are gone, because they were kept long enough."""
    files: dict[str, str] = {}
    """SHA-256 of each file of rows: who reads a part of them checks these, not `hash`."""
    users: tuple[str, ...] = ()
    """Once it has expired: the pseudonyms of whom its rows came from, so that an erasure still finds it."""

    @property
    def has_files(self) -> bool:
        return self.erased_at is None and self.expired_at is None


class Entry(NamedTuple):
    """What a row of a snapshot is chosen by."""

    row_id: str
    split: str
    prompt_digest: str
    at: datetime | None = None
    """None for prompts."""


Choose = Callable[[Mapping[str, Sequence[Entry]]], Mapping[str, Collection[str]]]
"""From every row's entry, by table, to the ids of those that are wanted."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of a snapshot, or those that were chosen."""

    path: Path
    manifest: Manifest
    pairs: list[Pair]
    grades: list[Grade]
    demonstrations: list[Demonstration]
    prompts: list[PromptState]
    splits: dict[str, Split]
    """Split by the id of a pair, grade or demonstration."""

    @property
    def rows(self) -> list[Pair | Grade | Demonstration]:
        """Every row that has events behind it."""
        return [*self.pairs, *self.grades, *self.demonstrations]

    def split_of(self, row: Pair | Grade | Demonstration | PromptState) -> Split:
        return row.split if isinstance(row, PromptState) else self.splits[id_of(row)]


class Assembled(msgspec.Struct, frozen=True, kw_only=True):
    """What `assemble` makes of everything in the state."""

    rows: Rows
    set_aside: int
    fit: accuracy.Fit
    weight_kept: float
    judgement_share: float
    reviews: consensus.Report
    quarantined: tuple[trust.Quarantined, ...]
    doubted: tuple[trust.Doubted, ...]


class Traces(msgspec.Struct, frozen=True, kw_only=True):
    """What of a user to look for in snapshots."""

    user: str
    at: datetime
    """Rows of the user that came later are theirs to keep."""
    event_ids: frozenset[str] = frozenset()
    prompt_digests: frozenset[str] = frozenset()


def build(state_url: str, out_dir: Path, config: Pipeline, now: datetime) -> Manifest:
    """Write everything there is to learn from at this moment to `out_dir/<name>`.

    Building twice from the same events gives the first snapshot again.
    Raises: SnapshotError when there is nothing to learn from yet; StateUnavailable.
    """
    with store.opened(state_url) as state:
        return build_from(state, out_dir, config, now)


def build_from(state: sa.Engine, out_dir: Path, config: Pipeline, now: datetime) -> Manifest:
    """`build` on an open state."""
    with _shared(out_dir):
        return _build(state, out_dir, config, now)


def _build(state: sa.Engine, out_dir: Path, config: Pipeline, now: datetime) -> Manifest:
    with database.reading(state) as tx:
        assembled = assemble(
            grades=store.derived_rows(tx, "grade"),
            pairs=store.derived_rows(tx, "pair"),
            demonstrations=store.derived_rows(tx, "demonstration"),
            asked=store.derived_rows(tx, "asked"),
            config=config,
        )
        offsets = {f"{topic}/{partition}": n for (topic, partition), n in store.load_offsets(tx).items()}
        answered = tally(store.derived_rows(tx, "comparison"))
        parent, arrived = store.latest_snapshot(tx), store.arrived_weight(tx)
    rows = assembled.rows
    if not any(rows[table] for table in ("grades", "pairs", "demonstrations")):
        raise SnapshotError(f"nothing to learn from yet: no grade, pair or demonstration; offsets {offsets}")
    digest = hash_of(rows, SCHEMA_VERSION)
    manifest = Manifest(
        name=f"snapshot-{digest[:12]}",
        hash=digest,
        created_at=now,
        schema_version=SCHEMA_VERSION,
        code_version=f"{version('ratchet')} derivation {VERSION}",
        parent=parent,
        offsets=dict(sorted(offsets.items())),
        rows={table: len(rows[table]) for table in TABLES},
        kinds={table: _tally(rows[table], "kind") for table in ("pairs", "grades")},
        splits={table: _tally(rows[table], "split") for table in TABLES},
        set_aside=assembled.set_aside,
        arrived_weight=arrived,
        heldout_fraction=config.heldout_fraction,
        account_cap=config.account_cap,
        subject_cap=config.subject_cap,
        judgement_cap=config.judgement_cap,
        judgement_share=assembled.judgement_share,
        fit=assembled.fit,
        fit_hash=accuracy.hash_of(assembled.fit),
        weight_kept=assembled.weight_kept,
        propensity_clip=config.propensity_clip,
        comparisons=answered,
        reviews=assembled.reviews,
        quarantined=assembled.quarantined,
        doubted=assembled.doubted,
    )
    manifest = _write_once(out_dir, manifest, rows)
    with database.writing(state) as tx:
        store.note_snapshot(tx, manifest.name, now, arrived)
    return manifest


def assemble(
    *,
    grades: Iterable[Grade],
    pairs: Iterable[Pair],
    demonstrations: Iterable[Demonstration],
    asked: Iterable[Asked],
    config: Pipeline,
) -> Assembled:
    """The rows of a snapshot. Does not depend on any order.

    Soft labels follow the fitted accuracies, accounts are weighed by trust, rare arms weigh more, thumbs are
    centred, held-out users' rows on training prompts go, every account is capped within each split, and only
    then are graded replies contrasted across users. A machine's judgements are no account's: gold measures
    them like other signals, they are never held out, and have at most `judgement_cap` of the training weight.
    Reviews are no account's either: what raters say of a pair becomes one row, or bad grades of both replies,
    weighed by how sure that is.
    """
    reviews_of_one, said = consensus.apart(grades)
    shown = list(demonstrations)
    judged, of_people = judgements.apart(pairs)
    answers, shown_pairs = consensus.apart(of_people)
    reviewed, unacceptable, reviews = consensus.settle(answers, shown_pairs, reviews_of_one)
    everything = [*shown_pairs, *judged, *reviewed]
    fit, tiers = accuracy.fit([*said, *unacceptable], everything), accuracy.tiers_of([*said, *everything])
    weighed = trust.weigh(
        accuracy.relabel_grades(said, fit, tiers),
        accuracy.relabel_pairs(shown_pairs, fit, tiers),
        shown,
        trust.assess(said, shown_pairs, trusted=config.trusted),
        subject_cap=config.subject_cap,
    )
    rows, set_aside = _split_and_capped(
        centre_thumbs(reweigh(weighed.grades, config.propensity_clip)),
        reweigh(weighed.pairs, config.propensity_clip),
        weighed.demonstrations,
        config,
    )
    for pair in reviewed:
        rows["pairs"].append(_pair_row(pair, _split_of_prompt(pair, config)))
    for grade in unacceptable:
        rows["grades"].append(_grade_row(grade, _split_of_prompt(grade, config)))
    instructive = judgements.instructive(
        accuracy.relabel_pairs(judged, fit, tiers), [*shown_pairs, *reviewed]
    )
    share, heldout = _add_judgements(rows, instructive, config)
    rows["prompts"] = [_prompt_row(p) for p in _prompt_states(asked, config.heldout_fraction)]
    for table, column in IDS.items():
        rows[table].sort(key=itemgetter(column))
    before, after = _weight(said, shown_pairs), _weight(weighed.grades, weighed.pairs)
    return Assembled(
        rows=rows,
        set_aside=set_aside + heldout,
        fit=fit,
        weight_kept=round(after / before, WEIGHT_DIGITS) if before else 1.0,
        judgement_share=share,
        reviews=reviews,
        quarantined=tuple(weighed.quarantined),
        doubted=tuple(weighed.doubted),
    )


def _split_and_capped(
    grades: Sequence[Grade],
    pairs: Sequence[Pair],
    demonstrations: Sequence[Demonstration],
    config: Pipeline,
) -> tuple[Rows, int]:
    """Rows in their splits, each account capped within each, and how many rows were set aside."""

    def split(row: Any) -> Split | None:
        return split_of(row.prompt, raters_of(row), heldout_fraction=config.heldout_fraction)

    rows: Rows = {table: [] for table in TABLES}
    placed = 0
    for name in ("train", "heldout"):
        graded = [g for g in grades if split(g) == name]
        capped = cap_accounts(graded, config.account_cap)
        found = [p for p in pairs if split(p) == name]
        shown = [d for d in demonstrations if split(d) == name]
        placed += len(graded) + len(found) + len(shown)
        found = cap_accounts([*found, *contrast(capped)], config.account_cap)
        rows["grades"] += [_grade_row(g, name) for g in capped]
        rows["pairs"] += [_pair_row(p, name) for p in found]
        rows["demonstrations"] += [
            _demonstration_row(d, name) for d in cap_accounts(shown, config.account_cap)
        ]
    return rows, len(grades) + len(pairs) + len(demonstrations) - placed


def _add_judgements(rows: Rows, judged: Sequence[Pair], config: Pipeline) -> tuple[float, int]:
    """Put judgements on training prompts among the pairs, capped.

    Returns: their share of the weight, and how many were left out because their prompts are held out.
    """
    train = [p for p in judged if _split_of_prompt(p, config) == "train"]
    others = fsum(
        row["weight"] for table in ("grades", "pairs") for row in rows[table] if row["split"] == "train"
    )
    capped = judgements.cap(train, others, config.judgement_cap)
    rows["pairs"] += [_pair_row(p, "train") for p in capped]
    weight = fsum(p.weight for p in capped)
    return round(weight / (weight + others), WEIGHT_DIGITS) if weight else 0.0, len(judged) - len(train)


def _split_of_prompt(row: Grade | Pair, config: Pipeline) -> Split:
    """Of a row that is no user's word."""
    return split_of(row.prompt, (), heldout_fraction=config.heldout_fraction) or "train"


def _weight(grades: Iterable[Grade], pairs: Iterable[Pair]) -> float:
    return fsum([*(g.weight for g in grades), *(p.weight for p in pairs)])


def hash_of(rows: Mapping[str, list[Row]], schema_version: int) -> str:
    """SHA-256 over schema version and canonical rows of every table, in order of id; 64 hex digits."""
    digest = sha256(f"ratchet snapshot {schema_version}\n".encode())
    for table in TABLES:
        digest.update(f"{table} {len(rows[table])}\n".encode())
        for row in rows[table]:
            digest.update(canonical(row) + b"\n")
    return digest.hexdigest()


def schema_of(table: str, version: int = SCHEMA_VERSION) -> pa.Schema:
    """The columns that a table had in that schema version."""
    return pa.schema([f for f in _SCHEMAS[table] if _SINCE.get((table, f.name), 1) <= version])


def load(path: Path, choose: Choose | None = None) -> Snapshot:
    """The snapshot in the folder `path`, checked against its manifest. Columns it is too old for are empty.

    Args: choose, which rows are wanted; None: all of them.
    Raises: SnapshotError naming the file, row and column that is missing, empty or not what was hashed;
    SnapshotErased.
    """
    manifest, rows = rows_of(path) if choose is None else chosen_rows(path, choose)
    return Snapshot(
        path=path,
        manifest=manifest,
        pairs=[_pair(row) for row in rows["pairs"]],
        grades=[_grade(row) for row in rows["grades"]],
        demonstrations=[_demonstration(row) for row in rows["demonstrations"]],
        prompts=[_prompt(row) for row in rows["prompts"]],
        splits={row[IDS[t]]: row["split"] for t in TABLES if t != "prompts" for row in rows[t]},
    )


def rows_of(path: Path) -> tuple[Manifest, Rows]:
    """Manifest and rows of the snapshot in `path`, checked as by `load`. Raises: as `load` does."""
    manifest = _present_manifest(path)
    schema_version = manifest.schema_version
    rows = {table: _read(path / f"{table}.parquet", table, schema_version) for table in TABLES}
    if (found := hash_of(rows, schema_version)) != manifest.hash:
        raise SnapshotError(f"{path}: the rows hash to {found[:12]}, the manifest says {manifest.hash[:12]}")
    return manifest, rows


def chosen_rows(path: Path, choose: Choose) -> tuple[Manifest, Rows]:
    """Manifest and the rows that are wanted, in order of id; words of no other row become objects.

    Checked by the files' digests; whole, where an earlier release noted none. Raises: as `load` does.
    """
    manifest = _present_manifest(path)
    files = {table: path / f"{table}.parquet" for table in TABLES}
    if not manifest.files:
        _, rows = rows_of(path)
        index = {table: [_entry(table, row) for row in rows[table]] for table in TABLES}
        wanted = choose(index)
        return manifest, {t: [row for row in rows[t] if row[IDS[t]] in wanted[t]] for t in TABLES}
    for table, file in files.items():
        if (found := _digest(file)) != manifest.files[table]:
            raise SnapshotError(f"{file} hashes to {found[:12]}, not {manifest.files[table][:12]}")
    wanted = choose({table: _entries(file, table) for table, file in files.items()})
    return manifest, {t: _read(files[t], t, manifest.schema_version, wanted[t]) for t in TABLES}


def _entries(file: Path, table: str) -> list[Entry]:
    columns = ("split", "prompt_digest", *(("at",) if "at" in _SCHEMAS[table].names else ()))
    found = pq.read_table(file, columns=[*dict.fromkeys((IDS[table], *columns))]).to_pydict()
    return [Entry(*fields) for fields in zip(*(found[name] for name in (IDS[table], *columns)), strict=True)]


def _entry(table: str, row: Row) -> Entry:
    return Entry(row[IDS[table]], row["split"], row["prompt_digest"], row.get("at"))


def _digest(file: Path) -> str:
    """Raises: SnapshotError."""
    try:
        with file.open("rb") as f:
            return file_digest(f, "sha256").hexdigest()
    except FileNotFoundError as e:
        raise SnapshotError(f"{file} is missing") from e
    except OSError as e:
        raise SnapshotError(f"{file}: {e.strerror}") from e


def _present_manifest(path: Path) -> Manifest:
    """Of a snapshot that still has its files. Raises: SnapshotError, SnapshotErased."""
    manifest = read_manifest(path)
    if manifest.expired_at is not None:
        raise SnapshotErased(
            f"{path.name} expired on {manifest.expired_at:%Y-%m-%d %H:%M} ([retention] snapshots_days): "
            "`ratchet data build` makes a new one"
        )
    if manifest.erased_at is not None:
        raise SnapshotErased(
            f"{path.name} was erased on {manifest.erased_at:%Y-%m-%d %H:%M} with a user whose text it held: "
            "`ratchet data build` makes one without"
        )
    return manifest


def read_manifest(path: Path) -> Manifest:
    """A snapshot's manifest alone. Raises: SnapshotError."""
    file = path / "manifest.json"
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except OSError as e:
        raise SnapshotError(f"{path} is no snapshot: {file.name}: {e.strerror}") from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise SnapshotError(f"{file} is no manifest: {e}") from e
    if not 1 <= manifest.schema_version <= SCHEMA_VERSION:
        raise SnapshotError(
            f"{file}: schema version {manifest.schema_version}, this release reads 1 to {SCHEMA_VERSION}"
        )
    return manifest


def listed(snapshots_dir: Path) -> list[Manifest]:
    """Every snapshot's manifest, oldest first."""
    found = [read_manifest(file.parent) for file in snapshots_dir.glob("snapshot-*/manifest.json")]
    return sorted(found, key=lambda m: (m.created_at, m.name))


def kept(snapshots_dir: Path) -> list[Manifest]:
    """Those that have their files, oldest first."""
    return [manifest for manifest in listed(snapshots_dir) if manifest.has_files]


def erased(snapshots_dir: Path) -> list[str]:
    """Names of those whose files are gone because a user was erased."""
    return [manifest.name for manifest in listed(snapshots_dir) if manifest.erased_at is not None]


@contextmanager
def alone(snapshots_dir: Path) -> Iterator[None]:
    """Nobody builds a snapshot meanwhile; what killed builds left is removed. Waits for running builds."""
    with _locked(snapshots_dir, fcntl.LOCK_EX):
        for left in snapshots_dir.glob(".building-*"):
            shutil.rmtree(left)
        yield


def erase(snapshots_dir: Path, traces: Traces, at: datetime) -> list[str]:
    """Remove the files of every snapshot that holds something of the user; returns their names.

    The manifest says so before the first file goes, and stays: which adapters learned from it must be known.
    Only while `alone`. Raises: SnapshotError.
    """
    gone = []
    for manifest in listed(snapshots_dir):
        folder = snapshots_dir / manifest.name
        if manifest.erased_at is None and _held(folder, manifest, traces):
            gone.append(manifest.name)
            users = tuple(user for user in manifest.users if user != traces.user)
            _write_manifest(folder, msgspec.structs.replace(manifest, erased_at=at, users=users))
        if manifest.erased_at is not None or manifest.name in gone:
            _remove_tables(folder)
    return gone


def expire(snapshots_dir: Path, before: datetime, at: datetime) -> list[str]:
    """Remove the files of every snapshot built before then; returns their names.

    The manifest stays, and says whose rows they were. Only while `alone`. Raises: SnapshotError.
    """
    gone = []
    for manifest in listed(snapshots_dir):
        folder = snapshots_dir / manifest.name
        if manifest.created_at < before and manifest.has_files:
            gone.append(manifest.name)
            users = tuple(sorted(_users(folder)))
            _write_manifest(folder, msgspec.structs.replace(manifest, expired_at=at, users=users))
        if manifest.expired_at is not None or manifest.name in gone:
            _remove_tables(folder)
    return gone


def _remove_tables(folder: Path) -> None:
    for file in folder.glob("*.parquet"):
        file.unlink()
    _fsync(folder)


def _users(folder: Path) -> set[str]:
    """Pseudonyms of everybody whom a row of the snapshot comes from."""
    return {
        user
        for table in TABLES
        if table != "prompts"
        for row in read_columns(folder / f"{table}.parquet", ("user", "raters"))
        for user in (row["user"], *row.get("raters", ()))
    }


def _held(folder: Path, manifest: Manifest, traces: Traces) -> bool:
    """Whether the snapshot holds, or held until it expired, something of the user."""
    return traces.user in manifest.users if manifest.expired_at else _holds(folder, traces)


def _holds(folder: Path, traces: Traces) -> bool:
    """Whether a row comes from the user's events, or from the user at all, as far as it is old enough."""
    columns = ("prompt_digest", "event_ids", "user", "raters", "at")
    for table in TABLES:
        for row in read_columns(folder / f"{table}.parquet", columns):
            if table == "prompts":
                if row["prompt_digest"] in traces.prompt_digests:
                    return True
            elif not traces.event_ids.isdisjoint(row["event_ids"]):
                return True
            elif traces.user in (row["user"], *row.get("raters", ())) and row["at"] <= traces.at:
                return True
    return False


@contextmanager
def _shared(snapshots_dir: Path) -> Iterator[None]:
    """Any number of builds at once, but no erasure: it would miss what is just being written."""
    with _locked(snapshots_dir, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(snapshots_dir: Path, how: int) -> Iterator[None]:
    try:
        snapshots_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(snapshots_dir, os.O_RDONLY)
    except OSError as e:
        raise SnapshotError(f"cannot write to {snapshots_dir}: {e.strerror}") from e
    try:
        fcntl.flock(folder, how)
        yield
    finally:
        os.close(folder)


def read_columns(file: Path, columns: Iterable[str]) -> list[Row]:
    """A table's rows with those of the columns that it has; checks neither schema nor hash.

    Raises: SnapshotError.
    """
    try:
        there = pq.read_schema(file).names
        rows: list[Row] = pq.read_table(file, columns=[c for c in columns if c in there]).to_pylist()
    except FileNotFoundError as e:
        raise SnapshotError(f"{file} is missing") from e
    except (OSError, pa.ArrowException) as e:
        raise SnapshotError(f"{file} is no Parquet file: {e}") from e
    return rows


def pending_weight(state_url: str, since_snapshot: str | None) -> float:
    """Weight of grades and pairs that came since the snapshot of that name was built; all of it for None.

    Raises: SnapshotError for a snapshot that was not built from this state; StateUnavailable.
    """
    with store.opened(state_url) as state, database.reading(state) as tx:
        before = 0.0 if since_snapshot is None else store.snapshot_weight(tx, since_snapshot)
        now = store.arrived_weight(tx)
        place = state.url.render_as_string()
    if before is None:
        raise SnapshotError(f"snapshot {since_snapshot!r} was not built from {place}")
    return max(0.0, now - before)


def _prompt_states(asked: Iterable[Asked], heldout_fraction: float) -> Iterable[PromptState]:
    """Each prompt state once; without those that only held-out users asked outside held-out clusters."""
    by_digest: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        if split_of(one.prompt, (one.user,), heldout_fraction=heldout_fraction) is not None:
            by_digest[one.prompt_digest].append(one)
    for digest, same in by_digest.items():
        prompt = min((a.prompt for a in same), key=canonical)  # they may differ in whitespace
        yield PromptState(
            prompt_digest=digest,
            prompt=prompt,
            count=len({response_id for a in same for response_id in a.response_ids}),
            split=split_of(prompt, (), heldout_fraction=heldout_fraction) or "train",
        )


def _write_once(out_dir: Path, manifest: Manifest, rows: Rows) -> Manifest:
    """Write the folder whole or not at all; one that is there already stays, and its manifest is returned."""
    target = out_dir / manifest.name
    if target.exists() and (there := _same(target, manifest)).has_files:
        return there
    out_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=out_dir))
    try:
        for table, schema in _SCHEMAS.items():
            pq.write_table(pa.Table.from_pylist(rows[table], schema=schema), building / f"{table}.parquet")
        files = {table: _digest(building / f"{table}.parquet") for table in TABLES}
        manifest = msgspec.structs.replace(manifest, files=files)
        _write_manifest(building, manifest)
        for file in (*building.iterdir(), building):
            _fsync(file)
        building.chmod(0o755)
        if target.exists():
            _refill(target, building)
            return manifest
        try:
            building.rename(target)
        except OSError:
            if not target.exists():
                raise
            return _same(target, manifest)
        _fsync(out_dir)
        return manifest
    except OSError as e:
        raise SnapshotError(f"cannot write {target}: {e.strerror}") from e
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _refill(target: Path, building: Path) -> None:
    """A snapshot erased for a prompt that others asked too came out the same without the erased user's rows.

    The manifest comes last: until then the snapshot stays erased.
    """
    for table in TABLES:
        (building / f"{table}.parquet").replace(target / f"{table}.parquet")
    _fsync(target)
    (building / "manifest.json").replace(target / "manifest.json")
    _fsync(target)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    draft = folder / ".manifest.json"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    _fsync(draft)
    draft.replace(folder / "manifest.json")
    _fsync(folder)


def _same(target: Path, manifest: Manifest) -> Manifest:
    there = read_manifest(target)
    if there.hash != manifest.hash:
        raise SnapshotError(f"{target} holds {there.hash}, not {manifest.hash}: move it away")
    return there


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path, table: str, schema_version: int, ids: Collection[str] | None = None) -> list[Row]:
    """Rows with these ids, or all of them."""
    schema = schema_of(table, schema_version)
    wanted = None if ids is None else pc.field(IDS[table]).isin(pa.array(sorted(ids), pa.string()))
    try:
        found = pq.read_table(file, filters=wanted)
    except FileNotFoundError as e:
        raise SnapshotError(f"{file} is missing") from e
    except (OSError, pa.ArrowException) as e:
        raise SnapshotError(f"{file} is no Parquet file: {e}") from e
    for field in schema:
        if field.name not in found.column_names:
            raise SnapshotError(f"{file} has no column {field.name!r}")
        if (there := found.schema.field(field.name).type) != field.type:
            raise SnapshotError(f"{file}: column {field.name!r} is {there}, expected {field.type}")
    rows: list[Row] = found.select(schema.names).to_pylist()
    for number, row in enumerate(rows):
        if hole := _hole(row):
            raise SnapshotError(f"{file} row {number} ({row[IDS[table]]}): {hole}")
    return rows


def _hole(row: Row) -> str | None:
    """What is missing from the row; None when it is whole."""
    for column, value in row.items():
        if value is None:
            return f"{column} is null"
        if column in ("prompt", "chosen", "rejected", "completion"):
            if not value:
                return f"{column} is empty"
            if any(m is None or m["role"] is None or m["content"] is None for m in value):
                return f"{column} has a message without role or content"
    return None


def _tally(rows: Iterable[Row], column: str) -> dict[str, int]:
    return dict(sorted(Counter(row[column] for row in rows).items()))


def id_of(row: Pair | Grade | Demonstration) -> str:
    if isinstance(row, Pair):
        return row.pair_id
    return row.grade_id if isinstance(row, Grade) else row.demonstration_id


def _said(reply: str) -> list[Message]:
    return [{"role": "assistant", "content": reply}]


def _told_apart(dimensions: Mapping[str, float]) -> dict[str, float | None]:
    return {name: dimensions.get(name) for name in DIMENSIONS}


def _present(dimensions: Mapping[str, float | None]) -> dict[str, float]:
    return {name: said for name, said in dimensions.items() if said is not None}


def _pair_row(pair: Pair, split: Split) -> Row:
    return {
        "pair_id": pair.pair_id,
        "split": split,
        "prompt": list(pair.prompt),
        "chosen": _said(pair.chosen),
        "rejected": _said(pair.rejected),
        "p": pair.p,
        "weight": pair.weight,
        "kind": pair.kind.value,
        "reason": pair.reason,
        "prompt_digest": pair.prompt_digest,
        "chosen_response_id": pair.chosen_response_id,
        "rejected_response_id": pair.rejected_response_id,
        "user": pair.user,
        "raters": list(pair.raters),
        "dimensions": _told_apart(pair.dimensions),
        "votes": [{"rater": v.rater, "p": v.p, "dimensions": _told_apart(v.dimensions)} for v in pair.votes],
        "event_ids": list(pair.event_ids),
        "at": pair.at.astimezone(UTC),
    }


def _pair(row: Row) -> Pair:
    return Pair(
        pair_id=row["pair_id"],
        prompt_digest=row["prompt_digest"],
        prompt=tuple(row["prompt"]),
        chosen=row["chosen"][0]["content"],
        rejected=row["rejected"][0]["content"],
        chosen_response_id=row["chosen_response_id"],
        rejected_response_id=row["rejected_response_id"],
        user=row["user"],
        raters=tuple(row["raters"]),
        dimensions=_present(row.get("dimensions", {})),
        votes=tuple(
            Vote(rater=v["rater"], p=v["p"], dimensions=_present(v["dimensions"]))
            for v in row.get("votes", ())
        ),
        kind=SignalKind(row["kind"]),
        p=row["p"],
        weight=row["weight"],
        reason=row["reason"],
        event_ids=tuple(row["event_ids"]),
        at=row["at"],
    )


def _grade_row(grade: Grade, split: Split) -> Row:
    return {
        "grade_id": grade.grade_id,
        "split": split,
        "prompt": list(grade.prompt),
        "completion": _said(grade.reply),
        "p": grade.p,
        "label": grade.p >= 0.5,
        "weight": grade.weight,
        "kind": grade.kind.value,
        "inferred": grade.inferred,
        "reason": grade.reason,
        "dimensions": _told_apart(grade.dimensions),
        "prompt_digest": grade.prompt_digest,
        "response_id": grade.response_id,
        "adapter": grade.adapter,
        "user": grade.user,
        "event_ids": list(grade.event_ids),
        "at": grade.at.astimezone(UTC),
    }


def _grade(row: Row) -> Grade:
    return Grade(
        grade_id=row["grade_id"],
        prompt_digest=row["prompt_digest"],
        prompt=tuple(row["prompt"]),
        reply=row["completion"][0]["content"],
        response_id=row["response_id"],
        adapter=row["adapter"],
        user=row["user"],
        kind=SignalKind(row["kind"]),
        inferred=row["inferred"],
        p=row["p"],
        weight=row["weight"],
        reason=row["reason"],
        dimensions=_present(row.get("dimensions", {})),
        event_ids=tuple(row["event_ids"]),
        at=row["at"],
    )


def _demonstration_row(shown: Demonstration, split: Split) -> Row:
    return {
        "demonstration_id": shown.demonstration_id,
        "split": split,
        "prompt": list(shown.prompt),
        "completion": _said(shown.reply),
        "weight": shown.weight,
        "prompt_digest": shown.prompt_digest,
        "user": shown.user,
        "event_ids": list(shown.event_ids),
        "at": shown.at.astimezone(UTC),
    }


def _demonstration(row: Row) -> Demonstration:
    return Demonstration(
        demonstration_id=row["demonstration_id"],
        prompt_digest=row["prompt_digest"],
        prompt=tuple(row["prompt"]),
        reply=row["completion"][0]["content"],
        user=row["user"],
        weight=row["weight"],
        event_ids=tuple(row["event_ids"]),
        at=row["at"],
    )


def _prompt_row(state: PromptState) -> Row:
    return {
        "prompt_digest": state.prompt_digest,
        "split": state.split,
        "prompt": list(state.prompt),
        "count": state.count,
    }


def _prompt(row: Row) -> PromptState:
    return PromptState(
        prompt_digest=row["prompt_digest"],
        prompt=tuple(row["prompt"]),
        count=row["count"],
        split=row["split"],
    )
