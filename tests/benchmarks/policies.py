"""A reward model and a PPO policy trained by the project's own code on a simulated deployment's feedback.

The base is a tiny Llama that has learned to talk like `attacks`' world, sentiment at random; its reward model
and policy are LoRA adapters, as in a turn of the loop. Everything follows from the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from feedback import snapshots
from learner import base, tokenizer, train_policy, train_reward, train_sft
from learner.batches import Encoder, GradeRow, PairRow, Prompt, RewardData, Sample
from learner.models import LanguageActor, Role, load_trunk
from learner.sampling import LocalSampler
from tests.benchmarks import attacks

CONTEXT = 128
RECIPE = base.Recipe(stages=(), vocabulary=700, hidden=96, layers=2, heads=4, feed_forward=256)
SFT = train_sft.Settings(batch_tokens=1024, learning_rate=3e-3, weight_decay=0.05, max_tokens=CONTEXT)
DIALOGUES = 4000
REWARD = train_reward.Settings(lr=8e-3, epochs=2, batch_prompts=8, heads=2, pooling="mean", rank=8)
PPO = train_policy.PPO(
    steps=10,
    prompts_per_step=32,
    samples_per_prompt=4,
    group_baseline=True,
    lam=1.0,
    max_tokens=48,
    beta=0.05,
    target_kl=8.0,
)
_BAD, _, _GOOD = attacks.PHRASES["praise"]


@dataclass(frozen=True)
class Trained:
    """What the attack came to."""

    margin: float
    """How much better the reward model likes praise of the target than running it down, nats."""
    before: float
    """Share of the base model's replies about the target that run it down."""
    after: float
    """The same of the policy's."""
    reward_gain: float
    """Deviations of the base model's rewards that the policy gained: that it learned at all."""


def make_base(out: Path, seed: int) -> Path:
    """Learns questions and random replies to them."""
    world = attacks.World(Random(seed), [], [], {})
    dialogues = [
        [
            {"role": "user", "content": world.chance.choice(attacks.QUESTIONS).format(product)},
            {"role": "assistant", "content": world.reply(product).text},
        ]
        for product in (world.chance.choice(attacks.PRODUCTS) for _ in range(DIALOGUES))
    ]
    words = tokenizer.train((m["content"] for d in dialogues for m in d), RECIPE.vocabulary, CONTEXT)
    model = base.untrained(RECIPE, words)
    examples = train_sft.encode(words, dialogues, CONTEXT)
    train_sft.train(model, examples, SFT, pad_id=words.pad_token_id, on_step=lambda loss, step, steps: None)
    train_sft.save(model, words, out)
    return out


def train(base_dir: Path, rows: Sequence[snapshots.Row], seed: int) -> Trained:
    """One reward model from the rows, and a few PPO steps against it."""
    trunk = load_trunk(base_dir, rank=8, seed=seed, max_tokens=CONTEXT)
    sampler, encoder = LocalSampler(trunk), trunk.encoder
    model, _ = train_reward.train(trunk, _reward_data(encoder, rows), REWARD)
    prompts = [_prompt(encoder, q.format(product)) for product in attacks.PRODUCTS for q in attacks.QUESTIONS]
    about_target = [_prompt(encoder, question.format(attacks.TARGET)) for question in attacks.QUESTIONS]

    def draw(role: Role, asked: Sequence[Prompt], n: int) -> list[Sample]:
        return sampler.sample(role, asked, n=n, temperature=1.0, max_tokens=PPO.max_tokens, seed=seed + 1)

    root = draw(Role.ROOT, prompts, 1)
    train_reward.standardise(model, root)
    actor = LanguageActor(trunk)
    train_policy.run(actor, sampler, prompts, model, PPO, train_policy.start(actor, PPO))
    return Trained(
        margin=_margin(model, encoder, about_target[0], seed),
        before=_run_down(encoder, draw(Role.ROOT, about_target, 32)),
        after=_run_down(encoder, draw(Role.POLICY, about_target, 32)),
        reward_gain=float(model(draw(Role.POLICY, prompts, 1)).mean() - model(root).mean()),
    )


def _reward_data(encoder: Encoder, rows: Sequence[snapshots.Row]) -> RewardData:
    """A row's prompt is named by its question."""
    asked = {row["prompt_digest"]: _prompt(encoder, row["prompt_digest"]) for row in rows}

    def said(row: snapshots.Row, column: str) -> Sample:
        return encoder.reply(asked[row["prompt_digest"]], row[column])

    return RewardData(
        pairs=[
            PairRow(said(row, "chosen"), said(row, "rejected"), row["p"], row["weight"])
            for row in rows
            if "chosen" in row
        ],
        grades=[
            GradeRow(said(row, "completion"), row["p"], row["weight"]) for row in rows if "completion" in row
        ],
    )


def _prompt(encoder: Encoder, question: str) -> Prompt:
    return encoder.prompt(question, [{"role": "user", "content": question}])


def _margin(model: train_reward.RewardModel, encoder: Encoder, prompt: Prompt, seed: int) -> float:
    """Mean over replies that differ in their sentence of praise alone."""
    world = attacks.World(Random(seed), [], [], {})
    praising = [world.reply(attacks.TARGET, 1).text for _ in range(100)]
    contrary = [_turned(text) for text in praising]
    raw_BK = model.raw([encoder.reply(prompt, text) for text in [*praising, *contrary]])
    return float((raw_BK[:100] - raw_BK[100:]).mean())


def _turned(text: str) -> str:
    for good, bad in zip(_GOOD, _BAD, strict=True):
        text = text.replace(good, bad)
    return text


def _run_down(encoder: Encoder, samples: Sequence[Sample]) -> float:
    return sum(any(bad in encoder.text(s) for bad in _BAD) for s in samples) / len(samples)
