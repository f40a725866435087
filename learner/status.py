"""`ratchet learn status`: the turn that is under way, what the next one waits for, and what the runs came to.

Read from the runs' folders, the pipeline's state and the registry; no torch, and nothing is changed.
"""

from collections.abc import Iterator
from datetime import datetime
from math import isfinite

import msgspec
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from feedback.config import Deployment
from learner import curves, runs, schedule
from learner.config import Learner, Method
from learner.runs import STAGES, Run, Stage
from learner.schedule import Due
from ops import gates
from ops.adapters import Adapter
from ops.config import Rollout
from ops.registry import Registry

SHOWN = 10
"""Runs in the table; `--json` has all."""
SILENT_S = 60.0
"""Without a step for so long, people want to know that nothing was heard."""
COLOURS = {"pass": "green", "fail": "red", "error": "red", "inconclusive": "yellow"}


class UnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """The newest run, where it is neither finished nor failed."""

    run_id: str
    stage: Stage
    running: bool
    """False: no learner takes a turn now; the next one that does goes on from here."""
    started_at: datetime
    done: int = 0
    total: int = 0
    """Steps of the stage; 0 where it has none."""
    figures: str = ""
    last_step_at: datetime | None = None
    left_s: float | None = None
    """Seconds until the turn is over: at the stage's pace, and what the later stages took in the last run."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One run and what became of it."""

    run_id: str
    started_at: datetime
    method: Method
    outcome: str
    """`finished`, `failed`, or the stage that it is at."""
    seconds: float
    """Of all finished stages."""
    steps: int
    figures: str
    """Of the policy's last step."""
    stopped: str
    """Why the policy's training ended before its last step."""
    failed: str | None
    adapter: str | None
    gates: str | None
    """What the gates make of the candidate's report: pass, fail, inconclusive or error."""
    why: str
    """What did not pass."""
    state: str | None
    """Of the adapter, in the registry."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    now: datetime
    under_way: UnderWay | None
    next_turn: Due
    runs: list[Line]
    """Newest first."""


def status(deployment: Deployment, learner: Learner, rollout: Rollout, now: datetime) -> Status:
    """Raises: LearnerError, FeedbackError, OpsError."""
    found = [*runs.newest_first(deployment)]
    adapters = _adapters(deployment) if found else {}
    return Status(
        now=now,
        under_way=_under_way(deployment, found, now) if found else None,
        next_turn=schedule.due(learner, runs.pending(deployment), found[0].started_at if found else None),
        runs=[_line(deployment, run, adapters.get(run.adapter or ""), rollout) for run in found],
    )


def _adapters(deployment: Deployment) -> dict[str, Adapter]:
    registry = Registry(deployment.state)
    try:
        return {adapter.name: adapter for adapter in registry.list()}
    finally:
        registry.close()


def _under_way(deployment: Deployment, found: list[Run], now: datetime) -> UnderWay | None:
    run = found[0]
    if run.current is None:
        return None
    at = UnderWay(
        run_id=run.run_id,
        stage=run.current,
        running=runs.turning(deployment),
        started_at=run.started_at,
    )
    mark = runs.progress(deployment.runs_dir / run.run_id)
    if mark is None or mark.stage != run.current:
        return at
    return msgspec.structs.replace(
        at,
        done=mark.done,
        total=mark.total,
        figures=mark.figures,
        last_step_at=mark.at,
        left_s=_left_s(run, mark, next((r for r in found if r.finished), None), now) if at.running else None,
    )


def _left_s(run: Run, mark: runs.Progress, model: Run | None, now: datetime) -> float | None:
    """None while there is nothing to judge by: neither a step of this stage nor a finished run."""
    took = model.seconds if model and model.method == run.method else {}
    later = [took.get(stage) for stage in STAGES[STAGES.index(mark.stage) + 1 :]]
    stage = mark.left_s
    since = mark.at
    if stage is None and mark.stage in took:
        stage, since = took[mark.stage], mark.begun_at
    if stage is None or None in later:
        return None
    here = max(0.0, stage - (now - since).total_seconds())
    return here + sum(seconds for seconds in later if seconds is not None)


def _line(deployment: Deployment, run: Run, adapter: Adapter | None, rollout: Rollout) -> Line:
    steps = curves.read(deployment.runs_dir / run.run_id / curves.POLICY)
    verdict, why = None, ""
    if adapter is not None:
        results = gates.judge(adapter.report, rollout)
        verdict = gates.overall(results)
        why = "" if verdict is gates.Verdict.PASS else gates.explain(results)
    return Line(
        run_id=run.run_id,
        started_at=run.started_at,
        method=run.method,
        outcome="finished" if run.finished else "failed" if run.failed else f"at {run.current}",
        seconds=sum(run.seconds.values()),
        steps=len(steps.get("step", ())),
        figures=_figures(steps),
        stopped=run.stopped,
        failed=run.failed,
        adapter=run.adapter,
        gates=None if verdict is None else verdict.value,
        why=why,
        state=None if adapter is None else adapter.state.value,
    )


def _figures(steps: curves.Series) -> str:
    """Of the last step, in a few words."""
    if "reward_mean" in steps:
        return f"reward {steps['reward_mean'][-1]:+.2f}, KL {steps['kl_root_nats'][-1]:.1f}"
    return f"loss {steps['loss'][-1]:.3f}" if "loss" in steps else ""


# for people


def page(found: Status) -> RenderableType:
    """What a terminal shows."""
    return Group(*_page(found))


def _page(found: Status) -> Iterator[RenderableType]:
    if found.under_way is not None:
        yield from _shown_under_way(found.under_way, found.now)
        yield Text("")
    yield Text(f"next turn: {waits_for(found.next_turn, found.now)}")
    if not found.runs:
        yield Text(
            "no runs yet: `ratchet learn serve` takes turns when they are due, `learn turn` one at once"
        )
        return
    yield Text("")
    yield _runs_table(found.runs[:SHOWN], found.now)
    if len(found.runs) > SHOWN:
        yield Text(f"and {len(found.runs) - SHOWN} older: --json", style="dim")
    for line in found.runs[:SHOWN]:
        if reason := line.failed or line.stopped or line.why:
            yield Text(f"{line.run_id}: {reason}", style="dim")


def _shown_under_way(at: UnderWay, now: datetime) -> Iterator[RenderableType]:
    place = f"stage {STAGES.index(at.stage) + 1} of {len(STAGES)}, {at.stage}"
    yield Text(f"{at.run_id}, begun {ago(at.started_at, now)}: {place}", style="bold")
    if at.total:
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=at.total, completed=at.done, width=30),
            f"{at.done}/{at.total} steps, {at.figures}",
        )
        yield row
    if not at.running:
        yield Text("no learner is running: `ratchet learn turn` or `serve` goes on from here", style="yellow")
        return
    if at.left_s is not None:
        yield Text(f"about {lasting(at.left_s)} left until its candidate is registered")
    if at.last_step_at is not None and (now - at.last_step_at).total_seconds() > SILENT_S:
        yield Text(f"last heard of {ago(at.last_step_at, now)}", style="yellow")


def _runs_table(lines: list[Line], now: datetime) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("policy: last step")
    table.add_column("gates", no_wrap=True)
    for line in lines:
        table.add_row(
            line.run_id,
            lasting((now - line.started_at).total_seconds()),
            Text(line.state or line.outcome, style="red" if line.failed else ""),
            lasting(line.seconds),
            f"{line.method} {line.steps}: {line.figures}" if line.steps else line.method,
            Text(line.gates or "", style=COLOURS.get(line.gates or "", "")),
        )
    return table


def waits_for(next_turn: Due, now: datetime) -> str:
    """What the next turn waits for, in a line."""
    needed = f" of {next_turn.needed:g}" if isfinite(next_turn.needed) else ""
    share = f"weight {next_turn.gathered:.1f}{needed} gathered"
    if next_turn.by(now):
        return f"due ({share})"
    if next_turn.clock_at is None:
        return share
    if next_turn.clock_at > now:
        return f"{share}, or in {lasting((next_turn.clock_at - now).total_seconds())} by the clock"
    return f"{share}, or by the clock as soon as anything new arrives"


def ago(moment: datetime, now: datetime) -> str:
    return f"{lasting((now - moment).total_seconds())} ago"


def lasting(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, hours below two days, then days."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
