"""Checkpoints of a policy run: one file each, whole or not there. A continued run is the run itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learner.distributed import is_main
from learner.errors import CheckpointError
from learner.train_policy import Actor, RunState

KEEP = 2


def write_atomically(path: Path, content: bytes) -> None:
    """The file is the old one or the new one, also after a crash or a power cut; rank 0 alone writes."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: Path, actor: Actor, state: RunState, fingerprint: str) -> Path:
    """Weights, optimizer, β and step; all chance follows from the step. Older files than the last two go.

    Only the main process writes."""
    path = folder / f"step-{state.step:06d}.pt"
    if not is_main():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{path.name}.{os.getpid()}"
    content = {
        "fingerprint": fingerprint,
        "policy": _tensors(actor.policy_parameters()),
        "value": _tensors(actor.value_parameters()),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "beta": state.beta,
        "start_kl": state.start_kl,
        "stopped": state.stopped,
    }
    with draft.open("wb") as f:
        torch.save(content, f)
        f.flush()
        os.fsync(f.fileno())
    draft.rename(path)
    sync_folder(folder)
    for old in sorted(folder.glob("step-*.pt"))[:-KEEP]:
        old.unlink()
    return path


def restore(folder: Path, actor: Actor, state: RunState, fingerprint: str) -> bool:
    """Puts the newest checkpoint into `actor` and `state`. Returns: whether there was one.

    Raises: CheckpointError for a file that is damaged or belongs to a run with other settings.
    """
    found = sorted(folder.glob("step-*.pt"))
    if not found:
        return False
    content = _read(found[-1])
    if content["fingerprint"] != fingerprint:
        raise CheckpointError(f"{found[-1]} was written with other settings: start a new run")
    with torch.no_grad():
        for name, parameters in (("policy", actor.policy_parameters()), ("value", actor.value_parameters())):
            for parameter, tensor in zip(parameters, content[name], strict=True):
                parameter.copy_(tensor)
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.beta = content["step"], content["beta"]
    state.start_kl, state.stopped = content["start_kl"], content["stopped"]
    return True


def _tensors(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in parameters]


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as e:
        raise CheckpointError(f"checkpoint {path} is damaged: {e}") from e
    return content
