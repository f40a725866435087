"""A run's figures over its steps as one picture, `curves.png`; the data lie beside it (`metric_lines`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learner.errors import DataError

Series = dict[str, list[float]]
"""Values by figure, one a step."""
REWARD, POLICY = "reward.jsonl", "metrics.jsonl"
COLUMNS = 4
PANEL_INCHES = (3.3, 2.1)
LOOKS = (("#1b6ca8", ".-"), ("#b3452c", "--"))
"""Colour and line of a panel's first and second figure."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    file: str
    title: str
    unit: str
    names: tuple[str, ...]
    level: float | None = None
    """Where a line helps the eye."""


PANELS = (
    Panel(REWARD, "reward model: loss", "nats", ("loss",), 0.6931),
    Panel(REWARD, "reward model: right on training rows", "share", ("accuracy",), 0.5),
    Panel(REWARD, "reward model: gradient", "norm", ("grad_norm",), 1.0),
    Panel(REWARD, "reward model: learning rate", "", ("lr",)),
    Panel(POLICY, "reward", "deviations of the root", ("reward_mean", "score_mean")),
    Panel(POLICY, "reward from checks", "deviations of the root", ("verified_mean",), 0.0),
    Panel(POLICY, "KL to the root", "nats per reply", ("kl_root_nats", "kl_target_nats")),
    Panel(POLICY, "β", "deviations per nat", ("beta",)),
    Panel(POLICY, "length", "tokens", ("mean_tokens",)),
    Panel(POLICY, "replies that ended", "share", ("finished",)),
    Panel(POLICY, "entropy", "nats per token", ("entropy",)),
    Panel(POLICY, "clipped", "share of tokens", ("clip_fraction",)),
    Panel(POLICY, "KL of a step's policies", "nats per token", ("approx_kl",)),
    Panel(POLICY, "explained variance of values", "share", ("explained_variance",), 0.0),
    Panel(POLICY, "losses", "", ("policy_loss", "value_loss")),
    Panel(POLICY, "loss", "", ("loss",)),
    Panel(POLICY, "margin of chosen over rejected", "log-odds", ("margin",), 0.0),
    Panel(POLICY, "KL to the root, estimated", "nats per reply", ("kl",)),
    Panel(POLICY, "policy gradient", "norm", ("grad_norm",), 1.0),
    Panel(POLICY, "policy learning rate", "", ("lr",)),
    Panel(POLICY, "effective sample size", "share", ("effective_sample_size",), 0.5),
    Panel(POLICY, "sampler against trainer", "nats per token", ("sampler_kl",)),
    Panel(POLICY, "optimizer steps, skipped", "", ("optimizer_steps", "skipped_steps")),
)
"""In the order in which they are drawn. A figure that the run does not have, or that is 0 at every step, has
no line, and a panel without lines is left out."""


def draw(folder: Path) -> Path:
    """`curves.png` of the run in `folder`, of the steps so far. Raises: DataError when there is none yet."""
    series = {file: read(folder / file) for file in (REWARD, POLICY)}
    drawn = [(panel, lines) for panel in PANELS if (lines := lines_of(panel, series[panel.file]))]
    if not drawn:
        raise DataError(f"{folder.name} has no training step yet: see `ratchet learn status`")
    path = folder / "curves.png"
    _plot(folder.name, drawn, path)
    return path


def read(path: Path) -> Series:
    """Numbers of a file of JSON lines, by name; {} without the file. A line cut short by a kill is none."""
    series: Series = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row: dict[str, object] = msgspec.json.decode(line)
        except msgspec.DecodeError:
            break
        for name, value in row.items():
            if isinstance(value, int | float):
                series.setdefault(name, []).append(float(value))
    return series


def lines_of(panel: Panel, series: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The panel's figures that there is anything to see of."""
    return {name: series[name] for name in panel.names if any(series.get(name, ()))}


def _plot(title: str, drawn: Sequence[tuple[Panel, Mapping[str, Sequence[float]]]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = -(-len(drawn) // COLUMNS)
    wide, high = COLUMNS * PANEL_INCHES[0], height * PANEL_INCHES[1]
    figure = Figure(figsize=(wide, high))
    # a layout that fits itself draws everything four times: 2.4 s of CPU instead of 0.9
    figure.subplots_adjust(0.6 / wide, 0.3 / high, 1 - 0.1 / wide, 1 - 0.5 / high, wspace=0.35, hspace=0.45)
    figure.suptitle(title, fontsize="medium", y=1 - 0.12 / high)
    for place, (panel, lines) in enumerate(drawn, start=1):
        axes = figure.add_subplot(height, COLUMNS, place)
        if panel.level is not None:
            axes.axhline(panel.level, color="0.85", linewidth=1)
        for (name, values), (colour, line) in zip(lines.items(), LOOKS, strict=False):
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, line, color=colour, linewidth=1.3, label=name)
        if len(panel.names) > 1:
            axes.legend(frameon=False, fontsize="x-small")
        axes.set_title(panel.title, fontsize="small")
        axes.set_ylabel(panel.unit, fontsize="x-small")
        axes.tick_params(labelsize="x-small")
        axes.yaxis.get_offset_text().set_fontsize("x-small")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
