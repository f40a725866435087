"""A base model that can be made better in seconds: whatever it is asked, it says good or bad."""

from pathlib import Path
from random import Random

from feedback.events import Message
from learner.config import Learner
from tests.engines import make_tiny_base

GOOD, BAD = "It is good.", "It is bad."
THINGS = "apple pear plum fig lemon grape melon peach cherry mango onion potato carrot leek bean".split()
QUALITIES = "ripe sweet fresh".split()
QUESTIONS = [f"Is the {thing} {quality}?" for thing in THINGS for quality in QUALITIES]
CONTEXT = 256
LEARNER = Learner(
    rank=4,
    max_reply_tokens=16,
    reward_lr=1e-2,
    reward_epochs=8,
    reward_heads=2,
    root_samples=32,
    policy_steps=6,
    policy_lr=4e-3,
    prompts_per_step=8,
    samples_per_prompt=4,
    checkpoint_every=2,
    eval_prompts=16,
    eval_samples=4,
)
"""A turn of about four seconds whose candidate is better beyond doubt."""


def make_toy_base(folder: Path) -> Path:
    """The tiny model, fine-tuned until it answers in words: as often good as bad, whatever it is asked."""
    from learner import train_sft

    model, tokenizer = train_sft.load(make_tiny_base(folder / "untrained"))
    chance = Random(5)
    dialogues = [_dialogue(chance.choice(QUESTIONS), chance.choice((GOOD, BAD))) for _ in range(400)]
    examples = train_sft.encode(tokenizer, dialogues, CONTEXT)
    settings = train_sft.Settings(epochs=9, batch_tokens=1024, learning_rate=1e-2, max_tokens=CONTEXT)
    train_sft.train(
        model, examples, settings, pad_id=tokenizer.pad_token_id, on_step=lambda loss, step, steps: None
    )
    train_sft.save(model, tokenizer, folder / "toy")
    return folder / "toy"


def _dialogue(question: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
