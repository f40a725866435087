"""Tiny random models of the architectures that deployments use, as Hugging Face directories."""

from pathlib import Path
from typing import Any

from tests.engines import byte_tokenizer

SHAPE = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Weights ten times as large as usual, so that caps, scales and windows make a difference."""

SEPARATE = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
FUSED = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]

FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}, SEPARATE),
    "qwen2": ("Qwen2Config", {}, SEPARATE),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, SEPARATE),
    "mistral": ("MistralConfig", {"head_dim": 16, "sliding_window": 6}, SEPARATE),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        SEPARATE,
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        SEPARATE,
    ),
    "phi3": ("Phi3Config", {}, FUSED),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}, SEPARATE),
    "cohere": ("CohereConfig", {"logit_scale": 0.5}, SEPARATE),
}
"""Name → configuration class, what is special about it, and where LoRA belongs."""


def make_model(folder: Path, config_class: str, *, tokenizer: Any = None, **changes: Any) -> Path:
    """A random model of this configuration with a byte tokenizer."""
    import torch
    import transformers

    config = getattr(transformers, config_class)(**SHAPE | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def make_family(folder: Path, family: str) -> Path:
    config_class, changes, _ = FAMILIES[family]
    return make_model(folder, config_class, **changes)
