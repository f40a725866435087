"""Snapshots: replay is identity, files are checked, nothing leaks between the splits."""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback import accuracy, report, snapshots
from feedback.comparisons import TOO_FAST, Wins
from feedback.config import Pipeline
from feedback.errors import SnapshotError
from feedback.events import Event, SignalKind
from feedback.pairs import cluster_of
from feedback.raters import raters_of
from tests.feedback.builders import offered, preferred, signal, thumb, turn
from tests.feedback.example import CONFIG, EVENTS, NOW, built, contradicted, fold, talk

QUESTION = "How do I reset my password?"
GOOD = "Open the settings, choose security and press reset."
BAD = "Click around until something happens."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, snapshots.Manifest]:
    folder = tmp_path_factory.mktemp("made")
    return folder, built(folder, EVENTS)


@pytest.fixture
def copied(made, tmp_path: Path) -> Path:
    """A snapshot of one's own to damage."""
    folder, manifest = made
    return Path(shutil.copytree(folder / "snapshots" / manifest.name, tmp_path / manifest.name))


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_replay_is_identity(data, made, tmp_path_factory):
    """Invariant 2: any order, duplicates, any batching, replayed from zero, give the same snapshot."""
    again = data.draw(st.lists(st.sampled_from(EVENTS), max_size=40))
    events = data.draw(st.permutations(EVENTS + again))
    together = data.draw(st.integers(1, 60))
    assert built(tmp_path_factory.mktemp("replay"), events, together=together).hash == made[1].hash


@pytest.mark.parametrize("missing", [0, 5, 7])
def test_another_set_of_events_is_another_snapshot(missing, made, tmp_path):
    """A hash that never changed would pass the law above."""
    assert built(tmp_path, EVENTS[:missing] + EVENTS[missing + 1 :]).hash != made[1].hash


def test_building_twice_gives_the_first_snapshot_again(tmp_path):
    first = built(tmp_path, EVENTS)
    later = snapshots.build(
        f"sqlite:///{tmp_path}/state.db", tmp_path / "snapshots", CONFIG, NOW + timedelta(hours=1)
    )
    assert later == first
    assert [p.name for p in (tmp_path / "snapshots").iterdir()] == [first.name]


def test_a_later_snapshot_names_its_parent(tmp_path):
    first = built(tmp_path, EVENTS[:40])
    fold(f"sqlite:///{tmp_path}/state.db", EVENTS)
    second = snapshots.build(
        f"sqlite:///{tmp_path}/state.db", tmp_path / "snapshots", CONFIG, NOW + timedelta(1)
    )
    assert (first.parent, second.parent) == (None, first.name)
    assert [m.name for m in snapshots.listed(tmp_path / "snapshots")] == [first.name, second.name]


def test_the_manifest_says_what_is_there(made):
    folder, manifest = made
    snapshot = snapshots.load(folder / "snapshots" / manifest.name)
    assert manifest.name == f"snapshot-{manifest.hash[:12]}"
    assert manifest.rows["pairs"] == len(snapshot.pairs) == sum(manifest.kinds["pairs"].values())
    assert set(manifest.kinds["pairs"]) == {"regeneration", "edit", "thumb"}
    assert manifest.splits["grades"]["heldout"] == sum(
        snapshot.split_of(g) == "heldout" for g in snapshot.grades
    )
    assert manifest.offsets == {"signals/0": 60, "turns/0": 36}
    assert manifest.set_aside > 0


def test_the_splits_share_no_prompt_cluster_and_training_no_held_out_user(made):
    """What is tested on must not have been trained on."""
    snapshot = snapshots.load(made[0] / "snapshots" / made[1].name)
    rows = [*snapshot.pairs, *snapshot.grades, *snapshot.demonstrations]
    clusters = {
        split: {cluster_of(r.prompt) for r in rows if snapshot.split_of(r) == split}
        for split in ("train", "heldout")
    }
    assert clusters["train"] and clusters["heldout"]
    assert not clusters["train"] & clusters["heldout"]
    training = {rater for r in rows if snapshot.split_of(r) == "train" for rater in raters_of(r)}
    everybody = {f"u{n}" for n in range(7)}
    assert training < everybody


def test_the_split_of_a_prompt_never_changes_as_data_grows(made, tmp_path):
    small = built(tmp_path, EVENTS[:48])
    before = snapshots.load(tmp_path / "snapshots" / small.name).prompts
    after = {p.prompt_digest: p.split for p in snapshots.load(made[0] / "snapshots" / made[1].name).prompts}
    assert {p.prompt_digest: p.split for p in before}.items() <= after.items()


def test_what_is_loaded_is_what_was_written(made):
    """Lists, floats and times survive Parquet; the hash is taken over what was read."""
    folder, manifest = made
    snapshot = snapshots.load(folder / "snapshots" / manifest.name)
    pair = next(p for p in snapshot.pairs if p.kind is SignalKind.REGENERATION)
    assert pair.prompt[0]["role"] == "user"
    assert pair.at.tzinfo is not None
    assert pair.event_ids == tuple(sorted(pair.event_ids))


def test_chosen_rows_are_those_of_the_whole(copied: Path) -> None:
    """Who reads a part gets the rows as they are, in order; the choice sees every row's place and time."""
    whole = snapshots.load(copied)
    seen: dict[str, list[snapshots.Entry]] = {}

    def choose(index: Mapping[str, Sequence[snapshots.Entry]]) -> dict[str, set[str]]:
        seen.update({table: list(entries) for table, entries in index.items()})
        return {table: {entries[0].row_id} if entries else set() for table, entries in seen.items()}

    part = snapshots.load(copied, choose)
    assert (part.pairs, part.grades, part.prompts) == (whole.pairs[:1], whole.grades[:1], whole.prompts[:1])
    assert [(e.row_id, e.at) for e in seen["grades"]] == [(g.grade_id, g.at) for g in whole.grades]
    assert [e.split for e in seen["prompts"]] == [p.split for p in whole.prompts]


def test_a_part_of_a_damaged_snapshot_is_refused_and_of_an_earlier_releases_is_read(copied: Path) -> None:
    """Digests of the files stand in for the hash of all rows; a manifest without them asks for that hash."""

    def choose(index: Mapping[str, Sequence[snapshots.Entry]]) -> dict[str, set[str]]:
        return {table: {entries[0].row_id} if entries else set() for table, entries in index.items()}

    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "files"}))
    assert snapshots.load(copied, choose).grades == snapshots.load(copied).grades[:1]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "grades.parquet").write_bytes((copied / "pairs.parquet").read_bytes())
    with pytest.raises(SnapshotError, match=r"grades\.parquet hashes to"):
        snapshots.load(copied, choose)


def test_the_columns_are_trls_conversational_format(made):
    """So that any trainer for preference data reads the file as it is."""
    row = pq.read_table(made[0] / "snapshots" / made[1].name / "pairs.parquet").to_pylist()[0]
    assert [set(m) for m in row["prompt"]] == [{"role", "content"}] * len(row["prompt"])
    assert [m["role"] for m in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]


def test_a_turn_without_consent_leaves_no_trace(tmp_path):
    """`store: false` means never learned from, not even as a prompt."""
    secret = turn(
        "s1", "My name is Rumpelstiltskin, hello?", "Hello Rumpelstiltskin.", conversation="x", learn=False
    )
    manifest = built(tmp_path, [*EVENTS, secret, thumb(secret, True)])
    assert manifest.hash == built(tmp_path / "without", EVENTS).hash


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(SnapshotError, match="nothing to learn from yet"):
        built(tmp_path, EVENTS[:1])


def test_one_account_cannot_fill_a_snapshot(tmp_path):
    """A flood of one user's thumbs against 60 users of one thumb each: 5 % of the weight is left to it."""
    flood = []
    for n in range(100):
        t = turn(f"f{n}", f"Question about matter1{n}?", f"Reply {n}.", conversation=f"f{n}", who="flood")
        flood += [t, thumb(t, True)]
    for n in range(60):
        t = turn(f"g{n}", f"Question about matter{n}?", f"Reply {n}.", conversation=f"g{n}", who=f"v{n}")
        flood += [t, thumb(t, True)]
    manifest = built(tmp_path, flood, config=Pipeline(heldout_fraction=0.0, subject_cap=1.0))
    grades = snapshots.load(tmp_path / "snapshots" / manifest.name).grades
    share = sum(g.weight for g in grades if g.user == "flood") / sum(g.weight for g in grades)
    assert share == pytest.approx(0.05, abs=1e-4)


def test_thumbs_are_measured_against_their_users_habit(tmp_path):
    """Ten ups of a fan say less than the one up of somebody who mostly presses down."""
    events = []
    for n, (who, up) in enumerate([("fan", True)] * 10 + [("critic", False)] * 9 + [("critic", True)]):
        t = turn(f"h{n}", f"Question about subject{n}?", f"Reply {n}.", conversation=f"h{n}", who=who)
        events += [t, thumb(t, up)]
    manifest = built(tmp_path, events, config=Pipeline(heldout_fraction=0.0))
    grades = snapshots.load(tmp_path / "snapshots" / manifest.name).grades
    fans, critics = ({g.p for g in grades if g.user == who and g.p >= 0.5} for who in ("fan", "critic"))
    assert max(fans) < 0.9 < min(critics)


def test_a_quarantine_is_told_and_the_rows_come_back_when_it_is_lifted(tmp_path, capsys):
    """Never silent, never for good: the state still has every row."""
    manifest = built(tmp_path, contradicted(), config=Pipeline(heldout_fraction=0.0))
    (held,) = manifest.quarantined
    assert (held.account, held.rows) == ("mallory", 12)
    assert manifest.rows["grades"] == 30
    report.manifest(manifest, as_json=False)
    assert "mallory" in (shown := capsys.readouterr().out) and "opposes" in shown
    lifted = snapshots.build(
        f"sqlite:///{tmp_path}/state.db",
        tmp_path / "snapshots",
        Pipeline(heldout_fraction=0.0, trusted=["mallory"]),
        NOW,
    )
    assert (lifted.quarantined, lifted.rows["grades"]) == ((), 42)


def test_doubt_is_told_by_subject_and_in_the_rows_own_reason(tmp_path, capsys):
    """Three contrary thumbs are too few for a quarantine; they weigh less, and nobody has to guess why."""
    manifest = built(tmp_path, contradicted()[:66], config=Pipeline(heldout_fraction=0.0))
    assert manifest.quarantined == () and {d.accounts for d in manifest.doubted} == {1}
    grades = snapshots.load(tmp_path / "snapshots" / manifest.name).grades
    told = [g.reason for g in grades if g.user == "mallory"]
    assert len(told) == 3 and all("speaks against the others about" in reason for reason in told)
    report.manifest(manifest, as_json=False)
    shown = capsys.readouterr().out
    assert "In doubt" in shown and manifest.doubted[0].subject in shown


def test_soft_labels_follow_gold_and_the_fit_is_in_the_manifest(tmp_path):
    """Thirty comparisons say that the replies people press down are the better ones."""
    events = contradicted()[:60]
    for n in range(0, 60, 2):
        asked = events[n]
        good = "Open settings" in asked.data.reply["content"]
        other = "Read the manual yourself." if good else "Open settings and press save."
        question = asked.data.messages[0]["content"]
        same, shown = offered(
            f"j{n}", question, asked.data.reply["content"], other, conversation=f"j{n}", who=f"j{n}"
        )
        events += [same, shown, preferred(same, shown, value=0.0 if good else 1.0)]
    manifest = built(tmp_path, events, config=Pipeline(heldout_fraction=0.0))
    thumbs = next(a for a in manifest.fit if (a.kind, a.tier) == (SignalKind.THUMB, "new"))
    assert (thumbs.mean, thumbs.agreed + thumbs.disagreed) == (0.518167, 30.0)
    assert manifest.fit_hash == accuracy.hash_of(manifest.fit)
    found = snapshots.load(tmp_path / "snapshots" / manifest.name).grades
    assert all(g.p == pytest.approx(0.5, abs=0.02) for g in found if g.kind is SignalKind.THUMB)


# --- a machine's judgements


def judged(n: int, *, at: float | None = None) -> Event:
    """The judge on the two replies of `talk(n)`, in favour of the second; all within a second by default."""
    first = talk(n)[0]
    return signal(
        first,
        SignalKind.JUDGEMENT,
        at=1000 + n / 20 if at is None else at,
        who="judge-1",
        value=0.0,
        other_response_id=f"b{n}",
    )


JUDGED = [judged(n) for n in range(12)]
"""Weight 0.3 each."""


def weights(snapshot: snapshots.Snapshot, *, judgements: bool) -> float:
    rows = [r for r in (*snapshot.pairs, *snapshot.grades) if snapshot.split_of(r) == "train"]
    return sum(r.weight for r in rows if (r.kind is SignalKind.JUDGEMENT) == judgements)


@pytest.mark.parametrize("cap", [0.3, 0.05])
def test_judgements_have_their_share_of_the_training_weight_and_the_manifest_says_so(tmp_path, capsys, cap):
    """Held-out rows are not trained on: they leave no room."""
    manifest = built(tmp_path, [*EVENTS, *JUDGED], config=Pipeline(heldout_fraction=0.3, judgement_cap=cap))
    snapshot = snapshots.load(tmp_path / "snapshots" / manifest.name)
    machine, people = weights(snapshot, judgements=True), weights(snapshot, judgements=False)
    number = manifest.kinds["pairs"]["judgement"]
    uncapped = 0.3 * number / (0.3 * number + people)
    assert 0.05 < uncapped < 0.3
    assert machine / (machine + people) == pytest.approx(min(cap, uncapped), abs=1e-5)
    assert manifest.judgement_cap == cap
    assert manifest.judgement_share == pytest.approx(min(cap, uncapped), abs=1e-5)
    report.manifest(manifest, as_json=False)
    assert f"{cap:.1%} of the training weight" in capsys.readouterr().out


def test_a_judge_is_no_account(tmp_path):
    """Its hundred answers a minute are no burst, its weight is nobody's share, its taste no vote: the rows
    of people are what they are without it."""
    config = Pipeline(heldout_fraction=0.0)
    manifest = built(tmp_path, [*EVENTS, *JUDGED], config=config)
    without = built(tmp_path / "without", EVENTS, config=config)
    found = snapshots.load(tmp_path / "snapshots" / manifest.name)
    plain = snapshots.load(tmp_path / "without" / "snapshots" / without.name)
    assert [p for p in found.pairs if p.kind is not SignalKind.JUDGEMENT] == plain.pairs
    assert (found.grades, manifest.quarantined) == (plain.grades, without.quarantined)


def test_judgements_are_never_held_out(tmp_path):
    """Gates decide by held-out rows: those are people's."""
    manifest = built(tmp_path, [*EVENTS, *JUDGED])
    snapshot = snapshots.load(tmp_path / "snapshots" / manifest.name)
    judged_rows = [p for p in snapshot.pairs if p.kind is SignalKind.JUDGEMENT]
    assert 0 < len(judged_rows) < 12
    assert {snapshot.split_of(p) for p in judged_rows} == {"train"}
    assert manifest.set_aside == built(tmp_path / "without", EVENTS).set_aside + 12 - len(judged_rows)


def test_judgements_replay_to_the_same_snapshot(tmp_path):
    config = Pipeline(heldout_fraction=0.0, judgement_cap=0.05)
    forth = built(tmp_path / "forth", [*EVENTS, *JUDGED], config=config)
    back = built(tmp_path / "back", [*JUDGED[::-1], *EVENTS[::-1], *JUDGED], together=3, config=config)
    assert back.hash == forth.hash


def test_a_judge_alone_starts_no_turn(tmp_path):
    """The learner waits for people's weight."""
    manifest = built(tmp_path, EVENTS)
    fold(f"sqlite:///{tmp_path}/state.db", JUDGED)
    assert snapshots.pending_weight(f"sqlite:///{tmp_path}/state.db", manifest.name) == 0.0


def side_by_side() -> list[Event]:
    """Four answers: the left reply is preferred twice, once nothing, and one comes after 0.4 s."""
    events = []
    for n, (value, at) in enumerate([(1.0, 60), (0.9, 60), (0.5, 60), (0.0, 2.4)]):
        one, other = offered(f"s{n}", QUESTION, GOOD, BAD, conversation=f"s{n}", who=f"s{n}")
        events += [one, other, preferred(one, other, value=value, at=at)]
    return events


def test_what_was_compared_and_what_may_have_decided_it_is_in_the_manifest(tmp_path, capsys):
    manifest = built(tmp_path, side_by_side(), config=Pipeline(heldout_fraction=0.0))
    found = manifest.comparisons
    assert (found.counted, found.ties, found.dropped) == (3, 1, {TOO_FAST: 1})
    assert found.wins["left"] == Wins(2, 2)
    assert manifest.rows["pairs"] == 3
    report.manifest(manifest, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.342 to 1.000" in shown  # Wilson: 1 / (1 + 1.96² / 2) = 0.3424
    assert "3 counted, 1 of them ties; 1 too fast to have been read, dropped" in shown


def test_feedback_on_a_canary_counts_as_if_the_split_were_even(tmp_path):
    """Nine downs on stable (0.9) and one on the canary (0.1), all of weight 0.7: 7 in all, 3.5 each arm."""
    events = []
    for n in range(10):
        adapter, p = ("canary-11111111", 0.1) if n == 9 else ("stable-00000000", 0.9)
        split = {"adapter": adapter, "propensity": p}
        one = turn(f"p{n}", QUESTION, f"{BAD} {'x' * n}", conversation=f"p{n}", who=f"p{n}", **split)
        events += [one, thumb(one, False, at=30 + n * n)]
    config = Pipeline(heldout_fraction=0.0, account_cap=1.0, subject_cap=1.0)
    manifest = built(tmp_path, events, config=config)
    grades = snapshots.load(tmp_path / "snapshots" / manifest.name).grades
    by_arm = {a: sum(g.weight for g in grades if g.adapter.startswith(a)) for a in ("stable", "canary")}
    assert by_arm == pytest.approx({"stable": 3.5, "canary": 3.5}, abs=1e-5)
    assert manifest.propensity_clip == 10.0
    alike = snapshots.build(
        f"sqlite:///{tmp_path}/state.db",
        tmp_path / "snapshots",
        msgspec.structs.replace(config, propensity_clip=1.0),
        NOW,
    )
    grades = snapshots.load(tmp_path / "snapshots" / alike.name).grades
    assert {g.weight for g in grades} == {0.7}


# --- damaged snapshots


def rewrite(file: Path, change) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def null_prompt(table: pa.Table) -> pa.Table:
    prompts = table["prompt"].to_pylist()
    prompts[0] = None
    index = table.schema.get_field_index("prompt")
    return table.set_column(index, "prompt", pa.array(prompts, type=table.schema.field("prompt").type))


def heavier(table: pa.Table) -> pa.Table:
    weights = [w + 0.1 for w in table["weight"].to_pylist()]
    return table.set_column(table.schema.get_field_index("weight"), "weight", pa.array(weights))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (null_prompt, r"pairs\.parquet row 0 \(pair-\w+\): prompt is null"),
        (lambda t: t.drop_columns(["rejected"]), r"pairs\.parquet has no column 'rejected'"),
        (lambda t: t.slice(1), r"the rows hash to \w{12}, the manifest says"),
        (heavier, r"the rows hash to"),
        (lambda t: t.set_column(5, "p", t["p"].cast(pa.string())), r"column 'p' is string, expected double"),
    ],
    ids=["null prompt", "no column", "row lost", "weights touched", "wrong type"],
)
def test_a_damaged_pair_file_is_refused_by_name(copied, change, complaint):
    rewrite(copied / "pairs.parquet", change)
    with pytest.raises(SnapshotError, match=complaint):
        snapshots.load(copied)


def test_a_missing_file_is_named(copied):
    (copied / "grades.parquet").unlink()
    with pytest.raises(SnapshotError, match=r"grades\.parquet is missing"):
        snapshots.load(copied)


def test_a_file_that_is_no_parquet_is_named(copied):
    (copied / "prompts.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(SnapshotError, match=r"prompts\.parquet is no Parquet file"):
        snapshots.load(copied)


def test_a_folder_without_manifest_is_no_snapshot(tmp_path):
    with pytest.raises(SnapshotError, match=r"is no snapshot: manifest\.json"):
        snapshots.load(tmp_path)


def test_a_manifest_of_another_schema_is_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(SnapshotError, match="schema version 99, this release reads 1 to 3"):
        snapshots.load(copied)


def test_a_snapshot_of_an_earlier_schema_is_still_read():
    """What an adapter learned from must stay readable. Written by the last release with schema 1."""
    snapshot = snapshots.load(Path(__file__).parent / "recorded" / "snapshot-schema-1")
    assert (snapshot.manifest.schema_version, snapshot.manifest.name) == (1, "snapshot-348b53c1cf2d")
    assert sorted(g.kind for g in snapshot.grades) == ["rating", "thumb", "thumb"]
    assert [g.dimensions for g in snapshot.grades] == [{}, {}, {}]


def test_the_dimensions_of_a_rating_survive_parquet(tmp_path):
    """A struct with a field for each, null where nothing was said: `datasets` reads it as it is."""
    asked = turn("r1", "What is a warranty?", "A promise of the maker.")
    told_apart = signal(asked, SignalKind.RATING, value=0.625, dimensions={"helpful": 0.25, "honest": 1.0})
    manifest = built(tmp_path, [asked, told_apart, thumb(asked, True)])
    folder = tmp_path / "snapshots" / manifest.name
    written = {r["kind"]: r["dimensions"] for r in pq.read_table(folder / "grades.parquet").to_pylist()}
    assert written == {
        "rating": {"helpful": 0.25, "honest": 1.0, "harmless": None},
        "thumb": {"helpful": None, "honest": None, "harmless": None},
    }
    read = {g.kind: g.dimensions for g in snapshots.load(folder).grades}
    assert read == {SignalKind.RATING: {"helpful": 0.25, "honest": 1.0}, SignalKind.THUMB: {}}


def test_a_folder_in_the_way_is_not_overwritten(tmp_path):
    """Snapshots are immutable: what claims the name with another hash stays and is reported."""
    manifest = built(tmp_path, EVENTS)
    file = tmp_path / "snapshots" / manifest.name / "manifest.json"
    file.write_text(file.read_text().replace(manifest.hash, "0" * 64))
    with pytest.raises(SnapshotError, match="move it away"):
        snapshots.build(f"sqlite:///{tmp_path}/state.db", tmp_path / "snapshots", CONFIG, NOW)


# --- what has arrived since


def test_pending_weight_counts_what_came_after_a_snapshot(tmp_path):
    url = f"sqlite:///{tmp_path}/state.db"
    manifest = built(tmp_path, EVENTS)
    assert snapshots.pending_weight(url, manifest.name) == 0.0
    new = turn("n1", "Where is my parcel?", "On its way.", conversation="n")
    fold(url, [new, thumb(new, False)])
    assert snapshots.pending_weight(url, manifest.name) == pytest.approx(0.7)
    assert snapshots.pending_weight(url, None) == pytest.approx(manifest.arrived_weight + 0.7)


def test_pending_weight_of_a_foreign_snapshot_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match="'snapshot-other' was not built from"):
        snapshots.pending_weight(f"sqlite:///{tmp_path}/state.db", "snapshot-other")
