"""`ratchet learn status`: what a stranger sees of the turn under way, the next one, and those before."""

import fcntl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from feedback import store
from feedback.config import Deployment
from learner import runs
from learner.config import Learner
from learner.runs import STAGES, Progress, Run
from learner.schedule import Due
from learner.status import Status, page, status, waits_for
from ops.adapters import Adapter
from ops.config import Rollout
from ops.registry import Registry
from tests.feedback.builders import NOON
from tests.ops.reports import GOOD

NOW = NOON + timedelta(minutes=10)
TOOK = {"snapshot": 1.0, "reward": 40.0, "policy": 60.0, "evaluate": 20.0, "register": 0.5}


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """One run is finished, the next is in its policy stage: six of its 24 steps took 30 s, to 5 s ago."""
    deployment = Deployment(data_dir=tmp_path)
    store.open_state(deployment.state).dispose()
    name = "run-0001-aaaaaaaa"
    keep(
        deployment,
        Run(run_id="run-0001", fingerprint="f", started_at=NOON, stages=STAGES, adapter=name, seconds=TOOK),
    )
    keep(deployment, Run(run_id="run-0002", fingerprint="f", started_at=NOON, stages=STAGES[:2]))
    begun = NOW - timedelta(seconds=35)
    mark = Progress(
        stage="policy",
        begun_at=begun,
        at=begun + timedelta(seconds=30),
        first=4,
        done=10,
        total=24,
        figures="reward +0.50, KL 3.0",
    )
    (deployment.runs_dir / "run-0002" / "progress.json").write_bytes(msgspec.json.encode(mark))
    with closing(Registry(deployment.state)) as registry:
        registry.register(
            Adapter(
                name=name,
                sha256="aaaaaaaa" * 8,
                path="/nowhere",
                base_sha256="b" * 64,
                run_id="run-0001",
                report=msgspec.structs.replace(GOOD, reward_gain_low=-0.2),
                reason="trained by ppo",
                created_at=NOON,
                changed_at=NOON,
            )
        )
    return deployment


def keep(deployment: Deployment, run: Run) -> None:
    folder = deployment.runs_dir / run.run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(run))


@contextmanager
def learner_at_work(deployment: Deployment) -> Iterator[None]:
    with (deployment.runs_dir / runs.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def seen(deployment: Deployment) -> Status:
    return status(deployment, Learner(), Rollout(), NOW)


def text(found: Status) -> str:
    console = Console(width=100, file=StringIO())
    console.print(page(found))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_turn_under_way_says_how_far_it_is_and_how_long_it_takes(deployment: Deployment) -> None:
    """Its 6 steps took 30 s, 14 are left: 70 s, 5 of which are over; then 20.5 s as in the last run."""
    with learner_at_work(deployment):
        found = seen(deployment)
    assert found.under_way is not None
    assert found.under_way.left_s == pytest.approx(70.0 - 5.0 + 20.5)
    shown = text(found)
    assert "run-0002, begun 10 min ago: stage 3 of 5, policy" in shown
    assert "10/24 steps, reward +0.50, KL 3.0" in shown
    assert "about 86 s left" in shown


def test_a_turn_that_nobody_works_on_says_so(deployment: Deployment) -> None:
    """The learner was killed: no time is promised, and the way on is named."""
    found = seen(deployment)
    assert found.under_way is not None
    assert (found.under_way.running, found.under_way.left_s) == (False, None)
    assert "no learner is running" in text(found)


def test_each_run_says_what_the_gates_made_of_it(deployment: Deployment) -> None:
    """A stranger sees the outcome, why the candidate waits, and everything in `--json`."""
    line = seen(deployment).runs[-1]
    assert (line.outcome, line.seconds, line.gates, line.state) == (
        "finished",
        121.5,
        "inconclusive",
        "registered",
    )
    assert "reward_gain" in line.why
    shown = text(seen(deployment))
    assert "inconclusive" in shown and "registered" in shown
    assert (
        msgspec.json.decode(msgspec.json.encode(seen(deployment)))["runs"][1]["adapter"]
        == "run-0001-aaaaaaaa"
    )


def test_no_runs_yet_says_what_to_do(tmp_path: Path) -> None:
    found = seen(Deployment(data_dir=tmp_path))
    assert (found.under_way, found.runs) == (None, [])
    assert "weight 0.0 of 100 gathered" in text(found)
    assert "ratchet learn serve" in text(found)


@pytest.mark.parametrize(
    "gathered,clock_s,said",
    [
        (40.0, None, "weight 40.0 of 100 gathered"),
        (40.0, 3600.0, "weight 40.0 of 100 gathered, or in 60 min by the clock"),
        (0.0, -5.0, "weight 0.0 of 100 gathered, or by the clock as soon as anything new arrives"),
        (40.0, -5.0, "due (weight 40.0 of 100 gathered)"),
        (140.0, None, "due (weight 140.0 of 100 gathered)"),
    ],
)
def test_what_the_next_turn_waits_for(gathered: float, clock_s: float | None, said: str) -> None:
    clock_at = None if clock_s is None else NOW + timedelta(seconds=clock_s)
    assert waits_for(Due(gathered=gathered, needed=100.0, clock_at=clock_at), NOW) == said


def test_the_ten_thousandth_run_is_newer_than_the_one_before(tmp_path: Path) -> None:
    """By number: as text, run-10000 comes before run-9999."""
    deployment = Deployment(data_dir=tmp_path)
    for number in (9999, 10000):
        keep(deployment, Run(run_id=f"run-{number}", fingerprint="f", started_at=NOON))
    assert next(runs.newest_first(deployment)).run_id == "run-10000"
