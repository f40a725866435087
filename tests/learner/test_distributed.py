"""Many GPUs: two processes make the update that one makes, sharded or not, and end together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from learner import distributed
from learner.batches import micro_batches


def test_one_process_has_every_row_to_itself() -> None:
    """Without a launch nothing is shared, added up or sent: the same lines serve one process."""
    lengths = [5, 9, 2, 7, 7]
    shares = distributed.shares(lengths, 16)
    assert [s.rows for s in shares] == micro_batches(lengths, 16)
    assert {s.weight for s in shares} == {1.0}
    assert distributed.is_main() and distributed.from_main(lambda: 3) == 3


def test_groups_for_several_ranks_hold_each_rank_to_the_budget() -> None:
    """Budget 16, two ranks: rows of 9 one each, so two side by side; rows of 7 two each, so up to four."""
    lengths = [9, 9, 9, 7, 7, 7, 20]
    assert micro_batches(lengths, 16, ranks=2) == [[6, 0], [1, 2], [3, 4, 5]]


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(tiny_base: Path, tmp_path: Path, free_port: int) -> None:
    """PPO, reward model and SFT: weights, heads, losses and statistics agree to 1e-5 on both ranks, the PPO
    step also over sharded base weights (FSDP2). Then rank 1 fails alone, and rank 0 does not wait for it."""
    import torch

    from tests.learner import two_ranks

    ranks = [launch(rank, free_port, tiny_base, tmp_path) for rank in (0, 1)]
    alone = {name: update(tiny_base, 64) for name, update in two_ranks.UPDATES.items()}
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [p.returncode for p in ranks] == [1, 1], said
    assert "a GPU is lost" in said[1]
    for name, sharded in two_ranks.CASES:
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}-{sharded}-{rank}.pt")
            assert found.keys() == alone[name].keys()
            for what, tensor in alone[name].items():
                assert torch.allclose(found[what], tensor, rtol=0, atol=1e-5), (name, sharded, rank, what)


def launch(rank: int, port: int, base_dir: Path, out_dir: Path) -> "subprocess.Popen[str]":
    """One of two processes, with the environment that `accelerate launch` and `torchrun` give it."""
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.learner.two_ranks", str(base_dir), str(out_dir)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
        | {name: str(value) for name, value in launched.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
