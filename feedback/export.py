"""A snapshot as files for other people's trainers, with a dataset card. Never overwrites anything.

TRL and OpenRLHF read the same columns; they know neither soft labels nor weights, which the card says.
Pseudonyms, event ids and times stay at home but in `jsonl`, which has everything.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from feedback import snapshots
from feedback.errors import ExportError
from feedback.records import Split
from feedback.snapshots import SCHEMA_VERSION, TABLES, Manifest, Row, schema_of

Format = Literal["trl", "openrlhf", "jsonl"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

_LEAN = {
    "pairs": ("pair_id", "prompt", "chosen", "rejected", "p", "weight", "kind", "reason"),
    "grades": ("grade_id", "prompt", "completion", "label", "p", "weight", "kind", "reason"),
    "demonstrations": ("demonstration_id", "prompt", "completion", "weight"),
    "prompts": ("prompt_digest", "prompt", "count"),
}
"""What leaves the house for trainers that take hard labels."""
_TABLES: dict[Format, tuple[str, ...]] = {
    "trl": TABLES,
    "openrlhf": ("pairs", "demonstrations", "prompts"),
    "jsonl": TABLES,
}
FIELDS = {
    "pair_id": "names the pair: `ratchet data lineage` leads back to its events",
    "grade_id": "names the graded reply likewise",
    "demonstration_id": "names the demonstration likewise",
    "prompt_digest": "names the prompt state; replies under one digest answer the same dialogue",
    "split": "`heldout` rows share no near-duplicate of a prompt with `train`, for ever",
    "prompt": "the dialogue up to the reply: a list of `{role, content}`",
    "chosen": "the likelier better reply: a list of one assistant message",
    "rejected": "the likelier worse one",
    "completion": "the reply, or for demonstrations the reply as a user would have it",
    "label": "true when the reply is more likely good than bad (p ≥ 0.5)",
    "p": "soft label: probability that `chosen` is the better, or that `completion` is a good reply",
    "weight": "how much the row should count, after trust, caps and centring",
    "kind": "the signal behind it (thumb, edit, regeneration, …)",
    "dimensions": "helpful, honest, harmless, 0..1: what a rating said of the reply, or the probability that "
    "reviews give `chosen`; null where nothing was said",
    "votes": "reviews: what each rater said, overall and by dimension: 1 `chosen`, 0 `rejected`, 0.5 neither",
    "inferred": "true when the traffic showed it, false when a client said it",
    "reason": "why the row says what it says",
    "count": "how often the prompt was answered",
    "response_id": "the graded reply",
    "chosen_response_id": "the chosen reply; empty when it is a user's edit that was never served",
    "rejected_response_id": "the rejected reply",
    "adapter": "the adapter that wrote the reply",
    "user": "pseudonym of whoever gave the signal",
    "raters": "pseudonyms of all whose signals made the pair; empty: `user` alone",
    "event_ids": "every event behind the row",
    "at": "time of the newest of them",
}
_USE = {
    "trl": """\
```python
from datasets import load_dataset

pairs = load_dataset("{folder}", "pairs", split="train")  # RewardTrainer, DPOTrainer
grades = load_dataset("{folder}", "grades", split="train")  # KTOTrainer
demonstrations = load_dataset("{folder}", "demonstrations", split="train")  # SFTTrainer
prompts = load_dataset("{folder}", "prompts", split="train")  # GRPOTrainer, RLOOTrainer
```
""",
    "openrlhf": """\
| for | options |
|---|---|
| reward model, DPO | `--dataset {folder}/pairs/train.jsonl` |
| | `--prompt_key prompt --chosen_key chosen --rejected_key rejected` |
| SFT | `--dataset {folder}/demonstrations/train.jsonl --input_key prompt --output_key completion` |
| RL | `--prompt_data {folder}/prompts/train.jsonl --input_key prompt` |

Each with `--apply_chat_template`. Grades of single replies are left out: its reader of unpaired data knows no
separate prompt.
""",
    "jsonl": "One JSON object a line, all columns, as in the snapshot; times are ISO 8601 in UTC.\n",
}
_HARD_LABELS = """\
**Soft labels and weights are not used by {trainer}.** It takes every row as if p were 1 (or 0) and all
weights were the same. Rows that say nothing (p of 0.5, weight 0) were left out: {silent}. Think about leaving
out what is unsure as well (for example p < 0.7), or drawing rows in proportion to `weight`. There is no
`margin` column, which reward trainers know: it asks for a distance between rewards, no soft label.
"""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One exported file."""

    path: str
    """Below the export's folder."""
    table: str
    split: Split
    rows: int


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: str
    folder: Path
    format: Format
    files: list[File]
    silent: int
    """Rows left out because they say nothing to a trainer without soft labels."""


def export(snapshot: Path, folder: Path, form: Format, *, splits: Sequence[Split] = SPLITS) -> Exported:
    """Write the snapshot's splits and a card to `folder`, whole or not at all.

    Raises: ExportError when `folder` is there and not empty, cannot be written, or would hold no row;
    SnapshotError.
    """
    manifest, tables = snapshots.rows_of(snapshot)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is there already: an export never overwrites, name another folder")
    kept = {table: [r for r in tables[table] if form == "jsonl" or _speaks(r)] for table in TABLES}
    chosen = [
        (table, split, [row for row in kept[table] if row["split"] == split])
        for table in _TABLES[form]
        for split in splits
    ]
    if not any(rows for _, _, rows in chosen):
        raise ExportError(f"{manifest.name} has no row to export in {' or '.join(splits)}")
    exported = Exported(
        snapshot=manifest.name,
        folder=folder,
        format=form,
        files=[_file(table, split, len(rows), form) for table, split, rows in chosen if rows],
        silent=sum(len(tables[table]) - len(kept[table]) for table in TABLES),
    )
    _write_whole(folder, lambda draft: _write(draft, exported, manifest, [c for c in chosen if c[2]]))
    return exported


def columns_of(table: str, form: Format, schema_version: int = SCHEMA_VERSION) -> tuple[str, ...]:
    """The columns of an exported table, of a snapshot of that schema."""
    return tuple(schema_of(table, schema_version).names) if form == "jsonl" else _LEAN[table]


def card(manifest: Manifest, exported: Exported) -> str:
    """The dataset card: what is there, what each field means, where it comes from."""
    form, folder = exported.format, exported.folder.name
    tables = list(dict.fromkeys(file.table for file in exported.files))
    parts = [
        _front_matter(exported, tables),
        f"# {manifest.name}\n\nPreference data gathered by ratchet from what the users of a deployed chat"
        " assistant did and said.\n",
        "## What is there\n\n| table | split | rows | file |\n|---|---|---|---|\n"
        + "".join(f"| {f.table} | {f.split} | {f.rows} | `{f.path}` |\n" for f in exported.files),
        f"## Use\n\n{_USE[form].format(folder=folder)}",
    ]
    if form != "jsonl":
        trainer = {"trl": "TRL", "openrlhf": "OpenRLHF"}[form]
        parts.append(_HARD_LABELS.format(trainer=trainer, silent=exported.silent))
    parts += [_fields(tables, form, manifest.schema_version), _provenance(manifest), _LICENCE]
    return "\n".join(parts)


_LICENCE = """\
## Licence and privacy

No licence is set: the texts are your users' and your assistant's, so whether and how they may be passed on is
for you to decide. They were pseudonymised, which is not anonymised: people put names and secrets into what
they write.
"""


def _front_matter(exported: Exported, tables: Iterable[str]) -> str:
    lines = ["---", f"pretty_name: {exported.snapshot}", "tags:", "- preference", "configs:"]
    for table in tables:
        lines += [f"- config_name: {table}", "  data_files:"]
        for file in exported.files:
            if file.table == table:
                lines += [f"  - split: {file.split}", f"    path: {file.path}"]
    return "\n".join([*lines, "---", ""])


def _fields(tables: Iterable[str], form: Format, schema_version: int) -> str:
    names = dict.fromkeys(name for table in tables for name in columns_of(table, form, schema_version))
    return "## Fields\n\n| field | meaning |\n|---|---|\n" + "".join(
        f"| `{name}` | {FIELDS[name]} |\n" for name in names
    )


def _provenance(manifest: Manifest) -> str:
    offsets = ", ".join(f"{place}: {n}" for place, n in manifest.offsets.items())
    facts = {
        "snapshot": f"`{manifest.name}`",
        "SHA-256 of its rows": f"`{manifest.hash}`",
        "built": manifest.created_at.isoformat(timespec="seconds"),
        "by": f"ratchet {manifest.code_version}, schema {manifest.schema_version}",
        "exported by": f"ratchet {version('ratchet')}",
        "parent snapshot": f"`{manifest.parent}`" if manifest.parent else "none",
        "log read up to": offsets,
        "held out": f"{manifest.heldout_fraction:.0%} of users and of prompt clusters",
        "caps": f"{manifest.account_cap:.1%} of the weight an account, {manifest.subject_cap:.1%} a subject",
        "fit of the soft labels": f"`{manifest.fit_hash or 'none'}`",
        "set aside": f"{manifest.set_aside} rows of held-out users on training prompts",
        "in quarantine": f"{len(manifest.quarantined)} accounts",
    }
    return "## Provenance\n\n| | |\n|---|---|\n" + "".join(
        f"| {name} | {value} |\n" for name, value in facts.items()
    )


def _speaks(row: Row) -> bool:
    """Whether a trainer with hard labels can learn anything from it."""
    return bool(row.get("weight", 1.0) > 0.0 and row.get("p") != 0.5)


def _file(table: str, split: Split, rows: int, form: Format) -> File:
    suffix = "parquet" if form == "trl" else "jsonl"
    return File(path=f"{table}/{split}.{suffix}", table=table, split=split, rows=rows)


def _write(
    draft: Path, exported: Exported, manifest: Manifest, chosen: Iterable[tuple[str, Split, list[Row]]]
) -> None:
    for file, (table, _, rows) in zip(exported.files, chosen, strict=True):
        names = columns_of(table, exported.format, manifest.schema_version)
        path = draft / file.path
        path.parent.mkdir(exist_ok=True)
        if exported.format == "trl":
            schema = pa.schema([schema_of(table).field(name) for name in names])
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        else:
            lean = [{name: row[name] for name in names} for row in rows]
            path.write_bytes(msgspec.json.Encoder().encode_lines(lean))
    (draft / "README.md").write_text(card(manifest, exported), encoding="utf-8")


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Written beside its place and then renamed, so that half an export is never taken for one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write(draft)
            draft.chmod(0o755)
            draft.rename(folder)  # fails where something has come in the meantime
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as e:
        raise ExportError(f"cannot write {folder}: {e.strerror}") from e
