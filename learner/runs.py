"""What the learner's runs left on disk: how far each is, and whether one goes on now. Reads only; no torch.

runs/<run>/run.json         the stages that are done, and what came of them
runs/<run>/progress.json    the step that the current stage is at
runs/learner.lock           held by whoever takes a turn
"""

import fcntl
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from feedback import snapshots
from feedback.config import Deployment
from learner.config import Method
from learner.errors import DataError

Stage = Literal["snapshot", "reward", "policy", "evaluate", "register"]
STAGES: tuple[Stage, ...] = ("snapshot", "reward", "policy", "evaluate", "register")
LOCK = "learner.lock"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: one turn of the loop and how far it is."""

    run_id: str
    fingerprint: str
    """Hash of settings and base model; a run is continued only under the same."""
    started_at: datetime
    stages: tuple[Stage, ...] = ()
    """Those that are finished."""
    method: Method = "ppo"
    """How its policy is trained."""
    snapshot: str | None = None
    parent: str | None = None
    """Adapter that the policy starts from and would replace."""
    adapter: str | None = None
    """The registered candidate."""
    failed: str | None = None
    """Why the run cannot go on."""
    seconds: dict[str, float] = {}
    """Duration of each finished stage."""
    stopped: str = ""
    """Why the policy's training ended before its last step."""

    @property
    def finished(self) -> bool:
        return self.stages == STAGES

    @property
    def current(self) -> Stage | None:
        """The stage it is at; None once it is finished or has failed."""
        return None if self.finished or self.failed else STAGES[len(self.stages)]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`progress.json`: where the current stage is."""

    stage: Stage
    begun_at: datetime
    """When this process began the stage."""
    at: datetime
    """When the last step was done."""
    first: int = 0
    """Steps that were done already when it began: a continued run goes on from its checkpoint."""
    done: int = 0
    total: int = 0
    """0 for a stage without steps."""
    figures: str = ""

    @property
    def left_s(self) -> float | None:
        """Seconds until the stage's last step, at the pace of its steps so far; None before there is one."""
        steps = self.done - self.first
        if steps <= 0:
            return None
        return (self.at - self.begun_at).total_seconds() * (self.total - self.done) / steps


def newest_first(deployment: Deployment) -> Iterator[Run]:
    """Runs one by one: whoever wants the newest reads no other. Raises: DataError."""
    folders = [file.parent for file in deployment.runs_dir.glob("run-*/run.json")]
    return map(read, sorted(folders, key=number, reverse=True))


def runs(deployment: Deployment) -> list[Run]:
    """Every run, oldest first. Raises: DataError."""
    return [*newest_first(deployment)][::-1]


def finished_before(deployment: Deployment, run: Run) -> Run | None:
    """The newest run that was seen through before this one began. Raises: DataError."""
    earlier = (r for r in newest_first(deployment) if number(Path(r.run_id)) < number(Path(run.run_id)))
    return next((r for r in earlier if r.finished), None)


def number(folder: Path) -> int:
    return int(folder.name.removeprefix("run-"))


def read(folder: Path) -> Run:
    """Raises: DataError when the folder holds no run."""
    try:
        return msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError) as e:
        raise DataError(f"{folder} holds no run: {e}") from e


def pending(deployment: Deployment) -> float:
    """Weight of grades and pairs that arrived since the last run's snapshot. Raises: FeedbackError."""
    taken = next((run.snapshot for run in newest_first(deployment) if run.snapshot), None)
    return snapshots.pending_weight(deployment.state, taken)


def progress(folder: Path) -> Progress | None:
    """None for a run that has not begun a stage since this file exists."""
    try:
        return msgspec.json.decode((folder / "progress.json").read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return None


def turning(deployment: Deployment) -> bool:
    """Whether a learner takes a turn at this moment: its lock dies with it."""
    try:
        with (deployment.runs_dir / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
