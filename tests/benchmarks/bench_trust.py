"""The attack curve: how far attackers move the reward fit and its policy, with the defences and without.

Shifts are against the same honest people without attackers. Goal: a tenth at most, up to 2 % of users.
"""

import sys

from tests.benchmarks import attacks

Row = dict[str, object]

FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1)
USERS = 800
SEED = 23
"""The defences' settings were chosen on seed 11."""
_GOAL_UP_TO = 0.02


def rows() -> list[Row]:
    honest = attacks.honest_world(USERS, SEED)
    with_, without = _fits(honest)
    found: list[Row] = [
        _accuracy("honest accuracy, no attack", with_, without, "> peer - 0.02"),
        _harm("policy runs the target down, no attack", "target sentiment", (with_, without)),
        _harm("policy is wrong, no attack", "flip all", (with_, without)),
    ]
    for strategy in attacks.STRATEGIES:
        for fraction in FRACTIONS:
            found += _attacked(strategy, fraction, (with_, without))
    return found


def _fits(world: attacks.World) -> tuple[attacks.Array, attacks.Array]:
    return (
        attacks.fit_reward(attacks.defended(world), world.replies),
        attacks.fit_reward(attacks.undefended(world), world.replies),
    )


def _attacked(strategy: str, fraction: float, clean: tuple[attacks.Array, attacks.Array]) -> list[Row]:
    fits = _fits(attacks.attacked(USERS, SEED, strategy, fraction))
    ours, theirs = (
        abs(attacks.margin(after, strategy) - attacks.margin(before, strategy))
        for after, before in zip(fits, clean, strict=True)
    )
    name = f"{strategy}, {fraction:.1%} of users"
    goal = fraction <= _GOAL_UP_TO
    print(f"bench-trust: {name}: {ours:.3f} of {theirs:.3f}", file=sys.stderr)
    return [
        _row(f"{name}: margin shift", ours, "nats", f"< {theirs / 10:.3f}" if goal else None, theirs),
        _harm(f"{name}: policy does as they want", strategy, fits),
        _accuracy(f"{name}: honest accuracy", *fits, goal="> clean - 0.02" if goal else None),
    ]


def _harm(figure: str, strategy: str, fits: tuple[attacks.Array, attacks.Array]) -> Row:
    ours, theirs = (attacks.harm(beta, strategy, SEED + 2) for beta in fits)
    return _row(figure, ours, "of replies", None, theirs)


def _accuracy(figure: str, ours: attacks.Array, theirs: attacks.Array, goal: str | None) -> Row:
    return _row(
        figure,
        attacks.honest_accuracy(ours, SEED + 1),
        "of pairs",
        goal,
        attacks.honest_accuracy(theirs, SEED + 1),
    )


def _row(figure: str, value: float, unit: str, goal: str | None, peer_value: float) -> Row:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "goal": goal,
        "peer": "without defences",
        "peer_value": peer_value,
    }
