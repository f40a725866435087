"""Token sequences and how they are batched: masks from lengths, right padding, micro-batches by token budget.

Legend: B samples, L prompt and response token, T response token, N response tokens of all samples in a row.
Pad ids are never looked at: a pad id may well be a real token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from feedback.events import Message
from learner.errors import DataError

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt; `digest` groups whatever was said in reply to it."""

    digest: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled reply as token ids. The end-of-text token, where there is one, is part of it."""

    prompt: Prompt
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """The sampler's log-probability of each id at the sampling temperature (nats)."""
    finish: Finish = "stop"
    version: int = 0
    """Counts the policy's weights; the one that drew this sample."""

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.ids)


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair as token ids, ready for the reward model."""

    chosen: Sample
    rejected: Sample
    p: float = 1.0
    weight: float = 1.0
    kind: str = "comparison"
    dimensions: tuple[tuple[str, float], ...] = ()
    """Name and probability that `chosen` is the better one under it, 0..1; those that raters told apart."""

    @property
    def digest(self) -> str:
        return self.chosen.prompt.digest

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


@dataclass(frozen=True, slots=True)
class GradeRow:
    """An unpaired grade as token ids, ready for the reward model."""

    reply: Sample
    p: float
    weight: float = 1.0
    kind: str = "thumb"
    dimensions: tuple[tuple[str, float], ...] = ()
    """Name and probability that the reply is good under it; those that the rater told apart."""

    @property
    def digest(self) -> str:
        return self.reply.prompt.digest

    @property
    def length(self) -> int:
        return self.reply.length


@dataclass(frozen=True, slots=True)
class Target:
    """A reply to imitate: a user's edit, or the best of several samples."""

    reply: Sample
    weight: float = 1.0

    @property
    def digest(self) -> str:
        return self.reply.prompt.digest


@dataclass(frozen=True)
class RewardData:
    """What a reward model is trained and judged on."""

    pairs: list[PairRow] = field(default_factory=list)
    grades: list[GradeRow] = field(default_factory=list)
    heldout_pairs: list[PairRow] = field(default_factory=list)
    heldout_grades: list[GradeRow] = field(default_factory=list)


class Batch(NamedTuple):
    """Samples side by side. Response token t of row b is predicted at `ids_BL[b, prompt_B[b] + t − 1]`."""

    ids_BL: Tensor
    prompt_B: Tensor
    response_B: Tensor


def collate(samples: Sequence[Sample], pad_id: int = 0) -> Batch:
    """Samples to one right-padded batch."""
    width = max(s.length for s in samples)
    rows = [[*s.prompt.ids, *s.ids] + [pad_id] * (width - s.length) for s in samples]
    return Batch(
        torch.tensor(rows),
        torch.tensor([len(s.prompt.ids) for s in samples]),
        torch.tensor([len(s.ids) for s in samples]),
    )


def length_mask(lengths_B: Tensor, width: int | None = None) -> Tensor:
    """mask_BT: True on the first `lengths_B` columns of each row."""
    width = int(lengths_B.max()) if width is None else width
    return torch.arange(width, device=lengths_B.device) < lengths_B[:, None]


def response_mask(samples: Sequence[Sample]) -> Tensor:
    """mask_BT of the samples' responses, as wide as the longest."""
    return length_mask(torch.tensor([len(s.ids) for s in samples]))


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of different length to one float tensor, zeros on the right."""
    width = max(len(r) for r in rows)
    return torch.tensor([[*r] + [0.0] * (width - len(r)) for r in rows], dtype=torch.float32)


def micro_batches(lengths: Sequence[int], token_budget: int, ranks: int = 1) -> list[list[int]]:
    """Indices grouped by similar length: rows × longest row stays within the budget (one row always fits).
    With several ranks that is each rank's part of a group.

    Which rows share a group never changes a gradient, since every loss is divided by a global denominator.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and len(groups[-1]) < ranks * max(1, token_budget // lengths[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


R = TypeVar("R", PairRow, GradeRow, Target)


def by_prompt(rows: Sequence[R]) -> dict[str, list[R]]:
    """Rows of one prompt together, prompts in order of first appearance."""
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(row.digest, []).append(row)
    return groups


def prompt_weights(rows: Sequence[R]) -> list[float]:
    """The rows' weights so that no prompt weighs more than 1: w / max(1, Σ w over the prompt's rows).

    A prompt asked a hundred times counts once; one with a single weak signal keeps its weak weight.
    """
    totals: dict[str, float] = {}
    for row in rows:
        totals[row.digest] = totals.get(row.digest, 0.0) + row.weight
    return [row.weight / max(1.0, totals[row.digest]) for row in rows]


@dataclass(frozen=True)
class Encoder:
    """Messages to token ids by a tokenizer's chat template, exactly as the serving engine renders them."""

    tokenizer: Any
    eos_ids: tuple[int, ...]
    """Every id that ends a reply; the first one is appended to replies that come as text."""
    max_tokens: int = 1024
    """Longest prompt plus reply; a longer prompt loses its first tokens."""

    def prompt(self, digest: str, messages: Sequence[Message]) -> Prompt:
        """Raises: DataError when the template refuses the messages."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, ValueError, TypeError, KeyError) as e:
            raise DataError(f"prompt {digest[:12]}: the chat template refuses it: {e}") from e
        return Prompt(digest, tuple(self._ids(text)))

    def reply(self, prompt: Prompt, text: str) -> Sample:
        """A reply that came as text: its tokens and the end-of-text token."""
        ids = (*self._ids(text), self.eos_ids[0])
        keep = max(self.max_tokens - len(ids), 1)
        return Sample(Prompt(prompt.digest, prompt.ids[-keep:]), tuple(ids[: self.max_tokens - 1]))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids  # `verbose` would warn of long texts, which are cut here

    def text(self, sample: Sample) -> str:
        return str(self.tokenizer.decode(list(sample.ids), skip_special_tokens=True))


Scorer = Callable[[Sequence[Sample]], Tensor]
"""Samples to scores_B, in deviations of the root reference's rewards."""
