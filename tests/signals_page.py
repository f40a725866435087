"""Writes the measured part of `docs/signals.md`: `python -m tests.signals_page`. Asserts nothing."""

from pathlib import Path

from learner.measures import wilson
from tests.feedback.measured import CHATS, compare, false_alarms, measured

PAGE = Path(__file__).parents[1] / "docs" / "signals.md"
BEGIN, END = "<!-- measured: `python -m tests.signals_page` -->\n", "<!-- /measured -->\n"


def figures() -> str:
    """Two tables on the held-out half: each kind's precision and recall, and what the hard negatives did."""
    record, found = measured("heldout")
    lines = [
        f"\n{CHATS} chats, {len(record.events)} turns; 95 % Wilson intervals in brackets.\n\n",
        "| signal | right | wrong | missed | precision | recall |\n| --- | --- | --- | --- | --- | --- |\n",
    ]
    for kind, c in compare(found, record.truth).items():
        precision, recall = _share(c.right, c.right + c.wrong), _share(c.right, c.right + c.missed)
        lines.append(f"| {kind} | {c.right} | {c.wrong} | {c.missed} | {precision} | {recall} |\n")
    lines.append("\n| hard negative | replies | false alarms |\n| --- | --- | --- |\n")
    for name, (befell, fooled) in false_alarms(found, record).items():
        lines.append(f"| {name} | {befell} | {fooled} |\n")
    return "".join(lines) + "\n"


def _share(right: int, of: int) -> str:
    _, low, high = wilson(right, of)
    return f"{right / of:.3f} [{low:.3f}, {high:.3f}]"


def page() -> str:
    """The whole page, its figures measured now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + figures() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
