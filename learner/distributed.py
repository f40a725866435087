"""Several processes, one update: all have every sample and number of a batch and share its passes out.

What the ranks computed is added up before anything is divided, clipped, whitened or decided, so each goes on
with the numbers that one process would have. In a single process nothing here does anything. Started by
`accelerate launch` or `torchrun`, whose environment variables say who is who.

Legend: ranks are numbered from 0; rank 0 is the main process, which alone writes files and asks engines.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.batches import micro_batches

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One rank's part of a micro-batch."""

    rows: list[int]
    weight: float = 1.0
    """0 where there was no row left for this rank: it computes one along, as all ranks must in step."""


def join() -> None:
    """Meets the other processes of the launch, if there are any, and takes the GPU of the local rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # else transformers leaves the other ranks' weights empty, for accelerate's own wrapper to fill
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def shares(lengths: Sequence[int], token_budget: int) -> list[Share]:
    """This rank's parts of a batch: as many on every rank, each within the budget (one row always fits).

    All ranks' parts of weight 1 together are every row once. Neighbours, which often share a prompt, stay so.
    """
    groups = micro_batches(lengths, token_budget, ranks())
    return [Share(group) if ranks() == 1 else dealt(sorted(group)) for group in groups]


def dealt(rows: list[int]) -> Share:
    """This rank's rows, side by side, of a batch that has at least one."""
    own = rows[len(rows) * rank() // ranks() : len(rows) * (rank() + 1) // ranks()]
    return Share(own) if own else Share(rows[:1], 0.0)


def total(x: Tensor) -> Tensor:
    """The sum of every rank's `x`; in place. A detached tensor of the same shape on all ranks."""
    if ranks() > 1:
        dist.all_reduce(x)
    return x


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes the sum over the ranks, whose losses were divided by global denominators."""
    if ranks() == 1:
        return
    pending = [dist.all_reduce(p.grad, async_op=True) for p in parameters if p.grad is not None]
    for work in pending:
        work.wait()


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, in every process; it is called there only.

    Raises: what it raised there, in every process.
    """
    if ranks() == 1:
        return make()
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer[0] = make()
        except Exception as e:  # nobody may be left waiting
            answer[1] = e
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise answer[1]
    made: T = answer[0]
    return made


def shards_asked_for() -> bool:
    """Whether `accelerate launch --use_fsdp --fsdp_version 2` started this process."""
    return ranks() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard_layers(layers: Iterable[nn.Module]) -> None:
    """Leaves each rank its part of the layers' frozen weights (FSDP2); a layer is whole while it computes.

    What is trained stays whole on every rank: adapters are small, and their gradients are added up as without
    sharding. Moves the layers to this rank's device, one after the other.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks(),))
    for layer in layers:
        trained = {p for p in layer.parameters() if p.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
