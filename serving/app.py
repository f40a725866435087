"""The only place where the gateway's parts meet: chat on its own ASGI path, everything else in FastAPI."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from feedback.embedded import EmbeddedLog
from feedback.errors import StateUnavailable
from feedback.keyring import KeyRing
from feedback.review_queue import ReviewQueue
from ops.errors import RegistryUnavailable
from ops.telemetry import logger
from serving import health, openapi, reviews, signals, told
from serving.asgi import App, ClientGone, Receive, Scope, Send, error_headers, read_json
from serving.auth import Authenticator, Keys, Role
from serving.chat import REQUESTS, Chat
from serving.config import Gateway
from serving.errors import ANSWERS, ErrorBody, ErrorDetail, KeysUnavailable, ServingError, body_of
from serving.feedback_tokens import FeedbackTokens
from serving.recording import Recorder
from serving.routing import Router, RoutingSource, served_models
from serving.upstream import Upstream, open_session

CHAT_PATH = "/v1/chat/completions"
PAGES = {
    "/": "index.html",
    "/chat.css": "chat.css",
    "/chat.js": "chat.js",
    "/review": "review.html",
    "/review.css": "review.css",
    "/review.js": "review.js",
}
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build(
    config: Gateway,
    *,
    log: EmbeddedLog,
    registry: RoutingSource,
    keys: Keys,
    ring: KeyRing,
    queue: ReviewQueue,
    secret: bytes,
) -> App:
    """The gateway as one ASGI app. It closes nothing that it was given."""
    authenticator = Authenticator(keys)
    tokens = FeedbackTokens(secret, authenticator, config.feedback_token_s)
    router = Router(registry)
    recorder = Recorder(log, ring, config.on_log_failure, config.log_timeout_s)
    chat: Chat | None = None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal chat
        async with open_session() as session:
            upstream = Upstream(session, router, config)
            chat = Chat(config, authenticator, router, upstream, recorder, tokens, secret)
            tables = [
                Freshness("keys", authenticator.refresh),
                Freshness("routes", router.refresh),
                Freshness("users", ring.refresh),
            ]
            for table in tables:
                await table.renew()
            tasks = [asyncio.create_task(table.keep(config.poll_s)) for table in tables]
            yield
            await chat.last_words()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    inbox = signals.Signals(recorder, secret, config.redact)
    desk = reviews.Reviews(recorder, queue, secret)
    api = _control_plane(config, authenticator, tokens, router, recorder, inbox, desk, lifespan)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (
            chat is not None
            and scope["type"] == "http"
            and scope["path"] == CHAT_PATH
            and scope["method"] == "POST"
        ):
            await chat(scope, receive, send)
        else:
            await api(scope, receive, send)

    return app


class Freshness:
    """A table in memory, read anew again and again; while its database is down the last good one stays."""

    def __init__(self, name: str, refresh: Callable[[], None]) -> None:
        self._log = logger(table=name)
        self._refresh = refresh
        self._stale = False

    async def renew(self) -> None:
        try:
            await asyncio.to_thread(self._refresh)
        except (KeysUnavailable, RegistryUnavailable, StateUnavailable) as e:
            if not self._stale:
                self._log.warning("table_stale", error=str(e))
            self._stale = True
        else:
            if self._stale:
                self._log.info("table_fresh")
            self._stale = False

    async def keep(self, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            await self.renew()


def _control_plane(
    config: Gateway,
    authenticator: Authenticator,
    tokens: FeedbackTokens,
    router: Router,
    recorder: Recorder,
    inbox: signals.Signals,
    desk: reviews.Reviews,
    lifespan: Any,
) -> FastAPI:
    api = FastAPI(title="ratchet", lifespan=lifespan, docs_url=None, redoc_url=None)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=["POST"],
        allow_headers=["authorization", "content-type"],
    )
    api.add_exception_handler(ServingError, _on_serving_error)
    api.add_exception_handler(HTTPException, _on_http_exception)
    api.add_exception_handler(ClientGone, _on_client_gone)

    @api.post("/v1/feedback", openapi_extra=openapi.FEEDBACK)
    async def feedback(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        principal = tokens.principal(headers, datetime.now(UTC))
        body = await read_json(headers, request.receive, config.max_body_bytes)
        given = told.parse(body, config.max_text_chars)
        return _json("feedback", await inbox.accept(given, principal, datetime.now(UTC)))

    @api.post("/v1/feedback/batch", openapi_extra=openapi.FEEDBACK_BATCH)
    async def feedback_batch(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        principal = tokens.principal(headers, datetime.now(UTC))
        body = await read_json(headers, request.receive, config.max_body_bytes)
        given = told.parse_batch(body, config.max_text_chars)
        answers = await inbox.accept_all(given, principal, datetime.now(UTC))
        return _json("feedback_batch", signals.results(answers))

    @api.get("/v1/review", openapi_extra=openapi.REVIEW_QUESTION)
    async def review_question(request: Request) -> Response:
        principal = authenticator.principal(dict(request.scope["headers"]), Role.REVIEWER)
        return _json("review_question", await desk.question(principal, datetime.now(UTC)))

    @api.post("/v1/review", openapi_extra=openapi.REVIEW_ANSWER)
    async def review_answer(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        principal = authenticator.principal(headers, Role.REVIEWER)
        body = await read_json(headers, request.receive, config.max_body_bytes)
        return _json("review_answer", await desk.answer(reviews.parse(body), principal, datetime.now(UTC)))

    @api.get("/v1/models")
    async def models(request: Request) -> Response:
        authenticator.principal(dict(request.scope["headers"]))
        data = [
            {"id": n, "object": "model", "created": 0, "owned_by": "ratchet"}
            for n in served_models(router.current())
        ]
        return _json("models", {"object": "list", "data": data})

    @api.get("/healthz")
    async def healthz() -> Response:
        return _json("healthz", health.healthz(recorder))

    @api.get("/readyz")
    async def readyz() -> Response:
        readiness = health.readyz(router)
        return _json("readyz", readiness, 200 if readiness.ready else 503)

    @api.get("/metrics")
    async def metrics() -> Response:
        exposition, media_type = health.metrics(recorder)
        return Response(exposition, media_type=media_type)

    for path, name in PAGES.items():
        api.add_route(path, _page(name), include_in_schema=False)
    openapi.complete(api)
    return api


def _json(route: str, value: Any, status: int = 200) -> Response:
    REQUESTS.labels(route, str(status)).inc()
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _on_serving_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    answer = ANSWERS[type(error)]
    REQUESTS.labels(_route(request), str(answer.status)).inc()
    headers = {k.decode(): v.decode() for k, v in error_headers(error)}
    return Response(body_of(error), answer.status, headers, media_type="application/json")


def _on_http_exception(request: Request, error: Exception) -> Response:
    """A path or method that does not exist, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    REQUESTS.labels(_route(request), str(error.status_code)).inc()
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = msgspec.json.encode(ErrorBody(ErrorDetail(message, "invalid_request_error", code="unknown_url")))
    return Response(body, error.status_code, error.headers, media_type="application/json")


def _on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=400)


def _route(request: Request) -> str:
    route = request.scope.get("route")
    return route.name if route is not None else "none"


def _page(name: str) -> Callable[[Request], Response]:
    content = resources.files("serving").joinpath("pages", name).read_bytes()
    media_type = _MEDIA_TYPES[name[name.rindex(".") :]]

    def page(_: Request) -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type=media_type)

    return page
