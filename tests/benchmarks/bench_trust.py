"""The attack curve: how far attackers move the reward fit and its policy, with the defences and without.

Shifts are against the same honest people without attackers, means over worlds that no setting was chosen on.
Goal: a tenth at most, up to 2 % of users.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tests.benchmarks import attacks

Row = dict[str, object]

FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1)
USERS = 800
SEEDS = (23, 37)
"""The defences' settings were chosen on seeds 11 and 12."""
_GOAL_UP_TO = 0.02
_ACCURATE = "> peer - 0.02"


@dataclass(frozen=True)
class Outcome:
    """What one world's two fits are like: with the defences, without."""

    shift: tuple[float, float]
    """nats, against the world without attackers."""
    harm: tuple[float, float]
    accuracy: tuple[float, float]


Outcomes = dict[tuple[str, float], Outcome]
"""By strategy and share of users; a share of 0 is the honest world."""


def rows() -> list[Row]:
    worlds = [outcomes(seed) for seed in SEEDS]
    return table(worlds)


def outcomes(seed: int, strategies: Sequence[str] = tuple(attacks.STRATEGIES)) -> Outcomes:
    """Every attack on the honest world of that seed."""
    honest = attacks.honest_world(USERS, seed)
    clean = _fits(honest)
    found = {(s, 0.0): _outcome(clean, clean, s, seed) for s in strategies}
    for strategy in strategies:
        for fraction in (0.02,) if strategy in attacks.ADAPTIVE else FRACTIONS:
            fits = _fits(attacks.attacked(USERS, seed, strategy, fraction))
            found[strategy, fraction] = _outcome(fits, clean, strategy, seed)
            ours, theirs = found[strategy, fraction].shift
            print(
                f"bench-trust: seed {seed}: {strategy}, {fraction:.1%}: {ours:.3f} of {theirs:.3f}",
                file=sys.stderr,
            )
    return found


def table(worlds: Sequence[Outcomes]) -> list[Row]:
    """Means over worlds; the goal is met where the worst world's ratio is below a tenth."""
    found: list[Row] = []
    for strategy, fraction in worlds[0]:
        here = [world[strategy, fraction] for world in worlds]
        name = f"{strategy}, {fraction:.1%} of users"
        goal = fraction <= _GOAL_UP_TO and strategy not in attacks.ADAPTIVE
        if fraction:
            shifts = [o.shift for o in here]
            worst = max(ours / theirs for ours, theirs in shifts)
            found += [
                _row(f"{name}: margin shift", shifts, "nats", None),
                _plain(f"{name}: ratio of shifts, worst world", worst, "< 0.1" if goal else None),
            ]
        found += [
            _row(f"{name}: policy does as they want", [o.harm for o in here], "of replies", None),
            _row(
                f"{name}: honest accuracy",
                [o.accuracy for o in here],
                "of pairs",
                _ACCURATE if goal else None,
            ),
        ]
    return found


def _fits(world: attacks.World) -> tuple[attacks.Array, attacks.Array]:
    return (
        attacks.fit_reward(attacks.defended(world), world.replies),
        attacks.fit_reward(attacks.undefended(world), world.replies),
    )


def _outcome(
    fits: tuple[attacks.Array, attacks.Array],
    clean: tuple[attacks.Array, attacks.Array],
    strategy: str,
    seed: int,
) -> Outcome:
    ours, theirs = (
        abs(attacks.margin(after, strategy) - attacks.margin(before, strategy))
        for after, before in zip(fits, clean, strict=True)
    )
    return Outcome(
        shift=(ours, theirs),
        harm=(attacks.harm(fits[0], strategy, seed + 2), attacks.harm(fits[1], strategy, seed + 2)),
        accuracy=(attacks.honest_accuracy(fits[0], seed + 1), attacks.honest_accuracy(fits[1], seed + 1)),
    )


def _row(figure: str, values: Sequence[tuple[float, float]], unit: str, goal: str | None) -> Row:
    return {
        "figure": figure,
        "value": fmean(ours for ours, _ in values),
        "unit": unit,
        "goal": goal,
        "peer": "without defences",
        "peer_value": fmean(theirs for _, theirs in values),
    }


def _plain(figure: str, value: float, goal: str | None) -> Row:
    return {"figure": figure, "value": value, "unit": "", "goal": goal}
