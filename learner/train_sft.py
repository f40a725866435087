"""Supervised fine-tuning on dialogues: stage one of RLHF, for the embedded model and for any other.

The loss covers the assistants' tokens only, found by where their text lies (never by token ids), and every
optimizer step divides by all the assistants' tokens of its batch. Same data, seed and machine: same weights.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from feedback.events import Message
from learner.compatibility import open_base, output_logits
from learner.distributed import add_up_gradients, dealt, is_main, total
from learner.errors import DataError, ModelError
from ops.base_model import verified
from ops.errors import NoBaseModel

IGNORED = -100
"""Label of a token that is not learned from."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to fine-tune."""

    epochs: int = 1
    """Passes over the dialogues."""
    batch_tokens: int = 2048
    """Tokens per optimizer step, padding included."""
    learning_rate: float = 2e-5
    """Peak, reached after `warmup_fraction` of the steps; a cosine takes it to a fiftieth."""
    warmup_fraction: float = 0.05
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 0.01
    """Of matrices; norms and biases have none."""
    max_tokens: int = 1024
    """Longer dialogues are refused."""
    seed: int = 0
    """Of the order of the batches."""


DEFAULTS = Settings()


class Example(msgspec.Struct, frozen=True):
    """One dialogue as tokens; `labels` holds IGNORED outside the assistants' replies."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


Progression = Callable[[float, int, int], None]
"""Called after each step with loss (nats per token), steps done and steps in all."""


def finetune(
    base: Path,
    data: Path,
    out: Path,
    *,
    settings: Settings = DEFAULTS,
    progress: bool = True,
) -> Path:
    """Fine-tune the causal LM in `base` on a JSONL of `{"messages": [...]}` and write it to `out`.

    Returns: `out`.
    Raises: ModelError when `base` is no model directory or its chat template cannot be used; DataError with
    the line of the first bad row; FileExistsError when `out` is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name a new folder")
    model, tokenizer = load(base)
    examples = encode(tokenizer, read_jsonl(data), settings.max_tokens)
    with shown("fine-tuning", progress) as on_step:
        train(model, examples, settings, pad_id=tokenizer.pad_token_id or 0, on_step=on_step)
    save(model, tokenizer, out)
    return out


def train(
    model: torch.nn.Module,
    examples: Sequence[Example],
    settings: Settings,
    *,
    pad_id: int,
    on_step: Progression,
) -> float:
    """The loop: length-bucketed batches, AdamW, warm-up and cosine, on the model's device.

    The processes of a launch share each batch out and stay equal. Returns the last step's loss in nats.
    """
    batches = [b for epoch in range(settings.epochs) for b in bucketed(examples, settings, epoch)]
    optimizer = torch.optim.AdamW(
        _groups(model, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.95), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(batches), settings))
    loss_nats, device = math.nan, next(model.parameters()).device
    model.train()
    for step, batch in enumerate(batches, start=1):
        share = dealt(batch)
        tensors = (x.to(device) for x in collate([examples[i] for i in share.rows], pad_id))
        loss = share.weight * summed_loss(model, *tensors) / learned_tokens(examples, batch).to(device)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        add_up_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss_nats = total(loss.detach()).item()
        on_step(loss_nats, step, len(batches))
    model.eval()
    return loss_nats


def learned_tokens(examples: Sequence[Example], batch: Sequence[int]) -> torch.Tensor:
    """The step's denominator: how many tokens of all its dialogues are learned from."""
    return torch.tensor(sum(label != IGNORED for i in batch for label in examples[i].labels))


def summed_loss(
    model: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy summed over the labelled tokens (nats): the state at t-1 predicts token t.

    No other token's logits are computed: over a large vocabulary they would be most of the memory.
    """
    hidden_BTH = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    learned_BT = targets_BT != IGNORED
    logits_NV = output_logits(model, hidden_BTH[:, :-1][learned_BT])
    return F.cross_entropy(logits_NV, targets_BT[learned_BT], reduction="sum")


def collate(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_BT, labels_BT and mask_BT (1 on real tokens, from lengths), padded on the right."""
    width = max(len(e.ids) for e in examples)
    ids = [[*e.ids, *[pad_id] * (width - len(e.ids))] for e in examples]
    labels = [[*e.labels, *[IGNORED] * (width - len(e.ids))] for e in examples]
    lengths_B1 = torch.tensor([[len(e.ids)] for e in examples])
    return torch.tensor(ids), torch.tensor(labels), (torch.arange(width)[None] < lengths_B1).long()


def bucketed(examples: Sequence[Example], settings: Settings, epoch: int) -> list[list[int]]:
    """Indices in batches of like length, at most `batch_tokens` with padding (at least one row), shuffled."""
    rng = Random(f"{settings.seed}-{epoch}")
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), rng.random()))
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(examples[i].ids) > settings.batch_tokens:
            batches.append([])
        batches[-1].append(i)
    rng.shuffle(batches)
    return batches


def encode(tokenizer: Any, dialogues: Sequence[list[Message]], max_tokens: int) -> list[Example]:
    """Dialogues as token ids, labelled where an assistant speaks (its end token included).

    Raises: DataError for a dialogue that is too long or has no reply; ModelError for a chat template that
    rewrites what was said before.
    """
    rendered = [_rendered(tokenizer, messages, row) for row, messages in enumerate(dialogues, start=1)]
    encoded = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    examples = []
    for row, ((_, spans), ids, offsets) in enumerate(
        zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True), start=1
    ):
        if len(ids) > max_tokens:
            raise DataError(f"dialogue {row} has {len(ids)} tokens, more than the {max_tokens} allowed")
        spoken = [any(start <= at < end for start, end in spans) for at, _ in offsets]
        labels = (i if said else IGNORED for i, said in zip(ids, spoken, strict=True))
        examples.append(Example(tuple(ids), tuple(labels)))
    return examples


def read_jsonl(path: Path) -> list[list[Message]]:
    """The dialogues of a JSONL file: lines of `{"messages": [{"role", "content"}, ...]}`, blank ones skipped.

    Raises: DataError naming the file, the line and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: {e}") from e
    dialogues = [
        _messages(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()
    ]
    if not dialogues:
        raise DataError(f"{path} holds no dialogue")
    return dialogues


def load(base: Path) -> tuple[Any, Any]:
    """Model (float32, on a GPU where there is one) and tokenizer of a directory; nothing is fetched.

    Raises: ModelError saying what is missing.
    """
    try:
        model, tokenizer = open_base(verified(base), torch.float32)
    except NoBaseModel as e:
        raise ModelError(str(e)) from e
    if not tokenizer.is_fast:
        raise ModelError(
            f"base model {base} has a slow tokenizer, which cannot tell where a reply's tokens lie"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write both to `out` in one rename, so that a folder of that name is always whole; rank 0 alone does."""
    if not is_main():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def shown(what: str, progress: bool) -> Iterator[Progression]:
    """A progress bar with the loss and the time left on stderr; silent when `progress` is False."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(what, total=None, loss=math.nan)
        yield lambda loss, step, total: bar.update(task, completed=step, total=total, loss=loss)


def _rendered(tokenizer: Any, messages: list[Message], row: int) -> tuple[str, list[tuple[int, int]]]:
    """The dialogue as the chat template writes it, and where in it (characters) the replies lie."""

    def render(until: int, prompt: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(messages[:until], tokenize=False, add_generation_prompt=prompt)
        )

    text = render(len(messages))
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(i, prompt=True)
        through = render(i + 1) if i + 1 < len(messages) else text
        if not (through.startswith(before) and text.startswith(through)):
            raise ModelError(
                f"dialogue {row}: the chat template rewrites earlier turns, so replies cannot be found"
            )
        spans.append((len(before), len(through)))
    if not spans:
        raise DataError(f"dialogue {row} has no assistant message to learn from")
    return text, spans


def _messages(line: str, where: str) -> list[Message]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: no JSON ({e.msg}, column {e.colno})") from e
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where}: a row is {{"messages": [...]}} with at least one message')
    for n, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: message {n} has no role")
        if not isinstance(message.get("content"), str):
            raise DataError(f"{where}: message {n} has no text in `content`")
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(f"{where}: no assistant message to learn from")
    return messages


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int, settings: Settings) -> float:
    """Share of the peak learning rate at a step (counted from 0)."""
    warmup = max(1, round(steps * settings.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * done))
