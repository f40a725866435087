"""Sample efficiency: what the assistant is truly worth after so many signals, by each way to train it.

Each cell is one turn from the base model: simulated users send the signals, rows are derived from them, the
policy is trained, its true utility is taken on held-out questions (`simulated`). Cells are kept. All of them
take hours on one core: RATCHET_STUDY_SIGNALS is the largest number of signals to go to.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import torch

from learner import methods
from learner.config import Learner, Method
from learner.measures import Interval, clustered_bootstrap
from learner.methods import Task
from learner.models import LanguageActor, Role
from learner.sampling import LocalSampler
from tests.benchmarks import simulated
from tests.benchmarks.simulated import LEARNER, QUESTIONS, Worth, folder, kept

Row = dict[str, object]

METHODS: tuple[Method, ...] = ("ppo", "rloo", "dpo", "kto", "sft")
SEEDS = {100: 2, 300: 2, 1000: 2, 3000: 1, 10_000: 1}
"""Usual number of seeds by number of signals: the dear end gets fewer."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One turn."""

    worth: Worth
    conversations: int
    pairs: int
    grades: int
    edits: int
    """Rows to train on."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A method's gain in true utility after so many signals, over the base model on the same questions."""

    method: Method
    signals: int
    gain: float
    low: float
    high: float
    """95 %, questions drawn anew, all seeds' replies to one together."""
    by_seed: list[float]
    kl_nats: float
    words: float


def rows() -> list[Row]:
    table = marks()
    best = {m.signals: max(o.gain for o in table if o.signals == m.signals) for m in table}
    found: list[Row] = [_row("base model: true utility", float(np.mean(base_worth().utilities)), "of 1")]
    for m in table:
        name = f"{m.method}, {m.signals} signals, {len(m.by_seed)} seeds"
        found += [
            _row(f"{name}: gain in true utility", m.gain, "of 1", "best of five", best[m.signals]),
            _row(f"{name}: 95 % from", m.low, "of 1"),
            _row(f"{name}: 95 % to", m.high, "of 1"),
            _row(f"{name}: KL to the root", m.kl_nats, "nats/reply"),
        ]
    return found


def marks() -> list[Mark]:
    """One a method and size; runs whatever has not been run."""
    most = int(os.environ.get("RATCHET_STUDY_SIGNALS", max(SEEDS)))
    return [
        mark(method, size, [cell(seed, size, method) for seed in simulated.seeds(SEEDS[size])])
        for method in METHODS
        for size in SEEDS
        if size <= most
    ]


def kept_marks() -> list[Mark]:
    """Of what has been run, whatever seeds."""
    found = []
    for method in METHODS:
        for size in SEEDS:
            name = simulated.named(method, settings(method, size))
            cells = simulated.all_kept(f"samples/[1-9]*/{size}/{name}.json", Cell)
            found += [mark(method, size, cells)] if cells else []
    return found


def mark(method: Method, signals: int, cells: Sequence[Cell]) -> Mark:
    gains_SQ = np.array([c.worth.utilities for c in cells]) - np.array(base_worth().utilities)
    found = interval(gains_SQ)
    return Mark(
        method=method,
        signals=signals,
        gain=found.value,
        low=found.low,
        high=found.high,
        by_seed=[float(gain) for gain in gains_SQ.mean(axis=1)],
        kl_nats=float(np.mean([c.worth.kl_nats for c in cells])),
        words=float(np.mean([c.worth.words for c in cells])),
    )


def interval(gains_SQ: np.ndarray) -> Interval:
    """Of the mean of gains by seed and question."""
    return clustered_bootstrap(gains_SQ.mean(axis=0), list(QUESTIONS), np.random.default_rng(0))


@cache
def base_worth() -> Worth:
    """Over three seeds' replies: what all gains are counted from."""
    found = [
        kept(
            folder() / f"base/{seed}.json",
            Worth,
            lambda s=seed: simulated.worth(simulated.fresh_trunk(s), Role.ROOT, s),
        )
        for seed in range(101, 104)
    ]
    utilities = np.mean([f.utilities for f in found], axis=0)
    return msgspec.structs.replace(found[0], utilities=[float(u) for u in utilities])


def cell(seed: int, signals: int, method: Method) -> Cell:
    name = simulated.named(method, settings(method, signals))
    return kept(_place(seed, signals) / f"{name}.json", Cell, lambda: turned(seed, signals, method))


def turned(seed: int, signals: int, method: Method) -> Cell:
    """One turn of the loop, from signals to the truth."""
    trunk, learner = simulated.fresh_trunk(seed), settings(method, signals)
    talks = simulated.gathered(trunk, seed, signals)
    material = simulated.learned_from(talks, trunk.encoder)
    place = _place(seed, signals)
    scorer = _unused
    if method in ("ppo", "rloo"):
        scorer, _ = simulated.reward_model(
            trunk, material.data, material.prompts, learner, seed, place / "reward"
        )
    methods.train(
        Task(
            actor=LanguageActor(trunk),
            sampler=LocalSampler(trunk),
            scorer=scorer,
            material=material,
            learner=learner,
            seed=seed,
            fingerprint=f"{seed}-{signals}",
            folder=place / simulated.named(method, learner),
        )
    )
    return Cell(
        worth=simulated.worth(trunk, Role.POLICY, seed),
        conversations=len(talks),
        pairs=len(material.data.pairs),
        grades=len(material.data.grades),
        edits=len(material.edits),
    )


def settings(method: Method, signals: int) -> Learner:
    """The demo's; beyond 1,000 signals one pass over the rows instead of two or three."""
    once = {"reward_epochs": 1, "fit_epochs": 1} if signals > 1000 else {}
    return msgspec.structs.replace(LEARNER, method=method, **once, **SETTINGS.get(method, {}))


SETTINGS: dict[Method, dict[str, float]] = {}
"""What of the settings is a method's own, chosen on seed 0."""


def _place(seed: int, signals: int) -> Path:
    return folder() / f"samples/{seed}/{signals}"


def _unused(samples: Sequence[object]) -> torch.Tensor:
    raise AssertionError("this method reads no reward")


def _row(
    figure: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None
) -> Row:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "goal": None,
        "peer": peer,
        "peer_value": peer_value,
    }
