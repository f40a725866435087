"""Which rows of a snapshot a turn reads: all while they are few, then the new and a draw of the old. Pure.

A turn so costs the same however long the history. What is not read again is not forgotten: the reward model
goes on from the last turn's, and a draw of old rows beside the new keeps it from drifting off.
Source: experience replay, arXiv:1811.11682.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from feedback.snapshots import Entry

NEW_SHARE = 0.75
"""Most of the rows that may be new ones: after a flood of feedback, too, the old is heard."""
ROWS = ("pairs", "grades")


@dataclass(frozen=True, kw_only=True)
class Window:
    """How much a turn reads."""

    rows: int
    """Training rows, at most: pairs and grades together; and as many users' edits."""
    heldout_rows: int
    prompts: int
    heldout_prompts: int
    since: datetime | None
    """Rows from after this moment are new; None: there was no turn before."""
    seed: int
    """Draws old rows and training prompts."""


def choose(index: Mapping[str, Sequence[Entry]], window: Window) -> dict[str, set[str]]:
    """Ids of the rows to read, by table."""
    rows = [entry for table in ROWS for entry in index[table]]
    chosen = draw([e for e in rows if e.split == "train"], window.rows, window)
    chosen |= lasting([e for e in rows if e.split == "heldout"], window.heldout_rows)
    edits = draw([e for e in index["demonstrations"] if e.split == "train"], window.rows, window)
    prompts = lot([e for e in index["prompts"] if e.split == "train"], window.prompts, window.seed)
    asked = lasting([e for e in index["prompts"] if e.split == "heldout"], window.heldout_prompts)
    return {"pairs": chosen, "grades": chosen, "demonstrations": edits, "prompts": prompts | asked}


def draw(entries: Sequence[Entry], most: int, window: Window) -> set[str]:
    """At most so many of the entries: all, or new ones first and by lot among equals."""
    if len(entries) <= most:
        return {entry.row_id for entry in entries}
    new = [e for e in entries if window.since is not None and e.at is not None and e.at > window.since]
    fresh = lot(new, int(most * NEW_SHARE), window.seed)
    return fresh | lot([e for e in entries if e.row_id not in fresh], most - len(fresh), window.seed)


def lot(entries: Sequence[Entry], most: int, seed: int) -> set[str]:
    """So many of them, drawn by lot: the same for the same seed, whatever their order."""
    ids = [entry.row_id for entry in entries]
    return set(ids if len(ids) <= most else sorted(ids, key=lambda row_id: _ticket(seed, row_id))[:most])


def lasting(entries: Sequence[Entry], most: int) -> set[str]:
    """So many of them, nearly the same ones in every snapshot: those whose prompts' digests come first."""
    return {entry.row_id for entry in sorted(entries, key=lambda e: (e.prompt_digest, e.row_id))[:most]}


def _ticket(seed: int, row_id: str) -> bytes:
    return blake2b(row_id.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
