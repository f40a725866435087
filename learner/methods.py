"""The ways to train the policy, one word each: all start from the current adapter, read the same snapshot and
the same reward model, and leave the same kind of candidate. `docs/methods.md` says which to choose when.

    ppo, rloo    samples of the policy itself, scored by the reward model
    best_of_n    the same, once: the best of n samples to each prompt are imitated
    dpo, kto     pairs, and unpaired grades, without sampling (TRL)
    sft          users' edits are imitated

A method trains the actor's policy adapter in place; it writes no candidate and decides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from learner import checkpoints, imitation, train_policy, train_preferences
from learner.batches import Prompt, RewardData, Sample, Scorer, Target
from learner.config import Learner, Method
from learner.errors import MissingData
from learner.imitation import FitMetrics
from learner.metric_lines import MetricLines
from learner.models import LanguageActor, Role
from learner.sampling import Sampler
from learner.train_policy import PPO, RunState, StepMetrics, draw_prompts, less_missing_ends, step_seed
from learner.verification import Verify, unverified

Metrics = StepMetrics | FitMetrics
Watch = Callable[[Metrics, int], None]
"""Called after each step with its figures and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What there is to learn from, as token ids; training rows only, but for `data`'s held-out ones."""

    prompts: list[Prompt]
    data: RewardData
    edits: list[Target]
    problems: list[Prompt] = field(default_factory=list)
    """Prompts whose replies can be checked."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One policy to train."""

    actor: LanguageActor
    """With the adapter to go on from as its policy."""
    sampler: Sampler
    scorer: Scorer
    material: Material
    learner: Learner
    seed: int
    fingerprint: str
    """Of everything that decides the weights: checkpoints of another one are refused."""
    folder: Path
    """`metrics.jsonl` and `checkpoints/` go here."""
    watch: Watch = lambda metrics, steps: None
    verify: Verify = unverified
    """Checks replies to problems."""
    problem_fraction: float = 0.0
    """Share of the prompts that are problems, for the methods that sample."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(task: Task) -> str:
    """Trains the policy by the configured method. Returns: why it ended before its last step, or nothing.

    ppo, rloo, sft and best_of_n go on from the last checkpoint, dpo and kto begin again; on a CPU all end
    with the very weights of a run that was never stopped.
    Raises: MissingData, MissingExtra, GuardError, SamplingError, CheckpointError.
    """
    return METHODS[task.learner.method](task)


def require(method: Method, material: Material) -> None:
    """Raises: MissingData, MissingExtra, before anything dear is done."""
    if method in ("dpo", "kto"):
        train_preferences.require_trl()
    if method == "dpo" and not train_preferences.preferring(material.data.pairs):
        raise MissingData(f"method {method!r} learns from pairs: no training pair prefers one reply")
    if method == "kto" and not all(graded := train_preferences.good_and_bad(material.data.grades)):
        raise MissingData(
            f"method {method!r} learns from good and bad grades (thumbs, ratings): there are "
            f"{graded[0]} good and {graded[1]} bad ones to train on"
        )
    if method == "sft" and not any(target.weight > 0 for target in material.edits):
        raise MissingData(f"method {method!r} learns from users' edits: there is none to train on")


def policy_gradient(task: Task) -> str:
    """PPO or RLOO, as the settings have it."""
    ppo = ppo_settings(task)
    state = train_policy.start(task.actor, ppo)
    checkpoints.restore(task.checkpoints, task.actor, state, task.fingerprint)
    lines = MetricLines(task.folder / "metrics.jsonl", state.step)

    def observe(metrics: StepMetrics, state: RunState) -> None:
        record(task, lines, metrics, state, ppo.steps)

    material = task.material
    return train_policy.run(
        task.actor,
        task.sampler,
        material.prompts,
        task.scorer,
        ppo,
        state,
        observe,
        material.problems,
        task.verify,
    ).stopped


def record(task: Task, lines: MetricLines, metrics: Metrics, state: RunState, steps: int) -> None:
    """The step's line, its checkpoint where one is due, and whoever watches."""
    lines.add(metrics)
    task.watch(metrics, steps)
    if state.step % task.learner.checkpoint_every == 0:
        checkpoints.save(task.checkpoints, task.actor, state, task.fingerprint)


def figures(metrics: Metrics) -> str:
    """A step in a few words."""
    if isinstance(metrics, FitMetrics):
        return f"loss {metrics.loss:.3f}"
    checked = "".join(f", {kind} {rate:.0%}" for kind, (rate, _, _) in sorted(metrics.verified.items()))
    return f"reward {metrics.reward_mean:+.2f}, KL {metrics.kl_root_nats:.1f}{checked}"


def ppo_settings(task: Task) -> PPO:
    learner = task.learner
    return PPO(
        steps=learner.policy_steps,
        prompts_per_step=learner.prompts_per_step,
        samples_per_prompt=learner.samples_per_prompt,
        advantages="rloo" if learner.method == "rloo" else "gae",
        group_baseline=learner.group_baseline,
        lam=learner.gae_lambda,
        epochs=learner.epochs,
        minibatches=learner.minibatches,
        policy_lr=learner.policy_lr,
        value_lr=learner.value_lr,
        beta=learner.beta,
        target_kl=learner.target_kl_nats,
        kl_budget=learner.kl_budget_nats,
        missing_eos_penalty=learner.missing_eos_penalty,
        temperature=learner.temperature,
        max_tokens=learner.max_reply_tokens,
        token_budget=learner.token_budget,
        seed=task.seed,
        problem_fraction=task.problem_fraction,
    )


def edits(task: Task) -> str:
    """Imitates users' edits, by their weight."""
    return imitate(task, task.material.edits)


def best_of_n(task: Task) -> str:
    """Rejection-sampling fine-tuning, one round: the replies that score highest are imitated.

    The best of n is at most log n − (n − 1)/n nats from what it was chosen from (n = 16: 1.8), whatever the
    reward. Stopped, it draws the same replies again before it goes on.   Source: arXiv:2304.06767 (RAFT).
    """
    return imitate(task, [Target(sample) for sample in winners(task)])


def winners(task: Task) -> list[Sample]:
    """The best reply to each prompt, as many samples in all as PPO would draw."""
    learner, ppo = task.learner, replace(ppo_settings(task), samples_per_prompt=1)
    wanted = learner.policy_steps * learner.prompts_per_step * learner.samples_per_prompt // learner.best_of
    task.sampler.publish(Role.POLICY)
    kept: list[Sample] = []
    for step in range(max(1, wanted // learner.prompts_per_step)):
        samples = task.sampler.sample(
            Role.POLICY,
            draw_prompts(task.material.prompts, ppo, step, task.material.problems),
            n=learner.best_of,
            temperature=learner.temperature,
            max_tokens=learner.max_reply_tokens,
            seed=step_seed(task.seed, step),
        )
        mixed_B = task.verify(samples).mixed(task.scorer(samples))
        scores_B = less_missing_ends(mixed_B, samples, learner.missing_eos_penalty)
        best_P = scores_B.view(-1, learner.best_of).argmax(dim=1).tolist()
        kept += [samples[place * learner.best_of + best] for place, best in enumerate(best_P)]
    return kept


def imitate(task: Task, targets: list[Target]) -> str:
    learner = task.learner
    settings = imitation.Settings(
        lr=learner.policy_lr,
        epochs=learner.fit_epochs,
        batch_rows=learner.fit_batch_rows,
        token_budget=learner.token_budget,
        seed=task.seed,
    )
    state = imitation.start(task.actor, settings)
    checkpoints.restore(task.checkpoints, task.actor, state, task.fingerprint)
    lines = MetricLines(task.folder / "metrics.jsonl", state.step)

    def observe(metrics: FitMetrics, state: RunState, steps: int) -> None:
        record(task, lines, metrics, state, steps)

    return imitation.run(task.actor, targets, settings, state, observe).stopped


def dpo(task: Task) -> str:
    train_preferences.dpo(
        task.actor.trunk, task.material.data.pairs, preference_settings(task), from_the_start(task)
    )
    return ""


def kto(task: Task) -> str:
    train_preferences.kto(
        task.actor.trunk, task.material.data.grades, preference_settings(task), from_the_start(task)
    )
    return ""


def preference_settings(task: Task) -> train_preferences.Settings:
    learner = task.learner
    return train_preferences.Settings(
        lr=learner.policy_lr,
        beta=learner.preference_beta,
        epochs=learner.fit_epochs,
        batch_rows=learner.fit_batch_rows,
        token_budget=learner.token_budget,
        seed=task.seed,
    )


def from_the_start(task: Task) -> Callable[[FitMetrics, int], None]:
    lines = MetricLines(task.folder / "metrics.jsonl", 0)

    def observe(metrics: FitMetrics, steps: int) -> None:
        lines.add(metrics)
        task.watch(metrics, steps)

    return observe


METHODS: dict[Method, Callable[[Task], str]] = {
    "ppo": policy_gradient,
    "rloo": policy_gradient,
    "dpo": dpo,
    "kto": kto,
    "sft": edits,
    "best_of_n": best_of_n,
}
