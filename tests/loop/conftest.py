"""A deployment in a temporary folder, its processes, and their certain end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loop.processes import Process
from tests.loop.toy import make_toy_base

Launch = Callable[..., Process]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts `ratchet VERB`; everything started is killed at the end, and quoted when the test failed."""
    started: list[Process] = []

    def begin(config: Path, *argv: str, **environ: str) -> Process:
        started.append(Process(config, *argv, **environ).start())
        return started[-1]

    try:
        yield begin
    finally:
        for process in started:
            process.kill()
            print(f"--- {process.name}\n{process.tail()}")  # pytest shows it with a failure only


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that is easily made better (see `tests.loop.toy`)."""
    return make_toy_base(tmp_path_factory.mktemp("toy"))
