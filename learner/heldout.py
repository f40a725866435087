"""Measures of two adapters' replies to the same held-out prompts: wins, form, a judge's word, true worth.

Legend: P prompts, S replies to each, R comparisons of a prompt, N replies of all prompts in a row.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from feedback.events import Message
from learner import win_rates
from learner.batches import Prompt, Sample
from learner.errors import JudgeError
from learner.examination import Examination
from learner.measures import Floats, Interval, clustered_bootstrap, share_change
from learner.verification import Tally, Verify, unverified
from ops.evaluation import Measure

REPEATED_WORDS, REPEATED_TIMES = 4, 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    prompts: Sequence[Prompt]
    samples_per_prompt: int
    temperature: float
    max_tokens: int
    token_budget: int
    seed: int
    max_prompt_tokens: int = 512
    """Probes whose prompt is longer are left out."""
    examination: Examination = field(default_factory=Examination)
    conversations: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    """By digest, what was said before the reply: for judge and gold, who read words."""
    problems: Sequence[Prompt] = ()
    """Held-out problems, whose replies `verify` checks."""
    verify: Verify = unverified


@dataclass(frozen=True)
class Drawn:
    """One adapter's replies: to the held-out prompts, to the probes' prompts, and to problems."""

    heldout: list[Sample]
    probes: list[Sample]
    texts: list[str]
    """Of the held-out replies."""
    problems: list[Sample] = field(default_factory=list)
    """Replies to the held-out problems, one prompt's side by side."""


def table(values_N: Floats, plan: Plan) -> Floats:
    """One row a prompt, one column a sample of it."""
    return values_N.reshape(-1, plan.samples_per_prompt)


def lengths(after: Drawn, before: Drawn, plan: Plan) -> Floats:
    """Differences in tokens, as `win_rates.comparisons` orders them."""
    return win_rates.differences(*(table(tokens(d), plan) for d in (after, before)))


def tokens(drawn: Drawn) -> Floats:
    return np.array([len(s.ids) for s in drawn.heldout], dtype=np.float64)


def win_measures(
    name: str, wins_PR: Floats, lengths_PR: Floats, rng: np.random.Generator
) -> dict[str, Measure]:
    """The win rate as it is and at equal length."""
    found = {
        name: win_rates.win_rate(wins_PR, rng),
        f"{name}_length_controlled": win_rates.length_controlled(wins_PR, lengths_PR, rng),
    }
    return {key: _measure(key, interval, len(wins_PR)) for key, interval in found.items()}


def _measure(
    name: str, found: Interval, n: int, candidate: float | None = None, baseline: float | None = None
) -> Measure:
    """A measure whose interval is a bootstrap's."""
    return Measure(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        method="bootstrap",
        candidate=candidate,
        baseline=baseline,
    )


FORMS: Mapping[str, Callable[[Sample, str], bool]] = {
    "empty": lambda sample, text: not text.strip(),
    "truncated": lambda sample, text: sample.finish != "stop",
    "repetitive": lambda sample, text: repeats(text),
    "asks_back": lambda sample, text: text.rstrip().endswith("?"),
}
"""By measure, what is counted of held-out replies. Asking back is no fault; asking always is."""


def form_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> dict[str, Measure]:
    """Changes of length and of the shares in `FORMS`, prompt by prompt."""
    length_P, before_P = (table(tokens(d), plan).mean(axis=1) for d in (after, before))
    digests = [prompt.digest for prompt in plan.prompts]
    change = clustered_bootstrap(length_P - before_P, digests, rng)
    found = {
        "tokens": _measure("tokens", change, len(digests), float(length_P.mean()), float(before_P.mean()))
    }
    for name, is_so in FORMS.items():
        share_P, earlier_P = (
            table(
                np.array([is_so(*pair) for pair in zip(d.heldout, d.texts, strict=True)], float), plan
            ).mean(axis=1)
            for d in (after, before)
        )
        found[name] = share_change(name, share_P, earlier_P)
    return found


Part = tuple[dict[str, Measure], dict[str, str]]
"""Measures by name, and what could not be had, with the reason."""


def judge_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> Part:
    """Win rates by the judge, of each prompt's first replies; one out of reach costs this measure only."""
    if plan.examination.arbiter is None:
        return {}, {}
    name, arbiter, n = "judged_win_rate", plan.examination.arbiter, plan.samples_per_prompt
    asked = [i for i, p in enumerate(plan.prompts) if p.digest in plan.conversations][
        : plan.examination.judged_prompts
    ]

    def ask(i: int) -> float | None:
        digest = plan.prompts[i].digest
        return arbiter(plan.conversations[digest], after.texts[i * n], before.texts[i * n])

    try:
        with ThreadPoolExecutor(plan.examination.judged_at_once, thread_name_prefix="arbiter") as pool:
            said = dict(zip(asked, pool.map(ask, asked), strict=True))
    except JudgeError as e:
        return {}, {name: str(e)}
    wins = {i: p for i, p in said.items() if p is not None}
    if not wins:
        return {}, {name: f"the judge had no answer to any of {len(asked)} prompts"}
    lengths_P1 = (tokens(after) - tokens(before))[[i * n for i in wins]][:, None]
    return win_measures(name, np.array(list(wins.values()))[:, None], lengths_P1, rng), {}


def gold_measures(after: Drawn, before: Drawn, plan: Plan, rng: np.random.Generator) -> Part:
    """The gain in true worth, to be held against the reward model's."""
    if plan.examination.gold is None:
        return {}, {}
    rows = []
    for sample, text, earlier in zip(after.heldout, after.texts, before.texts, strict=True):
        said = plan.conversations.get(sample.prompt.digest)
        worth = (
            None
            if said is None
            else (plan.examination.gold(said, text), plan.examination.gold(said, earlier))
        )
        if worth is not None and worth[0] is not None and worth[1] is not None:
            rows.append((sample.prompt.digest, worth[0], worth[1]))
    if not rows:
        return {}, {"gold_gain": "the gold scorer knows none of the held-out prompts"}
    digests = [digest for digest, _, _ in rows]
    gold_N, earlier_N = (np.array([row[k] for row in rows]) for k in (1, 2))
    gain = clustered_bootstrap(gold_N - earlier_N, digests, rng)
    count = len(set(digests))
    return {
        "gold_gain": _measure("gold_gain", gain, count, float(gold_N.mean()), float(earlier_N.mean()))
    }, {}


def verified_measures(after: Drawn, before: Drawn, plan: Plan) -> Part:
    """By kind of check, the change of its mean score; and of the share that had no verdict.

    Paired by problem; one where either adapter had no verdict at all is left out.
    """
    rows_P = [[_tallies(d, prompt, plan) for d in (after, before)] for prompt in plan.problems]
    found, missing = {}, {}
    for kind in sorted({kind for row in rows_P for tallies in row for kind in tallies}):
        both_P = [(own[kind], other[kind]) for own, other in rows_P if kind in own]
        for name, pairs in (
            (f"verified_{kind}", [(a.rate, b.rate) for a, b in both_P if a.verdicts and b.verdicts]),
            (f"no_verdict_{kind}", [(a.unknown, b.unknown) for a, b in both_P]),
        ):
            if pairs:
                found[name] = share_change(name, *np.array(pairs).T)
            else:
                missing[name] = f"no check of {len(both_P)} held-out problems had a verdict"
    return found, missing


def _tallies(drawn: Drawn, prompt: Prompt, plan: Plan) -> Mapping[str, Tally]:
    """What checks say of the replies to one problem."""
    return plan.verify([s for s in drawn.problems if s.prompt == prompt]).tallies


def share_well_formed(drawn: Drawn) -> float:
    return float(np.mean([well_formed(s, text) for s, text in zip(drawn.heldout, drawn.texts, strict=True)]))


def well_formed(sample: Sample, text: str) -> bool:
    """The reply ended by itself, is not empty and says no four words three times."""
    return sample.finish == "stop" and bool(text.strip()) and not repeats(text)


def repeats(text: str) -> bool:
    """Says the same four words three times."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0) >= REPEATED_TIMES
