"""A single stage by hand: a policy from a reward model."""

from pathlib import Path
from tempfile import TemporaryDirectory

from feedback import snapshots
from learner import methods, train_reward
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.sampling import LocalSampler
from learner.turn import Setting, material


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

    found = material(loaded, trunk.encoder, learner)
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
            )
        )
    return export_adapter(trunk, Role.POLICY, out_dir)
