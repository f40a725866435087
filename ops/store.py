"""The adapter store: content-addressed folders of one LoRA each, checked on the way in and before each load.

An adapter is `adapter_config.json` and `adapter_model.safetensors`; nothing that needs unpickling gets in.
Needs numpy, never torch.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ops.errors import InvalidAdapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_HEADER_BYTES = 16 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_RANK = 512
CHUNK_BYTES = 4 * 2**20

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_TARGETS = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("c_attn",))
"""Attention projections by architecture; the identity adapter takes the first set that the base has."""


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""
    end: int


def put(adapter_dir: Path, adapters_dir: Path, *, base_dir: Path | None = None) -> tuple[str, Path]:
    """Check an adapter and copy it to `adapters_dir/<sha256>`, atomically and durably.

    With `base_dir`, every tensor must also fit the base model's weights. The same content again is a no-op.
    Returns: the content hash and the absolute, read-only folder.
    Raises: InvalidAdapter saying what is wrong with which file or tensor.
    """
    _check_files(adapter_dir)
    adapters_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=adapters_dir))
    try:
        for name in (CONFIG, WEIGHTS):
            _copy_durably(adapter_dir / name, staging / name)
        check(staging, base_dir=base_dir)
        sha256 = digest(staging)
        return sha256, _publish(staging, (adapters_dir / sha256).absolute(), sha256)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def digest(adapter_dir: Path) -> str:
    """sha256 over names, sizes and contents of the two files, in hex.

    Raises: InvalidAdapter when one is missing.
    """
    return _digest_files([adapter_dir / CONFIG, adapter_dir / WEIGHTS])


def verify(path: Path, sha256: str) -> None:
    """Hash the stored adapter again, right before a load.

    Raises: InvalidAdapter when the files are gone or are not those that were registered.
    """
    found = digest(Path(path))
    if found != sha256:
        raise InvalidAdapter(f"{path} holds {found[:16]}…, registered was {sha256[:16]}…: files were changed")


def base_digest(base_dir: Path) -> str:
    """sha256 that names a base model: its config, tokenizer and weights, in hex.

    Raises: InvalidAdapter for a folder without config or safetensors weights.
    """
    weights = sorted(base_dir.glob("*.safetensors"))
    if not weights or not (base_dir / "config.json").is_file():
        raise InvalidAdapter(f"{base_dir} is no model folder: it needs config.json and *.safetensors")
    tokenizer = [f for f in (base_dir / "tokenizer.json", base_dir / "tokenizer_config.json") if f.is_file()]
    return _digest_files([base_dir / "config.json", *tokenizer, *weights])


def identity_adapter(base_dir: Path, out_dir: Path, rank: int = 8) -> Path:
    """Write the all-zero LoRA of a base model to `out_dir`: its outputs are exactly the base's.

    Raises: InvalidAdapter when the base has no attention projection that we know.
    """
    shapes = _base_shapes(base_dir)
    targets, modules = _attention(shapes, base_dir)
    tensors = {}
    for module in modules:
        out_features, in_features = shapes[f"{module}.weight"]
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.zeros((rank, in_features), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.zeros((out_features, rank), np.float32)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / CONFIG).write_text(json.dumps(_identity_config(rank, targets), indent=1, sort_keys=True))
    (out_dir / WEIGHTS).write_bytes(_safetensors(tensors))
    return out_dir


def check(adapter_dir: Path, *, base_dir: Path | None = None) -> None:
    """Read the configuration, the header and every number of an adapter.

    Raises: InvalidAdapter for anything but a plain, finite LoRA of one rank that fits the base.
    """
    rank = _check_config(adapter_dir / CONFIG)
    tensors = read_header(adapter_dir / WEIGHTS)
    sides = _pair_up(tensors, rank)
    if base_dir is not None:
        _check_fits(sides, _base_shapes(base_dir), base_dir)
    for name, tensor in tensors.items():
        if not _finite(adapter_dir / WEIGHTS, tensor):
            raise InvalidAdapter(f"tensor {name} holds NaN or infinity")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file declares, checked against its length.

    Raises: InvalidAdapter for a header that is hostile, cut off or does not cover the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise InvalidAdapter(f"{path.name}: a header of {length} bytes in a file of {size}")
        raw = f.read(length)
    try:
        declared = json.loads(raw)
        tensors = {
            name: Tensor(
                str(entry["dtype"]),
                tuple(int(n) for n in entry["shape"]),
                8 + length + int(entry["data_offsets"][0]),
                8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in declared.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise InvalidAdapter(f"{path.name}: not a safetensors header ({type(e).__name__}: {e})") from e
    _check_coverage(path, tensors, 8 + length, size)
    return tensors


def _check_coverage(path: Path, tensors: dict[str, Tensor], start: int, size: int) -> None:
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at or tensor.end < at or any(n < 0 for n in tensor.shape):
            raise InvalidAdapter(f"{path.name}: tensor {name} overlaps another one or leaves a gap")
        at = tensor.end
    if at != size:
        raise InvalidAdapter(f"{path.name}: tensors end at byte {at}, the file at {size}")


def _check_files(adapter_dir: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        file = adapter_dir / name
        if file.is_symlink() or not file.is_file():
            raise InvalidAdapter(f"{adapter_dir} is no adapter: {name} is missing or not a regular file")
    pickles = sorted(f.name for f in adapter_dir.iterdir() if f.suffix.lower() in _PICKLES)
    if pickles:
        raise InvalidAdapter(
            f"{adapter_dir} holds {pickles[0]}, which may be a pickle: only safetensors get in"
        )


def _check_config(path: Path) -> int:
    """The adapter's rank."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InvalidAdapter(f"{path.name} is no LoRA configuration ({type(e).__name__}: {e})") from e
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"{path.name}: peft_type {config.get('peft_type')!r}, expected 'LORA'")
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise InvalidAdapter(f"{path.name}: rank {rank!r}, expected 1 to {MAX_RANK}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InvalidAdapter(f"{path.name}: lora_alpha {alpha!r} is no finite number")
    for field, plain in _PLAIN_LORA.items():
        if config.get(field, plain[0]) not in plain:
            raise InvalidAdapter(f"{path.name}: {field} = {config[field]!r} cannot be served")
    return rank


_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
"""Fields of peft that must keep their plain value, because engines would ignore or refuse anything else."""


def _pair_up(tensors: dict[str, Tensor], rank: int) -> dict[str, tuple[int, int]]:
    """Module → (out_features, in_features), from its A (rank, in) and its B (out, rank)."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        match = _LORA.fullmatch(name)
        if match is None:
            raise InvalidAdapter(f"tensor {name[:200]!r} is no part of a LoRA")
        if tensor.dtype not in _ITEM_BYTES or len(tensor.shape) != 2:
            raise InvalidAdapter(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}: expected a float matrix"
            )
        if tensor.end - tensor.start != math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]:
            raise InvalidAdapter(f"tensor {name}: its bytes are not those of {list(tensor.shape)}")
        found.setdefault(match["module"], {})[match["side"]] = tensor.shape
    if not found:
        raise InvalidAdapter("an adapter without tensors")
    for module, sides in found.items():
        if set(sides) != {"A", "B"} or sides["A"][0] != rank or sides["B"][1] != rank:
            raise InvalidAdapter(
                f"{module}: A {sides.get('A')} and B {sides.get('B')} are no pair of rank {rank}"
            )
    return {module: (sides["B"][0], sides["A"][1]) for module, sides in found.items()}


def _check_fits(
    sides: dict[str, tuple[int, int]], shapes: dict[str, tuple[int, ...]], base_dir: Path
) -> None:
    for module, wanted in sides.items():
        shape = shapes.get(f"{module}.weight")
        if shape is None:
            raise InvalidAdapter(f"{module} does not exist in the base model {base_dir.name}")
        if shape != wanted:
            raise InvalidAdapter(f"{module}: the adapter is for {wanted}, the base model has {shape}")


def _base_shapes(base_dir: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(base_dir.glob("*.safetensors"))
    if not files:
        raise InvalidAdapter(f"{base_dir} is no model folder: it has no *.safetensors")
    return {name: tensor.shape for file in files for name, tensor in read_header(file).items()}


def _attention(shapes: dict[str, tuple[int, ...]], base_dir: Path) -> tuple[tuple[str, ...], list[str]]:
    for targets in _TARGETS:
        modules = [
            name.removesuffix(".weight")
            for name, shape in shapes.items()
            if len(shape) == 2 and name.endswith(tuple(f".{t}.weight" for t in targets))
        ]
        if modules:
            return targets, sorted(modules)
    raise InvalidAdapter(
        f"{base_dir}: no attention projection among {_TARGETS} to put an identity adapter on"
    )


def _identity_config(rank: int, targets: tuple[str, ...]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }


def _safetensors(tensors: dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]) -> bytes:
    """float32 tensors as a safetensors file: header length, header padded to 8 bytes, data."""
    header: dict[str, Any] = {}
    at = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return b"".join(
        [len(raw).to_bytes(8, "little"), raw, *(v.astype("<f4").tobytes() for v in tensors.values())]
    )


def _finite(path: Path, tensor: Tensor) -> bool:
    for chunk in _chunks(path, tensor.start, tensor.end):
        if tensor.dtype == "BF16":  # numpy has no bfloat16: all exponent bits set is NaN or infinity
            ok = ((np.frombuffer(chunk, "<u2") & 0x7F80) != 0x7F80).all()
        else:
            ok = np.isfinite(np.frombuffer(chunk, "<f4" if tensor.dtype == "F32" else "<f2")).all()
        if not ok:
            return False
    return True


def _chunks(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as f:
        f.seek(start)
        while start < end:
            chunk = f.read(min(CHUNK_BYTES, end - start))
            if not chunk:
                raise InvalidAdapter(f"{path.name} ends early")
            start += len(chunk)
            yield chunk


def _digest_files(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            total.update(f"{file.name}\x00{size}\x00".encode())
            for chunk in _chunks(file, 0, size):
                total.update(chunk)
        except OSError as e:
            raise InvalidAdapter(f"{file}: {e.strerror}") from e
    return total.hexdigest()


def _copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as r, target.open("wb") as w:
        shutil.copyfileobj(r, w, CHUNK_BYTES)
        w.flush()
        os.fsync(w.fileno())
    target.chmod(0o444)


def _publish(staging: Path, final: Path, sha256: str) -> Path:
    if not final.exists():
        staging.chmod(0o755)
        _sync_folder(staging)
        try:
            staging.rename(final)
        except OSError as e:
            if not final.is_dir():
                raise InvalidAdapter(f"cannot store the adapter at {final}: {e.strerror}") from e
        _sync_folder(final.parent)
    verify(final, sha256)  # somebody else's copy under this hash must be this content too
    return final


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
