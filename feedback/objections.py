"""Whether a user's message objects to the reply before it, in the user's own words and in English.

A message is first brought to a bare form: no quotations, contractions written out, slips of the keyboard
put right, "is" for every verb of seeming, no auxiliaries and no adverbs. *That still doesn't look quite
right* and *this is not right* then read alike, and each ground for an objection is a line or two.
"""

import re
from collections.abc import Iterable, Iterator

from feedback.text import after, plain, remembered

OBJECTION_CHARS = 300
"""An objection comes early; what stands later in a long message is material."""


def _words(text: str) -> str:
    """One of the words of a text; an underscore stands for a space inside one."""
    return f"(?:{'|'.join(w.replace('_', ' ') for w in sorted(text.split(), key=len, reverse=True))})"


# --- the bare form

_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|^\s*>.*$|\"[^\"]{3,}\"|“[^”]{3,}”|«[^»]{3,}»|(?<!\w)['‘][^'’]*\s[^'’]*['’](?!\w)",
    re.DOTALL | re.MULTILINE,
)
_QUOTING = re.compile(r"[`>\"“«'‘]")
_NOT = _words("not never neither hardly")
_CONTRACTED = tuple(
    (hints, re.compile(contracted), written_out)
    for hints, contracted, written_out in (
        (("nt", "n't"), r"\b(ca|wo|sha)n'?t\b", "not"),
        (("cannot", "ain't", "aint"), r"\bcannot\b|\bain'?t\b", "not"),
        (
            ("nt", "n't"),
            r"\b(is|are|was|were|does|do|did|has|have|had|would|could|should|must)n'?t\b",
            r"\1 not",
        ),
        (("i'm", "im"), r"\bi'?m\b(?!-)", "i am"),
        (
            ("i was ",),
            r"\bi was (?=(?:just )?(?:asking|talking|speaking|thinking|looking|hoping|referring|after)\b)",
            "i meant ",
        ),
        (
            ("ly",),
            r"\b(?!(?:rep|on|app|supp|fami|ear|dai|ita|ju|friend|like|love|sil|week|month|year|bad)ly\b)"
            r"[a-z]{3,}ly\b",
            "",
        ),
        (("re",), r"\b(you|we|they)'?re\b(?<!were)", r"\1 are"),
        (("ve",), r"\b(i|you|we|they)'?ve\b", r"\1 have"),
        (
            ("'s", "thats", "whats", "theres"),
            r"\b(that|it|what|there|here|he|she|who|where|how)'s\b|\b(that|what|there)s\b",
            r"\1\2 is",
        ),
        (("'",), r"'(?:ll|d)\b", ""),
        (("never", "neither", "hardly"), rf"\b{_NOT}\b", "not"),
    )
)
"""Texts of which one must be there, what is then looked for, and what stands in its place."""
_BEING = "is am are was were be been being seems seemed looks looked sounds sounded feels felt appears"
_BEING_AFTER = "seem look sound feel appear"
_IS = _words(_BEING)
_IS_AFTER = _words(_BEING_AFTER)
_EMPTY = (
    "do does did done have has had can could will would should must might may to_be just still simply"
    " completely totally plainly clearly all quite really also far way a_bit a_little very absolutely"
    " actually again_and_again even exactly entirely so utterly pretty rather somewhat obviously"
    " definitely honestly basically literally apparently already at_all yet kind_of sort_of at_least kinda"
)
_DROPPED = _words(_EMPTY)
_LEAD = _words(
    "um uh hm hmm hmmm well sorry ok okay oh ah but hey please and so yeah yes i_see alright actually"
    " unfortunately thanks thank_you thx however although though again wait i_think i_believe i_am_afraid"
)
_SEEMS = re.compile(rf"\b{_IS}\b|(?<=\w ){_IS_AFTER}\b")
_SAYS_LITTLE = re.compile(rf"\b{_DROPPED}\b")
_SEEMING = frozenset(f"{_BEING} {_BEING_AFTER}".split())
_SAYING_LITTLE = frozenset(max(phrase.split("_"), key=len) for phrase in _EMPTY.split())
"""Words of which one is in all that the pattern finds."""
_LEADS = re.compile(rf"^(?:{_LEAD} )+")
_STOPS = re.compile(r"[^\w?' -]")
_IS_AGAIN = re.compile(r"\b(is)(?: is)+\b")
_IS_NOT = re.compile(r"\bis not is\b|\bnot is\b")
_LETTERS = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"[^.!?;\n]+[.!?;]*")
_TURN = re.compile(r"\b(?:but|however|although|though)\b|[,:–]\s|\s-\s")


def own_words(text: str) -> str:
    """In lower case and with slips put right, without what is quoted."""
    words = plain(_QUOTED.sub(" ", text) if _QUOTING.search(text) else text).casefold()
    if _SLIPS.keys().isdisjoint(_LETTERS.findall(words)):
        return words
    return _LETTERS.sub(lambda word: _SLIPS.get(word[0], word[0]), words)


@remembered(2048)
def bare(clause: str) -> str:
    """What carries the objection, in one form for the many ways to say it."""
    for hints, contracted, written_out in _CONTRACTED:
        if any(map(clause.__contains__, hints)):
            clause = contracted.sub(written_out, clause)
    words = _LETTERS.findall(clause)
    if not _SEEMING.isdisjoint(words):
        clause = _SEEMS.sub("is", clause)
    if not _SAYING_LITTLE.isdisjoint(words):
        clause = _SAYS_LITTLE.sub(" ", clause)
    clause = " ".join(_STOPS.sub(" ", clause).split())
    if "is is" in clause:
        clause = _IS_AGAIN.sub(r"\1", clause)
    return _IS_NOT.sub("is not", clause) if "not is" in clause else clause


# --- what objections are made of

_PART_OF_IT = _words(
    "answer answers reply replies response responses suggestion suggestions solution explanation code"
    " advice version translation text summary result results example examples number numbers figure"
    " figures link links output command script list formula calculation steps step instructions"
    " information info claim statement function query recipe quote source sources date year name"
)
_REPLY = (
    r"(?:(?:that|this|it|these|those|which|none of (?:that|this|it|these|them)|half of (?:that|this|it))"
    rf"(?: (?:one|last one|here|thing))?|(?:your|the|this|that|these|those|its)(?: \w+)? {_PART_OF_IT}"
    r"|(?:step|line|point|part|number|paragraph|item|option) (?:\d+|one|two|three|four|five|[a-d])\b)"
)
_BAD = _words(
    "wrong incorrect false untrue mistaken inaccurate nonsense rubbish garbage useless unhelpful outdated"
    " bad off irrelevant made_up broken terrible awful poor confusing misleading unclear inconsistent"
    " incomplete unrelated pointless ridiculous worthless horrible crap bogus trash gibberish fake"
    " hallucinated fabricated invented flawed invalid unusable obsolete backwards upside_down vague"
    " generic off_topic out_of_date beside_the_point no_good no_help no_use not_it a_mess a_mistake"
    " an_error a_lie a_joke a_different_question impossible contradictory illogical the_opposite the_wrong"
    " fishy suspicious dubious questionable a_misconception a_myth a_fallacy absurd"
    " unreal worse misconceptions"
)
_GOOD = _words(
    "right correct true accurate helpful useful working what how why where it good enough relevant"
    " related the one mine complete clear possible valid my about for answering answer an a in same"
    " convincing applicable"
)
_RIGHT = _words(
    "right correct true accurate it helpful useful working what the_one relevant good_enough like_that"
    " mine helping complete valid convincing"
)
_FINE = _words(
    "bad far much hard difficult expensive many problem issue necessary urgent important all worry"
)
_TOO = "too " + _words(
    "long short wordy verbose vague general generic complicated technical rude harsh formal informal"
    " simple detailed brief abstract basic much many advanced superficial shallow dense cheerful stiff"
    " casual"
)
_WORK = _words(
    "work works worked help helps helped answer answers address solve solves fix fixes match matches make"
    " makes run compile apply fit fits add_up exist cover mention explain change return print parse follow"
    " tell say"
)
_FAILS = _words(
    "fails failed fail makes_no_sense make_no_sense made_no_sense contradicts crashes crashed misses"
    " missed ignores breaks broke throws gives_me_an_error gives_an_error nothing_to_with repeats sucks"
)
_FAILED = _words(
    "misunderstood misread misinterpreted misheard missed ignored forgot skipped overlooked confused"
    " failed omitted mistook mixed contradicted repeated repeating invented hallucinated lied left_out"
    " misquoted miscounted miscalculated confusing mixing missing ignoring misunderstanding assuming"
    " contradicting describing inventing mistaken wrong incorrect off getting_me_wrong talking_about"
    " answering got_me_wrong got_it_wrong got_that_wrong got_this_wrong are_wrong lost_the dropped lost_me"
    " disregarded neglected misreading forgetting skipping swapped reversed switched contradict"
    " misunderstand misread ignore repeat forget confuse overlook miss"
)
_UNDERSTOOD = _words(
    "answer answered understand understood understanding read get listen listening address addressed"
    " mention mentioned include included follow followed help helping solve solved get_it got_it pay"
    " explain fix use answering addressing reading following paying getting consider considered take"
    " notice give finish check see tell"
)
_GAVE = _words(
    "gave give used use made make took picked chose told answered wrote said say got get put sent"
    " translated counted calculated assumed quoted listed showed described explained changed mixed wrote"
    " call called"
)
_AMISS = (
    r"(?:wrong|mistakes?|errors?|instead|different|another|opposite|twice|old|outdated"
    r"|other (?:one|way|thing)|nonsense|rubbish|garbage|useless|irrelevant)"
)
_AGAIN = _words("try check think calculate count look read do go start write answer explain")
_REPAIR = _words(
    "redo rewrite fix correct double-check recheck recalculate reconsider shorten simplify revise"
)
_PLAINER = _words(
    "brief short shorter concise specific friendly friendlier polite politer formal simple simpler"
    " clearer precise serious"
)
_UNWANTED = _words("use add include repeat make change give write invent apologize apologise lecture")
_SAYING = (
    "says say said told tells writes write wrote claims claimed thinks think replied answered insists"
    " believes complains complained commented"
)
_SAYS = _words(_SAYING)
_MEANT = _words(
    "mean meant asked asking said wanted is_asking is_talking is_thinking is_referring is_speaking"
    " was_after needed talking_about requested told_you is_after expected referred"
)
_SAID_ELSEWHERE = _words("my him her them some someone somebody people around goodbye hello")
_ASKED = _words(
    "ask asked asking mean meant want wanted say said need needed look looking after expect expected"
    " request requested hoping hoped thinking had is in_mind require"
)

_OF_IT = _words("it this that these those them what which your the")
_PIECE = _words("part bit piece point sentence paragraph line step bullet claim first second third last rest")

_GROUNDS: dict[str, tuple[str, ...]] = {
    "a verdict on the reply": (
        rf"\b{_REPLY} (?:is )?(?:the |an? )?(?:{_BAD}|{_TOO})\b",
        rf"\b{_REPLY} is not (?:\w+ )?{_GOOD}\b",
        rf"^(?:that|this|these|those) is not (?!(?:\w+ )?{_FINE}\b)",
        rf"\b{_REPLY} (?:\w+ ){{0,2}}?(?:not {_WORK}|{_FAILS})\b",
        rf"^(?:is )?(?:the |what an? )?{_BAD}(?: \w+)?(?: to me)?$|^{_TOO}\b",
        rf"^(?:is )?not (?!right now\b)(?:{_WORK}|{_RIGHT}|that|this|those|these)\b"
        r"(?! (?:i|it) (?:mind|matters?)\b)",
        r"\bthere is (?:\w+ )?(?:mistakes?|errors?|something wrong|bugs?)"
        r"(?: in (?:your|the|this|that|step|line) \w+| in (?:it|this|that|there)| here)?$",
        r"\b(?:nothing to with|beside the point|off topic|no sense|out of date|the opposite of)\b",
        r"^(?:that|this|these|those|it) (?:is|only) (?!not\b)\w.* not \w+",
        r"^(?:that|this|it) is (?:only )?about\b",
        rf"\b(?:none|not one|neither) of {_OF_IT}\b.*\b(?:real|exists?|happened|{_GOOD}|{_WORK})\b",
        rf"\b(?:half|most|much|some) of {_OF_IT}\b.*\bis (?:\w+ )?{_BAD}\b",
        rf"\b(?:the|your) (?:\w+ )?{_PIECE}\b.*\bis (?:\w+ )?{_BAD}\b",
        rf"\b(?:the|your) {_PIECE} .*\bis not {_GOOD}$",
        r"\bin (?:the|a) (?:\w+ )?(?:wrong|opposite) (?:direction|way|order)\b",
        r"\bthere is no such\b|^no such\b",
    ),
    "disbelief": (
        r"\bi not (?:\w+ )?(?:think|believe|buy|agree|see how|trust)(?!.*\bi (?:need|want))\b.*"
        rf"\b(?:{_GOOD}|so|that|this|it)$",
        r"^i (?:\w+ )?(?:doubt (?:it|that|this|your)|disagree)\b",
        r"^i not (?:think|believe|buy)(?: that| it| this)?$",
        rf"\bsure (?:that |about )?.*\b(?:not|{_BAD})\b",
        r"\bnot (?:\w+ )?(?:sure|convinced)(?: that| about)? (?:that|this|it|your)\b(?! (?:i|we|my|our)\b)",
        r"^(?:there is )?no need to is \w+$",
        rf"^(?:i (?:think|believe|fear|guess|suspect) )?(?:that |this |it )?is {_BAD}$",
        r"^(?:since when|says who)\b",
        r"\b(?:the (?:other way (?:a?round)|opposite|contrary|reverse)|otherwise)$",
        r"\bi (?:know|knew|tried|said) (?:that|this|all that|it)(?: before| myself| one)?$",
    ),
    "a verdict on the assistant": (
        rf"\byou (?:is )?(?:to )?{_FAILED}\b",
        r"\byou (?:said|told me|mentioned|wrote) (?:that|this|it|so)(?: before| twice| above)?$",
        r"\byou (?:made|is making) (?:\w+ ){0,2}up$",
        rf"\byou (?:is )?not (?:\w+ )?{_UNDERSTOOD}\b",
        rf"\byou {_GAVE} .*\b{_AMISS}\b",
        r"\byou (?:is )?(?:got |made |making )?(?:an?|some|the|two) (?:\w+ )?(?:errors?|mistakes?|slips?)\b",
        r"\b(?:talking|speaking|writing) past (?:each other|one another|me)\b",
        r"^(?:let me|i have to|i must|allow me to) correct you\b",
        r"\byou (?:keep|kept) \w+ing\b",
        r"\b(?:missed|missing|got|get) (?:my|the) (?:point|question)\b(?<!got the point)",
    ),
    "what the user had meant": (
        rf"\bnot (?:\w+ )?what i (?:\w+ )?{_ASKED}\b",
        rf"^(?:what )?i (?:\w+ )?(?!(?:asked|said) {_SAID_ELSEWHERE}\b){_MEANT}\b(?! (?:to|it|well)\b)",
        r"^i not (?:ask|request|say)\b(?! (?:to|any|you)\b)|^i not want .*\bi (?:want|need)\b",
        r"^i (?:need|want) something else\b",
        r"^(?:by|with) (?:that|this|it|which) i (?:\w+ )?meant\b",
        r"\bi (?:\w+ )?(?:explained|expressed|described|put|phrased|worded) (?:\w+ )?(?:badly|wrong)\b",
        rf"^(?!(?:that|this|it|which|just|perfect) )(?:.* )?is what i (?:\w+ )?{_ASKED}\b",
        r"\b(?:my|the) (?:\w+ )?(?:question|message|request|point) (?:is|concerned|concerns)\b(?! how\b.*\?)",
        r"\bi (?:is |not )*(?:clearer|unclear|clear enough|not clear|more precise|more specific|imprecise)\b",
        r"^not (?:that|this|those|these|the|what|about|for)\b",
        r"^i (?:need|want|asked for|am after) .*\b(?:not|instead of|rather than)\b",
        r"\b(?:re-?read|read) (?:my|the|what|it|that)\b.*(?:again|question|message|i wrote|i said)",
    ),
    "what came of it": (
        r"\bno (?:luck|success|avail|change|effect|difference)\b",
        r"\b(?:same|another|an|the) (?:\w+ )?(?:error|result|problem|issue|exception)(?: as before| again)?$",
        r"\bnothing (?:\w+ )?(?:change[ds]|happen(?:ed|s)|improve[ds]|work(?:ed|s)|help(?:ed|s))$",
        r"\b(?:is|got|gets|became|becomes|made (?:it|things)) (?:\w+ )?worse\b",
        r"\bnow (?:everything|it) is (?:gone|lost)\b",
        r"^i? ?(?:tried|did|followed) .*\b(?:not|nothing|fails?|failed|same|errors?|in vain)\b",
        r"\b(?:it|that|this) (?:keeps|is) (?:failing|crashing|broken|the same)\b",
    ),
}
_REDO = re.compile(
    rf"^(?:\w+ )?{_AGAIN} (?:\w+ ){{0,3}}?(?:again|once more|over)\b"
    rf"|^(?:\w+ )?{_REPAIR} (?:(?:it|that|this)(?: (?:again|please|properly|without|with))?$"
    rf"|your(?:self)?\b|the (?:mistake|error|{_PART_OF_IT}))"
    r"|^redo$|^look it up\b"
    rf"|^(?:is|keep it|make it)(?: more| less| much)* {_PLAINER}\b"
    r"|^(?:\w+ )?(?:shorten|shorter|simpler|briefer)(?: version)?(?: please)?$|^.*\bshorter please\b"
    r"|^(?:stop|quit) \w+ing\b|^(?:get to|stick to|stay on) (?:the|my|what|topic)\b"
    rf"|^not {_UNWANTED}\b"
)
_OFFERS = re.compile(r"(?:let me|i|shall i)\b")
_ASKED_BACK = re.compile(
    r"\b(?:are|is) you (?:\w+ )?(?:sure|certain|serious|kidding|joking)\b(?!-)"
    r"|\b(?:why|how come|how) (?:is )?you (?:\w+ )?"
    rf"(?:not|ignored|changed?|removed?|keep|giving|telling|showing|{_FAILED})\b"
    r"|\byou (?:read|listen|listening|understand)\b(?! )?.*(?:my|what i|to me|at me)"
    r"|\bwhat .*\bto with\b|\bhow is (?:that|this) (?:an answer|relevant|related|helpful|supposed)\b"
)
_ASKING_BACK = ("you", "to with", "how is")
_REQUESTS = re.compile(r"^(?:please |you |kindly )+")
_REPORTED = re.compile(
    r"\b(?!(?:i|you|we|not|it|that)\b)[a-z']+ (?:(?:just|also|always) )?"
    rf"{_SAYS}\b"
    r"|\baccording to\b|\bi (?:heard|read)\b(?! (?:my|your|the answer))"
)
_REPORTING = frozenset(_SAYING.split()) | {"according", "heard", "read"}
"""Words of which one is in whatever is reported."""
_SUPPOSED = re.compile(
    r"^(?:\w+ )?(?:if|when|whenever|in case|unless|whether|assuming|suppose|imagine|because if)\b"
)
_EXPLAINED = re.compile(r"^no wonder\b|\b(?:explains|that is) why\b")
_PRAISE = re.compile(
    r"\b(?:exactly|just|precisely|perfect|thanks|great|(?:that|this|it) is) (?:(?:just|all) )?what i\b"
    r"|\b(?:exactly|precisely) what\b"
)
_SLIP = re.compile(
    r"^(?:(?:oh|ah|argh|ups|sorry)\W+)*(?:"
    r"oops|whoops|ups|typo|autocorrect|never ?mind|nvm|scratch that|disregard"
    r"|my (?:bad|mistake|fault|error|apologies)|ignore (?:the|my|that)"
    r"|i (?:pressed|hit|pasted|mistyped|misspelled|sent|forgot|posted|clicked|accidentally|made a typo)"
    r"|i should (?:add|mention)|wrong (?:window|chat|tab|button|file)"
    r"|(?:a )?correction on my|(?:stupid|silly|dumb|clumsy) (?:me|of me)"
    r"|(?:ah |oh )?(?:wait\W+)?i (?:was|had|have|'d|'ve)(?: been)? (?:looking at|reading|using|holding|opened"
    r"|typed|wrote|written|misread|confused|mixed|got|thinking of) (?:up )?(?:the|a|my|two|it)"
    r" (?:wrong|other|two|own|things)"
    r")\b"
)
_SARCASM = re.compile(r"\bthanks? (?:you )?for (?:nothing|wasting)")
_MATERIAL = re.compile(
    r"^(?!let me )(?:\w+ ){0,2}(?:write|translate|rewrite|fix|correct|shorten|summari[sz]e|proofread"
    r"|draft|answer|reply"
    r"|respond|compose|paraphrase|improve|edit|make|say|put|explain|check|review|debug)\b[^:\n]*:.*",
    re.DOTALL,
)
_CONTRAST = re.compile(
    r"^(?!(?:i|you|we|it|that|this|he|she|they|there|great|good|nice|ok|thanks|no|nope|nah|yes|yeah|haha|oh|well"
    r"|why)\b)[^,?!]{1,40}, not [^,?!]{1,40}[.!]?$"
)
_STATES = re.compile(r"\bis\b")
_COMPILED = tuple((ground, re.compile("|".join(patterns))) for ground, patterns in _GROUNDS.items())


def objection(own: str) -> str:
    """The ground on which these words object to a reply; "" when they do not."""
    if _SLIP.match(own):
        return ""
    if _SARCASM.search(own):
        return "sarcasm"
    own = _MATERIAL.sub("", own)
    return next(filter(None, map(_ground, _clauses(own[:OBJECTION_CHARS]))), "")


def _clauses(own: str) -> Iterator[str]:
    """Its sentences, and what follows a turn or a stop inside one once more by itself; nothing reported."""
    for sentence in _SENTENCE.findall(own):
        clause = sentence.strip()
        if _reported(clause):
            continue
        yield clause
        end = sentence[-1] if sentence[-1] in "?!" else ""
        parts = (part.strip() for part in _TURN.split(sentence)[1:])
        yield from (part + end for part in parts if part and not _reported(part + end))


def _reported(sentence: str) -> bool:
    said = bare(sentence)
    if _SUPPOSED.match(said) or (("why" in said or "wonder" in said) and _EXPLAINED.search(said)):
        return True
    return not _REPORTING.isdisjoint(_LETTERS.findall(said)) and bool(_REPORTED.search(said))


def _ground(clause: str) -> str:
    """Why this clause objects. What is asked does not, unless it asks to account for the reply."""
    if "what" in clause and _PRAISE.search(clause):
        return ""
    said = after(_LEADS, bare(clause.replace(",", "")).replace("?", ""))
    if any(map(said.__contains__, _ASKING_BACK)) and _ASKED_BACK.search(said):
        return "asked to account for it"
    if not _OFFERS.match(said) and _REDO.match(after(_REQUESTS, said)):
        return "once more, please"
    if clause.endswith("?"):
        return ""
    if _CONTRAST.match(clause) and not _STATES.search(said):
        return "a contrast"
    return next((ground for ground, pattern in _COMPILED if pattern.search(said)), "")


def _swapped(words: Iterable[str]) -> dict[str, str]:
    """Every word with two neighbouring letters the wrong way round, and the word."""
    known = set(words) | {"three", "form", "trial", "how", "who", "won", "now", "own"}
    return {
        slip: word
        for word in words
        for n in range(len(word) - 1)
        if (slip := word[:n] + word[n + 1] + word[n] + word[n + 2 :]) not in known
    }


_OBJECTING = (_IS, _NOT, _DROPPED, _LEAD, _BAD, _GOOD, _TOO, _WORK, _FAILS, _FAILED, _UNDERSTOOD, _MEANT)
_SHORT = (
    "you but was the not and that this what which your answer reply question everything thanks thank doesn"
    " didn isn wasn aren couldn appreciated appreciate cheers there again sure think nope fine problem"
    " worries want need"
)
_SLIPS = _swapped(
    sorted({word for words in _OBJECTING for word in re.findall(r"[a-z]{4,}", words)} | set(_SHORT.split()))
)
"""How these words look with two letters the wrong way round."""
