"""docs/api.md says every code and kind that the gateway knows."""

from pathlib import Path

import pytest

from feedback.events import SignalKind
from serving.errors import ANSWERS, ServingError

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_error_code_is_documented() -> None:
    assert [a.code for a in ANSWERS.values() if a.code != "invalid_value" and f"`{a.code}`" not in API] == []
    assert [a.status for a in ANSWERS.values() if str(a.status) not in API] == []


@pytest.mark.parametrize("kind", list(SignalKind))
def test_every_kind_of_signal_is_documented(kind: SignalKind) -> None:
    assert f"`{kind}`" in API


def test_every_error_that_can_reach_a_client_is_in_the_table() -> None:
    """An error missing there would end in a 500."""

    def tree(error: type[ServingError]) -> set[type[ServingError]]:
        return {error}.union(*map(tree, error.__subclasses__()))

    assert {e.__name__ for e in tree(ServingError) - set(ANSWERS)} == {"ServingError", "StartError"}
