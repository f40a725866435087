"""A run's curves: one panel for each figure that there is, of whatever steps there are."""

import struct
from pathlib import Path

import pytest

from learner import curves
from learner.errors import DataError

STEP = '{{"step": {0}, "reward_mean": {0}.5, "score_mean": {0}.7, "kl_root_nats": 2.0, "beta": 0}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PPO run that a kill ended in the middle of its third line."""
    (tmp_path / "metrics.jsonl").write_text("\n".join([STEP.format(0), STEP.format(1), '{"step": 2, "rew']))
    (tmp_path / "reward.jsonl").write_text(
        '{"step": 0, "loss": 0.69, "accuracy": 0.5, "lr": 0.01, "of": {"a": 1}}\n'
    )
    return tmp_path


def panels(folder: Path) -> dict[str, list[str]]:
    series = {file: curves.read(folder / file) for file in (curves.REWARD, curves.POLICY)}
    return {p.title: list(lines) for p in curves.PANELS if (lines := curves.lines_of(p, series[p.file]))}


def test_there_is_a_panel_for_each_figure_that_the_run_has(folder: Path) -> None:
    """β is 0 throughout and the rest was never logged: no empty axes. What is no number, and the
    line cut short, are left out."""
    assert panels(folder) == {
        "reward model: loss": ["loss"],
        "reward model: right on training rows": ["accuracy"],
        "reward model: learning rate": ["lr"],
        "reward": ["reward_mean", "score_mean"],
        "KL to the root": ["kl_root_nats"],
    }
    assert curves.read(folder / "metrics.jsonl")["reward_mean"] == [0.5, 1.5]


def test_the_picture_is_a_png_with_all_panels(folder: Path) -> None:
    """Five panels in rows of four at 110 dots an inch: 4 × 3.3 inches wide, 2 × 2.1 high."""
    header = curves.draw(folder).read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:24]) == (1452, 462)


def test_a_run_without_a_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no training step yet"):
        curves.draw(tmp_path)


def test_every_figure_that_is_logged_is_drawn() -> None:
    """A figure added to a step's line gets a panel, or is named here with the reason."""
    from learner.imitation import FitMetrics
    from learner.train_policy import StepMetrics
    from learner.train_reward import RewardStep

    not_drawn = {
        "step": "the axis",
        "rows": "the same at every step",
        "verified": "counts by kind of check, not one number",
        "ratio_before": "1, or the run stops",
        "skipped_batch": "such a step has no update: the figures of one are 0",
    }
    drawn = {(panel.file, name) for panel in curves.PANELS for name in panel.names}
    logged = {(curves.POLICY, name) for kind in (StepMetrics, FitMetrics) for name in kind.__struct_fields__}
    logged |= {(curves.REWARD, name) for name in RewardStep.__struct_fields__}
    assert {(file, name) for file, name in logged if name not in not_drawn} == drawn
