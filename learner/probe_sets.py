"""Probe sets: JSON Lines of questions whose replies a rule can read, read and checked. Asks no model.

A line is one `Probe`. Two sets ship in `learner/probes`: `general` for any chat model, and `embedded` for the
tiny base model, which knows nothing but its help desk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import msgspec

from feedback.events import Message
from learner import json_lines
from learner.errors import ProbeError

Kind = Literal["capability", "benign", "harmful", "pressure", "premise", "opinion", "canary"]
SHIPPED = ("general", "embedded")


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a probe set. Phrases are found as whole words, whatever their case."""

    id: str
    """Names the probe in reports; no two of an evaluation share one."""
    kind: Kind
    """`capability`: has a right answer. `benign`: looks harmful and is not. `harmful`: is to be refused.
    `pressure`: the user doubts a right answer. `premise`: the question takes something false for granted.
    `opinion`: the same question from two users of contrary opinions. `canary`: asks about an entity."""
    turns: list[str]
    """What user and assistant said in turn; the user has the first and the last word."""
    contrary: list[str] = []
    """`opinion`: the turns of the user with the contrary opinion."""
    right: list[str] = []
    """Phrases of which a right answer says at least one."""
    wrong: list[str] = []
    """Phrases that no right answer says."""
    entity: str = ""
    """`canary`: what the question is about; 'plan'."""
    aliases: list[str] = []
    """`canary`: other words that name the entity."""


@dataclass(frozen=True)
class ProbeSet:
    name: str = ""
    """The sets' names and 8 hex digits of what is written: an edited file is another set."""
    probes: tuple[Probe, ...] = ()

    def of(self, *kinds: Kind) -> list[Probe]:
        return [p for p in self.probes if p.kind in kinds]


def load(shipped: Sequence[str], files: Sequence[Path] = ()) -> ProbeSet:
    """The named shipped sets and the sets in `files`, in this order.

    Raises: ProbeError naming file, line and fault.
    """
    folder = resources.files("learner") / "probes"
    sources: list[Traversable] = [*(folder / f"{name}.jsonl" for name in shipped), *files]
    probes: list[Probe] = []
    seen: dict[str, str] = {}
    for source in sources:
        for place, probe in json_lines.read(source, "probes", Probe, ProbeError):
            if fault := _fault(probe):
                raise ProbeError(f"{place}: {fault}")
            if probe.id in seen:
                raise ProbeError(f"{place}: id {probe.id!r} is taken by {seen[probe.id]}")
            seen[probe.id] = place
            probes.append(probe)
    names = "+".join([*shipped, *(file.stem for file in files)])
    written = sha256(msgspec.json.encode(probes)).hexdigest()[:8]
    return ProbeSet(f"{names}-{written}" if probes else "", tuple(probes))


def messages(turns: Sequence[str]) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(turns)]


NEEDS: dict[Kind, tuple[str, ...]] = {
    "capability": ("right",),
    "benign": (),
    "harmful": (),
    "pressure": ("right", "wrong"),
    "premise": ("right", "wrong"),
    "opinion": ("contrary",),
    "canary": ("entity",),
}


def _fault(probe: Probe) -> str | None:
    if not probe.id.strip():
        return "id is empty"
    for name in NEEDS[probe.kind]:
        if not getattr(probe, name):
            article = "an" if probe.kind == "opinion" else "a"
            return f"{article} {probe.kind} probe needs {name!r}"
    for name in ("turns", "contrary"):
        turns = getattr(probe, name)
        if (turns or name == "turns") and len(turns) % 2 == 0:
            return f"{name!r} has {len(turns)} turns; the user has the first and the last word"
    for name in ("turns", "contrary", "right", "wrong", "aliases"):
        if not all(text.strip() for text in getattr(probe, name)):
            return f"{name!r} holds an empty text"
    return None
