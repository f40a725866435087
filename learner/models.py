"""One trunk, four roles: policy, reward and parent are LoRA adapters, the root reference is the trunk alone,
values come from a head on the policy's detached hidden states. Trains nothing.

Legend: B samples, L prompt and response token, T response token, N response tokens of all samples in a row,
H hidden size, V vocabulary, K reward heads.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learner.batches import Batch, Encoder, Sample, collate, length_mask
from learner.compatibility import check_forward, context, eos_ids, open_base, output_logits
from learner.distributed import is_main, shard_layers, shards_asked_for
from learner.errors import ModelError
from learner.losses import token_logprobs
from learner.packing import Packing, pack

PACKED_SHARE = 0.9
"""Packing must leave out a tenth of the tokens, or it is not worth the mask."""
LORA_ALPHA_PER_RANK = 2
"""LoRA's scale is alpha/rank; fixed, so that learning rates mean the same at every rank."""


class Role(StrEnum):
    """Whose hidden states the trunk computes."""

    POLICY = "policy"
    REWARD = "reward"
    PARENT = "parent"
    """The adapter that the run started from, frozen."""
    ROOT = "root"
    """The base weights, every adapter off."""


class Trunk:
    """One copy of the base weights and the adapters on it.

    Nothing but `acting` decides which adapter is on. Entering it touches every layer (milliseconds): once per
    phase, never per micro-batch.
    """

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        self.causal_lm = model.get_base_model()
        self.backbone = self.causal_lm.base_model
        self.lm_head = self.causal_lm.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.lm_head.weight.device
        return device

    @property
    def hidden_size(self) -> int:
        return int(self.lm_head.in_features)

    @property
    def pad_id(self) -> int:
        pad = self.encoder.tokenizer.pad_token_id
        return 0 if pad is None or pad >= self.lm_head.out_features else int(pad)

    @contextmanager
    def acting(self, role: Role) -> Iterator[None]:
        """Inside, the trunk computes as `role`; on leaving, the policy is on again."""
        if role is Role.ROOT:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(role.value)
        try:
            yield
        finally:
            self.model.set_adapter(Role.POLICY.value)

    def add(self, role: Role, rank: int, seed: int) -> None:
        """A fresh adapter on every linear layer, replacing an older one; changes nothing until trained."""
        self.attach(role, lora_config(rank, linear_modules(self.causal_lm)), seed)

    def attach(self, role: Role, config: Any, seed: int) -> None:
        """An adapter of this configuration for `role`, replacing an older one."""
        if role.value in self.model.peft_config:
            self.model.base_model.set_adapter([])  # peft warns when an active adapter goes
            self.model.delete_adapter(role.value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model.add_adapter(role.value, config)
        self.model.set_adapter(Role.POLICY.value)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        marker = f".{role.value}."
        return [p for name, p in self.model.named_parameters() if "lora_" in name and marker in name]

    def weights(self, role: Role) -> dict[str, Tensor]:
        """The adapter's tensors under the names that adapter files use; copies on the CPU."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.model, adapter_name=role.value)
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(state.items())}

    def set_weights(self, role: Role, weights: dict[str, Tensor]) -> None:
        """Raises: ModelError when the tensors are not this adapter's."""
        from peft import set_peft_model_state_dict

        mine = self.weights(role)
        wrong = sorted(set(mine) ^ set(weights)) or [n for n in mine if mine[n].shape != weights[n].shape]
        if wrong:
            raise ModelError(
                f"adapter does not fit this base model: {wrong[0]} ({len(wrong)} tensors differ)"
            )
        set_peft_model_state_dict(self.model, weights, adapter_name=role.value)

    def rank(self, role: Role) -> int:
        return int(self.model.peft_config[role.value].r)

    def hidden(self, samples: Sequence[Sample]) -> tuple[Tensor, Batch]:
        """Last hidden states, hidden_BLH, and the batch that says where each response is in them."""
        batch = collate(samples, self.pad_id)
        if self.packs(batch.ids_BL.shape[1]):
            packed = pack(samples, self.hidden_size)
            if packed.ids_PM.numel() < PACKED_SHARE * batch.ids_BL.numel():
                return self._packed_states(packed), batch
        # padding is on the right and attention causal: no mask is needed
        return self.states(batch.ids_BL.to(self.device)), batch

    def states(self, ids_BL: Tensor) -> Tensor:
        hidden_BLH: Tensor = self.backbone(input_ids=ids_BL, use_cache=False).last_hidden_state
        return hidden_BLH

    def packs(self, length: int) -> bool:
        """Whether samples this long may share rows: attention takes a mask, no layer has a shorter window."""
        config = self.causal_lm.config
        window = getattr(config, "sliding_window", None)
        return config._attn_implementation == "sdpa" and (window is None or length <= window)

    def _packed_states(self, packed: Packing) -> Tensor:
        """hidden_BLH of the samples that were packed."""
        ids_PM, positions_PM, mask_P1MM, place_BL = (t.to(self.device) for t in packed)
        out = self.backbone(
            input_ids=ids_PM, position_ids=positions_PM, attention_mask=mask_P1MM, use_cache=False
        )
        hidden_BLH: Tensor = out.last_hidden_state.flatten(0, 1)[place_BL]
        return hidden_BLH

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """logits_NV before temperature, float32."""
        return output_logits(self.causal_lm, hidden_NH)


def response_states(hidden_BLH: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts each response token: hidden_NH, ids_N and mask_BT, N in row-major order of the mask.

    The state before token t sits one column to its left.
    """
    mask_BT = length_mask(batch.response_B)
    rows_N, steps_N = mask_BT.nonzero(as_tuple=True)
    columns_N = batch.prompt_B[rows_N] + steps_N
    ids_N = batch.ids_BL[rows_N, columns_N].to(hidden_BLH.device)
    return hidden_BLH[rows_N.to(hidden_BLH.device), (columns_N - 1).to(hidden_BLH.device)], ids_N, mask_BT


def spread(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """x_N back into its places: x_BT, zero outside the mask."""
    mask_BT = mask_BT.to(x_N.device)
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device).masked_scatter(mask_BT, x_N)


class LanguageActor:
    """The LoRA policy and its value head as PPO sees them (`learner.train_policy.Actor`)."""

    def __init__(self, trunk: Trunk, temperature: float = 1.0) -> None:
        self.trunk = trunk
        self.temperature = temperature
        self.value_head = nn.Linear(trunk.hidden_size, 1, device=trunk.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        hidden_NH, ids_N, mask_BT = response_states(*self.trunk.hidden(samples))
        logprobs_N = token_logprobs(self.trunk.logits(hidden_NH), ids_N, self.temperature)
        values_N = self.value_head(hidden_NH.detach().float()).squeeze(1)
        return spread(logprobs_N, mask_BT), spread(values_N, mask_BT)

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Detached hidden states under the value head, features_BTH."""
        with torch.no_grad():
            hidden_NH, _, mask_BT = response_states(*self.trunk.hidden(samples))
        features_BTH = hidden_NH.new_zeros((*mask_BT.shape, hidden_NH.shape[1]), dtype=torch.float32)
        features_BTH[mask_BT.to(hidden_NH.device)] = hidden_NH.float()
        return features_BTH

    def reference(self) -> Any:
        return self.trunk.acting(Role.ROOT)

    def train(self, mode: bool) -> None:
        self.trunk.model.train(mode)

    def policy_parameters(self) -> list[nn.Parameter]:
        return self.trunk.parameters(Role.POLICY)

    def value_parameters(self) -> list[nn.Parameter]:
        return list(self.value_head.parameters())


Pooling = Literal["last", "mean"]
"""Which hidden states the reward heads see: of the last token, or the mean over the reply's tokens."""


class RewardHeads(nn.Module):
    """K linear scores on a reply's pooled hidden state, each with a bias for grades and a length term."""

    def __init__(self, hidden_size: int, heads: int, seed: int, pooling: Pooling = "last") -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.weight_KH = nn.Parameter(torch.empty(heads, hidden_size))
        self.bias_K = nn.Parameter(torch.zeros(heads))
        self.length_K = nn.Parameter(torch.zeros(heads))
        self.mean_K: Tensor
        self.deviation_K: Tensor
        self.register_buffer("mean_K", torch.zeros(heads))
        self.register_buffer("deviation_K", torch.ones(heads))
        for k in range(heads):
            generator = torch.Generator().manual_seed(seed + k)
            nn.init.normal_(self.weight_KH.data[k], std=(hidden_size + 1) ** -0.5, generator=generator)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """Raw scores_BK, without length term and not standardised."""
        return hidden_BH.float() @ self.weight_KH.T

    def standardised(self, scores_BK: Tensor) -> Tensor:
        """Mean 0, deviation 1 on the root-reference samples that `mean_K` and `deviation_K` come from."""
        return (scores_BK - self.mean_K) / self.deviation_K


def pooled_states(hidden_BLH: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """hidden_BH of each row: at its last real token, or the mean over its response tokens."""
    prompt_B, length_B = (n.to(hidden_BLH.device) for n in (batch.prompt_B, batch.response_B))
    end_B = prompt_B + length_B
    if pooling == "last":
        return hidden_BLH[torch.arange(len(end_B), device=hidden_BLH.device), end_B - 1]
    place_L = torch.arange(hidden_BLH.shape[1], device=hidden_BLH.device)
    response_BL = (place_L >= prompt_B[:, None]) & (place_L < end_B[:, None])
    return (hidden_BLH * response_BL[:, :, None]).sum(dim=1) / length_B[:, None]


def linear_modules(causal_lm: Any) -> list[str]:
    """Last name parts of every linear layer of the base, sorted; the output embedding stays as it is.

    Raises: ModelError when there is none.
    """
    head = causal_lm.get_output_embeddings()
    names = set()
    for name, module in causal_lm.named_modules():
        parts = name.removesuffix(".base_layer").split(".")
        inside_lora = "lora_A" in parts or "lora_B" in parts
        if isinstance(module, nn.Linear) and module is not head and not inside_lora:
            names.add(parts[-1])
    found = sorted(names)
    if not found:
        raise ModelError("the model has no linear layers for LoRA to sit on")
    return found


def transformer_layers(causal_lm: Any) -> nn.ModuleList:
    """Raises: ModelError when the model keeps them elsewhere than all the families that we know."""
    layers = getattr(causal_lm.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{type(causal_lm).__name__} cannot be sharded: launch without --use_fsdp")
    return layers


def lora_config(rank: int, target_modules: Sequence[str], alpha: float | None = None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA_PER_RANK * rank if alpha is None else alpha,
        target_modules=list(target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def preload() -> None:
    """Import what `load_trunk` needs, seconds of work: better while the learner waits than in a turn."""
    import peft  # noqa: F401


def load_trunk(base_dir: Path, *, rank: int, seed: int, max_tokens: int = 1024) -> Trunk:
    """The base model in `base_dir` with a fresh policy adapter; bfloat16 on a GPU, float32 on a CPU.

    Adapters are float32 on both. Where the launch asked for it, the base weights are sharded over the ranks.

    Raises: ModelError naming what is wrong with the directory and what to do.
    """
    from peft import get_peft_model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar per load would tear our own
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, tokenizer = open_base(base_dir, torch.bfloat16 if device.type == "cuda" else torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base, lora_config(rank, linear_modules(base)), adapter_name=Role.POLICY.value)
    if shards_asked_for():
        shard_layers(transformer_layers(base))
    model.to(device).eval()
    trunk = Trunk(model, Encoder(tokenizer, eos_ids(base, tokenizer), context(base.config, max_tokens)))
    check_forward(trunk.causal_lm, lambda ids_BL: trunk.logits(trunk.states(ids_BL)))
    return trunk


def export_adapter(trunk: Trunk, role: Role, out_dir: Path) -> Path:
    """Writes the adapter's configuration and safetensors to `out_dir`; equal weights give equal bytes.

    Only the main process writes."""
    if not is_main():
        return out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    save_file(trunk.weights(role), out_dir / "adapter_model.safetensors")
    config = trunk.model.peft_config[role.value].to_dict()
    config["base_model_name_or_path"] = None
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n"
    (out_dir / "adapter_config.json").write_text(text, encoding="utf-8")
    return out_dir


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def read_adapter(adapter_dir: Path) -> tuple[Any, dict[str, Tensor]]:
    """Its LoRA configuration and tensors.

    Raises: ModelError when the directory holds no LoRA."""
    try:
        config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(adapter_dir / "adapter_model.safetensors")
        return lora_config(int(config["r"]), config["target_modules"], float(config["lora_alpha"])), weights
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise ModelError(f"{adapter_dir} is no LoRA adapter: {e!r}") from e


def does_nothing(adapter_dir: Path) -> bool:
    """True for an adapter whose every B is zero, like the identity adapter: it is the root reference, and
    with A zero too it could never be trained. Raises: ModelError."""
    _, weights = read_adapter(adapter_dir)
    return not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def load_adapter(trunk: Trunk, role: Role, adapter_dir: Path) -> None:
    """The adapter in `adapter_dir` as `role`, with its own rank, scale and layers.

    Raises: ModelError when the files are no LoRA for this trunk.
    """
    config, weights = read_adapter(adapter_dir)
    try:
        trunk.attach(role, config, seed=0)
    except ValueError as e:
        raise ModelError(f"{adapter_dir} does not fit this base model: {e}") from e
    trunk.set_weights(role, weights)


def base_hash(trunk: Trunk) -> str:
    """SHA-256 over the base weights, adapters left out: training must never change it."""
    digest = hashlib.sha256()
    for name, p in sorted(trunk.model.named_parameters()):
        if "lora_" not in name:
            digest.update(name.encode())
            whole = p.full_tensor() if hasattr(p, "full_tensor") else p
            digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
