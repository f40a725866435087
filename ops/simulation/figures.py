"""What the demo found out, as values, as `build/demo.json` and as the table that the README shows."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from ops.simulation import helpdesk
from ops.simulation.stats import Interval
from ops.simulation.users import Judged, interval

GOAL = 0.15
"""True utility that the loop must add, on a scale of 0 to 1, with intervals that do not overlap."""
EXAMPLES = 3
"""Number of questions shown with the reply before and after."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What unseen users get on held-out questions from the adapter that is stable now."""

    adapter: str
    utility: Interval
    correct: float
    words: float
    hedged: float
    rude: float
    replies: int
    examples: list[tuple[str, str]]
    """The first reply to each of the first questions, whatever they are worth."""


class TurnFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the loop, as the people who run it would see it."""

    adapter: str
    state: str
    reason: str
    proxy_gain: float
    """Held-out reward gained, in deviations of the root reference."""
    kl_root_nats: float
    reward_model_accuracy: float
    pairs: int
    grades: int
    conversations: int
    signals: int
    gather_s: float
    """From the first conversation until the learner began."""
    learn_s: float
    """Snapshot, reward model, PPO, evaluation."""
    rollout_s: float
    """Gates, loading, canary, promotion."""
    after: Measured


class Figures(msgspec.Struct, kw_only=True):
    """`build/demo.json`."""

    goal: float = GOAL
    gain: float = 0.0
    passed: bool = False
    service_up_s: float = 0.0
    before: Measured | None = None
    turns: list[TurnFigures] = []
    requests: int = 0
    failed_requests: dict[str, int] = {}
    replies_received: int = 0
    signals_acknowledged: int = 0
    lost_events: int = 0
    seconds: float = 0.0


def summary(adapter: str, replies: Sequence[Judged]) -> Measured:
    utility = interval(replies)
    assert utility is not None
    traits = [helpdesk.traits(r.question, r.reply) for r in replies]
    first_replies: dict[str, str] = {}
    for r in replies:
        first_replies.setdefault(r.question, r.reply)
    return Measured(
        adapter=adapter,
        utility=utility,
        correct=sum(t.correct for t in traits) / len(traits),
        words=sum(t.words for t in traits) / len(traits),
        hedged=sum(t.hedged for t in traits) / len(traits),
        rude=sum(t.rude for t in traits) / len(traits),
        replies=len(replies),
        examples=list(first_replies.items())[:EXAMPLES],
    )


def separate(figures: Figures) -> bool:
    """The intervals before and after do not overlap."""
    return bool(
        figures.before and figures.turns and figures.turns[-1].after.utility.low > figures.before.utility.high
    )


def conclude(figures: Figures) -> None:
    if figures.before and figures.turns:
        figures.gain = figures.turns[-1].after.utility.mean - figures.before.utility.mean
    figures.passed = (
        figures.gain >= GOAL
        and separate(figures)
        and not figures.failed_requests
        and figures.lost_events == 0
    )


def show(figures: Figures, out: Path, console: Console) -> None:
    """The table that the README shows."""
    table = Table(title="What the loop gained (held-out questions, unseen users)")
    columns = [
        ("before", figures.before),
        *((f"after turn {n}", t.after) for n, t in enumerate(figures.turns, 1)),
    ]
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    found = [m for _, m in columns if m is not None]
    turns = [None, *figures.turns]

    def row(name: str, cells: Sequence[str]) -> None:
        table.add_row(name, *cells)

    row("true utility, 95 % CI", [str(m.utility) for m in found])
    row("right answers", [f"{m.correct:.0%}" for m in found])
    row("words per reply", [f"{m.words:.0f}" for m in found])
    row("hedged / rude", [f"{m.hedged:.0%} / {m.rude:.0%}" for m in found])
    row("proxy reward gain, σ", [f"{t.proxy_gain:+.2f}" if t else "" for t in turns])
    row("KL to root, nats per reply", [f"{t.kl_root_nats:.1f}" if t else "0" for t in turns])
    row("pairs / grades used", [f"{t.pairs} / {t.grades}" if t else "" for t in turns])
    row("reward model accuracy", [f"{t.reward_model_accuracy:.2f}" if t else "" for t in turns])
    row(
        "seconds: chat, learn, roll out",
        [f"{t.gather_s:.0f}, {t.learn_s:.0f}, {t.rollout_s:.0f}" if t else "" for t in turns],
    )
    row("adapter", [m.adapter for m in found])
    console.print(table)
    if figures.before and figures.turns:
        after = dict(figures.turns[-1].after.examples)
        for question, reply in figures.before.examples:
            console.print(
                f"  user    {question}\n  before  {reply}\n  after   {after[question]}\n", markup=False
            )
    verdict = "[green]improved[/green]" if figures.passed else "[red]goal missed[/red]"
    promised = figures.replies_received + figures.signals_acknowledged
    console.print(
        f"{verdict}: true utility {figures.gain:+.3f} (goal +{GOAL}), "
        f"{sum(figures.failed_requests.values())} of {figures.requests} requests failed, "
        f"{figures.lost_events} of {promised} promised events lost, {figures.seconds:.0f} s; {out}"
    )
