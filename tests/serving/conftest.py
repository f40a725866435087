"""A real gateway on a real port, a scripted engine behind it; real log, registry and keys in a folder."""

import asyncio
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from feedback import database, pipeline, store
from feedback.config import Pipeline, Review
from feedback.embedded import EmbeddedLog
from feedback.eventlog import Topic
from feedback.events import SignalKind, SignalReceived, TurnRecorded
from feedback.keyring import KeyRing
from feedback.privacy import pseudonym
from feedback.review import Item
from feedback.review_queue import ReviewQueue
from ops.registry import Registry
from ops.traffic import TrafficTable
from serving.app import build
from serving.auth import Keys, Role
from serving.config import Gateway
from tests.serving.scripted_engine import Script, ScriptedEngine

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STABLE, CANARY = "run-1-aaaaaaaa", "run-2-bbbbbbbb"
SECRET = b"s" * 32


class _Server(uvicorn.Server):
    """Looks ten times as often whether it is to stop: hundreds of tests wait for that."""

    async def main_loop(self) -> None:
        ticks = count()
        while not await self.on_tick(next(ticks)):
            await asyncio.sleep(0.01)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """`app` in a uvicorn of its own; its base URL."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            lifespan="auto",
            timeout_graceful_shutdown=3,
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Running:
    """A gateway under test, and what lies behind it."""

    url: str
    key: str
    keys: Keys
    ring: KeyRing
    log: EmbeddedLog
    registry: Registry
    engine: ScriptedEngine
    http: httpx.Client
    queue: ReviewQueue

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def chat_page(self) -> str:
        """As the gateway prints it at its first start."""
        return f"{self.url}/#key={self.key}"

    def sdk(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **{"max_retries": 0, **options})

    def post(self, path: str, json: Any, **headers: str) -> httpx.Response:
        return self.http.post(f"{self.url}{path}", json=json, headers={**self.auth, **headers})

    def ask(self, text: str = "How do I reset it?", **more: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more})

    def turns(self) -> list[TurnRecorded]:
        events = [self.ring.decode(r.value).data for r in self.log.read(Topic.TURNS, 0, 0)]
        return [e for e in events if isinstance(e, TurnRecorded)]

    def signals(self) -> list[SignalReceived]:
        events = [self.ring.decode(r.value).data for r in self.log.read(Topic.SIGNALS, 0, 0)]
        return [e for e in events if isinstance(e, SignalReceived)]

    def turn(self, timeout_s: float = 5.0) -> TurnRecorded:
        """The first turn, once it is there."""
        deadline = time.monotonic() + timeout_s
        while not (turns := self.turns()):
            assert time.monotonic() < deadline, "no turn was recorded"
            time.sleep(0.01)
        return turns[0]


@pytest.fixture(scope="session")
def peer() -> Iterator[tuple[ScriptedEngine, str]]:
    """One scripted engine and its URL for the whole session."""
    logging.getLogger("uvicorn.error").disabled = True  # it breaks connections by raising
    engine = ScriptedEngine()
    with serving(engine) as url:
        yield engine, url


@pytest.fixture
def engine(peer: tuple[ScriptedEngine, str]) -> ScriptedEngine:
    """The scripted engine, having forgotten everything."""
    vars(peer[0]).update(vars(ScriptedEngine()))
    return peer[0]


@pytest.fixture
def engine_url(engine: ScriptedEngine, peer: tuple[ScriptedEngine, str]) -> str:
    return peer[1]


Start = Callable[..., Running]


@contextmanager
def starting(engine: ScriptedEngine, engine_url: str, folder: Path) -> Iterator[Start]:
    """A function that starts gateways; keywords are fields of `[gateway]`, or those of `begin`."""
    with ExitStack() as stack:

        def begin(
            *,
            log: EmbeddedLog | None = None,
            replicas: dict[str, tuple[str, ...]] | None = None,
            table: TrafficTable | None = None,
            review: Review = Review(),  # noqa: B008 (frozen)
            **config: Any,
        ) -> Running:
            url = f"sqlite:///{folder / 'state.db'}"
            registry, keys, ring = Registry(url), Keys(url), KeyRing(url)
            queue = ReviewQueue(url, review)
            http = httpx.Client(timeout=10, verify=False)  # no TLS here: reading the certificates takes 50 ms
            log = log or EmbeddedLog(folder / "log.db")
            for resource in (registry, keys, ring, queue, log, http):
                stack.callback(resource.close)
            registry.set_traffic(table or TrafficTable(revision=1, stable=STABLE), expected_revision=0, at=AT)
            for replica, adapters in (replicas or {engine_url: (STABLE, CANARY)}).items():
                registry.report_replica(replica, dict.fromkeys(adapters, "probe"), AT)
            key = keys.create("acme", Role.CHAT, AT)
            gateway = Gateway(**{"poll_s": 0.05, "connect_timeout_s": 0.5, "comparison_rate": 0.0, **config})
            app = build(gateway, log=log, registry=registry, keys=keys, ring=ring, queue=queue, secret=SECRET)
            running = stack.enter_context(serving(app))
            return Running(running, key, keys, ring, log, registry, engine, http, queue)

        yield begin


@pytest.fixture
def start(engine: ScriptedEngine, engine_url: str, tmp_path: Path) -> Iterator[Start]:
    with starting(engine, engine_url, tmp_path) as begin:
        yield begin


@pytest.fixture
def gateway(start: Start) -> Running:
    """A gateway of this test's own."""
    return start()


@pytest.fixture(scope="session")
def _shared(peer: tuple[ScriptedEngine, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with starting(*peer, tmp_path_factory.mktemp("gateway")) as begin:
        yield begin()


@pytest.fixture
def shared(_shared: Running, engine: ScriptedEngine) -> Running:
    """One gateway for the tests that leave nothing behind: quicker to come by."""
    return _shared


QUESTION = "Can I reset it?"
YES, NO = "Yes.", "No."


@dataclass
class Desk:
    """A gateway with a pipeline behind it, and one rater's key."""

    gateway: Running
    state: sa.Engine
    owner: str = ""
    key: str = ""

    def of(self, owner: str, role: Role = Role.REVIEWER) -> "Desk":
        """The same desk with a key of that owner's, once the gateway knows it."""
        made = replace(self, owner=owner, key=self.gateway.keys.create(owner, role, AT))
        deadline = time.monotonic() + 5
        while made.ask().status_code == 401:
            assert time.monotonic() < deadline, "the gateway does not see the new key"
            time.sleep(0.01)
        return made

    def fold(self) -> None:
        while pipeline.step(self.gateway.log, self.state, Pipeline(), now=datetime.now(UTC)).records:
            pass

    def items(self) -> list[Item]:
        self.fold()
        with database.reading(self.state) as tx:
            return list(store.derived_rows(tx, "item"))

    def ask(self) -> httpx.Response:
        return self.gateway.http.get(f"{self.gateway.url}/v1/review", headers=self.auth)

    def question(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask().raise_for_status().json()
        return found

    def answer(self, ticket: Any, verdict: str | None, **more: Any) -> httpx.Response:
        return self.send({"ticket": ticket, "verdict": verdict, **more})

    def send(self, body: dict[str, Any]) -> httpx.Response:
        return self.gateway.http.post(f"{self.gateway.url}/v1/review", json=body, headers=self.auth)

    def reviews(self) -> list[SignalReceived]:
        return [s for s in self.gateway.signals() if s.kind is SignalKind.REVIEW]

    @property
    def page(self) -> str:
        return f"{self.gateway.url}/review#key={self.key}"

    @property
    def rater(self) -> str:
        return pseudonym(SECRET, self.owner)

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture
def desk(start: Start, tmp_path: Path) -> Iterator[Desk]:
    """Nothing to review yet. Two answers are wanted, and no question is a test."""
    gateway = start(review=Review(raters_per_item=2, calibration_share=0.0))
    with store.opened(f"sqlite:///{tmp_path / 'state.db'}") as state:
        yield Desk(gateway, state).of("rae")


def rivals(
    desk: Desk,
    conversation: str = "c-1",
    *,
    question: str = QUESTION,
    replies: tuple[str, str] = (YES, NO),
    **more: Any,
) -> tuple[str, str]:
    """Two replies to one prompt state, folded; their response ids."""
    found = []
    for reply in replies:
        desk.gateway.engine.script = Script(pieces=(reply,))
        asked = {"metadata": {"conversation_id": conversation}, "user": "ann", **more}
        found.append(desk.gateway.ask(question, **asked).raise_for_status().json()["id"])
    desk.fold()
    return found[0], found[1]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Browser, url: str, **context_options: Any) -> Iterator[Page]:
    """A page of that URL; an error in its console fails the test."""
    options: Any = {"viewport": {"width": 1000, "height": 760}, **context_options}
    context = browser.new_context(**options)
    origin = "/".join(url.split("/")[:3])
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text) if "Content Security" in m.text else None)
    page.goto(url)
    yield page
    context.close()
    assert complaints == []
