"""Whether a message asks once more what was asked before. A score of what two questions share; English.

    score = BIAS + sum of WEIGHTS[feature] * value

Every value lies in [0, 1] (`features`), so each decision can be read off as a sum of reasons. Fitted by
`tests/fit_questions.py` to generated pairs of questions.
"""

import re
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import zip_longest

from feedback.text import content_words, plain, said

WEIGHTS = {
    "words shared": 5.82,
    "words exchanged": -0.19,
    "letters in common": 3.6,
    "aims at the same": 2.2,
    "aims elsewhere": -1.42,
    "yes or no to an open question": -3.11,
    "goes on": -0.62,
    "built alike": -2.51,
    "other names": -1.54,
    "other figures": -0.54,
}
BIAS = -5.11

_WORDS = re.compile(r"[^\W_]+")
_AIMS = {
    "cost": "cost costs price prices cheap cheaper cheapest expensive afford pay salary fee fees charge",
    "difference": "difference differences differ differs different vs versus compare compared comparison distinguish",
    "reason": "why reason reasons cause causes caused because wrong",
    "amount": "many much amount number count often",
    "duration": "long time minutes hours weeks duration",
    "date": "when time month season date year deadline",
    "place": "where place location near",
    "person": "who whom whose",
    "writing": "write compose draft rewrite reword paraphrase",
    "summary": "summarise summarize summary tldr gist",
    "translation": "translate translation german french spanish english japanese",
    "meaning": "mean means meaning definition define",
    "calculation": "calculate compute formula",
}
_SIDE_AIMS = frozenset({"writing", "summary", "translation", "meaning", "calculation"})
"""Wanted in so many words that their absence says nothing."""
_AIMS_OF: dict[str, set[str]] = {}
for _aim, _aim_words in _AIMS.items():
    for _word in _aim_words.split():
        _AIMS_OF.setdefault(_word, set()).add(_aim)
_ASKING = frozenset(
    "advice anything best better briefly brief correct correctly describe detail details do doing easiest easy"
    " exactly example explain explanation find fix go going good great guide handle healthy idea ideas instructions"
    " kind know learn like looking love make makes making method necessary notice one ones out part point possible"
    " practice procedure process proper properly question quick quickly recommended right say short show sign signs"
    " simple simply solution solve something sort start step steps stop suggest suggestion suggestions take tell"
    " text thing things tip tips tutorial type use using version want way ways what work works write you'd".split()
)
_NAME = re.compile(r"(?<=[\w,'] )(?!I\b)[A-Z]\w+")
_NUMBERS = {
    word: str(n)
    for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}
_ENDING = re.compile(
    r"[bdglmnprt]?(?:s|e|es|er|ers|est|r|rs|d|ed|en|ing|ings|y|ies|ied|ly|or|ors|al|ally|ant|ance|ence|ment|ments"
    r"|ion|ions|ation|ations|ication|ications|a|um|on|us|i|ist|ists|n|t)?"
)
_YES_OR_NO = frozenset("is are was were do does did will has have should may can could would am".split())
_OPEN = re.compile(r"(?:what|which|how|why|when|where|who|tell|explain|give|suggest|recommend|plan|write|translate)\b")
_REQUEST = re.compile(r"^(?:please |kindly )?(?:can|could|would|will) you\b")
_LEAD = re.compile(
    r"^(?:(?:ok|okay|good|great|alright|all right|fine|nice|makes sense|cool|got it|i see|thanks|thank you|thx|lovely"
    r"|perfect|understood|wow|interesting|sure|right|hm+|well|so)\b[^\w]+)+"
)
_GOES_ON = re.compile(
    r"(?:and|also|what about|how about|then|next|now|another|one more|besides|in addition|finally|lastly"
    r"|a (?:further|second|different|follow-?up) question|on another note|by the way|btw)\b"
)
_AGAIN = r"(?:again|differently|another way|otherwise|once more|like this|this way|more (?:clearly|precisely|simply))"
_ANNOUNCED = re.compile(
    r"^(?:(?:ok|okay|well|sorry|hm+|so|no|right|alright|please|perhaps|maybe|or)\W+)*(?:"
    r"let me (?:rephrase|re-?ask|re-?phrase|try|put|ask|say|reword|restate|repeat|word|phrase|be (?:clearer|more))\b"
    r"|(?:(?:i'll|i will|i'd like to|i should|i could|let's|can i|may i|i|to) )?"
    r"(?:rephras(?:e|ed|ing)|reword(?:ed|ing)?|restat(?:e|ed|ing)|repeat(?:ing)?)\b"
    rf"|(?:(?:i'll|i will|i'd like to|i should|let's|to) )?(?:ask(?:ed|ing)?|try(?:ing)?|put|say|phrase) (?:it |this |that )?{_AGAIN}"
    r"|(?:simply|differently) put\b|(?:in|with) (?:other|simpler|different|plain) (?:words|terms)"
    r"|once (?:more|again)|one more time|again\W|to be (?:more )?(?:precise|specific|clear(?:er)?)\W"
    r"|(?:back to )?(?:the |my )?(?:same |original )?question(?: again)?\b(?! (?:for|about|is|was|but (?:for|with|about)))"
    r"(?=[^?]*?[:,.])"
    r"|(?:what|all) i(?:'d| would)?(?:'m| am)? (?:want(?:ed)?|like|trying|need(?:ed)?) (?:to (?:know|ask)|is to know)"
    r"|(?:clearer|differently|answer my question)\b"
    r"|(?:another|second|next|new) (?:try|attempt|way to ask)"
    r")[^\w]*"
)


def announces(own: str) -> bool:
    """Whether a message in lower case says that it asks the same again, and then asks."""
    found = _ANNOUNCED.match(own)
    return bool(found) and bool(content_words(own[found.end() :]))


def asks_again(question: str, following: str) -> bool:
    """Whether it asks the same. A nod said twice asks nothing twice."""
    asked = content_words(_LEAD.sub("", plain(question).casefold()))
    if all(len(word) < 5 for word in asked) or not content_words(following):
        return False
    if sorted("".join(said(question))) == sorted("".join(said(following))):
        return len(asked) > 1
    if not shares_enough(question, following):
        return False
    values = features(question, following)
    return BIAS + sum(WEIGHTS[name] * value for name, value in values.items()) > 0


def shares_enough(question: str, following: str) -> bool:
    """Whether two words of the topic come again, or the only one: below that nothing is scored."""
    before, after = (_topic(plain(text).casefold()) for text in (question, following))
    return sum(known(word, before) for word in after) >= min(2, max(1, len(before)))


def features(question: str, following: str) -> dict[str, float]:
    """What the following message shares with the question, and what it has from elsewhere."""
    names, new_names = _names(question), _names(following)
    asked, following = _LEAD.sub("", plain(question).casefold()), plain(following).casefold()
    asks = _LEAD.sub("", following)
    topic_before, topic_after = _topic(asked), _topic(asks)
    shared = sum(known(word, topic_before) for word in topic_after)
    kept = sum(known(word, topic_after) for word in topic_before)
    aims, aims_after = _aims(asked), _aims(asks)
    return {
        "words shared": min(shared, 3) / 3,
        "words exchanged": float(shared < len(topic_after) and kept < len(topic_before)),
        "letters in common": trigram_overlap(topic_before, topic_after),
        "aims at the same": float(bool(aims & aims_after)),
        "aims elsewhere": float(bool(aims_after - _SIDE_AIMS) and not aims & aims_after),
        "yes or no to an open question": float(_asks_yes_or_no(asks) and _asks_for_more(asked, aims)),
        "goes on": float(bool(_GOES_ON.match(asks)) or asks != following),
        "built alike": float(same_build(asked, asks)),
        "other names": float(_others(names, new_names, asked, asks)),
        "other figures": float(_others(_figures(asked), _figures(asks), asked, asks)),
    }


def _topic(text: str) -> frozenset[str]:
    """Its content words but for those that say what is wanted."""
    return frozenset(w for w in content_words(text) - _AIMS_OF.keys() - _ASKING if len(w) > 2 or w.isdigit())


def _names(text: str) -> frozenset[str]:
    """What is written with a capital inside a sentence, in lower case."""
    return frozenset(name.casefold() for name in _NAME.findall(plain(text)))


def _figures(text: str) -> frozenset[str]:
    words = (_NUMBERS.get(word, word) for word in _WORDS.findall(text))
    return frozenset(word for word in words if any(c.isdigit() for c in word))


def _others(before: frozenset[str], after: frozenset[str], asked: str, asks: str) -> bool:
    """Whether each has one that the other lacks."""
    words, new_words = (frozenset(_NUMBERS.get(w, w) for w in _WORDS.findall(t)) for t in (asked, asks))
    return any(not known(w, new_words) for w in before) and any(not known(w, words) for w in after)


def _aims(text: str) -> set[str]:
    return {aim for word in _WORDS.findall(text) for aim in _AIMS_OF.get(word, ())}


def _asks_yes_or_no(text: str) -> bool:
    words = _WORDS.findall(text)
    return bool(words) and words[0] in _YES_OR_NO and not _REQUEST.match(text)


def _asks_for_more(text: str, aims: set[str]) -> bool:
    """Whether yes or no could not answer it."""
    return bool(aims or _OPEN.match(text))


def trigram_overlap(before: frozenset[str], after: frozenset[str]) -> float:
    """Dice's coefficient of the words' letter trigrams."""
    a, b = _trigrams(before), _trigrams(after)
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


def _trigrams(words: frozenset[str]) -> set[str]:
    return {f" {word} "[n : n + 3] for word in words for n in range(len(word))}


def same_build(question: str, following: str) -> bool:
    """Whether single words were exchanged for unlike ones and nothing else: the same of something else."""
    before, after = (_WORDS.findall(plain(text).casefold()) for text in (question, following))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    exchanged = 0
    for what, i, j, k, m in matcher.get_opcodes():
        if what == "equal":
            continue
        if what != "replace" or abs((j - i) - (m - k)) > 1:
            return False
        pairs = zip_longest(before[i:j], after[k:m], fillvalue="")
        exchanged += sum(not alike(a, b) for a, b in pairs)
    return 0 < exchanged and 2 * exchanged < len(before)


def known(word: str, words: frozenset[str]) -> bool:
    return word in words or any(alike(word, other) for other in words)


@lru_cache(maxsize=65536)
def alike(a: str, b: str) -> bool:
    """One word in two forms or with a slip: prune and pruning, wool and woollen, tree and tere."""
    if a == b:
        return True
    if a.isdigit() or b.isdigit():
        return False
    if len(a) == len(b) and sorted(a) == sorted(b):
        return True
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return start >= 3 and all(_ENDING.fullmatch(word, start) for word in (a, b))
