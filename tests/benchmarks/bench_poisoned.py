"""What attackers do to a trained reward model and policy, with the defences and without: `policies`.

`bench-trust` measures many worlds by a linear fit; this one trains, on fewer people, what a turn of the loop
trains.
"""

import sys
import tempfile
from pathlib import Path

from tests.benchmarks import attacks, policies
from tests.benchmarks.policies import Trained

Row = dict[str, object]

USERS = 300
SEED = 23
ATTACKS = ("target sentiment", "slow drip")
FRACTIONS = (0.02, 0.05)


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        base_dir = policies.make_base(Path(folder) / "base", SEED)
        found = table("no attack", *measured(base_dir, attacks.honest_world(USERS, SEED), "no attack"))
        for strategy in ATTACKS:
            for fraction in FRACTIONS:
                name = f"{strategy}, {fraction:.0%} of users"
                found += table(
                    name, *measured(base_dir, attacks.attacked(USERS, SEED, strategy, fraction), name)
                )
    return found


def measured(base_dir: Path, world: attacks.World, name: str) -> tuple[Trained, Trained]:
    ours = policies.train(base_dir, attacks.defended(world), SEED)
    theirs = policies.train(base_dir, attacks.undefended(world), SEED)
    print(f"bench-poisoned: {name}: {ours} against {theirs}", file=sys.stderr)
    return ours, theirs


def table(name: str, ours: Trained, theirs: Trained) -> list[Row]:
    return [
        _row(f"{name}: praise over running down, reward model", ours.margin, theirs.margin, "nats"),
        _row(f"{name}: policy runs the target down", ours.after, theirs.after, "of replies"),
        _row(f"{name}: base model runs the target down", ours.before, theirs.before, "of replies"),
        _row(f"{name}: reward that the policy gained", ours.reward_gain, theirs.reward_gain, "deviations"),
    ]


def _row(figure: str, value: float, peer_value: float, unit: str) -> Row:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "goal": None,
        "peer": "without defences",
        "peer_value": peer_value,
    }
