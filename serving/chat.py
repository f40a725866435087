"""POST /v1/chat/completions as a raw ASGI app: choose the adapter, hand the reply on, record the turn.

The last bytes of a reply wait until its turn is durable. A client that goes away ends the engine's work, and
what it got until then is recorded as aborted.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from feedback.events import IdentitySource, TurnRecorded, TurnStatus
from feedback.privacy import pseudonym
from ops.traffic import Assignment
from serving.asgi import ClientGone, Outlet, Receive, Scope, Send, read_json
from serving.asked import Asked, conversation_key, for_engine, identify, parse
from serving.auth import Authenticator, Principal
from serving.config import Gateway
from serving.errors import EngineBroke, NotRecorded, Overloaded, ServingError, ShuttingDown
from serving.recording import Recorder, Tee
from serving.routing import Router, choose
from serving.transcript import Transcript, visible
from serving.upstream import Reply, Upstream

REQUESTS = Counter(
    "ratchet_serving_requests_total", "Requests answered, by route and status", ["route", "status"]
)
ADDED_SECONDS = Histogram(
    "ratchet_serving_added_seconds",
    "Time the gateway itself took for a reply: before the engine was asked and after it was done, seconds",
    buckets=(0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1),
)
FIRST_TOKEN_SECONDS = Histogram(
    "ratchet_serving_first_token_seconds",
    "Time to the first token of a stream, seconds",
    ["adapter"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("ratchet_serving_in_flight_count", "Chat requests being answered")
TURNS = Counter(
    "ratchet_serving_turns_total",
    "Turns served, by adapter, arm, how the reply finished and how the turn ended",
    ["adapter", "arm", "finish_reason", "status"],
)

LAST_WORDS_S = 5.0
"""Longest time between cutting replies off at shutdown and ending."""

_CLIENT_GONE = 499
"""nginx's status for a client that closed its connection; only in metrics, it is never sent."""
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_encoder = msgspec.json.Encoder()


class Turn:
    """One request while it is answered."""

    def __init__(
        self,
        asked: Asked,
        principal: Principal,
        conversation: str,
        identity: IdentitySource,
        user: str,
        assignment: Assignment,
        response_id: str,
        started: float,
    ) -> None:
        self.asked = asked
        self.assignment = assignment
        self.response_id = response_id
        self.transcript = Transcript()
        self.first_token_s: float | None = None
        self._principal = principal
        self._conversation = conversation
        self._identity = identity
        self._user = user
        self._started = started
        self._started_at = datetime.now(UTC)
        self._engine_s = 0.0

    @property
    def extras(self) -> dict[str, str]:
        """What the client learns beyond OpenAI's protocol."""
        return {
            "response_id": self.response_id,
            "adapter": self.assignment.adapter,
            "arm": self.assignment.arm,
            "conversation_id": self._conversation,
        }

    def for_engine(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the request to an engine, which makes its response id of the request id."""
        body = for_engine(self.asked, self.assignment.adapter, self._principal.cache_salt)
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": self.response_id.removeprefix("chatcmpl-"),
        }
        return body, headers

    @contextmanager
    def engine_working(self) -> Iterator[None]:
        """What happens inside is the engine's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._engine_s = time.perf_counter() - began

    def added_s(self) -> float:
        return time.perf_counter() - self._started - self._engine_s

    def mark_first_token(self) -> None:
        self.first_token_s = time.perf_counter() - self._started
        FIRST_TOKEN_SECONDS.labels(self.assignment.adapter).observe(self.first_token_s)

    def recorded(self, status: TurnStatus) -> TurnRecorded:
        """The turn as it goes into the log; without a word of it when the client withheld consent."""
        said, keeps = self.transcript, self.asked.learn
        reason = said.finish_reason
        label = reason if reason in _FINISH_REASONS else "other" if reason else "none"
        TURNS.labels(self.assignment.adapter, self.assignment.arm, label, status.value).inc()
        return TurnRecorded(
            response_id=self.response_id,
            conversation_id=conversation_key(self._principal.owner, self._conversation),
            identity=self._identity,
            principal=self._principal.owner,
            user=self._user,
            adapter=self.assignment.adapter,
            arm=self.assignment.arm,
            propensity=self.assignment.propensity,
            messages=self.asked.messages if keeps else (),
            reply=said.message() if keeps else {"role": "assistant", "content": ""},
            prompt_token_ids=said.prompt_token_ids if keeps else (),
            token_ids=tuple(said.token_ids) if keeps else (),
            logprobs=tuple(said.logprobs) if keeps else (),
            sampling=self.asked.sampling,
            finish_reason=reason,
            status=status,
            started_at=self._started_at,
            first_token_s=self.first_token_s,
            duration_s=time.perf_counter() - self._started,
            learn=keeps,
        )


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
        secret: bytes,
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._router = router
        self._upstream = upstream
        self._recorder = recorder
        self._secret = secret
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
        self._recorder.admit()
        conversation, identity = identify(asked, principal.owner, self._secret)
        user = pseudonym(self._secret, principal.owner, asked.user)
        unit = user if asked.user else conversation_key(principal.owner, conversation)
        assignment = choose(self._router.current(), asked.model, unit)
        return Turn(asked, principal, conversation, identity, user, assignment, response_id, started)

    async def _answer(self, turn: Turn, receive: Receive, outlet: Outlet) -> None:
        """Hand on the engine's reply, and record the turn however it ends once an engine was asked."""
        departure = Departure(receive)
        try:
            if turn.asked.stream:
                await self._stream(turn, departure, outlet)
            else:
                await self._whole(turn, departure, outlet)
        except EngineBroke:
            await self._record_end(turn, TurnStatus.FAILED)
            raise
        except asyncio.CancelledError:
            await self._record_end(turn, TurnStatus.ABORTED)
            raise departure.reason() from None
        finally:
            departure.disarm()

    async def _whole(self, turn: Turn, departure: Departure, outlet: Outlet) -> None:
        with turn.engine_working():
            data = await self._upstream.complete(turn.assignment.adapter, *turn.for_engine())
        turn.transcript.add(data)
        if not turn.transcript.finish_reason:
            raise EngineBroke("the engine's reply has no end")
        shown = visible(data, turn.response_id, turn.asked.wants_logprobs) | {"ratchet": turn.extras}
        departure.disarm()
        await self._recorder.turn(turn.recorded(TurnStatus.COMPLETE))
        await outlet.whole(_encoder.encode(shown))
        ADDED_SECONDS.observe(turn.added_s())

    async def _stream(self, turn: Turn, departure: Departure, outlet: Outlet) -> None:
        tee = Tee(turn.transcript, turn.response_id, turn.asked.wants_logprobs)
        with turn.engine_working():
            reply = await self._upstream.stream(turn.assignment.adapter, *turn.for_engine())
            try:
                await _relay(reply, tee, turn, outlet)
            finally:
                reply.close()
        departure.disarm()
        await self._recorder.turn(turn.recorded(TurnStatus.COMPLETE))
        await outlet.push(tee.tail(turn.extras), last=True)
        ADDED_SECONDS.observe(turn.added_s())

    async def _record_end(self, turn: Turn, status: TurnStatus) -> None:
        """Record a turn that did not complete; its client is told something else already."""
        with contextlib.suppress(NotRecorded):
            await self._recorder.turn(turn.recorded(status))


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
