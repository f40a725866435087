"""Personal data by pattern: what goes, what stays, and that no text is too bad to be searched."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.events import SignalKind, SignalReceived, TurnRecorded
from feedback.redaction import Personal, redact, redact_signal, redact_turn
from tests.feedback.builders import assistant, signal, turn, user

ALL = tuple(Personal)
CARD, IBAN = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"
"""The numbers that Visa's testing guide and ISO 13616's registry print."""


@pytest.mark.parametrize(
    "before,after",
    [
        (f"Charge {CARD}, please", "Charge [card], please"),
        ("4111111111111111", "[card]"),
        ("Amex 3782-822463-10005.", "Amex [card]."),
        ("5555 5555 5555 4444 555", "[card] 555"),
        ("order 123 4111 1111 1111 1111", "order 123 [card]"),
        (f"pay to {IBAN} BIC COBADEFF", "pay to [iban] BIC COBADEFF"),
        ("de89370400440532013000 it is", "[iban] it is"),
        ("GB82WEST12345698765432", "[iban]"),
        ("write to Ann.O'Neil+x@mail.example.org!", "write to Ann.O'[email]!"),
        ("jörg@büro.example", "[email]"),
        ("call +49 (0)30 1234567 today", "call [phone] today"),
        ("0049 30 1234567", "[phone]"),
        ("(555) 123-4567 or 555-123-4567", "[phone] or [phone]"),
        ("from 192.168.0.1: denied", "from [ip]: denied"),
        ("at 2001:db8::1, and fe80::2", "at [ip], and [ip]"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(before: str, after: str) -> None:
    assert redact(before, ALL) == after


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # Luhn's digit is wrong
        "0000 0000 0000 0000",  # right, but no issuer's
        "DE88 3704 1044 0532 0130 11",  # check digits are wrong
        "at 10:30:45 on 2026-03-02, version 1.2.3, page 1.2.3.400",
        "x = a[1::2]; a @ b; @ann; 3 @ 5.50",
        "the number 1234567890123456789012345",
        "std::vector, ::, 12:30",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    """People ask about numbers, times, versions and code."""
    assert redact(text, ALL) == text


def test_only_the_kinds_asked_for_go() -> None:
    text = f"{CARD} ann@example.org"
    assert redact(text, [Personal.EMAIL]) == f"{CARD} [email]"
    assert redact(text, []) == text


def with_check_digit(digits: str) -> str:
    """Luhn as its inventor put it: the digit that makes the sum a multiple of ten."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * 2 if place % 2 == 0 else int(digit)
        total += doubled // 10 + doubled % 10
    return digits + str(-total % 10)


CARDS = st.builds(
    lambda first, rest: with_check_digit(first + rest),
    st.sampled_from("23456"),
    st.text("0123456789", min_size=14, max_size=14),
)
WORDS = st.text("abc xyz,.?é\n", max_size=30)


@given(WORDS, CARDS, WORDS, st.sampled_from(["", " ", "-"]))
def test_no_card_number_survives_between_words(before: str, card: str, after: str, separator: str) -> None:
    """In whatever grouping of four people write it."""
    written = separator.join(card[i : i + 4] for i in range(0, 16, 4))
    text = redact(f"{before} {written} {after}", ALL)
    assert written not in text and card not in text


@given(
    st.text("AZ", min_size=2, max_size=2), st.text("0189AZ", min_size=11, max_size=30), WORDS, st.booleans()
)
def test_no_account_number_survives(country: str, rest: str, after: str, grouped: bool) -> None:
    """ISO 13616: the check digits are 98 less the remainder by 97 of the number with 00 in their place."""
    check = 98 - int("".join(str(int(c, 36)) for c in rest + country + "00")) % 97
    number = f"{country}{check:02d}{rest}"
    written = " ".join(number[i : i + 4] for i in range(0, len(number), 4)) if grouped else number
    assert written not in redact(f"pay {written} {after}", [Personal.IBAN])


@given(st.text("0123456789 -+.:@aADE8", max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """A client resends what it was shown, and old and new must match."""
    once = redact(text, ALL)
    assert redact(once, ALL) == once


@given(st.text(st.characters(exclude_characters="@:", exclude_categories=["Nd"])))
def test_text_without_figures_and_signs_stays_as_it_is(text: str) -> None:
    assert redact(text, ALL) == text


@pytest.mark.parametrize("part", ["1 ", "4111-", "AB12 ABCD ", "a@a.", "1.1.", ":", "+1", "AB12", "a.", "1"])
def test_no_text_takes_long(part: str) -> None:
    """A pattern that backtracks without end would let one client stop the gateway: 20,000 characters."""
    text = part * (20_000 // len(part))
    started_s = time.perf_counter()
    redact(text, ALL)
    assert time.perf_counter() - started_s < 1.0


def test_every_word_of_a_turn_is_searched_and_its_token_ids_go() -> None:
    """Content parts and tool arguments too; the ids of the tokens would spell the number out."""
    call = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": f'{{"to": "{IBAN}"}}'}}
    messages = (user(f"My card is {CARD}"), {"role": "user", "content": [{"type": "text", "text": CARD}]})
    reply = {**assistant("Done."), "tool_calls": [call]}
    event = turn("r1", messages, reply, token_ids=(1,), prompt_token_ids=(2,), logprobs=(-0.5,))
    assert isinstance(event.data, TurnRecorded)
    redacted = redact_turn(event.data, ALL)
    assert redacted.messages[0]["content"] == "My card is [card]"
    assert redacted.messages[1]["content"] == [{"type": "text", "text": "[card]"}]
    assert redacted.reply["tool_calls"][0]["function"]["arguments"] == '{"to": "[iban]"}'
    assert (redacted.token_ids, redacted.prompt_token_ids, redacted.logprobs) == ((), (), ())


def test_a_turn_without_any_is_the_same_turn() -> None:
    """Images too: their base64 is no text."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IBAN.replace(' ', '')}"}}
    event = turn("r1", [{"role": "user", "content": [image]}], "A bird.", token_ids=(1,))
    assert isinstance(event.data, TurnRecorded)
    assert redact_turn(event.data, ALL) is event.data


def test_a_signals_words_are_searched() -> None:
    about = turn("r1", "How?", "So.")
    given_ = signal(about, SignalKind.COMMENT, text=f"It told {CARD}", reasons=("mail a@b.example",)).data
    assert isinstance(given_, SignalReceived)
    redacted = redact_signal(given_, ALL)
    assert (redacted.text, redacted.reasons) == ("It told [card]", ("mail [email]",))
