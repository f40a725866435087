"""Everything an operator meets has a sentence: config fields, events, metrics, commands."""

import re

import pytest

from tests import reference


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_reference_page_says_what_the_code_says(name: str) -> None:
    """`make docs` was forgotten when this fails."""
    page = reference.ROOT / "docs" / "reference" / name
    assert page.read_text(encoding="utf-8") == reference.PAGES[name]()


@pytest.mark.parametrize("section,path,model", reference.CONFIGS)
def test_every_config_field_has_a_meaning(section: str, path: str, model: str) -> None:
    struct = reference.structs(path)[model]
    assert struct.fields
    assert [f.name for f in struct.fields if not f.doc] == []


def test_every_event_says_what_happened() -> None:
    assert len(reference.events()) >= 3
    assert [e.tag for e in reference.events() if not e.doc] == []


@pytest.mark.slow
def test_every_metric_is_named_and_explained() -> None:
    """`ratchet_<package>_<noun>_<unit>`, with a sentence for people who read dashboards."""
    metrics = reference.metrics()
    assert len(metrics) >= 10
    assert [m.name for m in metrics if not m.doc] == []
    misnamed = [m.name for m in metrics if not m.name.startswith(f"ratchet_{m.module.split('/')[0]}_")]
    assert misnamed == []


def test_no_metric_is_defined_twice() -> None:
    names = [m.name for m in reference.metrics()]
    assert sorted(set(names)) == names


def test_the_tests_that_a_checklist_names_exist() -> None:
    """A renamed test leaves its line of the design without anything that holds it."""
    page = (reference.ROOT / "docs" / "learner-checklist.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", page)
    tests = {file: (reference.ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}
    assert len(named) > 80
    assert [(file, name) for file, name in named if f"def {name}(" not in tests[file]] == []
