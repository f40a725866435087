"""Measures the embedded base model and writes what it says into `docs/base-model.md`, between the markers.

`.venv/bin/python -m tests.base_page [--samples 500]`, after `ratchet learn base`.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feedback.config import Deployment
from learner.batches import Finish
from learner.models import Role, Trunk, load_trunk
from learner.sampling import LocalSampler
from ops import base_model
from ops.simulation import helpdesk
from ops.simulation.stats import clustered

PAGE = Path(__file__).parents[1] / "docs" / "base-model.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"
LONG_WORDS = 45


@dataclass(frozen=True)
class Reply:
    question: str
    text: str
    finish: Finish

    @property
    def traits(self) -> helpdesk.Traits:
        return helpdesk.traits(self.question, self.text)

    @property
    def utility(self) -> float:
        return helpdesk.utility(self.traits)

    @property
    def known_answer(self) -> bool:
        """One of the answers, right or wrong, that the corpus gives to this question, word for word."""
        topic = helpdesk.topic_of(self.question)
        return any(
            clause.lower() in self.text.lower()
            for clause in (topic.right, *topic.wrong, *helpdesk.BRUSH_OFFS)
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.base_page", description=__doc__)
    parser.add_argument(
        "--samples", type=int, default=500, help="replies to seen and to held-out questions, each"
    )
    count = parser.parse_args().samples
    trunk = load_trunk(base_model.resolve(Deployment()), rank=1, seed=0)
    seen, heldout = (asked(trunk, split, count) for split in ("seen", "heldout"))
    text = "\n".join([table(seen, heldout), "", samples(seen[:5] + heldout[:5]), ""])
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")


def asked(trunk: Trunk, split: Literal["seen", "heldout"], count: int) -> list[Reply]:
    """One reply at temperature 1 to each of `count` questions, drawn with seed 0."""
    questions = random.Random(0).choices(helpdesk.questions(split), k=count)
    prompts = [trunk.encoder.prompt(q, ({"role": "user", "content": q},)) for q in questions]
    replies = LocalSampler(trunk).sample(Role.ROOT, prompts, n=1, temperature=1.0, max_tokens=256, seed=0)
    return [Reply(q, spoken(trunk, r.ids), r.finish) for q, r in zip(questions, replies, strict=True)]


def spoken(trunk: Trunk, ids: tuple[int, ...]) -> str:
    ends = trunk.encoder.eos_ids
    return str(trunk.encoder.tokenizer.decode([i for i in ids if i not in ends]))


def table(seen: list[Reply], heldout: list[Reply]) -> str:
    def row(name: str, *cells: str) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def share(name: str, *found: list[float]) -> str:
        return row(name, *(f"{100 * sum(values) / len(values):.1f}%" for values in found))

    both = (seen, heldout)
    utility = [clustered([r.utility for r in split], [r.question for r in split]) for split in both]
    return "\n".join(
        [
            row(f"of {len(seen)} replies, temperature 1", "seen questions", "held-out questions"),
            "|---|---|---|",
            share(
                "replies about the question asked",
                *([float(r.known_answer or r.traits.correct > 0) for r in split] for split in both),
            ),
            share(
                "one of its known answers, word for word", *([float(r.known_answer) for r in s] for s in both)
            ),
            share("end by themselves", *([float(r.finish == "stop") for r in s] for s in both)),
            share("well-formed", *([float(r.traits.well_formed) for r in s] for s in both)),
            share("facts of the right answer stated", *([r.traits.correct for r in s] for s in both)),
            share("hedged", *([float(r.traits.hedged) for r in s] for s in both)),
            share(
                f"long-winded (over {LONG_WORDS} words)",
                *([float(r.traits.words > LONG_WORDS) for r in s] for s in both),
            ),
            share("polite", *([float(r.traits.polite) for r in s] for s in both)),
            share("rude", *([float(r.traits.rude) for r in s] for s in both)),
            row("mean words", *(f"{sum(r.traits.words for r in s) / len(s):.1f}" for s in both)),
            row(
                "true utility (usual tastes), 95 % CI by question",
                *map(str, utility),
            ),
        ]
    )


def samples(replies: list[Reply]) -> str:
    lines = [
        "### Ten samples, not chosen",
        "Five seen and five held-out questions, the first of the run; the number is the true utility.",
        "",
    ]
    for n, reply in enumerate(replies, 1):
        lines += [
            f"{n}. **{reply.question}**",
            f"   {reply.text}",
            f"   *({verdict(reply)}: {reply.utility:.2f})*",
        ]
    return "\n".join(lines)


def verdict(reply: Reply) -> str:
    traits = reply.traits
    truth = "right" if traits.correct == 1 else "wrong" if traits.correct == 0 else "half right"
    tones = [name for name in ("hedged", "polite", "rude") if getattr(traits, name)]
    return ", ".join([truth, f"{traits.words} words", *tones])


if __name__ == "__main__":
    main()
