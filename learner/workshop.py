"""Single stages by hand: a reward model from a file of pairs, a policy from a reward model."""

from pathlib import Path

from feedback import snapshots
from learner import pair_files, train_policy, train_reward
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.sampling import LocalSampler
from learner.train_policy import RunState, StepMetrics
from learner.train_reward import RewardReport
from learner.turn import Setting, ppo_settings, prompts_of, reward_settings


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
