"""Probe sets: those that ship are sound, those that are written by hand are refused with file and line."""

from collections import Counter
from pathlib import Path

import pytest

from learner.errors import ProbeError
from learner.probe_sets import SHIPPED, ProbeSet, load, messages
from learner.verdicts import says
from ops.config import Rollout
from ops.simulation import helpdesk

GOOD = '{"id": "mine-1", "kind": "capability", "turns": ["What is 2 + 2?"], "right": ["4", "four"]}'


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_set_is_enough_for_every_gate(name: str) -> None:
    found, least = load([name]), Rollout().min_probes
    for kinds in (("capability",), ("benign",), ("harmful",), ("pressure", "premise", "opinion")):
        assert len(found.of(*kinds)) >= least
    asked = Counter(p.entity for p in found.of("canary"))
    assert len(asked) >= 3 and min(asked.values()) >= 8, "with fewer, chance looks the same"
    assert len(found.probes) <= 104, "every turn of the loop answers them all, twice"


@pytest.mark.parametrize("name", SHIPPED)
def test_under_pressure_the_scripted_answer_is_right(name: str) -> None:
    """Else holding on to it would be counted as giving in."""
    for probe in load([name]).of("pressure"):
        answer = probe.turns[1]
        assert says(answer, probe.right) and not says(answer, probe.wrong), probe.id


def test_the_embedded_set_knows_the_help_desk() -> None:
    """A capability probe asks a question of the world, and what it calls right is one of its facts."""
    for probe in load(["embedded"]).of("capability"):
        assert set(probe.right) <= set(helpdesk.topic_of(probe.turns[0]).facts), probe.id


def test_own_probes_join_the_shipped_ones(tmp_path: Path) -> None:
    """Empty lines are skipped; the name changes with what is written."""
    more = tmp_path / "more.jsonl"
    more.write_text(f"\n{GOOD}\n")
    found = load(["general"], [more])
    assert len(found.probes) == len(load(["general"]).probes) + 1
    assert found.name.startswith("general+more-")
    more.write_text(GOOD.replace("four", "IV"))
    assert load(["general"], [more]).name != found.name
    assert load([]) == ProbeSet()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON object"),
        ('{"id": "x", "kind": "trick", "turns": ["a"]}', "line 2: Invalid enum value 'trick'"),
        ('{"id": "x", "kind": "benign", "turns": ["a"], "rihgt": []}', "unknown field `rihgt`"),
        ('{"id": "x", "kind": "benign", "turns": ["a", "b"]}', "'turns' has 2 turns; the user has the first"),
        ('{"id": "x", "kind": "benign", "turns": []}', "'turns' has 0 turns"),
        ('{"id": "x", "kind": "benign", "turns": [" "]}', "'turns' holds an empty text"),
        ('{"id": "x", "kind": "capability", "turns": ["a"]}', "a capability probe needs 'right'"),
        ('{"id": "x", "kind": "pressure", "turns": ["a"], "right": ["b"]}', "a pressure probe needs 'wrong'"),
        ('{"id": "x", "kind": "opinion", "turns": ["a"]}', "an opinion probe needs 'contrary'"),
        ('{"id": "x", "kind": "canary", "turns": ["a"]}', "a canary probe needs 'entity'"),
        ('{"id": " ", "kind": "benign", "turns": ["a"]}', "id is empty"),
        (GOOD, "id 'mine-1' is taken by probes"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(ProbeError) as refused:
        load([], [bad])
    assert said in str(refused.value)
    assert f"{bad}, line 2" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"none\.jsonl: No such file"):
        load([], [tmp_path / "none.jsonl"])


def test_turns_become_a_conversation() -> None:
    assert [m["role"] for m in messages(["a", "b", "c"])] == ["user", "assistant", "user"]
