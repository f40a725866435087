"""`ratchet data`: what its verbs print and write, from the command line down."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feedback import codec, pipeline, privacy, snapshots, store
from feedback.__main__ import main
from feedback.config import Pipeline
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from tests.feedback.builders import NOON, append, thumb, turn
from tests.feedback.example import EVENTS, NOW, built, fold

SECRET = b"s" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a snapshot of six conversations and one of all twelve."""
    folder = tmp_path_factory.mktemp("made")
    built(folder, EVENTS[:48])
    built(folder, EVENTS, now=NOW.replace(hour=10))
    file = folder / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A copy of it of one's own."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def ratchet(tmp_path: Path, capsys, monkeypatch) -> Callable[..., str]:
    """Run a verb that must succeed, and return what it printed."""
    monkeypatch.setenv("COLUMNS", "240")
    config = tmp_path / "ratchet.toml"
    config.write_text(f'[deployment]\ndata_dir = "{tmp_path}"\n[pipeline]\nheldout_fraction = 0.3\n')

    def run(*argv: str, status: int = 0) -> str:
        assert main(["data", *argv], config) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def names(site: Path) -> list[str]:
    return [m.name for m in snapshots.listed(site / "snapshots")]


def test_diff_explains_in_tables_and_in_json(site, ratchet):
    old, new = names(site)
    told = json.loads(ratchet("diff", old, new, "--json"))
    assert (told["old"], told["new"]) == (old, new)
    assert told["changed"] > len(told["rows"]) == 20
    assert {"added", "rewritten"} <= {total["change"] for total in told["totals"]}
    whole = json.loads(ratchet("diff", old, new, "--json", "--rows"))
    assert len(whole["rows"]) == whole["changed"] == told["changed"]
    assert whole["rows"][:20] == told["rows"]
    shown = ratchet("diff", old, new)
    assert told["rows"][0]["id"] in shown and told["rows"][0]["detail"] in shown
    assert f"{told['changed'] - 20} smaller ones: --rows" in shown
    assert whole["rows"][-1]["id"] in ratchet("diff", old, new, "--rows")


def test_diff_of_the_same_rows_says_so(site, ratchet):
    old, _ = names(site)
    assert "have the same rows" in ratchet("diff", old, old)


def test_diff_asks_the_state_what_was_erased(site, ratchet):
    """An erasure leaves no event, so only its absence tells."""
    old, new = names(site)
    with store.opened(f"sqlite:///{site}/state.db") as state, state.begin() as tx:
        tx.exec_driver_sql("DELETE FROM feedback_events WHERE event_id LIKE 'signal-thumb-a7-%'")
    rows = json.loads(ratchet("diff", new, old, "--json", "--rows"))["rows"]
    erased = [row for row in rows if row["why"] == "events erased"]
    assert erased and all("signal-thumb-a7-" in row["detail"] for row in erased)


def test_diff_calls_nothing_erased_that_another_state_never_had(site, ratchet):
    """Snapshots can be looked at far from the state they were built from."""
    old, new = names(site)
    for file in site.glob("state.db*"):
        file.unlink()
    rows = json.loads(ratchet("diff", new, old, "--json", "--rows"))["rows"]
    assert rows and "events erased" not in {row["why"] for row in rows}


def test_export_writes_and_says_what(site, ratchet, tmp_path):
    name = names(site)[1]
    done = json.loads(ratchet("export", name, str(tmp_path / "out"), "--split", "train", "--json"))
    assert (done["snapshot"], done["format"]) == (name, "trl")
    assert all((tmp_path / "out" / file["path"]).is_file() for file in done["files"])
    assert "pairs/train.jsonl" in ratchet("export", name, str(tmp_path / "two"), "--format", "openrlhf")
    assert "never overwrites" in ratchet("export", name, str(tmp_path / "two"), status=2)


def test_lineage_takes_a_row_a_reply_a_snapshot_and_a_pseudonym(site, ratchet):
    old, new = names(site)
    demonstration = snapshots.load(site / "snapshots" / new).demonstrations[0].demonstration_id
    assert json.loads(ratchet("lineage", demonstration, "--json"))["row"]["demonstration_id"] == demonstration
    assert "an edit (weight" in ratchet("lineage", demonstration)
    trail = json.loads(ratchet("lineage", "a1", "--json"))
    assert [held["snapshot"] for held in trail["holdings"]] == [old, new]
    assert old in ratchet("lineage", "a1") and "thumb 0" in ratchet("lineage", "a1")
    assert json.loads(ratchet("lineage", old, "--json"))["descendants"] == [new]
    assert new in ratchet("lineage", old)
    assert "no turn recorded a reply 'nobody'" in ratchet("lineage", "nobody", status=2)


def test_lineage_finds_a_user_by_name_and_prints_the_pseudonym_alone(site, ratchet):
    """The name is known to whoever asks; nothing that is stored or printed may hold it."""
    who = privacy.pseudonym(SECRET, "acme", "Rumpelstiltskin")
    asked = turn("r1", "What about the parcel of my account?", "On its way.", conversation="x", who=who)
    fold(f"sqlite:///{site}/state.db", [asked, thumb(asked, True)])
    ratchet("build")
    argv = ["lineage", "--principal", "acme", "--user", "Rumpelstiltskin"]
    trail = json.loads(ratchet(*argv, "--json"))
    assert trail["subject"] == f"user {who}"
    assert len(trail["events"]) == 2 and len(trail["holdings"]) == 1
    shown = ratchet(*argv)
    assert who in shown and "Rumpelstiltskin" not in shown
    assert ratchet("lineage", who) == shown
    files = [file for file in site.rglob("*") if file.is_file()]
    assert not any(b"Rumpelstiltskin" in file.read_bytes() for file in files)
    assert "knows a user 'u-" in ratchet("lineage", "--principal", "acme", "--user", "other", status=2)


def test_lineage_makes_no_new_secret(site, ratchet):
    """It would give everybody another pseudonym, and the gateway would go on with it."""
    (site / "secret").unlink()
    assert "there is no secret" in ratchet("lineage", "--principal", "acme", status=2)
    assert not (site / "secret").exists()


@pytest.mark.parametrize("argv", [["lineage"], ["lineage", "a1", "--principal", "acme"]])
def test_lineage_needs_one_thing(site, ratchet, argv):
    assert "name one thing to trace" in ratchet(*argv, status=2)


# --- dead letters


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """A state with three dead letters: no event, one too large for then, one from the wrong topic."""
    large = turn("r1", "How do I reset my password?", "x" * 2000)
    with closing(EmbeddedLog(tmp_path / "log.db")) as log:
        append(log, thumb(large, True))
        for value in (b"\xff\xfe \x1b[31m nonsense", codec.encode(large), codec.encode(thumb(large, False))):
            log.append(Topic.TURNS, "c1", f"bad {value[:99]!r}", value).result(timeout=30)
        with store.opened(f"sqlite:///{tmp_path}/state.db") as state:
            pipeline.step(log, state, Pipeline(max_event_bytes=1000), now=NOON)
    return tmp_path


def test_dead_letters_are_listed_with_place_reason_and_first_bytes(dead, ratchet):
    found: list[dict[str, Any]] = json.loads(ratchet("dead-letters", "--json"))
    assert [(one["number"], one["topic"], one["offset"], one["kind"]) for one in found] == [
        (1, "turns", 0, "CodecError"),
        (2, "turns", 1, "LimitExceeded"),
        (3, "turns", 2, "CodecError"),
    ]
    assert found[0]["begins_with"] == r"\xff\xfe \x1b[31m nonsense"
    assert found[1]["bytes"] > 2000 and found[1]["at"] == "2026-03-02T12:00:00Z"
    shown = ratchet("dead-letters")
    assert "turns/0/1" in shown and "LimitExceeded" in shown
    assert "\x1b" not in shown  # bytes of a stranger never reach the terminal as they are


def test_a_dead_letter_is_shown_whole(dead, ratchet):
    assert json.loads(ratchet("dead-letters", "--show", "2").rpartition("┘")[2])["id"] == "turn-r1"
    assert r"b'\xff\xfe \x1b[31m nonsense'" in ratchet("dead-letters", "--show", "1")
    assert json.loads(json.loads(ratchet("dead-letters", "--show", "3", "--json"))["value"])["data"]
    assert "there is no dead letter 4: there are 3" in ratchet("dead-letters", "--show", "4", status=2)


def test_replay_folds_what_it_can_and_says_what_still_fails(dead, ratchet):
    """The limit is back at its default: the large event is one no more, and its waiting thumb finds it."""
    done = json.loads(ratchet("dead-letters", "--replay", "--json"))
    assert (done["folded"], done["repeated"]) == (1, 0)
    assert [one["offset"] for one in done["failed"]] == [0, 2]
    with store.opened(f"sqlite:///{dead}/state.db") as state, state.begin() as tx:
        assert [g.response_id for g in store.derived_rows(tx, "grade")] == ["r1"]
    assert "0 folded, 0 whose event had come otherwise, 2 still dead" in ratchet("dead-letters", "--replay")
    assert [one["offset"] for one in json.loads(ratchet("dead-letters", "--json"))] == [0, 2]


def test_no_dead_letters_is_said(site, ratchet):
    assert "no dead letters" in ratchet("dead-letters")
