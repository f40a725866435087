"""What the learner measured of a candidate, as the value that gates read. No thresholds, no I/O.

Two measures are of one kind: a level (the candidate alone, such as a win rate) and a change (the candidate
against the adapter that it would replace, answering the same prompts). `docs/evaluation.md` says how each is
taken.
"""

import math
from typing import Any, Literal

import msgspec

VERSION = 2
"""Of the report; raised when a field changes its meaning. 1 had no measures."""
EVIDENCE = 40
"""Most ids that a measure names."""

Method = Literal["bootstrap", "newcombe", "sign_flips"]
"""Where the interval is from: redrawn prompts, Newcombe's for paired shares, or signs flipped."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One probe that counts against the candidate, with what both answered, shortened."""

    id: str
    candidate: str
    baseline: str


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure with its two-sided 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    """Prompts or probes behind it: the units that were resampled or counted, not the replies."""
    method: Method
    candidate: float | None = None
    """The candidate's own figure, where `value` is its change from the baseline's."""
    baseline: float | None = None
    evidence: tuple[str, ...] = ()
    """Ids of probes that count against the candidate; its replies to all are in the run's `replies.jsonl`."""
    examples: tuple[Example, ...] = ()


class EvalReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the learner measured of a candidate, for the gates. Rewards are in units of the reward model's
    standard deviation on root-reference samples; KL in nats per reply; intervals are 95 %."""

    prompts: int
    samples: int
    reward_gain: float
    """Mean held-out reward of the candidate minus that of the adapter it would replace."""
    reward_gain_low: float
    reward_gain_high: float
    kl_root_nats: float
    kl_parent_nats: float
    mean_tokens: float
    baseline_mean_tokens: float
    well_formed: float
    """Share of replies that end by themselves, are not empty and do not repeat themselves."""
    baseline_well_formed: float
    reward_model_accuracy: float
    """On held-out pairs."""
    reward_model_pairs: int
    """How many held-out pairs that accuracy rests on."""
    baseline: str | None = None
    """Name of the adapter it was measured against; evidence against one that no longer serves is stale."""
    version: int = 1
    probes: str = ""
    """The probe sets and 8 hex digits of what is written in them."""
    measures: tuple[Measure, ...] = ()
    missing: dict[str, str] = {}
    """Measures that were wanted and could not be had, with the reason."""

    def measure(self, name: str) -> Measure | None:
        return next((m for m in self.measures if m.name == name), None)


def encode(report: EvalReport) -> bytes:
    """As JSON; NaN and infinity, which JSON lacks, as strings, so that bad evidence can be read back."""
    return msgspec.json.encode(_spelt(report))


def decode(text: str | bytes) -> EvalReport:
    """Reports of earlier releases too. Raises: msgspec.DecodeError."""
    return msgspec.json.decode(text, type=EvalReport, strict=False)


def _spelt(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _spelt(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {name: _spelt(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
