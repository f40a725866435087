"""The embedded base model: a small Llama that chats about Perch, made once from a generated corpus."""

import fcntl
import itertools
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


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What the embedded model is made of."""

    dialogues: int = 13_000
    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    seed: int = 17
    settings: train_sft.Settings = train_sft.Settings(
        batch_tokens=3072, learning_rate=4e-3, weight_decay=0.05, max_tokens=CONTEXT, seed=17
    )


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
    dialogues = list(corpus.dialogues(recipe.dialogues, recipe.seed))
    words = tokenizer.train(_texts(dialogues), recipe.vocabulary, CONTEXT)
    model = untrained(recipe, words)
    examples = train_sft.encode(words, dialogues, CONTEXT)
    with train_sft.shown("making the base model", progress) as on_step:
        train_sft.train(model, examples, recipe.settings, pad_id=words.pad_token_id, on_step=on_step)
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
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def _texts(dialogues: list[list[Message]]) -> list[str]:
    return [message["content"] for message in itertools.chain.from_iterable(dialogues)]
