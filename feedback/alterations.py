"""How a reply that comes back differs from the one that was served. Judges nobody; `implicit` does."""

import re
from collections.abc import Callable, Collection, Iterator
from difflib import SequenceMatcher
from enum import Enum
from typing import NamedTuple

from feedback.text import remembered, said

MAX_WORDS = 4000
"""Of longer replies only the beginnings are compared."""
MAX_MARK_WORDS = 6
"""So many words say at most that something was left out."""

_ELLIPSIS = re.compile(
    r"[\[(<{][^\])>}\n]{0,40}\b(?:truncated|omitted|snip\w*|cut|removed|shortened)\b[^\])>}\n]{0,40}[\])>}]"
    r"|[\[(<{]*\s*(?:\.\.\.|…)\s*[\])>}]*",
    re.IGNORECASE,
)
_MASK = re.compile(
    r"[\[<{(][A-Z][A-Z_ ]{2,30}\d*[\]>})]|█+|\b[Xx]{4,}\b|\w\*{2,}\w?|(?<![\w*])\*{3,}(?![\w*])"
)
_FENCE = re.compile(r"```([a-z]+)")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_NOTE = re.compile(r"\([^()\n]{1,120}\)|\[[^\[\]\n]{1,120}\](?!\()")
_SENTENCES = re.compile(r"(?<=[.!?:])\s+|\n+")
_SYMBOLS = frozenset("percent degree degrees celsius fahrenheit c f plus minus equals and".split())
"""What symbols are read as; the symbols themselves are no words."""
_SPOKEN = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve".split(),
        map(str, range(13)),
        strict=True,
    )
) | {
    word: unit
    for unit, words in {
        "mm": "millimetre millimetres millimeter millimeters",
        "cm": "centimetre centimetres centimeter centimeters",
        "m": "metre metres meter meters",
        "km": "kilometre kilometres kilometer kilometers",
        "g": "gram grams gramme grammes",
        "kg": "kilo kilos kilogram kilograms",
        "l": "litre litres liter liters",
        "ml": "millilitre millilitres milliliter milliliters",
        "min": "minute minutes",
        "h": "hour hours",
        "s": "second seconds",
        "kb": "kilobyte kilobytes",
        "mb": "megabyte megabytes",
        "gb": "gigabyte gigabytes",
        "db": "decibel decibels",
        "kwh": "kilowatthour kilowatthours",
        "w": "watt watts",
        "v": "volt volts",
    }.items()
    for word in words.split()
}


class Way(Enum):
    """What was done to the words, by whomever."""

    NONE = "none"
    """The same words, perhaps in another order."""
    CUT = "cut"
    """Shortened: it ends or begins in mid-sentence, or says that something is left out."""
    LESS = "less"
    """Whole sentences are missing and the others stand."""
    MORE = "more"
    """Something was put before or after it."""
    MARKED = "marked"
    """Placeholders stand for words, or notes in brackets beside them."""
    REWORDED = "reworded"
    """Words inside it were replaced, put in or taken out."""


class Change(NamedTuple):
    """Words that gave way to others; either may be none."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    at_start: bool
    at_end: bool

    @property
    def replaces(self) -> bool:
        return bool(self.old and self.new)


class Alteration(NamedTuple):
    way: Way
    changes: frozenset[Change] = frozenset()


@remembered(2048)
def alteration(served: str, resent: str) -> Alteration:
    """What became of the words of `served`."""
    if said(served) == said(resent):
        return Alteration(Way.NONE)
    before, after = _aloud(served)[:MAX_WORDS], _aloud(resent)[:MAX_WORDS]
    if sorted(before) == sorted(after) or "".join(before) == "".join(after):
        return Alteration(Way.NONE)
    languages = frozenset(_FENCE.findall(served))
    changes = frozenset(c for c in _changes(before, after) if c.old or not languages.issuperset(c.new))
    return Alteration(_way(served, resent, changes) if changes else Way.NONE, changes)


def _aloud(text: str) -> tuple[str, ...]:
    """Its words as a voice says them, be they written as figures, symbols or short forms of units."""
    return tuple(_SPOKEN.get(word, word) for word in said(text) if word not in _SYMBOLS)


def _way(served: str, resent: str, changes: Collection[Change]) -> Way:
    if _masks(resent) > _masks(served) or _beside_notes(served) == _beside_notes(resent):
        return Way.MARKED
    if not any(change.new for change in changes) and _whole_sentences(served, resent):
        return Way.LESS
    if _is_cut(served, resent, said) or _is_cut(served, resent, _aloud):
        return Way.CUT
    if not all(_put_around(change) for change in changes):
        return Way.REWORDED
    return Way.CUT if any(change.old for change in changes) else Way.MORE


def _changes(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[Change]:
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for what, i, j, k, m in matcher.get_opcodes():
        if what != "equal" and not _same_but_for_spelling(before[i:j], after[k:m]):
            yield Change(before[i:j], after[k:m], at_start=i == 0, at_end=j == len(before))


def _same_but_for_spelling(old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    """Joined or hyphenated words, a letter more or less (colour, color), the number of a list item."""
    if "".join(old) == "".join(new):
        return True
    if not old or not new:
        return all(word.isdigit() and len(word) < 3 for word in (*old, *new))
    return len(old) == len(new) and all(_one_letter_apart(a, b) for a, b in zip(old, new, strict=True))


def _one_letter_apart(a: str, b: str) -> bool:
    if min(len(a), len(b)) < 5 or not (a + b).isalpha() or abs(len(a) - len(b)) > 1:
        return False
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) >= max(len(a), len(b)) - 1


def _is_cut(served: str, resent: str, words: Callable[[str], tuple[str, ...]]) -> bool:
    """Whether every piece of it, between marks of omission, stands in the reply, in that order."""
    whole, at = "".join(words(served)), 0
    for piece in ("".join(words(p)) for p in _ELLIPSIS.split(resent)):
        found = whole.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _whole_sentences(served: str, resent: str) -> bool:
    """Whether every sentence of it is one of the reply's."""
    of_reply = {_aloud(sentence) for sentence in _SENTENCES.split(served)}
    marked = len(_ELLIPSIS.findall(resent)) > len(_ELLIPSIS.findall(served))
    return not marked and all(_aloud(s) in of_reply for s in _SENTENCES.split(resent) if said(s))


def _put_around(change: Change) -> bool:
    """Whether nothing inside was touched, or all that stands for a lost end is a mark that it is lost."""
    a_mark = len(change.old) > 2 * MAX_MARK_WORDS and len(change.new) <= MAX_MARK_WORDS
    return (change.at_start or change.at_end) and (not change.old or a_mark)


def _beside_notes(text: str) -> tuple[str, ...]:
    return said(_NOTE.sub(" ", text))


def _masks(text: str) -> int:
    return len(_MASK.findall(_BOLD.sub(r"\1", text)))
