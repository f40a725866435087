"""Problem files: what can be read, and what is refused with file, line and fault."""

import re
from pathlib import Path

import pytest

from learner.config import Problems
from learner.errors import ProblemError
from learner.problems import load

ASKED = '"messages": [{"role": "user", "content": "%s"}]'
ANSWER = '{"kind": "answer", "expected": ["4"]}'


def line(asked: str, *checks: str) -> str:
    return f'{{{ASKED % asked}, "checks": [{", ".join(checks)}]}}'


def written(folder: Path, *lines: str) -> Problems:
    (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Problems(files=[str(folder / "sums.jsonl")], heldout=0.5)


def test_problems_keep_their_split_and_name_their_content(tmp_path: Path) -> None:
    """A problem is held out for ever, whatever comes beside it; another wording of a file is another set."""
    asked = [line(f"{i} + 1?", ANSWER) for i in range(20)]
    few, all_ = load(written(tmp_path, *asked[:10])), load(written(tmp_path, *asked, ""))
    assert len(all_.problems) == 20
    assert few.name != all_.name
    assert few.name.startswith("sums-")
    heldout = [p.digest for p in all_.split(heldout=True)]
    assert 0 < len(heldout) < 20
    assert {p.digest for p in few.split(heldout=True)} == {p.digest for p in few.problems} & set(heldout)
    assert {p.digest for p in all_.split(heldout=False)} == set(all_.by_digest()) - set(heldout)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (line("a", '{"kind": "guess"}'), "Invalid value 'guess'"),
        (line("a"), "'checks' is empty"),
        (line("a", '{"kind": "answer", "expected": []}'), "needs 'expected'"),
        (line("a", '{"kind": "json", "schema": {"type": "nothing"}}'), "no JSON Schema"),
        (line("a", '{"kind": "tool", "tools": [{"function": {}}]}'), "each with a name"),
        (line("a", '{"kind": "code", "tests": [{"call": "f()", "returns": 1}]}'), "run_code = true"),
        (line("first", ANSWER), "the messages of problems .*line 1"),
        ('{"messages": [], "checks": []}', "must end with what the user said"),
        ("{", "no JSON object"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, bad: str, fault: str) -> None:
    """Code above all: nothing that a model wrote is run unless that was asked for."""
    with pytest.raises(ProblemError, match=rf"sums.jsonl, line 2.*{fault}"):
        load(written(tmp_path, line("first", ANSWER), bad))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=re.escape(str(tmp_path / "none.jsonl"))):
        load(Problems(files=[str(tmp_path / "none.jsonl")]))
