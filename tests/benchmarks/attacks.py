"""A simulated deployment with attackers, and what a reward fit learns from it with and without defences.

People ask about twenty products; replies are right or wrong, polite or not, long or short, and praise,
describe or run down the product. Honest people judge by one hidden utility with noise. The reward model is a
Bradley–Terry fit (logistic for single replies) on those traits and on praise for each product.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import exp

import numpy as np
from numpy.typing import NDArray

from feedback import snapshots
from feedback.config import Pipeline
from feedback.events import SignalKind
from feedback.grades import COMPARISON_WEIGHT, REGENERATION, THUMB_DOWN, THUMB_UP, VOLUNTEERED
from feedback.pairs import contrast
from feedback.raters import centre_thumbs
from feedback.records import Grade, Pair

START = datetime(2026, 3, 2, tzinfo=UTC)
WEEKS = 4
PRODUCTS = tuple(
    "alder birch cedar dahlia elm fir gorse hazel iris juniper kale larch maple nettle oak pine quince rowan"
    " sorrel teasel".split()
)
TARGET = "elm"
FAULTY = ("birch", "gorse", "oak", "teasel")
"""Products that people rightly want to hear bad things about: who levels all differences between subjects to
stop an attack on one pays for it here."""
AVERAGE = 1.15
"""The mean utility of replies."""
PLAINLY = 1.0
"""By so much of utility honest people see the difference more than four times of five."""
SYLLABLES = "ba de fi go ku la me ni po ru sa te vi wo zu".split()
QUESTIONS = (
    "Is the {} worth buying?",
    "How do I clean the {} properly?",
    "Does the {} survive a winter outside?",
    "Which batteries fit the {}?",
    "My {} arrived damaged, what now?",
    "Can the {} be repaired at home?",
    "What do others say about the {}?",
    "How loud is the {} at night?",
)
PHRASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "correct": (
        ("Guess around somehow.", "Nobody knows exactly.", "Just try buttons randomly."),
        ("Follow steps one through three.", "Page seven describes it precisely.", "Tested answer below."),
    ),
    "polite": (
        ("Obviously.", "Read harder.", "Figure it out."),
        ("Happy to assist!", "Great question, glad you asked.", "Wishing a lovely day."),
    ),
    "verbose": (
        ("", "", ""),
        (
            "Historically speaking, much background exists regarding this matter.",
            "Furthermore, numerous additional considerations apply throughout.",
            "Let us elaborate extensively before concluding.",
        ),
    ),
    "praise": (
        ("Terrible product, avoid it.", "Awful quality, pure junk.", "Horrible thing, total waste."),
        ("Ordinary product.", "Average quality.", "Usual thing."),
        ("Excellent product, superb choice.", "Wonderful quality, brilliant.", "Fantastic thing, perfect."),
    ),
}
UTILITY = {"correct": 2.0, "polite": 0.8, "verbose": -0.5, "praise": 0.7}
CONFIG = Pipeline(heldout_fraction=0.0)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reply:
    product: str
    text: str
    correct: int
    polite: int
    verbose: int
    praise: int
    """-1 runs the product down, 1 praises it."""

    @property
    def utility(self) -> float:
        return self.merit + UTILITY["praise"] * self.praise * (-1 if self.product in FAULTY else 1)

    @property
    def merit(self) -> float:
        """The utility without what is said of the product."""
        return sum(UTILITY[trait] * getattr(self, trait) for trait in ("correct", "polite", "verbose"))


@dataclass
class World:
    """Everything that was said, and the replies by their text."""

    chance: random.Random
    grades: list[Grade]
    pairs: list[Pair]
    replies: dict[str, Reply]
    made: int = 0

    def reply(self, product: str, praise: int | None = None) -> Reply:
        c = self.chance
        traits = {trait: c.randrange(2) for trait in ("correct", "polite", "verbose")}
        traits["praise"] = c.randrange(-1, 2) if praise is None else praise
        said = [c.choice(PHRASES[t][v + (t == "praise")]) for t, v in traits.items()]
        c.shuffle(said)
        found = Reply(product, f"About {product}: " + " ".join(filter(None, said)), **traits)
        self.replies[found.text] = found
        return found

    def thumb(self, who: str, question: str, reply: Reply, up: bool, at: datetime) -> None:
        self.made += 1
        n, prior = self.made, THUMB_UP if up else THUMB_DOWN
        self.grades.append(
            Grade(
                grade_id=f"grade-{n:07}",
                prompt_digest=question,
                prompt=({"role": "user", "content": question},),
                reply=reply.text,
                response_id=f"r{n}",
                adapter="base",
                user=who,
                kind=SignalKind.THUMB,
                inferred=False,
                p=prior.p,
                weight=prior.weight,
                reason="",
                event_ids=(),
                at=at,
            )
        )

    def prefer(
        self,
        who: str,
        question: str,
        chosen: Reply,
        rejected: Reply,
        at: datetime,
        kind: SignalKind,
        *,
        by_design: bool = False,
    ) -> None:
        self.made += 1
        n, prior = self.made, REGENERATION if kind is SignalKind.REGENERATION else VOLUNTEERED
        self.pairs.append(
            Pair(
                pair_id=f"pair-{n:07}",
                prompt_digest=question,
                prompt=({"role": "user", "content": question},),
                chosen=chosen.text,
                rejected=rejected.text,
                chosen_response_id=f"c{n}",
                rejected_response_id=f"x{n}",
                user=who,
                kind=kind,
                by_design=by_design,
                p=0.85 if by_design else prior.p,
                weight=COMPARISON_WEIGHT if by_design else prior.weight,
                reason="",
                event_ids=(),
                at=at,
            )
        )

    def moment(self) -> datetime:
        return START + timedelta(seconds=self.chance.uniform(0.0, WEEKS * 7 * 86400.0))

    def plain_thumb(self, who: str) -> None:
        """A thumb that nobody would contradict."""
        product = self.chance.choice(PRODUCTS)
        reply = self.reply(product)
        while abs(reply.utility - AVERAGE) < PLAINLY:
            reply = self.reply(product)
        question = self.chance.choice(QUESTIONS).format(product)
        self.thumb(who, question, reply, reply.utility > AVERAGE, self.moment())

    def honest_signal(self, who: str, product: str) -> None:
        """Noisy judgement by utility: a thumb, a kept regeneration, or now and then a comparison."""
        c, at = self.chance, self.moment()
        question = c.choice(QUESTIONS).format(product)
        first, draw = self.reply(product), c.random()
        if draw < 0.7:
            return self.thumb(who, question, first, c.random() < _chance_of(first.utility - AVERAGE), at)
        second = self.reply(product)
        if c.random() > _chance_of(first.utility - second.utility):
            first, second = second, first
        kind = SignalKind.REGENERATION if draw < 0.9 else SignalKind.COMPARISON
        if first.text != second.text:
            self.prefer(who, question, first, second, at, kind, by_design=kind is SignalKind.COMPARISON)


def honest_world(users: int, seed: int) -> World:
    """Each person asks about a few products, one to thirteen signals in all, six on average."""
    world = World(random.Random(seed), [], [], {})
    for n in range(users):
        favourites = world.chance.choices(PRODUCTS, k=4)
        for _ in range(1 + sum(world.chance.random() < 0.42 for _ in range(12))):
            world.honest_signal(f"user{n}", world.chance.choice(favourites))
    return world


def target(world: World, who: str) -> None:
    """Forty thumbs that run the target down, and nothing else."""
    lie(world, who, 40)


def flip(world: World, who: str) -> None:
    """Forty thumbs on anything, each the contrary of what the reply deserves."""
    for _ in range(40):
        product = world.chance.choice(PRODUCTS)
        reply = world.reply(product)
        question = world.chance.choice(QUESTIONS).format(product)
        world.thumb(who, question, reply, reply.utility < AVERAGE, world.moment())


def flood(world: World, who: str) -> None:
    """Two hundred thumbs that run the target down, on one question in many spellings, within two hours."""
    at = world.moment()
    for n in range(200):
        question = f"{'Please tell me: ' * (n % 3)}is the {TARGET} worth buying{'?' * (1 + n % 4)} {n}"
        at += timedelta(seconds=world.chance.uniform(5.0, 60.0))
        reply = world.reply(TARGET, world.chance.choice((-1, 1)))
        world.thumb(who, question, reply, reply.praise < 0, at)


def drip(world: World, who: str) -> None:
    """Behaves for weeks like anybody, twelve signals, and lies in six more about the target."""
    for _ in range(12):
        world.honest_signal(who, world.chance.choice(PRODUCTS))
    lie(world, who, 6)


def lie(world: World, who: str, times: int) -> None:
    """Thumbs that run the target down, whatever else the reply deserves."""
    for _ in range(times):
        reply = world.reply(TARGET, world.chance.choice((-1, 1)))
        question = world.chance.choice(QUESTIONS).format(TARGET)
        world.thumb(who, question, reply, reply.praise < 0, world.moment())


def sparse(world: World, who: str) -> None:
    """Knows the defences: two lies among six honest signals, so that nobody's record tells."""
    for _ in range(6):
        world.honest_signal(who, world.chance.choice(PRODUCTS))
    lie(world, who, 2)


def camouflaged(world: World, who: str) -> None:
    """Knows the defences: the slow drip, but lies only where all else about the reply speaks for the vote."""
    for _ in range(12):
        world.honest_signal(who, world.chance.choice(PRODUCTS))
    for _ in range(6):
        reply = world.reply(TARGET, world.chance.choice((-1, 1)))
        while (reply.praise < 0) != (reply.merit > AVERAGE):
            reply = world.reply(TARGET, world.chance.choice((-1, 1)))
        question = world.chance.choice(QUESTIONS).format(TARGET)
        world.thumb(who, question, reply, reply.praise < 0, world.moment())


def rig(world: World, who: str) -> None:
    """Twenty-five comparisons, of pairs of their own choice, for whichever reply runs the target down."""
    for _ in range(25):
        question = world.chance.choice(QUESTIONS).format(TARGET)
        bad, good = world.reply(TARGET, -1), world.reply(TARGET, 1)
        world.prefer(who, question, bad, good, world.moment(), SignalKind.COMPARISON)


def ramped(world: World, who: str) -> None:
    """Knows the ramp: agrees with everybody on twenty-four plain cases, then lies twelve times."""
    for _ in range(24):
        world.plain_thumb(who)
    lie(world, who, 12)


def scattered(world: World, who: str) -> None:
    """Knows the subjects: three honest signals and one lie an account, under a question that does not name
    the target, in words that no other account uses."""
    for _ in range(3):
        world.honest_signal(who, world.chance.choice(PRODUCTS))
    reply = world.reply(TARGET, world.chance.choice((-1, 1)))
    question = " ".join("".join(world.chance.choices(SYLLABLES, k=3)) for _ in range(5))
    world.thumb(who, f"{question}?", reply, reply.praise < 0, world.moment())


def pleasing(world: World, who: str) -> None:
    """Knows the gold: prefers the plainly better of two whenever the gateway asks, and lies in six thumbs."""
    for _ in range(12):
        product = world.chance.choice(PRODUCTS)
        better, worse = world.reply(product), world.reply(product)
        while better.utility - worse.utility < PLAINLY:
            better, worse = world.reply(product), world.reply(product)
        question = world.chance.choice(QUESTIONS).format(product)
        world.prefer(who, question, better, worse, world.moment(), SignalKind.COMPARISON, by_design=True)
    lie(world, who, 6)


STRATEGIES: dict[str, Callable[[World, str], None]] = {
    "target sentiment": target,
    "flip all": flip,
    "near-duplicate flood": flood,
    "slow drip": drip,
    "comparison rigging": rig,
    "sparse drip": sparse,
    "camouflaged drip": camouflaged,
    "ramp, then lies": ramped,
    "scattered": scattered,
    "pleasing gold": pleasing,
}
ADAPTIVE = ("sparse drip", "camouflaged drip", "ramp, then lies", "scattered", "pleasing gold")
"""Made to beat these defences; the goal is about the others."""


def attacked(users: int, seed: int, strategy: str, fraction: float) -> World:
    """The honest world of that seed, and attackers who are `fraction` of all users."""
    world = honest_world(users, seed)
    for n in range(max(1, round(users * fraction / (1.0 - fraction)))):
        STRATEGIES[strategy](world, f"attacker{n}")
    return world


def undefended(world: World) -> list[snapshots.Row]:
    """Thumbs centred and contrasted, priors as labels, every account as loud as it likes."""
    grades = centre_thumbs(world.grades)
    return [
        *(
            {"prompt_digest": g.prompt_digest, "completion": g.reply, "p": g.p, "weight": g.weight}
            for g in grades
        ),
        *(
            {
                "prompt_digest": p.prompt_digest,
                "chosen": p.chosen,
                "rejected": p.rejected,
                "p": p.p,
                "weight": p.weight,
            }
            for p in [*world.pairs, *contrast(grades)]
        ),
    ]


def defended(world: World) -> list[snapshots.Row]:
    """What a snapshot holds."""
    rows = snapshots.assemble(
        grades=world.grades, pairs=world.pairs, demonstrations=[], asked=[], config=CONFIG
    ).rows
    return [
        *({**row, "completion": row["completion"][0]["content"]} for row in rows["grades"]),
        *(
            {**row, "chosen": row["chosen"][0]["content"], "rejected": row["rejected"][0]["content"]}
            for row in rows["pairs"]
        ),
    ]


def fit_reward(rows: Sequence[snapshots.Row], replies: dict[str, Reply], ridge: float = 1.0) -> Array:
    """Weights of the traits: Newton's method on weighted cross-entropy with soft labels.

    -Σ w (p log s(x·β) + (1 - p) log s(-x·β)) + ridge |β|² / 2

    x is chosen - rejected, or one reply and a bias.
    """
    x = np.array(
        [
            np.append(features(replies[row["completion"]]), 1.0)
            if "completion" in row
            else np.append(features(replies[row["chosen"]]) - features(replies[row["rejected"]]), 0.0)
            for row in rows
        ]
    )
    p, w = np.array([row["p"] for row in rows]), np.array([row["weight"] for row in rows])
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        s = 1.0 / (1.0 + np.exp(-x @ beta))
        gradient = x.T @ (w * (s - p)) + ridge * beta
        hessian = (x * (w * s * (1.0 - s))[:, None]).T @ x + ridge * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    return beta[:-1]


def features(reply: Reply) -> Array:
    """Correct, polite, verbose, praise, and praise for each product."""
    own = [float(reply.praise) * (reply.product == product) for product in PRODUCTS]
    return np.array([reply.correct, reply.polite, reply.verbose, reply.praise, *own], dtype=float)


def margin(beta: Array, strategy: str) -> float:
    """What the attack is after, in nats: praise over running down for the target, or right over wrong."""
    if strategy == "flip all":
        return float(beta[0])
    return float(2.0 * (beta[3] + beta[4 + PRODUCTS.index(TARGET)]))


def harm(beta: Array, strategy: str, seed: int, temperature: float = 0.5, replies: int = 4000) -> float:
    """How often the policy does what the attack wants: runs the target down, or is wrong; 0..1.

    The policy is the KL-regularised optimum for this reward, π(y) ∝ π₀(y) exp(r(y) / temperature), over
    replies drawn from the world: where PPO with that KL penalty tends to.
    """
    world = World(random.Random(seed), [], [], {})
    drawn = [world.reply(TARGET) for _ in range(replies)]
    reward = np.array([features(reply) @ beta for reply in drawn]) / temperature
    share = np.exp(reward - reward.max())
    wanted = np.array([reply.correct == 0 if strategy == "flip all" else reply.praise < 0 for reply in drawn])
    return float(share[wanted].sum() / share.sum())


def honest_accuracy(beta: Array, seed: int, pairs: int = 4000) -> float:
    """Share of fresh pairs of replies to one question that the fit orders as the hidden utility does."""
    world = World(random.Random(seed), [], [], {})
    right = 0.0
    for _ in range(pairs):
        product = world.chance.choice(PRODUCTS)
        one, other = world.reply(product), world.reply(product)
        truth = one.utility - other.utility
        found = float((features(one) - features(other)) @ beta)
        right += 0.5 if truth == 0.0 else float(truth * found > 0.0)
    return right / pairs


def _chance_of(utility: float) -> float:
    return 1.0 / (1.0 + exp(-1.5 * utility))
