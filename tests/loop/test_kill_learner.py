"""A turn of the loop, killed again and again, stays the same turn: one run, one snapshot, one candidate."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest

from feedback import pipeline, store
from feedback.config import Deployment, Pipeline
from feedback.embedded import EmbeddedLog
from feedback.events import Event
from learner import runs
from ops.adapters import Adapter
from ops.registry import Registry
from tests.feedback.builders import append, thumb, turn
from tests.loop.conftest import Launch
from tests.loop.processes import Process, wait_until, write_config
from tests.loop.toy import BAD, GOOD, LEARNER, QUESTIONS

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PIPELINE = Pipeline(heldout_fraction=0.3, account_cap=1.0)
SETTINGS = msgspec.structs.replace(
    LEARNER, sampler="local", policy_steps=12, checkpoint_every=1, eval_samples=16, threads=1
)

MOMENTS = ((0, 0), (1, 0), (2, 3), (2, 8), (3, 0))
"""When to kill: stages finished, and PPO steps done."""

pytestmark = pytest.mark.slow


def test_a_killed_turn_is_continued(launch: Launch, toy_base: Path, tmp_path: Path) -> None:
    """Killed at random moments in every stage that takes time, while feedback goes on coming in; the weights
    are those of a turn left in peace."""
    conversations = [event for n in range(len(QUESTIONS)) for event in conversation(n)]
    peaceful, killed = (deployment(tmp_path / name, toy_base, conversations) for name in ("peace", "kills"))
    undisturbed = launch(config_of(peaceful), "learn", "turn")

    chance, starts = Random(7), 0
    for moment in MOMENTS:
        learner = launch(config_of(killed), "learn", "turn")
        starts += 1
        wait_until(partial(is_at, killed, learner, moment, starts), f"{moment} is reached")
        time.sleep(chance.uniform(0.0, 0.3))
        assert learner.running, learner.tail()
        learner.kill()
        if runs.runs(killed)[0].snapshot:  # what comes later is the next turn's business
            feed(killed, conversation(100 + starts))
    assert launch(config_of(killed), "learn", "turn").wait(120) == 0

    assert undisturbed.wait(120) == 0

    (continued,) = runs.runs(killed)
    found, expected = candidate(killed), candidate(peaceful)
    assert continued.adapter == found.name
    assert continued.snapshot == found.snapshot == expected.snapshot
    assert found.name == expected.name, "other weights than those of the undisturbed turn"
    assert found.report == expected.report
    print(f"\nlearner: {starts} kills; 1 run, 1 snapshot, 1 candidate, the weights of an undisturbed turn")


def deployment(folder: Path, base: Path, events: Sequence[Event]) -> Deployment:
    """A folder with a configuration file and folded feedback."""
    placed = Deployment(data_dir=folder / "data", base_model=str(base))
    placed.data_dir.mkdir(parents=True)
    write_config(
        folder,
        deployment={"data_dir": placed.data_dir, "base_model": base},
        pipeline={"heldout_fraction": 0.3, "account_cap": 1.0},
        learner=msgspec.structs.asdict(SETTINGS),
    )
    feed(placed, events)
    return placed


def config_of(placed: Deployment) -> Path:
    return placed.data_dir.with_name("ratchet.toml")


def conversation(n: int) -> list[Event]:
    """A question and a good reply, thumb up; or a bad one, thumb down, and a better second try."""
    asked = {"conversation": f"c{n}", "who": f"user-{n % 12}"}
    question = QUESTIONS[n % len(QUESTIONS)]
    first = turn(f"r{n}-1", question, GOOD if n % 2 else BAD, at=60.0 * n, **asked)
    if n % 2:
        return [first, thumb(first, True, at=60.0 * n + 10)]
    second = turn(f"r{n}-2", question, GOOD, at=60.0 * n + 20, **asked)
    return [first, thumb(first, False, at=60.0 * n + 10), second, thumb(second, True, at=60.0 * n + 30)]


def feed(placed: Deployment, events: Sequence[Event]) -> None:
    """Into the log, and through the pipeline."""
    state = store.open_state(placed.state)
    with closing(EmbeddedLog(placed.log_path)) as log:
        append(log, *events)
        while pipeline.step(log, state, PIPELINE, now=NOON).records:
            pass
    state.dispose()


def is_at(placed: Deployment, learner: Process, moment: tuple[int, int], starts: int) -> bool:
    """The learner of the last of so many starts works, and the run is that far."""
    assert learner.running, learner.tail()
    if learner.output.read_text().count("turn_started") < starts:
        return False
    (found,) = runs.runs(placed)
    metrics = placed.runs_dir / found.run_id / "metrics.jsonl"
    steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    return len(found.stages) >= moment[0] and steps >= moment[1]


def candidate(placed: Deployment) -> Adapter:
    """The one that is registered."""
    with closing(Registry(placed.state)) as registry:
        (found,) = registry.list()
    return found
