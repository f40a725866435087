"""What a user's message says of the reply before it: objects, asks the same again, thanks, or goes on.

Decided by wording alone, in English; other languages are read as going on. An objection must be the user's
own (quotations and reports of what others say are left out), be stated and not asked, and speak of the reply,
the assistant or what the user had meant. Two questions are one when they share enough of their content words,
and the second is neither built like the first about something else nor made of words from the reply.
"""

import re
from difflib import SequenceMatcher
from functools import lru_cache

from feedback.events import SignalKind
from feedback.text import content_words, plain, remembered

REPHRASE_SHARE = 0.4
"""A rephrased question shares at least this much of the content words of the shorter of the two."""
REPHRASE_OVERLAP = 0.2
"""… and this much of the content words of both together."""

_QUOTED = re.compile(
    r"```.*?```|^\s*>.*$|\"[^\"]{3,}\"|“[^”]{3,}”|«[^»]{3,}»|(?<!\w)['‘][^'’]*\s[^'’]*['’](?!\w)",
    re.DOTALL | re.MULTILINE,
)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_REPORTED = re.compile(
    r"\b(?!(?:i|you|we)\b)[a-z']+( just| also| always)? (says?|said|told|tells|writes?|wrote|claims?"
    r"|claimed|thinks?"
    r"|replied|answered|mentioned|insists?|believes?|complain(s|ed)|commented)\b|\baccording to\b"
    r"|\bi('ve)? (heard|read)\b"
)

_REPLY = (
    r"(?:th(?:at|is|ese|ose)(?: (?:one|answer|reply|response|part|code|list|version))?|it|which"
    r"|(?:your|the|this|that) (?:last |first |previous )?(?:answer|reply|response|suggestion|solution"
    r"|explanation|code"
    r"|advice|version|translation|text|summary|result|example|numbers?|figures?|link|output))"
)
_IS = r"(?:'s|'re| is| are| was| were| seems?| looks?| sounds?| feels?)"
_HOW = (
    r"(?: (?:just|still|simply|completely|totally|plainly|clearly|all|quite|really|also|far|much|way|a bit"
    r"|a little))*"
)
_BAD = (
    r"(?:wrong|incorrect|false|untrue|mistaken|inaccurate|nonsense|rubbish|garbage|useless|unhelpful"
    r"|outdated|bad|off"
    r"|irrelevant|a (?:mistake|lie)|an error|made up|broken)"
)
_TOO = (
    r"too (?:long|short|wordy|verbose|vague|general|generic|complicated|technical|rude|harsh|formal"
    r"|informal|simple"
    r"|detailed|brief|abstract|basic|much)"
)
_NOT = r"(?:n't| not| never)"
_GOOD = (
    r"(?:right|correct|true|accurate|it\b|helpful|useful|working|what|the (?:one|right|same)|good|enough"
    r"|quite|relevant)"
)
_MEANT = (
    r"(?:mean|meant|asked (?:about|for|whether|if|how|what|why|which|you)|said|was asking|am asking|was"
    r" talking"
    r"|am talking|was thinking|was referring|am referring|was after|am after|was looking for|was hoping"
    r"|wanted)"
)
_MEANT_BARE = _MEANT.replace("am ", "")
_OBJECTIONS = tuple(
    re.compile(pattern)
    for pattern in (
        # a verdict on the reply
        rf"\b{_REPLY}{_IS}{_HOW} (?:the )?{_BAD}\b",
        rf"\b{_REPLY}{_IS}{_HOW} {_TOO}\b",
        rf"\b{_REPLY}(?:{_IS}{_NOT}|ain't| (?:does|do|did){_NOT} (?:seem|look|sound|feel)){_HOW} (?:to be"
        rf" )?{_GOOD}",
        r"\b(?:don't|do not|doubt|not sure)(?: really)? (?:think |believe )?(?:that |this |if |it )*(?:'s"
        r"|is|was|are)? ?"
        r"(?:that's |it's )?(?:right|correct|true|accurate)\b",
        rf"\b{_REPLY} (?:still |just |really )*(?:does|do|did|is|can){_NOT}(?: (?:really|even|quite))?"
        r" (?:work|help|answer|address|solve|fix|match|make|run|compile|apply|fit)",
        rf"\b{_REPLY} (?:still |just )*(?:fails|failed|makes no sense|contradicts|crashes|misses)",
        r"^(?:still |it |well |hm+ )*(?:does|do|did)(?:n't| not) (?:work|help)\b|^(?:still )?not"
        r" (?:working|helpful|true|right)\b",
        r"\b(?:it|this|that|still) still (?:fails|breaks|crashes|says|shows|gives)|\bstill (?:fails|broken"
        r"|wrong|the same)\b",
        r"\b(?:no luck|same (?:error|result|problem|issue)(?: again)?)\b",
        r"\bthere(?:'s| is| are| must be) (?:a mistake|an error|mistakes|errors|something wrong|a bug)\b",
        rf"^{_BAD}\W*$|^{_BAD} (?:again|answer)\b|^{_TOO}\b",
        r"^(?:please )?(?:be|keep it|make it)(?: a bit| more| less| much)* (?:brief|short|shorter|concise"
        r"|specific|friendly"
        r"|friendlier|polite|formal|simple|simpler)\b|\b(?:shorten|simplify) (?:it|that|this)\b|^(?:please"
        r" )?shorten\b"
        r"|\bshorter,? please\b",
        r"\bare you (?:really |quite )?sure\b|\b(?:check|look it up|read it|try) again\b",
        # a verdict on the assistant
        r"\byou(?:'ve| have)?(?: just| completely| totally| clearly| again| still)*"
        r" (?:misunderstood|misread|misinterpreted|missed|ignored|forgot|skipped|overlooked|mixed|confused"
        r"|failed|omitted"
        r"|left out|got (?:me|it|that|this|the \w+) wrong|made (?:a|an|that|some) (?:\w+ )?(?:mistake"
        r"|error)s?)\b",
        rf"\byou (?:still |just )?(?:did|do|have|are|were){_NOT}(?: (?:even|really|quite|actually))?"
        r" (?:answer|answered|understand|understood|read|get|listen|listening|address|mention|include"
        r"|follow|help)",
        rf"\byou(?:'re| are|'d be){_HOW} (?:wrong|mistaken|incorrect|mixing|confusing|misunderstanding"
        rf"|missing)\b",
        # what the user had meant
        r"\b(?:not|n't)(?: (?:quite|really|exactly|at all|even))? what i(?:'m|'d| am| was| had| have)?"
        r" (?:ask|mean|want|said|need|look|had|have|after|in mind|request|expect)",
        rf"^(?:(?:no|nope|sorry|actually|hm+|well|but|again|to be clear|i think|perhaps i was unclear)\W+)*"
        rf"(?:what )?i(?:'m| am)? {_MEANT_BARE}\b(?! to\b)",
        rf"\b(?:what i|but i|actually,? i|however,? i|although i|sorry,? i|because i|clearer:? i|though i"
        rf"|that i)"
        rf"(?:'m| am)? {_MEANT}\b(?! to\b)",
        rf"\b(?:perhaps|maybe|sorry|guess)\b.*\bi(?:'m| am| was)? {_MEANT_BARE.replace('was ', '')}",
        r"\bmy (?:\w+ )?(?:question|message|request)(?: was|'s| is) (?:about|for|whether|how|what|why"
        r"|different)\b",
        r"\bi (?:should have been|was(?:n't| not)|have(?:n't| not) been|could have been)(?: \w+)? (?:clear"
        r"|clearer|unclear|precise)\b",
        r"^not (?:that|this|those|these|quite|really|the|what)\b",
    )
)
_NO = re.compile(
    r"^(?:(?:um|uh|hm+|well|sorry|ok|oh|but|thanks but|thank you but)\W+)*(?:no|nope|nah)\b(?P<rest>.*)",
    re.DOTALL,
)
_FINE = re.compile(
    r"^\W*(?:thanks|thank you|thx|nothing|(?:that|this|it)(?:'s| is| was)? (?:all|it|fine|great|good"
    r"|perfect|ok|okay|everything"
    r"|cool|enough|clear|helpful)|all (?:good|fine|set|clear)|(?:i'?m|i am|we'?re) (?:good|fine|done|all"
    r" set|ok|okay|happy)|not"
    r" (?:now|today|yet)|everything|go ahead|please go|you(?:'re| are) right)\b"
)
_CONTRADICTS = re.compile(r"^(?:\s*[,.!:;-]+\s*\w|\s+(?:i|it|that|this|you|not|the|no|nope|we|they)\b)")
"""After "no": a stop, or a new clause. A noun ("no hurry", "no idea") makes it a determiner."""
_THANKS = re.compile(
    r"\b(?:thanks|thank (?:you|u|ya)|thx|tnx|ty|tysm|tyvm|cheers|much appreciated|(?:really |greatly"
    r" )?appreciate (?:it|that|this|your"
    r"|the)|(?:so|very) grateful)\b"
)
_NO_THANKS = re.compile(
    r"\bthank(?:s| you)(?: in advance|[- ](?:letter|note|card|e-?mail|speech|message|gift|party)|s? for"
    r" nothing)"
    r"|\b(?:say|saying|write|said|a|the|of|my|your|to|without)[- ]thank"
)
_SARCASM = re.compile(r"\bthanks for (?:nothing|wasting)")
_SLIP = re.compile(
    r"^(?:(?:oh|ah|argh|ups|sorry)\W+)*(?:oops|whoops|ups|typo|my (?:bad|mistake|fault|error)|(?:i"
    r" )?(?:mistyped|misspelled)"
    r"|autocorrect|ignore (?:the|my|that)|i pressed|wrong (?:window|chat|tab|button|file))\b"
)
_ANNOUNCED = re.compile(
    r"^(?:(?:ok|well|sorry|hm+|so|no)\W+)*(?:let me (?:rephrase|re-?ask|try again|put it|ask (?:again"
    r"|differently)|reword)|in other words"
    r"|(?:to )?put (?:it )?(?:another way|differently|simply)|to put it (?:another way|differently|simply)"
    r"|i'll (?:ask|rephrase|try"
    r"|put)|(?:the )?same question|once (?:more|again)|again\W|i repeat|what i (?:want|would like|am"
    r" trying|need) to know|(?:i )?rephrase"
    r"|asked differently|differently)"
)
_NEXT = re.compile(
    r"^(?:(?:ok|okay|good|great|alright|fine|nice|makes sense|cool)\W+)*(?:and\b|also\b|what about|how"
    r" about|then\b|next\b|now\b"
    r"|another (?:question|thing)|one more|besides|in addition|a (?:further|second|different) question)"
)
_OBJECTION_CHARS = 300
_WORDS = re.compile(r"[^\W_]+")


@remembered(8192)
def reaction(question: str, answer: str, following: str) -> SignalKind:
    """What a user's message says of the answer before it."""
    own = _own_words(following)
    if _objects(question, answer, own):
        return SignalKind.CORRECTION
    if _asks_again(question, answer, following):
        return SignalKind.REPHRASE
    return SignalKind.THANKS if _thanks(own) else SignalKind.CONTINUATION


def _own_words(text: str) -> str:
    """In lower case, without what is quoted."""
    return plain(_QUOTED.sub(" ", text)).casefold()


def _objects(question: str, answer: str, own: str) -> bool:
    if _SLIP.match(own):
        return False
    if _SARCASM.search(own):
        return True
    if no := _NO.match(own):
        rest = no["rest"]
        if _FINE.match(rest):
            return False
        asked_back = plain(answer).endswith("?")
        if _CONTRADICTS.match(rest) and (not asked_back or _asks_again(question, "", rest)):
            return True
    return any(_is_objection(sentence) for sentence in _clauses(own[:_OBJECTION_CHARS]))


def _clauses(own: str) -> list[str]:
    """Its sentences, and what follows a "but" once more by itself."""
    sentences = [s.strip() for s in _SENTENCE.findall(own)]
    turns = [
        part.strip(" ,")
        for s in sentences
        for part in re.split(r"\b(?:but|however|although|though)\b", s)[1:]
    ]
    return [*sentences, *turns]


def _is_objection(sentence: str) -> bool:
    if sentence.endswith("?") and "sure" not in sentence:
        return False
    return not _REPORTED.search(sentence) and any(o.search(sentence) for o in _OBJECTIONS)


def _thanks(own: str) -> bool:
    no = _NO.match(own)
    return bool(_THANKS.search(own)) and not _NO_THANKS.search(own) and not no


def _asks_again(question: str, answer: str, following: str) -> bool:
    """Whether it asks the same thing; the same words about another number are another question."""
    before, after = content_words(question), content_words(following)
    if _is_nod(before) or not after or _other_figures(before, after) or _same_build(question, following):
        return False
    shared = sum(_known(word, before) for word in after)
    overlap = shared / (len(before) + len(after) - shared) if shared < len(before) + len(after) else 1.0
    said = plain(following).casefold()
    if _ANNOUNCED.match(said):
        return shared > 0
    if _NEXT.match(said):
        return False
    answered = content_words(answer)
    picked_up = sum(not _known(word, before) and _known(word, answered) for word in after)
    return (
        shared >= min(2, len(before))
        and shared - picked_up >= REPHRASE_SHARE * min(len(before), len(after))
        and overlap > REPHRASE_OVERLAP
    )


def _is_nod(words: frozenset[str]) -> bool:
    """OK, go on: said twice it asks nothing twice."""
    return len(words) < 3 and all(len(word) < 4 for word in words)


def _other_figures(before: frozenset[str], after: frozenset[str]) -> bool:
    figures_before = {w for w in before if any(c.isdigit() for c in w)}
    figures_after = {w for w in after if any(c.isdigit() for c in w)}
    return bool(figures_before) and bool(figures_after) and figures_before != figures_after


def _same_build(question: str, following: str) -> bool:
    """Whether single words were exchanged for unlike ones and nothing else: the same of something else."""
    before, after = (_WORDS.findall(plain(text).casefold()) for text in (question, following))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    exchanged = 0
    for what, i, j, k, m in matcher.get_opcodes():
        if what == "equal":
            continue
        if what != "replace" or j - i != m - k:
            return False
        exchanged += sum(not _alike(a, b) for a, b in zip(before[i:j], after[k:m], strict=True))
    return 0 < exchanged and 2 * exchanged < len(before)


def _known(word: str, words: frozenset[str]) -> bool:
    return word in words or any(_alike(word, other) for other in words)


@lru_cache(maxsize=65536)
def _alike(a: str, b: str) -> bool:
    """One word in two forms or with a slip: prune and pruning, wool and woollen, tree and tere."""
    if a == b:
        return True
    if a.isdigit() or b.isdigit():
        return False
    if len(a) == len(b) and sorted(a) == sorted(b):
        return True
    if min(len(a), len(b)) < 3:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return start >= 3 and start >= min(len(a), len(b)) - 2 and abs(len(a) - len(b)) <= 4
