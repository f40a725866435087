"""`ratchet learn eval`: an evaluation report as tables, with what the gates make of it. Measures nothing."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from learner.errors import DataError
from learner.gold_curve import curve, fall
from ops import evaluation
from ops.config import Rollout
from ops.evaluation import EvalReport, Measure
from ops.gates import Verdict, judge

_COLOUR = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.ERROR: "red", Verdict.INCONCLUSIVE: "yellow"}
_SHARES = ("win_rate", "judged_win_rate")
_NUMBERS = ("tokens", "gold_gain", "canary_sentiment")


def find(runs_dir: Path, run_id: str | None = None) -> tuple[str, EvalReport]:
    """The report of this run, or of the newest one that has any. Raises: DataError."""
    files = [runs_dir / run_id / "report.json"] if run_id else sorted(runs_dir.glob("run-*/report.json"))
    if not files:
        raise DataError(f"no run in {runs_dir} was evaluated yet")
    try:
        return files[-1].parent.name, evaluation.decode(files[-1].read_bytes())
    except OSError as e:
        raise DataError(f"{files[-1].parent.name} has no report ({e.strerror}): was it evaluated?") from e
    except msgspec.DecodeError as e:
        raise DataError(f"{files[-1]} is no evaluation report: {e}") from e


def tables(run_id: str, report: EvalReport, rollout: Rollout) -> RenderableType:
    """Measures, what is missing, the gates' verdicts, and examples of what counts against the candidate."""
    return Group(*_parts(run_id, report, rollout))


def curve_table(runs_dir: Path) -> RenderableType:
    """Gold against proxy over √KL, a line a run. Raises: DataError."""
    found = {path.parent.name for path in runs_dir.glob("run-*/report.json")}
    points = curve({run_id: find(runs_dir, run_id)[1] for run_id in sorted(found)})
    table = Table("run", box=None, pad_edge=False)
    for name in ("√KL to the root", "reward gain", "gold gain"):
        table.add_column(name, justify="right")
    for point in points:
        gold = "" if point.gold is None else f"{point.gold:+.3f}"
        table.add_row(point.run_id, f"{point.root_kl:.2f}", f"{point.proxy:+.3f}", gold)
    below = fall(points)
    told = "no gold scorer: [eval] gold" if below is None else f"gold is {below:.3f} below its peak"
    return Group(table, Text(told))


def _parts(run_id: str, report: EvalReport, rollout: Rollout) -> Iterator[RenderableType]:
    yield Text(
        f"{run_id} against {report.baseline or 'the base model'}: {report.samples} replies to "
        f"{report.prompts} held-out prompts; probes {report.probes or 'none'}\n"
    )
    yield measure_table(report)
    for name, reason in report.missing.items():
        yield Text(f"missing: {name}, {reason}", style="yellow")
    yield Text("")
    gates = Table("gate", "verdict", "why", box=None, pad_edge=False)
    for result in judge(report, rollout):
        gates.add_row(result.name, Text(result.verdict.value, _COLOUR[result.verdict]), Text(result.reason))
    yield gates
    for measure in report.measures:
        for example in measure.examples:
            yield Text(f"\n{measure.name}, {example.id}", style="bold")
            yield Text(f"  candidate: {example.candidate}\n  baseline:  {example.baseline}")


def measure_table(report: EvalReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for name in ("candidate", "before", "figure", "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    gain = f"[{report.reward_gain_low:+.3f}, {report.reward_gain_high:+.3f}]"
    table.add_row("reward_gain", "", "", f"{report.reward_gain:+.3f}", Text(gain), str(report.prompts))
    table.add_row("kl_root (nats)", "", "", f"{report.kl_root_nats:.3f}", "", str(report.prompts))
    for m in report.measures:
        table.add_row(*_row(m))
    return table


def _row(m: Measure) -> tuple[str | Text, ...]:
    level, change = ("{:.3f}", "{:+.3f}") if m.name.startswith(_NUMBERS) else ("{:.1%}", "{:+.1%}")
    change = level if m.name.startswith(_SHARES) else change
    own, before = ("" if value is None else level.format(value) for value in (m.candidate, m.baseline))
    interval = f"[{change.format(m.low)}, {change.format(m.high)}]"
    return m.name, own, before, change.format(m.value), Text(interval), str(m.n)
