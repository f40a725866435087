"""A reward model's card: `card.md` for people, `card.json` for programs, two pictures. Trains nothing."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from learner.checkpoints import write_atomically
from learner.findings import Calibration, Findings, Share

Settings = Mapping[str, str | int | float | bool]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a reward model was made from."""

    name: str
    data: str
    """Snapshot, or file with its SHA-256."""
    parents: dict[str, str]
    """Base model, earlier reward model: what it began as."""
    train_pairs: int
    train_grades: int = 0
    settings: Settings


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`card.json`."""

    origin: Origin
    code: str
    """Version of ratchet that made it."""
    findings: Findings
    notes: tuple[str, ...] = ()
    """One line each; shown as they are."""


def card(origin: Origin, findings: Findings, notes: Sequence[str] = ()) -> Card:
    return Card(origin=origin, code=f"ratchet {version('ratchet')}", findings=findings, notes=tuple(notes))


def write(made: Card, folder: Path) -> None:
    """Pictures and text first, `card.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    _calibration_plot(made.findings, folder / "calibration.png")
    _length_plot(made.findings, folder / "length.png")
    write_atomically(folder / "card.md", markdown(made).encode())
    write_atomically(folder / "card.json", msgspec.json.format(msgspec.json.encode(made)) + b"\n")


def markdown(made: Card) -> str:
    """The card as a page; the pictures lie beside it."""
    f, o = made.findings, made.origin
    lines = [
        f"# {o.name}",
        "",
        f"Held-out accuracy **{interval(f.accuracy)}** on {f.accuracy.pairs} pairs (Wilson, 95 %). "
        f"The rule “the shorter reply is better” reaches {interval(f.shorter_is_better)}.",
        "",
        *(f"- {note}" for note in made.notes),
        "",
        "## Made from",
        "",
        *_table(("what", "which"), _made_from(made)),
        "",
        "## Accuracy",
        "",
        *_shares("signal", f.by_kind),
        "",
        *_dimensions(f),
        f"By decile of the length of the better reply less that of the other ({f.unit}):",
        "",
        *_shares("length difference", f.by_length_difference),
        "",
        "## Calibration",
        "",
        f"Temperature {f.temperature:.2f}. The scaled figures use temperatures that were fitted on the other "
        "half of the conversations.",
        "",
        *_table(
            ("margins", "expected calibration error (15 bins)", "Brier"),
            [_calibration("as they are", f.raw), _calibration("over the temperature", f.scaled)],
        ),
        "",
        "![Said and was](calibration.png)",
        "",
        "## Length",
        "",
        f"Correlation of margin and length difference {f.length_correlation:+.2f}; of the people's own "
        f"answers and length difference {f.label_length_correlation:+.2f}.",
        "",
        "![Margin and length difference](length.png)",
        "",
    ]
    return "\n".join(lines)


def interval(share: Share) -> str:
    return f"{share.accuracy:.3f} [{share.low:.3f}, {share.high:.3f}]" if share.pairs else "–"


def _made_from(made: Card) -> list[tuple[str, ...]]:
    o = made.origin
    return [
        ("data", o.data),
        ("training pairs, grades", f"{o.train_pairs}, {o.train_grades}"),
        *((f"parent: {name}", digest) for name, digest in o.parents.items()),
        *((name, f"{value}") for name, value in o.settings.items()),
        ("code", made.code),
    ]


def _shares(title: str, shares: Sequence[Share]) -> list[str]:
    return _table((title, "pairs", "accuracy (95 %)"), [(s.name, f"{s.pairs}", interval(s)) for s in shares])


def _dimensions(found: Findings) -> list[str]:
    """Nothing where no rater told them apart."""
    tables = (
        ("dimension, by the reward", found.by_dimension),
        ("dimension, by its own heads (pairs and ratings)", found.by_own_head),
    )
    return [line for title, shares in tables if shares for line in (*_shares(title, shares), "")]


def _calibration(name: str, found: Calibration) -> tuple[str, ...]:
    return name, f"{found.error:.3f}", f"{found.brier:.3f}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _calibration_plot(found: Findings, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, one, color in (("as it is", found.raw, "#b3452c"), ("scaled", found.scaled, "#1b6ca8")):
        label = f"{name}: error {one.error:.3f}, Brier {one.brier:.3f}"
        axes.plot([b.said for b in one.bins], [b.was for b in one.bins], "o-", color=color, label=label)
    axes.set(
        xlabel="said: probability of being better", ylabel="was: share that was", xlim=(0, 1), ylim=(0, 1)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def _length_plot(found: Findings, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.7", linewidth=1)
    axes.plot(found.length_differences, found.margins, "o", color="#1b6ca8", markersize=3, alpha=0.4)
    axes.set(
        xlabel=f"length of the better reply less the other's, {found.unit}",
        ylabel="margin, log-odds",
        title=f"correlation {found.length_correlation:+.2f}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
