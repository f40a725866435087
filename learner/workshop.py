"""A single stage by hand: a policy from a reward model."""

from pathlib import Path

from feedback import snapshots
from learner import train_policy, train_reward
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.sampling import LocalSampler
from learner.train_policy import RunState, StepMetrics
from learner.turn import Setting, ppo_settings, prompts_of


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
