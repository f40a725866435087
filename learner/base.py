"""The embedded base model: a small Llama that chats about Perch, made once from a generated corpus."""

import fcntl
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from feedback.config import Deployment
from feedback.events import Message
from learner import corpus, tokenizer, train_sft
from learner.errors import ModelError
from ops.base_model import EMBEDDED, embedded_path, verified
from ops.errors import NoBaseModel

CONTEXT = 1024
"""Tokens of a prompt and its reply."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One training stage: so many dialogues of a mix."""

    name: str
    dialogues: int
    mix: corpus.Mix
    settings: train_sft.Settings


LESSONS = Stage(
    name="answers",
    dialogues=10_500,
    mix=corpus.LESSONS,
    settings=train_sft.Settings(batch_tokens=512, learning_rate=3e-3, weight_decay=0.05, max_tokens=CONTEXT),
)
CONVERSATIONS = Stage(
    name="conversations",
    dialogues=9_000,
    mix=corpus.MIX,
    settings=train_sft.Settings(batch_tokens=768, learning_rate=2e-3, weight_decay=0.05, max_tokens=CONTEXT),
)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What the embedded model is made of.

    It learns bare answers first: in them nearly every token hangs on the question, and a model from nothing
    learns to look there in a fifth of the tokens that whole conversations take (docs/base-model.md).
    """

    stages: tuple[Stage, ...] = (LESSONS, CONVERSATIONS)
    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 3
    heads: int = 6
    feed_forward: int = 512
    initial: float = 0.06
    """Standard deviation of the first weights; 0.02, the usual, leaves so narrow a model blind for long."""
    seed: int = 17


def ensure(deployment: Deployment, *, progress: bool = True) -> Path:
    """The base model's folder; makes the embedded one if it is not there yet (minutes on two cores).

    Processes that ask at the same time wait for the first. Raises: ModelError for a configured folder that is
    no model directory.
    """
    if deployment.base_model != EMBEDDED:
        try:
            return verified(Path(deployment.base_model))
        except NoBaseModel as e:
            raise ModelError(str(e)) from e
    path = embedded_path(deployment)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            make(path, Recipe(), progress=progress)
    return path


def make(out: Path, recipe: Recipe, *, progress: bool) -> None:
    """Generate the corpus, learn a tokenizer from it, train the model, write the folder whole."""
    corpora = [
        list(corpus.dialogues(stage.dialogues, seed=recipe.seed + n, mix=stage.mix))
        for n, stage in enumerate(recipe.stages)
    ]
    words = tokenizer.train(_texts(corpora), recipe.vocabulary, CONTEXT)
    model = untrained(recipe, words)
    for n, (stage, dialogues) in enumerate(zip(recipe.stages, corpora, strict=True), start=1):
        examples = train_sft.encode(words, dialogues, CONTEXT)
        with train_sft.shown(f"base model, {n} of {len(corpora)}: {stage.name}", progress) as on_step:
            train_sft.train(model, examples, stage.settings, pad_id=words.pad_token_id, on_step=on_step)
    train_sft.save(model, words, out)


def untrained(recipe: Recipe, words: Any) -> LlamaForCausalLM:
    """The model with weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=recipe.initial,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def _texts(corpora: list[list[list[Message]]]) -> list[str]:
    return [message["content"] for dialogues in corpora for messages in dialogues for message in messages]
