"""Single stages by hand: a reward model from a file of pairs, a policy from a reward model."""

from pathlib import Path
from tempfile import TemporaryDirectory

from feedback import snapshots
from learner import methods, pair_files, train_reward
from learner.models import LanguageActor, Role, export_adapter, load_trunk
from learner.sampling import LocalSampler
from learner.train_reward import RewardReport
from learner.turn import Setting, material, reward_settings


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
