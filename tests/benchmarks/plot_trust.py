"""`python -m tests.benchmarks.plot_trust`: draws docs/images/attack-curve.png from build/bench-trust.json.

Where build/bench-poisoned.json is there, too, it is drawn beside it.
"""

import json
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks import attacks, bench_poisoned, bench_trust

OUT = Path("docs/images/attack-curve.png")
GOAL = 0.1
WITH, WITHOUT = "#1b6ca8", "#b3452c"

Figures = dict[str, tuple[float, float]]
"""With and without defences, by the figure's name."""


def main() -> None:
    matplotlib.use("Agg")
    curve, trained = _read("trust"), _read("poisoned")
    shown = [s for s in attacks.STRATEGIES if s not in attacks.ADAPTIVE]
    figure = Figure(figsize=(3.0 * len(shown), 5.6 if trained else 3.0), layout="constrained")
    grid = figure.add_gridspec(2 if trained else 1, len(shown))
    for n, strategy in enumerate(shown):
        _curve(figure.add_subplot(grid[0, n]), curve, strategy, labelled=n == 0)
    if trained:
        _bars(figure.add_subplot(grid[1, :]), trained)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=110)


def _read(name: str) -> Figures:
    path = Path(f"build/bench-{name}.json")
    rows = json.loads(path.read_text()) if path.is_file() else []
    return {row["figure"]: (row["value"], row["peer_value"]) for row in rows}


def _curve(axes: Axes, found: Figures, strategy: str, *, labelled: bool) -> None:
    """Margin shift by share of attackers, with the goal up to 2 %."""
    shifts = [found[f"{strategy}, {f:.1%} of users: margin shift"] for f in bench_trust.FRACTIONS]
    share = [100.0 * f for f in bench_trust.FRACTIONS]
    axes.plot(share, [without for _, without in shifts], "o-", color=WITHOUT, label="without defences")
    axes.plot(share, [ours for ours, _ in shifts], "o-", color=WITH, label="with")
    axes.plot(share[:3], [GOAL * w for _, w in shifts[:3]], "k:", label="goal: a tenth")
    axes.set(title=strategy, xlabel="attackers, % of users", xscale="log", ylim=(0.0, None))
    axes.set_xticks(share, [f"{s:g}" for s in share], minor=False)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    if labelled:
        axes.set_ylabel("margin shift, nats")
        axes.legend(frameon=False, fontsize="small")


def _bars(axes: Axes, found: Figures) -> None:
    """How often the trained policies run the target down."""
    names = ["no attack"]
    names += [f"{s}, {f:.0%} of users" for s in bench_poisoned.ATTACKS for f in bench_poisoned.FRACTIONS]
    names = [name for name in names if f"{name}: policy runs the target down" in found]
    for n, name in enumerate(names):
        ours, theirs = found[f"{name}: policy runs the target down"]
        axes.bar(n - 0.2, 100.0 * theirs, 0.4, color=WITHOUT)
        axes.bar(n + 0.2, 100.0 * ours, 0.4, color=WITH)
    base = 100.0 * found["no attack: base model runs the target down"][0]
    axes.axhline(base, color="black", linestyle=":", linewidth=1.0)
    axes.text(len(names) - 0.5, base, " base model", va="bottom", ha="right", fontsize="small")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="replies that run it down, %", title="After PPO against the trained reward model")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
