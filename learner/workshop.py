"""Single stages by hand: a policy from a reward model, an evaluation once more."""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from feedback import snapshots
from learner import methods, runs, train_reward, turn
from learner.errors import DataError
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.report_table import find
from learner.sampling import LocalSampler
from learner.turn import Setting, material
from ops.adapters import AdapterState


def evaluate_again(setting: Setting, run_id: str | None, now: datetime) -> str:
    """Measures a run's candidate anew; one that still waits at the gates gets the new report.

    `run_id`: the newest run that registered a candidate, if None. Returns: its id.
    Raises: DataError for a run without a candidate; Busy; what an evaluation raises.
    """
    with turn.alone(setting):
        done = [run for run in runs.runs(setting.deployment) if run.adapter and run_id in (None, run.run_id)]
        if not done:
            raise DataError(
                f"{run_id or 'the learner'} has registered no candidate: see `ratchet learn status`"
            )
        run = done[-1]
        bench = turn.open_bench(setting, run)
        try:
            turn.evaluate_candidate(bench, run, now)
        finally:
            bench.sampler.close()
        _, report = find(setting.deployment.runs_dir, run.run_id)
        with turn.registry(setting) as adapters:
            adapter = adapters.get(str(run.adapter))
            if adapter.state is AdapterState.REGISTERED:
                reason = f"evaluated again, probes {report.probes or 'none'}"
                adapters.note(
                    adapter.name,
                    revision=adapter.revision,
                    by="learner",
                    reason=reason,
                    at=now,
                    report=report,
                )
    return run.run_id


def policy_from_reward(setting: Setting, snapshot: str, reward_dir: Path, out_dir: Path) -> Path:
    """A policy from the base model by the configured method, sampling in memory.

    Returns: the adapter's folder. Raises: ModelError, SnapshotError, DataError, MissingExtra, GuardError.
    """
    learner = setting.learner
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=learner.seed)
    reward, _ = train_reward.load(trunk, reward_dir, learner.reward_uncertainty)
    loaded = snapshots.load(setting.deployment.snapshots_dir / snapshot)

    def watch(metrics: methods.Metrics, steps: int) -> None:
        setting.progress("policy", metrics.step + 1, steps, methods.figures(metrics))

    found = material(loaded, trunk.encoder, learner, setting.problems)
    methods.require(learner.method, found)
    with TemporaryDirectory() as folder:
        methods.train(
            methods.Task(
                actor=LanguageActor(trunk, learner.temperature),
                sampler=LocalSampler(trunk),
                scorer=reward,
                material=found,
                learner=learner,
                seed=learner.seed,
                fingerprint=setting.fingerprint,
                folder=Path(folder),
                watch=watch,
                verify=turn.verifier(setting.problems, trunk.encoder),
                problem_fraction=setting.problems.settings.fraction,
            )
        )
    return export_adapter(trunk, Role.POLICY, out_dir)
