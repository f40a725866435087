"""What counts as the same text: plain wording, word distance, near-duplicate keys. Knows nothing of turns."""

import html
import re
import unicodedata
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import msgspec

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_LINE_MARKER = re.compile(r"^\s*(?:[-*+•]|\d+[.)]|#{1,6}|>+)\s+", re.MULTILINE)
_MARKUP = str.maketrans("", "", "*_`~|\\")
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+|[^\w\s]")
_ALPHANUMERIC = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_ASCII_STOPS = {n: " " for n in range(128) if not chr(n).isalnum()}
_DIGITS = re.compile(r"\d+")
_STOP_WORDS = frozenset(
    "a about am an and any are as at be been but by can could did do does for from get give had has have"
    " hello help hey hi how i if in is it its just know like may me might my need of on or our please shall"
    " should so some tell thank thanks that the their them then there these they this those to us want was"
    " we were what when where which who why will with would you your".split()
)
_MAX_WORDS = 4000
_REMEMBERED_CHARS = 4000
"""Longest texts that are worth a place in a cache: 2048 such entries hold some 15 MB."""

_THOUGHT = re.compile(
    r"<(?P<tag>think|thinking|thought|reasoning)\b[^>]*>.*?</(?P=tag)>"
    r"|<details\b[^>]*>.*?</details>"
    r"|\A(?:(?!<think).)*?</(?:think|thinking|thought|reasoning)>",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"</?[a-z][\w-]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ADDRESS = re.compile(r"\(?\b(?:https?://|www\.)[^\s<>()]+\)?")
_CITATION = re.compile(r"\[\^?\d{1,3}\](?::\s)?")
_SMALL_FIGURE = re.compile(r"【[^】]{1,40}】|[⁰¹²³⁴-⁹₀-₉]")
_FENCE_LANGUAGE = re.compile(r"(```|~~~)[\w+-]*")
_LIST_NUMBER = re.compile(r"(?:^\W*|(?<=[.:!?]\s))\d{1,2}[.)]\*{0,3}(?=\s)", re.MULTILINE)
_EMOJI_NAME = re.compile(r"(?<!\w):[a-z][a-z_]+:(?!\w)")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff\u0300-\u036f]")
_THOUSANDS = re.compile(r"(?<=\d)[.,' ](?=\d{3}(?!\d))")
_NUMBERED_OR_GROUPED = re.compile(r"\d(?:[.)]\s|[.,' ]\d)")
"""What both of these need, and few texts have."""
_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
_ESCAPED = re.compile(r"\\([^\w\s])")
_ORG_BLOCK = re.compile(r"#\+(?:begin|end)_\w+(?: [\w+-]+$)?", re.MULTILINE | re.IGNORECASE)
_CHANGED_ON_THE_WAY = (
    ("\\", _ESCAPED, r"\1"),
    ("#+", _ORG_BLOCK, " "),
    ("</", _THOUGHT, " "),
    ("](", _LINK, r"\1"),
    ("http", _ADDRESS, " "),
    ("www.", _ADDRESS, " "),
    ("<", _TAG, " "),
    ("[", _CITATION, " "),
    ("```", _FENCE_LANGUAGE, " "),
    ("~~~", _FENCE_LANGUAGE, " "),
    (":", _EMOJI_NAME, " "),
)
"""What to look for first, what then goes, and what stays in its place."""
_json = msgspec.json.Encoder(order="deterministic")

F = TypeVar("F", bound=Callable[..., Any])


def content_text(message: dict[str, Any]) -> str:
    """A message's text: its string, or the text parts of its list one after another; "" without any."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def is_text_only(message: dict[str, Any]) -> bool:
    """Whether role and text are all there is to the message: no tools, no images, no sound."""
    content = message.get("content")
    if isinstance(content, list):
        only_text = all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    else:
        only_text = isinstance(content, str)
    extras = message.get("tool_calls") or message.get("function_call") or message.get("audio")
    return only_text and not extras and message.get("role") in ("system", "developer", "user", "assistant")


def remembered(entries: int, longest: int = _REMEMBERED_CHARS) -> Callable[[F], F]:
    """An LRU cache for a function of texts that leaves long ones out: bounded in bytes, not in entries alone.

    A conversation resends its texts with every turn, so most are asked for more than once.
    Args: longest, in characters, of all texts of a call together.
    """

    def decorate(function: F) -> F:
        cached = lru_cache(maxsize=entries)(function)

        @wraps(function)
        def call(text: str, *others: str) -> Any:
            size = len(text) + sum(map(len, others)) if others else len(text)
            return cached(text, *others) if size <= longest else function(text, *others)

        return cast(F, call)

    return decorate


@remembered(2048)
def plain(text: str) -> str:
    """The wording without what clients and renderers change on their own.

    Whitespace, markdown markers, typographic quotes and dashes, link targets and `<think>` blocks go;
    letters, their case and all other punctuation stay.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    if "<think>" in text:
        text = _THINKING.sub(" ", text)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "\n" in text:
        text = _LINE_MARKER.sub("", text)
    elif marker := _LINE_MARKER.match(text):
        text = text[marker.end() :]
    return " ".join(text.translate(_MARKUP).split())


@remembered(2048)
def said(text: str) -> tuple[str, ...]:
    """Its words, without anything that programs change on the way: the same before and after any of them.

    Besides what `plain` takes away, so go punctuation, case, accents, HTML (escaped or not), thinking, web
    addresses, citation and list numbers, emoji and the grouping of figures.
    """
    if "&" in text:
        text = html.unescape(text)
    for hint, gone, left in _CHANGED_ON_THE_WAY:
        if hint in text:
            text = gone.sub(left, text)
    if not text.isascii():
        text = _SMALL_FIGURE.sub(" ", text)
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKD", text).replace("\u2019", "'"))
    if _NUMBERED_OR_GROUPED.search(text):
        text = _THOUSANDS.sub("", _LIST_NUMBER.sub(" ", text))
    if "'" in text:
        text = _APOSTROPHE.sub("", text)
    return tuple(_words(text))


def after(lead: re.Pattern[str], text: str) -> str:
    """What follows `lead` where the text begins with it; else all of it."""
    found = lead.match(text)
    return text[found.end() :] if found else text


def _words(text: str) -> list[str]:
    """Runs of letters and figures in lower case; ideographs one by one."""
    text = text.casefold()
    return text.translate(_ASCII_STOPS).split() if text.isascii() else _ALPHANUMERIC.findall(text)


def distance(a: str, b: str) -> float:
    """Share of words and punctuation marks that differ, 0 (same wording) to 1 (nothing in common)."""
    words_a, words_b = _WORD.findall(plain(a))[:_MAX_WORDS], _WORD.findall(plain(b))[:_MAX_WORDS]
    if words_a == words_b:
        return 0.0
    return 1.0 - SequenceMatcher(None, words_a, words_b, autojunk=False).ratio()


@remembered(2048)
def content_words(text: str) -> frozenset[str]:
    """Its words in lower case, without those that carry no topic."""
    return frozenset(_words(plain(text))) - _STOP_WORDS


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words; 0 when both are empty."""
    return len(a & b) / len(a | b) if a or b else 0.0


def near_duplicate_key(text: str) -> str:
    """Equal for questions that differ only in case, punctuation, word order, filler words and figures.

    A function of the text alone, so that a cluster never changes as data grows.
    """
    words = content_words(text) or frozenset(plain(text).casefold().split())
    return " ".join(sorted({_DIGITS.sub("0", word) for word in words}))


def canonical(value: object) -> bytes:
    """JSON with sorted keys: the bytes that are hashed."""
    return _json.encode(value)
