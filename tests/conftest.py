"""Fixtures that every package's tests use."""

import gc
import os
import socket

import pytest

# waiting threads sleep instead of spinning; read when torch loads, so before the imports below
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import settings

from tests.engines import tiny_base, transformers_engine, vllm_engine  # noqa: F401 (fixtures)
from tests.kafka_broker import kafka_broker, kafka_session  # noqa: F401 (fixtures)
from tests.postgres import postgres_server, postgres_url  # noqa: F401 (fixtures)

# how long an example takes says more about what else the machine does than about the code
settings.register_profile("ratchet", deadline=None)
settings.load_profile("ratchet")


gc.disable()  # collecting imports every package: no garbage, but a tenth of its time went into looking


def pytest_collection_finish() -> None:
    """What collecting made stays for the whole run: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Else extension modules complain at the end that their objects have leaked."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that waits for an engine process is slow, whoever asks for it."""
    for item in items:
        if isinstance(item, pytest.Function) and "transformers_engine" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
