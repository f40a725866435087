"""Gates: from a candidate's evidence to PASS, FAIL, INCONCLUSIVE or ERROR. Pure; only all PASS promotes."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from feedback.intervals import Z_ONE_SIDED_95, wilson
from ops.adapters import EvalReport
from ops.config import Rollout


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """The evidence does not decide: wait for more."""
    ERROR = "error"
    """There is no evidence, or it contradicts itself."""


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    verdict: Verdict
    value: float
    threshold: float
    reason: str


def judge(report: EvalReport | None, rollout: Rollout) -> tuple[GateResult, ...]:
    """Every gate's result, in a fixed order."""
    if report is None:
        return (_result("evidence", Verdict.ERROR, math.nan, math.nan, "no evaluation report"),)
    broken = _contradictions(report)
    if broken:
        return (_result("evidence", Verdict.ERROR, math.nan, math.nan, broken),)
    return (
        _reward_gain(report, rollout),
        _kl(report, rollout),
        _length(report, rollout),
        _well_formed(report, rollout),
        _reward_model(report, rollout),
    )


def overall(results: Sequence[GateResult]) -> Verdict:
    """The worst of them: ERROR, then FAIL, then INCONCLUSIVE; ERROR when there is none."""
    found = {r.verdict for r in results}
    for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in found:
            return verdict
    return Verdict.PASS if found else Verdict.ERROR


def explain(results: Sequence[GateResult]) -> str:
    """One line: what did not pass and why, or that all did."""
    short = [f"{r.name} {r.verdict}: {r.reason}" for r in results if r.verdict is not Verdict.PASS]
    return "; ".join(short) or f"all {len(results)} gates passed"


def newcombe(share: float, before: float, n: int, z: float = Z_ONE_SIDED_95) -> tuple[float, float]:
    """Interval for `share` - `before`, each a proportion of `n` trials, from the Wilson interval of either.

    Replies to one prompt are counted as if they were independent.
    Source: Newcombe 1998, method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    low, high = wilson(share, n, z)
    low_before, high_before = wilson(before, n, z)
    change = share - before
    return (
        change - math.hypot(share - low, high_before - before),
        change + math.hypot(high - share, before - low_before),
    )


def _contradictions(report: EvalReport) -> str:
    """What no honest evaluation can contain; empty when there is nothing."""
    numbers = {k: v for k, v in msgspec.structs.asdict(report).items() if isinstance(v, int | float)}
    for name, value in numbers.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    if not report.reward_gain_low <= report.reward_gain <= report.reward_gain_high:
        return f"reward gain {report.reward_gain} lies outside its own interval"
    for name in ("well_formed", "baseline_well_formed", "reward_model_accuracy"):
        if not 0.0 <= numbers[name] <= 1.0:
            return f"{name} is {numbers[name]}, no share"
    for name in ("prompts", "samples", "reward_model_pairs", "mean_tokens", "baseline_mean_tokens"):
        if numbers[name] < 0:
            return f"{name} is {numbers[name]}"
    return ""


def _reward_gain(report: EvalReport, rollout: Rollout) -> GateResult:
    low, high, least = report.reward_gain_low, report.reward_gain_high, rollout.min_reward_gain
    interval = f"gain {report.reward_gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    if report.prompts < rollout.min_prompts:
        verdict = Verdict.INCONCLUSIVE
        interval = f"{report.prompts} held-out prompts, {rollout.min_prompts} are needed"
    else:
        verdict = _beyond(low, high, least)
    return _result("reward_gain", verdict, report.reward_gain, least, interval)


def _kl(report: EvalReport, rollout: Rollout) -> GateResult:
    value, budget = report.kl_root_nats, rollout.max_kl_root_nats
    reason = f"{value:.2f} nats per reply from the root reference, budget {budget:.2f}"
    return _result("kl_root", _passes(value <= budget), value, budget, reason)


def _length(report: EvalReport, rollout: Rollout) -> GateResult:
    most = rollout.max_length_ratio
    if not report.baseline_mean_tokens:
        return _result("length", Verdict.ERROR, math.nan, most, "the baseline's replies are all empty")
    ratio = report.mean_tokens / report.baseline_mean_tokens
    reason = f"replies are {ratio:.2f} times as long as the baseline's, allowed {1 / most:.2f} to {most:.2f}"
    return _result("length", _passes(1 / most <= ratio <= most), ratio, most, reason)


def _well_formed(report: EvalReport, rollout: Rollout) -> GateResult:
    """Non-inferiority: a broken adapter fails, and one that a few replies make look worse does not."""
    share, before, least = report.well_formed, report.baseline_well_formed, -rollout.max_well_formed_loss
    low, high = newcombe(share, before, report.samples)
    reason = (
        f"{share:.1%} of {report.samples} replies are well-formed, the baseline's {before:.1%}: "
        f"change [{low:+.1%}, {high:+.1%}], allowed {least:+.1%}"
    )
    return _result("well_formed", _beyond(low, high, least), share - before, least, reason)


def _reward_model(report: EvalReport, rollout: Rollout) -> GateResult:
    """A reward model no better than a coin says nothing about the gain."""
    accuracy, pairs, least = (
        report.reward_model_accuracy,
        report.reward_model_pairs,
        rollout.min_reward_model_accuracy,
    )
    reason = f"reward model right on {accuracy:.1%} of {pairs} held-out pairs"
    if pairs < rollout.min_reward_model_pairs:
        verdict = Verdict.INCONCLUSIVE
        reason += f", {rollout.min_reward_model_pairs} are needed"
    else:
        low, high = wilson(accuracy, pairs)
        verdict = _beyond(low, high, least)
        reason += f" [{low:.1%}, {high:.1%}], above {least:.1%} wanted"
    return _result("reward_model", verdict, accuracy, least, reason)


def _beyond(low: float, high: float, least: float) -> Verdict:
    """PASS when the whole interval lies above the least that is allowed, FAIL when it lies below."""
    if low > least:
        return Verdict.PASS
    return Verdict.FAIL if high < least else Verdict.INCONCLUSIVE


def _passes(good: bool) -> Verdict:
    return Verdict.PASS if good else Verdict.FAIL


def _result(name: str, verdict: Verdict, value: float, threshold: float, reason: str) -> GateResult:
    return GateResult(name=name, verdict=verdict, value=value, threshold=threshold, reason=reason)
