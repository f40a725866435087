"""Which base models can be trained: refusals that say what is wrong with a directory and what to do.

Reads configuration and weights; fetches nothing and never runs code that came with a model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learner.errors import ModelError
from ops.base_model import attention_kernel

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names under which configurations count a layer's experts."""
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that turn *all* positions differently once a batch outgrows the original context."""
PROBE_LENGTHS = (7, 4)
"""Tokens of the two sequences, one of them padded, that every loaded model is tried with."""


REFUSED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda config: bool(config.is_encoder_decoder),
        "is an encoder-decoder model: name a decoder-only one (Llama, Qwen, Mistral, Gemma, Phi)",
    ),
    (
        lambda config: config.get_text_config() is not config,
        "also reads images or sound: name the text-only checkpoint of the family (such as Gemma3ForCausalLM)",
    ),
    (
        lambda config: getattr(config, "quantization_config", None) is not None,
        "has quantised weights, which cannot be trained on: name the unquantised checkpoint (the engine may "
        "quantise it when it serves)",
    ),
    (
        lambda config: any((getattr(config, name, 0) or 0) > 1 for name in EXPERTS),
        "is a mixture of experts, whose expert weights LoRA would leave out: name a dense model",
    ),
)
"""What a configuration may not be, and the words for it."""


def open_base(base_dir: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Causal language model and tokenizer of a Hugging Face directory.

    Raises: ModelError naming the directory, what is wrong with it, and what to do.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        config = read_config(base_dir)
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
        check_chat_template(tokenizer)
        model, loading = AutoModelForCausalLM.from_pretrained(
            base_dir,
            config=config,
            dtype=dtype,
            attn_implementation=attention_kernel(config),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        check_weights(model, tokenizer, sorted(loading["missing_keys"]))
    except ModelError as e:
        raise ModelError(f"base model {base_dir} {e}") from e
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise ModelError(f"base model {base_dir} does not load: {e}") from e
    return model, tokenizer


def read_config(base_dir: Path) -> Any:
    """The model's configuration. Raises: ModelError unless an architecture like this can be trained."""
    from transformers import CONFIG_MAPPING, AutoConfig

    for name in ("config.json", "tokenizer_config.json"):
        if not (base_dir / name).is_file():
            raise ModelError(f"is no Hugging Face model directory: it has no {name}")
    kind = json.loads((base_dir / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"is of the type {kind!r}, which transformers does not know without running code that came with "
            "the model; that is never done: name a model of a known architecture, or install a transformers "
            "release that has this one"
        )
    config = AutoConfig.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    for refused, why in REFUSED:
        if refused(config):
            raise ModelError(why)
    return config


def check_chat_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ModelError(
            "has no chat template: name a chat (instruct) variant, or add a chat_template.jinja, then "
            "fine-tune it on dialogues (`ratchet learn sft`)"
        )


def check_weights(model: Any, tokenizer: Any, missing: list[str]) -> None:
    """Every weight came from the files, and every token has a row in both embeddings."""
    if missing:
        raise ModelError(
            f"lacks weights that a language model needs ({len(missing)}, such as {missing[0]}): they would "
            "be random. Name a complete checkpoint of a causal language model"
        )
    rows, ids = model.get_output_embeddings().weight.shape[0], len(tokenizer)
    if model.get_input_embeddings().weight.shape[0] != rows or ids > rows:
        raise ModelError(
            f"has a tokenizer of {ids} tokens and {rows} rows of weights for them: the two do not belong "
            "together. Take the tokenizer of this model, or resize the embeddings and fine-tune"
        )


def context(config: Any, wanted: int) -> int:
    """Longest prompt plus reply, at most `wanted` tokens: what the positions reach.

    Where rotary embeddings depend on the length of the batch, only their first regime is used: beyond it a
    sequence would get other log-probabilities beside a long one than alone.
    """
    limits = [wanted, getattr(config, "max_position_embeddings", None) or wanted]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if parameters.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            limits.append(parameters.get("original_max_position_embeddings") or limits[1])
    return int(min(limits))


def reply_end(tokenizer: Any, known: tuple[int, ...]) -> int | None:
    """The special token that the chat template writes right after a reply; None where it writes none."""
    reply = "fine"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "well?"}, {"role": "assistant", "content": reply}], tokenize=False
    )
    tail = tokenizer(text[text.rindex(reply) + len(reply) :], add_special_tokens=False).input_ids
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tail[0] if tail and tail[0] in {*known, *special} else None


def eos_ids(causal_lm: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a reply: first the one that the chat template writes after replies (the tokenizers
    of Gemma and Phi name another), then the tokenizer's own and the generation config's.

    Raises: ModelError when there is none, or one is out of the vocabulary.
    """
    configured = causal_lm.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    named = tuple(int(i) for i in (tokenizer.eos_token_id, *listed) if i is not None)
    found = tuple(dict.fromkeys(i for i in (reply_end(tokenizer, named), *named) if i is not None))
    if not found:
        raise ModelError(
            "the base model names no end-of-text token, so replies would never end: set eos_token in "
            "tokenizer_config.json or eos_token_id in generation_config.json"
        )
    rows = causal_lm.get_output_embeddings().weight.shape[0]
    if max(found) >= rows:
        raise ModelError(
            f"the base model's end-of-text token {max(found)} is beyond its vocabulary of {rows}: correct "
            "eos_token_id in generation_config.json"
        )
    return found


def output_logits(causal_lm: Any, hidden_NH: torch.Tensor) -> torch.Tensor:
    """logits_NV before temperature, float32, as the family makes them: scaled, then soft-capped."""
    logits_NV: torch.Tensor = causal_lm.get_output_embeddings()(hidden_NH).float()
    scale, cap = logit_scale(causal_lm.config), getattr(causal_lm.config, "final_logit_softcapping", None)
    if scale != 1.0:
        logits_NV = logits_NV * scale
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def logit_scale(config: Any) -> float:
    """What the output layer's results are multiplied by: Cohere names a factor, Granite a divisor."""
    factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    return float(factor / divisor)


@torch.no_grad()
def check_forward(causal_lm: nn.Module, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Tries the learner's own way to logits against the model's, on made-up sequences with padding.

    Args: logits_of, ids_BL to logits_BLV without attention mask, padding on the right.
    Raises: ModelError when they differ by more than rounding: the model does something to its logits that the
    learner does not know, or lets tokens see what comes after them.
    """
    weight = next(causal_lm.parameters())
    slack, device = 1e-3 if weight.dtype == torch.float32 else 0.05, weight.device
    ids_BL = torch.zeros(len(PROBE_LENGTHS), max(PROBE_LENGTHS), dtype=torch.long, device=device)
    for row, length in enumerate(PROBE_LENGTHS):
        ids_BL[row, :length] = torch.arange(1, length + 1, device=device)
    ours_BLV = logits_of(ids_BL)
    for row, length in enumerate(PROBE_LENGTHS):
        theirs_LV = causal_lm(input_ids=ids_BL[row : row + 1, :length], use_cache=False).logits[0].float()
        off = (ours_BLV[row, :length] - theirs_LV).abs().max() / theirs_LV.abs().max()
        if not off <= slack:
            raise ModelError(
                f"{type(causal_lm).__name__} computes its logits in a way that the learner does not know "
                f"(they differ by {float(off):.0%}): it cannot be trained here"
            )
