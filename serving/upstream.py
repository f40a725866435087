"""Engines over HTTP, on pooled connections; aiohttp's failures are translated here and nowhere else."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import aiohttp
import msgspec
from prometheus_client import Counter
from yarl import URL

from serving.config import Gateway
from serving.errors import EngineBroke, EngineRefused, EngineTooSlow, NoEngine
from serving.routing import Router

UPSTREAM_FAILURES = Counter(
    "ratchet_serving_upstream_failures_total",
    "Requests to an engine that failed: unreachable, status (5xx or adapter missing), broken, too_slow",
    ["kind"],
)

KEEP_ALIVE_S = 4.0
"""vLLM closes idle connections after 5 s; a connection must never be reused while that happens."""

T = TypeVar("T")


class _Detail(msgspec.Struct, frozen=True):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Detail = _Detail()
    message: str = ""


class Reply:
    """A streamed reply that has begun. Close it, whatever happens: that also ends the engine's work."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, closed: Callable[[], None]) -> None:
        self.first = first
        """The first bytes of the body."""
        self._response = response
        self._closed = closed

    async def next(self) -> bytes:
        """What has arrived since, at least one byte; b"" at the end. Raises: EngineBroke."""
        with _breaking():
            return await self._response.content.readany()

    def close(self) -> None:
        self._response.close()
        self._closed()


class Upstream:
    """Asks the best replica; if that fails before its first byte, once more, another one if there is one."""

    def __init__(self, session: aiohttp.ClientSession, router: Router, config: Gateway) -> None:
        self._session = session
        self._router = router
        total_s, connect_s = config.reply_timeout_s, config.connect_timeout_s
        self._whole = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s)
        self._streamed = aiohttp.ClientTimeout(
            total=total_s, sock_connect=connect_s, sock_read=config.stall_timeout_s
        )

    async def complete(self, adapter: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The body of a whole reply. Raises: EngineRefused, EngineBroke, NoEngine."""

        async def attempt(url: str) -> bytes:
            self._router.occupy(url)
            try:
                response = await self._post(url, body, headers, self._whole)
                with _breaking():
                    return await response.read()
            finally:
                self._router.vacate(url)

        return await self._twice(adapter, attempt)

    async def stream(self, adapter: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """A reply whose first bytes are there. Raises: EngineRefused, EngineBroke, NoEngine."""

        async def attempt(url: str) -> Reply:
            self._router.occupy(url)
            first = b""
            response = None
            try:
                response = await self._post(url, body, headers, self._streamed)
                with _breaking():
                    first = await response.content.readany()
                if not first:
                    raise _broken("it closed the connection before its first byte")
                return Reply(response, first, lambda: self._router.vacate(url))
            finally:
                if not first:
                    self._router.vacate(url)
                    if response is not None:
                        response.close()

        return await self._twice(adapter, attempt)

    async def _twice(self, adapter: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        url = self._router.replica(adapter)
        try:
            return await attempt(url)
        except EngineTooSlow:
            raise  # waiting as long again would help nobody
        except (NoEngine, EngineBroke):
            self._router.rest(url)
        return await attempt(self._router.replica(adapter, avoid=(url,)))

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            response = await self._session.post(_endpoint(url), data=body, headers=headers, timeout=timeout)
        except aiohttp.ConnectionTimeoutError as e:
            raise _unreachable(e) from e
        except TimeoutError as e:
            raise _silent() from e
        except (aiohttp.ClientError, OSError) as e:
            raise _unreachable(e) from e
        if response.status == 200:
            return response
        with _breaking():
            text = await response.read()
        if response.status == 404 or response.status >= 500:
            UPSTREAM_FAILURES.labels("status").inc()
            raise _status_error(response.status, text)
        raise EngineRefused(_said(text))


@contextmanager
def _breaking() -> Iterator[None]:
    try:
        yield
    except TimeoutError as e:
        raise _silent() from e
    except (aiohttp.ClientError, OSError) as e:
        raise _broken(type(e).__name__) from e


def _unreachable(e: Exception) -> NoEngine:
    UPSTREAM_FAILURES.labels("unreachable").inc()
    return NoEngine(f"no engine answers ({type(e).__name__}); try again shortly")


def _silent() -> EngineTooSlow:
    UPSTREAM_FAILURES.labels("too_slow").inc()
    return EngineTooSlow("the engine was silent for too long")


def _broken(why: str) -> EngineBroke:
    UPSTREAM_FAILURES.labels("broken").inc()
    return EngineBroke(f"the engine broke off its reply: {why}")


def _status_error(status: int, text: bytes) -> NoEngine | EngineBroke:
    if status in (404, 503):
        return NoEngine("the engine is not ready for this adapter; try again shortly")
    return EngineBroke(f"the engine failed with status {status}: {_said(text)}")


def _said(text: bytes) -> str:
    """The engine's own words, in either of vLLM's error shapes."""
    try:
        refusal = msgspec.json.decode(text, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return text[:200].decode("utf-8", "replace") or "no reason given"
    return (refusal.error.message or refusal.message or "no reason given")[:2000]


@lru_cache(maxsize=256)
def _endpoint(url: str) -> URL:
    return URL(f"{url}/v1/chat/completions")


def open_session() -> aiohttp.ClientSession:
    """A pool of connections to the engines; needs a running event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )
