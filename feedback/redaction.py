"""Personal data by pattern: card and account numbers, addresses, phones. Pure, and nobody can reverse it.

A pattern finds candidates, check digits decide where there are any (ISO/IEC 7812-1 for cards, ISO 13616 for
IBANs). The same text always becomes the same, so a resent history still matches what was recorded.
"""

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from ipaddress import AddressValueError, IPv6Address

import msgspec

from feedback.events import Message, SignalReceived, TurnRecorded


class Personal(StrEnum):
    """Kinds of personal data; `[kind]` takes their place."""

    CARD = "card"
    IBAN = "iban"
    EMAIL = "email"
    PHONE = "phone"
    IP = "ip"


_CARD_DIGITS = range(13, 20)
_IBAN_CHARACTERS = range(15, 35)
_DIGIT_GROUPS = re.compile(r"[0-9]{3,}(?:[ -][0-9]{3,})*")
_CARD_HINT = re.compile(r"[0-9](?:[ -]?[0-9]){12}")
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"[A-Z]{2}[0-9]{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?|[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]{11,30}"
    r")(?![A-Za-z0-9])"
)
_IBAN_HINT = re.compile(r"[0-9]{2}(?<=[A-Za-z]{2}[0-9]{2})[A-Za-z0-9 ]{11}")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_EMAIL_HINT = re.compile(r"@[\w-]+\.\w")
_PHONE = re.compile(
    r"(?<![\w+])(?:"
    r"(?:\+|00)[1-9](?:[ ()./-]{0,2}[0-9]){7,13}|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}"
    r")(?![0-9])"
)
_PHONE_HINT = re.compile(r"[0-9](?:[ ()./-]{0,2}[0-9]){7}")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f:]{2,39}(?![\w:])")
_IP_HINT = re.compile(r"[0-9]\.[0-9]+\.[0-9]|:[0-9A-Fa-f]*:")


def redact(text: str, kinds: Collection[Personal]) -> str:
    """`text` with every personal datum of these kinds replaced by its kind in brackets."""
    for kind, (hint, replace) in _REPLACE.items():
        if kind in kinds and hint.search(text):
            text = replace(text)
    return text


def redact_turn(turn: TurnRecorded, kinds: Collection[Personal]) -> TurnRecorded:
    """Its words; and without its token ids when a word went, since they spell it out."""
    messages = tuple(_message(m, kinds) for m in turn.messages)
    reply = _message(turn.reply, kinds)
    if (messages, reply) == (turn.messages, turn.reply):
        return turn
    return msgspec.structs.replace(
        turn, messages=messages, reply=reply, prompt_token_ids=(), token_ids=(), logprobs=()
    )


def redact_signal(signal: SignalReceived, kinds: Collection[Personal]) -> SignalReceived:
    return msgspec.structs.replace(
        signal,
        text=None if signal.text is None else redact(signal.text, kinds),
        reasons=tuple(redact(reason, kinds) for reason in signal.reasons),
    )


def _message(message: Message, kinds: Collection[Personal]) -> Message:
    """Every string in it, however deep: content parts and the arguments of tool calls hold text too."""
    return {name: _value(value, kinds) for name, value in message.items()}


def _value(value: object, kinds: Collection[Personal]) -> object:
    if isinstance(value, str):
        return value if value.startswith("data:") else redact(value, kinds)
    if isinstance(value, list | tuple):
        return [_value(v, kinds) for v in value]
    return {k: _value(v, kinds) for k, v in value.items()} if isinstance(value, dict) else value


def _cards(text: str) -> str:
    return _DIGIT_GROUPS.sub(_without_cards, text)


def _without_cards(found: re.Match[str]) -> str:
    """Groups of digits, of which some together are a card's number: the longest first, from the left."""
    parts = re.split(r"([ -])", found[0])
    groups, separators = parts[::2], ["", *parts[1::2]]
    kept: list[str] = []
    start = 0
    while start < len(groups):
        end = _card_end(groups, start)
        kept += separators[start], groups[start] if end is None else f"[{Personal.CARD}]"
        start = end or start + 1
    return "".join(kept)


def _card_end(groups: list[str], start: int) -> int | None:
    """Where the longest card number that starts there ends; None if none does."""
    digits, found = "", None
    for end in range(start + 1, len(groups) + 1):
        digits += groups[end - 1]
        if len(digits) >= _CARD_DIGITS.stop:
            break
        if len(digits) in _CARD_DIGITS and _is_card(digits):
            found = end
    return found


def _is_card(digits: str) -> bool:
    """Luhn's sum: from the right, every second digit doubled and its own digits added."""
    if digits[0] not in "23456":
        return False
    return (
        sum(map(int, digits[-1::-2])) + sum(map(_DOUBLED.__getitem__, map(int, digits[-2::-2])))
    ) % 10 == 0


_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def _ibans(text: str) -> str:
    return _IBAN.sub(_without_iban, text)


def _without_iban(found: re.Match[str]) -> str:
    """The longest beginning whose check digits are right; words in capitals may follow a number."""
    for end in range(len(found[0]), 0, -1):
        number = found[0][:end]
        if number[-1] != " " and _is_iban(number.replace(" ", "").upper()):
            return f"[{Personal.IBAN}]" + found[0][end:]
    return found[0]


def _is_iban(number: str) -> bool:
    """ISO 7064: the first four characters moved to the end, letters as 10 to 35, the remainder by 97 is 1."""
    if len(number) not in _IBAN_CHARACTERS:
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _addresses(text: str) -> str:
    text = _IPV4.sub(lambda m: _bracketed(m[0], max(map(int, m[0].split("."))) < 256, Personal.IP), text)
    return _IPV6.sub(lambda m: _bracketed(m[0], _is_ipv6(m[0]), Personal.IP), text)


def _bracketed(found: str, is_one: bool, kind: Personal) -> str:
    return f"[{kind}]" if is_one else found


def _is_ipv6(text: str) -> bool:
    """Not `::`, `::1` or `1::2`, which are nobody's addresses and often code."""
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return max(map(len, text.split(":"))) >= 3


_REPLACE: dict[Personal, tuple[re.Pattern[str], Callable[[str], str]]] = {
    Personal.IBAN: (_IBAN_HINT, _ibans),
    Personal.CARD: (_CARD_HINT, _cards),
    Personal.EMAIL: (_EMAIL_HINT, lambda text: _EMAIL.sub(f"[{Personal.EMAIL}]", text)),
    Personal.IP: (_IP_HINT, _addresses),
    Personal.PHONE: (_PHONE_HINT, lambda text: _PHONE.sub(f"[{Personal.PHONE}]", text)),
}
"""What is quick to look for and in nearly no text, and what then does the work.

In this order: an account number holds what looks like a card's."""
