"""The model behind the transformers engine: one thread, one batch of one adapter at a time.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from ops.base_model import attention_kernel


@dataclass(frozen=True)
class Sampled:
    """One token of one row. `finish` is set on the last."""

    token_id: int
    logprob: float
    finish: str | None


@dataclass(eq=False)
class Row:
    """One reply being generated. `cancelled` may be set from any thread."""

    prompt: list[int]
    slot: str | None
    """peft's name of the adapter; None: the base model."""
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stops: frozenset[int]
    bias: dict[int, float]
    priority: int
    generator: torch.Generator | None
    emit: Callable[[Sampled | None], None]
    """Called in the model's thread, once per token; None: generation broke off."""
    produced: int = 0
    finished: bool = False
    cancelled: bool = False


@dataclass
class _Load:
    path: str
    slot: str
    done: "Future[None]" = field(default_factory=Future)


class ModelThread:
    """Owns the model. Rows and adapter changes come in through its methods, from any thread."""

    def __init__(self, model_dir: Path, dtype: str, max_num_seqs: int, max_lora_rank: int) -> None:
        self.config: Any = transformers.AutoConfig.from_pretrained(model_dir)
        self._model_dir, self._dtype = model_dir, getattr(torch, dtype)
        self._base: Any = self._read_base()
        self._model: Any = self._base
        self._max_num_seqs, self._max_lora_rank = max_num_seqs, max_lora_rank
        self._slots = itertools.count()
        self._rows: list[Row] = []
        self._loads: list[_Load] = []
        self._doomed: set[str] = set()
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        with self._wake:
            self._rows.extend(rows)
            self._rows.sort(key=lambda row: row.priority)  # stable: first come, first served within one
            self._wake.notify()

    def load(self, path: str) -> tuple[str, "Future[None]"]:
        """Returns: the new slot's name, and when it can be used (or why not)."""
        request = _Load(path, f"slot{next(self._slots)}")
        with self._wake:
            self._loads.append(request)
            self._wake.notify()
        return request.slot, request.done

    def unload(self, slot: str) -> None:
        """Free the weights once no waiting row needs them."""
        with self._wake:
            self._doomed.add(slot)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """False once the thread has ended, after which nothing submitted is ever answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            for row in self._rows:
                row.cancelled = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._rows or self._loads or self._doomed or self._closing)
                if self._closing:
                    return
                loads, self._loads = self._loads, []
                batch = self._take_batch()
                free = self._doomed - {row.slot for row in (*self._rows, *batch)}
                self._doomed -= free
            for load in loads:
                self._load_now(load)
            if batch:
                self._generate_or_break(batch)
            for slot in free:
                self._delete(slot)

    def _take_batch(self) -> list[Row]:
        """The first row and all others of its adapter, as many as fit."""
        if not self._rows:
            return []
        slot = self._rows[0].slot
        batch = [row for row in self._rows if row.slot == slot][: self._max_num_seqs]
        self._rows = [row for row in self._rows if row not in batch]
        return batch

    def _load_now(self, load: _Load) -> None:
        try:
            rank = getattr(peft.PeftConfig.from_pretrained(load.path), "r", 0)
            if not 1 <= rank <= self._max_lora_rank:
                raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self._max_lora_rank}")
            if self._model is self._base:
                self._model = peft.PeftModel.from_pretrained(self._base, load.path, adapter_name=load.slot)
            else:
                self._model.load_adapter(load.path, adapter_name=load.slot)
            self._model.eval()
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as e:
            self._forget_failed(load.slot)
            load.done.set_exception(e)
        else:
            load.done.set_result(None)

    def _forget_failed(self, slot: str) -> None:
        """peft changes the model before it has read the weights: take the half-made adapter out again."""
        if self._model is self._base:
            self._base = self._model = self._read_base()
        elif slot in self._model.peft_config:
            self._delete(slot)

    def _delete(self, slot: str) -> None:
        """peft warns when the active adapter goes; `_use` chooses one before every batch."""
        self._model.base_model.set_adapter([])
        self._model.delete_adapter(slot)

    def _read_base(self) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self._model_dir, dtype=self._dtype, attn_implementation=attention_kernel(self.config)
        )
        return model.eval()

    def _generate_or_break(self, batch: list[Row]) -> None:
        try:
            self._use(batch[0].slot)
            generate(self._model, batch)
        except RuntimeError:  # out of memory and its like: these rows fail, the engine lives
            for row in batch:
                if not row.finished:
                    row.emit(None)

    def _use(self, slot: str | None) -> None:
        if self._model is self._base:
            return
        if slot is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(slot)


@torch.inference_mode()
def generate(model: Any, batch: Sequence[Row]) -> None:
    """Sample every row to its end. Rows are padded on the left."""
    width = max(len(row.prompt) for row in batch)
    ids_BT = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in batch])
    mask_BT = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch])
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    cache = None
    while True:
        out = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        tokens = [
            _advance(row, logits_V) for row, logits_V in zip(batch, out.logits[:, -1].float(), strict=True)
        ]
        if all(row.finished for row in batch):
            return
        ids_BT = torch.tensor(tokens)[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1


def _advance(row: Row, logits_V: Tensor) -> int:
    """Draw the row's next token and hand it out; a finished row only keeps its place in the batch."""
    if row.finished:
        return 0
    token_id, logprob = sample(logits_V, row)
    row.produced += 1
    finish = None
    if token_id in row.stops:
        finish = "stop"
    elif row.produced >= row.max_tokens or row.cancelled:
        finish = "length"
    row.finished = finish is not None
    row.emit(Sampled(token_id, logprob, finish))
    return token_id


def sample(logits_V: Tensor, row: Row) -> tuple[int, float]:
    """One token and its log-probability under the distribution it was drawn from.

    Temperature 0 takes the likeliest token and reports its untempered value, as vLLM does.
    """
    for token_id, bias in row.bias.items():
        logits_V[token_id] += bias
    if row.temperature == 0.0:
        logprobs_V = logits_V.log_softmax(-1)
        best = int(logprobs_V.argmax())
        return best, float(logprobs_V[best])
    logprobs_V = truncate(logits_V / row.temperature, row.top_k, row.top_p).log_softmax(-1)
    drawn = int(torch.multinomial(logprobs_V.exp(), 1, generator=row.generator))
    return drawn, float(logprobs_V[drawn])


def truncate(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything outside top-k, and then outside the top-p nucleus, at minus infinity."""
    if 0 < top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -math.inf)
    if top_p < 1.0:
        sorted_V, order_V = logits_V.softmax(-1).sort(descending=True)
        outside_V = sorted_V.cumsum(-1) - sorted_V >= top_p
        logits_V = logits_V.index_fill(0, order_V[outside_V], -math.inf)
    return logits_V
