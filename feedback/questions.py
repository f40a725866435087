"""Whether a message asks once more what was asked before. A score of what two questions share; English.

    score = BIAS + sum of WEIGHTS[feature] * value

Every value lies in [0, 1] (`features`), so each decision can be read off as a sum of reasons. Fitted by
`tests/fit_questions.py` to generated pairs of questions.
"""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import zip_longest

from feedback.text import after, content_words, plain, remembered, said

WEIGHTS = {
    "words shared": 5.71,
    "letters in common": 3.31,
    "aims at the same": 2.37,
    "aims elsewhere": -1.7,
    "yes or no to an open question": -3.23,
    "goes on": -1.01,
}
BIAS = -4.93

_WORDS = re.compile(r"[^\W_]+")
_AIMS = {
    "cost": "cost costs price prices cheap cheaper cheapest expensive afford pay salary fee fees charge",
    "difference": "difference differences differ differs different vs versus compare compared comparison",
    "reason": "why reason reasons cause causes caused because wrong",
    "amount": "many much amount count often",
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
    "advice anything best better briefly brief correct correctly describe detail details do doing easiest"
    " easy exactly example explain explanation find fix go going good great guide handle healthy idea"
    " ideas instructions kind know learn like looking love make makes making method necessary notice one"
    " ones out part point possible practice procedure process proper properly question quick quickly"
    " recommended right say short show sign signs simple simply solution solve something sort start step"
    " steps stop suggest suggestion suggestions take tell text thing things tip tips tutorial type use"
    " using version want way ways what work works write".split()
)
_NAME = re.compile(r"(?<=[\w,'] )(?!I\b)[A-Z]\w+")
_NUMBERS = {
    word: str(n)
    for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}
_LONGEST_WORDS = 64
"""Characters of two words that are compared often enough to be remembered."""
_ENDING = re.compile(
    r"[bdglmnprt]?(?:s|e|es|er|ers|est|r|rs|d|ed|en|ing|ings|y|ies|ied|ly|or|ors|al|ally|ant|ance|ence|ment|ments"
    r"|ion|ions|ation|ations|ication|ications|a|um|on|us|i|ist|ists|n|t)?"
)
_YES_OR_NO = frozenset("is are was were do does did will has have should may can could would am".split())
_OPEN = re.compile(
    r"(?:what|which|how|why|when|where|who|tell|explain|give|suggest|recommend|plan|write|translate)\b"
)
_REQUEST = re.compile(r"^(?:please |kindly )?(?:can|could|would|will) you\b")
_LEAD = re.compile(
    r"^(?:(?:ok|okay|good|great|alright|all right|fine|nice|makes sense|cool|got it|i see|thanks|thank you"
    r"|thx|lovely|perfect|understood|wow|interesting|sure|right|hm+|well|so)\b[^\w]+)+"
)
_GOES_ON = re.compile(
    r"(?:and|also|what about|how about|then|next|now|another|one more|besides|in addition|finally|lastly"
    r"|a (?:further|second|different|follow-?up) question|on another note|by the way|btw)\b"
)
_AGAIN = r"(?:again|differently|another way|otherwise|once more|like this|this way|more (?:clear|simp)ly)"
_I_WILL = r"(?:(?:i'll|i will|i'd like to|i should|i could|let me|let's|can i|may i|i|to) )?"
_ANNOUNCED = re.compile(
    r"^(?:(?:ok|okay|well|sorry|hm+|so|no|right|alright|please|perhaps|maybe|or)\W+)*(?:"
    r"let me (?:re-?ask|put|ask|say|word|phrase|be (?:clearer|more))\b"
    rf"|{_I_WILL}(?:re-?phras(?:e|ed|ing)|reword(?:ed|ing)?|restat(?:e|ed|ing)|repeat(?:ing)?)\b"
    rf"|{_I_WILL}(?:ask(?:ed|ing)?|try(?:ing)?|put|say|phrase) (?:it |this |that )?{_AGAIN}(?=\s*[:.,-])"
    r"|(?:simply|differently) put\b"
    r"|(?:in|with) (?:other|simpler|different|plain) (?:words|terms)\b"
    r"|once (?:more|again)\b|one more time\b|again\W"
    r"|to be more (?:precise|specific|clear)\b"
    r"|(?:back to (?:my|the) |(?:the |my )?(?:same|original) |my )question(?: again)?\b"
    r"(?! (?:for|about|is|was|but (?:for|with|about)))(?=[^?]*?[:,.])"
    r"|(?:what|all) i(?:'d| would)?(?:'m| am)? (?:want(?:ed)?|like|trying|need(?:ed)?) "
    r"(?:to (?:know|ask)|is to know)\b"
    r"|(?:clearer|differently|answer my question)\b"
    r"|(?:another|second|next|new) (?:try|attempt|way to ask)\b"
    r")[^\w]*"
)

_BEFORE = re.compile(
    r"(?:(?:hm+|ok|okay|well|sorry|so|right|alright)\W+){0,2}[^?.:!–\n]{2,70}(?:[:–]| - |\.(?=\s))\s*"
)
_CLEARER = frozenset(
    "again better brief briefly clear clearer clearly concise concretely different differently easier"
    " exact exactly plain plainer plainly precise precisely properly repeat repeating rephrased restated"
    " reworded same short simple simpler simplified simply specific specifically".split()
)
_ANEW = frozenset("another fresh more new next once other second third time twice".split())
_ATTEMPT = frozenset("attempt formulation phrasing term terms try trying version way wording words".split())
_OF_ASKING = frozenset(
    "ask asked asking describe explain explained express expressed mean meaning message phrase put"
    " putting query question request say saying sentence spell state stated word write written".split()
)
_FILLING = frozenset(
    "a alright am and as be but can could d for from had have here hm hmm hope how i i'd i'll i'm in is"
    " it it's let let's like ll m makes maybe me might my of ok okay or out perhaps right s should so"
    " sorry start that that's the then thing this to understand was well what will with would".split()
)
_OF_WORDING = _CLEARER | _ANEW | _ATTEMPT | _OF_ASKING | _FILLING
"""A lead of these words alone says nothing of the user's affairs."""


def announces(own: str) -> bool:
    """Whether a message in lower case says that it asks the same again, and then asks."""
    found = _ANNOUNCED.match(own) or _of_wording(own)
    return found is not None and bool(content_words(own[found.end() :]))


def _of_wording(own: str) -> re.Match[str] | None:
    """A few words before the question that are about its wording, and about nothing else."""
    lead = _BEFORE.match(own)
    words = frozenset(_WORDS.findall(lead[0])) if lead else frozenset()
    anew = words & _CLEARER or (words & _ANEW and words & _ATTEMPT)
    return lead if anew and words <= _OF_WORDING else None


def asks_again(question: str, following: str) -> bool:
    """Whether it looks as if it asked the same: no more than a suspicion where the words are others."""
    if all(len(word) < 5 for word in _asked(question)) or not content_words(following):
        return False
    if _same_letters(question, following):
        return repeats(question, following)
    return comparable(question, following) and score(question, following, WEIGHTS, BIAS) > 0


def repeats(question: str, following: str) -> bool:
    """Whether it asks with the same words of the topic and no others. A nod said twice asks nothing."""
    asked = _asked(question)
    if _same_letters(question, following):
        return len(asked) > 1 and any(len(word) > 4 for word in asked)
    before, then = (_topic(_without_lead(text)) for text in (question, following))
    same = all(known(w, then) for w in before) and all(known(w, before) for w in then)
    return len(before) > 1 and same and asks_again(question, following)


def _asked(question: str) -> frozenset[str]:
    return content_words(_without_lead(question))


def _without_lead(text: str) -> str:
    return after(_LEAD, plain(text).casefold())


def _same_letters(question: str, following: str) -> bool:
    asked, asks = ("".join(said(text)) for text in (question, following))
    return len(asked) == len(asks) and (asked == asks or sorted(asked) == sorted(asks))


def score(question: str, following: str, weights: Mapping[str, float], bias: float) -> float:
    """The log odds that it asks the same, for messages that are `comparable`."""
    return bias + sum(weights[name] * value for name, value in features(question, following).items())


def comparable(question: str, following: str) -> bool:
    """Whether the two are worth a score: enough of the topic comes again, and nothing names another thing."""
    asked, asks = _without_lead(question), _without_lead(following)
    before, then = _topic(asked), _topic(asks)
    enough = sum(known(word, before) for word in then) >= min(2, max(1, len(before)))
    others = _others(_names(question), _names(following), asked, asks)
    figures = _others(_figures(asked), _figures(asks), asked, asks)
    return enough and not (others or figures or same_build(asked, asks))


def features(question: str, following: str) -> dict[str, float]:
    """What the following message shares with the question, and what it has from elsewhere."""
    asked, following = _without_lead(question), plain(following).casefold()
    asks = after(_LEAD, following)
    topic_before, topic_after = _topic(asked), _topic(asks)
    shared = sum(known(word, topic_before) for word in topic_after)
    aims, aims_after = _aims(asked), _aims(asks)
    return {
        "words shared": min(shared, 3) / 3,
        "letters in common": trigram_overlap(topic_before, topic_after),
        "aims at the same": float(bool(aims & aims_after)),
        "aims elsewhere": float(bool(aims_after - _SIDE_AIMS) and not aims & aims_after),
        "yes or no to an open question": float(_asks_yes_or_no(asks) and _asks_for_more(asked, aims)),
        "goes on": float(bool(_GOES_ON.match(asks)) or asks != following),
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


@remembered(16_384, longest=_LONGEST_WORDS)
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
