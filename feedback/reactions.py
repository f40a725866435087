"""What a user's message says of the reply before it: objects, asks the same again, thanks, or goes on.

Decided by wording alone, in English; other languages are read as going on. `objections` tells whether it
speaks against the reply, `questions` whether it asks the same again; this module weighs the courtesies.
"""

import re

from feedback.events import SignalKind
from feedback.objections import objection, own_words
from feedback.questions import announces, asks_again, repeats
from feedback.text import plain, remembered, said

_NO = re.compile(
    r"^(?:(?:um|uh|hm+|well|sorry|ok|but|thanks but|thank you but|close|almost|nearly)\W+(?:but )?)*"
    r"(?:no(?:\W?no)*|no{2,}|nope|nah)\b(?P<rest>.*)",
    re.DOTALL,
)
_FINE = re.compile(
    r"^\W*(?:(?:no|nope|nah)\W+)*(?:"
    r"thanks|thank you|thx|nothing|everything|enough|not (?:right now|now|today|tonight|yet|at the moment)"
    r"|(?:that|this|it)(?:'s| is| was| will be| would be| will| should|'ll)? (?:all|do|it|fine|great|good"
    r"|perfect|ok|okay|cool"
    r"|everything|enough|clear|helpful|what i needed)"
    r"|(?:all|everything)(?:'s| is)? (?:good|fine|set|clear|done)|go ahead|please go|you(?:'re| are) right"
    r"|(?:i'?m|i am|we'?re|we are) (?:good|fine|done|all set|ok|okay|happy|sorted)"
    r"|i(?:'ve| have)? (?:got|have) (?:it|everything|what i|all)"
    r")\b"
)
_CONTRADICTS = re.compile(r"^(?:\s*[,.!:;-]+\s*\w|\s+(?:i|it|that|this|you|not|the|no|nope|we|they)\b)")
"""After "no": a stop, or a new clause. A noun ("no hurry", "no idea") makes it a determiner."""
_OFFER = re.compile(
    r"^(?:"
    r"shall i|should i|can i|may i|want me|what else|how else|anything|is there any"
    r"|(?:would you like|do you want|need|do you need)(?: me| more| another| any| to| help)"
    r"|(?:does|did) (?:that|this|it) (?:help|answer|make|work)"
    r"|(?:is|was) (?:that|this|it) (?:what|clear|ok|okay|helpful|correct|right)"
    r")\b"
)
"""A question that asks nothing of the user's affairs: what follows a no to it is meant for the reply."""
_OWN_AFFAIRS = re.compile(r"^\W*(?:(?:no|nope|nah)\W+)*(?:i|we|my|our)\b(?! (?:need|want|mean|ask))")
_HAS_DONE = re.compile(r"^\W*(?:i|we)(?:'ve| have|'d| had| haven't| have not)\b")
"""What the user has done, or not: told, not held against the reply."""
_THANKS = re.compile(
    r"\b(?:"
    r"thanks|thank (?:you|u|ya)|thx|tnx|tks|thnx|thnks|thanx|thks|thank's|ty|tysm|tyvm|cheers"
    r"|kudos|much obliged|bless you"
    r"|(?:really |greatly )?appreciate (?:it|that|this|your|the)|much appreciated"
    r"|(?:so|very|really|i am|i'm) grateful|grateful (?:for|to)|you(?:'re| are) the best|lifesaver"
    r")\b"
)
_NO_THANKS = re.compile(
    r"\bthank(?:s| you) in advance|\bthanks? (?:you )?for nothing"
    r"|\bthank(?:s| you)[- ](?:letter|note|card|e-?mail|speech|message|gift|party)"
    r"|\b(?:say|saying|write|said|a|the|of|my|your|to|without)[- ]thank"
)


@remembered(2048)
def reaction(question: str, answer: str, following: str) -> SignalKind | None:
    """What a user's message says of the answer before it; None where it may ask the same again, or may not.

    By its words alone another question about the same thing looks like the same one in other words.
    """
    own = own_words(following)
    if announces(own):
        return SignalKind.REPHRASE
    if objection(own) or _contradicts(question, answer, own):
        return SignalKind.CORRECTION
    if repeats(question, following):
        return SignalKind.REPHRASE
    thanks = _THANKS.search(own) and not _NO_THANKS.search(own) and not _NO.match(own)
    if thanks:
        return SignalKind.THANKS
    return None if asks_again(question, following) else SignalKind.CONTINUATION


def _contradicts(question: str, answer: str, own: str) -> bool:
    """Whether it says no to the reply. A no to a question of the assistant's is an answer."""
    no = _NO.match(own)
    if not no or _FINE.match(no["rest"]):
        return False
    asked_back = re.split(r"(?<=[.!?:])\s+", plain(answer))[-1].casefold()
    if not said(no["rest"]):
        return not asked_back.endswith("?")
    if not _CONTRADICTS.match(no["rest"]):
        return False
    if not asked_back.endswith("?"):
        return not _HAS_DONE.match(no["rest"])
    if _OFFER.match(asked_back):
        return not _OWN_AFFAIRS.match(no["rest"]) and len(said(no["rest"])) > 1
    return asks_again(question, no["rest"])
