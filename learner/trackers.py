"""A run's figures in TensorBoard or MLflow as they come, where `[learner] trackers` names them.

Kept libraries under extras, imported when they are needed. What is tracked is what the run's own files say
(`metric_lines`): a tracker that is out of reach costs nothing but itself.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from learner.config import Tracker
from learner.distributed import is_main
from learner.errors import MissingExtra
from ops.telemetry import logger

Track = Callable[[msgspec.Struct], None]
"""Called with each step's figures, a struct with a field `step`."""
EXPERIMENT = "ratchet"
"""Name of the MLflow experiment that all runs belong to."""


def require(names: Sequence[Tracker]) -> None:
    """Raises: MissingExtra, before anything dear is done."""
    for name in names:
        if find_spec(name) is None:
            raise MissingExtra(
                f'[learner] trackers names {name!r}, which is not installed: pip install "ratchet[{name}]"'
            )


@contextmanager
def tracking(names: Sequence[Tracker], folder: Path, stage: str) -> Iterator[Track]:
    """Inside, each step's figures go to every tracker, from the main process only.

    Args: folder, the run's; stage, such as `policy`. A continued run takes back the steps that it repeats.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(TRACKERS[name](folder, stage)) for name in names if is_main()]

        def track(metrics: msgspec.Struct) -> None:
            if not opened:
                return
            numbers = figures(metrics)
            step = int(numbers.pop("step"))
            for one in opened:
                one(step, numbers)

        yield track


def figures(metrics: msgspec.Struct) -> dict[str, float]:
    """By name; True counts as 1."""
    found = msgspec.structs.asdict(metrics)
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


Log = Callable[[int, Mapping[str, float]], None]


@contextmanager
def tensorboard(folder: Path, stage: str) -> Iterator[Log]:
    """Event files in `<run>/tensorboard/<stage>`: `tensorboard --logdir DATA_DIR/runs` shows all runs."""
    with ExitStack() as stack:
        writers: list[Any] = []

        def log(step: int, numbers: Mapping[str, float]) -> None:
            if not writers:
                summary_writer = import_module("torch.utils.tensorboard").SummaryWriter
                made = summary_writer(str(folder / "tensorboard" / stage), purge_step=step)
                writers.append(made)
                stack.callback(made.close)
            for name, value in numbers.items():
                writers[0].add_scalar(name, value, step)
            writers[0].flush()

        yield log


@contextmanager
def mlflow(folder: Path, stage: str) -> Iterator[Log]:
    """A run of the experiment `ratchet`, at MLFLOW_TRACKING_URI; figures are named `<stage>/<figure>`.

    A server that fails is asked no more until the next stage, and the log says so: training goes on.
    """
    client = import_module("mlflow").MlflowClient()
    metric = import_module("mlflow.entities").Metric
    refused = import_module("mlflow.exceptions").MlflowException
    runs: list[str] = []
    lost = False

    def log(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal lost
        if lost:
            return
        try:
            if not runs:
                runs.append(_mlflow_run(client, folder.name))
            at_ms = int(time.time() * 1000)
            client.log_batch(
                runs[0], [metric(f"{stage}/{name}", value, at_ms, step) for name, value in numbers.items()]
            )
        except refused as e:
            lost = True
            logger().warning("tracker_lost", tracker="mlflow", stage=stage, step=step, reason=str(e))

    yield log


def _mlflow_run(client: Any, run_id: str) -> str:
    """Its id at the server: the one it has, or a new one."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    known = client.search_runs([experiment_id], f"tags.`ratchet.run` = '{run_id}'", max_results=1)
    if known:
        return str(known[0].info.run_id)
    tags = {"ratchet.run": run_id, "mlflow.runName": run_id}
    return str(client.create_run(experiment_id, tags=tags, run_name=run_id).info.run_id)


TRACKERS: dict[Tracker, Callable[[Path, str], Any]] = {"tensorboard": tensorboard, "mlflow": mlflow}
