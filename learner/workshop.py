"""Single stages by hand: a reward model from a file of pairs, a policy from one, an evaluation once more."""

from datetime import datetime
from pathlib import Path

from feedback import snapshots
from learner import pair_files, train_policy, train_reward, turn
from learner.errors import DataError
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.report_table import find
from learner.sampling import LocalSampler
from learner.train_policy import RunState, StepMetrics
from learner.train_reward import RewardReport
from learner.turn import Setting, ppo_settings, prompts_of, reward_settings
from ops.adapters import AdapterState


def reward_from_pairs(setting: Setting, pairs: Path, out_dir: Path) -> RewardReport:
    """Trains on the file's training rows, standardises on the base model's replies, writes to `out_dir`.

    Raises: DataError naming the row and column of a hole; ModelError.
    """
    found = pair_files.read(pairs)
    learner = setting.learner
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=learner.seed)
    data = pair_files.reward_data(found, trunk.encoder)

    def on_step(loss: float, done: int, total: int) -> None:
        setting.progress("reward model", done, total, f"loss {loss:.3f}")

    model, losses = train_reward.train(trunk, data, reward_settings(learner, learner.seed), on_step)
    prompts = [row.chosen.prompt for row in data.pairs[: max(1, learner.root_samples // 4)]]
    root = LocalSampler(trunk).sample(
        Role.ROOT,
        prompts,
        n=4,
        temperature=learner.temperature,
        max_tokens=learner.max_reply_tokens,
        seed=learner.seed,
    )
    train_reward.standardise(model, root)
    report = train_reward.report(model, data, losses, root)
    train_reward.save(model, report, out_dir)
    return report


def evaluate_again(setting: Setting, run_id: str | None, now: datetime) -> str:
    """Measures a run's candidate anew; one that still waits at the gates gets the new report.

    `run_id`: the newest run that registered a candidate, if None. Returns: its id.
    Raises: DataError for a run without a candidate; Busy; what an evaluation raises.
    """
    with turn.alone(setting):
        done = [run for run in turn.runs(setting.deployment) if run.adapter and run_id in (None, run.run_id)]
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
    """PPO from the base model on a snapshot's training prompts, sampling in memory.

    Returns: the adapter's folder. Raises: ModelError, SnapshotError, GuardError.
    """
    learner = setting.learner
    trunk = load_trunk(setting.base_dir, rank=learner.rank, seed=learner.seed)
    reward, _ = train_reward.load(trunk, reward_dir, learner.reward_uncertainty)
    loaded = snapshots.load(setting.deployment.snapshots_dir / snapshot)
    prompts = prompts_of(loaded, trunk.encoder, "train", learner.max_prompt_tokens)
    actor, ppo = LanguageActor(trunk, learner.temperature), ppo_settings(learner, learner.seed)

    def observe(metrics: StepMetrics, state: RunState) -> None:
        setting.progress("policy", state.step, ppo.steps, f"reward {metrics.reward_mean:+.2f}")

    train_policy.run(
        actor, LocalSampler(trunk), prompts, reward, ppo, train_policy.start(actor, ppo), observe
    )
    return export_adapter(trunk, Role.POLICY, out_dir)
