"""What a turn reads of a long history: bounded, the new first, the same for the same run."""

from dataclasses import replace
from datetime import datetime, timedelta

from feedback.snapshots import Entry
from learner.window import Window, choose
from tests.feedback.builders import NOON

LAST_TURN = NOON + timedelta(days=1)
WINDOW = Window(rows=8, heldout_rows=3, prompts=4, heldout_prompts=2, since=LAST_TURN, seed=1)


def entry(name: str, at: datetime | None = NOON, split: str = "train") -> Entry:
    return Entry(name, split, f"digest of {name}", at)


def index(old: int, new: int) -> dict[str, list[Entry]]:
    after = LAST_TURN + timedelta(hours=1)
    rows = [*(entry(f"old {i}") for i in range(old)), *(entry(f"new {i}", after) for i in range(new))]
    return {
        "pairs": rows[::2],
        "grades": [*rows[1::2], *(entry(f"kept {i}", split="heldout") for i in range(5))],
        "demonstrations": [],
        "prompts": [entry(f"asked {i}", None) for i in range(9)]
        + [entry(f"kept {i}", None, "heldout") for i in "abc"],
    }


def read(old: int, new: int, window: Window = WINDOW) -> list[str]:
    """Training rows that are read, in order of name."""
    chosen = choose(index(old, new), window)
    return sorted(name for name in chosen["pairs"] | chosen["grades"] if not name.startswith("kept"))


def test_a_short_history_is_read_whole() -> None:
    """Nothing changes for a deployment until its snapshot outgrows the window."""
    assert len(read(old=5, new=3)) == 8


def test_all_new_rows_are_read_and_the_rest_is_drawn_from_the_old() -> None:
    """Three new of a hundred: they are all there, with five of the others."""
    found = read(old=100, new=3)
    assert found[:3] == ["new 0", "new 1", "new 2"]
    assert len(found) == 8


def test_a_flood_leaves_room_for_the_old() -> None:
    """Three quarters at most, 6 of 8, are surely new; the last quarter is drawn from everything else."""
    found = read(old=1000, new=50)
    assert len(found) == 8
    assert sum(name.startswith("old") for name in found) >= 1


def test_without_a_turn_before_the_window_is_a_draw_of_everything() -> None:
    """The first turn on a long backlog learns from all of its time, not from its end."""
    found = read(old=50, new=50, window=replace(WINDOW, since=None))
    assert len(found) == 8
    assert 0 < sum(name.startswith("old") for name in found) < 8


def test_a_continued_run_reads_the_same_rows_and_the_next_run_others() -> None:
    """The draw follows from the run's seed, not from the order of the rows; old rows come round in time."""
    assert read(old=100, new=3) == read(old=100, new=3)
    assert read(old=100, new=3) != read(old=100, new=3, window=replace(WINDOW, seed=2))


def test_held_out_rows_and_prompts_stay_the_same_from_run_to_run() -> None:
    """Figures of two runs are compared, so they rest on the same rows; training prompts are drawn anew."""
    one, other = (choose(index(100, 3), replace(WINDOW, seed=seed)) for seed in (1, 2))
    kept = {name for name in one["grades"] if name.startswith("kept")}
    assert kept == {"kept 0", "kept 1", "kept 2"} == {n for n in other["grades"] if n.startswith("kept")}
    assert {"kept a", "kept b"} == {name for name in one["prompts"] if name.startswith("kept")}
    assert len(one["prompts"]) == 4 + 2
    assert one["prompts"] != other["prompts"]
