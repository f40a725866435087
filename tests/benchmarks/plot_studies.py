"""`python -m tests.benchmarks.plot_studies`: draws docs/images/hacking.png and samples.png, prints a table.

From all runs that `make bench-hacking` and `make bench-samples` left in build/studies; runs none itself.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks import bench_hacking, bench_samples
from tests.benchmarks.bench_hacking import Curve, Point, smooth
from tests.benchmarks.bench_samples import Mark
from tests.benchmarks.simulated import LEARNER

OUT = Path("docs/images")
COLOURS = dict(
    zip((v.name for v in bench_hacking.VARIANTS), ("#b3452c", "#e08a5b", "#1b6ca8", "#6db1d8"), strict=True)
)
METHOD_COLOURS = dict(
    zip(bench_samples.METHODS, ("#1b6ca8", "#6db1d8", "#b3452c", "#e0a030", "#5a8f4e"), strict=True)
)


def main() -> None:
    matplotlib.use("Agg")
    OUT.mkdir(parents=True, exist_ok=True)
    if curves := bench_hacking.kept_curves():
        _hacking(curves)
    if marks := bench_samples.kept_marks():
        _samples(marks)


def _hacking(curves: Sequence[Curve]) -> None:
    """Gold and proxy over √KL, smooth: seeds thin, their mean thick; the run under the defaults in black."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    gold, proxy = figure.subplots(1, 2)
    for axes, of in ((gold, lambda p: p.gold), (proxy, lambda p: p.proxy)):
        for name, colour in (*COLOURS.items(), (bench_hacking.DEFAULTS.name, "black")):
            _lines(axes, [c for c in curves if c.variant == name], of, name, colour)
        axes.axvline(np.sqrt(LEARNER.kl_budget_nats), color="grey", linestyle=":", linewidth=1.0)
        axes.set(xlabel="√KL to the base model, √(nats per reply)", xlim=(0.0, None))
        axes.spines[["top", "right"]].set_visible(False)
    gold.set(title="gold", ylabel="gain in true utility")
    gold.text(np.sqrt(LEARNER.kl_budget_nats), 0.0, " budget", color="grey", fontsize="small", va="bottom")
    proxy.set(title="proxy", ylabel="reward, deviations of the base model's")
    gold.legend(frameon=False, fontsize="small")
    figure.savefig(OUT / "hacking.png", dpi=110)


def _lines(axes: Axes, curves: Sequence[Curve], of: Callable[[Point], float], name: str, colour: str) -> None:
    found = [
        (
            np.sqrt(np.maximum(0.0, smooth([p.kl_nats for p in c.points]))),
            np.array(smooth([of(p) for p in c.points])),
        )
        for c in curves
    ]
    for roots, values in found:
        axes.plot(roots, values, color=colour, linewidth=0.6, alpha=0.5)
    if found:
        steps = min(len(roots) for roots, _ in found)
        means = [np.mean([both[k][:steps] for both in found], axis=0) for k in (0, 1)]
        axes.plot(*means, color=colour, linewidth=2.0, label=name)


def _samples(marks: Sequence[Mark]) -> None:
    """Gain by number of signals, with intervals, methods beside one another; then as a Markdown table."""
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for place, (method, colour) in enumerate(METHOD_COLOURS.items()):
        own = [m for m in marks if m.method == method]
        if not own:
            continue
        at = np.array([m.signals for m in own]) * 1.05 ** (place - 2)
        gains = np.array([m.gain for m in own])
        errors = np.array([[m.gain - m.low for m in own], [m.high - m.gain for m in own]])
        axes.errorbar(at, gains, errors, fmt="o-", color=colour, capsize=2.0, markersize=4.0, label=method)
    axes.axhline(0.0, color="grey", linewidth=0.8)
    sizes = sorted({m.signals for m in marks})
    axes.set(
        xscale="log", xlabel="signals that users sent", ylabel="gain in true utility over the base model"
    )
    axes.set_xlim(0.6 * min(bench_samples.SEEDS), 1.6 * max(bench_samples.SEEDS))
    axes.set_xticks(list(bench_samples.SEEDS), [f"{n:,}" for n in bench_samples.SEEDS])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(OUT / "samples.png", dpi=110)
    print("| signals |" + "".join(f" `{m}` |" for m in METHOD_COLOURS))
    print("|---|" + "---|" * len(METHOD_COLOURS))
    for size in sizes:
        row = {m.method: m for m in marks if m.signals == size}
        print(f"| {size:,} |" + "".join(f" {_cell(row.get(method))} |" for method in METHOD_COLOURS))


def _cell(mark: Mark | None) -> str:
    if mark is None:
        return "–"
    seeds = len(mark.by_seed)
    return f"{mark.gain:+.3f} [{mark.low:+.3f}, {mark.high:+.3f}], {seeds} seed{'s' * (seeds > 1)}"


if __name__ == "__main__":
    main()
