"""Gold against proxy over √KL: whether what the reward model likes is still what is truly better. Pure."""

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

from ops.evaluation import EvalReport


class Point(NamedTuple):
    """One evaluated run, counted from the root reference."""

    run_id: str
    root_kl: float
    """√(KL to the root, nats): gains grow about linearly in it at first (arXiv:2210.10760)."""
    proxy: float
    """Reward gain, in deviations; each run's over its parent, added up over its ancestors."""
    gold: float | None
    """Gain in true worth, added up likewise; None where a run on the way has none."""


def curve(reports: Mapping[str, EvalReport]) -> list[Point]:
    """Every run's point, by rising KL. `reports`: by run id; a parent without a report counts as the root."""
    points = [_point(run_id, reports) for run_id in reports]
    return sorted(points, key=lambda point: point.root_kl)


def fall(points: list[Point]) -> float | None:
    """How far the last point's gold lies below the best before it: over-optimisation. None without gold."""
    gold = [point.gold for point in points if point.gold is not None]
    return max(gold) - gold[-1] if gold else None


def _point(run_id: str, reports: Mapping[str, EvalReport]) -> Point:
    proxy, golds = 0.0, list[float | None]()
    at, seen = run_id, set[str]()
    while at in reports and at not in seen:
        seen.add(at)
        proxy += reports[at].reward_gain
        measured = reports[at].measure("gold_gain")
        golds.append(measured.value if measured else None)
        at = (reports[at].baseline or "").rpartition("-")[0]
    gold = None if None in golds else sum(value for value in golds if value is not None)
    return Point(run_id, sqrt(max(0.0, reports[run_id].kl_root_nats)), proxy, gold)
