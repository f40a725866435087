"""Gates: from a candidate's evidence to PASS, FAIL, INCONCLUSIVE or ERROR. Pure; only all PASS promotes."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from ops.adapters import EvalReport
from ops.config import Rollout

Z_ONE_SIDED_95 = 1.6449
WELL_FORMED_SLACK = 0.02


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


def wilson_low(share: float, n: int, z: float = Z_ONE_SIDED_95) -> float:
    """Lower end of Wilson's score interval for a proportion of `n` trials.

    (p + z²/2n - z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)        Source: Wilson 1927.
    """
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n)


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
    elif low > least:
        verdict = Verdict.PASS
    elif high < least:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.INCONCLUSIVE
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
    least = min(rollout.min_well_formed, report.baseline_well_formed - WELL_FORMED_SLACK)
    reason = f"{report.well_formed:.1%} of replies are well-formed, at least {least:.1%} wanted"
    return _result("well_formed", _passes(report.well_formed >= least), report.well_formed, least, reason)


def _reward_model(report: EvalReport, rollout: Rollout) -> GateResult:
    """One-sided 95 %: a reward model no better than a coin says nothing about the gain."""
    accuracy, pairs = report.reward_model_accuracy, report.reward_model_pairs
    reason = f"reward model right on {accuracy:.1%} of {pairs} held-out pairs"
    if pairs < rollout.min_reward_model_pairs:
        verdict = Verdict.INCONCLUSIVE
        reason += f", {rollout.min_reward_model_pairs} are needed"
    elif wilson_low(accuracy, pairs) > 0.5:
        verdict = Verdict.PASS
    elif wilson_low(1 - accuracy, pairs) > 0.5:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.INCONCLUSIVE
        reason += ": not better than chance with 95 % confidence"
    return _result("reward_model", verdict, accuracy, 0.5, reason)


def _passes(good: bool) -> Verdict:
    return Verdict.PASS if good else Verdict.FAIL


def _result(name: str, verdict: Verdict, value: float, threshold: float, reason: str) -> GateResult:
    return GateResult(name=name, verdict=verdict, value=value, threshold=threshold, reason=reason)
