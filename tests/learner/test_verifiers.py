"""What checks say of replies: right ones pass, near misses and tricks do not, a broken check says nothing."""

from collections.abc import Sequence
from typing import Any

import pytest

from learner.errors import VerifierError
from learner.problems import Answer, Call, Code, Json, Steps, Tool
from learner.verifiers import Mark, check, equal

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def never(program: str, calls: Sequence[str]) -> list[Any] | None:
    raise VerifierError("no sandbox")


def score(wanted: Answer | Json | Tool, reply: str) -> float | None:
    [mark] = check(wanted, reply, never)
    assert mark.end is None
    return mark.score


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        ("2 + 2 is 4, so the answer is 4.", "4", 1),
        ("It is 4, no, 5", "4", 0),  # unmarked: the last number
        ("4", "4.0", 1),
        ("#### 1,234", "1234", 1),
        ("Answer: 4 apples of 7", "4", 1),  # marked: the first number after it
        ("The answer is 3. Wait. The answer is 4", "4", 1),
        (r"so \boxed{-3}", "-3", 1),
        ("14", "4", 0),
        ("1 2 3 4 5 6", "4", 0),  # listing everything is no answer
        ("Paris!", "paris", 1),
        ("Answer: **Paris**", "Paris", 1),
        ("Not Paris", "Paris", 0),
        ("", "4", 0),
    ],
)
def test_an_answer_is_read_where_it_is_given(reply: str, expected: str, right: int) -> None:
    assert score(Answer(expected=[expected]), reply) == right


def test_json_is_what_the_schema_allows() -> None:
    """Fenced or bare, and nothing beside it. A reference to elsewhere is not followed: no verdict."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    replies = ['{"n": 1}', 'Here:\n```json\n{"n": 1}\n```', '{"n": "1"}', 'Sure: {"n": 1}', "[" * 5000]
    assert [score(Json(schema=schema), reply) for reply in replies] == [1, 1, 0, 0, 0]
    [mark] = check(Json(schema={"$ref": "http://127.0.0.1:9/schema"}), "{}", never)
    assert mark.score is None
    assert "Unresolvable" in mark.reason


def test_a_tool_call_names_a_tool_and_fits_it() -> None:
    wanted = Tool(tools=[WEATHER])
    right = [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>',
        '{"name": "weather", "parameters": {"city": "Ulm", "days": 2}}',
        '{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}',
    ]
    wrong = [
        '{"name": "whether", "arguments": {"city": "Ulm"}}',
        '{"name": "weather", "arguments": {"town": "Ulm"}}',
        '{"name": "weather", "arguments": {"city": "Ulm", "days": "two"}}',
        f"{right[0]}<tool_call>nonsense</tool_call>",
        "[]",
        "I would call weather for Ulm.",
    ]
    assert [score(wanted, reply) for reply in right] == [1, 1, 1]
    assert [score(wanted, reply) for reply in wrong] == [0] * 6
    ulm = Tool(tools=[WEATHER], expected={"name": "weather", "arguments": {"city": "Ulm"}})
    assert [score(ulm, reply) for reply in right] == [1, 0, 1]


def test_steps_are_marked_where_they_end() -> None:
    """An empty line is no step, one too many counts nothing, and a missing one is wrong at the end."""
    wanted = Steps(expected=["2", "6", "24"])
    #          0123456789...
    assert check(wanted, "2\n\n3*2 = 6\n25\n24", never) == [
        Mark(1.0, 2, 1 / 3),
        Mark(1.0, 11, 1 / 3),
        Mark(0.0, 14, 1 / 3),
    ]
    assert check(wanted, "2\n6", never) == [
        Mark(1.0, 2, 1 / 3),
        Mark(1.0, None, 1 / 3),
        Mark(0.0, None, 1 / 3),
    ]


def test_a_program_must_give_every_value() -> None:
    """It is told the calls alone; one that failed is wrong, one that could not be tried is not."""
    wanted = Code(tests=[Call(call="f(1)", returns=2), Call(call="f(2)", returns=[True, 0.5])])
    asked = []

    def run(program: str, calls: Sequence[str]) -> list[Any] | None:
        asked.append((program, list(calls)))
        return [[2, [True, 0.5]], [2, [1, 0.5]], None][len(asked) - 1]

    reply = "Like so:\n```python\nold\n```\nor better\n```python\nnew\n```"
    assert [check(wanted, reply, run)[0].score for _ in range(3)] == [1, 0, 0]
    assert asked[0] == ("new\n", ["f(1)", "f(2)"])
    assert check(wanted, reply, never) == [Mark(None, reason="no sandbox")]


def test_json_values_are_equal_by_value_and_kind() -> None:
    assert equal({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert equal(0.1 + 0.2, 0.3)
    for one, other in ((True, 1), (1, "1"), ([1], [1, 1]), ({"a": 1}, {"b": 1}), (None, 0), (10**400, 0.5)):
        assert not equal(one, other)
