"""Supervised fine-tuning of the policy adapter on weighted replies. Knows not who wrote them.

Legend: B targets of an optimizer step, T response token. Log-probabilities in nats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch

from learner.batches import Target, micro_batches, prompt_weights, response_mask
from learner.errors import MissingData
from learner.train_policy import Actor, RunState
from learner.train_reward import rate


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: float
    """Peak; rises over the first tenth of the steps and falls linearly to 0."""
    epochs: int = 2
    batch_rows: int = 16
    token_budget: int = 8192
    seed: int = 0


class FitMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step of a policy that is fitted to data, as a line of `metrics.jsonl`."""

    step: int
    loss: float
    """sft, best_of_n: nats per token. dpo: nats per pair (ln 2 at the reference). kto: 0 to 1 (½ there)."""
    rows: int
    """Rows in the step."""
    lr: float = 0.0
    """Learning rate of the policy in this step."""
    margin: float = 0.0
    """dpo: mean implicit reward of the chosen less the rejected replies, in log-odds."""
    kl: float = 0.0
    """kto: its estimate of the KL to the root reference, nats per reply."""


Observe = Callable[[FitMetrics, RunState, int], None]
"""Called after each step with its figures, the state to checkpoint and the steps in all."""


def start(actor: Actor, settings: Settings) -> RunState:
    return RunState(torch.optim.Adam(actor.policy_parameters(), lr=settings.lr, eps=1e-5))


def run(
    actor: Actor, targets: Sequence[Target], settings: Settings, state: RunState, observe: Observe
) -> RunState:
    """Raises the probability of every target; `observe` is called after every step (checkpoint there).

    No prompt weighs more than 1. All chance follows from (`settings.seed`, step): a run continued from a
    checkpoint is the run itself. A step whose gradient is not finite is left out.
    Raises: MissingData when no target has weight.
    """
    weighted = [
        Target(t.reply, weight)
        for t, weight in zip(targets, prompt_weights(targets), strict=True)
        if weight > 0
    ]
    if not weighted:
        raise MissingData("there is no reply of positive weight to imitate")
    batches = [b for epoch in range(settings.epochs) for b in shuffled(len(weighted), settings, epoch)]
    while state.step < len(batches):
        batch = [weighted[i] for i in batches[state.step]]
        lr = settings.lr * rate(state.step, len(batches))
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        loss = imitate(actor, state.optimizer, batch, settings.token_budget)
        state.step += 1
        observe(FitMetrics(step=state.step - 1, loss=loss, rows=len(batch), lr=lr), state, len(batches))
    return state


def shuffled(rows: int, settings: Settings, epoch: int) -> list[list[int]]:
    """One pass over the rows in batches, in an order that follows from seed and epoch."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(rows, generator=generator).tolist()
    return [order[i : i + settings.batch_rows] for i in range(0, rows, settings.batch_rows)]


def imitate(actor: Actor, optimizer: torch.optim.Adam, batch: Sequence[Target], token_budget: int) -> float:
    """One optimizer step on weighted cross-entropy under one denominator for the whole batch.

        L = −Σ_i w_i·Σ_t log π(y_it) / Σ_i w_i·|y_i|

    Returns: L before the step, nats per token.
    """
    total = sum(t.weight * len(t.reply.ids) for t in batch)
    actor.train(True)
    optimizer.zero_grad(set_to_none=True)
    loss_sum = 0.0
    for group in micro_batches([t.reply.length for t in batch], token_budget):
        replies = [batch[i].reply for i in group]
        logprobs_BT, _ = actor.forward(replies)
        weights_B = logprobs_BT.new_tensor([batch[i].weight for i in group])
        mask_BT = response_mask(replies).to(logprobs_BT.device)
        loss = -((logprobs_BT * mask_BT).sum(1) * weights_B).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(actor.policy_parameters(), 1.0)
    if math.isfinite(loss_sum) and bool(norm.isfinite()):
        optimizer.step()
    actor.train(False)
    return loss_sum
