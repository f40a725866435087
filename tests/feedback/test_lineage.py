"""Lineage both ways: from a row to its events, from a reply or a user to every snapshot that holds them."""

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from feedback import codec, lineage, snapshots
from feedback.conversations import prompt_digest
from feedback.errors import NothingFound, SnapshotError
from feedback.records import Pair
from feedback.snapshots import id_of
from tests.feedback.builders import thumb, turn
from tests.feedback.example import EVENTS, NOW, built


class Made:
    """Two snapshots of one state: of the first six conversations, and of all twelve."""

    def __init__(self, folder: Path):
        self.url, self.directory = f"sqlite:///{folder}/state.db", folder / "snapshots"
        self.small = built(folder, EVENTS[:48])
        self.large = built(folder, EVENTS, now=NOW + timedelta(hours=1))

    def load(self, manifest: snapshots.Manifest) -> snapshots.Snapshot:
        return snapshots.load(self.directory / manifest.name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("lineage"))


@pytest.mark.parametrize("table", ["pairs", "grades", "demonstrations"])
def test_a_row_leads_back_to_its_events(made, table):
    """From the newest snapshot that holds it, since weights differ from one to the next."""
    row = getattr(made.load(made.large), table)[0]
    found = lineage.of_row(made.url, made.directory, id_of(row))
    assert (found.snapshot, found.table, found.row) == (made.large.name, table, row)
    assert {codec.decode(raw).id for raw in found.events} == set(row.event_ids)
    times = [codec.decode(raw).time for raw in found.events]
    assert times == sorted(times)


def test_an_unknown_row_is_said(made):
    with pytest.raises(SnapshotError, match="holds a pair 'pair-nonsense'"):
        lineage.of_row(made.url, made.directory, "pair-nonsense")


def test_a_reply_leads_to_what_was_said_of_it_and_to_its_rows(made):
    """Reply a1: three signals (two thumbs by one user, the later counts), rows in both snapshots."""
    trail = lineage.of_response(made.url, made.directory, "a1")
    assert [codec.decode(raw).id for raw in trail.events] == [
        "turn-a1",
        "signal-thumb-a1-u1-30",
        "signal-thumb-a1-u1-31",
    ]
    assert [held.snapshot for held in trail.holdings] == [made.small.name, made.large.name]
    rows = [row for row in made.load(made.small).rows if "turn-a1" in row.event_ids]
    held = trail.holdings[0].rows
    assert sorted(held.get("pairs", []) + held.get("grades", [])) == sorted(map(id_of, rows))
    assert rows and "prompts" not in held


def test_a_reply_that_only_the_newer_snapshot_knows(made):
    trail = lineage.of_response(made.url, made.directory, "b7")
    assert [held.snapshot for held in trail.holdings] == [made.large.name]


def test_a_user_leads_to_every_row_that_what_they_asked_or_said_is_in(made):
    """u3 asked in conversations 3 and 10, and judged u2's replies of 2 and 9."""
    trail = lineage.of_user(made.url, made.directory, "u3")
    ids = {codec.decode(raw).id for raw in trail.events}
    assert {"turn-a3", "turn-b10", "signal-thumb-b2-u3-33", "signal-thumb-b9-u3-33"} <= ids
    assert not any("-b2-u2-" in event_id for event_id in ids)
    large = made.load(made.large)
    behind = {id_of(row) for row in large.rows if ids & set(row.event_ids)}
    assert any(row.user != "u3" for row in large.rows if id_of(row) in behind)  # others judged u3's replies
    held = trail.holdings[-1].rows
    assert {i for table in held if table != "prompts" for i in held[table]} == behind
    asked = {prompt_digest(e.data.messages) for e in EVENTS if e.id in ids and e.id.startswith("turn-")}
    assert set(held["prompts"]) == asked & {p.prompt_digest for p in large.prompts}


def test_a_user_is_named_whole(made):
    """Pseudonyms are matched as a whole, not as text somewhere in an event."""
    with pytest.raises(NothingFound, match="knows a user 'u'"):
        lineage.of_user(made.url, made.directory, "u")


def test_a_reply_that_nobody_recorded_is_said(made):
    with pytest.raises(NothingFound, match="no turn recorded a reply 'chatcmpl-x'"):
        lineage.of_response(made.url, made.directory, "chatcmpl-x")


def test_a_reply_without_consent_is_in_no_snapshot(tmp_path):
    """Its events are there to be shown, its words are nowhere else."""
    secret = turn("s1", "My name is Rumpelstiltskin?", "Hello.", conversation="x", learn=False)
    built(tmp_path, [*EVENTS, secret, thumb(secret, True)])
    trail = lineage.of_response(f"sqlite:///{tmp_path}/state.db", tmp_path / "snapshots", "s1")
    assert (len(trail.events), trail.holdings) == (2, [])


def test_snapshots_with_finds_all_raters_of_a_pair(made):
    """A pair across conversations is the word of several; each of them must find it."""
    pair = next(p for p in made.load(made.large).pairs if len(p.raters) > 1)
    assert isinstance(pair, Pair)
    for rater in pair.raters:
        holdings = lineage.snapshots_with(made.directory, users=[rater])
        assert pair.pair_id in holdings[-1].rows["pairs"]
    assert lineage.snapshots_with(made.directory) == []


def test_a_snapshot_knows_its_family(made, tmp_path):
    first = lineage.of_snapshot(made.directory, made.small.name)
    second = lineage.of_snapshot(made.directory, made.large.name)
    assert (first.ancestors, first.descendants) == ([], [made.large.name])
    assert (second.ancestors, second.descendants) == ([made.small.name], [])
    rows = made.load(made.large).rows
    assert second.events == len({e for row in rows for e in row.event_ids})
    assert second.users == len({f"u{n}" for n in range(7)})


def test_looking_changes_no_file(made):
    """Whoever asks after a user must not leave a trace of the question."""

    def digests() -> dict[Path, str]:
        files = [file for file in made.directory.rglob("*") if file.is_file()]
        return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = digests()
    lineage.of_user(made.url, made.directory, "u3")
    lineage.of_response(made.url, made.directory, "a1")
    assert digests() == before
