"""The output layer: logits where they are needed, else log-probabilities of given tokens alone.

With a vocabulary of 150,000 the logits of a micro-batch are by far the largest tensor of an update, and
autograd keeps several of that size. But a token's log-probability is one number, and what it sends back into
the trunk one vector; both come from a running softmax over blocks of the vocabulary, dropped at once.

Legend: N tokens, C tokens at a time, H hidden size, V vocabulary, W a block of it.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

TOKENS_AT_ONCE, BLOCK = 512, 4096
"""Tokens and rows of the output layer at a time: 8 MiB of logits, which stay in a processor's cache."""
GPU_FACTOR = 4
"""As many times both on a GPU, whose kernels are worth starting for large blocks only."""


@dataclass(frozen=True)
class OutputLayer:
    """logits = cap·tanh(scale·(W·h + b) / cap); scale·(W·h + b) without a cap."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, causal_lm: Any) -> Self:
        """The model's own: Cohere names a factor, Granite a divisor, Gemma 2 a cap."""
        config = causal_lm.config
        factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(causal_lm.get_output_embeddings(), float(factor / divisor), softcap)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """logits_NV before temperature, float32."""
        return self.shaped(self.linear(hidden_NH))

    def shaped(self, raw_NV: Tensor) -> Tensor:
        """The linear layer's results, scaled and capped, float32."""
        logits_NV = raw_NV.float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)

    def logprobs(self, hidden_NH: Tensor, ids_N: Tensor, temperature: float) -> Tensor:
        """Log-probability (nats) of each id at the sampling temperature, float32.

            log p(id) = z_id − log Σ_v exp z_v        z = logits/τ
            ∂ log p(id) / ∂h = scale/τ · Σ_v (1[v = id] − p_v)·(1 − (logit_v/cap)²)·W_v

        The second line, a vector per token, is formed with the first and is all that is kept for `backward`.
        Returns: logprobs_N, with gradient to hidden_NH alone: the layer is frozen.
        """
        learning = torch.is_grad_enabled() and hidden_NH.requires_grad
        logprobs_N: Tensor = _TokenLogprobs.apply(hidden_NH, ids_N, self, temperature, learning)  # type: ignore[no-untyped-call]
        return logprobs_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, ids_N: Tensor, layer: OutputLayer, temperature: float, learning: bool
    ) -> Tensor:
        at_once = TOKENS_AT_ONCE * (GPU_FACTOR if hidden_NH.is_cuda else 1)
        parts = [
            _chunk(layer, hidden_CH, ids_C, temperature, learning)
            for hidden_CH, ids_C in zip(
                torch.split(hidden_NH, at_once), torch.split(ids_N, at_once), strict=True
            )
        ]
        if learning:
            ctx.save_for_backward(torch.cat([slope_CH for _, slope_CH in parts]))
        return torch.cat([logprobs_C for logprobs_C, _ in parts])

    @staticmethod
    def backward(ctx: Any, *grads_N: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope_NH,) = ctx.saved_tensors
        return (grads_N[0][:, None] * slope_NH).to(slope_NH.dtype), None, None, None, None


def _chunk(
    layer: OutputLayer, hidden_CH: Tensor, ids_C: Tensor, temperature: float, learning: bool
) -> tuple[Tensor, Tensor]:
    """logprobs_C and, when learning, their gradient with respect to hidden_CH (else an empty tensor).

    Sums are kept relative to the largest logit so far. Source: arXiv:1805.02867, algorithm 3.
    """
    weight_VH = layer.linear.weight.detach()
    own_C = hidden_CH.new_zeros(len(ids_C), dtype=torch.float32)
    own_slope_C = torch.ones_like(own_C)
    top_C, sum_C = torch.full_like(own_C, -torch.inf), torch.zeros_like(own_C)
    mean_CH = torch.zeros_like(hidden_CH, dtype=torch.float32)
    rows = BLOCK * (GPU_FACTOR if hidden_CH.is_cuda else 1)
    for first in range(0, len(weight_VH), rows):
        block = slice(first, first + rows)
        logits_CW = layer.shaped(_linear(layer.linear, hidden_CH, block))
        place_C = (ids_C - first).clamp(0, logits_CW.shape[1] - 1)
        here_C = place_C == ids_C - first
        slope_CW = None if layer.softcap is None else 1.0 - (logits_CW / layer.softcap) ** 2
        if slope_CW is not None:
            own_slope_C = torch.where(here_C, _own(slope_CW, place_C), own_slope_C)
        if temperature != 1.0:
            logits_CW /= temperature
        own_C = torch.where(here_C, _own(logits_CW, place_C), own_C)
        higher_C = torch.maximum(top_C, logits_CW.amax(1))
        shrink_C, top_C = (top_C - higher_C).exp(), higher_C
        share_CW = logits_CW.sub_(top_C[:, None]).exp_()
        sum_C = sum_C * shrink_C + share_CW.sum(1)
        if learning:
            share_CW = share_CW if slope_CW is None else share_CW.mul_(slope_CW)
            mean_CH.mul_(shrink_C[:, None]).add_(share_CW.to(weight_VH.dtype) @ weight_VH[block])
    logprobs_C = own_C - top_C - sum_C.log()
    if not learning:
        return logprobs_C, hidden_CH.new_empty(0)
    slope_CH = own_slope_C[:, None] * weight_VH[ids_C] - mean_CH / sum_C[:, None]
    return logprobs_C, (slope_CH * (layer.scale / temperature)).to(hidden_CH.dtype)


def _linear(linear: nn.Linear, hidden_CH: Tensor, block: slice) -> Tensor:
    bias_W = None if linear.bias is None else linear.bias[block]
    return nn.functional.linear(hidden_CH, linear.weight[block], bias_W)


def _own(x_CW: Tensor, place_C: Tensor) -> Tensor:
    return x_CW.gather(1, place_C[:, None]).squeeze(1)
