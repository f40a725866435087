"""Whether a message asks once more what was asked before. A score of what two questions share; English.

    score = BIAS + sum of WEIGHTS[feature] * value

Every value lies in [0, 1] (`features`), so each decision can be read off as a sum of reasons. Fitted by
`tests/fit_questions.py` to generated pairs of questions.
"""

import re
from difflib import SequenceMatcher
from functools import lru_cache

from feedback.text import content_words, plain, said

WEIGHTS = {
    "covers the question": 0.16,
    "is covered by it": 3.28,
    "letters in common": 2.14,
    "takes up the answer": 0.03,
    "aims at the same": 0.71,
    "aims elsewhere": -3.05,
    "points back": 2.22,
    "yes or no after another": -4.0,
    "goes on": -1.63,
    "built alike": -3.4,
    "other names": -2.61,
    "other figures": -0.85,
}
BIAS = -0.16

_WORDS = re.compile(r"[^\W_]+")
_AIMS = {
    "cost": "cost costs price cheap cheaper cheapest expensive afford pay salary fee fees",
    "difference": "difference differences differ differs different vs versus compare compared comparison distinguish",
    "reason": "why reason reasons cause causes caused because explain",
    "advice": "fix solve tips tip advice suggest suggestion suggestions recommend recommendation ideas idea help",
    "amount": "many much amount number count often long big large",
    "time": "when time month season date year",
    "place": "where place near location",
    "writing": "write compose draft poem letter rewrite reword paraphrase version",
    "summary": "summarise summarize summary tldr gist short brief",
    "translation": "translate translation say german french spanish english",
    "meaning": "mean means meaning definition define",
    "calculation": "calculate compute formula",
}
_AIM_OF = {word: aim for aim, words in _AIMS.items() for word in words.split()}
_ANAPHORA = frozenset("it its that this they them their those these there then he she one ones instead both".split())
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
_REQUEST = re.compile(r"^(?:please |kindly )?(?:can|could|would|will) you\b")
_LEAD = re.compile(
    r"^(?:(?:ok|okay|good|great|alright|all right|fine|nice|makes sense|cool|got it|i see|thanks|thank you|thx|lovely"
    r"|perfect|understood|wow|interesting|sure|right|hm+|well|so)\b[^\w]+)+"
)
_GOES_ON = re.compile(
    r"(?:and|also|what about|how about|then|next|now|another|one more|besides|in addition|finally|lastly"
    r"|a (?:further|second|different|follow-?up) question|on another note|by the way|btw)\b"
)
_ANNOUNCED = re.compile(
    r"^(?:(?:ok|okay|well|sorry|hm+|so|no|right|alright|please)\W+)*(?:"
    r"let me (?:rephrase|re-?ask|re-?phrase|try|put|ask|say|reword|restate|repeat|word|phrase|be (?:clearer|more))\b"
    r"|(?:i'll|i will|i'd|let's|i) (?:rephrase|reword|restate|repeat)\b"
    r"|(?:i'll|i will|let's|i) (?:ask|try|put|say) (?:it |that |this )?(?:again|differently|another way|once more)(?= ?[.:,-])"
    r"|in other words|asked? (?:again|differently)|asking (?:again|differently)|once (?:more|again)|again\W"
    r"|(?:to )?(?:put|say|phrase) (?:it |this |that )?(?:another way|differently|simply|otherwise|in other words)"
    r"|(?:the |my )?(?:same|original) question\b(?! (?:for|about|but (?:for|with|about)))"
    r"|(?:what i|all i) (?:want|would like|am trying|need|wanted) (?:to know|is to know)|rephras(?:ed|ing)|reword(?:ed|ing)"
    r"|to (?:rephrase|repeat|reword|restate)|(?:maybe|perhaps) (?:this way|differently|clearer)|differently"
    r"|another (?:try|attempt|way to ask)|second (?:try|attempt)|repeating"
    r")[^\w]*"
)


def announces(own: str) -> bool:
    """Whether a message in lower case says that it asks the same again, and then asks."""
    found = _ANNOUNCED.match(own)
    return bool(found) and bool(content_words(own[found.end() :]))


def asks_again(question: str, answer: str, following: str) -> bool:
    """Whether it asks the same. A nod said twice asks nothing twice."""
    asked = content_words(_LEAD.sub("", plain(question).casefold()))
    if all(len(word) < 5 for word in asked) or not content_words(following):
        return False
    if sorted("".join(said(question))) == sorted("".join(said(following))):
        return len(asked) > 1
    if not shares_enough(question, following):
        return False
    values = features(question, answer, following)
    return BIAS + sum(WEIGHTS[name] * value for name, value in values.items()) > 0


def shares_enough(question: str, following: str) -> bool:
    """Whether two words of the topic come again, or the only one: below that nothing is scored."""
    before, after = (_topic(plain(text).casefold()) for text in (question, following))
    return sum(known(word, before) for word in after) >= min(2, max(1, len(before)))


def features(question: str, answer: str, following: str) -> dict[str, float]:
    """What the following message shares with the question, and what it has from elsewhere."""
    names, new_names = _names(question), _names(following)
    asked, following = _LEAD.sub("", plain(question).casefold()), plain(following).casefold()
    asks = _LEAD.sub("", following)
    topic_before, topic_after, answered = _topic(asked), _topic(asks), content_words(answer)
    shared = sum(known(word, topic_before) for word in topic_after)
    found = sum(known(word, topic_after) for word in topic_before)
    new = [word for word in topic_after if not known(word, topic_before)]
    aims, aims_after = _aims(asked), _aims(asks)
    return {
        "covers the question": found / max(1, len(topic_before)),
        "is covered by it": shared / max(1, len(topic_after)),
        "letters in common": trigram_overlap(topic_before, topic_after),
        "takes up the answer": sum(known(word, answered) for word in new) / max(1, len(topic_after)),
        "aims at the same": float(bool(aims & aims_after)),
        "aims elsewhere": float(bool(aims and aims_after) and not aims & aims_after),
        "points back": float(not _ANAPHORA.isdisjoint(_WORDS.findall(asks))),
        "yes or no after another": float(_asks_yes_or_no(asks) and not _asks_yes_or_no(asked)),
        "goes on": float(bool(_GOES_ON.match(asks)) or asks != following),
        "built alike": float(same_build(asked, asks)),
        "other names": float(_others(names, new_names, asked, asks)),
        "other figures": float(_others(_figures(asked), _figures(asks), asked, asks)),
    }


def _topic(text: str) -> frozenset[str]:
    """Its content words but for those that say what is wanted."""
    return frozenset(w for w in content_words(text) - _AIM_OF.keys() if len(w) > 2 or w.isdigit())


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
    return {_AIM_OF[word] for word in _WORDS.findall(text) if word in _AIM_OF}


def _asks_yes_or_no(text: str) -> bool:
    words = _WORDS.findall(text)
    return bool(words) and words[0] in _YES_OR_NO and not _REQUEST.match(text)


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
        if what != "replace" or j - i != m - k:
            return False
        exchanged += sum(not alike(a, b) for a, b in zip(before[i:j], after[k:m], strict=True))
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
