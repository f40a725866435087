"""Figures, a line of JSON a step: `reward.jsonl` of a reward model, `metrics.jsonl` of a policy."""

from pathlib import Path

import msgspec

from learner.checkpoints import write_atomically
from learner.distributed import is_main


class MetricLines:
    """A continued run overwrites the lines after its checkpoint. Only the main process writes."""

    def __init__(self, path: Path, step: int = 0) -> None:
        """Args: step, the first that will be added; later lines go."""
        self.path = path
        kept = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
        write_atomically(path, b"".join(kept))

    def add(self, metrics: msgspec.Struct) -> None:
        if not is_main():
            return
        with self.path.open("ab") as f:
            f.write(msgspec.json.encode(metrics) + b"\n")
