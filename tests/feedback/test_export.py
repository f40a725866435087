"""Exports: what each trainer reads, a card that says what is there, and nothing overwritten."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedback import export, snapshots
from feedback.config import Pipeline
from feedback.errors import ExportError, SnapshotError
from feedback.snapshots import TABLES
from tests.feedback.builders import assistant, thumb, turn
from tests.feedback.example import EVENTS, NOW, built

FORMATS = ("trl", "openrlhf", "jsonl")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> snapshots.Snapshot:
    folder = tmp_path_factory.mktemp("made")
    return snapshots.load(folder / "snapshots" / built(folder, EVENTS).name)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_trl_gets_parquet_with_the_columns_its_trainers_name(snapshot, tmp_path):
    done = export.export(snapshot.path, tmp_path / "out", "trl")
    assert {f.path for f in done.files} == {
        f"{table}/{split}.parquet"
        for table in TABLES
        for split in export.SPLITS
        if snapshot.manifest.splits[table].get(split)
    }
    row = pq.read_table(tmp_path / "out" / "pairs" / "train.parquet").to_pylist()[0]
    pair = next(p for p in snapshot.pairs if p.pair_id == row["pair_id"])
    assert row["prompt"] == list(pair.prompt)
    assert (row["chosen"], row["rejected"]) == ([assistant(pair.chosen)], [assistant(pair.rejected)])
    grades = pq.read_table(tmp_path / "out" / "grades" / "train.parquet")
    assert grades.schema.field("label").type == "bool"


def test_openrlhf_gets_lists_of_messages_line_by_line(snapshot, tmp_path):
    """Its readers join `prompt` and `chosen` as lists under the chat template."""
    done = export.export(snapshot.path, tmp_path / "out", "openrlhf")
    assert {f.table for f in done.files} == {"pairs", "demonstrations", "prompts"}
    for row in lines(tmp_path / "out" / "pairs" / "train.jsonl"):
        dialogue = row["prompt"] + row["chosen"]
        assert [set(m) for m in dialogue] == [{"role", "content"}] * len(dialogue)
        assert (dialogue[-2]["role"], dialogue[-1]["role"]) == ("user", "assistant")


def test_jsonl_has_every_column_and_row(snapshot, tmp_path):
    export.export(snapshot.path, tmp_path / "out", "jsonl")
    for table in TABLES:
        found = [row for file in (tmp_path / "out" / table).iterdir() for row in lines(file)]
        assert len(found) == snapshot.manifest.rows[table]
        assert set(found[0]) == set(export.columns_of(table, "jsonl"))


@pytest.mark.parametrize("form", ["trl", "openrlhf"])
def test_pseudonyms_and_events_stay_at_home(snapshot, tmp_path, form):
    """What a trainer does not read need not leave the house."""
    export.export(snapshot.path, tmp_path / "out", form)
    for table in TABLES:
        assert not {"user", "raters", "event_ids", "at"} & set(export.columns_of(table, form))
    text = b"".join(f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert b"signal-thumb" not in text


@pytest.mark.parametrize("form", FORMATS)
def test_a_split_can_be_had_alone(snapshot, tmp_path, form):
    """Training must not see what is held out by a slip of the glob."""
    done = export.export(snapshot.path, tmp_path / "out", form, splits=("train",))
    assert {f.split for f in done.files} == {"train"}
    assert not list((tmp_path / "out").rglob("heldout*"))
    both = export.export(snapshot.path, tmp_path / "both", form)
    assert [f for f in both.files if f.split == "train"] == done.files


def test_rows_that_say_nothing_without_soft_labels_are_left_out(snapshot, tmp_path):
    """A thumb of p 0.5 would become a hard `good`; `jsonl` keeps it, soft label and all."""
    faded = Path(shutil.copytree(snapshot.path, tmp_path / "faded"))
    manifest, rows = snapshots.rows_of(faded)
    rows["grades"][0]["p"], rows["grades"][1]["weight"] = 0.5, 0.0
    table = pa.Table.from_pylist(rows["grades"], schema=snapshots.schema_of("grades"))
    pq.write_table(table, faded / "grades.parquet")
    file = faded / "manifest.json"
    file.write_text(file.read_text().replace(manifest.hash, snapshots.hash_of(rows, manifest.schema_version)))
    assert export.export(faded, tmp_path / "trl", "trl").silent == 2
    kept = sum(f.rows for f in export.export(faded, tmp_path / "trl2", "trl").files if f.table == "grades")
    assert kept == manifest.rows["grades"] - 2
    assert export.export(faded, tmp_path / "all", "jsonl").silent == 0


@pytest.mark.parametrize("form", FORMATS)
def test_the_card_says_what_is_there(snapshot, tmp_path, form):
    done = export.export(snapshot.path, tmp_path / "out", form)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for file in done.files:
        assert f"| {file.table} | {file.split} | {file.rows} | `{file.path}` |" in card
        assert f"    path: {file.path}\n" in card.split("---")[1]
        for column in export.columns_of(file.table, form):
            assert f"| `{column}` | {export.FIELDS[column]} |" in card
    assert snapshot.manifest.hash in card and "No licence is set" in card
    assert ("**Soft labels and weights are not used by" in card) == (form != "jsonl")
    assert "license:" not in card


@pytest.mark.parametrize("form", FORMATS)
def test_a_snapshot_of_an_earlier_schema_is_exported_with_the_columns_it_has(tmp_path, form):
    """Schema 1 knew no dimensions."""
    old = Path(__file__).parent / "recorded" / "snapshot-schema-1"
    done = export.export(old, tmp_path / "out", form)
    assert sum(file.rows for file in done.files) > 0
    assert "dimensions" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_every_column_is_explained():
    """A new column of a snapshot needs a sentence."""
    columns = Counter(name for table in TABLES for name in export.columns_of(table, "jsonl"))
    assert set(columns) == set(export.FIELDS)


def test_nothing_is_ever_overwritten(snapshot, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="never overwrites"):
        export.export(snapshot.path, tmp_path / "out", "trl")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_may_be_filled(snapshot, tmp_path):
    (tmp_path / "out").mkdir()
    assert export.export(snapshot.path, tmp_path / "out", "trl").files
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755  # others may read it


def test_a_place_that_cannot_be_written_is_said(snapshot, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export.export(snapshot.path, tmp_path / "file" / "out", "trl")


def test_a_split_without_rows_is_said(tmp_path):
    """An empty folder would look like an export."""
    t = turn("q0", "Question about subject0?", "Reply.", who="u0")
    manifest = built(tmp_path, [t, thumb(t, True)], config=Pipeline(heldout_fraction=0.0), now=NOW)
    with pytest.raises(ExportError, match="no row to export in heldout"):
        export.export(tmp_path / "snapshots" / manifest.name, tmp_path / "out", "trl", splits=("heldout",))
    assert not (tmp_path / "out").exists()


def test_a_damaged_snapshot_is_not_exported(snapshot, tmp_path):
    """What is passed on must be what was hashed."""
    copy = Path(shutil.copytree(snapshot.path, tmp_path / "copy"))
    file = copy / "grades.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(SnapshotError, match="the rows hash to"):
        export.export(copy, tmp_path / "out", "trl")
