"""Writes the measured part of `docs/signals.md`: `python -m tests.signals_page`. Asserts nothing."""

import math
from collections import Counter
from pathlib import Path

from feedback.events import SignalKind
from learner.measures import wilson
from tests.feedback.measured import (
    CHATS,
    Counts,
    compare,
    false_alarms,
    measured,
    out_of_reach,
    scored_rephrasings,
)

PAGE = Path(__file__).parents[1] / "docs" / "signals.md"
BEGIN, END = "<!-- measured: `python -m tests.signals_page` -->\n", "<!-- /measured -->\n"

GOALS = (SignalKind.EDIT, SignalKind.REGENERATION, SignalKind.REPHRASE, SignalKind.CORRECTION)
THRESHOLDS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, math.inf)
TRADED = {"held out": "unseen", "third development": "third"}


def figures() -> str:
    """Precision and recall on the held-out set, what the hard negatives did there, and the fit elsewhere."""
    record, found = measured("unseen")
    lines = [
        f"\nHeld out: {CHATS} chats, {len(record.events)} turns; 95 % Wilson intervals in brackets.\n\n",
        "| signal | right | wrong | missed | precision | recall |\n| --- | --- | --- | --- | --- | --- |\n",
    ]
    for kind, c in counts("unseen").items():
        precision, recall = _share(c.right, c.right + c.wrong), _share(c.right, c.right + c.missed)
        lines.append(f"| {kind} | {c.right} | {c.wrong} | {c.missed} | {precision} | {recall} |\n")
    lines.append("\n| hard negative | replies | false alarms |\n| --- | --- | --- |\n")
    for name, (befell, fooled) in false_alarms(found, record).items():
        lines.append(f"| {name} | {befell} | {fooled} |\n")
    return "".join(lines) + reach() + trade_off() + fit() + "\n"


def reach() -> str:
    """How many labels of the held-out set no rule could give."""
    record, _ = measured("unseen")
    parted = out_of_reach(record)
    given = Counter(kind for kind, _ in record.truth)
    shares = ", ".join(f"{kind} {parted[kind]} of {given[kind]}" for kind in GOALS)
    return (
        "\nOut of reach on the held-out set, since the request that shows it falls into another conversation "
        f"(nobody names the chat, and its opening was dropped or changed): {shares}.\n"
    )


def trade_off() -> str:
    """Precision and recall of rephrasings by how surely a message must ask the same again."""
    lines = ["\nRephrasings, as precision / recall, if any other question counted from this score on:\n\n"]
    lines.append("| score over | " + " | ".join(TRADED) + " |\n| --- |" + " --- |" * len(TRADED) + "\n")
    columns = [_curve(name) for name in TRADED.values()]
    for threshold, *row in zip(THRESHOLDS, *columns, strict=True):
        lines.append(f"| {'never: only announced or repeated' if math.isinf(threshold) else threshold} | ")
        lines.append(" | ".join(row) + " |\n")
    return "".join(lines)


def _curve(name: str) -> list[str]:
    record, found = measured(name)
    scores = scored_rephrasings(record, found)
    given = sum(kind is SignalKind.REPHRASE for kind, _ in record.truth)
    said = [[again for sure, again in scores if sure > t or sure == math.inf] for t in THRESHOLDS]
    return [f"{sum(hits) / len(hits):.3f} / {sum(hits) / given:.3f}" for hits in said]


def fit() -> str:
    """Precision and recall where the rules were developed: what they lack above did not carry over."""
    by_set = [counts(name) for name in ("development", "released", "third")]
    lines = [
        f"\nFit, as precision / recall on {CHATS} chats of each set that the rules were developed on.\n\n",
        "| signal | development | second development | third development |\n| --- | --- | --- | --- |\n",
    ]
    for kind in by_set[0]:
        lines.append(f"| {kind} | {' | '.join(_both(found[kind]) for found in by_set)} |\n")
    return "".join(lines)


def counts(name: str) -> dict[SignalKind, Counts]:
    record, found = measured(name)
    return compare(found, record.truth)


def _both(c: Counts) -> str:
    return f"{c.precision:.3f} / {c.recall:.3f}"


def _share(right: int, of: int) -> str:
    _, low, high = wilson(right, of)
    return f"{right / of:.3f} [{low:.3f}, {high:.3f}]"


def page() -> str:
    """The whole page, its figures measured now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + figures() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
