"""How a reply that comes back differs from the one that was served. Judges nobody; `implicit` does."""

import re
from difflib import SequenceMatcher
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from feedback.text import said

MAX_MARK_WORDS = 6
"""So many words say at most that something was left out."""

_ELLIPSIS = re.compile(
    r"[\[(<{]*\s*(?:\.\.\.|…)\s*[\])>}]*|[\[(<{][^\])>}\n]{0,40}\b(?:truncated|omitted|snip\w*|cut|removed|shortened)"
    r"\b[^\])>}\n]{0,40}[\])>}]",
    re.IGNORECASE,
)
_MASK = re.compile(r"[\[<{(][A-Z][A-Z_ ]{2,30}\d*[\]>})]|█+|\b[Xx]{4,}\b|\w\*{2,}\w?|(?<![\w*])\*{3,}(?![\w*])")
_SENTENCES = re.compile(r"(?<=[.!?:])\s+|\n+")


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
    MASKED = "masked"
    """Words gave way to placeholders."""
    REWORDED = "reworded"
    """Words inside it were replaced, put in or taken out."""


class Alteration(NamedTuple):
    way: Way
    exchanged: frozenset[tuple[tuple[str, ...], tuple[str, ...]]] = frozenset()
    """What was there, and what is there instead."""


@lru_cache(maxsize=8192)
def alteration(served: str, resent: str) -> Alteration:
    """What became of the words of `served`."""
    before, after = said(served), said(resent)
    if sorted(before) == sorted(after) or "".join(before) == "".join(after):
        return Alteration(Way.NONE)
    if len(_MASK.findall(resent)) > len(_MASK.findall(served)):
        return Alteration(Way.MASKED)
    if _is_cut(before, resent):
        return Alteration(Way.LESS if _whole_sentences(served, resent) else Way.CUT)
    regions = _regions(before, after)
    if not regions:
        return Alteration(Way.NONE)
    exchanged = frozenset((before[i:j], after[k:m]) for i, j, k, m in regions)
    if all(k == m for _, _, k, m in regions) and _whole_sentences(served, resent):
        return Alteration(Way.LESS, exchanged)
    ends = [_at_an_end(region, len(before)) and _put_around(region) for region in regions]
    return Alteration(Way.MORE if all(ends) else Way.REWORDED, exchanged)


Region = tuple[int, int, int, int]
"""Words i to j of the one gave way to words k to m of the other."""


def _regions(before: tuple[str, ...], after: tuple[str, ...]) -> list[Region]:
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    return [
        (i, j, k, m)
        for what, i, j, k, m in matcher.get_opcodes()
        if what != "equal" and not _same_but_for_spelling(before[i:j], after[k:m])
    ]


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


def _is_cut(before: tuple[str, ...], resent: str) -> bool:
    """Whether every piece of it, between marks of omission, stands in the reply, in that order."""
    whole, at = "".join(before), 0
    for piece in ("".join(said(p)) for p in _ELLIPSIS.split(resent)):
        found = whole.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _whole_sentences(served: str, resent: str) -> bool:
    """Whether every sentence of it is one of the reply's."""
    of_reply = {said(sentence) for sentence in _SENTENCES.split(served)}
    return all(said(s) in of_reply for s in _SENTENCES.split(resent) if said(s)) and not (
        len(_ELLIPSIS.findall(resent)) > len(_ELLIPSIS.findall(served))
    )


def _at_an_end(region: Region, words: int) -> bool:
    i, j, _, _ = region
    return i == 0 or j == words


def _put_around(region: Region) -> bool:
    """Whether nothing was replaced, or all that stands for a lost end is a mark that it is lost."""
    i, j, k, m = region
    return i == j or (j - i > 2 * MAX_MARK_WORDS and m - k <= MAX_MARK_WORDS)
