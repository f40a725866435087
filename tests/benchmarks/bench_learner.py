"""Reward model and PPO against TRL: the same model, data, batch, lengths and epochs, a step of each in turn.

Both run in processes of their own with as many threads; on a CPU the clock is CPU seconds, so that what else
the machine does disturbs neither. PPO's peer is the last TRL that has it, in an environment of its own under
`build/`, which looks into ours for everything else: only TRL differs. The limit is plain matrix products.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from tests.benchmarks.learner_shapes import CPU_SHAPES, GPU_SHAPES, REWARD_STEPS, Shape
from tests.benchmarks.learner_task import Task

PPO_PEER = "1.12.0"
FOLDER = Path("build/bench-learner")
WARM_UP = 1
"""Steps of each side that are not counted."""

Rows = list[dict[str, object]]


class SideFailed(Exception):
    """One side's process ended early; names its log."""


class Side:
    """A process that does one piece of work per line that it is sent."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log = process, log

    def read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SideFailed(f"{self._log} ends with:\n" + "\n".join(self._log.read_text().splitlines()[-5:]))
        said: dict[str, Any] = json.loads(line)
        return said

    def turn(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read()


@contextmanager
def side(python: str, module: str, what: str, task: Path, *adapters: Path) -> Iterator[Side]:
    log = task.parent / f"{module}-{what}.log"
    command = [python, "-m", f"tests.benchmarks.{module}", what, str(task), *map(str, adapters)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield Side(process, log)
    finally:
        process.kill()
        process.wait()


def in_turn(what: str, task: Path, peer: str | None, steps: int) -> list[list[dict[str, Any]]]:
    """What ours and, where there is a peer, TRL's said: when it was ready, then after each step.

    Raises: SideFailed.
    """
    with ExitStack() as stack:
        modules = [(sys.executable, "learner_ours", "adapter-ours")]
        modules += [] if peer is None else [(peer, "learner_trl", "adapter-trl")]
        sides = [
            stack.enter_context(side(python, module, what, task, task.parent / adapter))
            for python, module, adapter in modules
        ]
        said = [[each.read()] for each in sides]
        for _ in range(steps):
            for each, figures in zip(sides, said, strict=True):
                figures.append(each.turn())
        for each in sides:
            each.turn()  # writes its adapter
    return said


def peer_python() -> str:
    """TRL's environment, made on first use."""
    folder = (Path("build") / f"trl-{PPO_PEER}").absolute()
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder} with trl=={PPO_PEER}")
        venv.create(folder, with_pip=True, clear=True)
        version_of_python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        paths = folder / "lib" / version_of_python / "site-packages" / "ours.pth"
        paths.write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", f"trl=={PPO_PEER}"],
            check=True,
        )
        (folder / "made").touch()
    return str(python)


def rows() -> Rows:
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    shapes = GPU_SHAPES if torch.cuda.is_available() else CPU_SHAPES
    return [row for shape in shapes for row in compare(shape)]


def compare(shape: Shape) -> Rows:
    folder = (FOLDER / shape.name.replace(" ", "-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    task = shape.make(folder)
    path = task.save(folder / "task.json")
    found = reward_rows(task, path, shape.peer) + policy_rows(task, path, shape.peer)
    if shape.judged:
        found += judged_rows(path)
    return [row | {"figure": f"{shape.name}: {row['figure']}"} for row in found]


def row(
    figure: str, value: float, unit: str, goal: str = "", peer: str = "", peer_value: float | None = None
) -> dict[str, object]:
    return dict(figure=figure, value=value, unit=unit, goal=goal, peer=peer, peer_value=peer_value)


def beside(figure: str, unit: str, values: list[float], peer: str, goal: str = "") -> Rows:
    """Ours and the peer's value, and how many times the peer's ours is; ours alone where there is no peer."""
    if len(values) == 1:
        return [row(figure, values[0], unit)]
    ratio = row(f"{figure}, ratio", values[0] / values[1], "ratio", goal, peer, 1.0)
    return [row(figure, values[0], unit, "", peer, values[1]), ratio]


def middle(said: list[dict[str, Any]], name: str) -> float:
    """Median over the steps that count."""
    return median(step[name] for step in said[1 + WARM_UP :])


def reward_rows(task: Task, path: Path, with_peer: bool) -> Rows:
    said = in_turn("reward", path, sys.executable if with_peer else None, REWARD_STEPS)
    speeds = [task.pair_batch / middle(each, "step_s") for each in said]
    return beside("reward model", "pairs/s", speeds, f"RewardTrainer {version('trl')}", ">= 1.3")


def policy_rows(task: Task, path: Path, with_peer: bool) -> Rows:
    said = in_turn("policy", path, peer_python() if with_peer else None, task.steps)
    ours, peer = said[0], f"PPOTrainer {PPO_PEER}"
    if any(step["optimizer_steps"] != task.epochs for step in ours[1:]):
        raise SideFailed(f"ours did not make {task.epochs} optimizer steps in every PPO step")

    def speeds(name: str) -> list[float]:
        return [task.batch / middle(each, name) for each in said]

    memory = [middle(each, "peak_bytes") / 2**20 for each in said]
    reached = [least_update_s(task, ours) / middle(each, "update_s") for each in said]
    tokens = task.epochs * median(
        step["prompt_tokens"] + step["reply_tokens"] for step in ours[1 + WARM_UP :]
    )
    return [
        *beside("PPO update", "replies/s", speeds("update_s"), peer, ">= 2.5"),
        *beside("PPO step with sampling", "replies/s", speeds("step_s"), peer, ">= 4"),
        *beside("sampling alone", "replies/s", speeds("sample_s"), peer),
        *beside("peak memory of the update", "MiB", memory, peer, "<= 0.5"),
        row("PPO update, each prompt once", tokens / middle(ours, "update_s"), "tokens/s"),
        beside("PPO update against its matrix products alone", "ratio", reached, peer)[0],
    ]


def least_update_s(task: Task, ours: list[dict[str, Any]]) -> float:
    """Seconds of the update's matrix products at the rate of plain ones, each prompt computed once."""
    ready = ours[0]
    return task.epochs * median(
        (said["prompt_tokens"] + said["reply_tokens"]) * ready["trunk_s_per_token"]
        + said["reply_tokens"] * ready["output_s_per_token"]
        for said in ours[1 + WARM_UP :]
    )


def judged_rows(path: Path) -> Rows:
    """Held-out reward after equally many samples, judged by one sampler; 95 % interval over prompts."""
    with side(
        sys.executable,
        "learner_ours",
        "judge",
        path,
        path.parent / "adapter-ours",
        path.parent / "adapter-trl",
    ) as judge:
        ours, theirs = judge.read()["scores"]
    ahead = [a - b for a, b in zip(ours, theirs, strict=True)]
    margin = 1.96 * stdev(ahead) / len(ahead) ** 0.5
    peer = f"PPOTrainer {PPO_PEER}"
    return [
        row("held-out reward at equal samples", mean(ours), "deviations", "", peer, mean(theirs)),
        row("held-out reward, ours ahead by", mean(ahead), f"± {margin:.2f}", ">= 0", peer, 0.0),
    ]
