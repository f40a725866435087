"""Models and data of `bench-learner`: the embedded base, a large vocabulary, what a GPU has room for."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.benchmarks.learner_task import Task, dtype

LARGE_VOCABULARY = 151_936
REWARD_STEPS = 6


@dataclass(frozen=True)
class Shape:
    name: str
    make: Callable[[Path], Task]
    """Writes models to a folder."""
    judged: bool = False
    """Whether there is something to learn: random weights' replies are all alike."""
    peer: bool = True
    """Whether TRL's side fits: it holds three trunks and trains the critic's whole."""


def embedded(folder: Path) -> Task:
    """The embedded base on its own dialogues; replies end by themselves."""
    from feedback.config import Deployment
    from learner import base
    from learner.batches import Prompt
    from learner.corpus import dialogues
    from learner.models import load_trunk
    from ops.base_model import embedded_path

    cache = Path(os.environ.get("RATCHET_DEPLOYMENT_CACHE_DIR", "build/cache"))
    deployment = Deployment(cache_dir=cache)
    model = embedded_path(deployment)
    if not model.is_dir():
        model = base.ensure(deployment)
    encoder = load_trunk(model, rank=1, seed=0).encoder
    said = {
        encoder.prompt("", messages[:-1]): encoder.reply(Prompt("", ()), messages[-1]["content"]).ids
        for messages in dialogues(2000, seed=5)
    }
    short = {prompt.ids: reply for prompt, reply in said.items() if len(prompt.ids) + len(reply) <= 128}
    kept, replies = [list(ids) for ids in short], [list(ids) for ids in short.values()]
    task = Task(
        base=str(model),
        reward=str(folder / "reward"),
        prompts=kept[:256],
        heldout=kept[256:352],
        pairs=[],
        targets=[],
        eos_id=encoder.eos_ids[0],
        steps=4,
    )
    pairs = list(zip(kept, replies, replies[1:], strict=False))[384 : 384 + REWARD_STEPS * task.pair_batch]
    return with_reward(replace(task, pairs=[list(pair) for pair in pairs]))


def random_weights(config: Any, sizes: dict[str, int]) -> Callable[[Path], Task]:
    """A model that knows nothing, asked made-up prompts; hardly a reply ends before its limit."""

    def make(folder: Path) -> Task:
        from transformers import AutoModelForCausalLM

        from tests.engines import byte_tokenizer

        model, tokenizer, rng = folder / "base", byte_tokenizer(), Random(1)
        if not model.is_dir():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config(), dtype=dtype()).save_pretrained(model)
            tokenizer.save_pretrained(model)

        def made_up(length: int) -> list[int]:
            return [rng.randrange(10, len(tokenizer)) for _ in range(length)]

        task = Task(
            base=str(model),
            reward=str(folder / "reward"),
            prompts=[],
            heldout=[],
            pairs=[],
            targets=[],
            eos_id=tokenizer.eos_token_id,
            **sizes,
        )
        longest = task.reply_tokens
        task = replace(
            task,
            prompts=[made_up(rng.randint(longest // 2, longest)) for _ in range(2 * task.batch)],
            pairs=[
                [made_up(rng.randint(longest // 2, longest)) for _ in range(3)]
                for _ in range(REWARD_STEPS * task.pair_batch)
            ],
        )
        return with_reward(task)

    return make


def with_reward(task: Task) -> Task:
    """Writes the reward: the trunk with a random head, scaled to deviation 1 on the trunk's own replies."""
    from transformers import AutoModelForSequenceClassification

    from learner import train_reward
    from learner.batches import Prompt
    from learner.models import Role, linear_modules, load_trunk
    from learner.sampling import LocalSampler

    trunk = load_trunk(Path(task.base), rank=1, seed=0)
    model = train_reward.begin(trunk, train_reward.Settings(heads=1, rank=1, seed=3))
    asked = [Prompt(str(i), tuple(ids)) for i, ids in enumerate(task.prompts[:16])]
    drawn = LocalSampler(trunk).sample(
        Role.ROOT, asked, n=2, temperature=1.0, max_tokens=task.reply_tokens, seed=0
    )
    train_reward.standardise(model, drawn)
    scored = AutoModelForSequenceClassification.from_pretrained(task.base, num_labels=1, dtype=dtype())
    with torch.no_grad():
        scored.score.weight.copy_(model.heads.weight_KH / model.heads.deviation_K)
    scored.save_pretrained(task.reward)
    return replace(task, targets=linear_modules(trunk.causal_lm))


def tiny_with_large_vocabulary() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        tie_word_embeddings=True,
        **BYTES,
    )


def qwen(hidden: int, intermediate: int, heads: int, key_value_heads: int) -> Callable[[], Any]:
    """The shapes of Qwen 2.5's dense models of 28 layers."""

    def config() -> Any:
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=LARGE_VOCABULARY,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=28,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            **BYTES,
        )

    return config


BYTES: dict[str, int] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {"batch": 8, "micro": 8, "reply_tokens": 32, "steps": 3}
LARGE = {"batch": 64, "micro": 8, "reply_tokens": 256, "steps": 4}

CPU_SHAPES = (
    Shape("embedded base", embedded, judged=True),
    Shape("150k vocabulary", random_weights(tiny_with_large_vocabulary, SMALL)),
)
GPU_SHAPES = (
    *CPU_SHAPES,
    Shape("1.5B random", random_weights(qwen(1536, 8960, 12, 2), LARGE)),
    Shape("7B random", random_weights(qwen(3584, 18944, 28, 4), LARGE), peer=False),
)
