"""Gold against proxy: gains add up along the lineage, and a fall from the peak is told."""

from msgspec.structs import replace

from learner.gold_curve import Point, curve, fall
from ops.evaluation import EvalReport
from tests.ops.reports import GOOD, rate


def report(gain: float, gold: float | None, kl: float, parent: str) -> EvalReport:
    measures = () if gold is None else (rate("gold_gain", gold, gold, gold),)
    return replace(GOOD, reward_gain=gain, measures=measures, kl_root_nats=kl, baseline=parent)


def test_gains_add_up_along_the_lineage() -> None:
    """The second run's gain is over the first's adapter, the third's over the base model."""
    reports = {
        "run-0001": report(1.0, 0.125, 4.0, "base-608213f0"),
        "run-0002": report(0.5, -0.0625, 9.0, "run-0001-b74a8e63"),
        "run-0003": report(0.25, None, 1.0, "base-608213f0"),
    }
    points = curve(reports)
    assert points == [
        Point("run-0003", 1.0, 0.25, None),
        Point("run-0001", 2.0, 1.0, 0.125),
        Point("run-0002", 3.0, 1.5, 0.0625),
    ]
    assert fall(points) == 0.0625
    assert fall(points[:1]) is None
