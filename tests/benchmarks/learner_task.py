"""What both sides of `bench-learner` are given, how they take turns and how they are measured.

Ratchet's process and TRL's, which has another environment, import this: nothing of either's.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model, data and numbers of one comparison. Prompts and replies are token ids."""

    base: str
    """Folder of the causal language model and its tokenizer."""
    reward: str
    """Folder of the same trunk with a scalar head: PPO's reward, and TRL's first value model."""
    prompts: list[list[int]]
    heldout: list[list[int]]
    pairs: list[list[list[int]]]
    """Prompt, chosen and rejected reply."""
    targets: list[str]
    """Linear layers that get a LoRA."""
    eos_id: int
    rank: int = 16
    batch: int = 64
    """Replies per PPO step."""
    replies_per_prompt: int = 4
    micro: int = 16
    """Rows per forward and backward pass."""
    epochs: int = 4
    steps: int = 6
    reply_tokens: int = 32
    beta: float = 0.03
    policy_lr: float = 1e-3
    pair_batch: int = 16
    reward_lr: float = 1e-3
    seed: int = 0

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @staticmethod
    def load(path: str) -> "Task":
        return Task(**json.loads(Path(path).read_text(encoding="utf-8")))


class Turns:
    """A JSON line to the benchmark after each piece of work, a line from it before the next.

    Whatever the libraries print goes to standard error instead.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit("the benchmark has gone")

    def pause(self, **figures: object) -> None:
        self.say(**figures)
        self.wait()

    def say(self, **figures: object) -> None:
        print(json.dumps(figures), file=self._out, flush=True)


class Meter:
    """Seconds and bytes: of the GPU where there is one, else CPU seconds and resident memory of this process.

    CPU seconds, because others use the machine: waiting for a core is nobody's work.
    """

    def __init__(self) -> None:
        """Made after the imports and before the models: what they need counts, the libraries do not."""
        self.gpu = torch.cuda.is_available()
        self._idle = 0 if self.gpu else _status("VmRSS")

    def now(self) -> float:
        if not self.gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def watch(self) -> None:
        """From here on the highest use of memory is noted."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM starts anew

    def peak(self) -> int:
        """Bytes: models, optimizer and everything else."""
        return torch.cuda.max_memory_allocated() if self.gpu else _status("VmHWM") - self._idle


def preload() -> None:
    """Imports that loading a model makes, so that they count for neither side."""
    import peft  # noqa: F401
    from transformers import (  # noqa: F401
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        Qwen2ForCausalLM,
        Qwen2ForSequenceClassification,
    )


def _status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def matmul_rate(meter: Meter, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """FLOP/s of a plain matrix product of this shape, the best of five: what the machine can do."""
    device = "cuda" if meter.gpu else "cpu"
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, inner), (columns, inner)))
    c = a @ b.T  # its pages are there before the clock runs
    seconds = []
    for _ in range(5):
        start = meter.now()
        torch.mm(a, b.T, out=c)
        seconds.append(meter.now() - start)
    return 2 * rows * inner * columns / min(seconds)


def dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def start(arguments: Sequence[str]) -> tuple[str, Task]:
    """What to do, and with which task: the command line's words."""
    return arguments[1], Task.load(arguments[2])
