"""A run's figures in TensorBoard and MLflow, read back by their own readers."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from learner.errors import MissingExtra
from learner.imitation import FitMetrics
from learner.trackers import require, tracking


def log(names: list, folder: Path, losses: dict[int, float]) -> None:
    with tracking(names, folder, "policy") as track:
        for step, loss in losses.items():
            track(FitMetrics(step=step, loss=loss, rows=16))


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra `tensorboard`")
def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """Killed after step 2, continued from the checkpoint before it: the repeated step takes its place."""
    log(["tensorboard"], tmp_path, {0: 0.75, 1: 0.5, 2: 0.375})
    log(["tensorboard"], tmp_path, {2: 0.25, 3: 0.125})
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(tmp_path / "tensorboard" / "policy")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.125)]
    assert {e.value for e in found.Scalars("rows")} == {16.0}


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra `mlflow`, too large for the lock")
@pytest.mark.filterwarnings("ignore")  # its own, of the libraries that it uses
def test_mlflow_has_one_run_for_ours_also_when_it_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "run-0001"
    log(["mlflow"], run, {0: 0.75, 1: 0.5})
    log(["mlflow"], run, {2: 0.25})
    client = import_module("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("ratchet")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run-0001"
    history = client.get_metric_history(found.info.run_id, "policy/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.75), (1, 0.5), (2, 0.25)]


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained, not after."""
    monkeypatch.setattr("learner.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'trackers names \'mlflow\'.*pip install "ratchet\[mlflow\]"'):
        require(["mlflow"])


def test_without_trackers_nothing_is_imported_or_written(tmp_path: Path) -> None:
    log([], tmp_path, {0: 0.75})
    assert list(tmp_path.iterdir()) == []
