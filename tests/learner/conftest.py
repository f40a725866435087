"""What the learner's tests share: a trunk over the tiny base model, and prompts for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from learner.batches import Prompt
from learner.models import Trunk, load_trunk


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_trunk(tiny_base: Path) -> Callable[[], Trunk]:
    return lambda: load_trunk(tiny_base, rank=4, seed=0, max_tokens=256)


@pytest.fixture
def trunk(fresh_trunk: Callable[[], Trunk]) -> Trunk:
    """The tiny base with a fresh policy adapter of rank 4."""
    return fresh_trunk()


@pytest.fixture
def prompts(trunk: Trunk) -> list[Prompt]:
    """Eight prompts of different length."""
    texts = [
        "Hi",
        "Where is my order?",
        "Refund, please",
        "a b c d e f",
        "Why?",
        "Bye now",
        "Help me",
        "12345",
    ]
    return [trunk.encoder.prompt(f"{i:032x}", [{"role": "user", "content": t}]) for i, t in enumerate(texts)]
