"""Writes the measured part of `docs/signals.md`: `python -m tests.signals_page`. Asserts nothing."""

from pathlib import Path

from feedback.events import SignalKind
from learner.measures import wilson
from tests.feedback.measured import CHATS, Counts, compare, false_alarms, measured

PAGE = Path(__file__).parents[1] / "docs" / "signals.md"
BEGIN, END = "<!-- measured: `python -m tests.signals_page` -->\n", "<!-- /measured -->\n"


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
    return "".join(lines) + fit() + "\n"


def fit() -> str:
    """Precision and recall where the rules were developed: what they lack above did not carry over."""
    first, second = counts("development"), counts("released")
    lines = [
        f"\nFit, as precision / recall on {CHATS} chats of each set that the rules were developed on.\n\n",
        "| signal | development | second development |\n| --- | --- | --- |\n",
    ]
    for kind in sorted(first.keys() & second.keys()):
        lines.append(f"| {kind} | {_both(first[kind])} | {_both(second[kind])} |\n")
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
