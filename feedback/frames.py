"""What a client puts around its users' messages, as far as one conversation shows it. Knows no client.

Passages found for a question, memories, names, stamps and reminders are no words of the user's. They show
in two ways: a message comes back barer than it was sent, or all messages begin or end alike up to a mark.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from feedback.conversations import Spoken, Turn

ANCHOR_CHARS = 60
"""By so much of the text beside the user's words they are found again in another message."""

_MARK = re.compile(r"[\n<>\[\]{}|:]")
"""What programs set text apart with."""
_TOKEN = re.compile(r"\n|\w+|[^\w\s]")
_DIGITS = re.compile(r"\d+")
_OPENS, _CLOSES = frozenset("\n<[{|"), frozenset("\n>]}|:")
_QUOTED_LINES = re.compile(r"^[ \t]*>.*$\n?", re.MULTILINE)


class Frame(NamedTuple):
    """The text right before and right after the user's own words; "" where the message begins or ends."""

    before: str
    after: str

    def inside(self, text: str) -> str | None:
        """The user's words in a message that this frame fits; None where it does not."""
        start = text.rfind(self.before) + len(self.before) if self.before in text else -1
        if start < 0:
            return None
        end = text.find(self.after, start) if self.after else len(text)
        return text[start:end].strip() or None if end >= 0 else None


class Frames:
    """The users' own words in each message of a conversation."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        said = [[s for s in turn.dialogue if s.role == "user"] for turn in turns]
        newest = dict.fromkeys(messages[-1].text for messages in said if messages)
        earlier = dict.fromkeys(s.text for messages in said for s in messages[:-1])
        self._own: dict[str, str] = {}
        if not any(_MARK.search(text) for text in (*newest, *earlier)):
            return
        bare = dict(_barer(s for messages in said for s in messages))
        learned = list(dict.fromkeys(_frame(text, own) for text, own in bare.items()))
        alike = [_alike(group) for group in (newest, earlier)]
        for text in newest | earlier:
            framed = next(filter(None, (frame.inside(text) for frame in learned)), text)
            inner = bare.get(text) or min(framed, *(found.get(text, text) for found in alike), key=len)
            self._own[text] = _QUOTED_LINES.sub("", inner)

    def own(self, spoken: Spoken) -> str:
        """What the user wrote of this message; all of it where nothing shows otherwise."""
        return self._own.get(spoken.text, spoken.text)


def _barer(said: Iterable[Spoken]) -> Iterator[tuple[str, str]]:
    """Each message that was elsewhere sent at its place without what surrounds it, and that."""
    at: dict[str, dict[str, None]] = {}
    for spoken in said:
        at.setdefault(spoken.thread, {})[spoken.text] = None
    for texts in at.values():
        for text in texts:
            inner = [other for other in texts if len(other) < len(text) and _set_apart(other.strip(), text)]
            if inner:
                yield text, min(inner, key=len).strip()


def _set_apart(own: str, text: str) -> bool:
    """Whether it stands in the text between marks, not as a part of the sentence."""
    before, found, after = text.rpartition(own)
    outside = (before.rstrip(" ")[-1:], after.lstrip(" ")[:1])
    return bool(own and found) and outside[0] in {"", *_CLOSES} and outside[1] in {"", *_OPENS}


def _frame(text: str, own: str) -> Frame:
    before, _, after = text.rpartition(own)
    return Frame(before[-ANCHOR_CHARS:].rpartition("\n\n")[2], after[:ANCHOR_CHARS].partition("\n\n\n")[0])


def _alike(texts: Collection[str]) -> dict[str, str]:
    """What is left of each without what all begin and end with; empty if that left nothing of one."""
    if len(texts) < 2:
        return {}
    tokens = [[*_TOKEN.finditer(text)] for text in texts]
    forms = [[_DIGITS.sub("0", token[0]) for token in row] for row in tokens]
    ahead = _shared(forms, _CLOSES)
    behind = _shared([row[ahead:][::-1] for row in forms], _OPENS)
    if not ahead + behind or any(len(row) <= ahead + behind for row in forms):
        return {}
    return {
        text: text[row[ahead].start() : row[len(row) - behind - 1].end()]
        for text, row in zip(texts, tokens, strict=True)
    }


def _shared(rows: Sequence[Sequence[str]], marks: Collection[str]) -> int:
    """How many tokens all rows begin with, up to the last mark among them."""
    common = [column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*rows, strict=False))]
    return next((n for n in range(len(common), 0, -1) if common[n - 1] in marks), 0)
