"""What a check says of a reply: marks between 0 and 1, each with the place that it is credited to. Pure: the
code check gets its way to run programs from the caller.

A reply that fails a check is marked 0. Where the check itself failed there is no mark but a reason: the reply
is neither right nor wrong, and `verification` says what that is worth.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from math import isclose
from typing import Any, NamedTuple

import msgspec

from learner.errors import VerifierError
from learner.problems import Answer, Check, Code, Json, Steps, Tool

Run = Callable[[str, Sequence[str]], list[Any] | None]
"""Runs a program, then evaluates expressions. Returns: their values as JSON has them, None where the program
failed. Raises: VerifierError where it could not be tried."""

LARGEST = 1e300
"""Larger numbers are compared exactly."""
LONGEST_JSON = 100_000
"""Characters; JSON of more is not read, and marked 0."""


class Mark(NamedTuple):
    """One verdict on a reply."""

    score: float | None
    """0 wrong, 1 right; None where the check itself failed."""
    end: int | None = None
    """Characters of the reply up to the end of the step that it is about; None: the whole reply."""
    share: float = 1.0
    """Of the check's weight. A check's shares are 1 together, however many steps the reply has."""
    reason: str = ""
    """Why there is no score."""


def check(wanted: Check, reply: str, run: Run) -> list[Mark]:
    """As many marks for one check, whatever the reply: step k of two replies can be compared."""
    try:
        match wanted:
            case Answer(expected=expected):
                return [Mark(float(is_answer(reply, expected)))]
            case Steps():
                return steps(wanted, reply)
            case Json(schema=schema):
                return [Mark(float(is_json(reply, schema)))]
            case Tool():
                return [Mark(float(calls_rightly(reply, wanted)))]
            case Code():
                return [Mark(float(is_program(reply, wanted, run)))]
    except VerifierError as e:
        return _none(wanted, str(e))
    except Exception as e:  # a fault of the verifier must not end the run, nor pass for a wrong reply
        return _none(wanted, f"{type(e).__name__}: {e}")


def _none(wanted: Check, reason: str) -> list[Mark]:
    n = len(wanted.expected) if isinstance(wanted, Steps) else 1
    return [Mark(None, share=1 / n, reason=reason)] * n


# answers

_SAID = re.compile(r"\\boxed\{([^{}]*)\}|(?:####|\banswer\s*(?:is|:|=))\s*(?=(.*))", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?")
_WORDS = re.compile(r"[^\W_]+")


def is_answer(reply: str, expected: Sequence[str]) -> bool:
    """What follows the last `answer is`, `answer:`, `####` or stands in `\\boxed{}`; else the whole reply.

    A number expected: the first one there, and the last one of a reply that marks no answer. Words expected:
    exactly these, but for case and punctuation.
    """
    marked = [next(filter(None, m.groups()), "") for m in _SAID.finditer(reply)]
    said = marked[-1] if marked else reply
    numbers = [number for text in _NUMBER.findall(said) if (number := _number(text)) is not None]
    for one in expected:
        if (wanted := _number(one)) is None:
            if _WORDS.findall(said.casefold()) == _WORDS.findall(one.casefold()):
                return True
        elif numbers and numbers[0 if marked else -1] == wanted:
            return True
    return False


def _number(text: str) -> Decimal | None:
    try:
        found = Decimal(text.strip().replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def steps(wanted: Steps, reply: str) -> list[Mark]:
    """Each expected answer against the reply's step at its place; a step that is missing is wrong at the end.

    Empty lines are no steps, and steps beyond the expected ones count nothing: more of them earn no more.
    """
    found: list[tuple[str, int | None]] = []
    start = 0
    while start < len(reply):
        at = reply.find(wanted.separator, start)
        end = None if at < 0 else at + len(wanted.separator)
        if text := reply[start : None if at < 0 else at].strip():
            found.append((text, end))
        start = len(reply) if end is None else end
    found += [("", None)] * (len(wanted.expected) - len(found))
    share = 1 / len(wanted.expected)
    return [
        Mark(float(is_answer(text, [one])), end, share)
        for one, (text, end) in zip(wanted.expected, found, strict=False)
    ]


# JSON and tools

_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def is_json(reply: str, schema: Mapping[str, Any]) -> bool:
    """Whether the reply, or its last fenced block, is JSON that the schema allows."""
    read, value = _json(_block(reply))
    return read and allows(schema, value)


def allows(schema: Mapping[str, Any], value: Any) -> bool:
    """By the draft that `$schema` names, else the newest. No reference is ever fetched."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    return bool(validator_for(schema)(schema, registry=Registry()).is_valid(value))


def calls_rightly(reply: str, wanted: Tool) -> bool:
    """At least one call, each of a tool that exists, its arguments allowed; the expected one, if any.

    Calls stand in `<tool_call>` tags, or the reply is one JSON object, or a list of them.
    """
    calls: list[Any] = []
    for text in _CALL.findall(reply) or [_block(reply)]:
        read, value = _json(text)
        if not read:
            return False
        calls += value if isinstance(value, list) else [value]
    asked = [_called(call) for call in calls]
    if not asked or not all(one and _allowed(one, wanted) for one in asked):
        return False
    return wanted.expected is None or (len(asked) == 1 and equal(asked[0], wanted.expected))


def _called(call: Any) -> dict[str, Any] | None:
    """A call as name and arguments, which some models call parameters or write as JSON in a text."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments)[1]
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _allowed(call: Mapping[str, Any], wanted: Tool) -> bool:
    schema = wanted.parameters.get(call["name"])
    return schema is not None and allows(schema, call["arguments"])


def _block(reply: str) -> str:
    """The last fenced block; the reply itself without one."""
    blocks: list[str] = _FENCED.findall(reply)
    return blocks[-1] if blocks else reply


def _json(text: str) -> tuple[bool, Any]:
    """(whether it is JSON, its value)"""
    if len(text) > LONGEST_JSON:
        return False, None
    try:
        return True, msgspec.json.decode(text.strip())
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False, None


# programs


def is_program(reply: str, wanted: Code, run: Run) -> bool:
    """Every expression has its value once the program ran. The program never learns what is expected."""
    values = run(_block(reply), [test.call for test in wanted.tests])
    return values is not None and equal(values, [test.returns for test in wanted.tests])


def equal(one: Any, other: Any) -> bool:
    """Of JSON values: true is not 1, 2.0 is 2, and floats may differ by rounding."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or (abs(one) < LARGEST and isclose(one, other, rel_tol=1e-9, abs_tol=1e-12))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and bool(one == other)
