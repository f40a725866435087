"""The adapter store: what gets in, what does not, and that nothing changes afterwards."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ops import store
from ops.errors import InvalidAdapter
from tests.engines import make_adapter

MODULE = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model folder as far as the store looks: a config and weights. q_proj 6 → 4, v_proj 6 → 2."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tensors = {
        f"{MODULE}.weight": np.ones((4, 6), np.float32),
        "model.layers.0.self_attn.v_proj.weight": np.ones((2, 6), np.float32),
        "model.norm.weight": np.ones(6, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", seed=1, rank=2)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / store.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / store.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / store.WEIGHTS)


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def test_same_content_has_one_place(adapter: Path, base: Path, tmp_path: Path) -> None:
    """The path is the content's: what vLLM caches by path can never mean other weights."""
    sha256, path = store.put(adapter, tmp_path / "store", base_dir=base)
    again = store.put(adapter, tmp_path / "store", base_dir=base)
    assert again == (sha256, path)
    assert path == tmp_path / "store" / sha256
    assert [p.name for p in (tmp_path / "store").iterdir()] == [sha256]
    assert store.digest(adapter) == sha256
    store.verify(path, sha256)


def test_other_weights_have_another_place(base: Path, tmp_path: Path) -> None:
    one = store.put(make_adapter(base, tmp_path / "1", seed=1), tmp_path / "store")
    two = store.put(make_adapter(base, tmp_path / "2", seed=2), tmp_path / "store")
    assert one[0] != two[0]


def test_a_changed_file_is_noticed_before_the_load(adapter: Path, tmp_path: Path) -> None:
    sha256, path = store.put(adapter, tmp_path / "store")
    weights = path / store.WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InvalidAdapter, match="files were changed"):
        store.verify(path, sha256)


def test_a_missing_file_is_noticed_before_the_load(adapter: Path, tmp_path: Path) -> None:
    sha256, path = store.put(adapter, tmp_path / "store")
    (path / store.CONFIG).unlink()
    with pytest.raises(InvalidAdapter, match="adapter_config"):
        store.verify(path, sha256)


def test_stored_files_are_read_only(adapter: Path, tmp_path: Path) -> None:
    _, path = store.put(adapter, tmp_path / "store")
    assert {f.stat().st_mode & 0o777 for f in path.iterdir()} == {0o444}


def test_a_refused_adapter_leaves_nothing_behind(adapter: Path, tmp_path: Path) -> None:
    change_config(adapter, r=3)
    with pytest.raises(InvalidAdapter):
        store.put(adapter, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["adapter_model.bin", "extra.pt", "optimizer.PKL"])
def test_pickles_do_not_get_in(adapter: Path, tmp_path: Path, name: str) -> None:
    """Unpickling runs code."""
    (adapter / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidAdapter, match="pickle"):
        store.put(adapter, tmp_path / "store")


def test_links_do_not_get_in(adapter: Path, tmp_path: Path) -> None:
    """A link could be pointed elsewhere between the check and the load."""
    weights = adapter / store.WEIGHTS
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidAdapter, match="regular file"):
        store.put(adapter, tmp_path / "store")


@pytest.mark.parametrize(
    "fields,said",
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"r": 0}, "rank 0"),
        ({"r": 4096}, "rank 4096"),
        ({"r": "2"}, "rank '2'"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 1}, "no pair of rank 1"),
    ],
)
def test_only_plain_loras_get_in(adapter: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    """Engines ignore or refuse the rest, each in its own way and too late."""
    change_config(adapter, **fields)
    with pytest.raises(InvalidAdapter, match=said):
        store.put(adapter, tmp_path / "store")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numbers_are_finite(adapter: Path, tmp_path: Path, value: float, dtype: Any) -> None:
    """One NaN in an adapter makes every reply of the arm garbage."""

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[B] = tensors[B].astype(dtype)
        tensors[B][-1, -1] = value

    change_tensors(adapter, spoil)
    with pytest.raises(InvalidAdapter, match="NaN or infinity"):
        store.put(adapter, tmp_path / "store")


@pytest.mark.parametrize("bits,fine", [(0x3F80, True), (0x7F7F, True), (0x7F80, False), (0xFFC0, False)])
def test_bfloat16_numbers_are_finite(adapter: Path, tmp_path: Path, bits: int, fine: bool) -> None:
    """1.0, the largest finite number, infinity, a NaN: numpy has no bfloat16, so the bits are read."""
    header = {
        A: {"dtype": "BF16", "shape": [2, 6], "data_offsets": [0, 24]},
        B: {"dtype": "BF16", "shape": [4, 2], "data_offsets": [24, 40]},
    }
    data = struct.pack("<20H", *[bits] * 20)
    (adapter / store.WEIGHTS).write_bytes(raw_safetensors(header, data))
    if fine:
        assert store.put(adapter, tmp_path / "store")
    else:
        with pytest.raises(InvalidAdapter, match="NaN or infinity"):
            store.put(adapter, tmp_path / "store")


@pytest.mark.parametrize(
    "content,said",
    [
        (b"", "header of 0 bytes"),
        (b"\xff" * 8, "a header of"),
        (struct.pack("<Q", 2**62) + b"{}", "a header of"),
        (raw_safetensors(b"not json"), "not a safetensors header"),
        (raw_safetensors([1, 2]), "not a safetensors header"),
        (raw_safetensors({A: {"dtype": "F32"}}), "not a safetensors header"),
        (raw_safetensors(b"[" * 5000), "not a safetensors header"),
        (raw_safetensors({}), "without tensors"),
        (raw_safetensors({A: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}), "the file at"),
        (raw_safetensors({A: {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"), "gap"),
        (raw_safetensors({A: {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"), "gap"),
        (raw_safetensors({A: {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}}, b"12345678"), "I64"),
        (raw_safetensors({A: {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}, b"1234"), "bytes"),
        (
            raw_safetensors({"evil": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, b"1234"),
            "LoRA",
        ),
        (
            raw_safetensors({A: {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}, b"12345678"),
            "no pair",
        ),
    ],
)
def test_hostile_headers_are_refused(adapter: Path, tmp_path: Path, content: bytes, said: str) -> None:
    """Lengths, offsets, nesting and names come from whoever wrote the file."""
    (adapter / store.WEIGHTS).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=said):
        store.put(adapter, tmp_path / "store")


def test_an_adapter_of_another_base_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    wider = {f"{MODULE}.weight": np.ones((8, 6), np.float32)}
    save_file(wider, base / "model.safetensors")
    with pytest.raises(InvalidAdapter, match="the base model has"):
        store.put(adapter, tmp_path / "store", base_dir=base)
    save_file({"other.weight": np.ones((8, 6), np.float32)}, base / "model.safetensors")
    with pytest.raises(InvalidAdapter, match="does not exist in the base model"):
        store.put(adapter, tmp_path / "store", base_dir=base)


def test_identity_adapter_is_all_zero_and_always_the_same(base: Path, tmp_path: Path) -> None:
    """One name for the base arm of a deployment, whoever makes it."""
    one = store.identity_adapter(base, tmp_path / "one", rank=2)
    two = store.identity_adapter(base, tmp_path / "two", rank=2)
    assert store.digest(one) == store.digest(two)
    tensors = load_file(one / store.WEIGHTS)
    assert tensors[A].shape == (2, 6)
    assert tensors[B].shape == (4, 2)
    assert len(tensors) == 4
    assert not any(t.any() for t in tensors.values())
    store.check(one, base_dir=base)


def test_identity_needs_an_attention_it_knows(base: Path, tmp_path: Path) -> None:
    save_file({"conv.weight": np.ones((4, 6), np.float32)}, base / "model.safetensors")
    with pytest.raises(InvalidAdapter, match="no attention projection"):
        store.identity_adapter(base, tmp_path / "one")


def test_base_digest_follows_weights_and_tokenizer(base: Path) -> None:
    """An adapter is for one base; another tokenizer is another base too."""
    before = store.base_digest(base)
    (base / "tokenizer.json").write_text("{}")
    with_tokenizer = store.base_digest(base)
    (base / "tokenizer.json").write_text('{"version": "1.0"}')
    assert len({before, with_tokenizer, store.base_digest(base)}) == 3
    (base / "README.md").write_text("notes do not matter")
    (base / "tokenizer.json").unlink()
    assert store.base_digest(base) == before
