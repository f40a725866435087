"""Preference pairs from a file, JSON Lines (also gzipped) or Parquet: strict, refused with line and column.

Columns: `messages` or `prompt` (the dialogue up to the reply: a list of {role, content}, or one string),
`chosen` and `rejected` (a string, or a list of messages whose last one is the reply); optional `p` (0.5..1),
`weight` (≥ 0), `split` ("train" or "heldout").
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from feedback.events import Message
from learner.batches import Encoder, PairRow, RewardData
from learner.errors import DataError

HELDOUT_FRACTION = 0.2
"""Share of conversations kept out of training where the file does not say; follows from how they begin."""


class FilePair(msgspec.Struct, frozen=True, kw_only=True):
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    p: float = 1.0
    weight: float = 1.0
    heldout: bool = False

    @property
    def digest(self) -> str:
        return _digest(self.prompt)

    @property
    def opening(self) -> str:
        """Digest of the first thing a user said: the same for every stage of a conversation."""
        return _opening(self.prompt)


def read(path: Path) -> list[FilePair]:
    """Every pair of the file. Raises: DataError naming file, line (or row) and column of the first fault."""
    pairs = [_pair(row, where) for where, row in _rows(path)]
    if not pairs:
        raise DataError(f"{path} holds no pair")
    return pairs


def reward_data(pairs: Sequence[FilePair], heldout: Sequence[FilePair], encoder: Encoder) -> RewardData:
    """Training and held-out pairs as token ids."""
    return RewardData(
        pairs=[row(pair, encoder) for pair in pairs], heldout_pairs=[row(pair, encoder) for pair in heldout]
    )


def row(pair: FilePair, encoder: Encoder) -> PairRow:
    """Both replies after the same tokens of the dialogue: those that the longer one leaves room for.

    Raises: DataError when the chat template refuses the dialogue."""
    prompt = encoder.prompt(pair.digest, pair.prompt)
    chosen, rejected = (encoder.reply(prompt, text) for text in (pair.chosen, pair.rejected))
    kept = min(chosen.prompt, rejected.prompt, key=lambda cut: len(cut.ids))
    return PairRow(replace(chosen, prompt=kept), replace(rejected, prompt=kept), pair.p, pair.weight, "file")


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row with where it stands: the line as an editor counts it, or the row of a Parquet file."""
    try:
        if path.suffix == ".parquet":
            for n, row in enumerate(_parquet(path), start=1):
                yield f"{path}, row {n}", row
            return
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as f
        ):
            for n, line in enumerate(f, start=1):
                if line.strip():
                    yield (where := f"{path}, line {n}"), _json(line, where)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from e


def _parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Any] = pq.read_table(path).to_pylist()
    except pa.ArrowException as e:
        raise DataError(f"{path} is no Parquet file: {e}") from e
    return rows


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: no JSON ({e.msg}, column {e.colno})") from e


def _pair(row: Any, where: str) -> FilePair:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a pair is an object with prompt, chosen and rejected")
    column = "messages" if row.get("messages") is not None else "prompt"
    prompt = _messages(row.get(column), f"{where}, column {column!r}")
    chosen, rejected = (_reply(row.get(name), f"{where}, column {name!r}") for name in ("chosen", "rejected"))
    p = _number(row.get("p"), 1.0, 0.5, 1.0, f"{where}, column 'p'")
    weight = _number(row.get("weight"), 1.0, 0.0, math.inf, f"{where}, column 'weight'")
    split = row.get("split")
    if split not in (None, "train", "heldout"):
        raise DataError(f"{where}, column 'split': {split!r} is neither 'train' nor 'heldout'")
    heldout = split == "heldout" if split else _kept_out(_opening(prompt))
    return FilePair(prompt=prompt, chosen=chosen, rejected=rejected, p=p, weight=weight, heldout=heldout)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str) and value:
        return ({"role": "user", "content": value},)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: missing or empty")
    for message in value:
        role, content = (message.get(k) if isinstance(message, dict) else None for k in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{where}: a message needs a role and a text in `content`")
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def _reply(value: Any, where: str) -> str:
    if isinstance(value, list):
        value = _messages(value, where)[-1]["content"]
    if not isinstance(value, str):
        raise DataError(f"{where}: missing, or not a text")
    return value


def _number(value: Any, default: float, low: float, high: float, where: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{where}: {value!r} is no number from {low:g} to {high:g}")
    return float(value)


def _digest(prompt: tuple[Message, ...]) -> str:
    text = json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _opening(prompt: tuple[Message, ...]) -> str:
    first = next((n for n, message in enumerate(prompt, start=1) if message["role"] == "user"), len(prompt))
    return _digest(prompt[first - 1 : first])


def _kept_out(digest: str) -> bool:
    return int(digest[:8], 16) / 16**8 < HELDOUT_FRACTION
