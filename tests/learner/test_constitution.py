"""The file of principles: what ships, what identifies it, what is refused."""

from pathlib import Path

import pytest

from learner.constitution import load
from learner.errors import ConstitutionError

WRITTEN = """
version = "2"
[[principle]]
id = "kind"
name = "Kind"
question = "Which is kinder?"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_constitution_that_ships_asks_one_question_a_principle():
    """What people are promised that it covers."""
    found = load()
    assert {"helpful", "honest", "harmless", "not-sycophantic", "not-over-refusing"} <= {
        p.id for p in found.principle
    }
    assert all(p.question.strip().startswith("Which reply") for p in found.principle)


def test_an_edited_constitution_is_another_one_whatever_its_version_says(tmp_path):
    """Else judgements by the old text would pass for judgements by the new one."""
    first = load(written(tmp_path, WRITTEN)).name
    again = load(written(tmp_path, "# a comment\n" + WRITTEN)).name
    edited = load(written(tmp_path, WRITTEN.replace("kinder", "ruder"))).name
    assert first == again != edited
    assert first.startswith("2-") and edited.startswith("2-")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (WRITTEN.replace('version = "2"', 'version = " "'), "version is empty"),
        ('version = "2"\nprinciple = []', r"has no \[\[principle\]\]"),
        (WRITTEN + WRITTEN.replace('version = "2"', ""), "two principles have the id 'kind'"),
        (WRITTEN.replace('"kind"', '"Kind ness"'), "id 'Kind ness' is not made of"),
        (WRITTEN.replace('"kind"', '"overall"'), "'overall' stands for all principles"),
        (WRITTEN.replace("Which is kinder?", ""), "'kind' has no name or no question"),
        (WRITTEN + "weight = 0.0", "'kind' has weight 0.0"),
        (WRITTEN + 'tone = "warm"', "unknown field `tone`"),
        ("version = ", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, text, complaint):
    with pytest.raises(ConstitutionError, match=f"mine.toml.*{complaint}"):
        load(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConstitutionError, match=r"gone\.toml: No such file"):
        load(tmp_path / "gone.toml")
