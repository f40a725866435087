"""What a turn of the loop costs as history grows: ten turns on a toy model, as many new thumbs before each.

All in one process, on real parts but the engine (`LocalSampler`): log, pipeline, snapshot, reward model, PPO,
evaluation, registry. CPU seconds, so that other work on the machine hardly counts. Beside it the same turns
with a window that is never full, and what the snapshot of a long history costs to build and to read.
"""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from time import process_time

import msgspec
import numpy as np
import torch

from feedback import database, pipeline, snapshots, store
from feedback.config import Deployment, Pipeline
from feedback.derivation import Derived
from feedback.embedded import EmbeddedLog
from learner import runs, turn, window
from learner.batches import Encoder
from learner.config import Learner
from learner.train_reward import RewardModel
from ops.registry import Registry
from ops.traffic import TrafficTable
from tests import engines
from tests.feedback import builders

Row = dict[str, object]

TURNS = 10
USERS = 40
"""New in each turn; each asks something of their own and puts a thumb on the reply."""
WINDOW = 32
"""Less than the training rows of the second turn."""
HISTORY = 10_000
LEARNER = Learner(
    sampler="local",
    rank=4,
    max_reply_tokens=8,
    reward_lr=8e-3,
    reward_epochs=1,
    reward_pooling="mean",
    reward_heads=2,
    reward_batch_prompts=8,
    root_samples=16,
    policy_steps=1,
    prompts_per_step=8,
    samples_per_prompt=2,
    eval_prompts=8,
    eval_samples=2,
    threads=1,
)
OPEN = Pipeline(account_cap=1.0, subject_cap=1.0)
GOOD = ("Gladly: ", "here is how. ", "First, ", "step by step. ", "done then. ")
BAD = ("No idea, ", "ask elsewhere. ", "Whatever. ", "as I said. ", "read the page. ")


@dataclass
class Course:
    """Ten turns, one after the other."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds by stage, a dict a turn."""
    right: float = 0.0
    """Share of unseen pairs that the last reward model orders by true worth."""

    def whole(self, number: int) -> float:
        return sum(self.seconds[number - 1].values())

    def growth(self) -> float:
        """Cost of the tenth turn over that of the second, on the line fitted through turns 2 to 10."""
        numbers = np.arange(2, TURNS + 1)
        slope, start = np.polyfit(numbers, [self.whole(int(n)) for n in numbers], 1)
        return float((start + slope * TURNS) / (start + slope * 2))


def rows() -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        base_dir = engines.make_tiny_base(Path(scratch) / "base")
        bounded = course(Path(scratch) / "window", base_dir, WINDOW)
        whole = course(Path(scratch) / "whole", base_dir, 10**6)
        return [*turn_rows(bounded, whole), *history_rows(Path(scratch) / "long")]


def course(folder: Path, base_dir: Path, reward_rows: int) -> Course:
    deployment = Deployment(data_dir=folder, base_model=str(base_dir))
    folder.mkdir()
    setting = turn.Setting(
        deployment=deployment,
        pipeline=OPEN,
        learner=msgspec.structs.replace(LEARNER, reward_rows=reward_rows),
        base_dir=base_dir,
        engine_urls=[],
    )
    found = Course()
    for number in range(1, TURNS + 1):
        now = builders.NOON + timedelta(hours=number)
        found.seconds.append({"fold": gathered(deployment, number, now)})
        bench = one_turn(setting, now, found.seconds[-1])
        stages = ", ".join(f"{name} {s:.2f}" for name, s in found.seconds[-1].items())
        print(f"bench-turns: turn {number}: {found.whole(number):.2f} CPU s: {stages}", file=sys.stderr)
    model, _ = turn.reward_of(bench)
    found.right = ordered(model, bench.encoder)
    return found


def one_turn(setting: turn.Setting, now: datetime, seconds: dict[str, float]) -> turn.Bench:
    """Its stages' seconds are added to `seconds`; its candidate serves everybody afterwards."""
    begun = process_time()
    runs.pending(setting.deployment)
    run = turn.begin(setting, now)
    bench = turn.open_bench(setting, run)
    seconds["begin"] = process_time() - begun
    for stage in runs.STAGES:
        begun = process_time()
        run = turn.perform(bench, run, stage, now)
        seconds[stage] = process_time() - begun
    with turn.registry(setting) as registry:
        promote(registry, str(run.adapter), now)
    return bench


def promote(registry: Registry, name: str, now: datetime) -> None:
    before = registry.traffic()
    revision = before.revision if before else 0
    registry.set_traffic(
        TrafficTable(revision=revision + 1, stable=name), expected_revision=revision, by="bench", at=now
    )


def gathered(deployment: Deployment, number: int, now: datetime) -> float:
    """CPU seconds in which the pipeline folds a turn's new feedback."""
    chance = Random(number)
    with closing(EmbeddedLog(deployment.log_path)) as log, store.opened(deployment.state) as state:
        for i in range(USERS):
            name = f"{number}-{i}"
            reply, worth = said(chance)
            asked = builders.turn(
                f"chatcmpl-{name}",
                words(chance),
                reply,
                at=3600.0 * (number - 1) + 10 * i,
                conversation=name,
                who=name,
            )
            up = chance.random() < 1 / (1 + np.exp(-2.0 * worth))
            builders.append(log, asked, builders.thumb(asked, up))
        begun = process_time()
        while pipeline.step(log, state, OPEN, now=now).records:
            pass
        return process_time() - begun


def words(chance: Random) -> str:
    """A question that nobody asked before."""
    return " ".join(f"{chance.getrandbits(24):06x}" for _ in range(3))


def said(chance: Random) -> tuple[str, float]:
    """A reply of four phrases, and its true worth: good phrases less bad ones."""
    good = [chance.random() < 0.5 for _ in range(4)]
    text = "".join(chance.choice(GOOD if one else BAD) for one in good)
    return text.strip(), 2.0 * sum(good) - 4.0


def ordered(model: RewardModel, encoder: Encoder) -> float:
    """Share of unseen pairs of different worth whose better reply scores higher."""
    chance = Random(0)
    samples, better = [], []
    while len(better) < 300:
        prompt = encoder.prompt(f"{len(better):032x}", [builders.user(words(chance))])
        (one, worth), (other, other_worth) = said(chance), said(chance)
        if worth != other_worth:
            samples += [encoder.reply(prompt, one), encoder.reply(prompt, other)]
            better.append(worth > other_worth)
    score_B = model.raw(samples).mean(dim=1)
    return float(((score_B[0::2] > score_B[1::2]) == torch.tensor(better)).float().mean())


def turn_rows(bounded: Course, whole: Course) -> list[Row]:
    stages = [
        row(f"{stage}, turn {TURNS}", bounded.seconds[-1][stage], "CPU s", "turn 2", seconds)
        for stage, seconds in bounded.seconds[1].items()
    ]
    everything = "everything read and fitted anew"
    return [
        *stages,
        row(f"whole turn, turn {TURNS}", bounded.whole(TURNS), "CPU s", "turn 2", bounded.whole(2)),
        row(
            f"turn {TURNS} over turn 2", bounded.growth(), "fitted line", everything, whole.growth(), "<= 1.1"
        ),
        row("unseen pairs in true order after it", bounded.right, "share", everything, whole.right),
    ]


def history_rows(folder: Path) -> list[Row]:
    """A snapshot of many rows: to build, to read whole, and to read as a turn does."""
    deployment = Deployment(data_dir=folder)
    folder.mkdir()
    gathered(deployment, 1, builders.NOON + timedelta(hours=1))
    with store.opened(deployment.state) as state:
        with database.reading(state) as tx:
            few = list(store.derived_rows(tx, "grade"))
        with database.writing(state) as tx:
            store.replace_derived(tx, copies(few))
        seconds: dict[str, float] = {}
        begun = process_time()
        manifest = snapshots.build_from(state, deployment.snapshots_dir, OPEN, builders.NOON)
        seconds["build"] = process_time() - begun
    path = deployment.snapshots_dir / manifest.name
    bound = window.Window(
        rows=WINDOW, heldout_rows=WINDOW // 2, prompts=64, heldout_prompts=64, since=builders.NOON, seed=1
    )
    for name, choose in (("read whole", None), ("read for a turn", partial(window.choose, window=bound))):
        begun = process_time()
        snapshots.load(path, choose)
        seconds[name] = process_time() - begun
    begun = process_time()
    runs.pending(deployment)
    seconds["ask whether a turn is due"] = process_time() - begun
    return [row(f"snapshot of {HISTORY} grades: {name}", s, "CPU s") for name, s in seconds.items()]


def copies(few: list) -> Mapping[str, Derived]:
    """As many grades as a long history has, each of a user and a prompt of its own."""
    made = {}
    for i in range(HISTORY):
        name = f"{i:032x}"
        grade = msgspec.structs.replace(
            few[i % len(few)],
            grade_id=name,
            prompt_digest=name,
            response_id=name,
            user=name,
            event_ids=(name,),
        )
        made[name] = Derived(grades=(grade,))
    return made


def row(
    figure: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    goal: str | None = None,
) -> Row:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "goal": goal,
        "peer": peer,
        "peer_value": peer_value,
    }
