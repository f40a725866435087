"""Problems: prompts whose replies a program can check, read from JSON Lines and checked. Asks no model.

A line is one `Problem` (docs/verifiable-rewards.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import msgspec

from feedback.conversations import prompt_digest
from learner import json_lines
from learner.config import Problems
from learner.errors import ProblemError


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all checks of a reply have in common: a name of their kind."""

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Answer(Kind, frozen=True, tag="answer"):
    """The reply's final answer is one of these: numbers by value, words without case and punctuation."""

    expected: list[str]


class Steps(Kind, frozen=True, tag="steps"):
    """The reply's lines, one step each, end in these answers: every step is scored where it ends."""

    expected: list[str]
    separator: str = "\n"


class Json(Kind, frozen=True, tag="json"):
    """The reply, or its last fenced block, is JSON that this JSON Schema allows."""

    schema: dict[str, Any]


class Tool(Kind, frozen=True, tag="tool"):
    """The reply calls tools that exist, with arguments that their JSON Schema allows."""

    tools: list[dict[str, Any]]
    """As in a chat request: `{"type": "function", "function": {"name": …, "parameters": …}}`."""
    expected: dict[str, Any] | None = None
    """`{"name": …, "arguments": …}`: the one call that is right; any valid one, if absent."""

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """JSON Schema of the arguments, by tool."""
        functions = [tool.get("function", tool) for tool in self.tools]
        return {str(f.get("name", "")): f.get("parameters", {}) for f in functions}


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Python expression that is evaluated after the reply's program, and the JSON value it must have."""

    call: str
    returns: Any


class Code(Kind, frozen=True, tag="code"):
    """The reply's last fenced block is a Python program; each of these expressions then has its value."""

    tests: list[Call]


Check = Answer | Steps | Json | Tool | Code
KINDS: tuple[str, ...] = ("answer", "steps", "json", "tool", "code")


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a problem file."""

    messages: list[dict[str, Any]]
    """What was said before the reply, as in a chat request; tools must be told here too."""
    checks: list[Check]
    """Each is a part of the reward, by the weight of its kind."""

    @property
    def digest(self) -> str:
        return prompt_digest(self.messages)


@dataclass(frozen=True)
class ProblemSet:
    name: str = ""
    """The files' names and 8 hex digits of what is written: an edited file is another set."""
    problems: tuple[Problem, ...] = ()
    settings: Problems = field(default_factory=Problems)

    def split(self, heldout: bool) -> list[Problem]:
        """Each problem is held out of training or not for ever, by hash of what is asked."""
        return [p for p in self.problems if (_bucket(p.digest) < self.settings.heldout) is heldout]

    def by_digest(self) -> Mapping[str, Problem]:
        return {problem.digest: problem for problem in self.problems}


def load(settings: Problems) -> ProblemSet:
    """The problems of all files, in their order. Raises: ProblemError naming file, line and fault."""
    files = [Path(file) for file in settings.files]
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for file in files:
        for place, problem in json_lines.read(file, "problems", Problem, ProblemError):
            _check(place, problem, settings.run_code)
            if (digest := problem.digest) in seen:
                raise ProblemError(f"{place}: the messages of {seen[digest]}: put all checks in one line")
            seen[digest] = place
            problems.append(problem)
    written = sha256(msgspec.json.encode(problems, order="deterministic")).hexdigest()[:8]
    named = "+".join(file.stem for file in files)
    return ProblemSet(f"{named}-{written}" if problems else "", tuple(problems), settings)


def _bucket(digest: str) -> float:
    hashed = blake2b(f"problem\x1f{digest}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") / 2**64


def _check(place: str, problem: Problem, run_code: bool) -> None:
    faults = [_message_fault(problem.messages), *(_fault(check, run_code) for check in problem.checks)]
    if not problem.checks:
        faults.append("'checks' is empty")
    for fault in filter(None, faults):
        raise ProblemError(f"{place}: {fault}")


def _message_fault(messages: Sequence[Mapping[str, Any]]) -> str | None:
    if not messages or messages[-1].get("role") != "user":
        return "'messages' must end with what the user said"
    if not all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages):
        return "every message needs 'role' and 'content', both text"
    return None


def _fault(check: Check, run_code: bool) -> str | None:
    """What is wrong with a check; None when it can be used."""
    match check:
        case Answer(expected=expected) | Steps(expected=expected):
            if not expected or not all(text.strip() for text in expected):
                return f"the {check.kind} check needs 'expected', without empty texts"
            return "'separator' is empty" if isinstance(check, Steps) and not check.separator else None
        case Json(schema=schema):
            return _schema_fault(schema)
        case Tool():
            if not check.tools or not all(check.parameters):
                return "the tool check needs 'tools', each with a name"
            if check.expected is not None and check.expected.keys() != {"name", "arguments"}:
                return "'expected' of a tool check has 'name' and 'arguments'"
            return next(filter(None, map(_schema_fault, check.parameters.values())), None)
        case Code(tests=tests):
            if not tests:
                return "the code check needs 'tests'"
            if not run_code:
                return "a code check runs what the model wrote: set [problems] run_code = true to allow it"
    return None


def _schema_fault(schema: Any) -> str | None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as e:
        return f"no JSON Schema: {e.message}"
    return None
