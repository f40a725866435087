"""What a candidate is examined with beside held-out prompts: probes, a judge, a gold scorer. Wiring only."""

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feedback.config import Deployment
from feedback.events import Message
from learner import constitution, judge
from learner.config import Eval, Judge
from learner.errors import ProbeError
from learner.judge_endpoint import Endpoint
from learner.probe_sets import ProbeSet, load
from ops.base_model import EMBEDDED

Arbiter = Callable[[Sequence[Message], str, str], float | None]
"""Probability that the first of two replies is better; None when it has no answer. Raises: JudgeError."""
Gold = Callable[[Sequence[Message], str], float | None]
"""The true worth of a reply, where it is known; None for a prompt that it does not know."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    probes: ProbeSet = field(default_factory=ProbeSet)
    probe_samples: int = 1
    arbiter: Arbiter | None = None
    judged_prompts: int = 0
    judged_at_once: int = 1
    gold: Gold | None = None


def examination(deployment: Deployment, wanted: Eval, judging: Judge) -> Examination:
    """Raises: ProbeError, ConstitutionError: before a turn begins, not after its training."""
    fitting = "embedded" if deployment.base_model == EMBEDDED else "general"
    named = fitting if wanted.shipped == "auto" else wanted.shipped
    return Examination(
        probes=load([] if named == "none" else [named], [Path(file) for file in wanted.probes]),
        probe_samples=wanted.probe_samples,
        arbiter=arbiter(judging) if judging.url and judging.model and wanted.judged_prompts else None,
        judged_prompts=wanted.judged_prompts,
        judged_at_once=judging.max_concurrent,
        gold=gold(wanted.gold) if wanted.gold else None,
    )


def arbiter(judging: Judge) -> Arbiter:
    """The judge of `[judge]`, by all principles together and in both orders. Raises: ConstitutionError."""
    principles = constitution.load(Path(judging.constitution) if judging.constitution else None)
    key = os.environ.get(judging.api_key_env, "")
    ask = Endpoint(judging.url, judging.model, api_key=key, timeout_s=judging.timeout_s)
    limits = judge.Limits(answer_tokens=judging.answer_tokens, max_chars=judging.max_chars)

    def prefers(prompt: Sequence[Message], one: str, other: str) -> float | None:
        found = judge.overall(principles, judge.compare(ask, principles, prompt, one, other, limits))
        return None if found is None else found.p

    return prefers


def gold(reference: str) -> Gold:
    """The function that `module:function` names. Raises: ProbeError."""
    module, _, name = reference.partition(":")
    try:
        found: Gold = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ProbeError(f"[eval] gold {reference!r} names no function as module:function: {e}") from e
    return found
