"""`ratchet learn status`: what the runs have done, read from their folders."""

import msgspec

from feedback.config import Deployment
from learner.imitation import FitMetrics
from learner.methods import Metrics, figures
from learner.train_policy import StepMetrics
from learner.turn import STAGES, Run, runs


def table(deployment: Deployment) -> str:
    """One line a run: how far it is, its last policy step, and what came of it."""
    found = runs(deployment)
    if not found:
        return f"no runs yet in {deployment.runs_dir}"
    return "\n".join(
        [f"{'run':<10} {'state':<22} {'last policy step':<38} result", *(_line(deployment, r) for r in found)]
    )


def _line(deployment: Deployment, run: Run) -> str:
    result = run.adapter or run.failed or ""
    return f"{run.run_id:<10} {_state(run):<22} {_last_step(deployment, run):<38} {result}"


def _state(run: Run) -> str:
    if run.failed:
        return "failed"
    return "finished" if run.finished else f"at {STAGES[len(run.stages)]} ({len(run.stages)}/{len(STAGES)})"


def _last_step(deployment: Deployment, run: Run) -> str:
    path = deployment.runs_dir / run.run_id / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    if not lines:
        return ""
    kind: type[Metrics] = StepMetrics if run.method in ("ppo", "rloo") else FitMetrics
    last = msgspec.json.decode(lines[-1], type=kind)
    return f"{run.method} {last.step + 1}: {figures(last)}"
