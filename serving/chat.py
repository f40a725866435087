"""POST /v1/chat/completions as a raw ASGI app: choose the adapter, hand the reply on, record the turn.

The last bytes of a reply wait until its turn is durable. A client that goes away ends the engine's work, and
what it got until then is recorded as aborted.
"""

import asyncio
import contextlib
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from feedback.events import TurnStatus
from feedback.privacy import pseudonym
from feedback.redaction import redact_turn
from serving.asgi import ClientGone, Outlet, Receive, Scope, Send, read_json
from serving.asked import conversation_key, identify, parse
from serving.auth import Authenticator
from serving.comparing import Comparisons, Second
from serving.config import Gateway
from serving.errors import EngineBroke, NotRecorded, Overloaded, ServingError, ShuttingDown
from serving.feedback_tokens import FeedbackTokens
from serving.recording import Recorder, Tee
from serving.routing import Router, choose
from serving.transcript import visible
from serving.turns import Turn
from serving.upstream import Reply, Upstream

REQUESTS = Counter(
    "ratchet_serving_requests_total", "Requests answered, by route and status", ["route", "status"]
)
ADDED_SECONDS = Histogram(
    "ratchet_serving_added_seconds",
    "Time the gateway itself took for a reply: before the engine was asked and after it was done, seconds",
    buckets=(0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1),
)
IN_FLIGHT = Gauge("ratchet_serving_in_flight_count", "Chat requests being answered")
LAST_WORDS_S = 5.0
"""Longest time between cutting replies off at shutdown and ending."""

_CLIENT_GONE = 499
"""nginx's status for a client that closed its connection; only in metrics, it is never sent."""
_encoder = msgspec.json.Encoder()


class Departure:
    """Cancels the task that made it when the client goes, until it is disarmed."""

    def __init__(self, receive: Receive) -> None:
        self._gone = False
        self._task = asyncio.current_task()
        self._watch = asyncio.ensure_future(_disconnected(receive))
        self._watch.add_done_callback(self._cancel)

    def disarm(self) -> None:
        self._watch.remove_done_callback(self._cancel)
        self._watch.cancel()

    def reason(self) -> ClientGone | ShuttingDown:
        """Why this task was cancelled. The cancellation counts as dealt with."""
        if self._task is not None:
            self._task.uncancel()
        return ClientGone() if self._gone else ShuttingDown("the gateway is shutting down; ask again")

    def _cancel(self, watch: "asyncio.Future[None]") -> None:
        if self._task is not None and not watch.cancelled():
            self._gone = True
            self._task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Chat:
    """The ASGI app of the completions path."""

    def __init__(
        self,
        config: Gateway,
        authenticator: Authenticator,
        router: Router,
        upstream: Upstream,
        recorder: Recorder,
        tokens: FeedbackTokens,
        secret: bytes,
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._router = router
        self._upstream = upstream
        self._recorder = recorder
        self._tokens = tokens
        self._secret = secret
        self._comparisons = Comparisons(config, router, upstream)
        self._in_flight = 0
        IN_FLIGHT.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        response_id = f"chatcmpl-{secrets.token_hex(16)}"
        outlet = Outlet(send, [(b"x-request-id", response_id.encode())])
        self._in_flight += 1
        try:
            turn = await self._accept(dict(scope["headers"]), receive, response_id, started)
            await self._answer(turn, receive, outlet)
            status = 200
        except ServingError as e:
            status = await outlet.fail(e)
        except ClientGone:
            status = _CLIENT_GONE
        finally:
            self._in_flight -= 1
        REQUESTS.labels("chat", str(status)).inc()

    async def last_words(self) -> None:
        """After the server cut off what outlasted its drain time: wait until that is told and recorded."""
        deadline = time.monotonic() + LAST_WORDS_S
        while self._in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def _accept(
        self, headers: dict[bytes, bytes], receive: Receive, response_id: str, started: float
    ) -> Turn:
        """Who asks, for what, and which adapter answers: everything before an engine is involved."""
        principal = self._authenticator.principal(headers)
        if self._in_flight > self._config.max_in_flight:
            raise Overloaded(f"{self._config.max_in_flight} requests are in flight; try again shortly")
        asked = parse(await read_json(headers, receive, self._config.max_body_bytes), headers)
        if principal.owner in self._config.unlearned_owners:
            asked = msgspec.structs.replace(asked, learn=False)
        self._recorder.admit()
        conversation, identity = identify(asked, principal.owner, self._secret)
        user = pseudonym(self._secret, principal.owner, asked.user)
        unit = user if asked.user else conversation_key(principal.owner, conversation)
        assignment = choose(self._router.current(), asked.model, unit)
        return Turn(asked, principal, conversation, identity, user, assignment, response_id, started)

    async def _answer(self, turn: Turn, receive: Receive, outlet: Outlet) -> None:
        """Hand on the engine's reply, and record the turn however it ends once an engine was asked."""
        second = self._comparisons.begin(turn, self._in_flight)
        departure = Departure(receive)
        try:
            if turn.asked.stream:
                await self._stream(turn, second, departure, outlet)
            else:
                await self._whole(turn, second, departure, outlet)
        except EngineBroke:
            await self._record_end(turn, TurnStatus.FAILED)
            raise
        except asyncio.CancelledError:
            await self._record_end(turn, TurnStatus.ABORTED)
            raise departure.reason() from None
        finally:
            departure.disarm()
            if second is not None:
                second.abandon()

    async def _whole(self, turn: Turn, second: Second | None, departure: Departure, outlet: Outlet) -> None:
        with turn.engine_working():
            data = await self._upstream.complete(turn.assignment.adapter, *turn.for_engine())
        turn.transcript.add(data)
        if not turn.transcript.finish_reason:
            raise EngineBroke("the engine's reply has no end")
        shown = visible(data, turn.response_id, turn.asked.wants_logprobs)
        extras = await self._complete(turn, second, departure)
        await outlet.whole(_encoder.encode(shown | {"ratchet": extras}))
        ADDED_SECONDS.observe(turn.added_s())

    async def _stream(self, turn: Turn, second: Second | None, departure: Departure, outlet: Outlet) -> None:
        tee = Tee(turn.transcript, turn.response_id, turn.asked.wants_logprobs)
        with turn.engine_working():
            reply = await self._upstream.stream(turn.assignment.adapter, *turn.for_engine())
            try:
                await _relay(reply, tee, turn, outlet)
            finally:
                reply.close()
        extras = await self._complete(turn, second, departure)
        await outlet.push(tee.tail(extras), last=True)
        ADDED_SECONDS.observe(turn.added_s())

    async def _complete(self, turn: Turn, second: Second | None, departure: Departure) -> dict[str, Any]:
        """Make the turn durable, and the one beside it. Returns: the extras for the client."""
        other = None if second is None else await second.in_time(self._config.comparison_wait_s)
        departure.disarm()
        shown = [turn] if other is None else [turn, other]
        await asyncio.gather(*(self._record(t, TurnStatus.COMPLETE) for t in shown))
        token = self._tokens.issue(turn.owner, (t.response_id for t in shown), datetime.now(UTC))
        extras = turn.extras | {"feedback_token": token}
        return extras if other is None else extras | {"alternative": other.as_alternative()}

    async def _record_end(self, turn: Turn, status: TurnStatus) -> None:
        """Record a turn that did not complete; its client is told something else already."""
        with contextlib.suppress(NotRecorded):
            await self._record(turn, status)

    async def _record(self, turn: Turn, status: TurnStatus) -> None:
        await self._recorder.turn(redact_turn(turn.recorded(status), self._config.redact))


async def _relay(reply: Reply, tee: Tee, turn: Turn, outlet: Outlet) -> None:
    """Everything but the end of a stream, as it comes. Raises: EngineBroke when it has no end."""
    chunk = reply.first
    while chunk:
        if shown := tee.feed(chunk):
            await outlet.push(shown)
        if turn.first_token_s is None and tee.transcript.begun:
            turn.mark_first_token()
        try:
            chunk = await reply.next()
        except EngineBroke as e:
            tee.broke(e)
            break
    tee.check()
