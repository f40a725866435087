"""Engines for tests: a tiny base model, the transformers engine, a real vLLM; each started once a session."""

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ops import engine as replica
from ops import store, vllm_adapters
from ops.config import Engine

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]


@dataclass(frozen=True)
class RunningEngine:
    url: str
    base_dir: Path
    adapters_dir: Path
    identity: str
    """Name of the identity adapter, loaded and warm."""
    identity_path: Path
    started_s: float
    """Process start to warm."""


def byte_tokenizer() -> Any:
    """A fast tokenizer whose tokens are the special ones and the 256 bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
    )
    fast.chat_template = TEMPLATE
    return fast


def make_tiny_base(folder: Path, seed: int = 0) -> Path:
    """A random two-layer Llama that speaks bytes; vLLM's CPU attention needs heads of 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base_dir: Path, folder: Path, *, seed: int, scale: float = 0.3, rank: int = 8) -> Path:
    """A LoRA with random weights, large enough to change what the tiny model says."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    store.identity_adapter(base_dir, folder, rank)
    weights = folder / store.WEIGHTS
    numbers = np.random.default_rng(seed)
    tensors = {
        name: numbers.normal(0.0, scale, value.shape).astype(np.float32)
        for name, value in sorted(load_file(weights).items())
    }
    save_file(tensors, weights)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder for quick tests: random weights, byte tokenizer, chat template."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def transformers_engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """The shipped engine over transformers and peft on `tiny_base`."""
    config = Engine(kind="transformers", max_model_len=256)
    yield from running(config, tiny_base, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="session")
def vllm_engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """A real vLLM on `tiny_base`."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install with the `cpu` or `gpu` extra")
    config = Engine(kind="vllm", max_model_len=4096, max_num_seqs=8)
    yield from running(config, tiny_base, tmp_path_factory.mktemp("vllm"))


def running(config: Engine, base_dir: Path, folder: Path) -> Iterator[RunningEngine]:
    """One warm replica on a free port; ended, with its children, when the generator is closed."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    sha256, path = store.put(store.identity_adapter(base_dir, folder / "identity"), folder / "adapters")
    name = f"base-{sha256[:8]}"
    begun = time.monotonic()
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            replica.command(config, base_dir, port),
            env=replica.environment(config, os.environ),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not vllm_adapters.healthy(url):
            if process.poll() is not None or time.monotonic() - begun > config.start_timeout_s:
                pytest.fail(f"engine did not start:\n{(folder / 'engine.log').read_text()[-3000:]}")
            time.sleep(0.2)
        replica.warm_up(url, name, path)
        started_s = time.monotonic() - begun
        yield RunningEngine(url, base_dir, folder / "adapters", name, path, started_s)
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
