"""The written principles that a judge compares replies by: a TOML file, read and checked. Asks nobody."""

import re
import tomllib
from hashlib import sha256
from importlib import resources
from pathlib import Path

import msgspec

from learner.errors import ConstitutionError

OVERALL = "overall"
"""What all principles together are called in events and figures: no principle's id."""
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Principle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[principle]]`: one thing by which a reply can be better than another."""

    id: str
    """Names the principle in events and figures: lower-case letters, digits and hyphens."""
    name: str
    question: str
    """What the judge is asked, as it stands."""
    weight: float = 1.0
    """Its part in the overall preference."""


class Constitution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str
    principle: tuple[Principle, ...]

    @property
    def name(self) -> str:
        """The version and 8 hex digits of what is written: an edited file is another constitution."""
        return f"{self.version}-{sha256(msgspec.json.encode(self)).hexdigest()[:8]}"


def load(path: Path | None = None) -> Constitution:
    """The constitution in `path`, or the one that ships with ratchet.

    Raises: ConstitutionError naming the file, the principle and what is wrong with it.
    """
    source = resources.files("learner") / "constitution.toml" if path is None else path
    try:
        written = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConstitutionError(f"constitution {source}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConstitutionError(f"constitution {source} is not TOML: {e}") from e
    try:
        found = msgspec.convert(written, Constitution)
    except msgspec.ValidationError as e:
        raise ConstitutionError(f"constitution {source}: {e}") from e
    if fault := _fault(found):
        raise ConstitutionError(f"constitution {source}: {fault}")
    return found


def _fault(found: Constitution) -> str | None:
    ids = [p.id for p in found.principle]
    if not found.version.strip():
        return "version is empty: name it, and change the name with the text"
    if not ids:
        return "it has no [[principle]]"
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        return f"two principles have the id {twice[0]!r}"
    for principle in found.principle:
        if principle.id == OVERALL:
            return f"id {OVERALL!r} stands for all principles together"
        if not _ID.fullmatch(principle.id):
            return f"id {principle.id!r} is not made of lower-case letters, digits and hyphens"
        if not (principle.name.strip() and principle.question.strip()):
            return f"principle {principle.id!r} has no name or no question"
        if not 0.0 < principle.weight < float("inf"):
            return f"principle {principle.id!r} has weight {principle.weight}, which must be above 0"
    return None
